/* The least that the kernel asks for what r2d2 does, measured one at a time: for each byte on standard input the work is
 * done once, and its nanoseconds are printed.
 *
 *   limit start ROOT UID GID OPTIONS   a container: clone, id maps, overlay with OPTIONS on ROOT, proc, pivot_root, execve
 *   limit spawn PROGRAM ARGUMENT...    a program, to the end of all that it started: bwrap(1) goes before its PID 1 does
 *
 * Both clone with CLONE_VM and CLONE_VFORK: nothing of this process is copied.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP };

static char **words;
static char stack[1 << 16] __attribute__((aligned(16)));

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) _exit(101);
    close(fd);
}

static int container(void *unused) {
    char map[64];
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %s 1", words[1]);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %s 1", words[2]);
    put("/proc/self/gid_map", map);
    if (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0)) _exit(102);
    if (mount("overlay", words[0], "overlay", 0, words[3])) _exit(103);
    if (chdir(words[0]) || mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0)) _exit(104);
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) _exit(105);
    if (sethostname("limit", 5)) _exit(106);
    execve("/bin/true", (char *[]){"true", 0}, (char *[]){0});
    _exit(107);
}

static int program(void *unused) {
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    execvp(words[0], words);
    _exit(107);
}

int main(int argc, char **argv) {
    char turn;
    if (argc < 3) return 2;
    int starts = strcmp(argv[1], "start") == 0;
    words = argv + 2;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1)) return 2;
    while (read(0, &turn, 1) == 1) {
        struct timespec from, to;
        int status;
        clock_gettime(CLOCK_MONOTONIC, &from);
        int flags = CLONE_VM | CLONE_VFORK | SIGCHLD | (starts ? SPACES : 0);
        int pid = clone(starts ? container : program, stack + sizeof stack, flags, 0);
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
            fprintf(stderr, "%s: status %x\n", argv[2], pid < 0 ? -1 : status);
            return 1;
        }
        while (waitpid(-1, &status, __WALL) > 0) continue;
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("%lld\n", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec);
        fflush(stdout);
    }
    return 0;
}
