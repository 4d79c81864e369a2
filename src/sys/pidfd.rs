//! Processes by descriptor (pidfd_open(2)), and interruptible waiting. Runs in the calling process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Asked between slices of every wait: true means stop waiting (a Python signal handler raised).
pub type Interrupt<'a> = &'a dyn Fn() -> bool;

/// Never interrupts.
pub fn never() -> bool {
    false
}

/// pidfd_open(2).
pub fn open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made it for us; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// pidfd_send_signal(2).
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) })
        .map(drop)
}

/// Children of ours that are nobody's any more: they are to outlive us. With the pid of who has to reap them.
static LEFT: Mutex<Vec<(u32, OwnedFd)>> = Mutex::new(Vec::new());

/// Leaves a child to itself; [`sweep`] reaps it when it has ended.
pub fn leave(child: OwnedFd) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push((std::process::id(), child));
}

/// Reaps those that were left and have ended.
pub fn sweep() {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = std::process::id();
    left.retain(|(creator, child)| *creator == ours && matches!(reap(child.as_fd()), Ok(None)));
}

/// Reaps the child behind a pidfd if it has ended: its wait status (wait(2)). `ECHILD` if it is not our child or
/// was reaped before (a `waitpid(-1)` of the caller's, SIGCHLD set to be ignored). A child that never reached execve(2)
/// has no exit signal, hence `__WALL`.
pub fn reap(pidfd: BorrowedFd<'_>) -> nix::Result<Option<i32>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: all-zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the output outlives the call.
    let done = unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as u32, &raw mut info, flags) };
    Errno::result(done)?;
    // SAFETY: waitid(2) filled it in, or left it zero.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let dumped = if info.si_code == libc::CLD_DUMPED { 0x80 } else { 0 };
    Ok(Some(if info.si_code == libc::CLD_EXITED { status << 8 } else { status | dumped }))
}

/// Waits until `fd` is readable or closed at the other end: false when the time is over or `interrupt` says so.
pub fn wait_readable(
    fd: impl AsFd,
    timeout: Option<Duration>,
    interrupt: Interrupt<'_>,
) -> nix::Result<bool> {
    const SLICE: Duration = Duration::from_millis(100);
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map_or(SLICE, |at| at.saturating_duration_since(Instant::now()).min(SLICE));
        // Round up, or the last part of a millisecond would be spent spinning.
        let millis =
            PollTimeout::try_from(left.as_micros().div_ceil(1000) as u32).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, millis) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
        if interrupt() || deadline.is_some_and(|at| Instant::now() >= at) {
            return Ok(false);
        }
    }
}
