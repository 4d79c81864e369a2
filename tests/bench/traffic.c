/* Traffic between two network namespaces, measured by the side that receives it: IPv4, one figure or line of figures an
 * answer.
 *
 *   traffic serve PORT                      echo on PORT (TCP, UDP); PORT+1 takes (TCP, UDP), PORT+2 gives (TCP) and takes in
 *                                           bulk (UDP); says "ready"
 *   traffic put|get HOST PORT SECONDS FLOWS Gbit/s of TCP to PORT+1, from PORT+2
 *   traffic ask HOST PORT SECONDS           round trips of a byte on one connection: p50, p99 in microseconds
 *   traffic dial HOST PORT SECONDS CLIENTS  connections with a byte there and back: per second, errors
 *   traffic flood HOST PORT SECONDS BYTES   datagrams to PORT+1, one a call, as iperf3 -u -b 0 sends them
 *   traffic bulk HOST PORT SECONDS BYTES    datagrams to PORT+2, as many a call as UDP_SEGMENT takes, as QUIC servers send them
 *   traffic count PORT                      so many datagrams arrived on that port since the last time, over so many seconds
 *   traffic hold HOST PORT COUNT            so many connections that each echoed a byte, kept until standard input ends
 *   traffic first HOST PORT                 tries until a byte came back: CLOCK_MONOTONIC in nanoseconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES = 1 << 21, CHUNK = 1 << 18, PARCELS = 32, ROOM = 1 << 16 };
static char chunk[CHUNK];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_in address(const char *host, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) fail(host);
    return a;
}

static void patience(int s, double seconds) {
    struct timeval t = {(time_t)seconds, (seconds - (time_t)seconds) * 1e6};
    int one = 1;
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int dialled(const char *host, int port, double seconds) {
    struct sockaddr_in a = address(host, port);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    patience(s, seconds);
    if (connect(s, (void *)&a, sizeof a)) {
        int number = errno;
        close(s);
        errno = number;
        return -1;
    }
    return s;
}

static int must(int s) {
    if (s < 0) fail("connect");
    return s;
}

static int bound(int kind, int port) {
    struct sockaddr_in a = address("0.0.0.0", port);
    int s = socket(AF_INET, kind, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (void *)&a, sizeof a) || ((kind & 15) == SOCK_STREAM && listen(s, 4096))) fail("bind");
    return s;
}

/* ---- the servers, a process each ---- */

static void echo(int port) {
    int tcp = bound(SOCK_STREAM | SOCK_NONBLOCK, port), udp = bound(SOCK_DGRAM | SOCK_NONBLOCK, port), e = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = tcp}, events[64];
    epoll_ctl(e, EPOLL_CTL_ADD, tcp, &event);
    event.data.fd = udp;
    epoll_ctl(e, EPOLL_CTL_ADD, udp, &event);
    for (;;) {
        int n = epoll_wait(e, events, 64, -1);
        for (int i = 0; i < n; i++) {
            int s = events[i].data.fd;
            if (s == tcp) {
                while ((s = accept4(tcp, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    patience(s, 0);
                    event.data.fd = s;
                    epoll_ctl(e, EPOLL_CTL_ADD, s, &event);
                }
            } else if (s == udp) {
                struct sockaddr_in from;
                socklen_t size = sizeof from;
                ssize_t r = recvfrom(s, chunk, sizeof chunk, 0, (void *)&from, &size);
                if (r >= 0) sendto(s, chunk, r, 0, (void *)&from, size);
            } else {
                ssize_t r = read(s, chunk, sizeof chunk);
                if (r <= 0 || write(s, chunk, r) != r) close(s);
            }
        }
    }
}

/* Each connection in a process of its own: takes all and says how much, or gives until nobody takes. */
static void stream(int port, int takes) {
    int l = bound(SOCK_STREAM | SOCK_CLOEXEC, port);
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int s = accept4(l, 0, 0, SOCK_CLOEXEC);
        if (s < 0) continue;
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            unsigned long long total = 0;
            ssize_t r;
            if (takes) {
                while ((r = read(s, chunk, sizeof chunk)) > 0) total += r;
                r = write(s, &total, sizeof total);
            } else {
                while (send(s, chunk, sizeof chunk, MSG_NOSIGNAL) > 0) continue;
            }
            _exit(0);
        }
        close(s);
    }
}

/* Counts datagrams; one of a single byte from 127.0.0.1 asks for the count. */
static void take(int port) {
    int s = bound(SOCK_DGRAM, port);
    double first = 0, last = 0;
    unsigned long count = 0;
    for (;;) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t r = recvfrom(s, chunk, sizeof chunk, 0, (void *)&from, &size);
        if (r == 1) {
            r = sprintf(chunk, "%lu %.6f\n", count, last - first);
            sendto(s, chunk, r, 0, (void *)&from, size);
            count = 0;
        } else if (r > 1) {
            last = now();
            if (count++ == 0) first = last;
        }
    }
}

/* The same of runs that the kernel has joined or never cut (UDP_GRO), many runs a call. */
static void take_bulk(int port) {
    static char rooms[PARCELS][ROOM];
    static struct mmsghdr runs[PARCELS];
    static struct iovec places[PARCELS];
    static struct sockaddr_in from[PARCELS];
    static union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr aligned; } notes[PARCELS];
    int s = bound(SOCK_DGRAM, port), one = 1, most = 4 << 20;
    setsockopt(s, SOL_UDP, UDP_GRO, &one, sizeof one);
    setsockopt(s, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    double first = 0, last = 0;
    unsigned long count = 0;
    for (;;) {
        for (int i = 0; i < PARCELS; i++) {
            places[i] = (struct iovec){rooms[i], ROOM};
            runs[i].msg_hdr = (struct msghdr){&from[i], sizeof from[i], &places[i], 1, &notes[i], sizeof notes[i], 0};
        }
        int n = recvmmsg(s, runs, PARCELS, MSG_WAITFORONE, 0);
        for (int i = 0; i < n; i++) {
            unsigned length = runs[i].msg_len, each = length;
            struct cmsghdr *note = CMSG_FIRSTHDR(&runs[i].msg_hdr);
            if (note && note->cmsg_level == SOL_UDP && note->cmsg_type == UDP_GRO) each = *(int *)CMSG_DATA(note);
            if (length == 1) {
                int r = sprintf(chunk, "%lu %.6f\n", count, last - first);
                sendto(s, chunk, r, 0, (void *)&from[i], sizeof from[i]);
                count = 0;
            } else if (length > 1) {
                last = now();
                if (count == 0) first = last;
                count += (length + each - 1) / each;
            }
        }
    }
}

static void serve(int port) {
    for (int which = 0; which < 5; which++) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (which == 0) echo(port);
            if (which == 3) take(port + 1);
            if (which == 4) take_bulk(port + 2);
            stream(port + which, which == 1);
        }
    }
    /* Ready when all listen, as a client sees it. */
    for (int which = 0; which < 3; which++) {
        for (int tries = 0;; tries++) {
            int s = dialled("127.0.0.1", port + which, 1);
            if (s >= 0) {
                close(s);
                break;
            }
            if (tries == 1000) fail("serve");
            usleep(5000);
        }
    }
    puts("ready");
    fflush(stdout);
    pause();
}

/* ---- the clients ---- */

static void flows(const char *host, int port, double seconds, int count, int put) {
    double *rates = mmap(0, count * sizeof *rates, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), sum = 0;
    for (int k = 0; k < count; k++) {
        if (fork() == 0) {
            int s = must(dialled(host, port + (put ? 1 : 2), 10));
            unsigned long long total = 0;
            double began = now(), end = began + seconds;
            ssize_t r;
            if (put) {
                while (now() < end)
                    if (send(s, chunk, sizeof chunk, MSG_NOSIGNAL) <= 0) fail("send");
                shutdown(s, SHUT_WR);
                if (recv(s, &total, sizeof total, MSG_WAITALL) != sizeof total) fail("recv");
            } else {
                while (now() < end) {
                    if ((r = recv(s, chunk, sizeof chunk, 0)) <= 0) fail("recv");
                    total += r;
                }
            }
            rates[k] = total * 8 / (now() - began) / 1e9;
            _exit(0);
        }
    }
    int status, bad = 0;
    while (wait(&status) > 0) bad |= status;
    if (bad) exit(1);
    for (int k = 0; k < count; k++) sum += rates[k];
    printf("%.4f\n", sum);
}

static int order(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void ask(const char *host, int port, double seconds) {
    int s = must(dialled(host, port, 5)), n = 0;
    float *took = malloc(sizeof *took * SAMPLES);
    char c = 'x';
    double t, end = now() + seconds;
    for (int warming = 50; (t = now()) < end && n < SAMPLES; warming -= warming > 0) {
        if (send(s, &c, 1, MSG_NOSIGNAL) != 1 || recv(s, &c, 1, 0) != 1) fail("ask");
        if (!warming) took[n++] = (now() - t) * 1e6;
    }
    qsort(took, n, sizeof *took, order);
    printf("%.2f %.2f\n", n ? took[n / 2] : 0, n ? took[(int)(n * 0.99)] : 0);
}

static void dial(const char *host, int port, double seconds, int clients) {
    unsigned *done = mmap(0, clients * 2 * sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), sum[2] = {0};
    double began = now();
    for (int k = 0; k < clients; k++) {
        if (fork() == 0) {
            while (now() < began + seconds) {
                char c = 'x';
                int s = dialled(host, port, 2);
                int well = s >= 0 && send(s, &c, 1, MSG_NOSIGNAL) == 1 && recv(s, &c, 1, 0) == 1;
                done[2 * k + !well]++;
                if (s >= 0) close(s);
            }
            _exit(0);
        }
    }
    while (wait(0) > 0) continue;
    for (int k = 0; k < 2 * clients; k++) sum[k & 1] += done[k];
    printf("%.1f %u\n", sum[0] / (now() - began), sum[1]);
}

static void flood(const char *host, int port, double seconds, int bytes) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = address(host, port + 1);
    if (connect(s, (void *)&a, sizeof a)) fail("connect");
    for (double end = now() + seconds; now() < end;)
        if (send(s, chunk, bytes, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED) fail("send");
}

static void bulk(const char *host, int port, double seconds, int bytes) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = address(host, port + 2);
    int most = 65507 / bytes < 64 ? 65507 / bytes : 64; /* UDP_MAX_SEGMENTS of older kernels */
    if (connect(s, (void *)&a, sizeof a)) fail("connect");
    if (setsockopt(s, SOL_UDP, UDP_SEGMENT, &bytes, sizeof bytes)) fail("UDP_SEGMENT");
    for (double end = now() + seconds; now() < end;)
        if (send(s, chunk, most * bytes, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED) fail("send");
}

static void count(int port) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = address("127.0.0.1", port);
    patience(s, 5);
    if (connect(s, (void *)&a, sizeof a) || send(s, "?", 1, 0) != 1) fail("count");
    ssize_t r = recv(s, chunk, sizeof chunk, 0);
    if (r < 0) fail("count");
    fwrite(chunk, 1, r, stdout);
}

static void hold(const char *host, int port, int wanted) {
    int stood = 0;
    for (int i = 0; i < wanted; i++) {
        char c = 'x';
        int s = dialled(host, port, 3);
        if (s < 0 || send(s, &c, 1, MSG_NOSIGNAL) != 1 || recv(s, &c, 1, 0) != 1) break;
        stood++;
    }
    printf("%d\n", stood);
    fflush(stdout);
    while (getchar() != EOF) continue;
}

static void first(const char *host, int port) {
    struct timespec t;
    puts("ready");
    fflush(stdout);
    for (double end = now() + 20; now() < end; usleep(50)) {
        char c = 'x';
        int s = dialled(host, port, 2);
        if (s < 0) continue;
        if (send(s, &c, 1, MSG_NOSIGNAL) == 1 && recv(s, &c, 1, 0) == 1) {
            clock_gettime(CLOCK_MONOTONIC, &t);
            printf("%lld\n", t.tv_sec * 1000000000LL + t.tv_nsec);
            return;
        }
        close(s);
    }
    fail("first");
}

int main(int n, char **w) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    const char *verb = n > 2 ? w[1] : "";
    if (n == 3 && !strcmp(verb, "serve")) serve(atoi(w[2]));
    else if (n == 3 && !strcmp(verb, "count")) count(atoi(w[2]));
    else if (n == 6 && !strcmp(verb, "put")) flows(w[2], atoi(w[3]), atof(w[4]), atoi(w[5]), 1);
    else if (n == 6 && !strcmp(verb, "get")) flows(w[2], atoi(w[3]), atof(w[4]), atoi(w[5]), 0);
    else if (n == 5 && !strcmp(verb, "ask")) ask(w[2], atoi(w[3]), atof(w[4]));
    else if (n == 6 && !strcmp(verb, "dial")) dial(w[2], atoi(w[3]), atof(w[4]), atoi(w[5]));
    else if (n == 6 && !strcmp(verb, "flood")) flood(w[2], atoi(w[3]), atof(w[4]), atoi(w[5]));
    else if (n == 6 && !strcmp(verb, "bulk")) bulk(w[2], atoi(w[3]), atof(w[4]), atoi(w[5]));
    else if (n == 5 && !strcmp(verb, "hold")) hold(w[2], atoi(w[3]), atoi(w[4]));
    else if (n == 4 && !strcmp(verb, "first")) first(w[2], atoi(w[3]));
    else return fprintf(stderr, "traffic: see the head of its source\n"), 2;
    return 0;
}
