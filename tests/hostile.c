/* A hostile program: looks for a secret in the memory and environment of every process that it can see, and tries to
 * trace them. Run inside a container by test_security.py.
 *
 *   hostile KEY once|loop     KEY: the secret, each byte XOR 0x5a, in hexadecimal, so that it is not in our own memory
 *
 * Prints FOUND PID COMM FILE for each place where the secret is, TRACED PID for each process that can be traced, READ
 * PID for each whose memory can be opened, once for each, and at the end how often it looked. A loop ends when standard input does.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK (1 << 16)
static unsigned char key[256];
static int length;
static char said[1 << 16];
static unsigned char buffer[CHUNK + 256];

static void say(const char *what, int pid, const char *file) {
    char line[512], name[64] = "?", path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        int n = read(fd, name, sizeof name - 1);
        name[n > 0 ? n - 1 : 0] = 0;
        close(fd);
    }
    snprintf(line, sizeof line, "%s %d %s %s\n", what, pid, name, file);
    if (strstr(said, line)) return;
    if (strlen(said) + strlen(line) + 1 > sizeof said) said[0] = 0; /* rather twice than never */
    strcat(said, line);
    fputs(line, stdout);
    fflush(stdout);
}

static int holds(const unsigned char *bytes, long count) {
    for (long i = 0; i + length <= count; i++) {
        int k = 0;
        while (k < length && (bytes[i + k] ^ 0x5a) == key[k]) k++;
        if (k == length) return 1;
    }
    return 0;
}

static void look(int pid) {
    char path[64], line[512];
    for (const char **file = (const char *[]){"environ", "cmdline", "auxv", 0}; *file; file++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, *file);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        long n = read(fd, buffer, CHUNK);
        if (holds(buffer, n)) say("FOUND", pid, *file);
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDONLY);
    if (mem >= 0) say("READ", pid, "mem");
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char mode[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || mode[0] != 'r' || strstr(line, "[v")) continue;
        if (to - from > 64 << 20) to = from + (64 << 20);
        for (unsigned long at = from; at < to; at += CHUNK) {
            long want = to - at < CHUNK + length ? to - at : CHUNK + length;
            long n = mem < 0 ? -1 : pread(mem, buffer, want, at);
            if (n <= 0) {
                struct iovec mine = {buffer, want}, theirs = {(void *)at, want};
                n = process_vm_readv(pid, &mine, 1, &theirs, 1, 0);
            }
            if (n <= 0) break;
            if (holds(buffer, n)) say("FOUND", pid, "mem");
        }
    }
    if (maps) fclose(maps);
    if (mem >= 0) close(mem);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
        say("TRACED", pid, "ptrace");
        if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0) waitpid(pid, 0, __WALL);
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    for (; argv[1][2 * length] && length < 256; length++) sscanf(argv[1] + 2 * length, "%2hhx", &key[length]);
    long rounds = 0;
    struct pollfd input = {0, POLLIN};
    do {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc)))
            if (isdigit(entry->d_name[0]) && atoi(entry->d_name) != getpid()) look(atoi(entry->d_name));
        closedir(proc);
        if (++rounds == 1) { puts("looking"); fflush(stdout); }
    } while (argv[2][0] == 'l' && poll(&input, 1, 0) == 0);
    printf("rounds %ld\n", rounds);
    return 0;
}
