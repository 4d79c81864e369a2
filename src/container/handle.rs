//! A running container, seen from the process that started it.
//!
//! Two descriptors hold it: a pidfd of PID 1 and the control socket to it. Ending it means killing PID 1; the kernel
//! then ends every process of the PID namespace, and the mount namespace with all its mounts goes with the last of
//! them.
//!
//! A handle belongs to the process that made it. In a fork of that process (multiprocessing) it is dead: the copy must
//! neither speak on the control socket nor kill anything.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, UnixAddr, recvmsg};

use super::files::Files;
use super::launch::{self, Descriptors, Trace};
use super::plan::Plan;
use super::process::{Process, owned_descriptors};
use super::program;
use super::protocol as p;
use super::reaper::Reaper;
use super::request::{self, Command, plain};
use super::step::Op;
use crate::cgroup::{self, Cgroup, Stats};
use crate::error::{Errno, Error, Result};
use crate::namespace::IdMap;
use crate::sys::pidfd::{self, Interrupt};

/// A running container.
#[derive(Debug)]
pub struct Container {
    /// PID 1's pid on the host.
    pub pid: i32,
    /// What was done to start it.
    pub plan: Plan,
    /// How long each step took.
    pub trace: Trace,
    pub(super) pidfd: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) creator: u32,
    pub(super) next: AtomicU64,
    pub(super) ended: Mutex<Option<i32>>,
    pub(super) groups: Mutex<Groups>,
    /// pidfd of a child of the creator's in it, if there is one.
    pub(super) member: Mutex<Option<OwnedFd>>,
    /// It ends with this handle. Not so with a detached one.
    pub(super) owned: AtomicBool,
}

/// Its cgroups, and who removes them if we cannot. The order of the fields is the order of their end.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) cgroup: Option<Cgroup>,
    pub(super) reapers: Vec<Reaper>,
    /// Whether it is paused by SIGSTOP, for want of a freezer.
    pub(super) stopped: bool,
}

/// Asks for a program that starts with the container, by [`submit`], while the container is made.
pub type First<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<()>;

/// Starts a child of the caller's in its namespaces, by PID 1's pidfd, while the container is made: the child's pid.
pub type Member<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<i32>;

/// How a detached container is reached; -1 for what there is not.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'a> {
    /// A listening socket (`SOCK_SEQPACKET`).
    pub listen: RawFd,
    /// A file for the main program's wait status.
    pub exit: RawFd,
    /// A directory to remove with it.
    pub remove: Option<&'a Path>,
}

impl Container {
    /// Starts a container, and the first program in it if one is given.
    pub fn start(plan: Plan, first: Option<First<'_>>, interrupt: Interrupt<'_>) -> Result<Self> {
        Self::start_with(plan, first, None, interrupt)
    }

    /// The same, with a child of the caller's in it.
    pub fn start_with(
        plan: Plan,
        first: Option<First<'_>>,
        member: Option<Member<'_>>,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        Self::begin(plan, first, member, Reach { listen: -1, exit: -1, remove: None }, interrupt)
    }

    /// The same, with what a detached one needs.
    pub(super) fn begin(
        plan: Plan,
        mut first: Option<First<'_>>,
        mut member: Option<Member<'_>>,
        reach: Reach<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let (control, theirs) = request::pair()?;
        let limits = plan.steps.iter().find_map(|step| match &step.op {
            Op::Cgroup(plan) if !plan.places.is_empty() => Some(plan),
            _ => None,
        });
        let owner = program::owner()?;
        let trees: Vec<&Path> = plan.disk.iter().map(PathBuf::as_path).chain(reach.remove).collect();
        let reaper = if limits.is_some() || !trees.is_empty() {
            let none = cgroup::Plan::default();
            Some(Reaper::start(limits.unwrap_or(&none), &trees, owner.as_fd())?)
        } else {
            None
        };
        let Reach { listen, exit, .. } = reach;
        let fds = Descriptors {
            control: theirs.as_raw_fd(),
            listen,
            exit,
            owned: true,
            first: first.is_some(),
            ..Descriptors::NONE
        };
        let mut meanwhile = |pidfd: BorrowedFd<'_>| {
            // Its request lies in the socket before PID 1 exists: no round trip.
            first.as_mut().map_or(Ok(()), |first| first(control.as_fd()))?;
            member.as_mut().map_or(Ok(None), |member| launch::member(member(pidfd)?))
        };
        let started = launch::start_beside(&plan, fds, &mut meanwhile, interrupt)?;
        if let Some(reaper) = &reaper
            && plan.subordinate
        {
            reaper.join(started.pid)?;
        }
        Ok(Self {
            pid: started.pid,
            plan,
            trace: started.trace,
            pidfd: started.pidfd,
            control,
            creator: std::process::id(),
            next: AtomicU64::new(2),
            ended: Mutex::new(None),
            groups: Mutex::new(Groups {
                cgroup: started.cgroup,
                reapers: reaper.into_iter().collect(),
                stopped: false,
            }),
            member: Mutex::new(started.member),
            owned: AtomicBool::new(true),
        })
    }

    fn ended(&self) -> MutexGuard<'_, Option<i32>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows of a child of the caller's in its PID namespace, who has to be waited for before it ends. On failure that
    /// child is ended.
    pub fn admit(&self, pid: i32) -> Result<()> {
        *self.member() = launch::member(pid)?;
        Ok(())
    }

    /// Whether this process made it.
    pub fn is_ours(&self) -> bool {
        self.creator == std::process::id()
    }

    pub(super) fn usable(&self) -> Result<()> {
        if !self.is_ours() {
            return Err(Error::Closed {
                message: format!(
                    "the container belongs to process {}; this is a fork of it, process {}",
                    self.creator,
                    std::process::id()
                ),
            });
        }
        if self.ended().is_some() {
            return Err(Error::Closed { message: "the container has ended".into() });
        }
        Ok(())
    }

    /// Starts a program in it.
    pub fn exec(&self, command: &Command, stdio: [RawFd; 3]) -> Result<Process> {
        self.usable()?;
        submit(self.control.as_fd(), command, stdio, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Signals a program that [`Self::exec`] started; with `tree`, kills it and all that it started.
    pub fn signal(&self, process: &Process, signal: i32, tree: bool) -> Result<()> {
        self.signal_request(process.id, signal, tree)
    }

    /// The same for the program that was started by the request `id`.
    pub fn signal_request(&self, id: u64, signal: i32, tree: bool) -> Result<()> {
        self.usable()?;
        let mut request = plain(p::OP_SIGNAL);
        request.id = id;
        request.signal = signal;
        request.flags = if tree { p::F_TREE } else { 0 };
        match request::send(&self.control, request::bytes(&request), &[]) {
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(e) => Err(Error::step("signal a program in the container", "sendmsg", e, None::<&str>)),
        }
    }

    /// Descriptors of its root directory (`O_PATH`) and of the directory of its upper layers, if it has any.
    pub fn root(&self, interrupt: Interrupt<'_>) -> Result<(OwnedFd, Option<OwnedFd>)> {
        self.usable()?;
        let step = "open the container's root directory";
        let fail = |syscall, e| Error::step(step, syscall, e, None::<&str>);
        let gone = || Error::Closed { message: "the container has ended".into() };
        let (ours, theirs) = request::pair()?;
        request::send(&self.control, request::bytes(&plain(p::OP_ROOT)), &[theirs.as_raw_fd()])
            .map_err(|e| if e == Errno::EPIPE { gone() } else { fail("sendmsg", e) })?;
        drop(theirs);
        if !pidfd::wait_readable(&ours, None, interrupt).map_err(|e| fail("poll", e))? {
            return Err(Error::Closed { message: launch::INTERRUPTED.into() });
        }
        let mut buffer = [0u8; size_of::<p::Status>()];
        let mut rights = nix::cmsg_space!([i32; 4]);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(ours.as_raw_fd(), &mut iov, Some(&mut rights), flags)
            .map_err(|e| fail("recvmsg", e))?;
        let mut fds = message.cmsgs().map(owned_descriptors).unwrap_or_default().into_iter();
        fds.next().map(|root| (root, fds.next())).ok_or_else(gone)
    }

    /// Its files; owners are told by `map`.
    pub fn files(&self, map: Option<IdMap>, interrupt: Interrupt<'_>) -> Result<Files> {
        let (root, _) = self.root(interrupt)?;
        let control = self.control.try_clone();
        let control =
            control.map_err(|e| Error::io("open the container's root directory", "dup", &e, None::<&str>))?;
        Ok(Files::of_container(root, control, map))
    }

    /// PID 1's pidfd: readable when the container has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// PID 1's wait status, if the container has ended; waits for at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>, interrupt: Interrupt<'_>) -> Result<Option<i32>> {
        let fail = |syscall, e| Error::step("wait for the container's end", syscall, e, None::<&str>);
        if let Some(status) = *self.ended() {
            return Ok(Some(status));
        }
        if !pidfd::wait_readable(&self.pidfd, timeout, interrupt).map_err(|e| fail("poll", e))? {
            return Ok(None);
        }
        let mut ended = self.ended();
        if ended.is_none() {
            self.release();
            *ended = match pidfd::reap(self.pidfd.as_fd()) {
                Ok(status) => status,
                // In a fork it is not our child; or a waitpid(-1) of the caller's was first.
                Err(Errno::ECHILD) => Some(0),
                Err(e) => return Err(fail("waitid", e)),
            };
        }
        Ok(*ended)
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the cgroups of a container that has ended, then the one who would have done so.
    fn release(&self) {
        let mut groups = self.groups();
        if self.is_ours() {
            // A directory that cannot be removed is left to the reaper.
            if groups.cgroup.as_ref().is_none_or(|cgroup| cgroup.remove().is_ok()) {
                *groups = Groups::default();
            }
        }
    }

    /// What it uses. Without a cgroup every figure is absent.
    pub fn stats(&self) -> Result<Stats> {
        self.usable()?;
        Ok(self.groups().cgroup.as_ref().map(Cgroup::stats).unwrap_or_default())
    }

    /// The cgroup, where it has one: what binds which limit.
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.groups().cgroup.clone()
    }

    /// Stops every process in it: by the freezer of its cgroup, or of one made now; where none can be made, by
    /// SIGSTOP, which the processes' parents can see.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.usable()?;
        let mut groups = self.groups();
        if groups.cgroup.is_none()
            && let Ok(plan) = cgroup::plan_freezer(name)
        {
            let reaper = Reaper::start(&plan, &[], program::owner()?.as_fd())?;
            let made = plan.create()?;
            match made.adopt(self.pid) {
                Ok(_) => {
                    groups.cgroup = Some(made);
                    groups.reapers.push(reaper);
                }
                Err(error) => {
                    let _ = made.remove();
                    if error.errno() != Some(Errno::EACCES) {
                        return Err(error);
                    }
                }
            }
        }
        match groups.cgroup.as_ref().map(Cgroup::freeze) {
            Some(Ok(())) => return Ok(()),
            Some(Err(Error::Unsupported { .. })) | None => {}
            Some(Err(error)) => return Err(error),
        }
        groups.stopped = true;
        self.signal_all(libc::SIGSTOP)
    }

    /// Lets them go on. Fine if it is not paused.
    pub fn resume(&self) -> Result<()> {
        self.usable()?;
        let mut groups = self.groups();
        if std::mem::take(&mut groups.stopped) {
            return self.signal_all(libc::SIGCONT);
        }
        match groups.cgroup.as_ref().map(Cgroup::thaw) {
            None | Some(Err(Error::Unsupported { .. })) => Ok(()),
            Some(outcome) => outcome,
        }
    }

    /// A signal to every process but PID 1.
    fn signal_all(&self, signal: i32) -> Result<()> {
        let mut request = plain(p::OP_SIGNAL);
        request.signal = signal;
        request::send(&self.control, request::bytes(&request), &[])
            .map_err(|e| Error::step("signal the container", "sendmsg", e, None::<&str>))
    }

    /// Sends a signal to PID 1, which forwards it to the main program or to all.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.usable()?;
        match pidfd::signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(Error::step("signal the container", "pidfd_send_signal", e, None::<&str>)),
        }
    }

    /// Ends it and waits until nothing of it is left. Idempotent; does nothing in a fork.
    pub fn stop(&self) -> Result<()> {
        if !self.is_ours() || self.ended().is_some() {
            return Ok(());
        }
        self.kill(libc::SIGKILL)?;
        // A frozen process of version 1 dies only when thawed.
        let _ = self.groups().cgroup.as_ref().map(Cgroup::thaw);
        self.member().as_ref().map(launch::await_member);
        while self.wait(None, &pidfd::never)?.is_none() {}
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.owned.load(Ordering::Relaxed) {
            let _ = self.stop();
        }
    }
}

/// Sends the request for a program by the control socket. Number 1 is the one that starts with the container.
pub fn submit(control: BorrowedFd<'_>, command: &Command, stdio: [RawFd; 3], id: u64) -> Result<Process> {
    let encoded = command.encode(id, 0)?;
    let (ours, theirs) = request::pair()?;
    let confirm = if command.confirm {
        let made = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        Some(made.map_err(|e| Error::step("start a program", "pipe2", e, None::<&str>))?)
    } else {
        None
    };
    let (reading, writing) = confirm.map_or((None, None), |(r, w)| (Some(r), Some(w)));
    encoded.send(control, stdio, &theirs, writing.as_ref(), None, &command.pass).map_err(|e| {
        if matches!(e, Errno::EPIPE | Errno::ECONNRESET) {
            Error::Closed { message: "the container has ended".into() }
        } else {
            Error::step("start a program", "sendmsg", e, None::<&str>)
        }
    })?;
    Ok(Process::new(id, ours, reading))
}
