//! The world's sockets, real: nonblocking kernel sockets under one edge-triggered epoll.
//!
//! Every socket is registered once, for everything; there are no further `epoll_ctl` calls. Looking at a stream's
//! queue uses `SO_PEEK_OFF` (TCP: Linux 6.9), so that looking on costs one call and sending again one more; on
//! older kernels the bytes before the offset are copied to a place where nobody looks.

use crate::address::{self, INET};
use crate::slirp::host::{Datagram, Fault, Host, Inbox, Parcel, Peek, Pipe, Ready, Sock};
use crate::sys::{
    self, EAGAIN, EALREADY, EINPROGRESS, EINTR, EPOLLIN, MSG_DONTWAIT, MSG_NOSIGNAL, SO_RCVBUF, SOL_IP,
    SOL_IPV6, SOL_SOCKET, SOL_TCP, TCP_NODELAY,
};
use crate::within::Within;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

const EPOLLPRI: u32 = 0x2;
const EPOLLOUT: u32 = 0x4;
const EPOLLERR: u32 = 0x8;
const EPOLLHUP: u32 = 0x10;
const EPOLLRDHUP: u32 = 0x2000;
const EPOLLET: u32 = 1 << 31;

const SOL_UDP: i32 = 17;
const SO_ERROR: i32 = 4;
const SO_KEEPALIVE: i32 = 9;
const SO_LINGER: i32 = 13;
const SO_PEEK_OFF: i32 = 42;
const IP_TTL: i32 = 2;
const IP_RECVERR: i32 = 11;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_RECVERR: i32 = 25;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;
const AF_UNIX: u16 = 1;
const MSG_PEEK: i32 = 0x2;
const MSG_ERRQUEUE: i32 = 0x2000;

/// Where a stream's next look starts if it does not say otherwise; a socket that was never asked has none.
const UNSET: i32 = -1;

/// What is known of a descriptor.
#[derive(Clone, Copy)]
struct Known {
    /// The kernel's peek offset: at most what may be under way, which is far below 2 GiB.
    peek: i32,
    /// The time to live that was set.
    ttl: u8,
    v6: bool,
    /// A client of a Unix socket.
    unix: bool,
}

/// The sockets.
pub struct Sockets {
    epoll: sys::Fd,
    known: Vec<Known>,
    /// `SO_PEEK_OFF` works on TCP.
    offsets: bool,
    /// Where to bind what we open, by family.
    source: [Option<IpAddr>; 2],
    /// Where bytes go that were seen before, on older kernels.
    waste: Vec<u8>,
    /// Where sockets of the guest's kernel come from, if there are any.
    pub within: Option<Within>,
}

/// What kind of failure an errno is, as far as the engine must know.
fn kind(errno: i32) -> ErrorKind {
    match errno {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM: room may be made.
        24 | 23 | 105 | 12 => ErrorKind::OutOfMemory,
        // EPERM: a firewall's.
        1 => ErrorKind::PermissionDenied,
        errno => std::io::Error::from_raw_os_error(errno).kind(),
    }
}

impl Sockets {
    /// Sockets that report to `epoll`, bound to the address of their family in `source` if there is one.
    pub fn new(epoll: sys::Fd, source: &[IpAddr]) -> Self {
        let mut offsets = false;
        if let Ok(probe) = sys::socket(INET, 1, 0) {
            offsets = sys::set_option(probe, SOL_SOCKET, SO_PEEK_OFF, 0).is_ok();
            sys::close(probe);
        }
        let of = |v6| source.iter().copied().find(|address| address.is_ipv6() == v6);
        Self {
            epoll,
            known: Vec::new(),
            offsets,
            source: [of(false), of(true)],
            waste: Vec::new(),
            within: None,
        }
    }

    fn fresh(&mut self, sock: Sock, v6: bool) {
        let at = sock as usize;
        let new = Known { peek: UNSET, ttl: 64, v6, unix: false };
        if self.known.len() <= at {
            self.known.resize(at + 1, new);
        }
        if let Some(known) = self.known.get_mut(at) {
            *known = new;
        }
    }

    /// Looks with a copy of everything before the offset, for kernels without `SO_PEEK_OFF` on TCP.
    fn peek_wasting(&mut self, sock: Sock, offset: usize, into: &mut [u8]) -> Result<Peek, ErrorKind> {
        self.waste.resize(offset + into.len(), 0);
        match sys::recv(sock, &mut self.waste, MSG_PEEK | MSG_DONTWAIT) {
            Ok(0) => Ok(Peek::End),
            Ok(n) if n > offset => {
                let fresh = self.waste.get(offset..n).unwrap_or(&[]);
                crate::slirp::wire::put(into, 0, fresh);
                Ok(Peek::Data(n - offset))
            }
            Ok(_) => {
                // Nothing new; has it ended? Only the state tells: TCP_INFO's first byte is CLOSE_WAIT (8) or later.
                let state = sys::option(sock, SOL_TCP, 11).unwrap_or(1) & 0xff;
                Ok(if state == 1 || state == 4 || state == 5 { Peek::Blocked } else { Peek::End })
            }
            Err(EAGAIN | EINTR) => Ok(Peek::Blocked),
            Err(errno) => Err(kind(errno)),
        }
    }

    /// Binds what is to connect to `to` to the source address of its family, if one was asked for.
    fn bind_source(&self, sock: Sock, to: &SocketAddr) -> Result<(), ErrorKind> {
        let Some(source) = self.source.get(usize::from(to.is_ipv6())).copied().flatten() else {
            return Ok(());
        };
        // The port is chosen by connect(2), which knows the peer: else there were 28 000 connections in all.
        let _ = sys::set_option(sock, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        sys::bind(sock, address::encode(&SocketAddr::new(source, 0)).as_slice()).map(drop).map_err(kind)
    }

    /// Sets the time to live if it differs from what is set.
    fn set_ttl(&mut self, sock: Sock, ttl: u8) {
        let Some(known) = self.known.get_mut(sock as usize) else { return };
        if known.ttl != ttl && ttl != 0 {
            known.ttl = ttl;
            let (level, option) = if known.v6 { (SOL_IPV6, IPV6_UNICAST_HOPS) } else { (SOL_IP, IP_TTL) };
            let _ = sys::set_option(sock, level, option, ttl.into());
        }
    }
}

/// What epoll's bits mean to the engine.
pub fn ready(events: u32) -> Ready {
    Ready {
        read: events & EPOLLIN != 0,
        write: events & EPOLLOUT != 0,
        hangup: events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0,
        error: events & EPOLLERR != 0,
        urgent: events & EPOLLPRI != 0,
    }
}

impl Host for Sockets {
    fn connect(&mut self, to: SocketAddr) -> Result<(Sock, bool), ErrorKind> {
        let sock = sys::socket(address::family(&to), 1, 0).map_err(kind)?;
        self.fresh(sock, to.is_ipv6());
        let _ = sys::set_option(sock, SOL_TCP, TCP_NODELAY, 1);
        self.bind_source(sock, &to).inspect_err(|_| sys::close(sock))?;
        let at = address::encode(&to);
        let mut answer = sys::connect(sock, at.as_slice());
        if answer == Err(EINPROGRESS) {
            // A local peer has answered by now: ask at once, by the same call, and save a round of epoll.
            answer = sys::connect(sock, at.as_slice());
        }
        let outcome = match answer {
            Ok(_) => Ok(true),
            Err(EALREADY) => Ok(false),
            // No free port towards that peer.
            Err(99) if to.ip().is_loopback() => Err(ErrorKind::OutOfMemory),
            Err(errno) => Err(kind(errno)),
        };
        outcome.map(|done| (sock, done)).inspect_err(|_| sys::close(sock))
    }

    fn watch(&mut self, sock: Sock, token: u64) {
        let _ = sys::epoll_add(self.epoll, sock, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET, token);
    }

    fn connected(&mut self, sock: Sock) -> Result<(), ErrorKind> {
        match sys::option(sock, SOL_SOCKET, SO_ERROR) {
            Ok(0) => Ok(()),
            Ok(errno) | Err(errno) => Err(kind(errno)),
        }
    }

    fn send(&mut self, sock: Sock, data: &[u8]) -> Result<usize, ErrorKind> {
        match sys::send(sock, data, MSG_DONTWAIT | MSG_NOSIGNAL, &[]) {
            Err(EAGAIN | EINTR) => Ok(0),
            other => other.map_err(kind),
        }
    }

    fn peek(&mut self, sock: Sock, offset: usize, into: &mut [u8]) -> Result<Peek, ErrorKind> {
        let unix = self.known.get(sock as usize).is_some_and(|k| k.unix);
        if !self.offsets && !unix {
            return self.peek_wasting(sock, offset, into);
        }
        let Some(known) = self.known.get_mut(sock as usize) else { return Ok(Peek::Blocked) };
        // Who never asked for an offset looks at the beginning; many a short connection needs no more.
        if known.peek != offset as i32 && (unix || (known.peek, offset) != (UNSET, 0)) {
            sys::set_option(sock, SOL_SOCKET, SO_PEEK_OFF, offset as i32).map_err(kind)?;
            known.peek = offset as i32;
        }
        let mut got = 0;
        loop {
            let rest = into.get_mut(got..).unwrap_or(&mut []);
            match sys::recv(sock, rest, MSG_PEEK | MSG_DONTWAIT) {
                Ok(0) if got == 0 => return Ok(Peek::End),
                Ok(0) | Err(_) if got > 0 => return Ok(Peek::Data(got)),
                Ok(n) => {
                    if known.peek != UNSET {
                        known.peek += n as i32;
                    }
                    got += n;
                    // A stream of TCP gives all that it has. A Unix socket stops where descriptors were passed, and a
                    // short look must mean that there is no more.
                    if !unix || got >= into.len() {
                        return Ok(Peek::Data(got));
                    }
                }
                Err(EAGAIN | EINTR) => return Ok(Peek::Blocked),
                Err(errno) => return Err(kind(errno)),
            }
        }
    }

    fn discard(&mut self, sock: Sock, n: usize) -> Result<(), ErrorKind> {
        let mut left = n;
        let unix = self.known.get(sock as usize).is_some_and(|k| k.unix);
        if unix {
            self.waste.resize(self.waste.len().max(64 << 10), 0);
        }
        while left > 0 {
            let taken = match self.waste.get_mut(..left.min(64 << 10)) {
                // Only TCP takes bytes out without copying them.
                Some(place) if unix => sys::recv(sock, place, MSG_DONTWAIT),
                _ => sys::discard(sock, left),
            };
            match taken {
                Ok(0) => break,
                Ok(got) => left -= got.min(left),
                Err(EINTR) => {}
                Err(errno) => return Err(kind(errno)),
            }
        }
        if let Some(known) = self.known.get_mut(sock as usize) {
            // The kernel moves its offset back by what is taken out, to no less than the queue's start.
            if known.peek != UNSET {
                known.peek = (known.peek - n as i32).max(0);
            }
        }
        Ok(())
    }

    fn shutdown(&mut self, sock: Sock) {
        sys::shutdown(sock);
    }

    fn keepalive(&mut self, sock: Sock) {
        let _ = sys::set_option(sock, SOL_SOCKET, SO_KEEPALIVE, 1);
    }

    fn close(&mut self, sock: Sock, reset: bool) {
        if reset {
            let linger = [1u8, 0, 0, 0, 0, 0, 0, 0];
            let _ = sys::set_option_bytes(sock, SOL_SOCKET, SO_LINGER, &linger);
        }
        sys::close(sock);
    }

    fn accept(&mut self, listener: Sock) -> Result<Option<(Sock, SocketAddr)>, ErrorKind> {
        let mut from = [0; 28];
        match sys::accept(listener, &mut from) {
            Ok(sock) => {
                // Clients of a Unix socket have no address that means anything to the guest.
                let client = address::decode(&from).unwrap_or(SocketAddr::new([127, 0, 0, 1].into(), 0));
                self.fresh(sock, client.is_ipv6());
                if u16::from_ne_bytes([from[0], from[1]]) == AF_UNIX {
                    if let Some(known) = self.known.get_mut(sock as usize) {
                        known.unix = true;
                    }
                }
                Ok(Some((sock, client)))
            }
            Err(EAGAIN) => Ok(None),
            Err(errno) => Err(kind(errno)),
        }
    }

    fn open(&mut self, which: Datagram, to: SocketAddr) -> Result<Sock, ErrorKind> {
        let v6 = to.is_ipv6();
        let proto = match which {
            Datagram::Udp => 0,
            Datagram::Ping(_) if v6 => 58,
            Datagram::Ping(_) => 1,
        };
        let sock = sys::socket(address::family(&to), 2, proto).map_err(kind)?;
        self.fresh(sock, v6);
        let (level, option) = if v6 { (SOL_IPV6, IPV6_RECVERR) } else { (SOL_IP, IP_RECVERR) };
        let _ = sys::set_option(sock, level, option, 1);
        match which {
            Datagram::Udp => {
                let _ = sys::set_option(sock, SOL_UDP, UDP_GRO, 1);
                let _ = sys::set_option(sock, SOL_SOCKET, SO_RCVBUF, 4 << 20);
                self.bind_source(sock, &to).inspect_err(|_| sys::close(sock))?;
            }
            Datagram::Ping(ident) => {
                // The guest's identifier if it is free; else the kernel's, and the answers are rewritten.
                let any: IpAddr = if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { [0; 4].into() };
                let any = self.source.get(usize::from(v6)).copied().flatten().unwrap_or(any);
                let _ = sys::bind(sock, address::encode(&SocketAddr::new(any, ident)).as_slice());
            }
        }
        match sys::connect(sock, address::encode(&to).as_slice()) {
            Ok(_) => Ok(sock),
            Err(errno) => {
                sys::close(sock);
                Err(kind(errno))
            }
        }
    }

    fn adopt(&mut self, sock: Sock, tcp: bool) {
        if tcp {
            // Those that it accepts inherit it. A Unix socket knows no such thing, and needs none.
            let _ = sys::set_option(sock, SOL_TCP, TCP_NODELAY, 1);
        } else {
            let _ = sys::set_option(sock, SOL_UDP, UDP_GRO, 1);
            let _ = sys::set_option(sock, SOL_SOCKET, SO_RCVBUF, 4 << 20);
        }
    }

    fn send_datagrams(
        &mut self,
        sock: Sock,
        to: Option<SocketAddr>,
        data: &[u8],
        segment: usize,
        ttl: u8,
    ) -> Result<(), ErrorKind> {
        self.set_ttl(sock, ttl);
        let encoded = to.as_ref().map(address::encode);
        let to = encoded.as_ref().map_or(&[][..], |to| to.as_slice());
        if data.len() > segment && segment > 0 {
            let control = sys::control(SOL_UDP, UDP_SEGMENT, &(segment as u16).to_ne_bytes());
            match sys::sendmsg_to(sock, data, &control, MSG_DONTWAIT | MSG_NOSIGNAL, to) {
                // No UDP_SEGMENT here (EIO, EOPNOTSUPP), or larger than the path's packets: one by one.
                Err(5 | 22 | 90 | 95) => {}
                Ok(_) | Err(EAGAIN | EINTR) => return Ok(()),
                Err(errno) => return Err(kind(errno)),
            }
        }
        let mut result = Ok(());
        let empty = data.is_empty().then_some(data);
        for datagram in data.chunks(segment.max(1)).chain(empty) {
            match sys::send(sock, datagram, MSG_DONTWAIT | MSG_NOSIGNAL, to) {
                // A network loses what does not fit.
                Ok(_) | Err(EAGAIN | EINTR) => {}
                Err(errno) => result = Err(kind(errno)),
            }
        }
        result
    }

    fn recv_datagrams(&mut self, sock: Sock, into: &mut [u8]) -> Result<Option<(usize, usize)>, ErrorKind> {
        let mut control = [0u8; 64];
        match sys::recvmsg(sock, into, &mut control, MSG_DONTWAIT) {
            Ok((n, control_len, _)) => {
                let mut segment = n;
                for (level, kind, payload) in sys::controls(control.get(..control_len).unwrap_or(&[])) {
                    if let (SOL_UDP, UDP_GRO, Some(size)) = (level, kind, payload.first_chunk::<2>()) {
                        segment = usize::from(u16::from_ne_bytes(*size)).max(1);
                    }
                }
                Ok(Some((n, segment)))
            }
            Err(EAGAIN | EINTR) => Ok(None),
            Err(errno) => Err(kind(errno)),
        }
    }

    fn receive(&mut self, sock: Sock, inbox: &mut Inbox) -> Result<(), ErrorKind> {
        if inbox.bytes.is_empty() {
            // Of this only what is used takes memory.
            inbox.bytes = vec![0; Inbox::PARCELS * Inbox::ROOM];
        }
        inbox.parcels.clear();
        let parcels = &mut inbox.parcels;
        let got = sys::recvmmsg::<{ Inbox::PARCELS }>(
            sock,
            &mut inbox.bytes,
            Inbox::ROOM,
            |at, len, from, control| {
                let sizes =
                    sys::controls(control).filter(|(level, kind, _)| (*level, *kind) == (SOL_UDP, UDP_GRO));
                let size = sizes.filter_map(|(_, _, payload)| payload.first_chunk::<2>().copied()).last();
                let segment = size.map_or(len, |size| usize::from(u16::from_ne_bytes(size)).max(1));
                parcels.push(Parcel { start: at * Inbox::ROOM, len, segment, from: address::decode(from) });
            },
        );
        match got {
            Ok(_) | Err(EAGAIN | EINTR) => Ok(()),
            Err(errno) => Err(kind(errno)),
        }
    }

    fn fault(&mut self, sock: Sock) -> Option<Fault> {
        let (mut data, mut control) = ([0u8; 1], [0u8; 256]);
        let (_, len, _) = sys::recvmsg(sock, &mut data, &mut control, MSG_ERRQUEUE | MSG_DONTWAIT).ok()?;
        let found = sys::controls(control.get(..len).unwrap_or(&[])).find_map(|(level, kind, payload)| {
            matches!((level, kind), (SOL_IP, IP_RECVERR) | (SOL_IPV6, IPV6_RECVERR)).then_some(payload)
        });
        // struct sock_extended_err, then the offender's address.
        let payload = found?;
        let v6 = self.known.get(sock as usize).is_some_and(|k| k.v6);
        let nobody: IpAddr = if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { [0; 4].into() };
        let offender = payload.get(16..).and_then(address::decode).map_or(nobody, |a| a.ip());
        let info = u32::from_ne_bytes(*payload.get(8..)?.first_chunk::<4>()?);
        let [origin, kind, code] = *payload.get(4..)?.first_chunk::<3>()?;
        match origin {
            2 | 3 => Some(Fault { kind, code, info, offender }),
            // Our own kernel: larger than the path's packets.
            _ if v6 => Some(Fault { kind: 2, code: 0, info, offender }),
            _ => Some(Fault { kind: 3, code: 4, info, offender }),
        }
    }

    fn expect_within(&mut self, like: IpAddr) {
        if let Some(within) = &mut self.within {
            within.expect(like.is_ipv6());
        }
    }

    fn connect_within(&mut self, from: SocketAddr, to: SocketAddr) -> Result<(Sock, bool), ErrorKind> {
        let within = self.within.as_mut().ok_or(ErrorKind::Unsupported)?;
        let (sock, done) = within.connect(&from, &to)?;
        self.fresh(sock, to.is_ipv6());
        Ok((sock, done))
    }

    fn pipe(&mut self) -> Option<Pipe> {
        self.within.as_mut()?.pipe()
    }

    fn read(&mut self, sock: Sock, into: &mut [u8]) -> Result<Peek, ErrorKind> {
        match sys::recv(sock, into, MSG_DONTWAIT) {
            Ok(0) => Ok(Peek::End),
            Ok(n) => Ok(Peek::Data(n)),
            Err(EAGAIN | EINTR) => Ok(Peek::Blocked),
            Err(errno) => Err(kind(errno)),
        }
    }

    fn fill(&mut self, pipe: Pipe, data: &[u8]) -> usize {
        sys::write(pipe.write, data).unwrap_or(0)
    }

    fn put_back(&mut self, pipe: Pipe, empty: bool) {
        if let Some(within) = &mut self.within {
            within.put_back(pipe, empty);
        }
    }

    fn splice(&mut self, from: Sock, to: Sock, len: usize) -> Result<Option<usize>, ErrorKind> {
        match sys::splice(from, to, len) {
            Ok(n) => Ok(Some(n)),
            Err(EAGAIN | EINTR) => Ok(None),
            Err(errno) => Err(kind(errno)),
        }
    }
}
