//! clone(2) of a child that shares the caller's memory. Runs in the calling process; the child's side is
//! `container::child`.

use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

/// A child's stack, with a page below it that faults.
#[derive(Debug)]
pub struct Stack(*mut c_void);

// SAFETY: the mapping belongs to whoever holds the value.
unsafe impl Send for Stack {}

const SIZE: usize = 64 * 1024;
const GUARD: usize = 4096;
/// Stacks for the next starts; mapping one costs as much as several steps. Never waited for: in a fork that was made
/// while another thread held it, it stays locked for good.
static SPARE: Mutex<Vec<Stack>> = Mutex::new(Vec::new());

impl Stack {
    /// A stack that nobody uses.
    pub fn take() -> nix::Result<Self> {
        if let Some(stack) = SPARE.try_lock().ok().and_then(|mut spare| spare.pop()) {
            return Ok(stack);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new private mapping.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let stack = Self(base);
        // SAFETY: the first page of our own mapping.
        Errno::result(unsafe { libc::mprotect(base, GUARD, libc::PROT_NONE) })?;
        Ok(stack)
    }

    /// Where it begins, and its size: for clone3(2).
    pub fn range(&self) -> (usize, usize) {
        (self.0.wrapping_byte_add(GUARD) as usize, SIZE - GUARD)
    }

    /// Gives it back. Only when the child no longer runs on it.
    pub fn give_back(self) {
        if let Ok(mut spare) = SPARE.try_lock()
            && spare.len() < 16
        {
            spare.push(self);
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unused.
        unsafe { libc::munmap(self.0, SIZE) };
    }
}

/// Starts `entry(argument)` in a process that shares this one's memory but has its own descriptors, working
/// directory and signal handlers, in the new namespaces of `flags`. `alive` must be 1; the kernel sets it to 0 and
/// wakes it as a futex when the child executes a program or ends.
///
/// It is made without an exit signal, so a child that fails before execve(2) raises no SIGCHLD and is invisible to
/// wait(2) without `__WALL`. execve resets the exit signal to SIGCHLD (`de_thread` in fs/exec.c): from then on it is a
/// child like any other, which a caller's `waitpid(-1)` may reap before us. Whoever waits must expect `ECHILD`.
///
/// Soundness rests on two promises, which `container::launch` keeps as the only caller: `entry` obeys the rules of
/// `container::child`, and `argument`, `stack` and `alive` stay valid until `alive` is 0.
pub fn start_child<T>(
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: &T,
    stack: &Stack,
    flags: u64,
    alive: &AtomicU32,
) -> nix::Result<(i32, OwnedFd)> {
    let flags = flags as c_int | libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID;
    let mut pidfd: c_int = -1;
    let top = stack.0.wrapping_byte_add(SIZE);
    let argument = ptr::from_ref(argument).cast_mut().cast();
    // SAFETY: the promises above; the stack grows downwards from its aligned end.
    let pid = unsafe {
        libc::clone(entry, top, flags, argument, &raw mut pidfd, ptr::null_mut::<c_void>(), alive.as_ptr())
    };
    Errno::result(pid)?;
    // SAFETY: the kernel just made it for us.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Waits until `word` is no longer `value`, for at most `timeout`. May return early.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let time =
        libc::timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    // SAFETY: the word and the timespec outlive the call. Not the private kind: the kernel wakes the shared one.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time) };
}

/// Sets `word` and wakes who waits for it.
pub fn futex_set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
