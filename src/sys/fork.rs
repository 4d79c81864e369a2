//! fork(2) into namespaces that a fork alone cannot enter.
//!
//! A process that has threads may not join a user namespace (setns(2), `EINVAL`), and one that has joined a PID
//! namespace is in it with its children only. So who wants a copy of itself in both forks, joins, and forks again: two
//! copies of its page tables, and of all that the first one has touched. Here the process between is none of these: it
//! shares the caller's memory *and stack*, as after vfork(2), joins what it has to, and makes the one copy.
//!
//! | process | memory | does |
//! | --- | --- | --- |
//! | caller | its own | is suspended until the double has ended (`CLONE_VFORK`) |
//! | double | the caller's | setns(2), the fork, exit |
//! | fork | a copy | goes on as the caller's copy would after fork(2) |
//!
//! The fork is a child of the double, which ends at once; that the caller becomes its parent then, and may wait(2) for
//! it, is what `PR_SET_CHILD_SUBREAPER` is set for while this lasts: what other descendants orphan in these moments
//! becomes the caller's, too. One at a time, since that is a property of the whole process.
//!
//! All signals are blocked meanwhile: none is lost, since they are the caller's. Another thread of the caller may take
//! one and note it for an interpreter, which would handle it at its next instruction, in the double: so `fork` is best
//! no more than a call of fork(2), and what comes of it noted by the caller of this.
//!
//! Handlers of pthread_atfork(3) and their like that belong to the parent's side run in the double. They have the
//! caller's memory and descriptors, but can start no thread: its children are in another PID namespace.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::raw::{self, nr};

/// What the double has to do, and how it went.
struct Job<'a> {
    target: i32,
    kinds: usize,
    fork: &'a mut dyn FnMut() -> Option<i32>,
    outcome: Outcome,
}

enum Outcome {
    /// The double was killed.
    Lost,
    /// setns(2) refused.
    Refused(Errno),
    /// `fork` came back in the double.
    Back(Option<i32>),
}

/// Somebody is at it.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Joins the namespaces `kinds` (`CLONE_NEW…`) of the process behind `target` and calls `fork`, which is fork(2) with
/// whatever belongs to it: its result is 0 in the child, the child's pid in the caller, and None if it failed. The
/// child is the caller's, in these namespaces; the caller itself stays where it is.
///
/// `fork` runs in the double: memory, locks and descriptors are the caller's, the pid is not. An error names the system
/// call; `EBUSY` is that of another thread.
pub fn fork_into(
    target: BorrowedFd<'_>,
    kinds: u64,
    fork: &mut dyn FnMut() -> Option<i32>,
) -> Result<Option<i32>, (&'static str, Errno)> {
    if BUSY.swap(true, Ordering::Acquire) {
        return Err(("prctl", Errno::EBUSY));
    }
    let forked = alone(target, kinds, fork);
    BUSY.store(false, Ordering::Release); // in the fork, too: it has a copy
    forked
}

/// The same, while nobody else does it.
fn alone(
    target: BorrowedFd<'_>,
    kinds: u64,
    fork: &mut dyn FnMut() -> Option<i32>,
) -> Result<Option<i32>, (&'static str, Errno)> {
    let named = |call| move |errno| (call, errno);
    let mut job = Job { target: target.as_raw_fd(), kinds: kinds as usize, fork, outcome: Outcome::Lost };
    let reaper = get_child_subreaper().map_err(named("prctl"))?;
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(named("sigprocmask"))?;
    let cloned = set_child_subreaper(true).map_err(named("prctl")).and_then(|()| {
        // SAFETY: `double` takes a `Job`, which outlives the double: it has ended before the caller goes on.
        let pid = unsafe { suspended(double, (&raw mut job).cast()) };
        if pid < 0 { Err(("clone", Errno::from_raw(-pid as i32))) } else { Ok(pid as i32) }
    });
    match cloned {
        Ok(0) => {
            register_rseq();
            mask.thread_set_mask().map_err(named("sigprocmask"))?;
            return Ok(Some(0));
        }
        // Not before it has ended altogether is the fork a child of ours.
        Ok(double) => while waitpid(Pid::from_raw(double), Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {},
        Err(_) => {}
    }
    let _ = set_child_subreaper(reaper);
    mask.thread_set_mask().map_err(named("sigprocmask"))?;
    cloned?;
    match job.outcome {
        Outcome::Lost => Err(("waitpid", Errno::ECHILD)),
        Outcome::Refused(errno) => Err(("setns", errno)),
        Outcome::Back(pid) => Ok(pid),
    }
}

/// The double's, on the stack of the caller below what that uses. True: this is the fork.
extern "C" fn double(job: *mut c_void) -> bool {
    // SAFETY: the caller's, which is suspended.
    let job = unsafe { &mut *job.cast::<Job<'_>>() };
    // SAFETY: two numbers.
    if let Err(errno) = unsafe { raw::call(nr::SETNS, [job.target as usize, job.kinds]) } {
        job.outcome = Outcome::Refused(Errno::from_raw(errno));
        return false;
    }
    match (job.fork)() {
        Some(0) => true,
        back => {
            job.outcome = Outcome::Back(back);
            false
        }
    }
}

/// clone(2) of a process that shares memory, stack and descriptors with this one, which is suspended until that has
/// ended. There `entry(argument)` is called; if it says false the process ends, if true (in a fork of it) that goes on
/// here. The result is the process's pid, a negative errno, or 0 in such a fork.
///
/// No signal tells of its end: it is waited for with `__WALL`.
///
/// # Safety
/// `argument` is what `entry` expects, and nobody else uses it.
unsafe fn suspended(entry: extern "C" fn(*mut c_void) -> bool, argument: *mut c_void) -> isize {
    let mut result = nr::CLONE as isize;
    let flags = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK) as usize;
    // SAFETY: the double runs on the same stack, below this frame, and never leaves this block: so what the caller
    // finds when it goes on is as it was. The stack is aligned and the red zone unused, since `nostack` is not said. A fork
    // has a copy of all of it, and leaves the block as the caller does. `entry` neither unwinds (`extern "C"`) nor
    // changes callee-saved registers.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "call r13",
            "test al, al",
            "mov eax, 0",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, {exit_group}",
            "syscall",
            "ud2",
            "2:",
            exit_group = const nr::EXIT_GROUP,
            inlateout("rax") result,
            inlateout("rdi") flags => _,
            inlateout("rsi") 0usize => _,
            inlateout("rdx") 0usize => _,
            inlateout("r10") 0usize => _,
            inlateout("r8") 0usize => _,
            in("r12") argument,
            in("r13") entry,
            clobber_abi("C"),
        );
    }
    result
}

/// The kernel forgets the area of restartable sequences of a process that shares its memory (rseq(2)), and so does its
/// fork: without it sched_getcpu(3) would name the caller's CPU for ever.
fn register_rseq() {
    const SIGNATURE: c_int = 0x5305_3053;
    const SIZE: usize = 32;
    // SAFETY: names that glibc has since 2.35; null where it has not.
    let symbol = |name: &std::ffi::CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    let (offset, size) = (symbol(c"__rseq_offset"), symbol(c"__rseq_size"));
    if offset.is_null() || size.is_null() {
        return;
    }
    // SAFETY: an `unsigned int`, and a `ptrdiff_t`, constant since the start of the program.
    let size = unsafe { *size.cast::<u32>() };
    // SAFETY: as above.
    let offset = unsafe { *offset.cast::<isize>() };
    if size == 0 {
        return; // never registered
    }
    let thread: usize;
    // SAFETY: the thread pointer, which points to itself (x86-64 psABI).
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: the area of this thread, which glibc keeps there for its kernel alone.
    unsafe { libc::syscall(libc::SYS_rseq, thread.wrapping_add_signed(offset), SIZE, 0, SIGNATURE) };
}
