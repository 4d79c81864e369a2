//! The system calls of the engine, safe to call: each wrapper owns the rules of its call. Built on the raw calls
//! that PID 1 uses, as the program has no crate but the standard library. Runs in the engine's process.
#![allow(unsafe_code, reason = "the engine's room for it")]

pub use crate::numbers::*;
use crate::raw::{Outcome, call};
use std::ffi::CStr;

/// A descriptor. Closed explicitly: most live in the flow table.
pub type Fd = i32;

/// A system call that does not touch our memory.
fn plain<const N: usize>(n: usize, args: [usize; N]) -> Outcome {
    // SAFETY: only calls without pointers come here; the kernel checks the rest.
    unsafe { call(n, args) }
}

/// A system call that reads or writes memory given by pointers derived from live references.
fn pointed<const N: usize>(n: usize, args: [usize; N]) -> Outcome {
    // SAFETY: every caller in this file derives pointer and length from one reference that lives across the call,
    // mutable where the kernel writes.
    unsafe { call(n, args) }
}

/// Sets the name that ps shows.
pub fn name(name: &CStr) {
    let _ = pointed(nr::PRCTL, [15, name.as_ptr() as usize]);
}

/// A session of our own.
pub fn new_session() {
    let _ = plain(nr::SETSID, []);
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    let _ = plain(nr::EXIT_GROUP, [code as usize]);
    std::process::abort()
}

/// A process control operation with plain arguments.
pub fn prctl(option: usize, value: usize) -> Outcome {
    plain(nr::PRCTL, [option, value, 0, 0, 0])
}

/// read(2).
pub fn read(fd: Fd, buffer: &mut [u8]) -> Outcome {
    pointed(nr::READ, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len()])
}

/// write(2).
pub fn write(fd: Fd, bytes: &[u8]) -> Outcome {
    pointed(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len()])
}

/// pread(2) from the start.
pub fn read_start(fd: Fd, into: &mut [u8]) -> Outcome {
    pointed(nr::PREAD64, [fd as usize, into.as_mut_ptr() as usize, into.len(), 0])
}

/// pwrite(2) to the start.
pub fn write_start(fd: Fd, bytes: &[u8]) -> Outcome {
    pointed(nr::PWRITE64, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0])
}

/// close(2).
pub fn close(fd: Fd) {
    let _ = plain(nr::CLOSE, [fd as usize]);
}

/// Closes all descriptors from `first` to `last`.
pub fn close_range(first: u32, last: u32) {
    let _ = plain(nr::CLOSE_RANGE, [first as usize, last as usize, 0]);
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For writing.
    Write,
    /// For both.
    Both,
}

/// openat(2), close-on-exec.
pub fn open(path: &CStr, access: Access) -> Result<Fd, i32> {
    let flags = access as usize | 0o2_000_000;
    pointed(nr::OPENAT, [-100i32 as usize, path.as_ptr() as usize, flags]).map(|fd| fd as Fd)
}

/// unshare(2).
pub fn unshare(kinds: i32) -> Outcome {
    plain(nr::UNSHARE, [kinds as usize])
}

/// fork(2): this program has one thread, so the child may do anything. `None` in the child.
pub fn fork() -> Result<Option<i32>, i32> {
    let pid = plain(nr::FORK, [])?;
    Ok((pid != 0).then_some(pid as i32))
}

/// Waits for a child to end; its exit code.
pub fn wait(pid: i32) -> i32 {
    let mut status = 0i32;
    while pointed(nr::WAIT4, [pid as usize, (&raw mut status) as usize, 0, 0]) == Err(EINTR) {}
    if status & 0x7f == 0 { status >> 8 & 0xff } else { -1 }
}

/// pipe2(2), close-on-exec and nonblocking: the end to read from, the end to write to.
pub fn pipe() -> Result<(Fd, Fd), i32> {
    let mut pair = [0i32; 2];
    pointed(nr::PIPE2, [pair.as_mut_ptr() as usize, 0o2_000_000 | 0o4000])?;
    Ok((pair[0], pair[1]))
}

/// Lets a pipe hold so many bytes, if this user may have so many.
pub fn pipe_size(fd: Fd, bytes: usize) -> Outcome {
    plain(nr::FCNTL, [fd as usize, 1031, bytes])
}

/// splice(2) without blocking: moves up to `len` bytes, one of the two being a pipe.
pub fn splice(from: Fd, to: Fd, len: usize) -> Outcome {
    // SPLICE_F_MOVE | SPLICE_F_NONBLOCK; no offsets.
    plain(nr::SPLICE, [from as usize, 0, to as usize, 0, len, 3])
}

/// setns(2).
pub fn setns(fd: Fd, kinds: i32) -> Outcome {
    plain(nr::SETNS, [fd as usize, kinds as usize])
}

/// An ioctl that takes a structure.
pub fn ioctl(fd: Fd, request: usize, bytes: &mut [u8]) -> Outcome {
    pointed(nr::IOCTL, [fd as usize, request, bytes.as_mut_ptr() as usize])
}

/// An ioctl that takes a number.
pub fn ioctl_value(fd: Fd, request: usize, value: usize) -> Outcome {
    plain(nr::IOCTL, [fd as usize, request, value])
}

/// Makes a descriptor nonblocking.
pub fn nonblocking(fd: Fd) {
    let flags = plain(nr::FCNTL, [fd as usize, 3, 0]).unwrap_or(0);
    let _ = plain(nr::FCNTL, [fd as usize, 4, flags | 0o4000]);
}

/// socket(2), close-on-exec and nonblocking.
pub fn socket(domain: i32, kind: i32, proto: i32) -> Result<Fd, i32> {
    plain(nr::SOCKET, [domain as usize, (kind | 0o2_000_000 | 0o4000) as usize, proto as usize])
        .map(|fd| fd as Fd)
}

/// A connected pair of seqpacket sockets.
pub fn socketpair() -> Result<(Fd, Fd), i32> {
    let mut pair = [0i32; 2];
    pointed(nr::SOCKETPAIR, [1, 5 | 0o2_000_000, 0, pair.as_mut_ptr() as usize])?;
    Ok((pair[0], pair[1]))
}

/// connect(2) to an encoded address.
pub fn connect(fd: Fd, address: &[u8]) -> Outcome {
    pointed(nr::CONNECT, [fd as usize, address.as_ptr() as usize, address.len()])
}

/// bind(2) to an encoded address.
pub fn bind(fd: Fd, address: &[u8]) -> Outcome {
    pointed(nr::BIND, [fd as usize, address.as_ptr() as usize, address.len()])
}

/// accept4(2), close-on-exec and nonblocking; the peer's address goes to `address`.
pub fn accept(fd: Fd, address: &mut [u8]) -> Result<Fd, i32> {
    let mut len = address.len() as u32;
    let at = address.as_mut_ptr() as usize;
    pointed(nr::ACCEPT4, [fd as usize, at, (&raw mut len) as usize, 0o2_000_000 | 0o4000]).map(|fd| fd as Fd)
}

/// Ends sending.
pub fn shutdown(fd: Fd) {
    let _ = plain(nr::SHUTDOWN, [fd as usize, 1]);
}

/// Sends on a connected socket, or to an encoded address.
pub fn send(fd: Fd, data: &[u8], flags: i32, to: &[u8]) -> Outcome {
    let address = if to.is_empty() { 0 } else { to.as_ptr() as usize };
    pointed(nr::SENDTO, [fd as usize, data.as_ptr() as usize, data.len(), flags as usize, address, to.len()])
}

/// Receives.
pub fn recv(fd: Fd, into: &mut [u8], flags: i32) -> Outcome {
    pointed(nr::RECVFROM, [fd as usize, into.as_mut_ptr() as usize, into.len(), flags as usize, 0, 0])
}

/// Takes `n` bytes out of a stream's queue without looking (`MSG_TRUNC`, tcp(7)).
pub fn discard(fd: Fd, n: usize) -> Outcome {
    // MSG_TRUNC | MSG_DONTWAIT; for TCP the kernel does not touch the buffer, which is none.
    plain(nr::RECVFROM, [fd as usize, 0, n, 0x20 | 0x40, 0, 0])
}

/// `struct iovec`.
#[repr(C)]
struct Iovec {
    base: usize,
    len: usize,
}

/// `struct msghdr`.
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    iov: usize,
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: i32,
}

/// `struct mmsghdr`.
#[repr(C)]
struct Received {
    message: Message,
    len: u32,
}

/// sendmsg(2) with control data.
pub fn sendmsg(fd: Fd, data: &[u8], control: &[u8], flags: i32) -> Outcome {
    sendmsg_to(fd, data, control, flags, &[])
}

/// The same to an encoded address, if it is not empty.
pub fn sendmsg_to(fd: Fd, data: &[u8], control: &[u8], flags: i32, to: &[u8]) -> Outcome {
    let iov = Iovec { base: data.as_ptr() as usize, len: data.len() };
    let message = Message {
        name: if to.is_empty() { 0 } else { to.as_ptr() as usize },
        name_len: to.len() as u32,
        iov: (&raw const iov) as usize,
        iov_len: 1,
        control: if control.is_empty() { 0 } else { control.as_ptr() as usize },
        control_len: control.len(),
        flags: 0,
    };
    pointed(nr::SENDMSG, [fd as usize, (&raw const message) as usize, flags as usize])
}

/// recvmsg(2): bytes of data, bytes of control data, flags.
pub fn recvmsg(fd: Fd, into: &mut [u8], control: &mut [u8], flags: i32) -> Result<(usize, usize, i32), i32> {
    let iov = Iovec { base: into.as_mut_ptr() as usize, len: into.len() };
    let mut message = Message {
        name: 0,
        name_len: 0,
        iov: (&raw const iov) as usize,
        iov_len: 1,
        control: control.as_mut_ptr() as usize,
        control_len: control.len(),
        flags: 0,
    };
    let n = pointed(nr::RECVMSG, [fd as usize, (&raw mut message) as usize, flags as usize])?;
    Ok((n, message.control_len, message.flags))
}

/// recvmmsg(2): up to `N` datagrams, each to `room` bytes of `into`, without waiting. `each` is told of every one: which
/// it is, how many bytes it has, its sender's address and its control data.
pub fn recvmmsg<const N: usize>(
    fd: Fd,
    into: &mut [u8],
    room: usize,
    mut each: impl FnMut(usize, usize, &[u8], &[u8]),
) -> Outcome {
    let mut names = [[0u8; 28]; N];
    let mut controls = [[0u64; 8]; N];
    let mut parts: [Iovec; N] = std::array::from_fn(|_| Iovec { base: 0, len: 0 });
    for (part, place) in parts.iter_mut().zip(into.chunks_mut(room)) {
        *part = Iovec { base: place.as_mut_ptr() as usize, len: place.len() };
    }
    let mut messages: [Received; N] = std::array::from_fn(|at| Received {
        message: Message {
            name: names.get_mut(at).map_or(0, |name| name.as_mut_ptr() as usize),
            name_len: 28,
            iov: parts.get(at).map_or(0, |part| std::ptr::from_ref(part) as usize),
            iov_len: 1,
            control: controls.get_mut(at).map_or(0, |control| control.as_mut_ptr() as usize),
            control_len: 64,
            flags: 0,
        },
        len: 0,
    });
    let n = pointed(nr::RECVMMSG, [fd as usize, messages.as_mut_ptr() as usize, N, 0x40, 0])?;
    for (at, received) in messages.iter().take(n).enumerate() {
        let len = (received.len as usize).min(room);
        let mut control = [0u8; 64];
        for (bytes, word) in control.chunks_exact_mut(8).zip(controls.get(at).into_iter().flatten()) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let name = names.get(at).map_or(&[][..], |name| &name[..]);
        each(at, len, name, control.get(..received.message.control_len).unwrap_or(&[]));
    }
    Ok(n)
}

/// One control message: level, type, and the payload rounded up as the kernel wants it (cmsg(3)).
pub fn control(level: i32, kind: i32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + payload.len().next_multiple_of(8));
    out.extend_from_slice(&(16 + payload.len()).to_ne_bytes());
    out.extend_from_slice(&level.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// The control messages in what was received: level, type, payload.
pub fn controls(mut bytes: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(*bytes.first_chunk::<8>()?);
        let level = i32::from_ne_bytes(*bytes.get(8..)?.first_chunk::<4>()?);
        let kind = i32::from_ne_bytes(*bytes.get(12..)?.first_chunk::<4>()?);
        let payload = bytes.get(16..len)?;
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
        Some((level, kind, payload))
    })
}

/// setsockopt(2) with an int.
pub fn set_option(fd: Fd, level: i32, option: i32, value: i32) -> Outcome {
    let at = (&raw const value) as usize;
    pointed(nr::SETSOCKOPT, [fd as usize, level as usize, option as usize, at, 4])
}

/// setsockopt(2) with a structure.
pub fn set_option_bytes(fd: Fd, level: i32, option: i32, value: &[u8]) -> Outcome {
    pointed(
        nr::SETSOCKOPT,
        [fd as usize, level as usize, option as usize, value.as_ptr() as usize, value.len()],
    )
}

/// getsockopt(2) of an int.
pub fn option(fd: Fd, level: i32, option: i32) -> Result<i32, i32> {
    let (mut value, mut len) = (0i32, 4u32);
    let (value_at, len_at) = ((&raw mut value) as usize, (&raw mut len) as usize);
    pointed(nr::GETSOCKOPT, [fd as usize, level as usize, option as usize, value_at, len_at])?;
    Ok(value)
}

/// True if `fd` can be read, or has failed, right now.
pub fn readable(fd: Fd) -> bool {
    readable_within(fd, 0)
}

/// True if `fd` can be read, or has ended, within `patience` milliseconds.
pub fn readable_within(fd: Fd, patience: usize) -> bool {
    let events = 1i16; // POLLIN
    let mut entry = [0u8; 8];
    entry[..4].copy_from_slice(&fd.to_ne_bytes());
    entry[4..6].copy_from_slice(&events.to_ne_bytes());
    pointed(nr::POLL, [entry.as_mut_ptr() as usize, 1, patience]) == Ok(1)
}

/// `struct epoll_event` (packed on x86-64).
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub struct Event {
    /// `EPOLLIN` and so on.
    pub events: u32,
    /// What was given at registration.
    pub token: u64,
}

/// `epoll_create1`(2).
pub fn epoll() -> Result<Fd, i32> {
    plain(nr::EPOLL_CREATE1, [0o2_000_000]).map(|fd| fd as Fd)
}

/// Registers a descriptor.
pub fn epoll_add(epoll: Fd, fd: Fd, events: u32, token: u64) -> Outcome {
    let event = Event { events, token };
    pointed(nr::EPOLL_CTL, [epoll as usize, 1, fd as usize, (&raw const event) as usize])
}

/// Ends the registration of a descriptor.
pub fn epoll_remove(epoll: Fd, fd: Fd) {
    let _ = plain(nr::EPOLL_CTL, [epoll as usize, 2, fd as usize, 0]);
}

/// Waits for up to `timeout`, to the nanosecond (`epoll_pwait2`, Linux 5.11; elsewhere to the millisecond); for ever
/// if `None`.
pub fn epoll_wait_for(epoll: Fd, events: &mut [Event], timeout: Option<std::time::Duration>) -> Outcome {
    let Some(timeout) = timeout else { return epoll_wait(epoll, events, -1) };
    if timeout.is_zero() {
        return epoll_wait(epoll, events, 0);
    }
    let spec = [timeout.as_secs(), u64::from(timeout.subsec_nanos())]; // struct timespec
    let (at, len, spec_at) = (events.as_mut_ptr() as usize, events.len(), spec.as_ptr() as usize);
    match pointed(nr::EPOLL_PWAIT2, [epoll as usize, at, len, spec_at, 0, 0]) {
        // ENOSYS, EPERM: not there, or not for us.
        Err(38 | 1) => epoll_wait(epoll, events, timeout.as_micros().div_ceil(1000).min(60_000) as i32),
        other => other,
    }
}

/// Waits for up to `timeout` milliseconds; for ever if negative.
pub fn epoll_wait(epoll: Fd, events: &mut [Event], timeout: i32) -> Outcome {
    let at = events.as_mut_ptr() as usize;
    pointed(nr::EPOLL_WAIT, [epoll as usize, at, events.len(), timeout as usize])
}

/// Gives up every capability but those of the first 32 that have their bit in `kept`.
pub fn keep_capabilities(kept: u32) {
    let header = [0x2008_0522u32, 0]; // _LINUX_CAPABILITY_VERSION_3, ourselves
    let sets = [kept, kept, 0, 0, 0, 0]; // effective, permitted, inheritable; the same of the next 32
    let _ = pointed(nr::CAPSET, [header.as_ptr() as usize, sets.as_ptr() as usize]);
}

/// Installs a seccomp filter.
pub fn seccomp(program: &[u64]) -> Outcome {
    let header = [program.len() as u64, program.as_ptr() as u64]; // struct sock_fprog
    pointed(nr::SECCOMP, [1, 0, header.as_ptr() as usize])
}

/// Raises the number of descriptors that we may have as far as we may.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = [0u64; 2];
    let _ = pointed(nr::SETRLIMIT, [0, 7, 0, limit.as_mut_ptr() as usize]);
    let raised = [limit[1], limit[1]];
    match pointed(nr::SETRLIMIT, [0, 7, raised.as_ptr() as usize, 0]) {
        Ok(_) => limit[1],
        Err(_) => limit[0],
    }
}
