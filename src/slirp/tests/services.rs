//! UDP, echo, DNS and DHCP through the engine.

use super::*;
use crate::slirp::forward::Forward;
use crate::slirp::host::Fault;
use crate::slirp::host::simulated::Outcome;
use crate::slirp::policy::Domain;
use crate::slirp::wire::dhcp::tests::request;
use crate::slirp::wire::dns::{self, tests::query};
use std::io::ErrorKind;

fn server() -> SocketAddr {
    "192.0.2.1:9000".parse().unwrap()
}

#[test]
fn udp_there_and_back() {
    let mut net = Net::new();
    net.datagram_to(server(), 5000, b"question");
    assert_eq!(net.host().sockets[0].datagrams, [(b"question".to_vec(), 63)]);
    net.host().datagram(0, b"answer", 6, None);
    net.step();
    let (udp, data) = net.recv().unwrap().udp();
    assert_eq!((udp.src_port, udp.dst_port, data), (9000, 5000, b"answer".to_vec()));
    net.datagram_to(server(), 5000, b"");
    assert_eq!(net.host().sockets[0].datagrams.len(), 2, "an empty datagram is a datagram");
}

#[test]
fn case_26_largest_datagram() {
    let mut net = Net::with(Config { mtu: 65520, ..Config::default() });
    let data = vec![9; 65507 - 20];
    net.datagram_to(server(), 5000, &data);
    assert_eq!(net.host().sockets[0].datagrams[0].0, data);
    net.host().datagram(0, &data, data.len(), None);
    net.step();
    assert_eq!(net.recv().unwrap().udp().1, data);
}

#[test]
fn datagram_beyond_the_mtu_comes_in_pieces_that_fit() {
    for v6 in [false, true] {
        let mut net = Net::new();
        net.v6 = v6;
        let to = if v6 { "[2001:db8::1]:9000".parse().unwrap() } else { server() };
        net.datagram_to(to, 5000, b"x");
        let data: Vec<u8> = (0..5000u32).map(|i| (i / 7) as u8).collect();
        net.host().datagram(0, &data, data.len(), None);
        net.step();
        let mut reassembly = crate::slirp::fragment::Reassembly::default();
        let frames = net.all();
        assert_eq!(frames.len(), 4);
        let mut whole = None;
        for frame in frames {
            let ip = frame.ip.unwrap();
            assert!(frame.body.len() + ip.header_len() <= 1500);
            whole = reassembly.add(0, &ip, ip.part.unwrap(), &frame.body);
        }
        let (ip, body) = whole.unwrap();
        assert_eq!(Udp::parse(&ip, &body, false, false).unwrap().1, data);
    }
}

#[test]
fn joined_datagrams_go_on_as_one_frame_or_one_by_one() {
    for uso in [true, false] {
        let mut net = Net::on(Config::default(), Capabilities { uso, ..Capabilities::ALL });
        net.datagram_to(server(), 5000, b"x");
        net.host().datagram(0, &[4; 1000], 300, None);
        net.step();
        let frames = net.all();
        let sizes: Vec<usize> = frames.iter().map(|f| f.udp().1.len()).collect();
        if uso {
            assert_eq!(
                (sizes, frames[0].meta.gso_type, frames[0].meta.gso_size),
                (vec![1000], vnet::GSO_UDP_L4, 300)
            );
        } else {
            assert_eq!(sizes, [300, 300, 300, 100]);
        }
    }
}

#[test]
fn guests_large_frame_is_cut_where_it_says() {
    let mut net = Net::new();
    let ip = Ip::new(net.guest_ip(), server().ip(), ip::UDP);
    let mut packet = vec![0; 20];
    ip.emit_into(&mut packet, 8 + 2500);
    let packet = [&packet[..], &Udp { src_port: 5000, dst_port: 9000 }.emit(2500, 0), &[1; 2500]].concat();
    let meta = VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_UDP_L4,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 6,
        hdr_len: 42,
    };
    let mac = net.engine.core.config.mac;
    net.raw(meta, mac, ethernet::IPV4, &packet);
    let sizes: Vec<usize> = net.host().sockets[0].datagrams.iter().map(|(d, _)| d.len()).collect();
    assert_eq!(sizes, [1000, 1000, 500]);
}

#[test]
fn icmp_errors_about_datagrams_come_back() {
    let mut net = Net::new();
    net.datagram_to(server(), 5000, b"x");
    let cases = [
        (Fault { kind: 3, code: 3, info: 0, offender: server().ip() }, server().ip()),
        (Fault { kind: 11, code: 0, info: 0, offender: [203, 0, 113, 1].into() }, [203, 0, 113, 1].into()),
        (Fault { kind: 3, code: 4, info: 1280, offender: [203, 0, 113, 2].into() }, [203, 0, 113, 2].into()),
    ];
    for (fault, from) in cases {
        net.host().icmp(0, fault);
        net.step();
        let frame = net.recv().unwrap();
        let (kind, code, rest, quoted) = frame.icmp();
        assert_eq!((kind, code, frame.ip.unwrap().src), (fault.kind, fault.code, from));
        assert_eq!(u32::from_be_bytes(rest), fault.info);
        let (ip, body) = Ip::parse(ethernet::IPV4, &quoted).unwrap();
        assert_eq!(
            (ip.dst, &body[..4]),
            (server().ip(), &[&5000u16.to_be_bytes()[..], &9000u16.to_be_bytes()].concat()[..])
        );
    }
}

#[test]
fn udp_flows_end_after_30_or_120_seconds() {
    let mut net = Net::new();
    net.datagram_to(server(), 1, b"x");
    net.datagram_to(server(), 2, b"x");
    net.host().datagram(1, b"y", 1, None);
    net.step();
    net.wait(32 * SEC);
    assert_eq!((net.engine.flow_count(), net.host().sockets[0].closed), (1, Some(false)));
    net.wait(91 * SEC);
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0));
}

#[test]
fn udp_spray_over_all_ports_never_runs_out_of_descriptors() {
    let mut net = Net::new();
    net.host().limit = 256;
    for port in 1..=60_000u16 {
        net.datagram_to(SocketAddr::new(server().ip(), port), 7, b"x");
    }
    assert_eq!(net.host().last().datagrams.len(), 1, "the last was sent");
    assert!(net.host().open_count() <= 256);
}

#[test]
fn udp_forward_knows_its_clients_apart() {
    let mut net = Net::new();
    let listener = net.host().socket(None);
    let to = "10.0.2.100:53".parse().unwrap();
    let index = net.engine.add_forward(Forward { listener, tcp: false, to });
    for (client, seen) in [("203.0.113.9:1111", "203.0.113.9"), ("127.0.0.1:2222", "10.0.2.2")] {
        let client: SocketAddr = client.parse().unwrap();
        net.host().datagram(listener, b"ask", 3, Some(client));
        net.step();
        let frame = net.recv().unwrap();
        let seen = SocketAddr::new(seen.parse().unwrap(), client.port());
        assert_eq!((frame.ip.unwrap().src, frame.udp().0.dst_port), (seen.ip(), 53));
        net.datagram_to(seen, 53, b"told");
        let socket = &net.host().sockets[listener as usize];
        assert_eq!((socket.to, socket.datagrams.last().unwrap().0.as_slice()), (Some(client), &b"told"[..]));
    }
    assert!(net.engine.remove_forward(index) && !net.engine.remove_forward(index));
    assert_eq!((net.engine.flow_count(), net.host().sockets[listener as usize].closed), (0, Some(false)));
}

/// The frames that the engine made of datagrams: size of a segment (zero for a frame that is not cut) and data.
fn frames(net: &mut Net) -> Vec<(u16, usize)> {
    net.all().iter().map(|frame| (frame.meta.gso_size, frame.udp().1.len())).collect()
}

#[test]
fn datagrams_that_come_together_leave_together() {
    let mut net = Net::new();
    net.datagram_to(server(), 1, b"x");
    let come = |net: &mut Net, sizes: &[usize]| {
        for size in sizes {
            net.host().datagram(0, &vec![7; *size], *size, None);
        }
        net.step();
        frames(net)
    };
    assert_eq!(come(&mut net, &[1400; 16]), [(1400, 22_400)]);
    assert_eq!(
        come(&mut net, &[1400; 100]),
        [(1400, 63_000), (1400, 63_000), (1400, 14_000)],
        "64 000 bytes"
    );
    assert_eq!(come(&mut net, &[10; 100]), [(10, 640), (10, 360)], "64 datagrams");
    // A shorter one is the last, a longer one begins anew; so do empty ones and those that must be cut in fragments.
    assert_eq!(
        come(&mut net, &[900, 900, 30, 30, 900, 0, 900, 900]),
        [(900, 1830), (0, 30), (0, 900), (0, 0), (900, 1800)]
    );
    for size in [3000, 3000] {
        net.host().datagram(0, &vec![7; size], size, None);
    }
    net.step();
    assert_eq!(net.all().iter().filter(|frame| frame.ip.unwrap().part.is_some()).count(), 6);
    // What the kernel has joined is joined further.
    net.host().datagram(0, &[7; 2000], 500, None);
    net.host().datagram(0, &[7; 1100], 500, None);
    net.host().datagram(0, &[7; 500], 500, None);
    net.step();
    assert_eq!(frames(&mut net), [(500, 3100), (0, 500)]);
    net.engine.core.config.mtu = 1000;
    assert_eq!(come(&mut net, &[972, 972]), [(972, 1944)]);

    let mut net = Net::on(Config::default(), Capabilities { uso: false, ..Capabilities::ALL });
    net.datagram_to(server(), 1, b"x");
    assert_eq!(come(&mut net, &[1400; 3]), [(0, 1400); 3], "a device that does not cut");
}

#[test]
fn udp_forward_takes_and_gives_many_at_once() {
    let mut net = Net::new();
    let listener = net.host().socket(None);
    net.engine.add_forward(Forward { listener, tcp: false, to: "10.0.2.100:53".parse().unwrap() });
    let clients: [SocketAddr; 2] = ["203.0.113.9:1".parse().unwrap(), "203.0.113.9:2".parse().unwrap()];
    for client in clients {
        for _ in 0..150 {
            net.host().datagram(listener, &[5; 1000], 1000, Some(client));
        }
    }
    // Told once, and its turns come until all is taken.
    let (token, ready) = net.host().event().unwrap();
    while net.host().event().is_some() {}
    net.engine.host_event(token, ready);
    while net.engine.busy() {
        net.engine.advance(net.now);
    }
    let frames = net.all();
    for client in clients {
        let own = frames.iter().filter(|frame| frame.udp().0.src_port == client.port());
        assert_eq!(own.map(|frame| frame.udp().1.len()).sum::<usize>(), 150_000);
    }
    assert!(frames.len() <= 10, "{}", frames.len());
    let to = SocketAddr::new("203.0.113.9".parse().unwrap(), 2);
    let ip = Ip::new(net.guest_ip(), to.ip(), ip::UDP);
    let header = Udp { src_port: 53, dst_port: 2 }.emit(3000, 0);
    let meta = VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_UDP_L4,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 6,
        ..VnetHeader::default()
    };
    let mut packet = vec![0; 20];
    ip.emit_into(&mut packet, 3008);
    let packet = [&packet[..], &header, &[6; 3000]].concat();
    net.raw(meta, net.engine.core.config.mac, ethernet::IPV4, &packet);
    let socket = &net.host().sockets[listener as usize];
    assert_eq!((socket.to, socket.datagrams.len(), socket.sends), (Some(to), 3, 1));
}

#[test]
fn case_27_echo_keeps_its_identifier_and_identifiers_are_reused() {
    let mut net = Net::new();
    let ip = Ip::new(net.guest_ip(), server().ip(), ip::ICMP);
    let ping = |net: &mut Net, seq: u8| {
        let message = Icmp { kind: 8, code: 0, rest: [0x12, 0x34, 0, seq], data: b"abc" }.emit();
        net.packet(&ip, &message);
    };
    ping(&mut net, 1);
    ping(&mut net, 2);
    assert_eq!((net.host().sockets.len(), net.host().sockets[0].datagrams.len()), (1, 2));
    // The kernel gave the socket another identifier.
    let reply = Icmp { kind: 0, code: 0, rest: [0xff, 0xff, 0, 2], data: b"abc" }.emit();
    net.host().datagram(0, &reply, reply.len(), None);
    net.step();
    let (kind, _, rest, data) = net.recv().unwrap().icmp();
    assert_eq!((kind, rest, data), (0, [0x12, 0x34, 0, 2], b"abc".to_vec()));
    net.wait(62 * SEC);
    assert_eq!((net.engine.flow_count(), net.host().sockets[0].closed), (0, Some(false)));
    ping(&mut net, 3);
    assert_eq!(net.host().sockets.len(), 2);
}

#[test]
fn forbidden_ping_is_told_and_counted() {
    let mut net = Net::new();
    let to = SocketAddr::new(server().ip(), 0);
    net.host().outcomes.insert(to, Outcome::Fails(ErrorKind::PermissionDenied));
    let ip = Ip::new(net.guest_ip(), to.ip(), ip::ICMP);
    net.packet(&ip, &Icmp { kind: 8, code: 0, rest: [0; 4], data: b"" }.emit());
    let (kind, code, ..) = net.recv().unwrap().icmp();
    assert_eq!((kind, code, net.engine.stats().ping_forbidden), (3, 13, 1));
}

fn with_resolvers() -> Net {
    Net::with(Config {
        resolvers: vec!["198.51.100.1:53".parse().unwrap(), "198.51.100.2:53".parse().unwrap()],
        names: vec![("db".into(), vec!["10.0.2.7".parse().unwrap()])],
        ..Config::default()
    })
}

fn dns_server() -> SocketAddr {
    "10.0.2.3:53".parse().unwrap()
}

#[test]
fn dns_is_relayed_and_answered() {
    let mut net = with_resolvers();
    let ask = query("example.org", dns::A);
    net.datagram_to(dns_server(), 777, &ask);
    assert_eq!(net.host().sockets[0].to, Some("198.51.100.1:53".parse().unwrap()));
    assert_eq!(net.host().sockets[0].datagrams[0].0, ask);
    let mut forged = ask.clone();
    forged[0] ^= 1;
    net.host().datagram(0, &forged, forged.len(), None);
    net.step();
    net.quiet();
    net.host().datagram(0, &ask, ask.len(), None);
    net.step();
    let (udp, data) = net.recv().unwrap().udp();
    assert_eq!((udp.src_port, udp.dst_port, data), (53, 777, ask.clone()));
    net.host().datagram(0, &ask, ask.len(), None);
    net.step();
    net.quiet();
}

#[test]
fn silent_resolver_is_passed_over_after_a_second_and_remembered() {
    let mut net = with_resolvers();
    let ask = query("example.org", dns::A);
    net.datagram_to(dns_server(), 777, &ask);
    net.wait(SEC);
    assert_eq!(net.host().sockets[1].to, Some("198.51.100.2:53".parse().unwrap()));
    net.host().datagram(1, &ask, ask.len(), None);
    net.step();
    assert_eq!(net.recv().unwrap().udp().1, ask);
    net.datagram_to(dns_server(), 778, &ask);
    assert_eq!(net.host().last().to, Some("198.51.100.2:53".parse().unwrap()), "who answered is asked first");
}

#[test]
fn refusing_resolver_is_passed_over_at_once() {
    let mut net = with_resolvers();
    net.datagram_to(dns_server(), 777, &query("example.org", dns::A));
    net.host().icmp(0, Fault { kind: 3, code: 3, info: 0, offender: [198, 51, 100, 1].into() });
    net.step();
    assert_eq!(net.host().sockets[1].datagrams.len(), 1);
    assert_eq!(net.engine.stats().dns_failover, 1);
}

#[test]
fn no_resolver_answers_is_servfail_not_a_hang() {
    let mut net = with_resolvers();
    let ask = query("example.org", dns::A);
    net.datagram_to(dns_server(), 777, &ask);
    net.wait(4 * SEC);
    let (_, data) = net.recv().unwrap().udp();
    assert_eq!((&data[..2], data[3] & 15), (&ask[..2], dns::SERVER_FAILURE));
    net.wait(20 * SEC);
    net.quiet();
    assert_eq!(net.host().open_count(), 0);
    let mut none = Net::new();
    none.datagram_to(dns_server(), 777, &ask);
    assert_eq!(none.recv().unwrap().udp().1[3] & 15, dns::SERVER_FAILURE);
}

#[test]
fn static_and_denied_names_are_answered_here() {
    let mut net = with_resolvers();
    net.engine.core.config.denied_names = vec![Domain::whole("ads.example")];
    net.datagram_to(dns_server(), 777, &query("DB", dns::A));
    let (_, data) = net.recv().unwrap().udp();
    assert_eq!(&data[data.len() - 4..], &[10, 0, 2, 7]);
    for name in ["ads.example", "x.ads.example"] {
        net.datagram_to(dns_server(), 777, &query(name, dns::A));
        assert_eq!(net.recv().unwrap().udp().1[3] & 15, dns::REFUSED);
    }
    assert!(net.host().sockets.is_empty());
    net.datagram_to(dns_server(), 777, &query("loads.example", dns::A));
    assert_eq!(net.host().sockets.len(), 1);
}

#[test]
fn a_closed_network_knows_its_own_names_and_no_others() {
    let mut net = with_resolvers();
    let config = &mut net.engine.core.config;
    config.closed = true;
    config.views = vec![(config.v4.guest.into(), "far".into(), vec!["10.9.9.9".parse().unwrap()])];
    config.views.push(("10.0.2.77".parse().unwrap(), "other".into(), vec!["10.9.9.8".parse().unwrap()]));
    for (name, code) in
        [("db", dns::NO_ERROR), ("far", dns::NO_ERROR), ("other", dns::NO_NAME), ("x.org", dns::NO_NAME)]
    {
        net.datagram_to(dns_server(), 777, &query(name, dns::A));
        assert_eq!(net.recv().unwrap().udp().1[3] & 15, code, "{name}");
    }
    net.datagram_to("192.0.2.1:9".parse().unwrap(), 777, b"out");
    assert!(net.host().sockets.is_empty(), "neither names nor datagrams leave it");
}

#[test]
fn dns_over_tcp_moves_on_to_the_next_resolver() {
    let mut net = with_resolvers();
    net.host().outcomes.insert("198.51.100.1:53".parse().unwrap(), Outcome::Later);
    net.host().outcomes.insert("198.51.100.2:53".parse().unwrap(), Outcome::Later);
    net.segment_to(dns_server(), Tcp { seq: 1, flags: SYN, window: 1000, ..Tcp::default() }, b"");
    net.wait(SEC + SEC / 10);
    assert_eq!(net.host().sockets[1].to, Some("198.51.100.2:53".parse().unwrap()));
    net.host().finish(1, None);
    net.step();
    assert_eq!(net.recv_tcp().0.flags, SYN | ACK);
    assert_eq!((net.host().sockets[0].closed, net.host().sockets[1].closed), (Some(true), None));
}

#[test]
fn case_29_dhcp_discover_request_and_bad_lengths() {
    let mut net = Net::new();
    let ask = |net: &mut Net, options: &[u8]| {
        let ip = Ip::new([0; 4].into(), [255; 4].into(), ip::UDP);
        let udp = Udp { src_port: 68, dst_port: 67 };
        let data = request(options);
        let head = udp.emit(data.len(), udp.checksum(&ip, &data));
        net.packet(&ip, &[&head[..], &data].concat());
        net.recv()
    };
    let offer = ask(&mut net, &[53, 1, 1, 255]).unwrap();
    assert_eq!((offer.eth.dst, offer.ip.unwrap().dst), (Mac::BROADCAST, IpAddr::from([255; 4])));
    let (udp, data) = offer.udp();
    assert_eq!((udp.src_port, udp.dst_port, &data[16..20], data[242]), (67, 68, &[10, 0, 2, 15][..], 2));
    let ack = ask(&mut net, &[53, 1, 3, 50, 4, 10, 0, 2, 15, 255]).unwrap().udp().1;
    assert_eq!((&ack[16..20], ack[242]), (&[10, 0, 2, 15][..], 5));
    let nak = ask(&mut net, &[53, 1, 3, 50, 4, 10, 0, 2, 99, 255]).unwrap().udp().1;
    assert_eq!((&nak[16..20], nak[242]), (&[0; 4][..], 6));
    for bad in [&[53, 9, 1][..], &[53, 1], &[12, 200, 1]] {
        assert_eq!(ask(&mut net, bad), None);
    }
    assert_eq!(ask(&mut net, &[53, 1, 3, 54, 4, 9, 9, 9, 9, 255]), None, "another server is meant");
    net.engine.core.config.services = false;
    assert_eq!(ask(&mut net, &[53, 1, 1, 255]), None);
}
