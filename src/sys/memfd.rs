//! Sealed files in memory (memfd_create(2)). Runs in the calling process.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// A memfd with `content` that nobody can change any more. `executable` asks for permission to execute it, which
/// `vm.memfd_noexec` may deny (`EACCES`).
pub fn sealed(name: &CStr, content: &[u8], executable: bool) -> nix::Result<OwnedFd> {
    const MFD_CLOEXEC: u32 = 1;
    const MFD_ALLOW_SEALING: u32 = 2;
    const MFD_EXEC: u32 = 0x10;
    let create = |flags: u32| {
        // SAFETY: a C string and flags.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) };
        // SAFETY: the kernel just made it for us.
        Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    let fd = match create(if executable { flags | MFD_EXEC } else { flags }) {
        Err(Errno::EINVAL) => create(flags)?, // before 6.3
        other => other?,
    };
    let mut file = File::from(fd);
    file.write_all(content).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    let fd = OwnedFd::from(file);
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}
