//! Files below a directory that somebody else may have filled: a container's root, seen from outside.
//!
//! Theory of `sys::path` holds: the kernel resolves the parent of a name inside the root (openat2(2),
//! `RESOLVE_IN_ROOT`, no magic links) and hands back a descriptor; the last component is worked on relative to that,
//! by calls that do not follow it. Where a path means what a symlink leads to, as in chmod(1), the kernel opens that
//! `O_PATH`, again inside the root, and the call works on the descriptor. Nothing is looked at by path, decided, and
//! opened by path again without looking once more.
//!
//! A FIFO, device or socket is never opened for real: looked at `O_PATH` first, opened `O_NONBLOCK`, looked at again.
//! Each call goes through an [`Agent`], which may have it carried out inside. Runs in the calling process.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{FcntlArg, OFlag, ResolveFlag, fcntl, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::agent::Agent;
use crate::error::Errno;
use crate::sys::filecall::Call;

/// As in `sys::path`: the kernel answers `EAGAIN` when anything was renamed while it walked a `..`.
const RACE_RETRIES: u32 = 128;
/// Paths are resolved in pieces of at most this many bytes (`PATH_MAX` is 4096).
const PIECE: usize = 3500;

/// A directory as the root of lookups, and who acts in it.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// Who acts.
    pub agent: &'a Agent<'a>,
}

/// One entry of a directory.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is; none for a mount point, which is not looked into.
    pub stat: Option<FileStat>,
}

/// The file type bits of a mode.
pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// `EISDIR` for a directory, `EINVAL` for what is neither that nor a regular file.
pub(super) fn require_regular(file: BorrowedFd<'_>) -> nix::Result<FileStat> {
    let stat = fstat(file)?;
    match file_type(&stat) {
        SFlag::S_IFREG => Ok(stat),
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        SFlag::S_IFLNK => Err(Errno::ELOOP),
        _ => Err(Errno::EINVAL),
    }
}

/// The path above the last component, and that; `EINVAL` for `/` and `..`.
pub(super) fn split(path: &Path) -> nix::Result<(&Path, &OsStr)> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Ok((path.parent().unwrap_or(Path::new("")), name)),
        _ => Err(Errno::EINVAL),
    }
}

fn made(fd: Option<OwnedFd>) -> nix::Result<OwnedFd> {
    fd.ok_or(Errno::EBADF)
}

impl<'a> Tree<'a> {
    /// Another directory, with the same agent.
    pub fn at<'b>(&self, dir: BorrowedFd<'b>) -> Tree<'b>
    where
        'a: 'b,
    {
        Tree { dir, agent: self.agent }
    }

    /// openat2(2) inside the directory.
    pub fn open_with(
        &self,
        path: &Path,
        flags: OFlag,
        mode: u32,
        extra: ResolveFlag,
    ) -> nix::Result<OwnedFd> {
        let creates = flags.contains(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
        let mode = if creates { mode } else { 0 };
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = (ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | extra).bits();
        let flags = (flags | OFlag::O_CLOEXEC).bits();
        let call = Call::openat2(self.dir, path.as_os_str(), flags as u64, mode.into(), resolve)?;
        let mut tries = 0;
        loop {
            match self.agent.perform(&call) {
                Err(Errno::EAGAIN) if tries < RACE_RETRIES => tries += 1,
                Err(Errno::EINTR) if !self.agent.interrupted() => {}
                result => return made(result?),
            }
        }
    }

    /// What is at `path` (`O_PATH`), or what a symlink there leads to.
    pub fn look(&self, path: &Path, follow: bool) -> nix::Result<OwnedFd> {
        let nofollow = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        self.open_with(path, OFlag::O_PATH | nofollow, 0, ResolveFlag::empty())
    }

    /// The directory that holds `path`, and the last component.
    pub fn parent<'p>(&self, path: &'p Path) -> nix::Result<(OwnedFd, &'p OsStr)> {
        let (parent, name) = split(path)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok((self.open_with(parent, flags, 0, ResolveFlag::empty())?, name))
    }

    /// The same for a path of any length, none of whose components may be a symlink.
    pub fn reach(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let (mut above, mut piece) = (None::<OwnedFd>, PathBuf::new());
        for component in path.components() {
            if piece.as_os_str().len() + component.as_os_str().len() > PIECE {
                let dir = above.as_ref().map_or(self.dir, AsFd::as_fd);
                let step = OFlag::O_PATH | OFlag::O_DIRECTORY;
                above = Some(self.at(dir).open_with(&piece, step, 0, ResolveFlag::RESOLVE_NO_SYMLINKS)?);
                piece = PathBuf::new();
            }
            piece.push(component);
        }
        let dir = above.as_ref().map_or(self.dir, AsFd::as_fd);
        self.at(dir).open_with(&piece, flags, 0, ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    /// Opens a regular file. `flags`: the access mode and any of `O_CREAT`, `O_EXCL`, `O_TRUNC`, `O_APPEND`,
    /// `O_NOFOLLOW`.
    ///
    /// Errors: `EISDIR`; `EINVAL` for a FIFO, device or socket.
    pub fn open(&self, path: &Path, flags: OFlag, mode: u32) -> nix::Result<OwnedFd> {
        let cautious = (flags & !OFlag::O_TRUNC) | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let existing = cautious & !(OFlag::O_CREAT | OFlag::O_EXCL);
        let follow = !flags.intersects(OFlag::O_NOFOLLOW);
        for _ in 0..RACE_RETRIES {
            let opened = if flags.contains(OFlag::O_CREAT | OFlag::O_EXCL) {
                self.open_with(path, cautious, mode, ResolveFlag::empty())
            } else {
                match self.look(path, follow) {
                    Ok(look) => {
                        require_regular(look.as_fd())?;
                        self.open_with(path, existing, 0, ResolveFlag::empty())
                    }
                    Err(Errno::ENOENT) if flags.intersects(OFlag::O_CREAT) => {
                        self.open_with(path, cautious, mode, ResolveFlag::empty())
                    }
                    Err(errno) => return Err(errno),
                }
            };
            let file = match opened {
                // It went away between the two looks: look again.
                Err(Errno::ENOENT) if !flags.intersects(OFlag::O_CREAT) => continue,
                // A FIFO without a reader took the place of a file.
                Err(Errno::ENXIO) => return Err(Errno::EINVAL),
                result => result?,
            };
            require_regular(file.as_fd())?;
            if flags.intersects(OFlag::O_TRUNC) {
                nix::unistd::ftruncate(&file, 0)?;
            }
            let keep = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?) & !OFlag::O_NONBLOCK;
            fcntl(&file, FcntlArg::F_SETFL(keep))?;
            return Ok(file);
        }
        Err(Errno::ENOENT)
    }

    /// stat(2), or lstat(2).
    pub fn stat(&self, path: &Path, follow: bool) -> nix::Result<FileStat> {
        fstat(self.look(path, follow)?)
    }

    /// The entries of a directory; those on other file systems without a look.
    pub fn entries(&self, path: &Path) -> nix::Result<Vec<Entry>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let dir = self.open_with(path, flags, 0, ResolveFlag::empty())?;
        let names = names(dir.try_clone().map_err(|_| Errno::EMFILE)?)?;
        let (inside, mut entries) = (self.at(dir.as_fd()), Vec::with_capacity(names.len()));
        for name in names {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
            match inside.open_with(Path::new(&name), flags, 0, ResolveFlag::RESOLVE_NO_XDEV) {
                Ok(look) => entries.push(Entry { name, stat: Some(fstat(look)?) }),
                Err(Errno::EXDEV) => entries.push(Entry { name, stat: None }),
                Err(Errno::ENOENT) => {} // gone meanwhile
                Err(errno) => return Err(errno),
            }
        }
        Ok(entries)
    }

    /// The names in a directory.
    pub fn list(&self, path: &Path) -> nix::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        names(self.open_with(path, flags, 0, ResolveFlag::empty())?)
    }

    /// mkdir(2).
    pub fn mkdir(&self, path: &Path, mode: u32) -> nix::Result<()> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::EINVAL) => return Err(Errno::EEXIST), // "/" and ".." are there
            result => result?,
        };
        self.agent.perform(&Call::mkdirat(parent.as_fd(), name, mode)?).map(drop)
    }

    /// `EBUSY` for a mount point. The kernel says so only in the mount namespace that has it: from another one, removing
    /// or replacing the name takes the mount away.
    fn spare_mount(&self, parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        match self.at(parent).open_with(Path::new(name), flags, 0, ResolveFlag::RESOLVE_NO_XDEV) {
            Err(Errno::EXDEV) => Err(Errno::EBUSY),
            _ => Ok(()),
        }
    }

    /// unlink(2), or rmdir(2).
    pub fn remove(&self, path: &Path, directory: bool) -> nix::Result<()> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::EINVAL) => return Err(if directory { Errno::EBUSY } else { Errno::EISDIR }),
            result => result?,
        };
        self.spare_mount(parent.as_fd(), name)?;
        self.agent.perform(&Call::unlinkat(parent.as_fd(), name, directory)?).map(drop)
    }

    /// symlink(2).
    pub fn symlink(&self, target: &OsStr, path: &Path) -> nix::Result<()> {
        let (parent, name) = self.parent(path)?;
        self.agent.perform(&Call::symlinkat(target, parent.as_fd(), name)?).map(drop)
    }

    /// readlink(2).
    pub fn readlink(&self, path: &Path) -> nix::Result<OsString> {
        readlink(self.look(path, false)?.as_fd())
    }

    /// rename(2).
    pub fn rename(&self, from: &Path, to: &Path) -> nix::Result<()> {
        let (from, name) = self.parent(from)?;
        let (to, new_name) = self.parent(to)?;
        self.spare_mount(from.as_fd(), name)?;
        self.spare_mount(to.as_fd(), new_name)?;
        self.agent.perform(&Call::renameat(from.as_fd(), name, to.as_fd(), new_name)?).map(drop)
    }

    /// chmod(2). A symlink itself has no mode: `EOPNOTSUPP`.
    pub fn chmod(&self, path: &Path, mode: u32, follow: bool) -> nix::Result<()> {
        let file = self.look(path, follow)?;
        self.agent.perform(&Call::chmod(file.as_fd(), mode)).map(drop)
    }

    /// chown(2), in ids of the container, where there is one.
    pub fn chown(&self, path: &Path, uid: u32, gid: u32, follow: bool) -> nix::Result<()> {
        let file = self.look(path, follow)?;
        self.agent.perform_inside(&Call::chown(file.as_fd(), uid, gid)).map(drop)
    }

    /// utimensat(2).
    pub fn utime(&self, path: &Path, atime: (i64, i64), mtime: (i64, i64), follow: bool) -> nix::Result<()> {
        let file = self.look(path, follow)?;
        self.agent.perform(&Call::utimens(file.as_fd(), atime, mtime)).map(drop)
    }

    /// truncate(2).
    pub fn truncate(&self, path: &Path, size: i64) -> nix::Result<()> {
        nix::unistd::ftruncate(self.open(path, OFlag::O_WRONLY, 0)?, size)
    }
}

/// The text of the symlink behind an `O_PATH` descriptor.
pub(super) fn readlink(link: BorrowedFd<'_>) -> nix::Result<OsString> {
    match readlinkat(link, "") {
        Err(Errno::ENOENT) => Err(Errno::EINVAL), // not a symlink
        result => result,
    }
}

/// The names in an open directory, without `.` and `..`.
pub(super) fn names(dir: OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in &mut Dir::from_fd(dir)?.into_iter() {
        let name = entry?.file_name().to_bytes().to_owned();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(OsStr::from_bytes(&name).to_owned());
        }
    }
    Ok(names)
}
