/* Facts that only a C program can show: each is a function that returns 0 if the kernel does as we believe. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("%s:%d: %s (errno %d)\n", __func__, __LINE__, #what, errno); return 1; } } while (0)
#define STACK (64 * 1024)

static int pipes[2];
static volatile int word;

static char *stack(void) {
    return (char *)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + STACK;
}

/* Waits for a byte, or for the end of the pipe, then exits. What it executes is this program again. */
static int block(void) {
    char byte;
    return read(0, &byte, 1) < 0;
}

static int exec_block(void *arg) {
    (void)arg;
    dup2(pipes[0], 0);
    close(pipes[0]);
    close(pipes[1]);
    execl("/proc/self/exe", "facts", "block", (char *)0);
    _exit(99);
}

/* The futex of CLONE_CHILD_CLEARTID is cleared and woken when the child executes a program, not only at its end. */
static int cleartid_wakes_at_exec(void) {
    int status, pidfd;
    CHECK(pipe(pipes) == 0);
    word = 1;
    int flags = CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID;
    int pid = clone(exec_block, stack(), flags, 0, &pidfd, 0, &word);
    CHECK(pid > 0);
    while (word) syscall(SYS_futex, &word, FUTEX_WAIT, 1, 0, 0, 0);
    CHECK(waitpid(pid, &status, WNOHANG | __WALL) == 0); /* it lives */
    struct pollfd ended = {pidfd, POLLIN, 0};
    CHECK(poll(&ended, 1, 0) == 0);
    close(pipes[0]);
    close(pipes[1]); /* now its read ends */
    CHECK(waitpid(pid, &status, __WALL) == pid && status == 0);
    return 0;
}

static int exec_block_after(void *arg) { return arg ? 0 : exec_block(0); }

/* A child made without an exit signal: invisible to waitpid(-1) if it never executes a program, like any other
   child once it has. */
static int exec_resets_the_exit_signal(void) {
    int status, pidfd;
    CHECK(pipe(pipes) == 0);
    int pid = clone(exec_block_after, stack(), CLONE_VM | CLONE_PIDFD, (void *)1, &pidfd);
    struct pollfd ended = {pidfd, POLLIN, 0};
    CHECK(pid > 0 && poll(&ended, 1, 10000) == 1);
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
    CHECK(waitpid(-1, &status, __WALL) == pid);
    pid = clone(exec_block_after, stack(), CLONE_VM, 0);
    CHECK(pid > 0);
    close(pipes[0]);
    close(pipes[1]);
    /* Before its execve there is no such child: ECHILD until then. */
    int found;
    while ((found = waitpid(-1, &status, 0)) == -1 && errno == ECHILD) sched_yield();
    CHECK(found == pid && status == 0);
    return 0;
}

static volatile int doomed;

static void *parent_thread(void *arg) {
    (void)arg;
    int ready[2];
    char byte;
    if (pipe(ready)) return 0;
    doomed = fork();
    if (doomed == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    if (read(ready[0], &byte, 1) != 1) return 0;
    return 0; /* the thread ends, the process does not */
}

/* PR_SET_PDEATHSIG fires when the thread that made the child ends. */
static int pdeathsig_is_per_thread(void) {
    pthread_t thread;
    int status;
    CHECK(pthread_create(&thread, 0, parent_thread, 0) == 0 && pthread_join(thread, 0) == 0);
    CHECK(doomed > 0 && waitpid(doomed, &status, 0) == doomed);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return 0;
}

static void *outlive(void *arg) {
    char byte;
    (void)arg;
    if (read(pipes[0], &byte, 1) < 0) _exit(1);
    _exit(0);
}

/* A pidfd is readable when the last thread has ended, not when the first one has: so it is what an owner is watched by. */
static int a_pidfd_waits_for_every_thread(void) {
    CHECK(pipe(pipes) == 0);
    int pid = fork();
    if (pid == 0) {
        pthread_t thread;
        close(pipes[1]);
        if (pthread_create(&thread, 0, outlive, 0)) _exit(1);
        pthread_exit(0);
    }
    close(pipes[0]);
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    CHECK(pidfd >= 0);
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    while (!strstr(text, ") Z ")) { /* until the main thread is a zombie */
        int fd = open(path, O_RDONLY);
        ssize_t n = read(fd, text, sizeof text - 1);
        CHECK(n > 0);
        text[n] = 0;
        close(fd);
        sched_yield();
    }
    struct pollfd ended = {pidfd, POLLIN, 0};
    CHECK(poll(&ended, 1, 0) == 0);
    close(pipes[1]);
    CHECK(poll(&ended, 1, 10000) == 1);
    return 0;
}

static volatile int result;

static int join_time(void *arg) {
    (void)arg;
    int fd = open("/proc/self/ns/time", O_RDONLY | O_CLOEXEC);
    result = fd < 0 ? -1 : setns(fd, CLONE_NEWTIME) == 0 ? 0 : errno;
    return 0;
}

/* A process that shares memory cannot join a time namespace: one more reason for PID 1 to do every exec. */
static int setns_time_wants_memory_of_its_own(void) {
    int status;
    int pid = clone(join_time, stack(), CLONE_VM | SIGCHLD, 0);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(result == EUSERS || result == EPERM);
    return 0;
}

static int change_ids(void *arg) {
    (void)arg;
    uid_t uid = getuid();
    result = syscall(SYS_setresuid, uid == 0 ? 65534 : uid, uid == 0 ? 65534 : uid, uid == 0 ? 65534 : uid) == 0 ? 0 : errno;
    return 0;
}

/* setresuid in a child that shares memory makes the parent undumpable, if it changes anything: the flag is the
   memory's. */
static int setresuid_in_a_child_that_shares_memory(void) {
    int status;
    CHECK(prctl(PR_GET_DUMPABLE) == 1);
    int pid = clone(change_ids, stack(), CLONE_VM | SIGCHLD, 0);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && result == 0);
    CHECK((prctl(PR_GET_DUMPABLE) == 1) == (getuid() != 0)); /* an ordinary user changes nothing */
    return 0;
}

static int change_mask(void *arg) {
    (void)arg;
    umask(0);
    result = chdir("/proc");
    signal(SIGUSR1, SIG_IGN);
    return 0;
}

/* Without CLONE_FS and CLONE_SIGHAND the child has a umask, a working directory and handlers of its own, although it
   shares the memory. */
static int umask_cwd_and_handlers_are_the_childs_own(void) {
    char before[PATH_MAX], after[PATH_MAX];
    int status;
    struct sigaction action;
    umask(027);
    CHECK(getcwd(before, sizeof before));
    int pid = clone(change_mask, stack(), CLONE_VM | SIGCHLD, 0);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && result == 0);
    CHECK(umask(027) == 027);
    CHECK(getcwd(after, sizeof after) && strcmp(before, after) == 0);
    CHECK(sigaction(SIGUSR1, 0, &action) == 0 && action.sa_handler == SIG_DFL);
    return 0;
}

/* A memfd that is sealed against writing can still be executed by descriptor, also when it is close-on-exec. */
static int a_sealed_memfd_executes(void) {
    int status, fd = syscall(SYS_memfd_create, "facts", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int self = open("/proc/self/exe", O_RDONLY);
    static char buffer[1 << 16];
    ssize_t n;
    CHECK(fd >= 0 && self >= 0);
    while ((n = read(self, buffer, sizeof buffer)) > 0) CHECK(write(fd, buffer, n) == n);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
    int pid = fork();
    if (pid == 0) {
        char *argv[] = {"facts", "block", 0}, *envp[] = {0};
        int null = open("/dev/null", O_RDONLY);
        dup2(null, 0);
        syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    return 0;
}

#define FACT(name) if (argc > 1 && strcmp(argv[1], #name) == 0) return name()
int main(int argc, char **argv) {
    alarm(60);
    FACT(block);
    FACT(cleartid_wakes_at_exec);
    FACT(exec_resets_the_exit_signal);
    FACT(pdeathsig_is_per_thread);
    FACT(a_pidfd_waits_for_every_thread);
    FACT(setns_time_wants_memory_of_its_own);
    FACT(setresuid_in_a_child_that_shares_memory);
    FACT(umask_cwd_and_handlers_are_the_childs_own);
    FACT(a_sealed_memfd_executes);
    return 98;
}
