//! From a frame to the flow that it belongs to, or to a new one, or to a refusal.
//!
//! The order of checks: the offload header does not lie, the frame is for us, the source is the guest's own, the
//! packet is whole (or becomes so), it has hops left; then the protocol. Everything that fails is counted.

use super::config::{Refusal, Verdict};
use super::device::Device;
use super::engine::{Engine, Flow};
use super::flow::{Id, Key};
use super::host::{Host, Sock};
use super::time::NEVER;
use super::wire::ethernet::{self, Ethernet};
use super::wire::icmpv4::{self, Icmp};
use super::wire::icmpv6::{self, Icmpv6};
use super::wire::ip::{self, Ip};
use super::wire::tcp::{self as wire, Tcp};
use super::wire::udp::Udp;
use super::wire::{dhcp as dhcp_wire, vnet};
use super::{dhcp, icmp, neighbor, tcp, udp};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

impl<H: Host, D: Device> Engine<H, D> {
    /// One frame with its header.
    pub fn frame(&mut self, bytes: &[u8]) {
        self.core.stats.frames_in += 1;
        self.core.stats.bytes_in += bytes.len().saturating_sub(vnet::LEN) as u64;
        if self.parse_frame(bytes).is_none() {
            self.core.stats.malformed += 1;
        }
    }

    fn parse_frame(&mut self, bytes: &[u8]) -> Option<()> {
        let (meta, frame) = vnet::VnetHeader::parse(bytes)?;
        let (eth, packet) = Ethernet::parse(frame)?;
        if !meta.fits(frame.len()) || eth.src.is_multicast() {
            return None;
        }
        if eth.dst != self.core.config.mac && !eth.dst.is_multicast() {
            return Some(());
        }
        match eth.kind {
            ethernet::ARP => {
                neighbor::arp(&mut self.core, eth.src, packet);
                return Some(());
            }
            ethernet::IPV4 => {}
            ethernet::IPV6 if self.core.config.v6.is_some() => {}
            _ => {
                self.core.stats.unsupported += 1;
                return Some(());
            }
        }
        let (ip, payload) = Ip::parse(eth.kind, packet)?;
        if self.core.config.is_guest(ip.src) {
            self.core.glimpse(ip.src, eth.src);
        } else if !ip.src.is_unspecified() {
            self.core.stats.martian += 1;
            return Some(());
        }
        if let Some(part) = ip.part {
            if let Some((whole, data)) = self.reassembly.add(self.core.now, &ip, part, payload) {
                let mut packet = vec![0; whole.header_len()];
                whole.emit_into(&mut packet, data.len());
                packet.extend_from_slice(&data);
                return self.packet(&eth, &whole, &packet, &data, vnet::VnetHeader::default());
            }
            return Some(());
        }
        self.packet(&eth, &ip, packet, payload, meta)
    }

    /// A whole packet; `packet` is it with its header, for quoting.
    fn packet(
        &mut self,
        eth: &Ethernet,
        ip: &Ip,
        packet: &[u8],
        payload: &[u8],
        meta: vnet::VnetHeader,
    ) -> Option<()> {
        let (trusted, gso) = (meta.trusted(), meta.gso_type != vnet::GSO_NONE);
        let crowd = ip.dst.is_multicast() || self.core.config.is_broadcast(ip.dst);
        let nobody = ip.src.is_unspecified();
        if ip.proto == ip::ICMPV6 && !ip.src.is_ipv4() {
            let message = Icmpv6::parse(ip, payload)?;
            if (133..=137).contains(&message.kind) {
                neighbor::ndp(&mut self.core, ip, eth.src, &message);
            } else if message.kind == icmpv6::ECHO && !crowd && !nobody {
                self.echo(ip, packet, message.echo().0, message.rest, message.data);
            }
            return Some(());
        }
        if ip.proto == ip::UDP {
            let (header, data) = Udp::parse(ip, payload, trusted, gso)?;
            if header.dst_port == dhcp_wire::SERVER_PORT
                && ip.src.is_ipv4()
                && (crowd || self.core.config.is_ours(ip.dst))
            {
                dhcp::request(&mut self.core, &mut self.leases, data);
                return Some(());
            }
        }
        if crowd || nobody {
            return Some(());
        }
        if matches!(ip.dst, IpAddr::V6(dst) if dst.to_ipv4_mapped().is_some()) {
            // Such addresses are never on a wire (RFC 4291 §2.5.5.2), and a flow's key could not tell them from IPv4.
            self.core.refuse(ip, packet, Refusal::Net);
            return Some(());
        }
        if ip.ttl <= 1 && !self.core.config.is_ours(ip.dst) {
            let router = self.core.config.router(ip.src);
            let kind = if ip.src.is_ipv4() { icmpv4::TIME_EXCEEDED } else { icmpv6::TIME_EXCEEDED };
            self.core.report(ip, packet, router, (kind, 0), 0);
            return Some(());
        }
        match ip.proto {
            ip::TCP => {
                let (segment, data) = Tcp::parse(ip, payload, trusted)?;
                self.segment(ip, &segment, data);
            }
            ip::UDP => {
                let (header, data) = Udp::parse(ip, payload, trusted, gso)?;
                let size = if gso { usize::from(meta.gso_size) } else { data.len() };
                self.datagram(ip, packet, header, data, size);
            }
            ip::ICMP if ip.src.is_ipv4() => {
                let message = Icmp::parse(payload)?;
                if message.kind == icmpv4::ECHO {
                    self.echo(ip, packet, message.echo().0, message.rest, message.data);
                }
            }
            _ => {
                self.core.stats.unsupported += 1;
                let kind = if ip.src.is_ipv4() { (icmpv4::UNREACHABLE, 2) } else { (4, 1) };
                let router = self.core.config.router(ip.src);
                self.core.report(ip, packet, router, kind, if ip.src.is_ipv4() { 0 } else { 6 });
            }
        }
        Some(())
    }

    /// A TCP segment.
    fn segment(&mut self, ip: &Ip, segment: &Tcp, data: &[u8]) {
        let guest = SocketAddr::new(ip.src, segment.src_port);
        let key = Key::new(ip::TCP, guest, SocketAddr::new(ip.dst, segment.dst_port));
        let opens = segment.flags & (wire::SYN | wire::ACK | wire::RST | wire::FIN) == wire::SYN;
        if let Some(id) = self.flows.find(&key) {
            let reused = match self.flows.get(id) {
                Some((_, Flow::Tcp(tcb))) => opens && tcb.yields_to(segment.seq),
                _ => false,
            };
            if !reused {
                let mut dirty = false;
                self.with_tcp(id, |tcb, core, key| {
                    let fate = tcb.segment(core, key, segment, data);
                    dirty = tcb.mark();
                    fate
                });
                if dirty {
                    self.core.dirty.push(id);
                }
                self.flows.touch(id, self.core.now);
                return;
            }
            self.remove(id);
        }
        if opens {
            self.open_tcp(key, segment);
        } else {
            tcp::reject(&mut self.core, &key, segment, data.len());
        }
    }

    /// A connection that the guest opens.
    fn open_tcp(&mut self, key: Key, syn: &Tcp) {
        let remote = key.remote();
        let (to, resolver) = match self.core.judge(remote.ip(), remote.port()) {
            Verdict::To(to) => (to, false),
            // What is said over TCP is not read: where names are judged, who needs an answer asks by datagram.
            Verdict::Dns if self.core.config.judges_names() => {
                return tcp::refuse(&mut self.core, &key, syn, Refusal::Port);
            }
            Verdict::Dns => match self.core.config.resolvers.get(self.core.resolver).or(self
                .core
                .config
                .resolvers
                .first())
            {
                Some(to) => (*to, true),
                None => return tcp::refuse(&mut self.core, &key, syn, Refusal::Port),
            },
            Verdict::Refuse(why) => {
                self.refused(&key, why);
                return tcp::refuse(&mut self.core, &key, syn, why);
            }
        };
        self.make_room();
        let mut opened = tcp::open(&mut self.core, &key, to, syn, resolver);
        if opened.as_ref().is_err_and(|e| exhausted(*e)) {
            self.shed();
            opened = tcp::open(&mut self.core, &key, to, syn, resolver);
        }
        match opened {
            Ok(tcb) => {
                self.insert_tcp(key, tcb);
            }
            Err(kind) => tcp::refuse_open(&mut self.core, &key, syn, kind),
        }
    }

    /// Puts a connection whose handshake has begun into the table.
    pub(super) fn insert_tcp(&mut self, key: Key, tcb: tcp::Tcb) {
        let (sock, deadline) = (tcb.sock, tcb.deadline());
        self.begun(&key);
        let id = self.flows.insert(key, Flow::Tcp(tcb), self.core.now);
        self.core.host.watch(sock, id.token());
        if deadline != NEVER {
            self.flows.arm(id, deadline);
        }
        self.half_open += 1;
        self.embryos.push_back(id);
        // Handshakes that ended are still in the queue: their places are taken back when they come up.
        let limit = self.core.config.limits.half_open;
        while let Some(oldest) = self.embryos.front().copied() {
            let young = matches!(self.flows.get(oldest), Some((_, Flow::Tcp(tcb))) if tcb.half_open());
            let many = self.half_open > limit || self.embryos.len() > 4 * limit.max(64);
            if young && !many {
                break;
            }
            self.embryos.pop_front();
            if young {
                self.core.stats.shed += 1;
                self.remove(oldest);
            }
        }
    }

    /// A UDP datagram, or several of `size` bytes.
    fn datagram(&mut self, ip: &Ip, packet: &[u8], header: Udp, data: &[u8], size: usize) {
        let guest = SocketAddr::new(ip.src, header.src_port);
        let key = Key::new(ip::UDP, guest, SocketAddr::new(ip.dst, header.dst_port));
        let id = match self.flows.find(&key) {
            Some(id) => id,
            None => match self.open_udp(key) {
                Ok(id) => id,
                Err(why) => return self.core.refuse(ip, packet, why),
            },
        };
        self.flows.touch(id, self.core.now);
        if let Some((key, Flow::Udp(udp::Assoc { kind: udp::Kind::Dns(relay), traffic, .. }))) =
            self.flows.get(id)
        {
            traffic.sent += data.len() as u64;
            for query in data.chunks(size.max(1)) {
                relay.ask(&mut self.core, key, query);
            }
            return self.after_dns(id);
        }
        // A router counts its hop.
        let ttl = ip.ttl.saturating_sub(1).max(1);
        if data.len() >= udp::LARGE {
            self.flush_run();
            if let Some((key, Flow::Udp(assoc))) = self.flows.get(id) {
                assoc.send(&mut self.core, key, data, (size, ttl));
            }
            return;
        }
        if !self.run.push(id, data, size, ttl) {
            self.flush_run();
            self.run.push(id, data, size, ttl);
        }
    }

    fn open_udp(&mut self, key: Key) -> Result<Id, Refusal> {
        let remote = key.remote();
        self.make_room();
        let assoc = match self.core.judge(remote.ip(), remote.port()) {
            Verdict::Refuse(why) => {
                self.refused(&key, why);
                return Err(why);
            }
            Verdict::Dns => udp::Assoc::new(udp::Kind::Dns(Box::default())),
            Verdict::To(to) => {
                let mut opened = udp::Assoc::open(&mut self.core, to);
                if opened.as_ref().is_err_and(|e| exhausted(*e)) {
                    self.shed();
                    opened = udp::Assoc::open(&mut self.core, to);
                }
                opened.map_err(tcp::refusal)?
            }
        };
        Ok(self.insert_udp(key, assoc))
    }

    /// Puts an association into the table.
    pub(super) fn insert_udp(&mut self, key: Key, assoc: udp::Assoc) -> Id {
        let sock: Option<Sock> = match assoc.kind {
            udp::Kind::Direct(sock) => Some(sock),
            _ => None,
        };
        self.begun(&key);
        let id = self.flows.insert(key, Flow::Udp(assoc), self.core.now);
        if let Some(sock) = sock {
            self.core.host.watch(sock, id.token());
        }
        self.core.stats.datagram_flows += 1;
        id
    }

    /// Watches the sockets that a resolver's flow has opened and arms its timer.
    pub(super) fn after_dns(&mut self, id: Id) {
        let Some((_, Flow::Udp(udp::Assoc { kind: udp::Kind::Dns(relay), .. }))) = self.flows.get(id) else {
            return;
        };
        for sock in relay.fresh.drain(..) {
            self.core.host.watch(sock, id.token());
        }
        let deadline = relay.deadline();
        if deadline != NEVER {
            self.flows.arm(id, deadline);
        }
    }

    /// Sends the datagrams that were gathered.
    pub(super) fn flush_run(&mut self) {
        let Some(id) = self.run.id else { return };
        if let Some((key, Flow::Udp(assoc))) = self.flows.get(id) {
            let udp::Run { data, segment, ttl, .. } = &self.run;
            assoc.send(&mut self.core, key, data, (*segment, *ttl));
        }
        self.run.id = None;
    }

    /// An echo request.
    fn echo(&mut self, ip: &Ip, packet: &[u8], ident: u16, rest: [u8; 4], data: &[u8]) {
        if self.core.config.is_ours(ip.dst) {
            return icmp::answer(&mut self.core, ip, rest, data);
        }
        if ip.ttl <= 1 {
            let kind = if ip.src.is_ipv4() { icmpv4::TIME_EXCEEDED } else { icmpv6::TIME_EXCEEDED };
            let router = self.core.config.router(ip.src);
            return self.core.report(ip, packet, router, (kind, 0), 0);
        }
        let key = icmp::key(ip, ident);
        let id = if let Some(id) = self.flows.find(&key) {
            id
        } else {
            let to = match self.core.judge(ip.dst, 0) {
                Verdict::To(to) => to.ip(),
                Verdict::Refuse(why) => {
                    self.refused(&key, why);
                    return self.core.refuse(ip, packet, why);
                }
                Verdict::Dns => return,
            };
            self.make_room();
            match icmp::Ping::open(&mut self.core, to, ident) {
                Ok(ping) => {
                    let sock = ping.sock();
                    self.begun(&key);
                    let id = self.flows.insert(key, Flow::Ping(ping), self.core.now);
                    self.core.host.watch(sock, id.token());
                    self.core.stats.datagram_flows += 1;
                    id
                }
                Err(kind) => return self.core.refuse(ip, packet, tcp::refusal(kind)),
            }
        };
        self.flows.touch(id, self.core.now);
        if let Some((key, Flow::Ping(ping))) = self.flows.get(id) {
            ping.send(&mut self.core, key, ip, rest, data);
        }
    }
}

/// True for the errors that mean "no more descriptors, ports or memory".
fn exhausted(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::OutOfMemory | ErrorKind::AddrInUse | ErrorKind::StorageFull)
}
