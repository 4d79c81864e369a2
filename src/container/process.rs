//! A program that runs in a container, seen from the calling process.
//!
//! Its end arrives as a message on a socket of its own (`protocol::Status`), so that waiting needs no SIGCHLD, works
//! from any thread, and can be polled together with anything else. The end of file without a message means that
//! PID 1 is gone, and everything in the container with it. What arrives comes from inside a container: it is checked,
//! and it can at most lie about the container itself.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::protocol as p;
use crate::error::{Errno, Error, Result};
use crate::sys::pidfd::{self, Interrupt};
use crate::sys::plain_read;

/// How a program ended, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Wait status, wait(2).
    pub status: i32,
    /// Peak resident memory in KiB.
    pub maxrss_kib: u32,
    /// User time in microseconds.
    pub utime_us: u64,
    /// System time in microseconds.
    pub stime_us: u64,
}

impl Exit {
    /// As `subprocess.Popen.returncode`: the exit status, or the negative number of the signal.
    pub fn code(&self) -> i32 {
        let signal = self.status & 0x7f;
        if signal == 0 { self.status >> 8 & 0xff } else { -signal }
    }
}

/// Why a program could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// In what.
    pub stage: &'static str,
    /// The errno.
    pub errno: Errno,
}

/// What became of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and ended.
    Ended(Exit),
    /// It never ran.
    Failed(Failure),
    /// The container ended first.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    pid: i32,
    pidfd: Option<OwnedFd>,
    outcome: Option<Outcome>,
    /// `r2d2-enter`, to be reaped with the program. Like an abandoned Popen object's, nobody reaps it for whoever
    /// does not wait.
    helper: Option<OwnedFd>,
}

/// A program in a container.
#[derive(Debug)]
pub struct Process {
    status: OwnedFd,
    /// Until the start was confirmed.
    confirm: Mutex<Option<OwnedFd>>,
    /// Names it in requests.
    pub id: u64,
    state: Mutex<State>,
}

impl Process {
    pub(super) fn new(id: u64, status: OwnedFd, confirm: Option<OwnedFd>) -> Self {
        Self { status, confirm: confirm.into(), id, state: Mutex::default() }
    }

    /// A process that has to be reaped when this one has ended.
    pub(super) fn with_helper(self, pidfd: OwnedFd) -> Self {
        self.state().helper = Some(pidfd);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Readable when it has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// Its pid inside the container, once its start was confirmed.
    pub fn inner_pid(&self) -> Option<i32> {
        Some(self.state().pid).filter(|pid| *pid > 0)
    }

    /// Sends a signal by pidfd, if the start was confirmed: false if it has ended.
    pub fn signal(&self, signal: i32) -> Option<nix::Result<()>> {
        self.state().pidfd.as_ref().map(|fd| pidfd::signal(fd.as_fd(), signal))
    }

    /// A duplicate of its pidfd, if the start was confirmed.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.state().pidfd.as_ref().and_then(|fd| fd.try_clone().ok())
    }

    /// Waits until execve has succeeded or failed. Only for a command with `confirm`.
    pub fn wait_started(&self, interrupt: Interrupt<'_>) -> Result<Option<Outcome>> {
        let confirm = self.confirm.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(confirm) = &confirm else { return self.outcome() };
        let wait = |fd: BorrowedFd<'_>| {
            pidfd::wait_readable(fd, None, interrupt)
                .map_err(|e| Error::step("wait for the program to start", "poll", e, None::<&str>))
        };
        // Closed by execve, by failure, or by the end of the container.
        if !wait(confirm.as_fd())? {
            return Ok(None);
        }
        // Its pid comes from PID 1, which may tell it later than the program itself tells of its start.
        loop {
            let outcome = self.outcome()?;
            if outcome.is_some() || self.inner_pid().is_some() || !wait(self.status.as_fd())? {
                return Ok(outcome);
            }
        }
    }

    /// What became of it, if it has ended; waits for at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>, interrupt: Interrupt<'_>) -> Result<Option<Outcome>> {
        loop {
            if let outcome @ Some(_) = self.outcome()? {
                return Ok(outcome);
            }
            let ready = pidfd::wait_readable(&self.status, timeout, interrupt)
                .map_err(|e| Error::step("wait for the program", "poll", e, None::<&str>))?;
            if !ready {
                return Ok(self.state().outcome);
            }
        }
    }

    /// What became of it as far as it is known now; with it the helper's end.
    fn outcome(&self) -> Result<Option<Outcome>> {
        let mut state = self.state();
        while state.outcome.is_none() && self.receive(&mut state)? {}
        if state.outcome.is_some()
            && let Some(helper) = state.helper.take()
        {
            // It has said its last word: it ends now.
            while let Ok(None) = pidfd::reap(helper.as_fd()) {
                let _ = pidfd::wait_readable(&helper, None, &pidfd::never);
            }
        }
        Ok(state.outcome)
    }

    /// Takes one message that is there already; false if there is none.
    fn receive(&self, state: &mut State) -> Result<bool> {
        let mut buffer = [0u8; size_of::<p::Status>()];
        let mut rights = nix::cmsg_space!([i32; 4]);
        let (len, fds) = {
            let mut iov = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<UnixAddr>(self.status.as_raw_fd(), &mut iov, Some(&mut rights), flags) {
                Ok(message) => {
                    let fds = message.cmsgs().map(owned_descriptors).unwrap_or_default();
                    (message.bytes, fds)
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
                Err(Errno::ECONNRESET) => (0, Vec::new()),
                Err(e) => return Err(Error::step("wait for the program", "recvmsg", e, None::<&str>)),
            }
        };
        let Some(status) = plain_read::<p::Status>(&buffer[..len]) else {
            state.outcome = Some(Outcome::Lost);
            return Ok(true);
        };
        match status.kind {
            p::ST_STARTED => {
                state.pid = status.value;
                state.pidfd = fds.into_iter().next();
            }
            p::ST_EXITED => {
                // A failed start also ends: the failure came first and stays.
                state.outcome.get_or_insert(Outcome::Ended(Exit {
                    status: status.value & 0xffff,
                    maxrss_kib: status.maxrss_kib,
                    utime_us: status.utime_us,
                    stime_us: status.stime_us,
                }));
            }
            p::ST_FAILED => {
                let failure = Failure { stage: stage(status.stage), errno: Errno::from_raw(status.value) };
                state.outcome = Some(Outcome::Failed(failure));
            }
            _ => state.outcome = Some(Outcome::Lost),
        }
        if state.outcome.is_some() {
            state.pidfd = None; // one descriptor less for whoever keeps many that have ended
        }
        Ok(true)
    }
}

/// The descriptors of a control message, owned so that each is closed whatever happens.
pub(super) fn owned_descriptors(messages: nix::sys::socket::CmsgIterator<'_>) -> Vec<OwnedFd> {
    messages
        .flat_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds,
            _ => Vec::new(),
        })
        .map(crate::sys::adopt)
        .collect()
}

fn stage(number: u32) -> &'static str {
    match number {
        p::STAGE_FORK => "fork",
        p::STAGE_FDS => "dup",
        p::STAGE_TTY => "ioctl(TIOCSCTTY)",
        p::STAGE_USER => "setresuid",
        p::STAGE_CWD => "chdir",
        p::STAGE_CAPS => "prctl(PR_CAPBSET_DROP)",
        p::STAGE_EXEC => "execve",
        p::STAGE_SETNS => "setns",
        _ => "protocol",
    }
}
