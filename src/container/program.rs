//! The embedded static program (`src/helper`), ready to be executed by descriptor.
//!
//! It lies in a sealed memfd, so that no container can overwrite it through `/proc/1/exe`. Where executing a memfd is
//! forbidden (`vm.memfd_noexec=2`) an unlinked file takes its place, a new one for each start: a program of the container
//! can get at PID 1's file by executing `/proc/self/exe`, and may write to it. Runs in the calling process; the memfd is
//! made once, on the first start.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::error::{Errno, Error, Result};
use crate::sys::{memfd, pidfd};

static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/r2d2-init"));

/// The program, open for execveat(2).
pub(super) enum Program {
    /// The sealed memfd of this process.
    Sealed(RawFd),
    /// A file for one start: whoever could write to it must not reach the next container, or the programs of the host.
    Fresh(OwnedFd),
}

impl AsRawFd for Program {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Sealed(fd) => *fd,
            Self::Fresh(fd) => fd.as_raw_fd(),
        }
    }
}

/// The program's descriptor.
pub(super) fn program() -> Result<Program> {
    static PROGRAM: AtomicI32 = AtomicI32::new(-1);
    if let fd @ 0.. = PROGRAM.load(Ordering::Acquire) {
        return Ok(Program::Sealed(fd));
    }
    match memfd::sealed(c"r2d2-init", BYTES, true) {
        Ok(fd) => Ok(Program::Sealed(keep(&PROGRAM, fd))),
        Err(Errno::EACCES | Errno::EPERM) => unlinked().map(Program::Fresh),
        Err(e) => Err(Error::step("prepare PID 1", "memfd_create", e, None::<&str>)),
    }
}

/// `/dev/null`, for PID 1's standard descriptors.
pub(super) fn null() -> Result<RawFd> {
    static NULL: AtomicI32 = AtomicI32::new(-1);
    if let fd @ 0.. = NULL.load(Ordering::Acquire) {
        return Ok(fd);
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| Error::io("open /dev/null", "open", &e, Some("/dev/null")))?;
    Ok(keep(&NULL, file.into()))
}

/// Keeps a descriptor for the life of this process, unless another thread was first. Without a lock: in a fork that was
/// made while another thread held it, it would stay locked for good.
fn keep(slot: &AtomicI32, fd: OwnedFd) -> RawFd {
    match slot.compare_exchange(-1, fd.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fd.into_raw_fd(),
        Err(first) => first,
    }
}

/// A pidfd of this process, kept for its life.
#[derive(Clone, Copy)]
pub(super) struct Owner(RawFd);

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(&self.0)
    }
}

/// A pidfd of this process. A fork of it needs another one, hence the pid beside it.
pub(super) fn owner() -> Result<Owner> {
    /// The pid in the upper half, the descriptor in the lower one.
    static OWNER: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    let mut kept = OWNER.load(Ordering::Acquire);
    while kept >> 32 != u64::from(pid) {
        let fd = pidfd::open(pid as i32)
            .map_err(|e| Error::step("open a descriptor of ourselves", "pidfd_open", e, None::<&str>))?;
        let ours = u64::from(pid) << 32 | u64::from(fd.as_raw_fd() as u32);
        match OWNER.compare_exchange(kept, ours, Ordering::AcqRel, Ordering::Acquire) {
            Ok(of_parent) => {
                if of_parent != 0 {
                    drop(crate::sys::adopt(of_parent as u32 as i32));
                }
                return Ok(Owner(fd.into_raw_fd()));
            }
            Err(first) => kept = first,
        }
    }
    Ok(Owner(kept as u32 as i32))
}

/// A file without a name, opened for reading only.
pub(super) fn unlinked() -> Result<OwnedFd> {
    let mut last = Error::step("prepare PID 1", "open", Errno::EACCES, None::<&str>);
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default();
    for dir in [runtime.as_os_str(), "/tmp".as_ref(), "/var/tmp".as_ref(), "/dev/shm".as_ref()] {
        let made =
            OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o700).open(dir).and_then(
                |mut file| {
                    file.write_all(BYTES)?;
                    // Its writer must be closed before it can be executed.
                    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                },
            );
        match made {
            Ok(file) => return Ok(file.into()),
            Err(e) => last = Error::io("prepare PID 1", "open", &e, Some(dir)),
        }
    }
    Err(last)
}
