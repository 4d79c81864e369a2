//! Frames that lie, packets in pieces, sources that are not the guest's, and the neighbourhood.

use super::*;
use crate::slirp::wire::arp::{self, Arp};
use crate::slirp::wire::icmpv6;
use crate::slirp::wire::ipv4::Ipv4;
use crate::slirp::wire::ndp;
use crate::slirp::wire::tcp::PSH;

fn server() -> SocketAddr {
    SERVER.parse().unwrap()
}

#[test]
fn case_24_lying_offload_headers_are_dropped() {
    let mut net = Net::new();
    let conn = net.open();
    let ip = Ip::new(net.guest_ip(), conn.to.ip(), ip::TCP);
    let (head, len) = Tcp { dst_port: 80, ..conn.header(ACK | PSH) }.emit(0);
    let mut packet = vec![0; 20];
    ip.emit_into(&mut packet, len + 5);
    let packet = [&packet[..], &head[..len], b"hello"].concat();
    let good = VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        hdr_len: 54,
    };
    let mac = net.engine.core.config.mac;
    for bad in [
        VnetHeader { gso_size: 0, ..good },
        VnetHeader { gso_type: 99, ..good },
        VnetHeader { csum_start: 65535, ..good },
        VnetHeader { csum_offset: 60000, ..good },
        VnetHeader { csum_start: packet.len() as u16 + 14, csum_offset: 0, ..good },
    ] {
        net.raw(bad, mac, ethernet::IPV4, &packet);
    }
    assert_eq!((conn.sent(&mut net), net.engine.stats().malformed), (Vec::new(), 5));
    for odd in [
        VnetHeader { gso_size: 1, hdr_len: 0, ..good },
        VnetHeader { gso_size: 65535, hdr_len: 65535, ..good },
    ] {
        net.raw(odd, mac, ethernet::IPV4, &packet);
    }
    assert_eq!(conn.sent(&mut net), b"hello", "hdr_len is a hint and is not used");
}

#[test]
fn case_24_wrong_checksum_is_dropped_unless_the_device_vouches() {
    let mut net = Net::new();
    let conn = net.open();
    let ip = Ip::new(net.guest_ip(), conn.to.ip(), ip::TCP);
    let (head, len) = Tcp { dst_port: 80, ..conn.header(ACK) }.emit(0x1234);
    net.packet(&ip, &[&head[..len], b"bad"].concat());
    assert_eq!((conn.sent(&mut net), net.engine.stats().malformed), (Vec::new(), 1));
}

#[test]
fn case_25_ttl_1_gives_time_exceeded_from_the_gateway() {
    for (v6, to) in [(false, "192.0.2.1:33434"), (true, "[2001:db8::1]:33434")] {
        let mut net = Net::new();
        net.v6 = v6;
        let to: SocketAddr = to.parse().unwrap();
        let ip = Ip { ttl: 1, ..Ip::new(net.guest_ip(), to.ip(), ip::UDP) };
        let udp = Udp { src_port: 7, dst_port: to.port() };
        let head = udp.emit(1, udp.checksum(&ip, b"x"));
        net.packet(&ip, &[&head[..], b"x"].concat());
        let frame = net.recv().unwrap();
        assert_eq!(frame.ip.unwrap().src, net.engine.core.config.router(to.ip()));
        let (kind, code, _, quoted) = frame.icmp();
        assert_eq!((kind, code), (if v6 { 3 } else { 11 }, 0));
        assert_eq!(Ip::parse(ip.kind(), &quoted).unwrap().0.dst, to.ip());
        assert!(net.host().sockets.is_empty());
    }
}

#[test]
fn case_25_only_the_guests_own_addresses_are_forwarded() {
    let mut net = Net::new();
    for src in ["192.0.2.99", "10.0.2.2", "127.0.0.1", "10.0.2.255", "224.0.0.1"] {
        let ip = Ip::new(src.parse().unwrap(), server().ip(), ip::UDP);
        let udp = Udp { src_port: 1, dst_port: 2 };
        let head = udp.emit(0, udp.checksum(&ip, b""));
        net.packet(&ip, &head);
    }
    net.quiet();
    assert!(net.host().sockets.is_empty());
    assert_eq!(net.engine.stats().martian, 5);
}

#[test]
fn case_25_broadcast_and_multicast_go_nowhere() {
    let mut net = Net::new();
    for to in ["255.255.255.255:9", "10.0.2.255:9", "224.0.0.251:5353"] {
        net.datagram_to(to.parse().unwrap(), 9, b"x");
    }
    net.v6 = true;
    net.datagram_to("[ff02::fb]:5353".parse().unwrap(), 9, b"x");
    net.quiet();
    assert!(net.host().sockets.is_empty());
}

#[test]
fn case_25_frames_for_others_are_ignored() {
    let mut net = Net::new();
    let ip = Ip::new(net.guest_ip(), server().ip(), ip::UDP);
    let mut packet = vec![0; 28];
    ip.emit_into(&mut packet, 8);
    net.raw(VnetHeader::default(), Mac([2, 9, 9, 9, 9, 9]), ethernet::IPV4, &packet);
    net.raw(VnetHeader::default(), Mac::BROADCAST, 0x88cc, b"lldp");
    net.quiet();
    assert_eq!(net.engine.stats().unsupported, 1);
}

/// Sends a UDP datagram from the guest in pieces of `size` bytes, in the order that `order` makes.
fn in_pieces(net: &mut Net, data: &[u8], size: usize, order: impl Fn(Vec<usize>) -> Vec<usize>) {
    let ip = Ip { dont_fragment: false, ..Ip::new(net.guest_ip(), server().ip(), ip::UDP) };
    let udp = Udp { src_port: 5000, dst_port: 80 };
    let whole = [&udp.emit(data.len(), udp.checksum(&ip, data))[..], data].concat();
    let pieces: Vec<&[u8]> = whole.chunks(size).collect();
    for i in order((0..pieces.len()).collect()) {
        let header = Ipv4 {
            src: [10, 0, 2, 100].into(),
            dst: [192, 0, 2, 1].into(),
            proto: ip::UDP,
            ttl: 64,
            tos: 0,
            id: 77,
            dont_fragment: false,
            more_fragments: i + 1 < pieces.len(),
            offset: (i * size) as u16,
        };
        let packet = [&header.emit(pieces[i].len())[..], pieces[i]].concat();
        let mac = net.engine.core.config.mac;
        net.raw(VnetHeader::default(), mac, ethernet::IPV4, &packet);
    }
}

#[test]
fn case_25_fragments_are_put_together_in_any_order() {
    let data: Vec<u8> = (0..20_000u32).map(|i| (i / 3) as u8).collect();
    for reversed in [false, true] {
        let mut net = Net::new();
        in_pieces(&mut net, &data, 1480, |mut order| {
            if reversed {
                order.reverse();
            }
            order
        });
        assert_eq!(net.host().last().datagrams, [(data.clone(), 63)]);
    }
}

#[test]
fn case_25_incomplete_fragments_are_forgotten() {
    let mut net = Net::new();
    in_pieces(&mut net, &[1; 4000], 1480, |order| order[..2].to_vec());
    net.wait(20 * SEC);
    in_pieces(&mut net, &[1; 4000], 1480, |order| order[2..].to_vec());
    assert!(net.host().sockets.is_empty());
}

#[test]
fn case_26_udp_length_mismatch_and_missing_checksum_over_ipv6() {
    let mut net = Net::new();
    let ip = Ip::new(net.guest_ip(), server().ip(), ip::UDP);
    let mut head = Udp { src_port: 5, dst_port: 80 }.emit(100, 0);
    net.packet(&ip, &[&head[..], b"short"].concat());
    head[4..6].copy_from_slice(&7u16.to_be_bytes());
    net.packet(&ip, &[&head[..], b"short"].concat());
    assert!(net.host().sockets.is_empty());
    net.v6 = true;
    let ip = Ip::new(net.guest_ip(), "2001:db8::1".parse().unwrap(), ip::UDP);
    net.packet(&ip, &[&Udp { src_port: 5, dst_port: 80 }.emit(1, 0)[..], b"x"].concat());
    assert!(net.host().sockets.is_empty());
    assert_eq!(net.engine.stats().malformed, 3);
}

#[test]
fn case_28_neighbour_and_router_solicitation() {
    let mut net = Net::new();
    net.v6 = true;
    let config = net.engine.core.config.clone();
    let gateway = config.v6.as_ref().unwrap().gateway;
    let group: IpAddr = "ff02::1:ff00:2".parse().unwrap();
    let ask = |net: &mut Net, src: IpAddr, target: std::net::Ipv6Addr, ttl: u8| {
        let ip = Ip { ttl, ..Ip::new(src, group, ip::ICMPV6) };
        let data = target.octets();
        net.packet(
            &ip,
            &Icmpv6 { kind: ndp::NEIGHBOR_SOLICIT, code: 0, rest: [0; 4], data: &data }.emit(&ip),
        );
    };
    ask(&mut net, "fd00::100".parse().unwrap(), gateway, 255);
    let frame = net.recv().unwrap();
    let (kind, _, rest, data) = frame.icmp();
    assert_eq!((kind, rest[0], frame.ip.unwrap().ttl, frame.eth.dst), (136, 0xe0, 255, GUEST_MAC));
    assert_eq!((&data[..16], &data[18..24]), (&gateway.octets()[..], &config.mac.0[..]));
    ask(&mut net, "fd00::100".parse().unwrap(), gateway, 64);
    ask(&mut net, "fd00::100".parse().unwrap(), "fd00::77".parse().unwrap(), 255);
    net.quiet();

    // Duplicate address detection of somebody who wants our address: all are told that it is taken.
    ask(&mut net, "::".parse().unwrap(), gateway, 255);
    let frame = net.recv().unwrap();
    assert_eq!(frame.ip.unwrap().dst, "ff02::1".parse::<IpAddr>().unwrap());
    assert_eq!(frame.eth.dst, Mac([0x33, 0x33, 0, 0, 0, 1]));
    // And of its own.
    ask(&mut net, "::".parse().unwrap(), "fd00::100".parse().unwrap(), 255);
    net.quiet();

    let ip = Ip { ttl: 255, ..Ip::new("fe80::1".parse().unwrap(), "ff02::2".parse().unwrap(), ip::ICMPV6) };
    net.packet(&ip, &Icmpv6 { kind: ndp::ROUTER_SOLICIT, code: 0, rest: [0; 4], data: &[] }.emit(&ip));
    let frame = net.recv().unwrap();
    assert_eq!(frame.icmp().0, ndp::ROUTER_ADVERT);
    assert_eq!(frame.ip.unwrap().src, IpAddr::V6(config.link_local()));
}

#[test]
fn case_30_arp_for_gateway_and_resolver_but_nobody_else() {
    let mut net = Net::new();
    let mac = net.engine.core.config.mac;
    for (last, answered) in [(2, true), (3, true), (100, false), (7, false), (255, false)] {
        let target = [10, 0, 2, last].into();
        let ask = Arp {
            op: arp::REQUEST,
            sender_mac: GUEST_MAC,
            sender: [10, 0, 2, 100].into(),
            target_mac: Mac::default(),
            target,
        };
        net.raw(VnetHeader::default(), Mac::BROADCAST, ethernet::ARP, &ask.emit());
        let answer = net.recv().map(|f| Arp::parse(&f.body).unwrap());
        assert_eq!(
            answer.map(|a| (a.op, a.sender, a.sender_mac, a.target_mac)),
            answered.then_some((arp::REPLY, target, mac, GUEST_MAC))
        );
    }
}

#[test]
fn unknown_protocol_is_told_by_icmp() {
    let mut net = Net::new();
    let ip = Ip::new(net.guest_ip(), server().ip(), 132);
    net.packet(&ip, b"sctp");
    let (kind, code, ..) = net.recv().unwrap().icmp();
    assert_eq!((kind, code, net.engine.stats().unsupported), (3, 2, 1));
}

#[test]
fn plain_device_gets_small_segments_with_full_checksums() {
    let mut net = Net::on(Config::default(), Capabilities::default());
    let mut conn = net.open();
    conn.window = 500;
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, &[7; 10_000]);
    net.step();
    let frames = net.all();
    assert_eq!(frames.len(), 7);
    for frame in frames {
        assert_eq!((frame.meta, frame.tcp().1.len() <= 1460), (VnetHeader::default(), true));
    }
}

#[test]
fn gateway_answers_ping_even_when_loopback_is_denied() {
    for (v6, gateway) in [(false, "10.0.2.2"), (true, "fd00::2")] {
        let mut net = Net::new();
        net.v6 = v6;
        let ip = Ip::new(net.guest_ip(), gateway.parse().unwrap(), if v6 { ip::ICMPV6 } else { ip::ICMP });
        let rest = [0, 7, 0, 1];
        let message = if v6 {
            Icmpv6 { kind: icmpv6::ECHO, code: 0, rest, data: b"ping" }.emit(&ip)
        } else {
            Icmp { kind: 8, code: 0, rest, data: b"ping" }.emit()
        };
        net.packet(&ip, &message);
        let (kind, _, got, data) = net.recv().unwrap().icmp();
        assert_eq!((kind, got, data), (if v6 { 129 } else { 0 }, rest, b"ping".to_vec()));
    }
}

#[test]
fn echo_requests_without_hops_left_go_nowhere() {
    for (v6, to) in [(false, "192.0.2.1"), (true, "2001:db8::1")] {
        for ttl in [0, 1] {
            let mut net = Net::new();
            net.v6 = v6;
            let proto = if v6 { ip::ICMPV6 } else { ip::ICMP };
            let ip = Ip { ttl, ..Ip::new(net.guest_ip(), to.parse().unwrap(), proto) };
            let rest = [0, 1, 0, 1];
            let echo = if v6 {
                Icmpv6 { kind: 128, code: 0, rest, data: b"x" }.emit(&ip)
            } else {
                Icmp { kind: 8, code: 0, rest, data: b"x" }.emit()
            };
            net.packet(&ip, &echo);
            let (kind, code, ..) = net.recv().expect("an answer").icmp();
            assert_eq!((kind, code), (if v6 { 3 } else { 11 }, 0));
            assert!(net.host().sockets.is_empty());
        }
    }
}

#[test]
fn mapped_destinations_are_refused_in_the_guests_own_family() {
    let mut net = Net::new();
    net.v6 = true;
    for flags in [SYN, ACK] {
        net.segment_to("[::ffff:192.0.2.1]:80".parse().unwrap(), Tcp { flags, ..Tcp::default() }, b"");
        let frame = net.recv().expect("an answer");
        assert!(!frame.ip.unwrap().src.is_ipv4());
        assert_eq!((frame.icmp().0, frame.icmp().1), (1, 0));
    }
    assert!(net.host().sockets.is_empty());
}
