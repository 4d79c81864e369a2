//! Do two files differ, and in what? Runs in the calling process.
//!
//! Bytes decide, not times: an editor that saves what was there, or a tool that restores an mtime, shall not fool a
//! diff. Only where a file may not be read does the mtime have to do.

use std::cmp::Ordering;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag};

use super::layers::{Entry, Marks};
use crate::sys::xattr;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

impl FileType {
    /// Of the `st_mode` of a stat(2).
    pub fn of(mode: libc::mode_t) -> Self {
        match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => Self::Dir,
            SFlag::S_IFLNK => Self::Symlink,
            SFlag::S_IFCHR => Self::CharDevice,
            SFlag::S_IFBLK => Self::BlockDevice,
            SFlag::S_IFIFO => Self::Fifo,
            SFlag::S_IFSOCK => Self::Socket,
            _ => Self::File,
        }
    }

    /// One word: `file`, `dir`, `symlink`, `char`, `block`, `fifo`, `socket`.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::CharDevice => "char",
            Self::BlockDevice => "block",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// Metadata of one side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub file_type: FileType,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner, as the caller's user namespace sees it.
    pub uid: u32,
    /// Group, as the caller's user namespace sees it.
    pub gid: u32,
    /// Bytes; of a directory whatever its file system says.
    pub size: u64,
    /// Last modification: seconds and nanoseconds since 1970.
    pub mtime: (i64, i64),
}

impl Meta {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            file_type: FileType::of(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// Is what a reader gets from the two the same? Both exist; directories are alike whatever is in them.
pub(super) fn same_content(upper: &Entry, lower: &Entry) -> nix::Result<bool> {
    if upper.kind() != lower.kind() {
        return Ok(false);
    }
    match upper.kind() {
        SFlag::S_IFLNK => Ok(readlinkat(&upper.fd, "")? == readlinkat(&lower.fd, "")?),
        SFlag::S_IFCHR | SFlag::S_IFBLK => Ok(upper.stat.st_rdev == lower.stat.st_rdev),
        SFlag::S_IFREG => {
            if upper.stat.st_size != lower.stat.st_size {
                return Ok(false);
            }
            match (upper.open(), lower.open()) {
                (Ok(upper), Ok(lower)) => same_bytes(upper, lower),
                (Err(Errno::EACCES | Errno::EPERM), _) | (_, Err(Errno::EACCES | Errno::EPERM)) => {
                    Ok(Meta::of(&upper.stat).mtime == Meta::of(&lower.stat).mtime)
                }
                (Err(errno), _) | (_, Err(errno)) => Err(errno),
            }
        }
        _ => Ok(true),
    }
}

fn same_bytes(upper: OwnedFd, lower: OwnedFd) -> nix::Result<bool> {
    let (mut upper, mut lower) = (File::from(upper), File::from(lower));
    let (mut a, mut b) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let (n, m) = (fill(&mut upper, &mut a)?, fill(&mut lower, &mut b)?);
        if a[..n] != b[..m] {
            return Ok(false);
        }
        if n < a.len() {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
    Ok(filled)
}

/// Do mode, owner, time and attributes agree? A directory's mtime follows from what is in it and is not compared.
/// `owner` false leaves the ids out.
pub(super) fn same_metadata(upper: &Entry, lower: &Entry, marks: Marks, owner: bool) -> nix::Result<bool> {
    let (now, before) = (Meta::of(&upper.stat), Meta::of(&lower.stat));
    let same_owner = !owner || (now.uid, now.gid) == (before.uid, before.gid);
    let same_time = now.file_type == FileType::Dir || now.mtime == before.mtime;
    if now.mode.cmp(&before.mode) != Ordering::Equal || !same_owner || !same_time {
        return Ok(false);
    }
    Ok(attributes(upper, marks)? == attributes(lower, marks)?)
}

/// Attributes that are the file's own, sorted: without the overlay's marks and those that a security module or an
/// integrity checker gives each inode by itself.
fn attributes(entry: &Entry, marks: Marks) -> nix::Result<Vec<(&CString, Vec<u8>)>> {
    const PER_INODE: [&[u8]; 4] =
        [b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm"];
    let mut own = Vec::new();
    for name in &entry.xattrs {
        if marks.owns(name) || PER_INODE.contains(&name.to_bytes()) {
            continue;
        }
        match xattr::get(entry.fd.as_fd(), name) {
            Ok(Some(value)) => own.push((name, value)),
            Ok(None) | Err(Errno::EACCES | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    own.sort();
    Ok(own)
}
