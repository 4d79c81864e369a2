//! The survivor of a container that leaves something on the host (`src/helper/reaper.rs`): started before that is
//! made, ended after it is gone. Runs in the calling process.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::launch::{self, Descriptors};
use super::plan::Plan;
use super::protocol as p;
use super::request::{self, plain};
use crate::cgroup;
use crate::error::{Error, Result};
use crate::sys::pidfd;

/// The running survivor.
#[derive(Debug)]
pub(super) struct Reaper {
    pidfd: OwnedFd,
    control: OwnedFd,
    creator: u32,
    /// It has directories with content to remove, which the owner cannot do itself.
    trees: bool,
}

impl Reaper {
    /// Starts it; `watch` is the process whose end it waits for.
    pub(super) fn start(plan: &cgroup::Plan, trees: &[&Path], watch: BorrowedFd<'_>) -> Result<Self> {
        let (ours, theirs) = request::pair()?;
        let mut message = request::bytes(&plain(0)).to_vec();
        for (file, text) in plan.release() {
            message.push(b'W');
            message.extend_from_slice(file.as_os_str().as_bytes());
            message.push(0);
            message.extend_from_slice(text.as_bytes());
            message.push(0);
        }
        for dir in plan.dirs() {
            message.push(b'D');
            message.extend_from_slice(dir.as_os_str().as_bytes());
            message.push(0);
        }
        for tree in trees {
            message.push(b'T');
            message.extend_from_slice(tree.as_os_str().as_bytes());
            message.push(0);
        }
        request::send(&ours, &message, &[watch.as_raw_fd()])
            .map_err(|e| Error::step("start the reaper", "sendmsg", e, None::<&str>))?;
        let fds = Descriptors { control: theirs.as_raw_fd(), ..Descriptors::NONE };
        let started = launch::start(&Plan::helper(c"r2d2-reaper"), fds, &pidfd::never)?;
        Ok(Self {
            pidfd: started.pidfd,
            control: ours,
            creator: std::process::id(),
            trees: !trees.is_empty(),
        })
    }
}

impl Reaper {
    /// Lets it into the user namespace of the process `pid`, whose ids it will have to act for.
    pub(super) fn join(&self, pid: i32) -> Result<()> {
        let path = format!("/proc/{pid}/ns/user");
        let step = "let the reaper into the user namespace";
        let namespace = File::open(&path).map_err(|e| Error::io(step, "open", &e, Some(path)))?;
        request::send(&self.control, request::bytes(&plain(p::OP_JOIN)), &[namespace.as_raw_fd()])
            .map_err(|e| Error::step(step, "sendmsg", e, None::<&str>))
    }

    /// From now on it waits for the end of another process. Returns its own pidfd.
    pub(super) fn hand_over(&self, watch: BorrowedFd<'_>) -> Result<OwnedFd> {
        let step = "hand the reaper over";
        request::send(&self.control, request::bytes(&plain(p::OP_KEEP)), &[watch.as_raw_fd()])
            .map_err(|e| Error::step(step, "sendmsg", e, None::<&str>))?;
        self.pidfd.try_clone().map_err(|e| Error::io(step, "dup", &e, None::<&str>))
    }

    /// Lets go of it without ending it: after [`Self::hand_over`].
    pub(super) fn release(mut self) {
        self.creator = 0;
    }
}

impl Drop for Reaper {
    /// Lets it do its work, if the owner has not done it, and waits for its end. In a fork of its creator nothing may happen.
    fn drop(&mut self) {
        if self.creator != std::process::id() {
            return;
        }
        let told = if self.trees {
            request::send(&self.control, request::bytes(&plain(p::OP_REMOVE)), &[])
        } else {
            pidfd::signal(self.pidfd.as_fd(), libc::SIGKILL)
        };
        if told.is_ok() {
            while let Ok(None) = pidfd::reap(self.pidfd.as_fd()) {
                let _ = pidfd::wait_readable(&self.pidfd, None, &pidfd::never);
            }
        }
    }
}
