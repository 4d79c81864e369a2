//! Numbers of the kernel's interface (x86-64): those of system calls and errors, and those names of headers that more
//! than one room uses. Reached by way of `sys`. Runs nowhere: it is data.

/// Numbers of the system calls (x86-64).
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const POLL: usize = 7;
    pub const IOCTL: usize = 16;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDTO: usize = 44;
    pub const RECVFROM: usize = 45;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const SHUTDOWN: usize = 48;
    pub const BIND: usize = 49;
    pub const SOCKETPAIR: usize = 53;
    pub const SETSOCKOPT: usize = 54;
    pub const GETSOCKOPT: usize = 55;
    pub const FORK: usize = 57;
    pub const WAIT4: usize = 61;
    pub const FCNTL: usize = 72;
    pub const SETSID: usize = 112;
    pub const CAPSET: usize = 126;
    pub const PRCTL: usize = 157;
    pub const SETRLIMIT: usize = 302;
    pub const EXIT_GROUP: usize = 231;
    pub const EPOLL_WAIT: usize = 232;
    pub const EPOLL_CTL: usize = 233;
    pub const OPENAT: usize = 257;
    pub const UNSHARE: usize = 272;
    pub const ACCEPT4: usize = 288;
    pub const RECVMMSG: usize = 299;
    pub const EPOLL_PWAIT2: usize = 441;
    pub const EPOLL_CREATE1: usize = 291;
    pub const SETNS: usize = 308;
    pub const SECCOMP: usize = 317;
    pub const PREAD64: usize = 17;
    pub const PWRITE64: usize = 18;
    pub const SPLICE: usize = 275;
    pub const PIPE2: usize = 293;
    pub const CLOSE_RANGE: usize = 436;
}

/// errno.
pub const EINTR: i32 = 4;
/// errno.
pub const EAGAIN: i32 = 11;
/// errno.
pub const EACCES: i32 = 13;
/// errno.
pub const EINVAL: i32 = 22;
/// errno.
pub const ENOSPC: i32 = 28;
/// errno.
pub const ENOENT: i32 = 2;
/// errno.
pub const EEXIST: i32 = 17;
/// errno.
pub const EMSGSIZE: i32 = 90;
/// errno.
pub const ENETDOWN: i32 = 100;
/// errno.
pub const EADDRINUSE: i32 = 98;
/// errno.
pub const EADDRNOTAVAIL: i32 = 99;
/// errno.
pub const EALREADY: i32 = 114;
/// errno.
pub const EINPROGRESS: i32 = 115;

/// epoll_ctl(2).
pub const EPOLLIN: u32 = 1;

/// setsockopt(2): a level.
pub const SOL_IP: i32 = 0;
/// setsockopt(2): a level.
pub const SOL_SOCKET: i32 = 1;
/// setsockopt(2): a level.
pub const SOL_TCP: i32 = 6;
/// setsockopt(2): a level.
pub const SOL_IPV6: i32 = 41;
/// socket(7).
pub const SO_RCVBUF: i32 = 8;
/// tcp(7).
pub const TCP_NODELAY: i32 = 1;
/// recv(2), send(2).
pub const MSG_DONTWAIT: i32 = 0x40;
/// send(2).
pub const MSG_NOSIGNAL: i32 = 0x4000;
