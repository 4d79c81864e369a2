//! The bytes of one file, copied to another: holes stay holes, a file that keeps growing ends, and what the kernel makes
//! up as it is read (/proc) is read to its end. Runs in the calling process.

use std::os::fd::OwnedFd;

use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, ftruncate, lseek, read, write};

use super::agent::Agent;
use crate::error::Errno;

/// Files that say they are empty and are not (/proc) are read to at most this.
const MAX_UNTOLD: u64 = 64 << 20;
/// Bytes between two looks at the interrupt.
const SLICE: usize = 8 << 20;

/// The flag of a failure says whether it is the target's.
type Result<T> = std::result::Result<T, (Errno, bool)>;

/// The bytes of a file, holes as holes; not more than its size when it was opened, so that one that keeps growing
/// ends. The flag of a failure says whether it is the target's.
pub(super) fn copy(source: &OwnedFd, size: u64, file: &OwnedFd, agent: &Agent<'_>) -> Result<u64> {
    if size == 0 {
        return untold(source, file, agent);
    }
    let mut at = 0;
    while at < size as i64 {
        let data = match lseek(source, at, Whence::SeekData) {
            Err(Errno::ENXIO) => break, // a hole up to the end
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => at,
            result => result.map_err(|e| (e, false))?,
        };
        let end = match lseek(source, data, Whence::SeekHole) {
            Err(_) => size as i64,
            Ok(end) => end.min(size as i64),
        };
        if data >= size as i64 {
            break;
        }
        at = range(source, file, data, end, agent)?;
        if at < end {
            break; // it became shorter
        }
    }
    ftruncate(file, size as i64).map_err(|e| (e, true))?;
    Ok(size)
}

/// The bytes from `at` to `end`: where it stopped.
fn range(source: &OwnedFd, file: &OwnedFd, mut at: i64, end: i64, agent: &Agent<'_>) -> Result<i64> {
    let mut out = at;
    let mut buffer: Vec<u8> = Vec::new();
    while at < end {
        if agent.interrupted() {
            return Err((Errno::EINTR, false));
        }
        let most = SLICE.min((end - at) as usize);
        if buffer.is_empty() {
            match copy_file_range(source, Some(&mut at), file, Some(&mut out), most) {
                Ok(0) => return Ok(at),
                Ok(_) | Err(Errno::EINTR) => continue,
                // Not between these two file systems.
                Err(
                    Errno::EXDEV
                    | Errno::EINVAL
                    | Errno::EOPNOTSUPP
                    | Errno::ENOSYS
                    | Errno::EBADF
                    | Errno::EPERM,
                ) => {
                    buffer = vec![0u8; most.min(1 << 20)];
                }
                Err(errno) => return Err((errno, !matches!(errno, Errno::EIO))),
            }
        }
        let most = buffer.len().min(most);
        let count = match nix::sys::uio::pread(source, &mut buffer[..most], at) {
            Ok(0) => return Ok(at),
            Err(Errno::EINTR) => continue,
            result => result.map_err(|e| (e, false))?,
        };
        let mut done = 0;
        while done < count {
            match nix::sys::uio::pwrite(file, &buffer[done..count], at + done as i64) {
                Err(Errno::EINTR) => {}
                result => done += result.map_err(|e| (e, true))?,
            }
        }
        at += count as i64;
        out = at;
    }
    Ok(at)
}

/// A file without a size: really empty, or made up by the kernel as it is read.
fn untold(source: &OwnedFd, file: &OwnedFd, agent: &Agent<'_>) -> Result<u64> {
    let (mut buffer, mut total) = (vec![0u8; 64 * 1024], 0u64);
    loop {
        if agent.interrupted() {
            return Err((Errno::EINTR, false));
        }
        let count = match read(source, &mut buffer) {
            Ok(0) => return Ok(total),
            Err(Errno::EINTR) => continue,
            result => result.map_err(|e| (e, false))?,
        };
        total += count as u64;
        if total > MAX_UNTOLD {
            return Err((Errno::EFBIG, false));
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match write(file, rest) {
                Err(Errno::EINTR) => {}
                result => rest = &rest[result.map_err(|e| (e, true))?..],
            }
        }
    }
}
