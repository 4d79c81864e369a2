//! The interpreter of steps.
//!
//! **Process:** the child, between clone(2) and execve(2). It shares the caller's memory (`CLONE_VM`, so that a start
//! costs the same whatever the caller's size) and runs beside the caller's threads, in namespaces in which nobody
//! else is yet, on a stack of its own, with all signals blocked.
//!
//! Must: use raw system calls only (`errno` and thread-local storage are the caller's); report by plain stores into
//! [`Shared`]; end in execve or exit.
//! Mustn't: allocate, lock, panic, unwind, change uid or gid (setresuid here would turn off the *caller's* dumpable
//! flag), or return.
//!
//! Every step is one arm of one `match`; each system call is made by [`Child::call`], which remembers which one
//! failed. What an arm needs of paths, of mounts, and to become a program, is in the rooms of these names.
#![allow(unsafe_code, reason = "the after-clone child: raw system calls are all it may use")]
#![deny(clippy::disallowed_methods, clippy::disallowed_macros)]

mod beside;
mod mount;
mod path;
mod probe;
mod program;

pub(super) use beside::Beside;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::step::{Actor, Op, Place, Step};
use crate::sys::raw::{self, Outcome, nr};
use mount::MountAttr;
use program::for_leaving;

const AT_FDCWD: usize = -100isize as usize;
const O_CLOEXEC: usize = 0o2_000_000;
const O_PATH: usize = 0o10_000_000;
const O_DIRECTORY: usize = 0o200_000;
const O_CREATE_NEW: usize = 0o100 | 0o200 | 0o1 | 0o400_000; // O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW
const AT_EMPTY_PATH: usize = 0x1000;
const AT_RECURSIVE: usize = 0x8000;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const EEXIST: i32 = 17;
/// Bytes of the kernel's own message that are kept.
pub(super) const NOTE: usize = 256;

/// What caller and child share beyond the steps.
pub(super) struct Shared {
    /// The child's turn: 0 wait, 1 go, 2 give up. A futex.
    pub(super) go: AtomicU32,
    /// Cleared (and woken) by the kernel when the child executes a program or ends: `CLONE_CHILD_CLEARTID`.
    pub(super) alive: AtomicU32,
    /// The step being carried out.
    pub(super) step: AtomicU32,
    /// Its errno, if it failed.
    pub(super) errno: AtomicI32,
    /// The number of the system call that failed.
    pub(super) syscall: AtomicU32,
    /// Per step: how long it took, in nanoseconds; 0 for one that has not ended.
    pub(super) took: Vec<AtomicU64>,
    /// When the child's last step began (CLOCK_MONOTONIC, ns): it ends in execve and cannot tell how long it took.
    pub(super) moment: AtomicU64,
    /// Per step: the errno of an optional step that failed.
    pub(super) skipped: Vec<AtomicI32>,
    /// What fsopen(2)'s log said.
    pub(super) note: UnsafeCell<[u8; NOTE]>,
}

// SAFETY: `note` is written by the child only, and read by the caller only after `alive` was cleared.
unsafe impl Sync for Shared {}

/// Descriptors that the child hands to PID 1; -1 for none.
#[derive(Clone, Copy)]
pub(super) struct Hand {
    pub(super) program: i32,
    pub(super) null: i32,
    pub(super) control: i32,
    pub(super) owner: i32,
    /// pidfd of the caller, for the child itself: while it waits, nobody else would notice the caller's end.
    pub(super) watch: i32,
    pub(super) listen: i32,
    pub(super) exit: i32,
    /// Standard descriptors of [`Op::Program`].
    pub(super) stdio: [i32; 3],
    /// PID 1 has a program to start at once.
    pub(super) first: bool,
}

/// All that the child needs; lives in the caller's frame until `alive` is cleared.
pub(super) struct Job<'a> {
    pub(super) steps: &'a [Step],
    pub(super) shared: &'a Shared,
    pub(super) hand: Hand,
    /// The thread that carries out some of the steps beside the network namespace, if the plan has one.
    pub(super) beside: Option<&'a Beside>,
    /// Execve tables of [`Op::Program`], ending with null: candidates, argv, envp.
    pub(super) tables: [*const *const libc::c_char; 3],
}

/// The child's entry. `job` points to a [`Job`].
pub(super) extern "C" fn main(job: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the caller keeps the job alive until this process no longer uses its memory.
    let job = unsafe { &*job.cast::<Job<'_>>() };
    Child::new(job).run();
    exit(127)
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: ends this process alone (it is its own thread group).
        let _ = unsafe { raw::call(nr::EXIT_GROUP, [code]) };
    }
}

struct Child<'a> {
    job: &'a Job<'a>,
    root: i32,
    proc: i32,
    upper: i32,
    /// The caller's umask; ours is 0, so that modes are what the steps say.
    umask: usize,
    /// When the step before ended.
    moment: u64,
    /// The system call made last.
    failed: usize,
}

fn text(string: &CStr) -> usize {
    string.as_ptr() as usize
}

impl<'a> Child<'a> {
    const fn new(job: &'a Job<'a>) -> Self {
        Self { job, root: -1, proc: -1, upper: -1, umask: 0o022, moment: 0, failed: 0 }
    }
}

impl Child<'_> {
    fn run(&mut self) {
        const PR_SET_PDEATHSIG: usize = 1;
        const SIGKILL: usize = 9;
        // Bridges the time until execve. It fires when the calling *thread* ends, which cannot happen while that
        // thread waits for us.
        let _ = self.call(nr::PRCTL, [PR_SET_PDEATHSIG, SIGKILL]);
        self.umask = self.call(nr::UMASK, [0]).unwrap_or(0o022); // ours alone: no CLONE_FS
        let beside = self.job.beside.filter(|_| self.begin_beside());
        let network = beside.map(|beside| (self.network_beside(beside), self.failed));
        // Ended before that was armed? What the steps make would be left to nobody.
        if self.caller_is_gone() || !self.wait_for_caller() {
            exit(127);
        }
        self.moment = now();
        let mut i = 0;
        while let Some(step) = self.job.steps.get(i) {
            let outcome = match beside.zip(network) {
                Some((beside, network)) if i == beside.run.start => {
                    i = beside.last(); // of the steps that are done there
                    self.together(beside, network)
                }
                Some((beside, _)) if beside.was_alone(i, step) => Ok(()),
                _ if step.op.actor() == Actor::Caller => Ok(()),
                _ => self.own(i, step),
            };
            if let Err(errno) = outcome {
                self.job.shared.syscall.store(self.failed as u32, Ordering::Relaxed);
                self.job.shared.errno.store(errno, Ordering::Relaxed);
                exit(127);
            }
            i += 1;
        }
        exit(127);
    }

    /// Carries out a step of the child's own.
    fn own(&mut self, i: usize, step: &Step) -> Result<(), i32> {
        self.job.shared.step.store(i as u32, Ordering::Relaxed);
        self.job.shared.moment.store(self.moment, Ordering::Relaxed);
        self.timed(i, step)
    }

    /// Carries out a step: `Err` is one that is not optional and has failed.
    fn timed(&mut self, i: usize, step: &Step) -> Result<(), i32> {
        let outcome = self.step(&step.op);
        let ended = now();
        self.took(i, ended.saturating_sub(self.moment));
        self.moment = ended;
        if let Err(errno) = outcome
            && step.optional
        {
            if let Some(skipped) = self.job.shared.skipped.get(i) {
                skipped.store(errno, Ordering::Relaxed);
            }
            return Ok(());
        }
        outcome
    }

    fn took(&self, i: usize, time: u64) {
        if let Some(took) = self.job.shared.took.get(i) {
            took.store(time.max(1), Ordering::Relaxed);
        }
    }

    /// Until the caller has written the id maps. Looks up now and then whether the caller still lives: it may have
    /// been killed before PDEATHSIG was armed.
    fn wait_for_caller(&mut self) -> bool {
        const FUTEX_WAIT: usize = 0;
        /// Looks before sleeping: the caller needs some twenty microseconds, a sleep and a wake-up cost more.
        const LOOKS: usize = 64;
        let moment = [0usize, 100_000_000];
        for _ in 0..LOOKS {
            if self.job.shared.go.load(Ordering::Acquire) != 0 {
                break;
            }
            let _ = self.call(nr::SCHED_YIELD, []);
        }
        loop {
            match self.job.shared.go.load(Ordering::Acquire) {
                0 => {}
                1 => return true,
                _ => return false,
            }
            let word = self.job.shared.go.as_ptr() as usize;
            let _ = self.call(nr::FUTEX, [word, FUTEX_WAIT, 0, &raw const moment as usize]);
            if self.caller_is_gone() {
                return false;
            }
        }
    }

    fn caller_is_gone(&mut self) -> bool {
        const POLLIN: u64 = 1;
        let poll = [u64::from(self.job.hand.watch as u32) | POLLIN << 32];
        let zero = [0usize, 0];
        self.call(nr::PPOLL, [&raw const poll as usize, 1, &raw const zero as usize, 0, 0]) == Ok(1)
    }

    /// One system call, remembered for the report.
    fn call<const N: usize>(&mut self, n: usize, args: [usize; N]) -> Outcome {
        self.failed = n;
        // SAFETY: every pointer that this file passes is to a C string of the steps or to a local that outlives the
        // call, of the size that the system call expects.
        unsafe { raw::call(n, args) }
    }

    fn close(&mut self, fd: usize) {
        let failed = self.failed;
        let _ = self.call(nr::CLOSE, [fd]);
        self.failed = failed;
    }

    fn step(&mut self, op: &Op) -> Result<(), i32> {
        match op {
            Op::Clone { .. } | Op::IdMap(_) | Op::Cgroup(_) => Ok(()),
            Op::Unshare { namespaces } => self.call(nr::UNSHARE, [namespaces.flags() as usize]).map(drop),
            Op::TimeOffsets { text: offsets } => {
                self.overwrite(c"/proc/self/timens_offsets", offsets.as_bytes())
            }
            Op::Private => {
                const MS_PRIVATE: u64 = 1 << 18;
                let attr = MountAttr { set: 0, clear: 0, propagation: MS_PRIVATE, userns: 0 };
                self.set_attributes(AT_FDCWD, c"/", AT_RECURSIVE, &attr)
            }
            Op::Directory { at, mode } => self
                .make(at, |child, dir, name| child.call(nr::MKDIRAT, [dir, name, *mode as usize]).map(drop)),
            Op::Owner { at, uid, gid } => self.make(at, |child, dir, name| {
                let ids = [*uid as usize, *gid as usize];
                child.call(nr::FCHOWNAT, [dir, name, ids[0], ids[1], AT_SYMLINK_NOFOLLOW]).map(drop)
            }),
            Op::Symlink { at, target } => self
                .make(at, |child, dir, name| child.call(nr::SYMLINKAT, [text(target), dir, name]).map(drop)),
            Op::File { at, mode, text: content } if content.is_empty() => {
                self.make(at, |child, dir, name| {
                    const S_IFREG: usize = 0o100_000;
                    child.call(nr::MKNODAT, [dir, name, S_IFREG | *mode as usize, 0]).map(drop)
                })
            }
            Op::File { at, mode, text: content } => self.make(at, |child, dir, name| {
                let fd = child.call(nr::OPENAT, [dir, name, O_CREATE_NEW | O_CLOEXEC, *mode as usize])?;
                let written = child.write(fd, content);
                child.close(fd);
                written
            }),
            Op::Mount { fstype, source, settings, attributes, at } => {
                self.mount(fstype, source, settings, *attributes, at)
            }
            Op::Bind { source: Place::Host(source), at, recursive: false, attributes: 0 }
                if self.in_proc(at).is_some() =>
            {
                const MS_BIND: usize = 4096;
                let name = self.in_proc(at).unwrap_or_else(|| text(c""));
                // One call instead of three, and most masks are of this kind. mount(2) knows no descriptors, but the
                // working directory; and it follows a symbolic link, but there is none to be masked in /proc.
                self.call(nr::FCHDIR, [self.proc as usize])?;
                self.call(nr::MOUNT, [text(source), name, 0, MS_BIND, 0]).map(drop)
            }
            Op::Bind { source, at, recursive, attributes } => {
                let flags = O_CLOEXEC | 1 | if *recursive { AT_RECURSIVE } else { 0 }; // OPEN_TREE_CLONE
                let tree = if let Some(name) = self.in_proc(source) {
                    self.call(nr::OPEN_TREE, [self.proc as usize, name, flags | AT_SYMLINK_NOFOLLOW])
                } else {
                    let (from, name) = self.locate(source)?;
                    let empty = if name == text(c"") { AT_EMPTY_PATH } else { 0 };
                    let tree = self.call(nr::OPEN_TREE, [from, name, flags | empty]);
                    self.release(from);
                    tree
                };
                let tree = tree?;
                if *attributes != 0 {
                    let attr = MountAttr { set: *attributes, clear: 0, propagation: 0, userns: 0 };
                    let flags = AT_EMPTY_PATH | if *recursive { AT_RECURSIVE } else { 0 };
                    self.set_attributes(tree, c"", flags, &attr)?;
                }
                self.attach(tree, at)?;
                if matches!(source, Place::Host(path) if path.as_bytes() == b"/proc") {
                    self.proc = tree as i32; // for PID 1, as a new one is
                } else {
                    self.close(tree);
                }
                Ok(())
            }
            Op::Move { from, to } => {
                const TO_SYMLINKS: usize = 0x10;
                self.call(nr::MOVE_MOUNT, [AT_FDCWD, text(from), AT_FDCWD, text(to), TO_SYMLINKS]).map(drop)
            }
            Op::Remount { at, attributes } => {
                let attr = MountAttr { set: *attributes, clear: 0, propagation: 0, userns: 0 };
                let (dir, name) = self.locate(at)?;
                // SAFETY: `locate` returns a C string of the steps or the empty one.
                let path = unsafe { CStr::from_ptr(name as *const libc::c_char) };
                let done = self.set_attributes(dir, path, AT_EMPTY_PATH, &attr);
                self.release(dir);
                done
            }
            Op::Upper { path, ours } => {
                let fd = if *ours {
                    self.call(nr::OPENAT, [AT_FDCWD, text(path), O_DIRECTORY | O_CLOEXEC])?
                } else {
                    // A mount of its own, attached nowhere: whoever gets hold of it, .. leads nowhere. Not for all,
                    // because letting go of such a mount costs a grace period.
                    self.call(nr::OPEN_TREE, [AT_FDCWD, text(path), O_CLOEXEC | 1])?
                };
                self.upper = fd as i32;
                Ok(())
            }
            Op::Root { path } => {
                let flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
                self.root = self.call(nr::OPENAT, [AT_FDCWD, text(path), flags])? as i32;
                Ok(())
            }
            Op::PivotRoot => {
                const MNT_DETACH: usize = 2;
                self.call(nr::FCHDIR, [self.root as usize])?;
                // pivot_root(2): with both paths equal the old root is stacked on the new one and can be let go of.
                self.call(nr::PIVOT_ROOT, [text(c"."), text(c".")])?;
                if !self.leaves() {
                    self.call(nr::UMOUNT2, [text(c"."), MNT_DETACH])?;
                }
                self.call(nr::CHDIR, [text(c"/")]).map(drop)
            }
            Op::Chroot => {
                self.call(nr::FCHDIR, [self.root as usize])?;
                self.call(nr::CHROOT, [text(c".")])?;
                self.call(nr::CHDIR, [text(c"/")]).map(drop)
            }
            Op::Hostname(name) => self.call(nr::SETHOSTNAME, [text(name), name.as_bytes().len()]).map(drop),
            Op::Loopback => self.network(),
            Op::Keyring => {
                const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
                self.call(nr::KEYCTL, [KEYCTL_JOIN_SESSION_KEYRING, 0]).map(drop)
            }
            Op::Rlimit { resource, value, .. } => {
                let limit = [*value, *value];
                self.call(nr::PRLIMIT64, [0, *resource as usize, &raw const limit as usize, 0]).map(drop)
            }
            Op::Capabilities { keep } => {
                self.bound(keep | if self.leaves() { for_leaving(*keep) } else { 0 })
            }
            Op::NoNewPrivileges => {
                const PR_SET_NO_NEW_PRIVS: usize = 38;
                self.call(nr::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0]).map(drop)
            }
            Op::Probe(probe) => self.probe(probe),
            Op::Embedded(name) => self.embedded(name),
            Op::Program { cwd, tty, session, .. } => self.program(cwd.as_deref(), *tty, *session),
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds. The one thing that the child asks of libc: vdso(7) answers without a system call,
/// and without a word to `errno` or to thread-local storage; some eighty of them are in every start.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes the timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The man page's name of a system call that a step makes.
pub(super) fn syscall_name(number: u32) -> &'static str {
    match number as usize {
        nr::UNSHARE => "unshare",
        nr::MOUNT => "mount",
        nr::MOUNT_SETATTR => "mount_setattr",
        nr::MKDIRAT => "mkdirat",
        nr::MKNODAT => "mknodat",
        nr::FCHOWNAT => "fchownat",
        nr::SYMLINKAT => "symlinkat",
        nr::OPENAT => "openat",
        nr::OPENAT2 => "openat2",
        nr::WRITE => "write",
        nr::FSOPEN => "fsopen",
        nr::FSCONFIG => "fsconfig",
        nr::FSMOUNT => "fsmount",
        nr::MOVE_MOUNT => "move_mount",
        nr::OPEN_TREE => "open_tree",
        nr::FCHDIR => "fchdir",
        nr::PIVOT_ROOT => "pivot_root",
        nr::UMOUNT2 => "umount2",
        nr::CHDIR => "chdir",
        nr::CHROOT => "chroot",
        nr::SETHOSTNAME => "sethostname",
        nr::SOCKET => "socket",
        nr::IOCTL => "ioctl",
        nr::KEYCTL => "keyctl",
        nr::PRLIMIT64 => "prlimit",
        nr::PRCTL => "prctl",
        nr::FCNTL => "fcntl",
        nr::DUP3 => "dup3",
        nr::CLOSE_RANGE => "close_range",
        nr::SETSID => "setsid",
        nr::EXECVEAT => "execveat",
        nr::EXECVE => "execve",
        nr::SENDMSG => "sendmsg",
        nr::SETXATTR => "setxattr",
        _ => "clone",
    }
}
