//! Opening connections: RFC 9293 §3.10.7, RFC 6528, RFC 5961 and what the application must see.

use super::*;
use crate::slirp::config::Loopback;
use crate::slirp::forward::Forward;
use crate::slirp::host::simulated::Outcome;
use crate::slirp::policy::{Rule, Whom};
use crate::slirp::wire::tcp::{FIN, PSH, RST};
use std::io::ErrorKind;

fn syn() -> Tcp {
    Tcp {
        seq: IRS,
        flags: SYN,
        window: 65535,
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        ..Tcp::default()
    }
}

fn server() -> SocketAddr {
    SERVER.parse().unwrap()
}

#[test]
fn case_01_syn_ack_only_after_the_hosts_connect_with_all_options() {
    let mut net = Net::new();
    net.host().outcomes.insert(server(), Outcome::Later);
    net.segment_to(server(), syn(), b"");
    net.quiet();
    net.host().finish(0, None);
    net.step();
    let (answer, _) = net.recv_tcp();
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, IRS + 1));
    assert_eq!((answer.mss, answer.window_scale, answer.sack_permitted), (Some(1460), Some(7), true));
    assert_eq!(net.host().sockets[0].to, Some(server()));
}

#[test]
fn case_01_options_are_offered_only_to_those_who_offer_them() {
    let mut net = Net::new();
    net.segment_to(server(), Tcp { window_scale: None, sack_permitted: false, ..syn() }, b"");
    let (answer, _) = net.recv_tcp();
    assert_eq!((answer.window_scale, answer.sack_permitted), (None, false));
}

#[test]
fn case_01_over_ipv6() {
    let mut net = Net::new();
    net.v6 = true;
    let to = "[2001:db8::1]:443".parse().unwrap();
    net.segment_to(to, syn(), b"");
    let (answer, _) = net.recv_tcp();
    assert_eq!((answer.flags, answer.mss), (SYN | ACK, Some(1440)));
    assert_eq!(net.host().sockets[0].to, Some(to));
}

#[test]
fn case_02_repeated_syn_gets_the_same_sequence_number() {
    let mut net = Net::new();
    net.segment_to(server(), syn(), b"");
    let (first, _) = net.recv_tcp();
    net.now += 500_000;
    net.engine.advance(net.now);
    net.segment_to(server(), syn(), b"");
    let (second, _) = net.recv_tcp();
    assert_eq!((first.seq, first.ack), (second.seq, second.ack));
    assert_eq!(net.host().sockets.len(), 1);
}

#[test]
fn case_02_sequence_numbers_differ_between_connections() {
    let mut net = Net::new();
    let mut seen = std::collections::HashSet::new();
    for port in 1..200 {
        net.segment_to(server(), Tcp { src_port: port, ..syn() }, b"");
        assert!(seen.insert(net.recv_tcp().0.seq >> 8));
    }
}

#[test]
fn case_03_segment_to_nobody_is_reset() {
    let mut net = Net::new();
    net.segment_to(server(), Tcp { seq: 7, ack: 99, flags: ACK, ..Tcp::default() }, b"abc");
    let (rst, _) = net.recv_tcp();
    assert_eq!((rst.flags, rst.seq), (RST, 99));
    net.segment_to(server(), Tcp { seq: 7, flags: FIN, ..Tcp::default() }, b"abc");
    let (rst, _) = net.recv_tcp();
    assert_eq!((rst.flags, rst.seq, rst.ack), (RST | ACK, 0, 7 + 3 + 1));
    net.segment_to(server(), Tcp { flags: RST, ..Tcp::default() }, b"");
    net.quiet();
}

#[test]
fn case_03_refused_connection_is_reset() {
    let mut net = Net::new();
    for outcome in [Outcome::Fails(ErrorKind::ConnectionRefused), Outcome::Later] {
        net.host().outcomes.insert(server(), outcome);
        net.segment_to(server(), syn(), b"");
        if outcome == Outcome::Later {
            net.host().finish(0, Some(ErrorKind::ConnectionRefused));
            net.step();
        }
        let (rst, _) = net.recv_tcp();
        assert_eq!((rst.flags, rst.seq, rst.ack), (RST | ACK, 0, IRS + 1));
    }
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0));
}

#[test]
fn case_04_unreachable_is_told_by_icmp_that_quotes_the_syn() {
    let cases = [
        (ErrorKind::NetworkUnreachable, 0),
        (ErrorKind::HostUnreachable, 1),
        (ErrorKind::PermissionDenied, 13),
    ];
    for (kind, code) in cases {
        let mut net = Net::new();
        net.host().outcomes.insert(server(), Outcome::Later);
        net.segment_to(server(), syn(), b"");
        net.host().finish(0, Some(kind));
        net.step();
        let frame = net.recv().unwrap();
        assert_eq!(frame.ip.unwrap().src, IpAddr::from([10, 0, 2, 2]));
        let (icmp, got, _, quoted) = frame.icmp();
        assert_eq!((icmp, got), (3, code));
        let (ip, body) = Ip::parse(ethernet::IPV4, &quoted).unwrap();
        assert_eq!((ip.src, ip.dst), (net.guest_ip(), server().ip()));
        assert_eq!(
            body[..8],
            [&GUEST_PORT.to_be_bytes()[..], &80u16.to_be_bytes(), &IRS.to_be_bytes()].concat()
        );
    }
}

#[test]
fn case_04_timeout_is_silence() {
    let mut net = Net::new();
    net.host().outcomes.insert(server(), Outcome::Later);
    net.segment_to(server(), syn(), b"");
    net.host().finish(0, Some(ErrorKind::TimedOut));
    net.step();
    net.quiet();
    assert_eq!(net.engine.flow_count(), 0);
}

#[test]
fn case_05_simultaneous_open() {
    let mut net = Net::new();
    let listener = net.host().socket(None);
    let to = "10.0.2.100:8080".parse().unwrap();
    net.engine.add_forward(Forward { listener, tcp: true, to });
    net.host().dial(listener, "203.0.113.9:5555".parse().unwrap());
    net.step();
    let (ours, _) = net.recv_tcp();
    assert_eq!((ours.flags, ours.src_port, ours.dst_port), (SYN, 5555, 8080));
    let client = "203.0.113.9:5555".parse().unwrap();
    net.segment_to(client, Tcp { src_port: 8080, seq: 100, flags: SYN, window: 1000, ..Tcp::default() }, b"");
    let (answer, _) = net.recv_tcp();
    assert_eq!((answer.flags, answer.seq, answer.ack), (SYN | ACK, ours.seq, 101));
    let back =
        Tcp { src_port: 8080, seq: 100, ack: ours.seq + 1, flags: SYN | ACK, window: 1000, ..Tcp::default() };
    net.segment_to(client, back, b"");
    assert_eq!(net.recv_tcp().0.flags, ACK);
    net.segment_to(client, Tcp { seq: 101, flags: ACK | PSH, ..back }, b"hello");
    assert_eq!(net.recv_tcp().0.ack, 106);
    assert_eq!(net.host().sockets[1].sent, b"hello");
}

#[test]
fn case_05_forward_shows_the_clients_address_and_passes_data_both_ways() {
    let mut net = Net::new();
    let listener = net.host().socket(None);
    let to: SocketAddr = "10.0.2.100:8080".parse().unwrap();
    net.engine.add_forward(Forward { listener, tcp: true, to });
    for (client, seen) in [
        ("203.0.113.9:5555", "203.0.113.9"),
        ("127.0.0.1:5556", "10.0.2.2"),
        ("[2001:db8::9]:5557", "10.0.2.2"),
    ] {
        let client: SocketAddr = client.parse().unwrap();
        let sock = net.host().dial(listener, client);
        net.host().feed(sock, b"request");
        net.step();
        let frame = net.recv().unwrap();
        let (syn, _) = frame.tcp();
        let seen = SocketAddr::new(seen.parse().unwrap(), client.port());
        assert_eq!((frame.ip.unwrap().src, syn.flags, syn.window_scale), (seen.ip(), SYN, Some(7)));
        let mut back = Tcp {
            src_port: 8080,
            seq: 500,
            ack: syn.seq + 1,
            flags: SYN | ACK,
            window: 9000,
            ..Tcp::default()
        };
        net.segment_to(seen, back, b"");
        assert_eq!(net.recv_tcp().0.flags, ACK);
        assert_eq!(net.recv_tcp().1, b"request");
        back = Tcp { seq: 501, ack: syn.seq + 8, flags: ACK, ..back };
        net.segment_to(seen, back, b"answer");
        assert_eq!(net.recv_tcp().0.ack, 507);
        assert_eq!(net.host().sockets[sock as usize].sent, b"answer");
    }
}

#[test]
fn case_05_closed_port_behind_a_forward_resets_the_client() {
    let mut net = Net::new();
    let listener = net.host().socket(None);
    net.engine.add_forward(Forward { listener, tcp: true, to: "10.0.2.100:9".parse().unwrap() });
    let client = "203.0.113.9:5555".parse().unwrap();
    let sock = net.host().dial(listener, client);
    net.step();
    let (syn, _) = net.recv_tcp();
    let rst = Tcp { src_port: 9, ack: syn.seq + 1, flags: RST | ACK, ..Tcp::default() };
    net.segment_to(client, Tcp { ack: syn.seq + 2, ..rst }, b"");
    assert_eq!(net.host().sockets[sock as usize].closed, None, "a reset of something else");
    net.segment_to(client, rst, b"");
    assert_eq!(net.host().sockets[sock as usize].closed, Some(true));
}

#[test]
fn case_06_data_in_the_syn_is_not_acknowledged_and_comes_again() {
    let mut net = Net::new();
    net.segment_to(server(), syn(), b"early");
    let (answer, _) = net.recv_tcp();
    assert_eq!(answer.ack, IRS + 1);
    let ack = Tcp { seq: IRS + 1, ack: answer.seq + 1, flags: ACK, window: 1000, ..Tcp::default() };
    net.segment_to(server(), ack, b"early");
    assert_eq!(net.recv_tcp().0.ack, IRS + 6);
    assert_eq!(net.host().sockets[0].sent, b"early");
}

#[test]
fn case_07_syn_within_a_connection_is_challenged() {
    let mut net = Net::new();
    let conn = net.open();
    for seq in [conn.seq, conn.seq.wrapping_add(5000), IRS, 12345] {
        net.segment_to(server(), Tcp { seq, ..syn() }, b"");
        let (challenge, _) = net.recv_tcp();
        assert_eq!((challenge.flags, challenge.seq, challenge.ack), (ACK, conn.ack, conn.seq));
    }
    assert_eq!(conn.closed(&mut net), None);
    assert_eq!(net.engine.stats().challenges, 4);
}

#[test]
fn case_07_challenges_are_rate_limited() {
    let mut net = Net::new();
    net.open();
    for _ in 0..2000 {
        net.segment_to(server(), syn(), b"");
        net.all();
    }
    assert_eq!(net.engine.stats().challenges, 1000);
}

#[test]
fn case_12_syn_and_syn_ack_are_sent_again_with_growing_pauses() {
    let mut net = Net::new();
    net.segment_to(server(), syn(), b"");
    let (first, _) = net.recv_tcp();
    let mut times = Vec::new();
    while net.engine.flow_count() > 0 {
        net.wait(SEC / 10);
        for frame in net.all() {
            let (tcp, _) = frame.tcp();
            if tcp.flags & RST == 0 {
                assert_eq!((tcp.flags, tcp.seq), (SYN | ACK, first.seq));
                times.push(net.now / (SEC / 10));
            }
        }
    }
    assert_eq!(times, [10, 30, 70, 150, 310], "after 1, 3, 7, 15 and 31 s");
    assert_eq!(net.host().sockets[0].closed, Some(true));
}

#[test]
fn host_loopback_is_refused_at_once_with_net_unreachable() {
    for (v6, gateway) in [(false, "10.0.2.2:22"), (true, "[fd00::2]:22")] {
        let mut net = Net::new();
        net.v6 = v6;
        net.segment_to(gateway.parse().unwrap(), syn(), b"");
        let (kind, code, ..) = net.recv().unwrap().icmp();
        assert_eq!((kind, code), if v6 { (1, 0) } else { (3, 0) });
        assert!(net.host().sockets.is_empty());
    }
    let mut net = Net::with(Config { loopback: Loopback::Ports(vec![22..=22]), ..Config::default() });
    net.segment_to("10.0.2.2:22".parse().unwrap(), syn(), b"");
    assert_eq!(net.recv_tcp().0.flags, SYN | ACK);
    assert_eq!(net.host().sockets[0].to, Some("127.0.0.1:22".parse().unwrap()));
}

#[test]
fn denied_destination_is_told_at_once() {
    let rule = Rule { allow: false, whom: Whom::Net(server().ip(), 32), ports: 80..=80 };
    let mut net = Net::with(Config { rules: vec![rule], ..Config::default() });
    net.segment_to(server(), syn(), b"");
    assert_eq!(net.recv().unwrap().icmp().1, 13);
}

#[test]
fn syn_flood_holds_no_more_than_the_limit_and_the_oldest_give_way() {
    let mut config = Config::default();
    config.limits.half_open = 100;
    let mut net = Net::with(config);
    net.host().outcomes.insert(server(), Outcome::Later);
    for port in 1..=5000 {
        net.segment_to(server(), Tcp { src_port: port, ..syn() }, b"");
    }
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (100, 100));
    assert_eq!(net.engine.stats().shed, 4900);
    let last = net.host().sockets.len() as Sock - 1;
    net.host().finish(last, None);
    net.step();
    assert_eq!(net.recv_tcp().0.flags, SYN | ACK, "the newest are alive");
}

#[test]
fn at_the_bound_of_flows_the_longest_idle_is_shed() {
    let mut config = Config::default();
    config.limits.flows = 32;
    let mut net = Net::with(config);
    let options = Tcp { mss: Some(1460), ..Tcp::default() };
    let mut first = net.open_with(1, options);
    for port in 2..=32 {
        net.now += 1000;
        net.engine.advance(net.now);
        net.open_with(port, options);
    }
    first.say(&mut net, b"x");
    net.all();
    net.segment_to(server(), Tcp { src_port: 33, ..syn() }, b"");
    let frames = net.all();
    let resets: Vec<u16> =
        frames.iter().map(Frame::tcp).filter(|(t, _)| t.flags & RST != 0).map(|(t, _)| t.dst_port).collect();
    assert_eq!(resets, [2, 3], "a sixteenth, and not the one that was used");
    assert_eq!(net.engine.flow_count(), 31);
}

#[test]
fn without_descriptors_the_longest_idle_make_room() {
    let mut net = Net::new();
    net.host().limit = 20;
    for port in 1..=60 {
        net.segment_to(server(), Tcp { src_port: port, ..syn() }, b"");
        let frames = net.all();
        let (answer, _) = frames.last().unwrap().tcp();
        assert_eq!((answer.flags, answer.dst_port), (SYN | ACK, port));
        net.now += 1000;
        net.engine.advance(net.now);
    }
    assert_eq!(net.host().open_count(), 20);
}
