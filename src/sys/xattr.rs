//! Extended attributes of an open file, also of one opened with `O_PATH` (for which fgetxattr(2) is `EBADF`): the
//! calls go through `/proc/self/fd/N`, a link that leads to the very inode, symlinks included. Runs in the calling
//! process; needs its own `/proc`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Names (without their NUL), in the file system's order; empty where it keeps no attributes. Attributes of
/// `trusted.*` are listed for real root alone.
pub fn list(file: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    let path = link(file)?;
    let bytes = grow(|buffer| {
        // SAFETY: `path` is a NUL-terminated string that outlives the call, and the kernel writes at most
        // `buffer.len()` bytes into `buffer` (none when it is 0: then it answers the size).
        unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match bytes {
        Ok(bytes) => {
            let names = bytes.split(|b| *b == 0).filter(|name| !name.is_empty());
            Ok(names.filter_map(|name| CString::new(name).ok()).collect())
        }
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// The value of one attribute; `None` where the file does not have it.
pub fn get(file: BorrowedFd<'_>, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let path = link(file)?;
    let value = grow(|buffer| {
        // SAFETY: both strings are NUL-terminated and outlive the call, and the kernel writes at most
        // `buffer.len()` bytes into `buffer` (none when it is 0: then it answers the size).
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets one attribute; tests make layers with it.
#[cfg(test)]
pub(crate) fn set(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let path = link(file)?;
    // SAFETY: both strings are NUL-terminated and, like `value`, outlive the call, which only reads them.
    let result =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

fn link(file: BorrowedFd<'_>) -> nix::Result<CString> {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)
}

/// Asks with a small buffer first; where that is too small, asks for the size and tries again, as often as
/// somebody else makes the answer grow in between.
fn grow(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> nix::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match Errno::result(call(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length as usize);
                return Ok(buffer);
            }
            Err(Errno::ERANGE) => {
                let length = Errno::result(call(&mut []))? as usize;
                buffer.resize(length.max(buffer.len() * 2), 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn attributes_are_read_through_a_path_descriptor() {
        let path = std::env::temp_dir().join(format!("r2d2-xattr-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let file = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(get(file.as_fd(), c"user.r2d2").unwrap(), None);
        let value = "v".repeat(1000);
        if set(file.as_fd(), c"user.r2d2", value.as_bytes()).is_ok() {
            assert_eq!(get(file.as_fd(), c"user.r2d2").unwrap().unwrap(), value.as_bytes());
            assert_eq!(list(file.as_fd()).unwrap(), [CString::new("user.r2d2").unwrap()]);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
