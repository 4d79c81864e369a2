//! What the launcher and the embedded programs say to each other: fixed structs on SOCK_SEQPACKET sockets, with
//! descriptors beside them (SCM_RIGHTS). Compiled into both sides through `#[path]`; `core` only.
//!
//! A [`Request`] is followed by its strings, the *blob*: pointer tables with offsets (into the blob) instead of
//! addresses, and the bytes they point to. The receiver adds its own base address in place and passes the tables
//! to execve(2) as they are. A blob that does not fit into [`INLINE`] bytes travels as a memfd.
//!
//! The launcher never trusts an answer: everything that comes from inside a container is a [`Status`] of fixed
//! size whose fields are checked.

/// Version of these structs; both sides are built together, so a difference is a packaging fault.
pub const MAGIC: u32 = 0x7232_0001;
/// Bytes of a blob that travel in the message itself.
pub const INLINE: usize = 32 * 1024;
/// Supplementary groups in one request.
pub const GROUPS: usize = 32;
/// Descriptors beyond standard input, output and error that one request can pass.
pub const PASS: usize = 16;
/// All descriptors of one message: stdio, status, confirm, memfd, namespaces' pidfd, passed ones.
pub const FDS: usize = 7 + PASS;

/// Run a program.
pub const OP_EXEC: u32 = 1;
/// Send the descriptors of the root directory and, if there is one, of the upper layers' directory.
pub const OP_ROOT: u32 = 2;
/// Send signal `signal` to the program whose request had the id `id` (0: to every process but PID 1); with
/// [`F_TREE`], to all that it started.
pub const OP_SIGNAL: u32 = 3;
/// (reaper) Join the user namespace whose descriptor comes along.
#[allow(dead_code, reason = "for the reaper it is every other request")]
pub const OP_JOIN: u32 = 4;
/// (reaper) Remove everything now, and end.
pub const OP_REMOVE: u32 = 5;
/// Stay when the owner ends: what makes a container a detached one. Answered with [`ST_KEPT`] on the socket that came
/// along, so that the owner knows when it may end.
pub const OP_KEEP: u32 = 6;
/// Fork a process that carries out [`FileCall`]s which come from the socket beside the request, until that closes.
pub const OP_FILES: u32 = 7;

/// The program is the container's main one: signals are forwarded to it, and the container ends with it.
pub const F_MAIN: u32 = 1;
/// Run below a subreaper, so that `OP_SIGNAL` with `F_TREE` finds all that the program started.
pub const F_TREE: u32 = 2;
/// Standard input is a terminal that becomes the controlling one.
pub const F_TTY: u32 = 4;
/// The blob is in a memfd.
pub const F_MEMFD: u32 = 8;
/// Answer [`ST_STARTED`] with a pidfd.
pub const F_STARTED: u32 = 16;
/// Set uid, gid and groups.
pub const F_USER: u32 = 32;
/// A descriptor whose closing tells that execve succeeded is passed after the status socket.
pub const F_CONFIRM: u32 = 64;
/// Stay in the caller's session (what unshare(1) and nsenter(1) do).
pub const F_SESSION: u32 = 128;
/// Set the umask to `umask`.
pub const F_UMASK: u32 = 256;
/// Cut the bounding set to `capabilities`; without it the program keeps PID 1's.
pub const F_CAPS: u32 = 512;

/// Descriptors of PID 1, by number. Those that a container does not need are absent and not in its argv[1] mask.
pub const FD_CONTROL: i32 = 3;
/// pidfd of the owner.
pub const FD_OWNER: i32 = 4;
/// The container's own /proc, opened before anything could run in it.
pub const FD_PROC: i32 = 5;
/// The directory of the upper layers.
pub const FD_UPPER: i32 = 6;
/// Listening control socket of a detached container.
pub const FD_LISTEN: i32 = 7;
/// Where a detached container's exit status is written.
pub const FD_EXIT: i32 = 8;
/// First number that is free in PID 1.
pub const FD_FREE: i32 = 9;

/// Beside those numbers in argv[1]: the host's tree still lies upon the new root (`letgo`).
pub const LET_GO: u8 = b'/';
/// Likewise: PID 1 has CAP_SYS_ADMIN for that alone.
pub const FOR_THAT_ALONE: u8 = b'-';
/// Likewise: and CAP_SETPCAP to give it up.
pub const TO_GIVE_UP: u8 = b'+';

/// A request. All offsets count from the blob's first byte; tables hold u64 offsets and end with 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: u32,
    /// `OP_…`.
    pub op: u32,
    /// `F_…`.
    pub flags: u32,
    /// For [`OP_SIGNAL`].
    pub signal: i32,
    /// Names the program in later requests.
    pub id: u64,
    /// Bounding set of the program: bit n is capability n (capabilities(7)).
    pub capabilities: u64,
    /// Namespaces to enter (`CLONE_NEW…`), for the `enter` program.
    pub namespaces: u64,
    /// Bytes of the blob.
    pub blob: u32,
    /// Table of the paths to try, in order.
    pub candidates: u32,
    /// Table of the arguments.
    pub argv: u32,
    /// Table of the environment.
    pub envp: u32,
    /// Working directory; 0: leave it.
    pub cwd: u32,
    /// umask with [`F_UMASK`].
    pub umask: u32,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// How many of `groups` count.
    pub ngroups: u32,
    /// How many of `pass` count.
    pub npass: u32,
    /// Supplementary groups.
    pub groups: [u32; GROUPS],
    /// The numbers that the passed descriptors get in the program.
    pub pass: [u32; PASS],
}

/// The program was started: value is its pid inside; a pidfd comes along.
pub const ST_STARTED: u32 = 1;
/// It could not be started: value is the errno, stage says in what.
pub const ST_FAILED: u32 = 2;
/// It ended: value is the wait status (wait(2)).
pub const ST_EXITED: u32 = 3;
/// Answer to [`OP_ROOT`]: value is the number of descriptors that come along.
pub const ST_ROOT: u32 = 4;
/// Answer to [`OP_KEEP`].
pub const ST_KEPT: u32 = 5;

/// Answer to a [`FileCall`]: value is its errno, or 0; a descriptor comes along if it makes one.
pub const ST_FILE: u32 = 6;

/// Stages of starting a program.
pub const STAGE_PROTOCOL: u32 = 1;
/// fork(2) in PID 1.
pub const STAGE_FORK: u32 = 2;
/// Descriptors.
pub const STAGE_FDS: u32 = 3;
/// Controlling terminal.
pub const STAGE_TTY: u32 = 4;
/// Groups, gid, uid.
pub const STAGE_USER: u32 = 5;
/// Working directory.
pub const STAGE_CWD: u32 = 6;
/// Capabilities.
pub const STAGE_CAPS: u32 = 7;
/// execve(2).
pub const STAGE_EXEC: u32 = 8;
/// setns(2).
pub const STAGE_SETNS: u32 = 9;

/// What comes back.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Status {
    /// `ST_…`.
    pub kind: u32,
    /// `STAGE_…`, with [`ST_FAILED`].
    pub stage: u32,
    /// pid, errno, wait status or count.
    pub value: i32,
    /// Peak resident memory of the program in KiB (getrusage(2)).
    pub maxrss_kib: u32,
    /// User time in microseconds.
    pub utime_us: u64,
    /// System time in microseconds.
    pub stime_us: u64,
}

/// A system call on files, for the process of [`OP_FILES`]; `blob` bytes follow it. The descriptors that come beside
/// it are at [`REMOTE_FD`] and after while it runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FileCall {
    /// [`MAGIC`].
    pub magic: u32,
    /// Number of the system call.
    pub number: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Bit n: argument n is an offset into the blob.
    pub pointers: u32,
    /// Bytes of the blob.
    pub blob: u32,
    /// 1: its result is a descriptor.
    pub makes_fd: u32,
    /// Zero.
    pub pad: u32,
}

/// First number of the descriptors that come with a [`FileCall`].
pub const REMOTE_FD: u32 = 100;
