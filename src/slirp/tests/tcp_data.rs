//! Data on an open connection: windows, probes, urgent data, the wrap of sequence numbers.

use super::*;
use crate::slirp::time::MS;
use crate::slirp::wire::tcp::{PSH, RST, URG};
use std::io::ErrorKind;

#[test]
fn case_07_data_outside_the_window_is_answered_and_dropped() {
    let mut net = Net::new();
    let conn = net.open();
    for offset in [-10i32, 9_000_000] {
        net.segment_to(
            conn.to,
            Tcp { seq: conn.seq.wrapping_add(offset as u32), ..conn.header(ACK) },
            b"0123456789",
        );
        let (ack, _) = net.recv_tcp();
        assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, conn.ack, conn.seq));
    }
    assert_eq!(conn.sent(&mut net), b"");
}

#[test]
fn case_07_acknowledgement_of_what_was_never_sent_is_challenged() {
    let mut net = Net::new();
    let conn = net.open();
    for ack in [conn.ack.wrapping_add(1), conn.ack.wrapping_sub(3_000_000)] {
        net.segment_to(conn.to, Tcp { ack, ..conn.header(ACK) }, b"blind");
        assert_eq!(net.recv_tcp().0.ack, conn.seq);
    }
    assert_eq!(conn.sent(&mut net), b"");
}

#[test]
fn case_07_reset_within_the_window_is_challenged() {
    let mut net = Net::new();
    let conn = net.open();
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_add(100), ..conn.header(RST) }, b"");
    assert_eq!((net.recv_tcp().0.ack, conn.closed(&mut net)), (conn.seq, None));
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_sub(1), ..conn.header(RST) }, b"");
    net.quiet();
    assert_eq!(conn.closed(&mut net), None);
}

#[test]
fn case_08_exact_reset_ends_both_sides() {
    let mut net = Net::new();
    let conn = net.open();
    conn.send(&mut net, RST, b"");
    net.quiet();
    assert_eq!((conn.closed(&mut net), net.engine.flow_count()), (Some(true), 0));
}

#[test]
fn case_09_overlap_left_right_and_inside() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.say(&mut net, b"abcdef");
    let at = |offset: i32| conn.seq.wrapping_add(offset as u32);
    net.segment_to(conn.to, Tcp { seq: at(-3), ..conn.header(ACK) }, b"XXXghi");
    net.segment_to(conn.to, Tcp { seq: at(-5), ..conn.header(ACK) }, b"YYY");
    net.segment_to(conn.to, Tcp { seq: at(6), ..conn.header(ACK) }, b"mno");
    net.segment_to(conn.to, Tcp { seq: at(1), ..conn.header(ACK) }, b"ZZjklWWWpq");
    assert_eq!(conn.sent(&mut net), b"abcdefghijklWWWpq");
    let (last, _) = net.all().pop().unwrap().tcp();
    assert_eq!((last.ack, last.sack.len), (at(11), 0));
}

#[test]
fn case_10_hole_is_told_by_sack_and_filled() {
    let mut net = Net::new();
    let conn = net.open();
    let piece = |net: &mut Net, offset: u32| {
        net.segment_to(
            conn.to,
            Tcp { seq: conn.seq.wrapping_add(offset), ..conn.header(ACK) },
            &[offset as u8; 10],
        );
        net.recv_tcp().0
    };
    let range = |from: u32, to: u32| (conn.seq.wrapping_add(from), conn.seq.wrapping_add(to));
    assert_eq!(piece(&mut net, 10).sack.as_slice(), [range(10, 20)]);
    assert_eq!(piece(&mut net, 40).sack.as_slice(), [range(40, 50), range(10, 20)]);
    let third = piece(&mut net, 20);
    assert_eq!((third.ack, third.sack.as_slice()), (conn.seq, &[range(10, 30), range(40, 50)][..]));
    let filled = piece(&mut net, 0);
    assert_eq!((filled.ack, filled.sack.as_slice()), (conn.seq.wrapping_add(30), &[range(40, 50)][..]));
    assert_eq!(piece(&mut net, 30).ack, conn.seq.wrapping_add(50));
    assert_eq!(conn.sent(&mut net), [[0; 10], [10; 10], [20; 10], [30; 10], [40; 10]].concat());
    assert_eq!(net.engine.core.buffered, 0);
}

#[test]
fn case_10_no_sack_to_those_who_did_not_offer_it() {
    let mut net = Net::new();
    let conn = net.open_with(GUEST_PORT, Tcp { mss: Some(1460), ..Tcp::default() });
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_add(10), ..conn.header(ACK) }, b"late");
    assert_eq!(net.recv_tcp().0.sack.len, 0);
}

#[test]
fn case_13_zero_window_is_probed_and_a_lost_opening_does_not_hang() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.window = 0;
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, b"waiting");
    net.step();
    net.quiet();
    for _ in 0..40 {
        net.wait(MINUTE);
        for frame in net.all() {
            let (probe, data) = frame.tcp();
            assert_eq!((probe.seq, data.len()), (conn.ack.wrapping_sub(1), 0));
            conn.send(&mut net, ACK, b"");
        }
    }
    assert_eq!(conn.closed(&mut net), None, "a guest that answers may keep its window closed for ever");
    conn.window = 100;
    conn.send(&mut net, ACK, b"");
    assert_eq!(conn.hear(&mut net), b"waiting");
}

#[test]
fn case_13_guest_that_answers_no_probe_is_given_up() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.window = 0;
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, b"waiting");
    net.wait(60 * MINUTE);
    assert_eq!(conn.closed(&mut net), Some(true));
}

#[test]
fn case_14_advertised_right_edge_never_moves_left() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().sockets[conn.sock as usize].room = 100_000;
    let mut edge = 0u32;
    let mut closed = false;
    for _ in 0..1000 {
        conn.say(&mut net, &[7; 1400]);
        for frame in net.all() {
            let (tcp, _) = frame.tcp();
            let right = tcp.ack.wrapping_sub(IRS).wrapping_add(u32::from(tcp.window) << 7);
            assert!(right >= edge, "{right} < {edge}");
            edge = right;
            closed |= tcp.window == 0;
        }
        if closed {
            break;
        }
    }
    assert!(closed, "a host that does not read closes the window");
    assert!(net.engine.core.buffered <= 2 << 20);
    net.host().make_room(conn.sock, usize::MAX / 2);
    net.step();
    assert!(net.recv_tcp().0.window > 0, "the opening is told");
    assert_eq!(net.engine.core.buffered, 0);
    let said = conn.seq.wrapping_sub(IRS + 1) as usize;
    assert!(conn.sent(&mut net).len() <= said);
}

#[test]
fn case_15_silly_window_is_not_filled() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.window = 100; // 12 800 bytes
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, &vec![1; 20_000]);
    net.step();
    let sent: usize = net.all().iter().map(|f| f.tcp().1.len()).sum();
    // A multiple of the segment size, then nothing: 1120 bytes of window are left.
    assert_eq!(sent, 12_800 - 12_800 % 1460);
    conn.ack = conn.ack.wrapping_add(sent as u32);
    conn.window = 1; // 128 bytes
    conn.send(&mut net, ACK, b"");
    net.quiet();
    conn.window = 12; // one segment
    conn.send(&mut net, ACK, b"");
    assert_eq!(conn.hear(&mut net).len(), 1460);
}

#[test]
fn case_19_sequence_numbers_wrap_both_ways() {
    let mut net = Net::new();
    let mut conn = net.open();
    assert!(conn.seq > u32::MAX - 2000);
    let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    for piece in data.chunks(999) {
        conn.say(&mut net, piece);
        assert_eq!(net.recv_tcp().0.ack, conn.seq);
    }
    assert!(conn.seq < 6000);
    assert_eq!(conn.sent(&mut net), data);
}

#[test]
fn case_20_window_scale_14() {
    let mut net = Net::new();
    let mut conn = net.open_with(
        GUEST_PORT,
        Tcp { mss: Some(1460), window_scale: Some(15), sack_permitted: true, ..Tcp::default() },
    );
    conn.window = 100; // 1 638 400 bytes with the greatest scale that is legal
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, &vec![5; 3_000_000]);
    net.step();
    let frames = net.all();
    let sent: usize = frames.iter().map(|f| f.tcp().1.len()).sum();
    assert!((1_638_400 - 1460..=1_638_400).contains(&sent), "{sent}");
    assert!(
        frames
            .iter()
            .any(|f| f.meta.gso_type == vnet::GSO_TCPV4 && f.meta.gso_size == 1460 && f.body.len() > 60_000)
    );
}

#[test]
fn largest_mtu_moves_data_of_any_size() {
    let mut net = Net::with(Config { mtu: 65520, ..Config::default() });
    let options = Tcp { mss: Some(65480), window_scale: Some(7), sack_permitted: true, ..Tcp::default() };
    let mut conn = net.open_with(GUEST_PORT, options);
    conn.window = 60_000;
    conn.send(&mut net, ACK, b"");
    net.host().feed(conn.sock, &vec![8; 1_000_000]);
    net.step();
    let sent: usize = net.all().iter().map(|f| f.tcp().1.len()).sum();
    assert_eq!(sent, 1_000_000);
}

#[test]
fn case_21_keepalive_probe_of_length_0_and_1_is_answered_and_mirrored() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.say(&mut net, b"x");
    net.all();
    for garbage in [&b""[..], b"g"] {
        net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_sub(1), ..conn.header(ACK) }, garbage);
        let (ack, _) = net.recv_tcp();
        assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, conn.ack, conn.seq));
    }
    assert!(net.host().sockets[conn.sock as usize].keepalive);
    assert_eq!(conn.sent(&mut net), b"x");
}

#[test]
fn case_21_silent_guest_is_probed_and_a_vanished_one_given_up() {
    let mut net = Net::new();
    let conn = net.open();
    net.wait(MINUTE + 2 * SEC);
    let (probe, data) = net.recv_tcp();
    assert_eq!((probe.seq, probe.flags, data.len()), (conn.ack.wrapping_sub(1), ACK, 0));
    conn.send(&mut net, ACK, b"");
    for _ in 0..30 {
        net.wait(MINUTE);
        for _ in net.all() {
            conn.send(&mut net, ACK, b"");
        }
    }
    assert_eq!(conn.closed(&mut net), None);
    net.wait(30 * MINUTE);
    assert_eq!(conn.closed(&mut net), Some(true));
}

#[test]
fn case_22_urgent_data_is_delivered_in_line() {
    let mut net = Net::new();
    let conn = net.open();
    net.segment_to(conn.to, Tcp { urgent: 3, ..conn.header(ACK | URG) }, b"abcdef");
    assert_eq!(conn.sent(&mut net), b"abcdef");
}

#[test]
fn case_23_broken_host_connection_resets_the_guest() {
    for kind in [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe] {
        let mut net = Net::new();
        let mut conn = net.open();
        conn.say(&mut net, b"before");
        net.all();
        net.host().fail(conn.sock, kind);
        net.step();
        let (rst, _) = net.recv_tcp();
        assert_eq!((rst.flags & RST, rst.seq), (RST, conn.ack));
        assert_eq!(net.engine.flow_count(), 0);
    }
}

#[test]
fn case_23_data_before_a_reset_still_arrives() {
    let mut net = Net::new();
    let conn = net.open();
    net.host().feed(conn.sock, b"last words");
    net.host().fail(conn.sock, ErrorKind::ConnectionReset);
    net.step();
    assert_eq!(net.recv_tcp().1, b"last words");
    assert_eq!(net.recv_tcp().0.flags & RST, RST);
}

/// Opens a connection over a path whose round trip takes so long.
fn open_far(net: &mut Net, trip: Time) -> Conn {
    let to: SocketAddr = SERVER.parse().unwrap();
    let options = Tcp { mss: Some(1460), window_scale: Some(7), sack_permitted: true, ..Tcp::default() };
    let syn = Tcp { src_port: GUEST_PORT, seq: IRS, flags: SYN, window: 65535, ..options };
    net.segment_to(to, syn, b"");
    let (answer, _) = net.recv_tcp();
    let (seq, ack) = (answer.ack, answer.seq.wrapping_add(1));
    let conn = Conn { to, port: GUEST_PORT, sock: 0, seq, ack, window: 1000 };
    net.wait(trip);
    conn.send(net, ACK, b"");
    conn
}

/// The window that the engine offers after `rounds` round trips of `trip`, in each of which the guest sends as much
/// as it may, up to `most` bytes, evenly spread.
fn window_after(rounds: u32, trip: Time, most: usize) -> usize {
    let mut net = Net::new();
    let mut conn = open_far(&mut net, trip);
    let (piece, mut window) = (vec![1; 60_000], 64_000);
    for _ in 0..rounds {
        let count = (window.min(most) / piece.len()).max(1) as u64;
        for _ in 0..count {
            net.wait(trip / count);
            conn.say(&mut net, &piece);
            let (told, _) = net.recv_tcp();
            window = usize::from(told.window) << 7;
        }
    }
    window
}

#[test]
fn window_follows_what_a_guest_sends_in_a_round_trip() {
    for trip in [MS, 100 * MS] {
        // A sender that always fills it has all of it in some round trips, though no two frames come together.
        assert!(window_after(8, trip, usize::MAX) > 8_000_000, "{trip}");
        // One that sends little gets no more than it needs.
        assert!(window_after(30, trip, 60_000) < 600_000, "{trip}");
    }
}

#[test]
fn much_is_taken_out_at_once_where_much_is_under_way() {
    for (trip, most) in [(0, 100), (100 * MS, 12)] {
        let mut net = Net::new();
        let mut conn = open_far(&mut net, trip);
        conn.window = 60_000;
        conn.send(&mut net, ACK, b"");
        net.host().feed(conn.sock, &vec![1; 4_000_000]);
        net.step();
        let frames = net.all();
        assert!(frames.len() > 50);
        for frame in frames {
            conn.ack = conn.ack.wrapping_add(frame.tcp().1.len() as u32);
            conn.send(&mut net, ACK, b"");
        }
        let socket = &net.host().sockets[0];
        assert!(
            socket.discards <= most && (trip != 0 || socket.discards > 50),
            "{trip}: {}",
            socket.discards
        );
        assert_eq!(socket.queue.len(), 0, "in the end all is taken out");
    }
}

#[test]
fn one_acknowledgement_for_a_batch_and_one_for_each_megabyte() {
    use crate::slirp::device::Device;
    let mut net = Net::new();
    let conn = net.open();
    // Open the window wide first.
    let mut seq = conn.seq;
    let frame = |seq: u32, net: &Net| {
        let ip = Ip::new(net.guest_ip(), conn.to.ip(), ip::TCP);
        let header = Tcp { seq, dst_port: 80, ..conn.header(ACK | PSH) };
        let (head, len) = header.emit(0);
        let mut packet = vec![0; 20];
        ip.emit_into(&mut packet, len + 60_000);
        let meta = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_TCPV4,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        let eth = Ethernet { dst: net.engine.core.config.mac, src: GUEST_MAC, kind: ethernet::IPV4 };
        [&meta.emit()[..], &eth.emit(), &packet, &head[..len], &vec![9; 60_000]].concat()
    };
    for round in 0..20 {
        for _ in 0..[1, 4, 16, 16, 16][round / 4] {
            let bytes = frame(seq, &net);
            net.guest.send(&bytes).unwrap();
            seq = seq.wrapping_add(60_000);
        }
        net.step();
        assert_eq!(net.all().len(), 1);
    }
    for _ in 0..40 {
        let bytes = frame(seq, &net);
        net.guest.send(&bytes).unwrap();
        seq = seq.wrapping_add(60_000);
    }
    net.step();
    let acks = net.all();
    assert_eq!(acks.len(), 3, "2.4 MB");
    assert_eq!(acks[2].tcp().0.ack, seq);
    assert_eq!(conn.sent(&mut net).len(), (4 + 16 + 192 + 40) * 60_000);
}

#[test]
fn bound_of_all_buffers_holds_and_nothing_is_lost() {
    let mut config = Config::default();
    config.limits.buffered = 100_000;
    let mut net = Net::with(config);
    let mut conns: Vec<Conn> = (1..=8)
        .map(|p| net.open_with(p, Tcp { mss: Some(1460), window_scale: Some(7), ..Tcp::default() }))
        .collect();
    for conn in &conns {
        net.host().sockets[conn.sock as usize].room = 0;
    }
    for _ in 0..40 {
        for conn in &mut conns {
            conn.send(&mut net, ACK, &[3; 1000]);
            // Move on as far as we are acknowledged.
            if let Some(frame) = net.all().pop() {
                conn.seq = frame.tcp().0.ack;
            }
        }
        assert!(net.engine.core.buffered <= 100_000);
    }
    let mut total = 0;
    for conn in &conns {
        net.host().make_room(conn.sock, usize::MAX / 2);
        net.step();
        assert_eq!(conn.sent(&mut net).len(), conn.seq.wrapping_sub(IRS + 1) as usize);
        total += conn.sent(&mut net).len();
    }
    assert_eq!((total, net.engine.core.buffered), (100_000, 0));
}
