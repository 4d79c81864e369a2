//! A hostile guest: frames of every kind, mutated, shuffled and repeated, with host events in between. Nothing may
//! panic, every bound must hold, and when it is over nothing may be held.

use super::*;
use crate::slirp::wire::dhcp::tests::request;
use crate::slirp::wire::dns::{self, tests::query};
use crate::slirp::wire::ndp;
use crate::slirp::wire::tcp::{FIN, PSH, RST, URG};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A frame that is right in itself.
fn frame(random: &mut Random, net: &Net, conns: &[Conn]) -> Vec<u8> {
    let v6 = random.below(3) == 0;
    let guest: IpAddr = if v6 { "fd00::100".parse().unwrap() } else { [10, 0, 2, 100].into() };
    let remotes: [&str; 3] =
        if v6 { ["2001:db8::1", "fd00::2", "fd00::3"] } else { ["192.0.2.1", "10.0.2.2", "10.0.2.3"] };
    let remote: IpAddr = remotes[random.below(3)].parse().unwrap();
    let data: Vec<u8> = vec![random.next() as u8; random.below(3000)];
    let (ip, body) = match random.below(6) {
        0..=2 => {
            let conn = conns[random.below(conns.len())];
            let flags = [ACK, ACK | PSH, ACK | FIN, RST, SYN, ACK | URG, SYN | ACK, 0x3f][random.below(8)];
            let near = |random: &mut Random, at: u32| {
                at.wrapping_add((random.below(8000) as u32).wrapping_sub(3000))
            };
            let mut tcp = Tcp {
                src_port: conn.port,
                dst_port: 80,
                seq: near(random, conn.seq),
                ack: near(random, conn.ack),
                flags,
                window: random.next() as u16,
                mss: Some(random.next() as u16),
                window_scale: Some(random.next() as u8),
                sack_permitted: true,
                ..Tcp::default()
            };
            for _ in 0..random.below(4) {
                let left = near(random, conn.ack);
                tcp.sack.push((left, near(random, left)));
            }
            let (head, len) = tcp.emit(0);
            (Ip::new([10, 0, 2, 100].into(), conn.to.ip(), ip::TCP), [&head[..len], &data].concat())
        }
        3 => {
            let udp = Udp { src_port: random.next() as u16 % 50, dst_port: [53, 67, 9000][random.below(3)] };
            let data =
                vec![data, query("a.b", dns::A), request(&[53, 1, 1, 255])].swap_remove(random.below(3));
            (Ip::new(guest, remote, ip::UDP), [&udp.emit(data.len(), 0)[..], &data].concat())
        }
        4 if v6 => {
            let ip = Ip { ttl: 255, ..Ip::new(guest, remote, ip::ICMPV6) };
            let kind = [128, ndp::NEIGHBOR_SOLICIT, ndp::ROUTER_SOLICIT, 129][random.below(4)];
            (ip, Icmpv6 { kind, code: 0, rest: [0, 1, 0, 1], data: &data }.emit(&ip))
        }
        4 => (
            Ip::new(guest, remote, ip::ICMP),
            Icmp { kind: 8, code: 0, rest: [0, 1, 0, 1], data: &data }.emit(),
        ),
        _ => (Ip { proto: random.next() as u8, ..Ip::new(guest, remote, 0) }, data),
    };
    let ip = Ip { ttl: [64, 255, 1, 0][random.below(4)].max(u8::from(ip.ttl == 255) * 255), ..ip };
    let packet = if random.below(5) == 0 {
        let part = ip::Part {
            id: random.below(8) as u32,
            offset: random.below(400) * 8,
            more: random.below(2) == 0,
        };
        ip.emit_part(part, &body[..body.len() / 8 * 8])
    } else {
        let mut packet = vec![0; ip.header_len()];
        ip.emit_into(&mut packet, body.len());
        packet.extend_from_slice(&body);
        packet
    };
    let gso = [vnet::GSO_NONE, vnet::GSO_NONE, vnet::GSO_TCPV4, vnet::GSO_UDP_L4, 77][random.below(5)];
    let meta = VnetHeader {
        flags: [vnet::DATA_VALID, vnet::NEEDS_CSUM, 0][random.below(3)],
        gso_type: gso,
        gso_size: [0, 1, 500, 65535][random.below(4)],
        hdr_len: random.next() as u16,
        csum_start: random.below(80) as u16,
        csum_offset: random.below(20) as u16,
    };
    let eth = Ethernet { dst: net.engine.core.config.mac, src: GUEST_MAC, kind: ip.kind() };
    [&meta.emit()[..], &eth.emit(), &packet].concat()
}

fn torment(seed: u64, frames: usize) {
    use crate::slirp::device::Device;
    let mut random = Random(seed);
    let mut config = Config { resolvers: vec!["198.51.100.1:53".parse().unwrap()], ..Config::default() };
    config.limits.flows = 64;
    config.limits.half_open = 16;
    config.limits.buffered = 1 << 20;
    let mut net = Net::with(config);
    let mut conns = Vec::new();
    for i in 0..8 {
        let options = Tcp { mss: Some(1460), window_scale: Some(7), sack_permitted: true, ..Tcp::default() };
        conns.push(net.open_with(1000 + i, options));
    }
    for _ in 0..frames {
        let mut bytes = frame(&mut random, &net, &conns);
        if random.below(3) == 0 {
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(bytes.len() - random.below(bytes.len().min(60)));
        }
        net.guest.send(&bytes).unwrap();
        let sockets = net.host().sockets.len();
        let sock = random.below(sockets) as Sock;
        if net.host().sockets[sock as usize].closed.is_none() {
            match random.below(30) {
                0 => net.host().feed(sock, &vec![7; 5000]),
                1 => net.host().end(sock),
                2 => net.host().make_room(sock, 3000),
                3 => net.host().sockets[sock as usize].room = 0,
                4 => net.host().fail(sock, std::io::ErrorKind::ConnectionReset),
                5 => net.host().finish(sock, None),
                _ => {}
            }
        }
        if random.below(4) == 0 {
            net.step();
        }
        if random.below(50) == 0 {
            let span = random.next() % (3 * SEC);
            net.wait(span);
        }
        while net.guest.pop().is_some() {}
        assert!(net.engine.flow_count() <= 64, "seed {seed}");
        assert!(net.engine.core.buffered <= 1 << 20, "seed {seed}");
        assert!(net.host().open_count() <= 2 * 64, "seed {seed}");
    }
    // Nobody answers any more: in the end everything is given up and given back.
    for _ in 0..80 {
        net.wait(MINUTE);
        while net.guest.pop().is_some() {}
    }
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0), "seed {seed}");
    assert_eq!(net.engine.core.buffered, 0, "seed {seed}");
}

#[test]
fn hostile_guest_breaks_nothing() {
    // Among them 1006, which once showed a leak in the account of what is held behind holes.
    for seed in 1000..1012 {
        torment(seed, 5000);
    }
}
