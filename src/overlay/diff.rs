//! What an upper layer changed, told against the merged view of its lower layers. Runs in the calling process,
//! from descriptors of the layers; nothing is mounted and nothing written.
//!
//! The upper layer is walked directory by directory from a list of work, so neither depth nor width is limited by
//! the stack or by open files. It may be anybody's, and in use: see `layers` for how it is looked at. What vanishes
//! between being listed and being looked at is not reported; one that keeps changing is reported as it was met.
//!
//! How each mark is read (Documentation/filesystems/overlayfs.rst):
//!
//! | in the upper layer | said here |
//! | --- | --- |
//! | a name that the lowers do not show | `Added`, and everything below it |
//! | the same name, other bytes, symlink text, device number or type | `Modified` |
//! | the same content, other mode, owner, mtime (not of directories) or attributes | `MetadataChanged` |
//! | identical in all of it (a copy-up without consequence) | nothing |
//! | whiteout (device 0:0, or an empty file with the `whiteout` attribute) over something | `Deleted`, once for a tree |
//! | opaque directory over a directory | `Modified` and `opaque`, and `Deleted` for each name that did not come back |
//! | directory or file with a `redirect` | `Renamed`, told from the old place; what changed inside follows |
//! | file with `metacopy` | `MetadataChanged`: its bytes are still the lower's |

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use super::compare::{FileType, Meta};
pub use super::layers::Marks;

use super::compare::{same_content, same_metadata};
use super::layers::{Entry, Lowers, Node, Stack, look};
use crate::error::{Error, Result};

/// Paths of this many bytes are still looked into. The kernel names paths up to 4095; by steps anybody can build
/// deeper ones, whose list would grow with the square of their depth. What lies below is not told.
pub const MAX_PATH: usize = 16 * 1024;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It was not there before.
    Added,
    /// Its content or type is another; of a directory, that it was replaced.
    Modified,
    /// Only mode, owner, mtime or attributes are.
    MetadataChanged,
    /// It is gone, with everything below.
    Deleted,
    /// It was [`Change::from`] before, with everything below.
    Renamed,
}

impl Kind {
    /// One word, as Python shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::MetadataChanged => "metadata",
            Self::Deleted => "deleted",
            Self::Renamed => "renamed",
        }
    }
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the root of the layers, with the prefix before it; any bytes.
    pub path: PathBuf,
    /// What happened.
    pub kind: Kind,
    /// A directory that was emptied or replaced: nothing of the lower layers shows through it.
    pub opaque: bool,
    /// Its old path, where renamed.
    pub from: Option<PathBuf>,
    /// As it is now; none where deleted.
    pub after: Option<Meta>,
    /// As the lower layers have it; none where added.
    pub before: Option<Meta>,
}

/// How to look at the layers.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Put before each path: where the layers' root is in the container.
    pub prefix: PathBuf,
    /// Which attributes are the overlay's.
    pub marks: Marks,
    /// Directories, relative to the layers' root, that were made in the upper beforehand: their owner is no change.
    pub precreated: BTreeSet<PathBuf>,
}

/// The changes in `upper` over `lowers` (the topmost first), sorted by the bytes of their paths.
///
/// Errors: [`Error::Step`] where a directory cannot be read.
pub fn diff(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>]) -> Result<Vec<Change>> {
    diff_with(upper, lowers, &Options::default())
}

/// The same for one part of a root, which is at `prefix` in it.
pub fn diff_at(prefix: &Path, upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>]) -> Result<Vec<Change>> {
    diff_with(upper, lowers, &Options { prefix: prefix.to_owned(), ..Options::default() })
}

/// The same with everything said.
pub fn diff_with(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], options: &Options) -> Result<Vec<Change>> {
    let lowers = Lowers { roots: lowers, marks: options.marks };
    let below = lowers.root().map_err(|errno| step(errno, Path::new("")))?;
    let mut walk = Walk {
        upper,
        lowers,
        options,
        changes: BTreeMap::new(),
        gone: BTreeMap::new(),
        moved: BTreeSet::new(),
    };
    let mut todo = vec![Directory { path: PathBuf::new(), below, detached: false }];
    while let Some(directory) = todo.pop() {
        walk.directory(&directory, &mut todo).map_err(|errno| step(errno, &directory.path))?;
    }
    Ok(walk.finish())
}

fn step(errno: Errno, path: &Path) -> Error {
    Error::step("compare the layers", "openat2", errno, Some(path))
}

/// A directory of the upper layer whose turn is still to come.
struct Directory {
    path: PathBuf,
    /// Where the lower layers have it; empty where it is new.
    below: Stack,
    /// It, or a directory above, is opaque: what the lowers have shows only if it is here too.
    detached: bool,
}

struct Walk<'a> {
    upper: BorrowedFd<'a>,
    lowers: Lowers<'a>,
    options: &'a Options,
    /// By path in the upper layer.
    changes: BTreeMap<PathBuf, Change>,
    /// What was deleted: its path now (a directory above may have another name), and its old path.
    gone: BTreeMap<PathBuf, PathBuf>,
    /// Old paths of what was renamed: the whiteouts left there are part of it.
    moved: BTreeSet<PathBuf>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Directory, todo: &mut Vec<Directory>) -> nix::Result<()> {
        let Some(entry) = look(self.upper, &directory.path, self.options.marks)?.filter(Entry::is_dir) else {
            return Ok(()); // gone meanwhile
        };
        let names: BTreeSet<_> = entry.names()?.into_iter().collect();
        for name in &names {
            if let Some(child) = entry.child(name)? {
                self.child(directory, name, &child, todo)?;
            }
        }
        if directory.detached && !directory.below.is_empty() {
            for name in self.lowers.names(&directory.below)? {
                if !names.contains(&name) {
                    let node = self.lowers.lookup(&directory.below, &name)?;
                    self.deleted(directory, &name, &node);
                }
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: &Directory,
        name: &OsStr,
        entry: &Entry,
        todo: &mut Vec<Directory>,
    ) -> nix::Result<()> {
        let path = directory.path.join(name);
        if entry.is_whiteout() {
            let node = self.lowers.lookup(&directory.below, name)?;
            self.deleted(directory, name, &node);
            return Ok(());
        }
        let redirect = entry.redirect().filter(|_| entry.is_dir() || entry.is_metacopy());
        let node = match &redirect {
            Some(target) if target.is_absolute() => self.lowers.resolve(target)?,
            Some(target) => self.lowers.lookup(&directory.below, target.as_os_str())?,
            None => self.lowers.lookup(&directory.below, name)?,
        };
        let opaque = entry.is_opaque();
        let (before, below) = match node {
            Node::Absent => (None, Stack::new()),
            Node::File(before) => (Some(before), Stack::new()),
            Node::Dir(before, below) => (Some(before), below),
        };
        let kind = match &before {
            None => Some(Kind::Added),
            Some(_) if redirect.is_some() => Some(Kind::Renamed),
            Some(_) if opaque && !below.is_empty() => Some(Kind::Modified),
            Some(before) => self.compared(&path, entry, before)?,
        };
        let below = if entry.is_dir() { below } else { Stack::new() };
        let replaced = opaque && !below.is_empty();
        if let Some(kind) = kind {
            let from = redirect.filter(|_| kind == Kind::Renamed);
            let from = from.map(|target| origin(directory, &target));
            self.moved.extend(from.clone());
            let (before, after) = (before.map(|b| Meta::of(&b.stat)), Some(Meta::of(&entry.stat)));
            let from = from.map(|path| self.options.prefix.join(path));
            self.changes.insert(
                path.clone(),
                Change { path: path.clone(), kind, opaque: replaced, from, after, before },
            );
        }
        if entry.is_dir() && path.as_os_str().len() <= MAX_PATH {
            todo.push(Directory { path, below, detached: directory.detached || opaque });
        }
        Ok(())
    }

    fn compared(&self, path: &Path, entry: &Entry, before: &Entry) -> nix::Result<Option<Kind>> {
        if !entry.is_metacopy() && !same_content(entry, before)? {
            return Ok(Some(Kind::Modified));
        }
        let owner = !self.options.precreated.contains(path);
        let same = same_metadata(entry, before, self.options.marks, owner)?;
        Ok((!same).then_some(Kind::MetadataChanged))
    }

    fn deleted(&mut self, directory: &Directory, name: &OsStr, node: &Node) {
        let (Node::File(before) | Node::Dir(before, _)) = node else { return };
        let path = directory.path.join(name);
        self.gone.insert(path.clone(), origin(directory, Path::new(name)));
        let before = Some(Meta::of(&before.stat));
        let kind = Kind::Deleted;
        let change = Change { path: path.clone(), kind, opaque: false, from: None, after: None, before };
        self.changes.insert(path, change);
    }

    fn finish(self) -> Vec<Change> {
        let Self { changes, gone, moved, options, .. } = self;
        let kept =
            changes.into_values().filter(|c| !gone.get(&c.path).is_some_and(|old| moved.contains(old)));
        let prefixed = kept.map(|change| Change { path: options.prefix.join(&change.path), ..change });
        let mut changes: Vec<Change> = prefixed.collect();
        changes.sort_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
        changes
    }
}

/// The path that `target` in `directory` (or, absolute, from the root) had in the lower layers' view.
fn origin(directory: &Directory, target: &Path) -> PathBuf {
    match target.strip_prefix("/") {
        Ok(path) => path.to_owned(),
        // A sibling in the directory as the lowers know it, which may itself have been renamed since.
        Err(_) => directory.below.first().map_or(&directory.path, |(_, path)| path).join(target),
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
