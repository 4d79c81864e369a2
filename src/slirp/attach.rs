//! The owner's handle of a running engine: starts its process, asks it, ends it. What keeps a container in the kernel's
//! own network (`src/bridge`) is the same program, and has the same handle.
//!
//! The engine's program is embedded in the extension and executed from a sealed memfd. Its standard input is one end
//! of a seqpacket pair, whose other end the [`Network`] holds; every request is one message with descriptors beside
//! it, every reply another (`src/helper/engine/control.rs` has the list). Closing our end ends the engine, and with
//! it the interface. So does our death, even if a fork keeps the socket open: the engine holds a pidfd of us. A fork
//! has no part in the network: its copy of the handle neither asks the engine, whose answers its owner would miss, nor
//! ends it. Runs in the calling process.
//!
//! Closing a tap takes 13 to 20 ms, a veth pair some 30, and all of it is the kernel's: the interface is gone from the
//! namespace within one millisecond, then whoever closed the descriptor waits until no other processor can still hold
//! it (`rcu_barrier` in `netdev_run_todo`). Deleting it by rtnetlink(7) or moving it to another namespace waits for the
//! same. We wait along, for only the engine's end says that the interface and the ports are gone, and how it ended. A
//! second process for each network, to close the descriptor in its own time, would cost more than it saves.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::error::{Errno, Error, Result};
use crate::sys::{self, memfd, pidfd};

static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/r2d2-engine"));

/// The longest reply.
const MAX: usize = 64 << 10;
/// How long an answer may take, in milliseconds: the engine never blocks.
const PATIENCE: u16 = 10_000;
/// How long its end may take, in milliseconds: a busy kernel takes its time to remove an interface.
const GOODBYE: u16 = 5_000;
/// The system calls that an engine's failure can name; the error type wants names that live for ever.
const CALLS: &[&str] = &[
    "setns",
    "fork",
    "socketpair",
    "recvmsg",
    "send",
    "exit",
    "unshare",
    "socket",
    "setsockopt",
    "bind",
    "netlink",
    "epoll",
    "parse",
    "open",
    "unforward",
    "events",
    "capture",
    "uncapture",
    "write",
    "seccomp",
    "ioctl TUNSETIFF",
    "prctl PR_SET_DUMPABLE",
    "prctl PR_SET_NO_NEW_PRIVS",
];

/// A running engine.
#[derive(Debug)]
pub struct Network {
    process: Mutex<Option<(Child, OwnedFd)>>,
    outcome: OnceLock<i32>,
    /// The process that made it.
    owner: u32,
    pid: i32,
    pidfd: OwnedFd,
    device: String,
}

/// A failure of starting or asking the engine.
fn failed(step: &str, syscall: &'static str, errno: Errno) -> Error {
    Error::step(step, syscall, errno, None::<&str>)
}

/// The program's descriptor; made once per process.
fn program() -> Result<BorrowedFd<'static>> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(fd) = PROGRAM.get() {
        return Ok(fd.as_fd());
    }
    let fd = memfd::sealed(c"r2d2-engine", BYTES, true)
        .map_err(|e| failed("prepare the network engine", "memfd_create", e))?;
    Ok(PROGRAM.get_or_init(|| fd).as_fd())
}

impl Network {
    /// Starts an engine, or takes the one that was started. `description` is the network's, line by line;
    /// `namespaces` a pidfd of a process in the namespace, or descriptors of a user and a network namespace. Returns
    /// when the interface stands.
    pub fn attach(spare: Option<Spare>, description: &str, namespaces: &[BorrowedFd<'_>]) -> Result<Self> {
        let spare = spare.map_or_else(Spare::start, Ok)?;
        let (reply, _) = spare.tell(description, namespaces)?;
        let Spare { control, mut engine, pidfd, .. } = spare;
        let pid = engine.child.as_ref().map_or(0, |child| child.id() as i32);
        let process = Mutex::new(engine.child.take().map(|child| (child, control)));
        Ok(Self { device: reply, outcome: OnceLock::new(), process, owner: engine.owner, pid, pidfd })
    }

    /// Makes one interface for a network of containers, in a process that ends with that: what it is, and its
    /// descriptor.
    pub fn interface(description: &str, namespaces: &[BorrowedFd<'_>]) -> Result<(String, OwnedFd)> {
        let (reply, fds) = Spare::start()?.tell(description, namespaces)?;
        let none = || failed("start the network engine", "recvmsg", Errno::EBADMSG);
        Ok((reply, fds.into_iter().next().ok_or_else(none)?))
    }

    fn process(&self) -> MutexGuard<'_, Option<(Child, OwnedFd)>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and gives what follows `ok` in the reply.
    pub fn request(&self, text: &str, fds: &[BorrowedFd<'_>]) -> Result<String> {
        if !self.is_ours() {
            let (owner, own) = (self.owner, std::process::id());
            let message =
                format!("the network belongs to process {owner}; this is a fork of it, process {own}");
            return Err(Error::Closed { message });
        }
        let process = self.process();
        let Some((_, control)) = process.as_ref() else {
            return Err(Error::Closed { message: "this network is closed".into() });
        };
        exchange(control, text, fds).map(|(reply, _)| reply)
    }

    /// Whether this process made it; false in a fork.
    fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// The engine's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `tap`, or `packet` for a veth pair.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// A descriptor that becomes readable when the engine has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// True while the engine runs.
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        self.process().is_some() && poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Ends the engine and waits until it, and so the interface, is gone. A second call does nothing, nor does one in
    /// a fork.
    pub fn close(&self) {
        if !self.is_ours() {
            return;
        }
        let Some((child, control)) = self.process().take() else { return };
        drop(control);
        if let Some(status) = (Starting { child: Some(child), owner: self.owner }).end() {
            let _ = self.outcome.set(code(status));
        }
    }

    /// Lets the engine live on when this process ends, as long as the namespace's process does; this handle is closed.
    pub fn leave(&self) -> Result<()> {
        self.request("keep", &[])?;
        let pidfd = self.pidfd.try_clone();
        let pidfd = pidfd.map_err(|e| Error::io("leave the network engine", "dup", &e, None::<&str>))?;
        if self.process().take().is_some() {
            pidfd::leave(pidfd);
        }
        Ok(())
    }

    /// How the engine ended, as `subprocess` tells it: an exit code, or a signal's number negated. `None` while it runs.
    pub fn outcome(&self) -> Option<i32> {
        if self.outcome.get().is_none() {
            if let Some((child, _)) = self.process().as_mut() {
                if let Ok(Some(status)) = child.try_wait() {
                    let _ = self.outcome.set(code(status));
                }
            }
        }
        self.outcome.get().copied()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.close();
    }
}

/// A child that is waited for whatever happens, but by a fork; killed if it does not end by itself.
#[derive(Debug)]
struct Starting {
    child: Option<Child>,
    owner: u32,
}

/// An exit code, or a signal's number negated.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.end();
    }
}

impl Starting {
    /// Waits for the end; how it was.
    fn end(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        if self.owner != std::process::id() {
            return None;
        }
        if let Ok(pidfd) = pidfd::open(child.id() as i32) {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(GOODBYE)) == Ok(0) {
                let _ = child.kill();
            }
        }
        child.wait().ok()
    }
}

/// A process of the engine's program that takes its messages from this socket.
pub(super) fn spawn(control: OwnedFd) -> Result<Child> {
    Command::new(format!("/proc/self/fd/{}", program()?.as_raw_fd()))
        .arg0("r2d2-engine")
        .env_clear()
        .stdin(control)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C at the caller's terminal is for the caller to act on, not for the engine to die of.
        .process_group(0)
        .spawn()
        .map_err(|e| Error::io("start the network engine", "execve", &e, None::<&str>))
}

/// A process of the engine's program that waits for its first message; dropping it ends it.
///
/// Loading the program takes as long as the rest of an attachment: it can be done while the namespace to serve is
/// still being made.
#[derive(Debug)]
pub struct Spare {
    // Before `engine`, whose end comes with the end of this: fields are dropped in their order.
    control: OwnedFd,
    engine: Starting,
    owner: OwnedFd,
    pidfd: OwnedFd,
}

impl Spare {
    /// Starts the process.
    pub fn start() -> Result<Self> {
        let start = |syscall, errno| failed("start the network engine", syscall, errno);
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|e| start("socketpair", e))?;
        let owner = pidfd::open(std::process::id() as i32).map_err(|e| start("pidfd_open", e))?;
        let child = spawn(theirs)?;
        let pid = child.id() as i32;
        let engine = Starting { child: Some(child), owner: std::process::id() };
        let pidfd = pidfd::open(pid).map_err(|e| start("pidfd_open", e))?;
        Ok(Self { control, engine, owner, pidfd })
    }

    /// Gives it its first message: the reply, and descriptors beside it.
    fn tell(&self, description: &str, namespaces: &[BorrowedFd<'_>]) -> Result<(String, Vec<OwnedFd>)> {
        let mut fds = namespaces.to_vec();
        fds.push(self.owner.as_fd());
        exchange(&self.control, &format!("{description}\nowner\n"), &fds)
    }
}

/// One request, one reply.
fn exchange(control: &OwnedFd, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(String, Vec<OwnedFd>)> {
    let lost = |syscall, errno| failed("ask the network engine", syscall, errno);
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|e| lost("sendmsg", e))?;
    let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ready, PollTimeout::from(PATIENCE)) {
            Ok(0) => return Err(lost("poll", Errno::ETIMEDOUT)),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(lost("poll", errno)),
        }
    }
    let mut bytes = vec![0; MAX];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), flags)
        .map_err(|e| lost("recvmsg", e))?;
    let mut received = Vec::new();
    for part in message.cmsgs().map_err(|e| lost("recvmsg", e))? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            received.extend(raw.into_iter().map(sys::adopt));
        }
    }
    let n = message.bytes;
    let reply = String::from_utf8_lossy(bytes.get(..n).unwrap_or(&[])).into_owned();
    if let Some(rest) = reply.strip_prefix("ok") {
        return Ok((rest.trim_start().to_owned(), received));
    }
    Err(failure(&reply).unwrap_or_else(|| lost("recvmsg", Errno::EPIPE)))
}

/// The error that a reply tells of.
pub(super) fn failure(reply: &str) -> Option<Error> {
    let mut words = reply.strip_prefix("error\t")?.split('\t');
    let (step, syscall, errno) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    let errno = Errno::from_raw(errno);
    if syscall == "open /dev/net/tun" {
        return Some(Error::step(step, "open", errno, Some("/dev/net/tun")));
    }
    let syscall = CALLS.iter().find(|known| **known == syscall).copied().unwrap_or("engine");
    Some(Error::step(step, syscall, errno, None::<&str>))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_description_is_refused_and_no_process_is_left() {
        let own = pidfd::open(std::process::id() as i32).unwrap();
        let error = Network::attach(None, "mtu many", &[own.as_fd()]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL));
        assert!(error.to_string().contains("mtu many"), "{error}");
    }

    #[test]
    fn spare_engine_ends_with_its_handle() {
        let spare = Spare::start().unwrap();
        let pidfd = spare.pidfd.try_clone().unwrap();
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0), "it waits");
        let began = std::time::Instant::now();
        drop(spare);
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1), "it is gone, and waited for");
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "by itself, not by a signal");
    }

    #[test]
    fn failures_keep_their_facts() {
        let error = failure("error\tmake the tap\topen /dev/net/tun\t13").unwrap();
        assert_eq!(error.to_string(), "make the tap: open(/dev/net/tun): EACCES: Permission denied");
        assert!(failure("nonsense").is_none());
    }
}
