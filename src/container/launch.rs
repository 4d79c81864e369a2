//! The caller's side of a start.
//!
//! 1. Everything that can fail without a process is done first: the plan, the embedded program, sockets.
//! 2. clone(2) with `CLONE_VM` and the namespaces of the plan (`sys::clone`). The child waits (`child`).
//! 3. The caller writes the id maps and joins the control groups: only a process outside may.
//! 4. The child is told to go and walks the list. The caller does what else it has to do (`Meanwhile`), and waits until
//!    the kernel clears `alive`: the child has executed its program, or has ended.
//! 5. A failed step is read from [`Shared`], worded, and the child is reaped.
//!
//! The calling thread never holds a lock across the clone, and all of its signals are blocked for that moment, so that
//! no handler of the caller's ever runs in the child.

use std::cell::UnsafeCell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::child::{self, Beside, Hand, Job, NOTE, Shared};
use super::plan::Plan;
use super::program;
use super::step::{Actor, Op, Step};
use crate::cgroup::Cgroup;
use crate::error::{Errno, Error, Result};
use crate::namespace::{Kind, Namespaces};
use crate::sys::clone::{Stack, futex_set, futex_wait, start_child};
use crate::sys::pidfd::{self, Interrupt};

/// What happened at each step of a start.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// How long each step took, in nanoseconds.
    pub took: Vec<u64>,
    /// The errno of each optional step that failed; 0 elsewhere.
    pub skipped: Vec<i32>,
}

/// Descriptors to start with; -1 for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    pub(super) control: RawFd,
    pub(super) listen: RawFd,
    pub(super) exit: RawFd,
    pub(super) stdio: [RawFd; 3],
    /// PID 1 ends with the calling process.
    pub(super) owned: bool,
    /// A request for a first program comes by the control socket, most likely before PID 1 looks for one.
    pub(super) first: bool,
}

impl Descriptors {
    /// None, for a process of which nobody takes care.
    pub(super) const NONE: Self =
        Self { control: -1, listen: -1, exit: -1, stdio: [-1; 3], owned: false, first: false };
}

/// A started process.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) trace: Trace,
    pub(super) cgroup: Option<Cgroup>,
    /// pidfd of the child that [`Meanwhile`] started.
    pub(super) member: Option<OwnedFd>,
}

/// What interrupted a start.
pub(super) const INTERRUPTED: &str = "interrupted";

/// The oldest kernel with every system call that a start makes: mount_setattr(2) came last.
const OLDEST: (u32, u32) = (5, 12);

/// `Unsupported` on a kernel that is too old to try.
fn supported() -> Result<()> {
    static VERDICT: OnceLock<Result<()>> = OnceLock::new();
    VERDICT
        .get_or_init(|| {
            let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
            match release {
                Ok(release) if !new_enough(&release) => Err(Error::Unsupported {
                    message: format!(
                        "Linux {release} is too old: r2d2 needs {}.{} or later",
                        OLDEST.0, OLDEST.1
                    ),
                    errno: Errno::ENOSYS,
                }),
                _ => Ok(()),
            }
        })
        .clone()
}

fn new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

/// What the caller does while the child, of which it gets the pidfd, is at work; an error of it ends the child. The
/// namespaces of clone(2) exist, but for that of the network; they need not have their content. The result is the pidfd
/// of a child of its own that the caller has started in the new PID namespace, if it has.
pub(super) type Meanwhile<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<Option<OwnedFd>>;

/// Carries the plan out. On failure nothing of it is left.
pub(super) fn start(plan: &Plan, fds: Descriptors, interrupt: Interrupt<'_>) -> Result<Started> {
    start_beside(plan, fds, &mut |_| Ok(None), interrupt)
}

/// The same, beside something else.
pub(super) fn start_beside(
    plan: &Plan,
    fds: Descriptors,
    meanwhile: Meanwhile<'_>,
    interrupt: Interrupt<'_>,
) -> Result<Started> {
    supported()?;
    let steps = &plan.steps[..];
    let shared = Shared {
        go: AtomicU32::new(0),
        alive: AtomicU32::new(1),
        step: AtomicU32::new(0),
        errno: AtomicI32::new(0),
        syscall: AtomicU32::new(0),
        took: steps.iter().map(|_| AtomicU64::new(0)).collect(),
        moment: AtomicU64::new(0),
        skipped: steps.iter().map(|_| AtomicI32::new(0)).collect(),
        note: UnsafeCell::new([0; NOTE]),
    };
    let owner = program::owner()?.as_fd().as_raw_fd();
    let executable = program::program()?;
    let hand = Hand {
        program: executable.as_raw_fd(),
        null: program::null()?,
        control: fds.control,
        owner: if fds.owned { owner } else { -1 },
        watch: owner,
        listen: fds.listen,
        exit: fds.exit,
        stdio: fds.stdio,
        first: fds.first,
    };
    let tables = Tables::of(steps);
    let fail = |syscall, errno| Error::step(plan.label(0), syscall, errno, None::<&str>);
    let mut namespaces = steps.iter().find_map(|step| match &step.op {
        Op::Clone { namespaces } => Some(*namespaces),
        _ => None,
    });

    let began = child::now();
    let stack = Stack::take().map_err(|e| fail("mmap", e))?;
    // The network namespace is made beside the mounts (`child::beside`).
    let mut second = None;
    if let Some(all) = namespaces.as_mut().filter(|all| all.has(Kind::Net)) {
        let stack = Stack::take().map_err(|e| fail("mmap", e))?;
        match Beside::new(steps, stack.range(), all.has(Kind::Pid)) {
            Some(beside) => {
                *all = all.without(Kind::Net);
                second = Some((beside, stack));
            }
            None => stack.give_back(),
        }
    }
    let beside = second.as_ref().map(|(beside, _)| beside);
    let job = Job { steps, shared: &shared, hand, beside, tables: tables.pointers() };
    let flags = namespaces.map_or(0, Namespaces::flags);
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(|e| fail("sigprocmask", e))?;
    let cloned = start_child(child::main, &job, &stack, flags, &shared.alive);
    let restored = mask.thread_set_mask();
    let (pid, pidfd) = match cloned {
        Ok(child) => child,
        Err(errno) => {
            stack.give_back();
            return Err(fail("clone", errno));
        }
    };
    let mut result = restored.map_err(|e| fail("sigprocmask", e));
    let mut cgroup = None;
    let mut moment = began;
    for (i, step) in steps.iter().enumerate().filter(|(_, step)| step.op.actor() == Actor::Caller) {
        if result.is_ok() {
            result = match &step.op {
                Op::IdMap(map) => map.write(pid),
                Op::Cgroup(plan) => plan.create().and_then(|made| cgroup.insert(made).join(pid)),
                _ => Ok(()),
            }
            .map_err(|error| plan.locate(i, error));
        }
        let ended = child::now();
        shared.took[i].store(ended.saturating_sub(moment).max(1), Ordering::Relaxed);
        moment = ended;
    }
    futex_set(&shared.go, if result.is_ok() { 1 } else { 2 });
    let mut member = None;
    // From here to the end of this loop the child may use our memory: no early return, not by a panic either.
    if result.is_ok() {
        let done = catch_unwind(AssertUnwindSafe(|| meanwhile(pidfd.as_fd()))).unwrap_or_else(|_| {
            Err(Error::Closed { message: "panic beside the start of a container".into() })
        });
        result = done.map(|started| member = started);
        if result.is_err() {
            let _ = pidfd::signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }
    let mut interrupted = false;
    while shared.alive.load(Ordering::Acquire) != 0 {
        futex_wait(&shared.alive, 1, Duration::from_millis(100));
        if !interrupted && shared.alive.load(Ordering::Acquire) != 0 && interrupt() {
            interrupted = true;
            let _ = pidfd::signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }
    stack.give_back();
    if let Some((beside, _)) = &second {
        // A child that failed before it joined the thread has ended, and the thread with it, if not at the same
        // instant. Until then it uses this very place: it must not be moved.
        beside.wait();
    }
    if let Some((_, stack)) = second {
        stack.give_back();
    }

    let errno = shared.errno.load(Ordering::Relaxed);
    if result.is_ok() && errno == 0 && !interrupted {
        if steps
            .iter()
            .any(|step| matches!(&step.op, Op::Unshare { namespaces } if namespaces.has(Kind::Time)))
        {
            time_entered(pid);
        }
        return Ok(Started { pid, pidfd, trace: trace(&shared), cgroup, member });
    }
    let _ = pidfd::signal(pidfd.as_fd(), libc::SIGKILL);
    member.as_ref().map(await_member);
    // One of whom `meanwhile` has lost sight would keep it for ever: then it is reaped some other time.
    let patience = result.is_err().then_some(Duration::from_secs(10));
    while let Ok(None) = pidfd::reap(pidfd.as_fd()) {
        if let Ok(false) = pidfd::wait_readable(&pidfd, patience, &pidfd::never) {
            pidfd::leave(pidfd);
            break;
        }
    }
    if let Some(cgroup) = cgroup {
        let _ = cgroup.remove();
    }
    // A child that failed on its own is why the caller could do nothing more with it.
    if errno == 0 {
        result?;
    }
    if interrupted {
        return Err(Error::Closed { message: INTERRUPTED.into() });
    }
    let step = shared.step.load(Ordering::Relaxed) as usize;
    let name = child::syscall_name(shared.syscall.load(Ordering::Relaxed));
    Err(plan.failure(step, name, Errno::from_raw(errno), note(shared)))
}

/// A child of the caller's in the container's PID namespace, as [`Meanwhile`] has it; none if somebody who waits for
/// all children has seen its end already. On failure it is ended.
pub(super) fn member(pid: i32) -> Result<Option<OwnedFd>> {
    match pidfd::open(pid) {
        Ok(member) => Ok(Some(member)),
        Err(Errno::ESRCH) => Ok(None),
        Err(errno) => {
            let pid = Pid::from_raw(pid);
            let _ = kill(pid, Signal::SIGKILL);
            while waitpid(pid, None) == Err(Errno::EINTR) {}
            Err(Error::step("know a process of the container", "pidfd_open", errno, None::<&str>))
        }
    }
}

/// Waits for such a child after PID 1 was killed: that one does not end before all whom it takes along have been waited
/// for (pid_namespaces(7)).
pub(super) fn await_member(member: &OwnedFd) {
    while let Ok(None) = pidfd::reap(member.as_fd()) {
        let _ = pidfd::wait_readable(member, None, &pidfd::never);
    }
}

/// Waits until the child is in its time namespace: execve(2) lets the caller go on before it moves the child there
/// (`exec_mmap` before `exec_task_namespaces` in the kernel's fs/exec.c), and who looks at once would see the old one.
fn time_entered(pid: i32) {
    let link = |name| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
    // A child that has ended, or whose links are not for us to read, has none to wait for.
    while let (Ok(now), Ok(soon)) = (link("time"), link("time_for_children")) {
        if now == soon {
            break;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// What each step took. The last one ends in execve and leaves no time: it lasts until now.
fn trace(shared: &Shared) -> Trace {
    let mut took: Vec<u64> = shared.took.iter().map(|took| took.load(Ordering::Relaxed)).collect();
    if let Some(last @ 0) = took.last_mut() {
        *last = child::now().saturating_sub(shared.moment.load(Ordering::Relaxed));
    }
    Trace { took, skipped: shared.skipped.iter().map(|errno| errno.load(Ordering::Relaxed)).collect() }
}

/// What the kernel said: `e overlay: …` lines (fsopen(2)), without the letter.
fn note(shared: Shared) -> Option<String> {
    let bytes = shared.note.into_inner();
    let text = String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or(&[])).trim().to_owned();
    let text = text.strip_prefix("e ").or(text.strip_prefix("w ")).map_or(text.clone(), str::to_owned);
    (!text.is_empty()).then_some(text)
}

/// The execve tables of a plan that ends in a program.
struct Tables([Vec<*const libc::c_char>; 3]);

impl Tables {
    fn of(steps: &[Step]) -> Self {
        let table = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        Self(match steps.last().map(|step| &step.op) {
            Some(Op::Program { candidates, argv, envp, .. }) => [table(candidates), table(argv), table(envp)],
            _ => [table(&[]), table(&[]), table(&[])],
        })
    }

    fn pointers(&self) -> [*const *const libc::c_char; 3] {
        [self.0[0].as_ptr(), self.0[1].as_ptr(), self.0[2].as_ptr()]
    }
}

/// A program that was started directly in new namespaces, without a PID 1 of ours (`unshare(1)`).
#[derive(Debug)]
pub struct Spawned {
    /// Its pid on the host.
    pub pid: i32,
    pidfd: OwnedFd,
    ended: std::sync::Mutex<Option<i32>>,
    /// What each step took.
    pub trace: Trace,
}

/// Starts the program that ends the plan, with these standard descriptors.
pub fn spawn(plan: &Plan, stdio: [RawFd; 3], interrupt: Interrupt<'_>) -> Result<Spawned> {
    let fds = Descriptors { stdio, owned: true, ..Descriptors::NONE };
    let started = start(plan, fds, interrupt)?;
    Ok(Spawned { pid: started.pid, pidfd: started.pidfd, ended: None.into(), trace: started.trace })
}

impl Spawned {
    /// Its wait status, if it has ended; waits for at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>, interrupt: Interrupt<'_>) -> Result<Option<i32>> {
        let fail = |syscall, e| Error::step("wait for the program", syscall, e, None::<&str>);
        let ended = || self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if ended().is_some() {
            return Ok(*ended());
        }
        if !pidfd::wait_readable(&self.pidfd, timeout, interrupt).map_err(|e| fail("poll", e))? {
            return Ok(None);
        }
        let mut ended = ended();
        if ended.is_none() {
            *ended = match pidfd::reap(self.pidfd.as_fd()) {
                // Somebody else's waitpid(-1) was first, or SIGCHLD is ignored: 0, as `subprocess` has it.
                Err(Errno::ECHILD) => Some(0),
                other => other.map_err(|e| fail("waitid", e))?,
            };
        }
        Ok(*ended)
    }

    /// Sends a signal; fine if it has ended.
    pub fn signal(&self, signal: i32) -> nix::Result<()> {
        pidfd::signal(self.pidfd.as_fd(), signal)
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(new_enough("5.12.0-rc1") && new_enough("6.1.0-21-amd64") && new_enough("10.0"));
        assert!(
            !new_enough("5.4.0-150-generic") && !new_enough("4.4.0-19041-Microsoft") && !new_enough("2.6.78")
        );
    }
}
