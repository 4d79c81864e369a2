//! The files of a container, or of a directory of the host taken as one: what `_core.Root` holds.
//!
//! The descriptor of the root directory keeps a file system alive that would otherwise vanish with the container, so
//! it is let go of when the container stops. Runs in the calling process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::agent::Agent;
use super::copy::{self, Failure, Options, Report};
use super::tree::Tree;
use crate::error::{Errno, Error, Result};
use crate::namespace::{IdMap, Range};
use crate::sys::path::open_root;
use crate::sys::pidfd::Interrupt;

/// The overflow id of user_namespaces(7): an owner who does not exist inside.
const NOBODY: u32 = 65534;

#[derive(Debug)]
struct Held {
    root: OwnedFd,
    control: Option<OwnedFd>,
}

/// A root directory, and who acts in it.
#[derive(Debug)]
pub struct Files {
    held: RwLock<Option<Arc<Held>>>,
    map: Option<IdMap>,
    creator: u32,
}

impl Files {
    pub(super) fn of_container(root: OwnedFd, control: OwnedFd, map: Option<IdMap>) -> Self {
        Self::new(Held { root, control: Some(control) }, map)
    }

    /// A directory of the host; its own symlinks are followed.
    pub fn of_directory(dir: &Path) -> Result<Self> {
        let root = open_root(dir).map_err(|e| Error::step("open a root directory", "open", e, Some(dir)))?;
        Ok(Self::new(Held { root, control: None }, None))
    }

    fn new(held: Held, map: Option<IdMap>) -> Self {
        Self { held: RwLock::new(Some(Arc::new(held))), map, creator: std::process::id() }
    }

    /// Lets go. Operations under way end undisturbed.
    pub fn close(&self) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Works with the tree. `EBADF` after [`Self::close`].
    pub fn with<T>(
        &self,
        interrupt: Interrupt<'_>,
        work: impl FnOnce(Tree<'_>) -> nix::Result<T>,
    ) -> nix::Result<T> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Errno::EBADF)?;
        // A fork must not speak on the control socket.
        let control = held.control.as_ref().filter(|_| self.creator == std::process::id());
        let agent = Agent::new(control.map(AsFd::as_fd), interrupt);
        work(Tree { dir: held.root.as_fd(), agent: &agent })
    }

    /// Copies from the host into it, or with `out` from it to the host.
    pub fn copy(
        &self,
        from: &Path,
        to: &Path,
        out: bool,
        options: Options,
        interrupt: Interrupt<'_>,
    ) -> std::result::Result<Report, Failure> {
        let failure =
            |errno| Failure { errno, at_target: !out, path: if out { from.into() } else { to.into() } };
        let host = open_root(Path::new("/")).map_err(failure)?;
        let agent = Agent::new(None, interrupt);
        let host = Tree { dir: host.as_fd(), agent: &agent };
        let done = self.with(interrupt, |inside| {
            Ok(if out {
                copy::copy(inside, from, host, to, options)
            } else {
                copy::copy(host, from, inside, to, options)
            })
        });
        done.map_err(failure)?
    }

    /// The id inside of a user outside.
    pub fn uid(&self, outside: u32) -> u32 {
        self.map.as_ref().map_or(outside, |map| inside(&map.uids, outside))
    }

    /// The id inside of a group outside.
    pub fn gid(&self, outside: u32) -> u32 {
        self.map.as_ref().map_or(outside, |map| inside(&map.gids, outside))
    }
}

fn inside(ranges: &[Range], id: u32) -> u32 {
    let range = ranges.iter().find(|r| id >= r.outside && id - r.outside < r.count);
    range.map_or(NOBODY, |r| r.inside + (id - r.outside))
}
