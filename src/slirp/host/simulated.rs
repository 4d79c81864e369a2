//! A world in memory: sockets whose other ends are moved by a test (or a fuzzer), without privileges or time.
//!
//! What the real host would do by itself (a peer accepts, sends, closes, stops reading) is done here by calling
//! a method; what epoll would report comes out of [`Simulated::event`].

use super::{Datagram, Fault, Host, Inbox, Parcel, Peek, Ready, Sock};
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// How a connection attempt to an address goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It stands at once, as with a local peer.
    Now,
    /// Not yet: [`Simulated::finish`] decides.
    Later,
    /// It fails at once.
    Fails(ErrorKind),
}

/// One socket and what happened to it.
#[derive(Debug, Default)]
pub struct Socket {
    /// Whom it talks to.
    pub to: Option<SocketAddr>,
    /// Stream bytes that the engine sent.
    pub sent: Vec<u8>,
    /// Stream bytes that wait for the engine.
    pub queue: VecDeque<u8>,
    /// How often bytes were taken out of there.
    pub discards: usize,
    /// How many more bytes the peer takes; counts down.
    pub room: usize,
    /// The engine has ended its side.
    pub shut: bool,
    /// The engine has closed; `true` by reset.
    pub closed: Option<bool>,
    /// Datagrams that the engine sent, with their time to live.
    pub datagrams: Vec<(Vec<u8>, u8)>,
    /// By how many calls.
    pub sends: usize,
    /// The engine asked for keepalive.
    pub keepalive: bool,
    token: Option<u64>,
    ended: bool,
    failure: Option<ErrorKind>,
    inbox: VecDeque<(Vec<u8>, usize, Option<SocketAddr>)>,
    faults: VecDeque<Fault>,
    backlog: VecDeque<(Sock, SocketAddr)>,
}

/// The world.
#[derive(Debug, Default)]
pub struct Simulated {
    /// Every socket ever opened; the number is the descriptor.
    pub sockets: Vec<Socket>,
    /// How attempts go; [`Outcome::Now`] where nothing is said.
    pub outcomes: HashMap<SocketAddr, Outcome>,
    /// How many open sockets there may be; none if zero.
    pub limit: usize,
    events: VecDeque<(u64, Ready)>,
    closed: usize,
}

/// No end of room.
const ROOM: usize = usize::MAX / 2;

impl Simulated {
    /// Adds a socket as the kernel would.
    pub fn socket(&mut self, to: Option<SocketAddr>) -> Sock {
        self.sockets.push(Socket { to, room: ROOM, ..Socket::default() });
        (self.sockets.len() - 1) as Sock
    }

    /// The socket that was opened last.
    pub fn last(&mut self) -> &mut Socket {
        let last = self.sockets.len() - 1;
        &mut self.sockets[last]
    }

    /// The next thing that epoll would report.
    pub fn event(&mut self) -> Option<(u64, Ready)> {
        self.events.pop_front()
    }

    /// How many sockets are open.
    pub fn open_count(&self) -> usize {
        self.sockets.len() - self.closed
    }

    fn at(&mut self, sock: Sock) -> &mut Socket {
        &mut self.sockets[sock as usize]
    }

    fn report(&mut self, sock: Sock, ready: Ready) {
        let socket = self.at(sock);
        if let (Some(token), None) = (socket.token, socket.closed) {
            self.events.push_back((token, ready));
        }
    }

    /// Ends a connection attempt that was put off.
    pub fn finish(&mut self, sock: Sock, failure: Option<ErrorKind>) {
        self.at(sock).failure = failure;
        self.report(sock, Ready { write: true, hangup: failure.is_some(), ..Ready::default() });
    }

    /// The peer sends.
    pub fn feed(&mut self, sock: Sock, data: &[u8]) {
        self.at(sock).queue.extend(data);
        self.report(sock, Ready { read: true, ..Ready::default() });
    }

    /// The peer will send no more.
    pub fn end(&mut self, sock: Sock) {
        self.at(sock).ended = true;
        self.report(sock, Ready { read: true, hangup: true, ..Ready::default() });
    }

    /// The connection breaks.
    pub fn fail(&mut self, sock: Sock, failure: ErrorKind) {
        self.at(sock).failure = Some(failure);
        self.report(sock, Ready { read: true, write: true, hangup: true, ..Ready::default() });
    }

    /// The peer reads: room for `n` more bytes.
    pub fn make_room(&mut self, sock: Sock, n: usize) {
        self.at(sock).room = n;
        self.report(sock, Ready { write: true, ..Ready::default() });
    }

    /// A client connects to a listening socket; gives the connection's socket.
    pub fn dial(&mut self, listener: Sock, from: SocketAddr) -> Sock {
        let sock = self.socket(Some(from));
        self.at(listener).backlog.push_back((sock, from));
        self.report(listener, Ready { read: true, ..Ready::default() });
        sock
    }

    /// Datagrams of `segment` bytes arrive, from `from` on an unconnected socket.
    pub fn datagram(&mut self, sock: Sock, data: &[u8], segment: usize, from: Option<SocketAddr>) {
        self.at(sock).inbox.push_back((data.to_vec(), segment, from));
        self.report(sock, Ready { read: true, ..Ready::default() });
    }

    /// An ICMP error about what was sent arrives.
    pub fn icmp(&mut self, sock: Sock, fault: Fault) {
        self.at(sock).faults.push_back(fault);
        self.report(sock, Ready { error: true, ..Ready::default() });
    }

    fn open_one(&mut self, to: SocketAddr) -> Result<Sock, ErrorKind> {
        if self.limit != 0 && self.open_count() >= self.limit {
            return Err(ErrorKind::OutOfMemory);
        }
        Ok(self.socket(Some(to)))
    }
}

impl Host for Simulated {
    fn connect(&mut self, to: SocketAddr) -> Result<(Sock, bool), ErrorKind> {
        let outcome = self.outcomes.get(&to).copied().unwrap_or(Outcome::Now);
        match outcome {
            Outcome::Fails(kind) => Err(kind),
            Outcome::Now | Outcome::Later => Ok((self.open_one(to)?, outcome == Outcome::Now)),
        }
    }

    fn watch(&mut self, sock: Sock, token: u64) {
        self.at(sock).token = Some(token);
        let socket = self.at(sock);
        let read = !socket.queue.is_empty() || socket.ended || !socket.inbox.is_empty();
        let ready = Ready { read, hangup: socket.ended, ..Ready::default() };
        if read {
            self.report(sock, ready);
        }
    }

    fn connected(&mut self, sock: Sock) -> Result<(), ErrorKind> {
        self.at(sock).failure.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, sock: Sock, data: &[u8]) -> Result<usize, ErrorKind> {
        let socket = self.at(sock);
        if let Some(failure) = socket.failure {
            return Err(failure);
        }
        let n = data.len().min(socket.room);
        socket.room -= n;
        socket.sent.extend_from_slice(&data[..n]);
        Ok(n)
    }

    fn peek(&mut self, sock: Sock, offset: usize, into: &mut [u8]) -> Result<Peek, ErrorKind> {
        let socket = self.at(sock);
        let n = socket.queue.len().saturating_sub(offset).min(into.len());
        if n == 0 {
            return match (socket.failure, socket.ended) {
                (Some(failure), _) => Err(failure),
                (None, true) => Ok(Peek::End),
                (None, false) => Ok(Peek::Blocked),
            };
        }
        for (to, from) in into.iter_mut().zip(socket.queue.range(offset..)) {
            *to = *from;
        }
        Ok(Peek::Data(n))
    }

    fn discard(&mut self, sock: Sock, n: usize) -> Result<(), ErrorKind> {
        assert!(n <= self.at(sock).queue.len(), "the engine takes only what is there");
        self.at(sock).queue.drain(..n);
        self.at(sock).discards += 1;
        Ok(())
    }

    fn shutdown(&mut self, sock: Sock) {
        self.at(sock).shut = true;
    }

    fn keepalive(&mut self, sock: Sock) {
        self.at(sock).keepalive = true;
    }

    fn close(&mut self, sock: Sock, reset: bool) {
        assert_eq!(self.at(sock).closed, None, "closed once");
        self.at(sock).closed = Some(reset);
        self.closed += 1;
    }

    fn accept(&mut self, listener: Sock) -> Result<Option<(Sock, SocketAddr)>, ErrorKind> {
        Ok(self.at(listener).backlog.pop_front())
    }

    fn open(&mut self, kind: Datagram, to: SocketAddr) -> Result<Sock, ErrorKind> {
        let _ = kind;
        match self.outcomes.get(&to) {
            Some(Outcome::Fails(kind)) => Err(*kind),
            _ => self.open_one(to),
        }
    }

    fn adopt(&mut self, _: Sock, _: bool) {}

    fn send_datagrams(
        &mut self,
        sock: Sock,
        to: Option<SocketAddr>,
        data: &[u8],
        segment: usize,
        ttl: u8,
    ) -> Result<(), ErrorKind> {
        self.at(sock).sends += 1;
        if to.is_some() {
            self.at(sock).to = to;
        }
        let datagrams = &mut self.at(sock).datagrams;
        if data.is_empty() {
            datagrams.push((Vec::new(), ttl));
        }
        datagrams.extend(data.chunks(segment.max(1)).map(|d| (d.to_vec(), ttl)));
        Ok(())
    }

    fn recv_datagrams(&mut self, sock: Sock, into: &mut [u8]) -> Result<Option<(usize, usize)>, ErrorKind> {
        let Some((data, segment, _)) = self.at(sock).inbox.pop_front() else { return Ok(None) };
        into[..data.len()].copy_from_slice(&data);
        Ok(Some((data.len(), segment)))
    }

    fn receive(&mut self, sock: Sock, inbox: &mut Inbox) -> Result<(), ErrorKind> {
        inbox.bytes.clear();
        inbox.parcels.clear();
        while inbox.parcels.len() < Inbox::PARCELS {
            let Some((data, segment, from)) = self.at(sock).inbox.pop_front() else { break };
            inbox.parcels.push(Parcel { start: inbox.bytes.len(), len: data.len(), segment, from });
            inbox.bytes.extend_from_slice(&data);
        }
        Ok(())
    }

    fn fault(&mut self, sock: Sock) -> Option<Fault> {
        self.at(sock).faults.pop_front()
    }
}
