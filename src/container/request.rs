//! Requests to PID 1 and to `r2d2-enter` (`protocol`), built in the calling process.

use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};

use super::protocol as p;
use crate::error::{Errno, Error, Result};
use crate::sys::memfd;

/// A program to run, resolved: what PID 1 gets to see.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Paths to try in order, inside the container.
    pub candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `KEY=value` strings.
    pub envp: Vec<CString>,
    /// Working directory inside.
    pub cwd: Option<CString>,
    /// uid, gid and supplementary groups inside; none: stay root.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Capabilities to keep in the bounding set; none: those of PID 1.
    pub capabilities: Option<u64>,
    /// Standard input is a terminal that becomes the controlling one.
    pub tty: bool,
    /// The container ends with this program.
    pub main: bool,
    /// All that it starts can be killed with it.
    pub tree: bool,
    /// Report its start: a pidfd, and whether execve succeeded.
    pub confirm: bool,
    /// umask, if it is to be set.
    pub umask: Option<u32>,
    /// Descriptors to pass beyond the standard ones: ours, and the number that they get.
    pub pass: Vec<(i32, i32)>,
}

/// An encoded request.
pub(super) struct Encoded {
    message: Vec<u8>,
    memfd: Option<OwnedFd>,
}

/// A request without a program.
pub(super) fn plain(op: u32) -> p::Request {
    p::Request {
        magic: p::MAGIC,
        op,
        flags: 0,
        signal: 0,
        id: 0,
        capabilities: 0,
        namespaces: 0,
        blob: 0,
        candidates: 0,
        argv: 0,
        envp: 0,
        cwd: 0,
        umask: 0,
        uid: 0,
        gid: 0,
        ngroups: 0,
        npass: 0,
        groups: [0; p::GROUPS],
        pass: [0; p::PASS],
    }
}

impl Command {
    /// Encodes the request `id`; `namespaces` only for `r2d2-enter`.
    pub(super) fn encode(&self, id: u64, namespaces: u64) -> Result<Encoded> {
        let mut request = plain(p::OP_EXEC);
        request.id = id;
        request.namespaces = namespaces;
        request.capabilities = self.capabilities.unwrap_or(0);
        for (on, flag) in [
            (self.tty, p::F_TTY),
            (self.main, p::F_MAIN),
            (self.tree, p::F_TREE),
            (self.confirm, p::F_STARTED | p::F_CONFIRM),
            (self.user.is_some(), p::F_USER),
            (self.umask.is_some(), p::F_UMASK),
            (self.capabilities.is_some(), p::F_CAPS),
        ] {
            request.flags |= if on { flag } else { 0 };
        }
        request.umask = self.umask.unwrap_or(0);
        if let Some((uid, gid, groups)) = &self.user {
            (request.uid, request.gid) = (*uid, *gid);
            if groups.len() > p::GROUPS {
                return Err(Error::spec(format!(
                    "{} supplementary groups: at most {}",
                    groups.len(),
                    p::GROUPS
                )));
            }
            request.ngroups = groups.len() as u32;
            request.groups[..groups.len()].copy_from_slice(groups);
        }
        if self.pass.len() > p::PASS {
            return Err(Error::spec(format!("{} passed descriptors: at most {}", self.pass.len(), p::PASS)));
        }
        request.npass = self.pass.len() as u32;
        for (slot, (_, number)) in request.pass.iter_mut().zip(&self.pass) {
            *slot = *number as u32;
        }

        // The blob: three tables of offsets, then the strings. Offset 0 holds the first table, so 0 can mean «end».
        let tables = [&self.candidates, &self.argv, &self.envp];
        let words: usize = tables.iter().map(|table| table.len() + 1).sum::<usize>() + 1;
        let strings: usize = tables
            .iter()
            .flat_map(|table| table.iter())
            .chain(&self.cwd)
            .map(|s| s.as_bytes_with_nul().len())
            .sum();
        let mut blob = Vec::with_capacity(words * 8 + strings);
        blob.resize(words * 8, 0);
        let mut slot = 8;
        let mut at = [0u32; 3];
        for (table, at) in tables.iter().zip(&mut at) {
            *at = slot as u32;
            for string in *table {
                let offset = blob.len() as u64;
                blob[slot..slot + 8].copy_from_slice(&offset.to_ne_bytes());
                blob.extend_from_slice(string.as_bytes_with_nul());
                slot += 8;
            }
            slot += 8;
        }
        [request.candidates, request.argv, request.envp] = at;
        if let Some(cwd) = &self.cwd {
            request.cwd = blob.len() as u32;
            blob.extend_from_slice(cwd.as_bytes_with_nul());
        }
        request.blob =
            u32::try_from(blob.len()).map_err(|_| Error::spec("arguments and environment are over 4 GiB"))?;
        let memfd = if blob.len() > p::INLINE {
            request.flags |= p::F_MEMFD;
            let fail = |e| Error::step("pass arguments and environment", "memfd_create", e, None::<&str>);
            Some(memfd::sealed(c"r2d2-request", &blob, false).map_err(fail)?)
        } else {
            None
        };
        let mut message = bytes(&request).to_vec();
        if memfd.is_none() {
            message.extend_from_slice(&blob);
        }
        Ok(Encoded { message, memfd })
    }
}

impl Encoded {
    /// Sends it with its descriptors: stdio, status, confirm (if asked), target (if any).
    pub(super) fn send(
        &self,
        socket: impl AsFd,
        stdio: [i32; 3],
        status: &OwnedFd,
        confirm: Option<&OwnedFd>,
        target: Option<BorrowedFd<'_>>,
        pass: &[(i32, i32)],
    ) -> nix::Result<()> {
        let mut fds = Vec::with_capacity(8);
        fds.extend(stdio);
        fds.push(status.as_raw_fd());
        fds.extend(confirm.map(AsRawFd::as_raw_fd));
        fds.extend(self.memfd.as_ref().map(AsRawFd::as_raw_fd));
        fds.extend(target.map(|fd| fd.as_raw_fd()));
        fds.extend(pass.iter().map(|(fd, _)| *fd));
        send(socket, &self.message, &fds)
    }
}

/// A request's bytes.
pub(super) fn bytes(request: &p::Request) -> &[u8] {
    crate::sys::plain_bytes(request)
}

/// sendmsg(2) with descriptors.
pub(super) fn send(socket: impl AsFd, message: &[u8], fds: &[i32]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    loop {
        let iov = [IoSlice::new(message)];
        match sendmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// A pair of connected sockets that keep message boundaries.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Error::step("make a control socket", "socketpair", e, None::<&str>))
}
