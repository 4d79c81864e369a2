//! Letting go of the host's tree, which `pivot_root(".", ".")` has left mounted upon the new root (pivot_root(2)).
//!
//! umount2(2) takes the tree away at once and then waits for a grace period of RCU, which costs as much as all masks of
//! /proc together. So it is PID 1 that calls it, beside its first program, which gets ready meanwhile: that one looks up
//! no path and executes nothing before the tree is gone (`Left::wait`). `/..` shows it: in a root directory `..` stays
//! there, but goes up to what is mounted upon it.
//!
//! Until then PID 1 has CAP_SYS_ADMIN, whatever the container is given, and what it takes to give that up; its first
//! program gives both up for itself. Runs inside the container, in PID 1 and in its first child.

use core::num::NonZeroU64;

use crate::kernel;
use crate::protocol as p;
use crate::raw::{call, nr};

const CAP_SETPCAP: u8 = 8;
const CAP_SYS_ADMIN: u8 = 21;

/// What is still to be let go of. Its absence is all zeros: it lies in statics that cost no memory until they are used.
#[derive(Clone, Copy)]
pub struct Left {
    /// The mount id of the host's root.
    mount: NonZeroU64,
    /// What goes with it: CAP_SYS_ADMIN, and CAP_SETPCAP after it; 0 for neither.
    with_it: [u8; 2],
}

impl Left {
    /// As argv[1] says. A tree that cannot be told by its mount id is let go of at once.
    pub fn of(present: &[u8]) -> Option<Self> {
        if !present.contains(&p::LET_GO) {
            return None;
        }
        let said = |word: u8, capability: u8| if present.contains(&word) { capability } else { 0 };
        let with_it = [said(p::FOR_THAT_ALONE, CAP_SYS_ADMIN), said(p::TO_GIVE_UP, CAP_SETPCAP)];
        if let Some(mount) = NonZeroU64::new(kernel::mount_id(c"/..")) {
            return Some(Self { mount, with_it });
        }
        Self { mount: NonZeroU64::MAX, with_it }.let_go();
        None
    }

    fn capabilities(self) -> impl Iterator<Item = usize> {
        self.with_it.into_iter().filter(|one| *one != 0).map(usize::from)
    }

    /// In PID 1. Where it fails there must be no container.
    pub fn let_go(self) {
        const MNT_DETACH: usize = 2;
        // SAFETY: a static string; of what is mounted at / it is the topmost that is meant.
        let gone = unsafe { call(nr::UMOUNT2, [c"/".as_ptr() as usize, MNT_DETACH]) };
        if gone.is_err() || self.capabilities().any(|one| kernel::give_up(one).is_err()) {
            kernel::exit(1);
        }
    }

    /// In the first program's process, on its way to execve(2): until PID 1 has done so.
    pub fn wait(self) {
        kernel::default_signals(); // PID 1 does so for all others, later
        if self.capabilities().any(|one| kernel::bound_without(one).is_err()) {
            kernel::exit(1);
        }
        while kernel::mount_id(c"/..") == self.mount.get() {
            // SAFETY: no pointer.
            let _ = unsafe { call(nr::SCHED_YIELD, []) };
        }
    }
}
