//! Copies between a container and the host, in either direction, by docker cp's rules.
//!
//! Both sides are [`Tree`]s, and either may be hostile: the container fills what is copied out, and may have planted
//! symlinks in a directory that both can write. So below the named source and the named target no symlink is ever
//! followed (`RESOLVE_NO_SYMLINKS`), every entry is looked at through its directory's descriptor, and what is
//! neither file, directory nor symlink is skipped and told.
//!
//! A file is written without a name (`O_TMPFILE`) and linked into its place when it is whole: SIGKILL leaves neither
//! a temporary file nor half of one. What was there before is removed an instant earlier, since no call of the kernel
//! replaces a name by an unnamed file. Where a file system has no `O_TMPFILE`, the file is made under its final name
//! (`O_EXCL`); where the name is a mount point, the file there is overwritten.
//!
//! Directories wait in a list of paths, so neither depth nor width is limited by the stack or by open files. Runs in
//! the calling process, without the interpreter's lock; asks between slices whether to stop.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::unistd::{Whence, lseek};

use super::content;
use super::tree::{Tree, file_type, names, readlink, require_regular, split};
use crate::error::Errno;
use crate::sys::filecall::Call;

/// Relative paths of more bytes are not entered: anybody can build deeper ones step by step.
const MAX_PATH: usize = 16 * 1024;
/// How often a name is taken again when somebody else is faster.
const RETRIES: u32 = 128;

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What is in the source directory rather than the directory (`SRC/.`).
    pub contents: bool,
    /// A source that is a symlink means what it leads to.
    pub follow: bool,
    /// The target was written with a slash at its end.
    pub into: bool,
    /// Keep setuid, setgid and sticky bits.
    pub special_bits: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// What the source became: the target, or an entry in it.
    pub path: PathBuf,
    /// What was left out, relative to the source, and why.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A failure, and at which side and path.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub errno: Errno,
    /// The target's, not the source's.
    pub at_target: bool,
    /// As given, and below.
    pub path: PathBuf,
}

type Result<T> = std::result::Result<T, Failure>;

struct Copy<'a> {
    source: Tree<'a>,
    target: Tree<'a>,
    options: Options,
    /// For messages.
    from: PathBuf,
    to: PathBuf,
    report: Report,
}

/// A source that was opened.
enum Source {
    File(OwnedFd, FileStat),
    Symlink(OsString, FileStat),
    Directory(OwnedFd, FileStat),
    Special(&'static str),
}

/// Copies `from` in `source` to `to` in `target`.
pub(super) fn copy(
    source: Tree<'_>,
    from: &Path,
    target: Tree<'_>,
    to: &Path,
    options: Options,
) -> Result<Report> {
    let mut options = options;
    options.contents |= split(from).is_err(); // "/" and ".." have no name of their own
    let report = Report::default();
    let mut copy = Copy { source, target, options, from: from.into(), to: to.into(), report };
    let follow = options.follow || options.contents;
    let what = Copy::open(source, from, follow, ResolveFlag::empty())
        .map_err(|e| copy.at_source(e, Path::new("")))?;
    let is_dir = matches!(what, Source::Directory(..));
    if let Source::Special(_) = what {
        return Err(copy.at_source(Errno::EINVAL, Path::new("")));
    }
    if options.contents && !is_dir {
        return Err(copy.at_source(Errno::ENOTDIR, Path::new("")));
    }
    let existing = match target.look(to, true) {
        Ok(look) => Some(fstat(&look).map_err(|e| copy.at_target(e, Path::new("")))?),
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(copy.at_target(errno, Path::new(""))),
    };
    let into = existing.is_some_and(|stat| file_type(&stat) == SFlag::S_IFDIR);
    if (existing.is_some() && !into && (is_dir || options.into))
        || (existing.is_none() && options.into && !is_dir)
    {
        return Err(copy.at_target(Errno::ENOTDIR, Path::new("")));
    }
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let nothing = ResolveFlag::empty();
    let (parent, name) = if into {
        let name = if options.contents { OsStr::new("") } else { from.file_name().unwrap_or_default() };
        (target.open_with(to, directory, 0, nothing), name)
    } else {
        let (above, name) = split(to).map_err(|e| copy.at_target(e, Path::new("")))?;
        (target.open_with(above, directory, 0, nothing), name)
    };
    let parent = parent.map_err(|e| copy.at_target(e, Path::new("")))?;
    if into {
        copy.to.push(name);
    }
    copy.report.path.clone_from(&copy.to);
    let place = target.at(parent.as_fd());
    match what {
        Source::File(file, stat) => copy.file(&file, &stat, place, name, Path::new(""))?,
        Source::Symlink(text, stat) => copy.symlink(&text, &stat, place, name, Path::new(""))?,
        Source::Directory(dir, stat) => copy.tree(dir, stat, place, name)?,
        Source::Special(_) => {}
    }
    Ok(copy.report)
}

impl Copy<'_> {
    fn at_source(&self, errno: Errno, below: &Path) -> Failure {
        let path = if below.as_os_str().is_empty() { self.from.clone() } else { self.from.join(below) };
        Failure { errno, at_target: false, path }
    }

    fn at_target(&self, errno: Errno, below: &Path) -> Failure {
        let path = if below.as_os_str().is_empty() { self.to.clone() } else { self.to.join(below) };
        Failure { errno, at_target: true, path }
    }

    /// Opens what is at `path`, each kind in its way, none of them blocking.
    fn open(tree: Tree<'_>, path: &Path, follow: bool, extra: ResolveFlag) -> nix::Result<Source> {
        let nofollow = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        let look = tree.open_with(path, OFlag::O_PATH | nofollow, 0, extra)?;
        let stat = fstat(&look)?;
        Ok(match file_type(&stat) {
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | nofollow;
                let file = tree.open_with(path, flags, 0, extra)?;
                let stat = require_regular(file.as_fd())?;
                Source::File(file, stat)
            }
            SFlag::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | nofollow;
                let dir = tree.open_with(path, flags, 0, extra)?;
                let stat = fstat(&dir)?;
                Source::Directory(dir, stat)
            }
            SFlag::S_IFLNK => Source::Symlink(readlink(look.as_fd())?, stat),
            SFlag::S_IFIFO => Source::Special("a FIFO"),
            SFlag::S_IFSOCK => Source::Special("a socket"),
            _ => Source::Special("a device"),
        })
    }

    fn bits(&self, stat: &FileStat) -> u32 {
        stat.st_mode & if self.options.special_bits { 0o7777 } else { 0o777 }
    }

    /// A whole directory, from a list of those still to do.
    fn tree(&mut self, top: OwnedFd, stat: FileStat, place: Tree<'_>, name: &OsStr) -> Result<()> {
        let (target, fresh) = self.directory(place, name, Path::new(""))?;
        let avoid = fstat(&target).map_err(|e| self.at_target(e, Path::new("")))?;
        let mut finished: Vec<(PathBuf, FileStat)> = Vec::new();
        if fresh {
            finished.push((PathBuf::new(), stat));
        }
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let (from, to) = (self.source.at(top.as_fd()), self.target.at(target.as_fd()));
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let from = match from.reach(&path, flags | OFlag::O_RDONLY) {
                Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => continue, // replaced meanwhile
                result => result.map_err(|e| self.at_source(e, &path))?,
            };
            let to = to.reach(&path, flags | OFlag::O_PATH).map_err(|e| self.at_target(e, &path))?;
            let device = fstat(&from).map_err(|e| self.at_source(e, &path))?.st_dev;
            let list = from.try_clone().map_err(|_| Errno::EMFILE).and_then(names);
            for name in list.map_err(|e| self.at_source(e, &path))? {
                if self.source.agent.interrupted() {
                    return Err(self.at_source(Errno::EINTR, &path));
                }
                let below = path.join(&name);
                let (source, target) = (self.source.at(from.as_fd()), self.target.at(to.as_fd()));
                let what = match Self::open(source, Path::new(&name), false, ResolveFlag::RESOLVE_NO_SYMLINKS)
                {
                    Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::EINVAL | Errno::ENXIO) => {
                        continue; // gone, or another thing, between two looks
                    }
                    result => result.map_err(|e| self.at_source(e, &below))?,
                };
                match what {
                    Source::File(file, stat) => self.file(&file, &stat, target, &name, &below)?,
                    Source::Symlink(text, stat) => self.symlink(&text, &stat, target, &name, &below)?,
                    Source::Special(what) => self.report.skipped.push((below, what)),
                    Source::Directory(dir, stat) => {
                        let why = if (stat.st_dev, stat.st_ino) == (avoid.st_dev, avoid.st_ino) {
                            Some("the target of the copy")
                        } else if stat.st_dev != device && is_kernels(&dir) {
                            Some("a file system of the kernel's")
                        } else if below.as_os_str().len() > MAX_PATH {
                            Some("too deep")
                        } else {
                            None
                        };
                        if let Some(why) = why {
                            self.report.skipped.push((below, why));
                            continue;
                        }
                        if self.directory(target, &name, &below)?.1 {
                            finished.push((below.clone(), stat));
                        }
                        todo.push(below);
                    }
                }
            }
        }
        // Last, since a mode may shut us out, and every entry made in a directory changes its mtime.
        for (path, stat) in finished.iter().rev() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let done = self.target.at(target.as_fd()).reach(path, flags).and_then(|dir| {
                self.target.agent.perform(&Call::chmod(dir.as_fd(), self.bits(stat)))?;
                self.times(dir.as_fd(), stat)
            });
            done.map_err(|e| self.at_target(e, path))?;
        }
        Ok(())
    }

    /// Makes a directory, or takes the one that is there; true if it was made.
    fn directory(&self, place: Tree<'_>, name: &OsStr, below: &Path) -> Result<(OwnedFd, bool)> {
        let fresh = if name.is_empty() {
            false
        } else {
            let call = Call::mkdirat(place.dir, name, 0o700).map_err(|e| self.at_target(e, below))?;
            match place.agent.perform(&call) {
                Ok(_) => true,
                Err(Errno::EEXIST) => false,
                Err(errno) => return Err(self.at_target(errno, below)),
            }
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = place.open_with(Path::new(name), flags, 0, ResolveFlag::RESOLVE_NO_SYMLINKS);
        let dir = opened.map_err(|errno| {
            let in_the_way = matches!(errno, Errno::ENOTDIR | Errno::ELOOP);
            self.at_target(if in_the_way { Errno::EEXIST } else { errno }, below)
        })?;
        Ok((dir, fresh))
    }

    fn times(&self, file: BorrowedFd<'_>, stat: &FileStat) -> nix::Result<()> {
        let (atime, mtime) = ((stat.st_atime, stat.st_atime_nsec), (stat.st_mtime, stat.st_mtime_nsec));
        self.target.agent.perform(&Call::utimens(file, atime, mtime)).map(drop)
    }

    fn symlink(
        &mut self,
        text: &OsStr,
        stat: &FileStat,
        place: Tree<'_>,
        name: &OsStr,
        below: &Path,
    ) -> Result<()> {
        let call = Call::symlinkat(text, place.dir, name).map_err(|e| self.at_target(e, below))?;
        replace(place, name, &call).map_err(|e| self.at_target(e, below))?;
        let look = place.open_with(
            Path::new(name),
            OFlag::O_PATH | OFlag::O_NOFOLLOW,
            0,
            ResolveFlag::RESOLVE_NO_XDEV,
        );
        // Its time is worth no failure.
        let _ = look.and_then(|link| self.times(link.as_fd(), stat));
        Ok(())
    }

    fn file(
        &mut self,
        source: &OwnedFd,
        stat: &FileStat,
        place: Tree<'_>,
        name: &OsStr,
        below: &Path,
    ) -> Result<()> {
        let here = Path::new("");
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY;
        let (file, named) = match place.open_with(here, flags, 0o600, ResolveFlag::empty()) {
            Ok(file) => (file, false),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {
                (Self::named(place, name).map_err(|e| self.at_target(e, below))?, true)
            }
            Err(errno) => return Err(self.at_target(errno, below)),
        };
        self.fill(source, stat, &file, below)?;
        if named {
            return Ok(());
        }
        let call = Call::linkat(file.as_fd(), place.dir, name).map_err(|e| self.at_target(e, below))?;
        match replace(place, name, &call) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => {
                let flags = OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_NOFOLLOW;
                let file = place.open(Path::new(name), flags, 0).map_err(|e| self.at_target(e, below))?;
                self.report.files -= 1;
                lseek(source, 0, Whence::SeekSet).map_err(|e| self.at_source(e, below))?;
                self.fill(source, stat, &file, below)
            }
            Err(errno) => Err(self.at_target(errno, below)),
        }
    }

    /// A new file under its final name.
    fn named(place: Tree<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        for _ in 0..RETRIES {
            match place.open_with(Path::new(name), flags, 0o600, ResolveFlag::empty()) {
                Err(Errno::EEXIST) => match place.remove(Path::new(name), false) {
                    Err(Errno::ENOENT) | Ok(()) => {}
                    Err(Errno::EBUSY) => {
                        return place.open(Path::new(name), OFlag::O_WRONLY | OFlag::O_TRUNC, 0);
                    }
                    Err(errno) => return Err(errno),
                },
                result => return result,
            }
        }
        Err(Errno::EEXIST)
    }

    /// Content, mode and times.
    fn fill(&mut self, source: &OwnedFd, stat: &FileStat, file: &OwnedFd, below: &Path) -> Result<()> {
        let bytes = match content::copy(source, stat.st_size as u64, file, self.source.agent) {
            Ok(bytes) => bytes,
            Err((errno, false)) => return Err(self.at_source(errno, below)),
            Err((errno, true)) => return Err(self.at_target(errno, below)),
        };
        let done = self.target.agent.perform(&Call::chmod(file.as_fd(), self.bits(stat)));
        done.and_then(|_| self.times(file.as_fd(), stat)).map_err(|e| self.at_target(e, below))?;
        self.report.files += 1;
        self.report.bytes += bytes;
        Ok(())
    }
}

/// Makes something under a name; what is there is removed, unless it is a directory.
fn replace(place: Tree<'_>, name: &OsStr, call: &Call<'_>) -> nix::Result<()> {
    for _ in 0..RETRIES {
        match place.agent.perform(call) {
            Err(Errno::EEXIST) => match place.remove(Path::new(name), false) {
                Err(Errno::ENOENT) | Ok(()) => {}
                Err(errno) => return Err(errno),
            },
            result => return result.map(drop),
        }
    }
    Err(Errno::EEXIST)
}

/// Is this directory on procfs or one of its kind? Endless, and none of the container's data.
fn is_kernels(dir: &OwnedFd) -> bool {
    const DEVPTS: FsType = FsType(0x1cd1);
    const SYSFS: FsType = FsType(0x6265_6572);
    let kinds =
        [statfs::PROC_SUPER_MAGIC, statfs::CGROUP_SUPER_MAGIC, statfs::CGROUP2_SUPER_MAGIC, DEVPTS, SYSFS];
    fstatfs(dir).is_ok_and(|info| kinds.contains(&info.filesystem_type()))
}
