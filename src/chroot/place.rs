//! Puts files of the host into a root, so that every path that resolves on the host resolves there too.
//!
//! A path is walked on the host component by component. A symlink on the way (`/lib -> usr/lib`, `/bin/sh -> dash`,
//! `/usr/bin/awk -> /etc/alternatives/awk`) is made in the root with the same text and then followed; a directory is
//! made; the file at the end is copied. Where the root already has something else in that place it keeps it: a real
//! `/lib` is filled instead of being replaced by a link, a symlink of its own is followed *inside* the root. Only the
//! file itself is replaced, by rename(2), so that a process which runs the old one is not disturbed.
//!
//! Copies keep mode and modification time. They lose the set-user-ID and set-group-ID bits: in a tree that somebody
//! else may fill such a file is a way to root, and a container (`no_new_privs`) could not use them. The owner is the
//! caller. Data go by `copy_file_range(2)`, which shares blocks (reflink) where the file system can.
//!
//! Runs in the calling process. Every name in the root is resolved by `sys::path`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::error::{Errno, Error, Result};
use crate::sys::path::{
    create_file_at, mkdir_all_in_root, open_file_in_root, openat2_in_root, parent_in_root,
};

/// As `path_resolution(7)`.
const MAX_SYMLINKS: usize = 40;
/// Of directories that no caller gave a mode.
const DIRECTORY_MODE: u32 = 0o755;

/// What came into the root at `path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placed {
    /// A file.
    File(PathBuf),
    /// A symlink with this text.
    Link(PathBuf, PathBuf),
}

/// A root to write into, and the host to read from.
#[derive(Debug)]
pub(super) struct Placer<'a> {
    /// The root of the new file system.
    pub(super) root: BorrowedFd<'a>,
    /// The host's `/`.
    pub(super) host: BorrowedFd<'a>,
}

/// What lies at a name, itself and not what it points at.
enum Entry {
    Nothing,
    Directory,
    Link(PathBuf),
    Other(FileStat),
}

impl Placer<'_> {
    /// Makes `path` of the host resolve in the root. Returns what was made, in order.
    pub(super) fn mirror(&self, path: &Path) -> Result<Vec<Placed>> {
        let step = || format!("install {}", path.display());
        let mut placed = Vec::new();
        let mut rest: VecDeque<OsString> = components(path).collect();
        let (mut here, mut there) = (PathBuf::from("/"), PathBuf::from("/"));
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                if there.parent() == Some(&here) {
                    there.pop();
                } else {
                    // It goes through a symlink of the root's own: the kernel knows what is above.
                    there.push("..");
                }
                continue;
            }
            here.push(&name);
            there.push(&name);
            let data =
                std::fs::symlink_metadata(&here).map_err(|e| Error::io(step(), "lstat", &e, Some(&here)))?;
            if data.is_symlink() {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Error::step(step(), "openat2", Errno::ELOOP, Some(path)));
                }
                let target =
                    std::fs::read_link(&here).map_err(|e| Error::io(step(), "readlink", &e, Some(&here)))?;
                if self.link_on_the_way(&there, &target, rest.is_empty(), &here, &mut placed)? {
                    here.pop();
                    there.pop();
                    if target.is_absolute() {
                        (here, there) = (PathBuf::from("/"), PathBuf::from("/"));
                    }
                    components(&target).rev().for_each(|name| rest.push_front(name));
                } else {
                    here = here.canonicalize().map_err(|e| Error::io(step(), "realpath", &e, Some(&here)))?;
                }
            } else if data.is_dir() {
                if rest.is_empty() {
                    self.directory(&there, DIRECTORY_MODE)?;
                }
            } else if rest.is_empty() {
                self.copy(&here, &there)?;
                placed.push(Placed::File(there.clone()));
            } else {
                return Err(Error::step(step(), "openat2", Errno::ENOTDIR, Some(&here)));
            }
        }
        Ok(placed)
    }

    /// The host has a symlink here. True where the root has the same one now, so that its text is followed; false
    /// where the root keeps a directory, or a symlink, of its own.
    fn link_on_the_way(
        &self,
        there: &Path,
        target: &Path,
        is_last: bool,
        here: &Path,
        placed: &mut Vec<Placed>,
    ) -> Result<bool> {
        match self.look(there)? {
            Entry::Link(text) if text == target => Ok(true),
            // The root's own way to a directory, and a real directory in the place of a merged one.
            Entry::Link(_) | Entry::Directory if !is_last || here.is_dir() => Ok(false),
            _ => {
                self.link(there, target)?;
                placed.push(Placed::Link(there.to_owned(), target.to_owned()));
                Ok(true)
            }
        }
    }

    fn look(&self, path: &Path) -> Result<Entry> {
        let refused = |syscall, errno| Error::step("look into the root", syscall, errno, Some(path));
        let entry = match openat2_in_root(self.root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Entry::Nothing),
            result => result.map_err(|errno| refused("openat2", errno))?,
        };
        let data = fstat(&entry).map_err(|errno| refused("fstat", errno))?;
        Ok(match kind(&data) {
            SFlag::S_IFDIR => Entry::Directory,
            SFlag::S_IFLNK => {
                // An empty name is the link that the descriptor itself stands for.
                let text = readlinkat(&entry, "").map_err(|errno| refused("readlinkat", errno))?;
                Entry::Link(text.into())
            }
            _ => Entry::Other(data),
        })
    }

    /// Makes a directory, and those above it; its mode is set only when it is new.
    pub(super) fn directory(&self, path: &Path, mode: u32) -> Result<()> {
        let refused = |errno| {
            Error::step(format!("make the directory {}", path.display()), "mkdirat", errno, Some(path))
        };
        if let Some(parent) = path.parent() {
            mkdir_all_in_root(self.root, parent, Mode::from_bits_truncate(DIRECTORY_MODE))
                .map_err(refused)?;
        }
        mkdir_all_in_root(self.root, path, Mode::from_bits_truncate(mode)).map(drop).map_err(refused)
    }

    /// Makes a symlink in the place of whatever file or symlink is there, and the directories above it.
    pub(super) fn link(&self, path: &Path, target: &Path) -> Result<()> {
        let refused = |errno| Error::step(format!("link {}", path.display()), "symlinkat", errno, Some(path));
        let (parent, name) = self.parent_of(path).map_err(refused)?;
        match symlinkat(target, &parent, name.as_os_str()) {
            Err(Errno::EEXIST) => {}
            result => return result.map_err(refused),
        }
        let new = temporary();
        symlinkat(target, &parent, new.as_os_str()).map_err(refused)?;
        replace(parent.as_fd(), &new, &name).map_err(refused)
    }

    /// The same, but what is there stays; false then.
    pub(super) fn link_if_free(&self, path: &Path, target: &Path) -> Result<bool> {
        let refused = |errno| Error::step(format!("link {}", path.display()), "symlinkat", errno, Some(path));
        let (parent, name) = self.parent_of(path).map_err(refused)?;
        match symlinkat(target, &parent, name.as_os_str()) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(refused(errno)),
        }
    }

    /// Copies a file of the host to `to`.
    pub(super) fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let step = || format!("copy {}", from.display());
        let source = open_file_in_root(self.host, from)
            .map_err(|errno| Error::step(step(), "openat2", errno, Some(from)))?;
        let data = source.metadata().map_err(|e| Error::io(step(), "fstat", &e, Some(from)))?;
        let old = if from == to { self.look(to)? } else { Entry::Nothing };
        if let Entry::Other(old) = old {
            // Installed before. Two files of one package may agree in all three, hence only under its own path.
            let same = old.st_size as u64 == data.size()
                && (old.st_mtime, old.st_mtime_nsec) == (data.mtime(), data.mtime_nsec())
                && old.st_mode == mode_of_copy(data.mode());
            if same {
                return Ok(());
            }
        }
        self.fill(to, data.mode() & 0o777, |file| {
            std::io::copy(&mut &source, file)
                .map_err(|e| Error::io(step(), "copy_file_range", &e, Some(to)))?;
            let modified = TimeSpec::new(data.mtime(), data.mtime_nsec());
            futimens(&*file, &modified, &modified)
                .map_err(|errno| Error::step(step(), "utimensat", errno, Some(to)))
        })
    }

    /// Writes `bytes` to `to`.
    pub(super) fn write(&self, to: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.fill(to, mode, |file| {
            std::io::Write::write_all(file, bytes)
                .map_err(|e| Error::io(format!("write {}", to.display()), "write", &e, Some(to)))
        })
    }

    /// Creates the file `to`, lets `fill` write it, and only then gives it its name if there is an old one.
    fn fill(&self, to: &Path, mode: u32, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        let refused = |errno| Error::step(format!("create {}", to.display()), "openat2", errno, Some(to));
        let (parent, name) = self.parent_of(to).map_err(refused)?;
        let new = temporary();
        let file = create_file_at(parent.as_fd(), &new, Mode::from_bits_truncate(mode)).map_err(refused)?;
        let filled = fill(&mut File::from(file));
        let filled = filled.and_then(|()| {
            replace(parent.as_fd(), &new, &name)
                .map_err(|errno| Error::step(format!("create {}", to.display()), "renameat", errno, Some(to)))
        });
        if filled.is_err() {
            let _ = unlinkat(&parent, new.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        filled
    }

    fn parent_of(&self, path: &Path) -> nix::Result<(OwnedFd, OsString)> {
        match parent_in_root(self.root, path) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        mkdir_all_in_root(self.root, parent, Mode::from_bits_truncate(DIRECTORY_MODE))?;
        parent_in_root(self.root, path)
    }

    /// Makes a symlink `name -> target` at the top of the root together with the directory that it points at.
    pub(super) fn merged(&self, name: &Path, target: &Path) -> Result<()> {
        if self.link_if_free(&Path::new("/").join(name), target)? {
            self.directory(&Path::new("/").join(target), DIRECTORY_MODE)?;
        }
        Ok(())
    }

    /// Makes a directory at the top of the root unless something is there.
    pub(super) fn top(&self, name: &str, mode: u32) -> Result<()> {
        match mkdirat(self.root, name, Mode::from_bits_truncate(mode)) {
            Ok(()) if mode & !0o755 == 0 => Ok(()),
            Ok(()) => self.chmod_new(name, mode),
            Err(Errno::EEXIST) => self.directory(&Path::new("/").join(name), mode),
            Err(errno) => {
                Err(Error::step(format!("make the directory /{name}"), "mkdirat", errno, Some(name)))
            }
        }
    }

    fn chmod_new(&self, name: &str, mode: u32) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let refused = |errno| Error::step(format!("make the directory /{name}"), "fchmod", errno, Some(name));
        let directory = openat2_in_root(self.root, Path::new(name), flags, Mode::empty()).map_err(refused)?;
        nix::sys::stat::fchmod(&directory, Mode::from_bits_truncate(mode)).map_err(refused)
    }
}

fn kind(data: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(data.st_mode) & SFlag::S_IFMT
}

fn mode_of_copy(mode: u32) -> u32 {
    SFlag::S_IFREG.bits() | (mode & 0o777)
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// A name that no other file of a directory has; not made from the final one, which may be of the longest.
fn temporary() -> OsString {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".r2d2-{}-{count}", std::process::id()).into()
}

/// Gives the new file the name of the old one. A directory in that place stays, and is an error.
fn replace(parent: BorrowedFd<'_>, new: &OsStr, name: &OsStr) -> nix::Result<()> {
    let renamed = renameat(parent, new, parent, name);
    if renamed.is_err() {
        let _ = unlinkat(parent, new, UnlinkatFlags::NoRemoveDir);
    }
    renamed
}
