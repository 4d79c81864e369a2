//! The names in a directory by getdents64(2) alone, from wherever its offset is: opendir(3) and its relatives make
//! six more system calls for each directory, and a start looks into some ten. Runs in the calling process.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Where a `struct linux_dirent64` has its length, and where its name.
const LENGTH: usize = 16;
const NAME: usize = 19;

/// Shows each name but `.` and `..` to `see`, in the file system's order, until it says no.
pub fn each(dir: BorrowedFd<'_>, mut see: impl FnMut(&CStr) -> bool) -> nix::Result<()> {
    let mut buffer = [0u8; 8192];
    loop {
        let room = buffer.len();
        // SAFETY: the kernel writes at most `room` bytes into `buffer`, which lives as long as the call.
        let filled =
            unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), room) };
        let filled = match Errno::result(filled) {
            Err(Errno::ENOENT) => return Ok(()), // removed in the meantime
            filled => filled? as usize,
        };
        let mut entries = buffer.get(..filled).unwrap_or_default();
        if entries.is_empty() {
            return Ok(());
        }
        while let Some([low, high]) = entries.get(LENGTH..LENGTH + 2) {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let name = entries.get(NAME..length).and_then(|rest| CStr::from_bytes_until_nul(rest).ok());
            let Some(name) = name else { return Err(Errno::EIO) };
            if !matches!(name.to_bytes(), b"." | b"..") && !see(name) {
                return Ok(());
            }
            entries = entries.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn all_names_are_seen_once_however_many_there_are() {
        let dir = std::env::temp_dir().join(format!("r2d2-dirents-{}", std::process::id()));
        for count in [0, 1, 1000] {
            let here = dir.join(count.to_string());
            fs::create_dir_all(&here).unwrap();
            let made: BTreeSet<String> = (0..count).map(|i| format!("{i:0>200}")).collect();
            for name in &made {
                File::create(here.join(name)).unwrap();
            }
            let mut seen = Vec::new();
            let open = File::open(&here).unwrap();
            each(open.as_fd(), |name| {
                seen.push(name.to_str().unwrap().to_owned());
                true
            })
            .unwrap();
            assert_eq!(seen.len(), made.len());
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), made);
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn it_ends_when_told_and_refuses_what_is_no_directory() {
        let (mut count, root) = (0, File::open("/").unwrap());
        each(root.as_fd(), |_| {
            count += 1;
            count < 2
        })
        .unwrap();
        assert_eq!(count, 2);
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(each(file.as_fd(), |_| true), Err(Errno::ENOTDIR));
    }
}
