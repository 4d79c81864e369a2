//! The engine over a cable in memory, with a simulated host and a virtual clock: the cases of the RFCs, one test
//! each, frame by frame, without privileges and without waiting. Their names begin with `case_` and the number of the
//! case, and `every_case_has_a_test` holds the list to that:
//!
//! | cases | about | file |
//! | --- | --- | --- |
//! | 1–8 | handshake, refusal, simultaneous open, early data, RFC 5961 | `tcp_open`, `tcp_data` |
//! | 9–15 | overlaps, holes, retransmission, windows | `tcp_data`, `tcp_loss` |
//! | 16–18 | half-close, FIN, TIME_WAIT | `tcp_close` |
//! | 19–23 | wrap of the sequence, scale 14, keepalive, urgent data, resets of the host | `tcp_data` |
//! | 24–26 | lying headers, fragments and odd sources, UDP lengths | `packets`, `services` |
//! | 27–30 | echo, neighbour discovery, DHCP, ARP | `packets`, `services` |

mod fuzz;
mod names;
mod noise;
mod packets;
mod peer;
mod services;
mod tcp_close;
mod tcp_data;
mod tcp_loss;
mod tcp_open;

use super::config::{Config, Loopback};
use super::device::{Capabilities, Memory, pair};
use super::engine::Engine;
use super::host::Sock;
use super::host::simulated::Simulated;
use super::time::{SEC, Time};
use super::wire::ethernet::{self, Ethernet, Mac};
use super::wire::ip::{self, Ip};
use super::wire::tcp::{ACK, SYN, Tcp};
use super::wire::udp::Udp;
use super::wire::vnet::{self, VnetHeader};
use super::wire::{icmpv4::Icmp, icmpv6::Icmpv6, put};
use std::net::{IpAddr, SocketAddr};

const GUEST_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: &str = "192.0.2.1:80";
const GUEST_PORT: u16 = 40000;
/// The guest's first sequence number in most tests: soon to wrap.
const IRS: u32 = u32::MAX - 1000;

/// A frame that the engine sent.
#[derive(Debug, Clone, PartialEq)]
struct Frame {
    meta: VnetHeader,
    eth: Ethernet,
    ip: Option<Ip>,
    /// What follows the outermost headers.
    body: Vec<u8>,
}

impl Frame {
    fn tcp(&self) -> (Tcp, Vec<u8>) {
        let ip = self.ip.expect("an IP packet");
        assert_eq!(ip.proto, ip::TCP, "{self:?}");
        let (tcp, data) = Tcp::parse(&ip, &self.body, self.meta.trusted()).expect("a good segment");
        (tcp, data.to_vec())
    }

    fn udp(&self) -> (Udp, Vec<u8>) {
        let gso = self.meta.gso_type == vnet::GSO_UDP_L4;
        let (udp, data) = Udp::parse(&self.ip.unwrap(), &self.body, self.meta.trusted(), gso).expect("good");
        (udp, data.to_vec())
    }

    /// Type, code, rest and data of an ICMP message of either family.
    fn icmp(&self) -> (u8, u8, [u8; 4], Vec<u8>) {
        let ip = self.ip.unwrap();
        if ip.src.is_ipv4() {
            let m = Icmp::parse(&self.body).expect("good checksum");
            return (m.kind, m.code, m.rest, m.data.to_vec());
        }
        let m = Icmpv6::parse(&ip, &self.body).expect("good checksum");
        (m.kind, m.code, m.rest, m.data.to_vec())
    }
}

/// An engine, and the guest's end of its cable.
struct Net {
    engine: Engine<Simulated, Memory>,
    guest: Memory,
    now: Time,
    v6: bool,
}

impl Net {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self::on(config, Capabilities::ALL)
    }

    fn on(config: Config, capabilities: Capabilities) -> Self {
        let (near, guest) = pair(capabilities, 4096);
        Self { engine: Engine::new(config, Simulated::default(), near, 0), guest, now: 0, v6: false }
    }

    fn host(&mut self) -> &mut Simulated {
        &mut self.engine.core.host
    }

    fn guest_ip(&self) -> IpAddr {
        if self.v6 { "fd00::100".parse().unwrap() } else { [10, 0, 2, 100].into() }
    }

    /// Gives the engine what is there for it until it has nothing more to do.
    fn step(&mut self) {
        loop {
            let frames = self.engine.receive().unwrap();
            let mut events = 0;
            while let Some((token, ready)) = self.host().event() {
                self.engine.host_event(token, ready);
                events += 1;
            }
            if self.engine.busy() {
                self.engine.advance(self.now);
            } else if frames + events == 0 {
                return;
            }
        }
    }

    /// Lets time pass.
    fn wait(&mut self, span: Time) {
        let end = self.now + span;
        while let Some(due) = self.engine.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.engine.advance(self.now);
            self.step();
        }
        self.now = end;
        self.engine.advance(end);
        self.step();
    }

    fn raw(&mut self, meta: VnetHeader, dst: Mac, kind: u16, packet: &[u8]) {
        use super::device::Device;
        let eth = Ethernet { dst, src: GUEST_MAC, kind };
        let frame = [&meta.emit()[..], &eth.emit(), packet].concat();
        self.guest.send(&frame).unwrap();
        self.step();
    }

    /// Sends a packet from the guest.
    fn packet(&mut self, ip: &Ip, body: &[u8]) {
        let mut packet = vec![0; ip.header_len()];
        ip.emit_into(&mut packet, body.len());
        packet.extend_from_slice(body);
        self.raw(VnetHeader::default(), self.engine.core.config.mac, ip.kind(), &packet);
    }

    fn segment_to(&mut self, to: SocketAddr, tcp: Tcp, data: &[u8]) {
        let ip = Ip::new(self.guest_ip(), to.ip(), ip::TCP);
        let tcp = Tcp {
            src_port: if tcp.src_port == 0 { GUEST_PORT } else { tcp.src_port },
            dst_port: to.port(),
            ..tcp
        };
        let (head, len) = tcp.emit(0);
        let mut segment = [&head[..len], data].concat();
        let sum = ip.pseudo(segment.len()).bytes(&segment).finish();
        put(&mut segment, 16, &sum.to_be_bytes());
        self.packet(&ip, &segment);
    }

    fn datagram_to(&mut self, to: SocketAddr, from_port: u16, data: &[u8]) {
        let ip = Ip::new(self.guest_ip(), to.ip(), ip::UDP);
        let udp = Udp { src_port: from_port, dst_port: to.port() };
        let head = udp.emit(data.len(), udp.checksum(&ip, data));
        self.packet(&ip, &[&head[..], data].concat());
    }

    /// The next frame from the engine.
    fn recv(&mut self) -> Option<Frame> {
        let bytes = self.guest.pop()?;
        let (meta, rest) = VnetHeader::parse(&bytes).unwrap();
        assert!(meta.fits(rest.len()), "our own headers do not lie");
        let (eth, packet) = Ethernet::parse(rest).unwrap();
        let (ip, body) = if eth.kind == ethernet::ARP {
            (None, packet)
        } else {
            let (ip, body) =
                Ip::parse(eth.kind, packet).unwrap_or_else(|| panic!("a good packet: {packet:02x?}"));
            (Some(ip), body)
        };
        Some(Frame { meta, eth, ip, body: body.to_vec() })
    }

    fn all(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.recv()).collect()
    }

    /// The next segment; there must be one.
    fn recv_tcp(&mut self) -> (Tcp, Vec<u8>) {
        self.recv().expect("a segment").tcp()
    }

    fn quiet(&mut self) {
        assert_eq!(self.recv(), None, "the engine says nothing");
    }

    /// Opens a connection with the usual options.
    fn open(&mut self) -> Conn {
        self.open_with(
            GUEST_PORT,
            Tcp { mss: Some(1460), window_scale: Some(7), sack_permitted: true, ..Tcp::default() },
        )
    }

    fn open_with(&mut self, port: u16, options: Tcp) -> Conn {
        let to: SocketAddr = SERVER.parse().unwrap();
        self.segment_to(to, Tcp { src_port: port, seq: IRS, flags: SYN, window: 65535, ..options }, b"");
        let (answer, _) = self.recv_tcp();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, IRS.wrapping_add(1)));
        let conn = Conn {
            to,
            port,
            sock: (self.host().sockets.len() - 1) as Sock,
            seq: IRS.wrapping_add(1),
            ack: answer.seq.wrapping_add(1),
            window: 1000,
        };
        conn.send(self, ACK, b"");
        self.quiet();
        conn
    }
}

/// The guest's view of a connection.
#[derive(Debug, Clone, Copy)]
struct Conn {
    to: SocketAddr,
    port: u16,
    sock: Sock,
    /// Next sequence number of the guest.
    seq: u32,
    /// Next that it expects.
    ack: u32,
    window: u16,
}

impl Conn {
    fn header(&self, flags: u8) -> Tcp {
        Tcp {
            src_port: self.port,
            seq: self.seq,
            ack: self.ack,
            flags,
            window: self.window,
            ..Tcp::default()
        }
    }

    /// Sends at the present place, without moving on.
    fn send(&self, net: &mut Net, flags: u8, data: &[u8]) {
        net.segment_to(self.to, self.header(flags), data);
    }

    /// Sends data and moves on.
    fn say(&mut self, net: &mut Net, data: &[u8]) {
        self.send(net, ACK, data);
        self.seq = self.seq.wrapping_add(data.len() as u32);
    }

    /// Receives one data segment, in order, and acknowledges it.
    fn hear(&mut self, net: &mut Net) -> Vec<u8> {
        let (tcp, data) = net.recv_tcp();
        assert_eq!(tcp.seq, self.ack, "in order");
        self.ack = self.ack.wrapping_add(data.len() as u32);
        self.send(net, ACK, b"");
        data
    }

    fn sent(&self, net: &mut Net) -> Vec<u8> {
        net.host().sockets[self.sock as usize].sent.clone()
    }

    fn closed(&self, net: &mut Net) -> Option<bool> {
        net.host().sockets[self.sock as usize].closed
    }
}

/// A minute is long.
const MINUTE: Time = 60 * SEC;

#[test]
fn every_case_has_a_test() {
    let sources = [
        include_str!("packets.rs"),
        include_str!("services.rs"),
        include_str!("tcp_close.rs"),
        include_str!("tcp_data.rs"),
        include_str!("tcp_loss.rs"),
        include_str!("tcp_open.rs"),
    ];
    let has = |case: u32| sources.iter().any(|s| s.contains(&format!("#[test]\nfn case_{case:02}_")));
    assert_eq!((1..=31).filter(|case| !has(*case)).collect::<Vec<_>>(), [31]);
}
