//! Snapshots above the host image: which of its parts they change, and what they add where nothing merges by itself
//! (`overlay::frozen`). Runs in the calling process.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;
use nix::unistd::{getegid, geteuid};

use super::{Builder, c};
use crate::container::step::{Op, Place};
use crate::error::Result;
use crate::overlay::frozen::{Frozen, Shown, content};
use crate::overlay::layout::{Kind, Part};

/// The largest file that is copied into the root directory itself; larger ones are bound, read-only.
const COPY_LIMIT: u64 = 16 << 20;
const WHY: &str = "as in the snapshot";

impl Builder<'_> {
    /// One part of the host as the snapshots have it; false where they leave it as it is. `covered` are the parts that
    /// are no longer there, or no longer the host's: nothing of the host is made below them.
    pub(super) fn frozen_part(
        &mut self,
        frozen: &Frozen,
        part: &Part,
        parts: &[Part],
        covered: &mut Vec<PathBuf>,
    ) -> Result<bool> {
        if covered.iter().any(|above| part.path.starts_with(above)) {
            return Ok(true);
        }
        let relative = part.path.strip_prefix("/").unwrap_or(&part.path);
        let split = || parts.iter().any(|other| other.path.parent() == Some(&part.path));
        match frozen.show(relative)? {
            Shown::Below => Ok(false),
            Shown::Directory { stat, below: true, .. } if split() => {
                let at = self.staged(Path::new("root").join(relative))?;
                self.directory(at.clone(), stat.st_mode & 0o7777, WHY);
                if let Some((uid, gid)) = owner(&stat) {
                    self.push_optional(Op::Owner { at: Place::Host(at), uid, gid }, WHY);
                }
                self.frozen_children(frozen, relative, parts)?;
                Ok(true)
            }
            Shown::Directory { mut layers, stat, below } => {
                covered.push(part.path.clone());
                let precreate = match &part.kind {
                    Kind::Overlay(precreate) if below => {
                        layers.push(part.path.clone());
                        precreate.as_slice()
                    }
                    _ => &[],
                };
                self.host_part(layers, relative, stat.st_mode & 0o7777, precreate, owner(&stat))?;
                Ok(true)
            }
            other => {
                covered.push(part.path.clone());
                self.frozen_leaf(relative, other)?;
                Ok(true)
            }
        }
    }

    /// What the snapshots have in a directory that is no overlay and the host has not.
    pub(super) fn frozen_children(
        &mut self,
        frozen: &Frozen,
        directory: &Path,
        parts: &[Part],
    ) -> Result<()> {
        let full = Path::new("/").join(directory);
        let known: BTreeSet<&OsStr> = parts
            .iter()
            .filter(|part| part.path.parent() == Some(&full))
            .filter_map(|part| part.path.file_name())
            .collect();
        for name in frozen.names(directory)? {
            let ours = directory == Path::new("") && ["proc", "sys", "dev"].iter().any(|own| name == *own);
            if ours || known.contains(&*name) {
                continue;
            }
            let path = directory.join(&name);
            match frozen.show(&path)? {
                Shown::Directory { layers, stat, .. } => {
                    self.host_part(layers, &path, stat.st_mode & 0o7777, &[], owner(&stat))?;
                }
                other => self.frozen_leaf(&path, other)?,
            }
        }
        Ok(())
    }

    fn frozen_leaf(&mut self, relative: &Path, shown: Shown) -> Result<()> {
        let at = self.staged(Path::new("root").join(relative))?;
        let path = relative.display();
        match shown {
            Shown::Symlink(target) => {
                self.push(Op::Symlink { at: Place::Host(at), target: c(target)? }, WHY);
            }
            Shown::File(source, stat) => {
                if let Some(text) = content(&source, COPY_LIMIT) {
                    let mode = stat.st_mode & 0o7777;
                    self.push(Op::File { at: Place::Host(at.clone()), mode, text }, WHY);
                    if let Some((uid, gid)) = owner(&stat) {
                        self.push_optional(Op::Owner { at: Place::Host(at), uid, gid }, WHY);
                    }
                } else {
                    self.bound(&source, at)?;
                    self.notes.push(format!("/{path}: read-only, since it is too large to copy"));
                }
            }
            Shown::Special => self.notes.push(format!("/{path}: left out: a socket, FIFO or device")),
            Shown::Below | Shown::Nothing | Shown::Directory { .. } => {}
        }
        Ok(())
    }
}

/// The owner, if it is not the caller: who that is inside too, or nobody.
fn owner(stat: &FileStat) -> Option<(u32, u32)> {
    let own = (geteuid().as_raw(), getegid().as_raw());
    Some((stat.st_uid, stat.st_gid)).filter(|owner| *owner != own)
}
