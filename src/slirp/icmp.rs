//! ICMP: echo to us is answered here, echo to others leaves by a ping socket.
//!
//! A ping socket needs no privilege but a group within `net.ipv4.ping_group_range`. Where the host forbids it the
//! guest is told "administratively prohibited", and the counter `ping_forbidden` says why.

use super::config::Refusal;
use super::core::{self, Core};
use super::device::Device;
use super::flow::Key;
use super::host::{Datagram, Host, Ready, Sock};
use super::stats::Traffic;
use super::time::{SEC, Time};
use super::wire::icmpv4::{self, Icmp};
use super::wire::icmpv6::{self, Icmpv6};
use super::wire::ip::{self, Ip};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

/// After how much silence an identifier is forgotten.
pub const PATIENCE: Time = 60 * SEC;

/// One identifier towards one address.
#[derive(Debug)]
pub struct Ping {
    sock: Sock,
    /// What it has carried.
    pub traffic: Traffic,
}

/// The key of an echo request's flow.
pub fn key(ip: &Ip, ident: u16) -> Key {
    Key::new(ip.proto, SocketAddr::new(ip.src, ident), SocketAddr::new(ip.dst, 0))
}

/// Answers an echo request to one of our own addresses.
pub fn answer<H: Host, D: Device>(core: &mut Core<H, D>, ip: &Ip, rest: [u8; 4], data: &[u8]) {
    // As routers answer, and slirp4netns: no hop lies between us and the guest.
    let out = Ip { dont_fragment: false, ttl: 255, ..Ip::new(ip.dst, ip.src, ip.proto) };
    let message = message(&out, true, rest, data);
    core.send_ip(&out, &message);
}

/// An echo message of the family of `ip`.
fn message(ip: &Ip, reply: bool, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    if ip.proto == ip::ICMP {
        let kind = if reply { icmpv4::ECHO_REPLY } else { icmpv4::ECHO };
        Icmp { kind, code: 0, rest, data }.emit()
    } else {
        let kind = if reply { icmpv6::ECHO_REPLY } else { icmpv6::ECHO };
        Icmpv6 { kind, code: 0, rest, data }.emit(ip)
    }
}

impl Ping {
    /// Opens a ping socket with the guest's identifier, if it is free.
    pub fn open<H: Host, D: Device>(
        core: &mut Core<H, D>,
        to: IpAddr,
        ident: u16,
    ) -> Result<Self, ErrorKind> {
        let sock = core.host.open(Datagram::Ping(ident), SocketAddr::new(to, 0));
        if sock == Err(ErrorKind::PermissionDenied) {
            core.stats.ping_forbidden += 1;
        }
        Ok(Self { sock: sock?, traffic: Traffic::default() })
    }

    /// The host's socket.
    pub fn sock(&self) -> Sock {
        self.sock
    }

    /// Sends a request on.
    pub fn send<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        ip: &Ip,
        rest: [u8; 4],
        data: &[u8],
    ) {
        self.traffic.sent += data.len() as u64;
        let message = message(ip, false, rest, data);
        let sent = core.host.send_datagrams(self.sock, None, &message, message.len(), ip.ttl - 1);
        let refusal = match sent {
            Err(ErrorKind::NetworkUnreachable) => Refusal::Net,
            Err(ErrorKind::HostUnreachable) => Refusal::Host,
            Err(ErrorKind::PermissionDenied) => Refusal::Prohibited,
            _ => return,
        };
        let (ip, packet) = core::quoted(key);
        core.refuse(&ip, &packet, refusal);
    }

    /// Answers, or errors, have come.
    pub fn host_ready<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, ready: Ready) {
        if ready.error || ready.hangup {
            while let Some(fault) = core.host.fault(self.sock) {
                super::udp::report(core, key, &fault);
            }
        }
        let out = Ip { dont_fragment: false, ..Ip::new(key.remote().ip(), key.guest().ip(), key.proto) };
        loop {
            let (host, place) = core.payload(65507);
            let Ok(Some((len, _))) = host.recv_datagrams(self.sock, place) else { return };
            let Some([kind, _, _, _, _, _, c, d, data @ ..]) = place.get(..len) else { continue };
            if !matches!(*kind, icmpv4::ECHO_REPLY | icmpv6::ECHO_REPLY) {
                continue;
            }
            // The kernel may have given us another identifier: the guest gets its own back.
            let [a, b] = key.guest().port().to_be_bytes();
            self.traffic.received += data.len() as u64;
            let message = message(&out, true, [a, b, *c, *d], data);
            core.send_ip(&out, &message);
        }
    }

    /// Closes the socket.
    pub fn close<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        core.host.close(self.sock, false);
    }
}
