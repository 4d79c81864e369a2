//! Containers that outlive the process that started them, without a daemon: PID 1 itself listens on a socket. Runs in
//! the calling process.
//!
//! A start is an ordinary one: until [`Container::keep`] the container ends with its owner, so that whoever is killed
//! half-way leaves nothing. The caller writes down how to find it again and only then asks PID 1 to stay; the reaper of
//! its cgroups is turned from the owner to PID 1 at the same moment.
//!
//! Finding it again must never end in signalling a stranger who was given the same pid since: [`find`] opens a pidfd
//! first and then compares the start time and the PID namespace of what has that pid; if the process behind the pidfd
//! still lives afterwards, it is the one that was looked at.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{MsgFlags, UnixAddr, recvmsg};

use super::handle::{Container, Groups, Reach};
use super::launch::{self, Trace};
use super::plan::Plan;
use super::protocol as p;
use super::request::{self, plain};
use crate::error::{Errno, Error, Result};
use crate::namespace;
use crate::sys::pidfd::{self, Interrupt};
use crate::sys::plain_read;

/// What tells a process from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its pid on the host.
    pub pid: i32,
    /// When it started, in ticks since the boot (proc_pid_stat(5)).
    pub start_time: u64,
    /// The inode of its PID namespace; 0 where that may not be read.
    pub pid_namespace: u64,
}

impl Identity {
    /// Of the process that has this pid now, if there is one.
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name that may hold anything but ends with the last parenthesis; the start is the 22nd.
        let after = stat.iter().rposition(|b| *b == b')')?;
        let start = String::from_utf8_lossy(stat.get(after + 2..)?).split(' ').nth(19)?.parse().ok()?;
        let links = namespace::inspect(Some(pid)).unwrap_or_default();
        let inode = links.iter().find(|link| link.name == "pid").map_or(0, |link| link.inode);
        Some(Self { pid, start_time: start, pid_namespace: inode })
    }
}

/// A pidfd of exactly this process, if it still lives.
pub fn find(who: &Identity) -> Result<Option<OwnedFd>> {
    pidfd::sweep();
    let fail = |syscall, e| Error::step("find the container again", syscall, e, None::<&str>);
    if who.pid <= 0 {
        return Ok(None);
    }
    let pidfd = match pidfd::open(who.pid) {
        Ok(pidfd) => pidfd,
        // EINVAL: a thread has that number now.
        Err(Errno::ESRCH | Errno::EINVAL) => return Ok(None),
        Err(e) => return Err(fail("pidfd_open", e)),
    };
    let same = Identity::of(who.pid).is_some_and(|now| {
        let namespace = now.pid_namespace == who.pid_namespace || who.pid_namespace == 0;
        now.start_time == who.start_time && namespace
    });
    let ended =
        pidfd::wait_readable(&pidfd, Some(Duration::ZERO), &pidfd::never).map_err(|e| fail("poll", e))?;
    Ok((same && !ended).then_some(pidfd))
}

impl Container {
    /// Starts a container that can be kept: see [`Self::keep`].
    pub fn start_detached(plan: Plan, reach: Reach<'_>, interrupt: Interrupt<'_>) -> Result<Self> {
        pidfd::sweep();
        Self::begin(plan, None, None, reach, interrupt)
    }

    /// What to remember to [`find`] it again.
    pub fn identity(&self) -> Result<Identity> {
        self.usable()?;
        Identity::of(self.pid).ok_or_else(|| Error::Closed { message: "the container has ended".into() })
    }

    /// Lets it run when this process ends, and this handle with it.
    pub fn keep(&self, interrupt: Interrupt<'_>) -> Result<()> {
        self.usable()?;
        let fail = |syscall, e| Error::step("let the container stay", syscall, e, None::<&str>);
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE));
        let mut children = vec![self.pidfd.try_clone().map_err(|e| fail("dup", errno(e)))?];
        let mut groups = self.groups();
        for reaper in &groups.reapers {
            children.push(reaper.hand_over(self.pidfd.as_fd())?);
        }
        let (ours, theirs) = request::pair()?;
        let gone = || Error::Closed { message: "the container has ended".into() };
        request::send(&self.control, request::bytes(&plain(p::OP_KEEP)), &[theirs.as_raw_fd()])
            .map_err(|e| if e == Errno::EPIPE { gone() } else { fail("sendmsg", e) })?;
        drop(theirs);
        if !pidfd::wait_readable(&ours, None, interrupt).map_err(|e| fail("poll", e))? {
            return Err(Error::Closed { message: launch::INTERRUPTED.into() });
        }
        let mut buffer = [0u8; size_of::<p::Status>()];
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let len = recvmsg::<UnixAddr>(ours.as_raw_fd(), &mut iov, None, MsgFlags::MSG_DONTWAIT)
            .map_err(|e| fail("recvmsg", e))?
            .bytes;
        plain_read::<p::Status>(&buffer[..len])
            .filter(|status| status.kind == p::ST_KEPT)
            .ok_or_else(gone)?;
        self.owned.store(false, Ordering::Relaxed);
        for reaper in groups.reapers.drain(..) {
            reaper.release();
        }
        groups.cgroup = None;
        children.into_iter().for_each(pidfd::leave);
        Ok(())
    }

    /// A handle of a container that was kept: a pidfd from [`find`], and a socket connected to where it listens.
    pub fn attach(pid: i32, pidfd: BorrowedFd<'_>, control: BorrowedFd<'_>) -> Result<Self> {
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE));
        let own = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(|e| Error::step("attach to the container", "dup", errno(e), None::<&str>))
        };
        // Others may be attached too, and PID 1 knows programs by the number that whoever started them chose.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = (u64::from(std::process::id()) << 40 ^ now.as_nanos() as u64) | 1 << 63;
        Ok(Self {
            pid,
            plan: Plan { steps: Vec::new(), stage: None, disk: None, subordinate: false, notes: Vec::new() },
            trace: Trace::default(),
            pidfd: own(pidfd)?,
            control: own(control)?,
            creator: std::process::id(),
            next: AtomicU64::new(first),
            ended: Mutex::new(None),
            groups: Mutex::new(Groups::default()),
            member: Mutex::new(None),
            owned: AtomicBool::new(false),
        })
    }
}
