//! A terminal of the container's: a pair from its own devpts, so that `tty`, `ttyname(3)` and /dev/pts inside tell the
//! truth about it. Runs in the calling process.
//!
//! What is opened lies in a tree that the container may have changed, so it is looked at before it is opened: the
//! path inside the container's root, without symbolic links, a descriptor that opens nothing (`O_PATH`), and only if
//! that is the multiplexer of a devpts is it opened for good.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::sys::statfs::fstatfs;

use super::handle::Container;
use crate::error::{Errno, Error, Result};
use crate::sys::pidfd::Interrupt;
use crate::sys::{path, terminal};

const STEP: &str = "open a terminal of the container";
const PTMX: &str = "/dev/pts/ptmx";

impl Container {
    /// Makes a terminal: master and slave. The master is ours, the slave is to be a program's standard descriptors.
    pub fn terminal(&self, interrupt: Interrupt<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let (root, _) = self.root(interrupt)?;
        let fail = |syscall, e| Error::step(STEP, syscall, e, Some(PTMX));
        let (flags, strict) = (OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::RESOLVE_NO_SYMLINKS);
        let found = path::openat2_in_root_with(root.as_fd(), Path::new(PTMX), flags, Mode::empty(), strict)
            .map_err(|e| fail("openat2", e))?;
        let stat = fstat(&found).map_err(|e| fail("fstat", e))?;
        let device = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR;
        let devpts = fstatfs(&found).map_err(|e| fail("fstatfs", e))?.filesystem_type().0;
        if !device || stat.st_rdev != makedev(5, 2) || devpts != DEVPTS {
            return Err(fail("openat2", Errno::ENODEV));
        }
        let master: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
            .map_err(|e| Error::io(STEP, "open", &e, Some(PTMX)))?
            .into();
        terminal::unlock(master.as_fd()).map_err(|e| fail("ioctl(TIOCSPTLCK)", e))?;
        let slave = terminal::slave(master.as_fd()).map_err(|e| fail("ioctl(TIOCGPTPEER)", e))?;
        Ok((master, slave))
    }
}

/// Whether this is a file inside `root` that somebody may execute.
pub fn is_program(root: BorrowedFd<'_>, program: &Path) -> bool {
    path::openat2_in_root(root, program, OFlag::O_PATH, Mode::empty()).and_then(fstat).is_ok_and(|stat| {
        stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() && stat.st_mode & 0o111 != 0
    })
}

/// The magic number of a devpts (statfs(2)).
const DEVPTS: libc::__fsword_t = 0x1cd1;
