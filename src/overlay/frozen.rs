//! Layers above the host image: what snapshots of its containers show under a name, so that the parts of the
//! machine's own tree can be put together with them. Runs in the calling process; reads only.
//!
//! A snapshot is one tree of the whole root, marked as overlayfs marks an upper layer: whiteouts, and opaque
//! directories. Where a part of the host is an overlay, the kernel merges; above the parts (`/`, and whatever was split,
//! see `layout`) nothing merges by itself, and what is to be made there is decided by [`Frozen::show`].

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag};

use super::layers::{Entry, Marks, look};
use crate::error::{Error, Result};
use crate::sys::path::open_root;

/// Directories of snapshots, the topmost first.
#[derive(Debug)]
pub struct Frozen {
    layers: Vec<(PathBuf, OwnedFd)>,
}

/// What they show under a name.
#[derive(Debug)]
pub enum Shown {
    /// They say nothing: it is as below them.
    Below,
    /// It was removed.
    Nothing,
    /// A symbolic link with this text.
    Symlink(OsString),
    /// A regular file: its path on the host.
    File(PathBuf, FileStat),
    /// A directory in these layers; with `below`, merged with what is below them.
    Directory {
        /// Its paths on the host, the topmost first.
        layers: Vec<PathBuf>,
        /// The topmost one's.
        stat: FileStat,
        /// Not opaque.
        below: bool,
    },
    /// A socket, FIFO or device.
    Special,
}

/// What one layer says.
enum Said {
    Silent,
    Hidden,
    Entry(Entry, bool),
}

impl Frozen {
    /// Opens the layers. Errors: [`Error::Step`] where one cannot be opened.
    pub fn open(layers: &[PathBuf]) -> Result<Self> {
        let open = |layer: &PathBuf| {
            let fd =
                open_root(layer).map_err(|errno| Error::step("take a layer", "open", errno, Some(layer)))?;
            Ok((layer.clone(), fd))
        };
        Ok(Self { layers: layers.iter().map(open).collect::<Result<_>>()? })
    }

    /// What is at `path`, relative to the root.
    pub fn show(&self, path: &Path) -> Result<Shown> {
        let fail = |errno| Error::step("read a snapshot", "openat2", errno, Some(path));
        let (mut layers, mut seen, mut below) = (Vec::new(), None, true);
        for (root, fd) in &self.layers {
            match said(fd, path).map_err(fail)? {
                Said::Silent => continue,
                Said::Entry(entry, opaque) if entry.is_dir() => {
                    layers.push(root.join(path));
                    seen.get_or_insert(entry.stat);
                    below = !opaque;
                }
                Said::Entry(entry, _) if seen.is_none() => return leaf(&entry, root, path).map_err(fail),
                Said::Hidden | Said::Entry(..) => below = false,
            }
            if !below {
                break;
            }
        }
        Ok(match seen {
            Some(stat) => Shown::Directory { layers, stat, below },
            None if below => Shown::Below,
            None => Shown::Nothing,
        })
    }

    /// The names that any of the layers has in the directory `path`, whiteouts among them, sorted.
    pub fn names(&self, path: &Path) -> Result<BTreeSet<OsString>> {
        let fail = |errno| Error::step("read a snapshot", "getdents64", errno, Some(path));
        let mut names = BTreeSet::new();
        for (_, fd) in &self.layers {
            match said(fd, path).map_err(fail)? {
                Said::Silent => {}
                Said::Entry(entry, opaque) if entry.is_dir() => {
                    names.extend(entry.names().map_err(fail)?);
                    if opaque {
                        break;
                    }
                }
                Said::Hidden | Said::Entry(..) => break,
            }
        }
        Ok(names)
    }
}

/// One layer's word on `path`, by way of the directories above it: a removed or opaque one hides what is below.
fn said(root: &OwnedFd, path: &Path) -> nix::Result<Said> {
    let mut opaque = false;
    let mut way: Vec<&Path> = path.ancestors().collect();
    while let Some(at) = way.pop() {
        match look(root.as_fd(), at, Marks::Either)? {
            None => return Ok(if opaque { Said::Hidden } else { Said::Silent }),
            Some(entry) if entry.is_dir() => {
                opaque |= entry.is_opaque();
                if way.is_empty() {
                    return Ok(Said::Entry(entry, opaque));
                }
            }
            Some(entry) if way.is_empty() && !entry.is_whiteout() => return Ok(Said::Entry(entry, false)),
            Some(_) => return Ok(Said::Hidden),
        }
    }
    Ok(Said::Silent)
}

fn leaf(entry: &Entry, root: &Path, path: &Path) -> nix::Result<Shown> {
    Ok(match entry.kind() {
        SFlag::S_IFLNK => Shown::Symlink(readlinkat(&entry.fd, c"")?),
        SFlag::S_IFREG => Shown::File(root.join(path), entry.stat),
        _ => Shown::Special,
    })
}

/// The bytes of a file that [`Frozen::show`] named, if it can be read and is no larger than `most`.
pub fn content(path: &Path, most: u64) -> Option<Vec<u8>> {
    let meta = fs::symlink_metadata(path).ok().filter(|meta| meta.is_file() && meta.len() <= most)?;
    let bytes = fs::read(path).ok()?;
    (bytes.len() as u64 == meta.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("r2d2-frozen-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn the_topmost_word_counts() {
        let (top, bottom) = (layer("top"), layer("bottom"));
        fs::create_dir(top.join("both")).unwrap();
        fs::create_dir(bottom.join("both")).unwrap();
        fs::write(top.join("file"), "above").unwrap();
        fs::create_dir(bottom.join("file")).unwrap();
        std::os::unix::fs::symlink("/etc", bottom.join("link")).unwrap();
        let frozen = Frozen::open(&[top.clone(), bottom.clone()]).unwrap();
        let show = |path: &str| frozen.show(Path::new(path)).unwrap();
        assert!(matches!(show("both"), Shown::Directory { layers, below: true, .. } if layers.len() == 2));
        assert!(matches!(show("file"), Shown::File(path, _) if path == top.join("file")));
        assert!(matches!(show("link"), Shown::Symlink(text) if text == "/etc"));
        assert!(matches!(show("link/passwd"), Shown::Nothing), "no symbolic link is followed");
        assert!(matches!(show("other"), Shown::Below));
        assert_eq!(frozen.names(Path::new("")).unwrap().len(), 3);
        fs::remove_dir_all(top).unwrap();
        fs::remove_dir_all(bottom).unwrap();
    }
}
