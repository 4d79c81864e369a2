//! Ports of the host that lead into the namespace.
//!
//! The listening sockets are made by the caller, so that "address in use" is an error there and then. A TCP
//! client's connection is offered to the guest from the client's own address; a client on the host's loopback
//! appears as the gateway, and so does a client of a Unix socket, which is a stream like any other. It goes around
//! the interface where it can (`splice`), else over it. UDP makes an association for each client.

use super::config::Config;
use super::device::Device;
use super::engine::{Engine, Flow};
use super::flow::{Id, Key};
use super::host::{Host, Inbox, Sock};
use super::tcp;
use super::udp;
use super::wire::ip;
use std::net::{IpAddr, SocketAddr};

/// Marks a token as a forward's.
const MARK: u64 = 1 << 63;
/// The first port of those given to clients that have none (RFC 6335 §6).
pub const EPHEMERAL: u16 = 49152;
/// One listening socket and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The listening socket.
    pub listener: Sock,
    /// TCP or UDP.
    pub tcp: bool,
    /// The guest's end.
    pub to: SocketAddr,
}

/// Which forward a token names, if it is one's.
pub fn from_token(token: u64) -> Option<usize> {
    (token & MARK != 0).then_some((token & !MARK) as usize)
}

impl Config {
    /// The guest's address of the family of `like`.
    pub fn guest_address(&self, like: IpAddr) -> IpAddr {
        match (like, &self.v6) {
            (IpAddr::V6(_), Some(v6)) => v6.guest.into(),
            _ => self.v4.guest.into(),
        }
    }

    /// How a client appears to the guest at `to`.
    fn client_address(&self, client: IpAddr, to: IpAddr) -> IpAddr {
        let client = client.to_canonical();
        let foreign =
            self.closed || client.is_loopback() || client.is_ipv4() != to.is_ipv4() || self.is_local(client);
        if foreign || client.is_unspecified() { self.router(to) } else { client }
    }
}

impl<H: Host, D: Device> Engine<H, D> {
    /// Adds a forward; its number is for [`Self::remove_forward`].
    pub fn add_forward(&mut self, forward: Forward) -> usize {
        let index = self.forwards.iter().position(Option::is_none).unwrap_or_else(|| {
            self.forwards.push(None);
            self.forwards.len() - 1
        });
        if let Some(place) = self.forwards.get_mut(index) {
            *place = Some(forward);
        }
        self.core.host.adopt(forward.listener, forward.tcp);
        if forward.tcp && self.splicing.is_some() {
            self.core.host.expect_within(forward.to.ip());
        }
        self.core.host.watch(forward.listener, MARK | index as u64);
        index
    }

    /// Ends a forward and closes its listening socket. Connections that stand go on; UDP clients do not.
    pub fn remove_forward(&mut self, index: usize) -> bool {
        let Some(forward) = self.forwards.get_mut(index).and_then(Option::take) else { return false };
        let of_it = |flow: &Flow| {
            matches!(flow, Flow::Udp(udp::Assoc { kind: udp::Kind::Forward { listener, .. }, .. })
                if *listener == forward.listener)
        };
        let ids: Vec<_> =
            self.flows.iter().filter(|(_, _, flow, _)| of_it(flow)).map(|(id, ..)| id).collect();
        for id in ids {
            self.remove(id);
        }
        self.core.host.close(forward.listener, false);
        true
    }

    /// Something came to a listening socket.
    pub(super) fn forward_ready(&mut self, index: usize) {
        let Some(forward) = self.forwards.get(index).copied().flatten() else { return };
        if forward.tcp { self.accept(forward) } else { self.datagrams(index, forward) }
    }

    fn accept(&mut self, forward: Forward) {
        // Edge-triggered: until there are no more.
        while let Ok(Some((sock, client))) = self.core.host.accept(forward.listener) {
            self.make_room();
            let address = self.core.config.client_address(client.ip(), forward.to.ip());
            let port = if client.port() == 0 { self.next_port() } else { client.port() };
            // Two clients on different loopback addresses may have the same port.
            let Some(key) = (0..=u16::MAX)
                .map(|i| Key::new(ip::TCP, forward.to, SocketAddr::new(address, port.wrapping_add(i).max(1))))
                .find(|key| self.is_free(key))
            else {
                self.core.host.close(sock, true);
                continue;
            };
            if let Some(closed) = self.flows.find(&key) {
                self.remove(closed);
            }
            if self.splice(&key, sock, client.port() == 0) {
                continue;
            }
            let tcb = tcp::accept(&mut self.core, &key, sock);
            self.insert_tcp(key, tcb);
        }
    }

    /// A port for a client that has none, as those of Unix sockets: the next, so that none is soon used again.
    fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(EPHEMERAL);
        self.port
    }

    /// True if no living flow has the key.
    fn is_free(&mut self, key: &Key) -> bool {
        let Some(id) = self.flows.find(key) else { return true };
        matches!(self.flows.get(id), Some((_, Flow::Tcp(tcb))) if tcb.state == tcp::State::TimeWait)
    }

    fn datagrams(&mut self, index: usize, forward: Forward) {
        let mut inbox = std::mem::take(&mut self.core.inbox);
        let mut gather = udp::Gather::default();
        let mut last = None;
        let mut more = true;
        for _ in 0..udp::TURN {
            // The socket has no error queue: what its errors are about is gone.
            if self.core.host.receive(forward.listener, &mut inbox).is_err() {
                continue;
            }
            for parcel in &inbox.parcels {
                let Some(client) = parcel.from else { continue };
                let (key, id) = match last {
                    Some((same, key, id)) if same == client => (key, id),
                    _ => {
                        // To make room others may be told of their end.
                        gather.flush(&mut self.core);
                        self.client(forward, client)
                    }
                };
                last = Some((client, key, id));
                self.flows.touch(id, self.core.now);
                if let Some((_, Flow::Udp(assoc))) = self.flows.get(id) {
                    assoc.traffic.received += parcel.len as u64;
                }
                gather.add(&mut self.core, &key, inbox.data(parcel), parcel.segment);
            }
            if inbox.parcels.len() < Inbox::PARCELS {
                more = false;
                break;
            }
        }
        gather.flush(&mut self.core);
        self.core.inbox = inbox;
        if more {
            self.waiting.push(index);
        }
    }

    /// The association of a client.
    fn client(&mut self, forward: Forward, client: SocketAddr) -> (Key, Id) {
        let address = self.core.config.client_address(client.ip(), forward.to.ip());
        let key = Key::new(ip::UDP, forward.to, SocketAddr::new(address, client.port()));
        let id = self.flows.find(&key).unwrap_or_else(|| {
            self.make_room();
            let kind = udp::Kind::Forward { listener: forward.listener, client };
            self.insert_udp(key, udp::Assoc::new(kind))
        });
        (key, id)
    }
}
