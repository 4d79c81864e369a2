//! The host image: how the machine's own tree becomes the root of a container, each write private.
//!
//! The answer is a list of [`Part`]s in the order in which they are made below an empty directory (a tmpfs, or the
//! merged root of another overlay); whoever carries it out is elsewhere. Runs in the calling process, before any
//! namespace exists; reads the mount table once and no directory deeper than it must.
//!
//! Why not one overlay with `lowerdir=/`? What the kernel (6.18) does, found by trying, kept true by
//! `tests/test_overlay_layout.py`:
//!
//! - *Locked submounts.* In a user namespace an overlay refuses a lower directory with a mount anywhere below it
//!   ("failed to clone lowerpath", `EINVAL`), since its private copy would uncover what that mount hides. A bind
//!   mount without `MS_REC` and `open_tree(OPEN_TREE_CLONE)` refuse for the same reason; with `AT_RECURSIVE`
//!   it works, but the copy keeps the lock, and overlayfs refuses the copy. So `open_tree` does not help,
//!   and a directory with mounts below is split: a plain directory, and a part for each child.
//!   Real root's overlay would mount, and show the submounts empty; the same split cures that.
//! - *Descriptors* opened before the mount namespace was unshared are no layers afterwards (`EINVAL`), by path or
//!   by `FSCONFIG_SET_FD`.
//! - *Files at a split level* can be bound (a file has nothing below it to uncover) and turned read-only with
//!   `mount_setattr(2)`; a small one is copied instead, which makes it writable, removable and renamable, where a
//!   mount point is `EBUSY`.
//! - *Unmapped owners.* With a single id mapped, all files of others appear as nobody's, and `CAP_DAC_OVERRIDE`
//!   and `CAP_CHOWN` do not reach them: creating in such a directory is `EACCES` (in a world-writable one, which
//!   has to be copied up first, `EOVERFLOW`), so are appending and chmod `EACCES`/`EPERM`, renaming a file is
//!   `EOVERFLOW`, a directory `EXDEV`. Removing and replacing a file need only a directory that is ours. A
//!   directory that already exists in the upper layer merges with the lower one and *keeps the upper's owner and
//!   mode*: so each part lists directories to create in its upper beforehand ([`Precreate`]), and in these all
//!   but appending to foreign files works. `/var/tmp` (1777) needs it too.
//! - *An unreadable directory* (`/root` for others) mounts, and then neither lists nor takes a file, whatever its
//!   upper's mode: it becomes an empty private directory instead.
//! - *rename(2) across parts* is `EXDEV`, as across any mounts; mv(1) copies.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{AccessFlags, Gid, faccessat, getegid, geteuid, getgroups};

use super::filesystems::unfit;
use super::mountinfo::{self, Mount};
use crate::error::{Error, Result};
use crate::sys::dirents;

/// Directories that a container gets fresh: kernel file systems, and the host's sockets and temporary files.
pub const PRIVATE: &[&str] = &["/proc", "/sys", "/dev", "/tmp", "/run"];

/// The largest file that is copied rather than bound, in bytes.
pub const COPY_LIMIT: u64 = 64 * 1024;

/// Directories in which software expects that root may create files. Those that exist and whose owner is not
/// mapped are precreated; about 2.5 µs each.
const WRITABLE: &[&str] = &[
    "/etc",
    "/etc/default",
    "/etc/ld.so.conf.d",
    "/etc/profile.d",
    "/etc/ssl",
    "/etc/ssl/certs",
    "/home",
    "/mnt",
    "/media",
    "/opt",
    "/srv",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/etc",
    "/usr/local/include",
    "/usr/local/lib",
    "/usr/local/libexec",
    "/usr/local/sbin",
    "/usr/local/share",
    "/usr/local/src",
    "/usr/share",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/local",
    "/var/log",
    "/var/mail",
    "/var/opt",
    "/var/spool",
    "/var/tmp",
    "/var/www",
];

/// One piece of the root, at the same absolute path as on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where, on the host and in the container.
    pub path: PathBuf,
    /// Permission bits; without meaning for a symlink.
    pub mode: u32,
    /// What to make there.
    pub kind: Kind,
}

/// What a part is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An empty directory.
    Dir,
    /// A symlink with this text.
    Symlink(PathBuf),
    /// An overlay with the host's directory of that path as its lower; its upper directory gets the part's mode.
    Overlay(Vec<Precreate>),
    /// A copy of the host's file.
    Copy,
    /// The host's file, bound and then made read-only.
    Bind,
}

/// A directory to create in the upper layer of a part before it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Precreate {
    /// Relative to the part, parents first.
    pub path: PathBuf,
    /// Permission bits, those of the host's directory.
    pub mode: u32,
}

/// Why something is not as on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub path: PathBuf,
    /// In words.
    pub why: String,
}

/// The plan for a root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// In order of creation: a directory before what is in it.
    pub parts: Vec<Part>,
    /// What was split or left out.
    pub notes: Vec<Note>,
}

/// Plans the host image. `exclude` are absolute directories that shall be empty besides [`PRIVATE`], at any depth.
/// `user_namespace` says that the container will live in one, where only the caller's own ids are mapped (a
/// range of subordinate ids changes nothing: the host's files are not theirs).
///
/// Errors: [`Error::Spec`] for a relative `exclude`; [`Error::Step`] where `/` cannot be read.
pub fn host(exclude: &[PathBuf], user_namespace: bool) -> Result<Layout> {
    if let Some(relative) = exclude.iter().find(|path| !path.is_absolute()) {
        return Err(Error::spec(format!("exclude: {} is not absolute", relative.display())));
    }
    let private = PRIVATE.iter().map(PathBuf::from);
    let excluded: BTreeSet<PathBuf> = private.chain(exclude.iter().cloned()).collect();
    let mounts = mountinfo::read()?;
    let walk = Walk {
        mounted: mounts.iter().map(|mount| (mount.point.as_path(), mount)).collect(),
        split: split_points(&mounts, &excluded),
        excluded: &excluded,
        viewer: Viewer::new(user_namespace),
    };
    walk.run()
}

/// Directories that cannot be one part: a mount, or something excluded, lies below them.
fn split_points(mounts: &[Mount], excluded: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let hidden = |path: &Path| path.ancestors().any(|above| excluded.contains(above));
    let points = mounts.iter().map(|mount| mount.point.as_path()).filter(|point| !hidden(point));
    let ancestors =
        points.chain(excluded.iter().map(PathBuf::as_path)).flat_map(|path| path.ancestors().skip(1));
    ancestors.map(Path::to_owned).collect()
}

/// Who will look at the parts.
struct Viewer {
    user_namespace: bool,
    uid: u32,
    gid: u32,
    /// Asked for when a directory is met that needs them.
    groups: OnceCell<Vec<Gid>>,
}

impl Viewer {
    fn new(user_namespace: bool) -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self { user_namespace, uid, gid, groups: OnceCell::new() }
    }

    fn is_in(&self, group: u32) -> bool {
        let groups = || self.groups.get_or_init(|| getgroups().unwrap_or_default());
        group == self.gid || groups().contains(&Gid::from_raw(group))
    }

    /// Capabilities over an inode need both of its ids mapped (`capable_wrt_inode_uidgid`).
    fn has_power_over(&self, stat: &FileStat) -> bool {
        !self.user_namespace || (stat.st_uid == self.uid && stat.st_gid == self.gid)
    }

    /// May the container list and enter this directory?
    fn can_read(&self, parent: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> bool {
        if self.user_namespace && self.has_power_over(stat) {
            return true;
        }
        if self.user_namespace && self.uid == 0 {
            // The caller reads anything, by a capability that ends at the namespace's border.
            let class = if stat.st_uid == 0 {
                6
            } else if self.is_in(stat.st_gid) {
                3
            } else {
                0
            };
            return stat.st_mode >> class & 0o5 == 0o5;
        }
        let how = AccessFlags::R_OK | AccessFlags::X_OK;
        faccessat(parent, name, how, AtFlags::AT_EACCESS).is_ok()
    }
}

struct Walk<'a> {
    mounted: BTreeMap<&'a Path, &'a Mount>,
    split: BTreeSet<PathBuf>,
    excluded: &'a BTreeSet<PathBuf>,
    viewer: Viewer,
}

impl Walk<'_> {
    /// A work list rather than recursion: mounts nest as deep as paths are long.
    fn run(&self) -> Result<Layout> {
        let mut layout = Layout::default();
        let mut todo = vec![PathBuf::from("/")];
        while let Some(dir) = todo.pop() {
            let handle = match open(&dir, READ_DIR, Mode::empty()) {
                Ok(handle) => handle,
                Err(errno) if dir == Path::new("/") => return Err(step("open", errno, &dir)),
                Err(errno) => {
                    layout.note(&dir, format!("left empty: {}", errno.desc()));
                    continue;
                }
            };
            let names = names(handle.as_fd()).map_err(|errno| step("getdents64", errno, &dir))?;
            for name in names {
                let name = OsStr::from_bytes(name.to_bytes());
                self.child(handle.as_fd(), &dir.join(name), name, &mut layout, &mut todo);
            }
        }
        Ok(layout)
    }

    /// Never fails: what cannot be had becomes a note, and a file that vanished meanwhile not even that.
    fn child(
        &self,
        parent: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        layout: &mut Layout,
        todo: &mut Vec<PathBuf>,
    ) {
        // Before any look at it: a FUSE server or an automounter may never answer.
        if let Some(mount) = self.mounted.get(path) {
            if let Some(why) = unfit(mount).filter(|_| !self.excluded.contains(path)) {
                layout.part(path, 0o755, Kind::Dir);
                return layout.note(path, why);
            }
        }
        let stat = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return,
            Err(errno) => return layout.note(path, format!("left out: {}", errno.desc())),
        };
        let mode = stat.st_mode & 0o7777;
        match file_type(&stat) {
            SFlag::S_IFLNK => match readlinkat(parent, name) {
                Ok(target) => layout.part(path, mode, Kind::Symlink(target.into())),
                Err(errno) => layout.note(path, format!("left out: {}", errno.desc())),
            },
            SFlag::S_IFDIR if self.excluded.contains(path) => layout.part(path, mode, Kind::Dir),
            SFlag::S_IFDIR if !self.viewer.can_read(parent, name, &stat) => {
                layout.part(path, mode, Kind::Dir);
                layout.note(path, "left empty: not readable in the container".into());
            }
            SFlag::S_IFDIR if self.split.contains(path) => {
                layout.part(path, mode, Kind::Dir);
                layout.note(path, "split: something is mounted, or excluded, below it".into());
                todo.push(path.to_owned());
            }
            SFlag::S_IFDIR if is_empty(parent, name, &stat) => layout.part(path, mode, Kind::Dir),
            SFlag::S_IFDIR => {
                let precreate = self.precreate(parent, path, name);
                layout.part(path, mode, Kind::Overlay(precreate));
            }
            SFlag::S_IFREG => {
                let small = stat.st_size as u64 <= COPY_LIMIT;
                let readable = faccessat(parent, name, AccessFlags::R_OK, AtFlags::AT_EACCESS).is_ok();
                layout.part(path, mode, if small && readable { Kind::Copy } else { Kind::Bind });
            }
            _ => layout.note(path, "left out: a socket, FIFO or device outside /dev".into()),
        }
    }

    /// Which of [`WRITABLE`] exist below the part `path` and belong to unmapped ids, with the directories above.
    fn precreate(&self, parent: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Vec<Precreate> {
        let mut found: Vec<Precreate> = Vec::new();
        if !self.viewer.user_namespace {
            return found;
        }
        let mut wanted = BTreeSet::new();
        for below in WRITABLE.iter().filter_map(|dir| Path::new(dir).strip_prefix(path).ok()) {
            // A parent missing from the list is the part itself (ours anyway), absent, or a symlink.
            let parent_is_there = match below.parent() {
                Some(above) => above.as_os_str().is_empty() || found.iter().any(|dir| dir.path == above),
                None => false,
            };
            if !parent_is_there {
                continue;
            }
            let stat = fstatat(parent, &Path::new(name).join(below), AtFlags::AT_SYMLINK_NOFOLLOW);
            let Some(stat) = stat.ok().filter(|stat| file_type(stat) == SFlag::S_IFDIR) else {
                continue;
            };
            if !self.viewer.has_power_over(&stat) {
                wanted.extend(below.ancestors());
            }
            found.push(Precreate { path: below.to_owned(), mode: stat.st_mode & 0o7777 });
        }
        found.retain(|dir| wanted.contains(dir.path.as_path()));
        found
    }
}

impl Layout {
    fn part(&mut self, path: &Path, mode: u32, kind: Kind) {
        self.parts.push(Part { path: path.to_owned(), mode, kind });
    }

    fn note(&mut self, path: &Path, why: String) {
        self.notes.push(Note { path: path.to_owned(), why });
    }
}

const READ_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// The names in a directory, sorted, without `.` and `..`.
fn names(dir: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    let mut names = Vec::new();
    dirents::each(dir, |name| {
        names.push(name.to_owned());
        true
    })?;
    names.sort_unstable();
    Ok(names)
}

/// Is nothing in this directory? In doubt something is.
fn is_empty(parent: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> bool {
    // A third link is the `..` of a directory in it; file systems that do not count them say 1.
    if stat.st_nlink > 2 {
        return false;
    }
    let Ok(dir) = openat(parent, name, READ_DIR, Mode::empty()) else {
        return false;
    };
    let mut empty = true;
    let seen = dirents::each(dir.as_fd(), |_| {
        empty = false;
        false
    });
    seen.is_ok() && empty
}

fn step(syscall: &'static str, errno: Errno, path: &Path) -> Error {
    Error::step("plan the host image", syscall, errno, Some(path))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
