//! The host's side: what the engine needs of the world's sockets.
//!
//! The real one makes nonblocking kernel sockets and reports readiness by edge-triggered epoll; the one in
//! `simulated` plays the world in memory for tests. Errors are `io::ErrorKind`: the engine acts on what kind of
//! failure the guest must see, and on nothing else.

pub mod simulated;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

/// A socket of the host: its descriptor.
pub type Sock = i32;

/// What looking at a stream's queue gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek {
    /// So many bytes were copied.
    Data(usize),
    /// Nothing there now.
    Blocked,
    /// The other side will send no more, and everything before the offset has been looked at.
    End,
}

/// What has become possible on a socket since it was last reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the bits of an epoll event, by name")]
pub struct Ready {
    /// There is something to read, or a connection to accept.
    pub read: bool,
    /// There is room to write, or a connection attempt has ended.
    pub write: bool,
    /// The other side will send no more, or the socket has failed.
    pub hangup: bool,
    /// The error queue has something (datagram sockets), or the socket has failed.
    pub error: bool,
    /// The peer's urgent mark (tcp(7)) has not been passed.
    pub urgent: bool,
}

impl Ready {
    /// What was told, and what is told now.
    #[must_use]
    pub fn and(self, now: Self) -> Self {
        Self {
            read: self.read || now.read,
            write: self.write || now.write,
            hangup: self.hangup || now.hangup,
            error: self.error || now.error,
            urgent: self.urgent || now.urgent,
        }
    }
}

/// Which kind of datagram socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// UDP.
    Udp,
    /// ICMP echo, with the identifier that is wanted.
    Ping(u16),
}

/// An ICMP error about a datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// ICMP type, of the family of `offender`.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU in a "too big".
    pub info: u32,
    /// Who sent it.
    pub offender: IpAddr,
}

/// Datagrams that were received together.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Where they lie.
    pub bytes: Vec<u8>,
    /// Which they are, in their order.
    pub parcels: Vec<Parcel>,
}

impl Inbox {
    /// The most parcels of one call.
    pub const PARCELS: usize = 16;
    /// Room for each of them.
    pub const ROOM: usize = 1 << 16;

    /// The data of a parcel.
    pub fn data(&self, parcel: &Parcel) -> &[u8] {
        self.bytes.get(parcel.start..parcel.start + parcel.len).unwrap_or(&[])
    }
}

/// A datagram, or several that the kernel has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parcel {
    /// Where it begins in the inbox.
    pub start: usize,
    /// How many bytes there are.
    pub len: usize,
    /// The size of each datagram but the last, which may be shorter.
    pub segment: usize,
    /// Who sent it, if the socket is not connected.
    pub from: Option<SocketAddr>,
}

/// A pipe of the kernel: a place for bytes on their way from one stream to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipe {
    /// Where they come out.
    pub read: Sock,
    /// Where they go in.
    pub write: Sock,
}

/// The world's sockets. Nothing here blocks.
pub trait Host {
    /// Starts connecting; true if the connection already stands.
    fn connect(&mut self, to: SocketAddr) -> Result<(Sock, bool), ErrorKind>;

    /// Asks that readiness of `sock` be reported with `token`. What is ready already is reported too.
    fn watch(&mut self, sock: Sock, token: u64);

    /// How a connection attempt ended.
    fn connected(&mut self, sock: Sock) -> Result<(), ErrorKind>;

    /// Sends stream data; 0 when there is no room.
    fn send(&mut self, sock: Sock, data: &[u8]) -> Result<usize, ErrorKind>;

    /// Copies what lies `offset` bytes into the receive queue without taking it out.
    fn peek(&mut self, sock: Sock, offset: usize, into: &mut [u8]) -> Result<Peek, ErrorKind>;

    /// Takes `n` bytes out of the receive queue, unseen.
    fn discard(&mut self, sock: Sock, n: usize) -> Result<(), ErrorKind>;

    /// Ends our side of the stream.
    fn shutdown(&mut self, sock: Sock);

    /// Turns probing of a silent peer on.
    fn keepalive(&mut self, sock: Sock);

    /// Closes; with `reset`, the peer sees ECONNRESET.
    fn close(&mut self, sock: Sock, reset: bool);

    /// The next connection on a listening socket, and who made it.
    fn accept(&mut self, listener: Sock) -> Result<Option<(Sock, SocketAddr)>, ErrorKind>;

    /// Opens a datagram socket that talks to `to` only.
    fn open(&mut self, kind: Datagram, to: SocketAddr) -> Result<Sock, ErrorKind>;

    /// Takes over a listening socket of TCP, or a bound one of UDP, that somebody else has made.
    fn adopt(&mut self, sock: Sock, tcp: bool);

    /// Sends datagrams: `data` cut into pieces of `segment` bytes, the last may be shorter; to `to` on an unconnected
    /// socket. A time to live of zero is the one that the socket has.
    fn send_datagrams(
        &mut self,
        sock: Sock,
        to: Option<SocketAddr>,
        data: &[u8],
        segment: usize,
        ttl: u8,
    ) -> Result<(), ErrorKind>;

    /// Receives datagrams of one size: how many bytes, and the size of each but the last.
    fn recv_datagrams(&mut self, sock: Sock, into: &mut [u8]) -> Result<Option<(usize, usize)>, ErrorKind>;

    /// Receives all that is there, up to [`Inbox::PARCELS`]: less than those mean that there is no more now.
    fn receive(&mut self, sock: Sock, inbox: &mut Inbox) -> Result<(), ErrorKind>;

    /// The next ICMP error about what was sent.
    fn fault(&mut self, sock: Sock) -> Option<Fault>;

    /// Says that [`Self::connect_within`] will soon be asked for addresses like this one.
    fn expect_within(&mut self, _like: IpAddr) {}

    /// Starts connecting inside the guest's kernel, from an address that need not be one of it; true if the connection
    /// already stands. `Unsupported` where that cannot be.
    fn connect_within(&mut self, _from: SocketAddr, _to: SocketAddr) -> Result<(Sock, bool), ErrorKind> {
        Err(ErrorKind::Unsupported)
    }

    /// Takes stream data out.
    fn read(&mut self, _sock: Sock, _into: &mut [u8]) -> Result<Peek, ErrorKind> {
        Err(ErrorKind::Unsupported)
    }

    /// An empty pipe, if there is one to be had. It has room for 64 KiB at least.
    fn pipe(&mut self) -> Option<Pipe> {
        None
    }

    /// Takes a pipe back; one that is not empty is closed.
    fn put_back(&mut self, _pipe: Pipe, _empty: bool) {}

    /// Puts bytes into a pipe; how many it took.
    fn fill(&mut self, _pipe: Pipe, _data: &[u8]) -> usize {
        0
    }

    /// Moves up to `len` bytes from a stream into a pipe or out of one, unseen; `None` if it would block.
    fn splice(&mut self, _from: Sock, _to: Sock, _len: usize) -> Result<Option<usize>, ErrorKind> {
        Err(ErrorKind::Unsupported)
    }
}
