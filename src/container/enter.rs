//! A program in another process's namespaces (`nsenter(1)`), by way of the embedded `r2d2-enter`: a process that
//! shared our memory must never join namespaces in which somebody else could read it. Runs in the calling process.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::launch::{self, Descriptors};
use super::plan::Plan;
use super::process::Process;
use super::request::{self, Command};
use crate::error::{Error, Result};
use crate::namespace::Namespaces;
use crate::sys::pidfd::Interrupt;

/// Runs `command` in `namespaces` of the process behind `target`.
pub fn enter(
    target: BorrowedFd<'_>,
    namespaces: Namespaces,
    command: &Command,
    stdio: [RawFd; 3],
    interrupt: Interrupt<'_>,
) -> Result<Process> {
    if namespaces.is_empty() {
        return Err(Error::spec("namespaces: none to enter"));
    }
    let fail = |syscall, e| Error::step("enter namespaces", syscall, e, None::<&str>);
    let (ours, theirs) = request::pair()?;
    let (status, reported) = request::pair()?;
    let (reading, writing) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| fail("pipe2", e))?;
    let confirm = command.confirm.then_some(&writing);
    command
        .encode(0, namespaces.flags())?
        .send(&ours, stdio, &reported, confirm, Some(target), &command.pass)
        .map_err(|e| fail("sendmsg", e))?;
    drop((reported, writing));
    let fds = Descriptors { control: theirs.as_raw_fd(), ..Descriptors::NONE };
    let started = launch::start(&Plan::helper(c"r2d2-enter"), fds, interrupt)?;
    Ok(Process::new(0, status, command.confirm.then_some(reading)).with_helper(started.pidfd))
}
