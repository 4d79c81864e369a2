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
//! failed.
#![allow(unsafe_code, reason = "the after-clone child: raw system calls are all it may use")]
#![deny(clippy::disallowed_methods, clippy::disallowed_macros)]

mod beside;
mod probe;

pub(super) use beside::Beside;
use std::cell::UnsafeCell;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::protocol as p;
use super::step::{Actor, Op, Place, Setting, Step};
use crate::sys::raw::{self, Outcome, nr};

const AT_FDCWD: usize = -100isize as usize;
const O_CLOEXEC: usize = 0o2_000_000;
const O_PATH: usize = 0o10_000_000;
const O_DIRECTORY: usize = 0o200_000;
const O_CREATE_NEW: usize = 0o100 | 0o200 | 0o1 | 0o400_000; // O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW
const RESOLVE_IN_ROOT_NO_MAGIC: u64 = 0x10 | 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const AT_EMPTY_PATH: usize = 0x1000;
const AT_RECURSIVE: usize = 0x8000;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const EEXIST: i32 = 17;
/// Bits of a set of capabilities.
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_SYS_ADMIN: u64 = 1 << 21;
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

/// struct mount_attr, mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// struct open_how, openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
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

    /// Where a place is: a directory descriptor and a path below it (empty: the descriptor itself).
    fn locate(&mut self, place: &Place) -> Result<(usize, usize), i32> {
        match place {
            Place::Host(path) => Ok((AT_FDCWD, text(path))),
            Place::Root(path) => {
                // In these every mount point is ours; a symbolic link in a writable root would be an attack.
                let ours = [&b"/proc"[..], b"/sys", b"/dev"].iter().any(|tree| {
                    path.as_bytes().strip_prefix(*tree).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
                });
                let resolve = RESOLVE_IN_ROOT_NO_MAGIC | if ours { RESOLVE_NO_SYMLINKS } else { 0 };
                Ok((self.in_root(path.as_ptr(), O_PATH, resolve)?, text(c"")))
            }
        }
    }

    /// A file at the top of our own procfs: its name, to be used below the descriptor of that mount without following
    /// it. Most of what is masked lies there, and needs no walk.
    fn in_proc(&self, place: &Place) -> Option<usize> {
        place.in_proc().filter(|_| self.proc >= 0).map(text)
    }

    fn release(&mut self, dir: usize) {
        if dir != AT_FDCWD {
            self.close(dir);
        }
    }

    /// Opens below the new root; symbolic links cannot lead out of it.
    fn in_root(&mut self, path: *const libc::c_char, flags: usize, resolve: u64) -> Outcome {
        let how = OpenHow { flags: (flags | O_CLOEXEC) as u64, mode: 0, resolve };
        let size = size_of::<OpenHow>();
        self.call(nr::OPENAT2, [self.root as usize, path as usize, &raw const how as usize, size])
    }

    /// Makes something new with `make(directory, name)`; that it exists already is fine.
    fn make(
        &mut self,
        at: &Place,
        make: impl Fn(&mut Self, usize, usize) -> Result<(), i32>,
    ) -> Result<(), i32> {
        let made = match at {
            Place::Host(path) => make(self, AT_FDCWD, text(path)),
            Place::Root(path) => {
                // The parent is resolved in the root; the last part is made there and never followed.
                let mut buffer = [0u8; 4096];
                let bytes = path.as_bytes_with_nul();
                let Some(copy) = buffer.get_mut(..bytes.len()) else { return Err(libc::ENAMETOOLONG) };
                copy.copy_from_slice(bytes);
                let Some(slash) = copy.iter().rposition(|b| *b == b'/') else { return Err(libc::EINVAL) };
                let Some(name) = bytes.get(slash + 1..) else { return Err(libc::EINVAL) };
                if let Some(end) = copy.get_mut(slash + 1) {
                    *end = 0;
                }
                let parent =
                    self.in_root(copy.as_ptr().cast(), O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT_NO_MAGIC)?;
                let made = make(self, parent, name.as_ptr() as usize);
                self.close(parent);
                made
            }
        };
        if made == Err(EEXIST) { Ok(()) } else { made }
    }

    fn write(&mut self, fd: usize, mut bytes: &[u8]) -> Result<(), i32> {
        while !bytes.is_empty() {
            let n = self.call(nr::WRITE, [fd, bytes.as_ptr() as usize, bytes.len()])?;
            bytes = bytes.get(n..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn overwrite(&mut self, path: &CStr, bytes: &[u8]) -> Result<(), i32> {
        let fd = self.call(nr::OPENAT, [AT_FDCWD, text(path), 1 | O_CLOEXEC])?;
        let written = self.write(fd, bytes);
        self.close(fd);
        written
    }

    fn set_attributes(&mut self, fd: usize, path: &CStr, flags: usize, attr: &MountAttr) -> Result<(), i32> {
        let attr = core::ptr::from_ref(attr) as usize;
        self.call(nr::MOUNT_SETATTR, [fd, text(path), flags, attr, size_of::<MountAttr>()]).map(drop)
    }

    /// fsopen → fsconfig … → fsmount → move_mount (fsopen(2)). No option string, so no length limit of a page and no
    /// character that would have to be escaped.
    fn mount(
        &mut self,
        fstype: &CString,
        source: &CString,
        settings: &[Setting],
        attributes: u64,
        at: &Place,
    ) -> Result<(), i32> {
        const SET_FLAG: usize = 0;
        const SET_STRING: usize = 1;
        const CREATE: usize = 6;
        const KEEP: usize = 64;
        const READ_ONLY: u64 = 1; // MOUNT_ATTR_RDONLY
        let has_upper = settings.iter().any(|setting| match setting {
            Setting::Text(key, _) | Setting::Directory(key, _) => key.as_c_str() == c"upperdir",
            Setting::Flag(_) => false,
        });
        let writable = has_upper && attributes & READ_ONLY == 0;
        let context = self.call(nr::FSOPEN, [text(fstype), 1])?;
        let mut open = [0usize; KEEP];
        let mut opened = 0;
        let mut outcome =
            self.call(nr::FSCONFIG, [context, SET_STRING, text(c"source"), text(source), 0]).map(drop);
        for setting in settings {
            if outcome.is_err() {
                break;
            }
            outcome = match setting {
                Setting::Flag(key) => self.call(nr::FSCONFIG, [context, SET_FLAG, text(key), 0, 0]).map(drop),
                Setting::Text(key, value) => {
                    self.call(nr::FSCONFIG, [context, SET_STRING, text(key), text(value), 0]).map(drop)
                }
                Setting::Directory(key, path) => self
                    .call(nr::OPENAT, [AT_FDCWD, text(path), O_PATH | O_DIRECTORY | O_CLOEXEC])
                    .and_then(|fd| {
                        let link = ProcLink::new(fd);
                        if let Some(slot) = open.get_mut(opened) {
                            *slot = fd;
                            opened += 1;
                        }
                        let value = link.0.as_ptr() as usize;
                        self.call(nr::FSCONFIG, [context, SET_STRING, text(key), value, 0]).map(drop)
                    }),
            };
        }
        let outcome = outcome
            .and_then(|()| self.call(nr::FSCONFIG, [context, CREATE, 0, 0, 0]))
            .and_then(|_| self.call(nr::FSMOUNT, [context, 1, attributes as usize]))
            .and_then(|mount| if writable { self.check_writable(mount) } else { Ok(mount) });
        if outcome.is_err() {
            self.read_log(context);
        }
        for fd in open.iter().take(opened) {
            self.close(*fd);
        }
        self.close(context);
        let mount = outcome?;
        self.attach(mount, at)?;
        if fstype.as_bytes() == b"proc" {
            self.proc = mount as i32; // for PID 1: /proc as it is before anything can run
        } else {
            self.close(mount);
        }
        Ok(())
    }

    /// An overlay whose work directory takes no files becomes read-only, without a word (overlayfs.rst): an error here.
    fn check_writable(&mut self, mount: usize) -> Outcome {
        const FLAGS: usize = 10; // struct statfs, statfs(2): the word of the flags
        const ST_RDONLY: u64 = 1;
        let mut statfs = [0u64; 15];
        self.call(nr::FSTATFS, [mount, statfs.as_mut_ptr() as usize])?;
        if statfs.get(FLAGS).is_some_and(|flags| flags & ST_RDONLY != 0) {
            self.failed = nr::FSMOUNT;
            self.close(mount);
            return Err(libc::EROFS);
        }
        Ok(mount)
    }

    /// Keeps what the kernel says about a failed mount: one message a read(2), of which the first error is the cause.
    fn read_log(&mut self, context: usize) {
        let failed = self.failed;
        let note = self.job.shared.note.get();
        // SAFETY: the child alone writes the note, and the caller reads it after the child's end.
        let _ = unsafe { raw::call(nr::READ, [context, note as usize, NOTE - 1]) };
        self.failed = failed;
    }

    /// Attaches a mount that is attached nowhere yet.
    fn attach(&mut self, mount: usize, at: &Place) -> Result<(), i32> {
        const FROM_EMPTY: usize = 4;
        const TO_EMPTY: usize = 0x40;
        if let Some(name) = self.in_proc(at) {
            let proc = self.proc as usize;
            return self.call(nr::MOVE_MOUNT, [mount, text(c""), proc, name, FROM_EMPTY]).map(drop);
        }
        let (dir, name) = self.locate(at)?;
        let flags = FROM_EMPTY | if dir == AT_FDCWD { 0 } else { TO_EMPTY };
        let moved = self.call(nr::MOVE_MOUNT, [mount, text(c""), dir, name, flags]);
        self.release(dir);
        moved.map(drop)
    }

    /// Whether PID 1 is the one who lets go of the host's tree, after `pivot_root` (`helper::letgo`): beside its first
    /// program. Without one, a container that was started must not show that tree to anybody any more.
    fn leaves(&self) -> bool {
        if !self.job.hand.first {
            return false;
        }
        let last = self.job.steps.last().is_some_and(|step| step.op == Op::Embedded(c"r2d2-init"));
        last && self.job.steps.iter().any(|step| step.op == Op::PivotRoot)
    }

    /// Dropping capabilities leaves the caller's dumpable flag alone: only gaining some, or other ids, clears it.
    fn bound(&mut self, keep: u64) -> Result<(), i32> {
        const PR_CAPBSET_DROP: usize = 24;
        for capability in (0..64usize).filter(|capability| keep >> capability & 1 == 0) {
            match self.call(nr::PRCTL, [PR_CAPBSET_DROP, capability]) {
                Err(libc::EINVAL) => break, // past the last one that this kernel knows
                other => other?,
            };
        }
        Ok(())
    }

    /// Puts the descriptors where the embedded program expects them, closes all others, and becomes it.
    fn embedded(&mut self, name: &CStr) -> Result<(), i32> {
        const PR_SET_PDEATHSIG: usize = 1;
        let hand = self.job.hand;
        let wanted = [hand.control, hand.owner, self.proc, self.upper, hand.listen, hand.exit];
        // First all of them above every number in use here, so that no move overwrites another's source.
        let mut high = [-1i32; 6];
        for (to, from) in high.iter_mut().zip(wanted) {
            if from >= 0 {
                *to = self.duplicate_high(from)?;
            }
        }
        let program = self.duplicate_high(hand.program)?;
        let null = self.duplicate_high(hand.null)?;
        for standard in 0..3 {
            self.call(nr::DUP3, [null as usize, standard, 0])?;
        }
        let mut present = [0u8; 10];
        let mut count = 0;
        for (i, from) in high.iter().enumerate() {
            let number = p::FD_CONTROL as usize + i;
            if *from >= 0 {
                self.call(nr::DUP3, [*from as usize, number, 0])?;
                if let Some(slot) = present.get_mut(count) {
                    *slot = b'0' + number as u8;
                }
                count += 1;
            } else {
                self.close(number);
            }
        }
        self.call(nr::CLOSE_RANGE, [p::FD_FREE as usize, program as usize - 1, 0])?;
        self.call(nr::CLOSE_RANGE, [program as usize + 1, u32::MAX as usize, 0])?;
        let _ = self.call(nr::SETSID, []);
        // PID 1 watches its owner by pidfd, and looks before anything else, so an end that falls between here and
        // there is seen. Armed any longer, it would fire when the calling thread ends, which from execve on it may.
        let _ = self.call(nr::PRCTL, [PR_SET_PDEATHSIG, 0]);
        let keep = self.job.steps.iter().find_map(|step| match step.op {
            Op::Capabilities { keep } => Some(keep),
            _ => None,
        });
        let words = match (self.leaves(), keep.map_or(0, for_leaving)) {
            (false, _) => &[][..],
            (true, 0) => &[p::LET_GO],
            (true, CAP_SYS_ADMIN) => &[p::LET_GO, p::FOR_THAT_ALONE],
            (true, _) => &[p::LET_GO, p::FOR_THAT_ALONE, p::TO_GIVE_UP],
        };
        for (slot, word) in present.iter_mut().skip(count).zip(words) {
            *slot = *word;
        }
        let argv = [text(name), present.as_ptr() as usize, 0];
        let envp = [0usize];
        let (argv, envp) = (argv.as_ptr() as usize, envp.as_ptr() as usize);
        self.call(nr::EXECVEAT, [program as usize, text(c""), argv, envp, AT_EMPTY_PATH]).map(drop)
    }

    /// A duplicate at 32 or above, closed at execve. Numbers stay well below any sensible RLIMIT_NOFILE.
    fn duplicate_high(&mut self, fd: i32) -> Result<i32, i32> {
        const F_DUPFD_CLOEXEC: usize = 1030;
        self.call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, 32]).map(|fd| fd as i32)
    }

    /// Becomes a program without a PID 1 of ours.
    fn program(&mut self, cwd: Option<&CStr>, tty: bool, session: bool) -> Result<(), i32> {
        const PR_SET_PDEATHSIG: usize = 1;
        const TIOCSCTTY: usize = 0x540E;
        const SIG_SETMASK: usize = 2;
        let mut high = [-1i32; 3];
        for (to, from) in high.iter_mut().zip(self.job.hand.stdio) {
            *to = self.duplicate_high(from)?;
        }
        for (number, from) in high.iter().enumerate() {
            self.call(nr::DUP3, [*from as usize, number, 0])?;
        }
        self.call(nr::CLOSE_RANGE, [3, u32::MAX as usize, 4])?; // CLOSE_RANGE_CLOEXEC
        if session || tty {
            let _ = self.call(nr::SETSID, []);
        }
        if tty {
            self.call(nr::IOCTL, [0, TIOCSCTTY, 0])?;
        }
        if let Some(cwd) = cwd {
            self.call(nr::CHDIR, [text(cwd)])?;
        }
        let _ = self.call(nr::UMASK, [self.umask]);
        let _ = self.call(nr::PRCTL, [PR_SET_PDEATHSIG, 0]);
        let default = [0usize; 4];
        for signal in 1..=64usize {
            // The handler table is our own (no CLONE_SIGHAND).
            let _ = self.call(nr::RT_SIGACTION, [signal, &raw const default as usize, 0, 8]);
        }
        let none = 0u64;
        let _ = self.call(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const none as usize, 0, 8]);
        let [candidates, argv, envp] = self.job.tables;
        let (mut errno, mut denied, mut i) = (libc::ENOENT, false, 0);
        loop {
            // SAFETY: every entry before the null was read already.
            let slot = unsafe { candidates.add(i) };
            // SAFETY: within the table, which ends with null.
            let path = unsafe { slot.read() };
            if path.is_null() {
                break;
            }
            errno =
                self.call(nr::EXECVE, [path as usize, argv as usize, envp as usize]).err().unwrap_or(errno);
            match errno {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => break,
            }
            i += 1;
        }
        let missing = matches!(errno, libc::ENOENT | libc::ENOTDIR);
        Err(if denied && missing { libc::EACCES } else { errno })
    }
}

/// `/proc/self/fd/N` on the stack.
struct ProcLink([u8; 32]);

impl ProcLink {
    fn new(fd: usize) -> Self {
        let mut link = [0u8; 32];
        let head = b"/proc/self/fd/";
        for (to, from) in link.iter_mut().zip(head) {
            *to = *from;
        }
        let mut digits = [0u8; 12];
        let mut count = 0;
        let mut rest = fd;
        loop {
            if let Some(slot) = digits.get_mut(count) {
                *slot = b'0' + (rest % 10) as u8;
            }
            count += 1;
            rest /= 10;
            if rest == 0 || count == digits.len() {
                break;
            }
        }
        for (to, from) in link.iter_mut().skip(head.len()).zip(digits.iter().take(count).rev()) {
            *to = *from;
        }
        Self(link)
    }
}

/// What PID 1 needs beyond these to let go of the host's tree, and of what it needed for that.
const fn for_leaving(keep: u64) -> u64 {
    if keep & CAP_SYS_ADMIN != 0 { 0 } else { (CAP_SYS_ADMIN | CAP_SETPCAP) & !keep }
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
