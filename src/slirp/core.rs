//! What every protocol needs of the engine: time, configuration, host, device, counters, and the sending of
//! packets to the guest.
//!
//! There is one buffer for what is sent. Payload starts at [`HEADROOM`]; headers are written in front of it from
//! the inside out, so that a frame is contiguous and leaves by one `write`, whatever its headers.

use super::config::{Config, Refusal, Verdict};
use super::device::Device;
use super::flow::{Id, Key};
use super::host::{Host, Inbox};
use super::policy::Learnt;
use super::stats::Stats;
use super::time::Time;
use super::wire::ethernet::{self, Ethernet, Mac};
use super::wire::ip::{self, Ip};
use super::wire::tcp::Tcp;
use super::wire::udp::Udp;
use super::wire::{icmpv4, icmpv6, ipv6, put, tcp, udp, vnet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Where payload starts in the buffer: before it there is room for all headers.
pub const HEADROOM: usize = 128;
/// The largest payload of a frame to the guest.
pub const MAX_PAYLOAD: usize = 65535 - 60 - 20;
/// How many events are kept until they are told.
const EVENTS: usize = 256;
/// How many hardware addresses are remembered.
const NEIGHBORS: usize = 2048;

/// The engine without its flows.
#[derive(Debug)]
pub struct Core<H, D> {
    /// The time of this wake-up.
    pub now: Time,
    /// What the network was told.
    pub config: Config,
    /// The world's sockets.
    pub host: H,
    /// The guest's interface.
    pub device: D,
    /// What names stand for, as far as it matters.
    pub learnt: Learnt,
    /// The counters.
    pub stats: Stats,
    /// Flows that have something to do when the batch of frames ends.
    pub dirty: Vec<Id>,
    /// Bytes of guest data held for slow hosts and behind holes.
    pub buffered: usize,
    /// The resolver that answered last.
    pub resolver: usize,
    /// Challenge acknowledgements sent in this second (RFC 5961 §7).
    pub challenged: (Time, u32),
    /// What happened, for those who listen; `None` while nobody does.
    pub events: Option<Vec<String>>,
    /// Events that were not kept because there were too many.
    pub untold: u64,
    /// Where datagrams are received.
    pub inbox: Inbox,
    /// Identification of the last packet that was cut.
    ident: u32,
    tx: Vec<u8>,
    secret: RandomState,
    neighbors: Vec<(IpAddr, Mac)>,
}

impl<H: Host, D: Device> Core<H, D> {
    /// Starts at `now`.
    pub fn new(config: Config, host: H, device: D, now: Time) -> Self {
        Self {
            now,
            config,
            host,
            device,
            learnt: Learnt::default(),
            stats: Stats::default(),
            dirty: Vec::new(),
            buffered: 0,
            resolver: 0,
            challenged: (0, 0),
            events: None,
            untold: 0,
            inbox: Inbox::default(),
            ident: 0,
            tx: vec![0; HEADROOM + 65536],
            secret: RandomState::new(),
            neighbors: Vec::new(),
        }
    }

    /// Notes an event if anybody listens. A guest can cause any number of them, so there is a bound for each wake-up.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        match &mut self.events {
            Some(events) if events.len() < EVENTS => events.push(what()),
            Some(_) => self.untold += 1,
            None => {}
        }
    }

    /// Where a packet for `to`:`port` goes.
    pub fn judge(&self, to: IpAddr, port: u16) -> Verdict {
        self.config.judge(&self.learnt, self.now, to, port)
    }

    /// An initial sequence number: a keyed hash of the four-tuple plus a clock of 4 µs (RFC 6528).
    pub fn initial_sequence(&self, key: &Key) -> u32 {
        (self.secret.hash_one(key) as u32).wrapping_add((self.now / 4) as u32)
    }

    /// Remembers which hardware address speaks for `address`, as it says itself by ARP or neighbour discovery.
    pub fn learn(&mut self, address: IpAddr, mac: Mac) {
        if self.neighbors.first() == Some(&(address, mac)) || mac.is_multicast() {
            return;
        }
        self.neighbors.retain(|(a, _)| *a != address);
        self.neighbors.truncate(NEIGHBORS - 1);
        self.neighbors.insert(0, (address, mac));
    }

    /// Remembers an address that has not announced itself, from a packet that it sent.
    pub fn glimpse(&mut self, address: IpAddr, mac: Mac) {
        if !self.neighbors.iter().any(|(a, _)| *a == address) {
            self.learn(address, mac);
        }
    }

    /// The hardware address of a guest.
    fn mac_of(&self, address: IpAddr) -> Mac {
        self.neighbors.iter().find(|(a, _)| *a == address).map_or(self.config.guest_mac, |(_, mac)| *mac)
    }

    /// The first `len` bytes of the place where payload is put before it is sent, and the host to fill it.
    pub fn payload(&mut self, len: usize) -> (&mut H, &mut [u8]) {
        let end = (HEADROOM + len).min(self.tx.len());
        (&mut self.host, self.tx.get_mut(HEADROOM..end).unwrap_or(&mut []))
    }

    /// Sends a segment whose `len` bytes of data lie in the payload's place already.
    pub fn send_tcp(&mut self, key: &Key, header: &Tcp, len: usize, mss: u16) {
        let ip = Ip::new(key.remote().ip(), key.guest().ip(), ip::TCP);
        let header = Tcp { src_port: key.remote().port(), dst_port: key.guest().port(), ..*header };
        let (mut head, head_len) = header.emit(0);
        let mut meta = vnet::VnetHeader::default();
        let pseudo = ip.pseudo(head_len + len);
        let head = head.get_mut(..head_len).unwrap_or(&mut []);
        let sum = if self.device.capabilities().checksum {
            meta.flags = vnet::NEEDS_CSUM;
            meta.csum_start = (ethernet::LEN + ip.header_len()) as u16;
            meta.csum_offset = 16;
            pseudo.partial()
        } else {
            let data = self.tx.get(HEADROOM..HEADROOM + len).unwrap_or(&[]);
            pseudo.bytes(head).bytes(data).finish()
        };
        put(head, 16, &sum.to_be_bytes());
        if len > usize::from(mss) {
            meta.gso_type = if ip.src.is_ipv4() { vnet::GSO_TCPV4 } else { vnet::GSO_TCPV6 };
            meta.gso_size = mss;
            meta.hdr_len = (ethernet::LEN + ip.header_len() + head_len) as u16;
        }
        let start = HEADROOM - head_len;
        put(&mut self.tx, start, head);
        self.send_from(start, &ip, head_len + len, &meta);
    }

    /// Sends datagrams of `segment` bytes each (the last may be shorter), whose `len` bytes in all lie in the
    /// payload's place already. More than one needs a device that cuts.
    pub fn send_udp(&mut self, key: &Key, len: usize, segment: usize) {
        let ip = Ip { dont_fragment: false, ..Ip::new(key.remote().ip(), key.guest().ip(), ip::UDP) };
        let header = Udp { src_port: key.remote().port(), dst_port: key.guest().port() };
        if len <= segment && ip.header_len() + udp::LEN + len > usize::from(self.config.mtu) {
            let data = self.tx.get(HEADROOM..HEADROOM + len).unwrap_or(&[]);
            let whole = [&header.emit(len, header.checksum(&ip, data)), data].concat();
            return self.send_cut(&ip, &whole);
        }
        let mut meta = vnet::VnetHeader::default();
        let sum = if self.device.capabilities().checksum {
            meta.flags = vnet::NEEDS_CSUM;
            meta.csum_start = (ethernet::LEN + ip.header_len()) as u16;
            meta.csum_offset = 6;
            ip.pseudo(udp::LEN + len).partial()
        } else {
            header.checksum(&ip, self.tx.get(HEADROOM..HEADROOM + len).unwrap_or(&[]))
        };
        if len > segment {
            meta.gso_type = vnet::GSO_UDP_L4;
            meta.gso_size = segment as u16;
            meta.hdr_len = (ethernet::LEN + ip.header_len() + udp::LEN) as u16;
        }
        let start = HEADROOM - udp::LEN;
        put(&mut self.tx, start, &header.emit(len, sum));
        self.send_from(start, &ip, udp::LEN + len, &meta);
    }

    /// Sends one datagram from a place of its own.
    pub fn send_datagram(&mut self, key: &Key, data: &[u8]) {
        put(&mut self.tx, HEADROOM, data);
        self.send_udp(key, data.len().min(65507), 65535);
    }

    /// Sends a packet that is longer than the link's packets may be, in pieces.
    fn send_cut(&mut self, ip: &Ip, transport: &[u8]) {
        self.ident = self.ident.wrapping_add(1);
        let overhead = ip.header_len() + if ip.src.is_ipv4() { 0 } else { ipv6::FRAGMENT_LEN };
        let size = usize::from(self.config.mtu).saturating_sub(overhead).max(8) / 8 * 8;
        let count = transport.len().div_ceil(size);
        for (at, piece) in transport.chunks(size).enumerate() {
            let part = ip::Part { id: self.ident, offset: at * size, more: at + 1 < count };
            let packet = ip.emit_part(part, piece);
            let mac = self.mac_of(ip.dst);
            self.send_raw(mac, ip.kind(), &packet);
        }
    }

    /// Sends a packet with a ready transport part, to whoever owns its destination.
    pub fn send_ip(&mut self, ip: &Ip, transport: &[u8]) {
        if !ip.dont_fragment && ip.header_len() + transport.len() > usize::from(self.config.mtu) {
            return self.send_cut(ip, transport);
        }
        put(&mut self.tx, HEADROOM, transport);
        self.send_from(HEADROOM, ip, transport.len(), &vnet::VnetHeader::default());
    }

    /// Puts the outer headers before the `len` bytes at `start` and sends the frame.
    fn send_from(&mut self, start: usize, ip: &Ip, len: usize, meta: &vnet::VnetHeader) {
        let crowd = ip.dst.is_multicast() || self.config.is_broadcast(ip.dst);
        let mac = if crowd { multicast_mac(ip.dst) } else { self.mac_of(ip.dst) };
        let begin = start - ip.header_len();
        if let Some(place) = self.tx.get_mut(begin..start) {
            ip.emit_into(place, len);
        }
        self.send_frame(begin, start + len, mac, ip.kind(), meta);
    }

    /// Sends a packet that is not IP.
    pub fn send_raw(&mut self, dst: Mac, kind: u16, packet: &[u8]) {
        put(&mut self.tx, HEADROOM, packet);
        self.send_frame(HEADROOM, HEADROOM + packet.len(), dst, kind, &vnet::VnetHeader::default());
    }

    fn send_frame(&mut self, start: usize, end: usize, dst: Mac, kind: u16, meta: &vnet::VnetHeader) {
        let begin = start - ethernet::LEN - vnet::LEN;
        put(&mut self.tx, begin, &meta.emit());
        put(&mut self.tx, begin + vnet::LEN, &Ethernet { dst, src: self.config.mac, kind }.emit());
        let frame = self.tx.get(begin..end).unwrap_or(&[]);
        if self.device.send(frame).is_ok() {
            self.stats.frames_out += 1;
            self.stats.bytes_out += (frame.len() - vnet::LEN) as u64;
        } else {
            self.stats.device_full += 1;
        }
    }

    /// Tells the guest that `packet` (from its IP header on) will not be carried.
    ///
    /// A refused TCP port is not told by ICMP but by a reset, which the caller sends.
    pub fn refuse(&mut self, ip: &Ip, packet: &[u8], refusal: Refusal) {
        self.stats.refused += 1;
        let v4 = ip.src.is_ipv4();
        let (kind, code) = match (refusal, v4) {
            (Refusal::Silent, _) => return,
            (Refusal::Port, true) => (icmpv4::UNREACHABLE, icmpv4::PORT),
            (Refusal::Net, true) => (icmpv4::UNREACHABLE, icmpv4::NET),
            (Refusal::Host, true) => (icmpv4::UNREACHABLE, icmpv4::HOST),
            (Refusal::Prohibited, true) => (icmpv4::UNREACHABLE, icmpv4::PROHIBITED),
            // Hard errors, which a connected datagram socket is told too (RFC 1122 section 4.1.3.3).
            (Refusal::Unlisted, true) => (icmpv4::UNREACHABLE, icmpv4::NET_PROHIBITED),
            (Refusal::Unlisted, false) if ip.proto != ip::TCP => (icmpv6::UNREACHABLE, icmpv6::PROHIBITED),
            (Refusal::Port, false) => (icmpv6::UNREACHABLE, icmpv6::PORT),
            (Refusal::Net | Refusal::Unlisted, false) => (icmpv6::UNREACHABLE, icmpv6::NO_ROUTE),
            (Refusal::Host, false) => (icmpv6::UNREACHABLE, icmpv6::ADDRESS),
            (Refusal::Prohibited, false) => (icmpv6::UNREACHABLE, icmpv6::PROHIBITED),
        };
        let router = self.config.router(ip.src);
        self.report(ip, packet, router, (kind, code), 0);
    }

    /// Sends an ICMP error from `from` about `packet`, if one may be sent at all. `info` is the MTU in a
    /// "too big".
    pub fn report(&mut self, ip: &Ip, packet: &[u8], from: IpAddr, (kind, code): (u8, u8), info: u32) {
        if !icmpv4::may_report(ip) || from.is_ipv4() != ip.src.is_ipv4() {
            return;
        }
        let rest = info.to_be_bytes();
        if ip.src.is_ipv4() {
            let error = icmpv4::Icmp { kind, code, rest, data: icmpv4::quote(packet) }.emit();
            self.send_ip(&Ip::new(from, ip.src, ip::ICMP), &error);
        } else {
            let out = Ip::new(from, ip.src, ip::ICMPV6);
            let error = icmpv6::Icmpv6 { kind, code, rest, data: icmpv6::quote(packet) }.emit(&out);
            self.send_ip(&out, &error);
        }
    }

    /// True if another challenge acknowledgement may be sent in this second.
    pub fn may_challenge(&mut self) -> bool {
        if self.now >= self.challenged.0 + super::time::SEC {
            self.challenged = (self.now, 0);
        }
        self.challenged.1 += 1;
        self.challenged.1 <= 1000
    }

    /// The largest run of data that one segment to the guest may carry.
    pub fn max_segment(&self, mss: u16) -> usize {
        let mss = usize::from(mss.max(1));
        let whole = if self.device.capabilities().tso { MAX_PAYLOAD / mss * mss } else { mss };
        whole.max(mss).min(MAX_PAYLOAD)
    }
}

/// The hardware address of an `IPv6` multicast group, or Ethernet's broadcast.
fn multicast_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(_) => Mac::BROADCAST,
        IpAddr::V6(a) => {
            let octets = a.octets();
            Mac([0x33, 0x33, octets[12], octets[13], octets[14], octets[15]])
        }
    }
}

/// A header of the guest's flow, as an ICMP error about it quotes it.
pub fn quoted(key: &Key) -> (Ip, Vec<u8>) {
    let ip = Ip { dont_fragment: false, ..Ip::new(key.guest().ip(), key.remote().ip(), key.proto) };
    let mut packet = vec![0; ip.header_len() + tcp::LEN];
    ip.emit_into(&mut packet, tcp::LEN);
    let ports =
        Udp { src_port: key.guest().port(), dst_port: key.remote().port() }.emit(tcp::LEN - udp::LEN, 0);
    put(&mut packet, ip.header_len(), &ports);
    (ip, packet)
}
