//! Who carries out system calls on files: the calling process, and where its rights end, a fork of PID 1.
//!
//! The caller is the container's root in most cases: real root, or the ordinary user whose id root is mapped to. It
//! is not where a file belongs to another id of the container (`userns="subuid"`) or has a mode that only root
//! ignores. Then the same call goes as a message to `src/helper/files.rs` inside, whose rights are those of root
//! there: exactly those that `c.run(["cat", …])` would have.
//!
//! That process is started at the first need and ends with the agent, so that none idles in the container. Runs in
//! the calling process. What comes back is a descriptor, or an errno; descriptors are checked by whoever asked.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::process::owned_descriptors;
use super::protocol as p;
use super::request;
use crate::error::Errno;
use crate::sys::filecall::{Call, Encoded};
use crate::sys::pidfd::{self, Interrupt};
use crate::sys::{plain_bytes, plain_read};

/// Carries out calls, for the length of one operation.
pub struct Agent<'a> {
    control: Option<BorrowedFd<'a>>,
    session: RefCell<Option<OwnedFd>>,
    interrupt: Interrupt<'a>,
}

impl<'a> Agent<'a> {
    /// The calling process; with `control`, the socket to PID 1, also a fork of that.
    pub fn new(control: Option<BorrowedFd<'a>>, interrupt: Interrupt<'a>) -> Self {
        Self { control, session: RefCell::new(None), interrupt }
    }

    /// Asked between slices of long work.
    pub fn interrupted(&self) -> bool {
        (self.interrupt)()
    }

    /// Here, or where that is refused, inside.
    pub fn perform(&self, call: &Call<'_>) -> nix::Result<Option<OwnedFd>> {
        match call.perform() {
            // EOVERFLOW: our id does not exist in the file system's user namespace.
            Err(refused @ (Errno::EACCES | Errno::EPERM | Errno::EOVERFLOW)) if self.control.is_some() => {
                match self.perform_inside(call) {
                    Err(Errno::ECONNRESET) => Err(refused),
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }

    /// Inside, if there is an inside. `ECONNRESET`: nobody could be started there, or it was killed.
    pub fn perform_inside(&self, call: &Call<'_>) -> nix::Result<Option<OwnedFd>> {
        let Some(control) = self.control else { return call.perform() };
        let mut session = self.session.borrow_mut();
        let socket = match session.take() {
            Some(socket) => socket,
            None => start(control)?,
        };
        let outcome = exchange(&socket, &call.encode(umask()), self.interrupt)?;
        *session = Some(socket); // not after a failure: an answer may still be under way
        outcome
    }
}

fn start(control: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let (ours, theirs) = request::pair().map_err(|e| e.errno().unwrap_or(Errno::EMFILE))?;
    let message = request::plain(p::OP_FILES);
    request::send(control, request::bytes(&message), &[theirs.as_raw_fd()])
        .map_err(|e| if e == Errno::EPIPE { Errno::ECONNRESET } else { e })?;
    Ok(ours)
}

/// The outer failure is the session's, the inner one the call's.
fn exchange(
    socket: &OwnedFd,
    call: &Encoded<'_>,
    interrupt: Interrupt<'_>,
) -> nix::Result<nix::Result<Option<OwnedFd>>> {
    let head = p::FileCall {
        magic: p::MAGIC,
        number: call.number,
        args: call.args,
        pointers: call.pointers,
        blob: call.blob.len() as u32,
        makes_fd: call.makes_fd.into(),
        pad: 0,
    };
    let fds: Vec<i32> = call.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let (iov, rights) =
        ([IoSlice::new(plain_bytes(&head)), IoSlice::new(&call.blob)], [ControlMessage::ScmRights(&fds)]);
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &iov, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE) => return Err(Errno::ECONNRESET),
            sent => break sent.map(drop)?,
        }
    }
    if !pidfd::wait_readable(socket, None, interrupt)? {
        return Err(Errno::EINTR);
    }
    let mut buffer = [0u8; size_of::<p::Status>()];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let fd = message.cmsgs().map(owned_descriptors).unwrap_or_default().into_iter().next();
    let bytes = message.bytes;
    let status = plain_read::<p::Status>(&buffer[..bytes]).filter(|status| status.kind == p::ST_FILE);
    match status.ok_or(Errno::ECONNRESET)?.value {
        0 if call.makes_fd && fd.is_none() => Err(Errno::ECONNRESET),
        0 => Ok(Ok(fd)),
        errno => Ok(Err(Errno::from_raw(errno))),
    }
}

/// Ours; umask(2) can only be read by setting it, which is not for a library.
fn umask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
}
