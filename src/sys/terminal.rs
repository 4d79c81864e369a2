//! Pseudoterminals by descriptor (ioctl_tty(2)): the slave without a path, which would mean something else in
//! another mount namespace. Runs in the calling process.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Allows the slave of a new pseudoterminal to be opened (unlockpt(3)).
pub fn unlock(master: BorrowedFd<'_>) -> nix::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const off) }).map(drop)
}

/// Opens the slave of a pseudoterminal (`TIOCGPTPEER`), without making it anybody's controlling terminal.
pub fn slave(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: no pointer; the flags are those of open(2).
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
