//! Losses towards the guest: fast retransmission, selective retransmission, the timer.

use super::*;
use crate::slirp::wire::tcp::{PSH, RST};

/// Lets the host send `n` segments of 1460 bytes and gives their sequence numbers.
fn flight(net: &mut Net, conn: &mut Conn, n: usize) -> Vec<u32> {
    conn.window = 1000;
    conn.send(net, ACK, b"");
    let mut starts = Vec::new();
    for i in 0..n {
        net.host().feed(conn.sock, &[i as u8; 1460]);
        net.step();
        let (tcp, data) = net.recv_tcp();
        assert_eq!((tcp.flags, data.len()), (ACK | PSH, 1460));
        starts.push(tcp.seq);
    }
    starts
}

#[test]
fn case_11_three_duplicate_acknowledgements_send_again_at_once() {
    let mut net = Net::new();
    let mut conn =
        net.open_with(GUEST_PORT, Tcp { mss: Some(1460), window_scale: Some(7), ..Tcp::default() });
    let starts = flight(&mut net, &mut conn, 5);
    for _ in 0..2 {
        conn.send(&mut net, ACK, b"");
        net.quiet();
    }
    conn.send(&mut net, ACK, b"");
    let (again, data) = net.recv_tcp();
    assert_eq!((again.seq, data[0]), (starts[0], 0));
    assert_eq!(net.engine.stats().timeouts, 0);
}

#[test]
fn case_11_with_sack_only_the_hole_is_sent_again() {
    let mut net = Net::new();
    let mut conn = net.open();
    let starts = flight(&mut net, &mut conn, 8);
    // The second and the fifth were lost.
    conn.ack = starts[1];
    let mut sack = crate::slirp::wire::tcp::Sack::default();
    sack.push((starts[5], starts[7].wrapping_add(1460)));
    sack.push((starts[2], starts[4]));
    net.segment_to(conn.to, Tcp { sack, ..conn.header(ACK) }, b"");
    let again: Vec<(u32, usize, u8)> =
        net.all().iter().map(Frame::tcp).map(|(t, d)| (t.seq, d.len(), d[0])).collect();
    assert_eq!(again, [(starts[1], 1460, 1), (starts[4], 1460, 4)]);
    conn.ack = starts[7].wrapping_add(1460);
    conn.send(&mut net, ACK, b"");
    net.wait(10 * SEC);
    net.quiet();
    assert_eq!(net.engine.stats().retransmits, 2);
}

#[test]
fn case_12_timer_backs_off_and_gives_up_in_the_end() {
    let mut net = Net::new();
    let mut conn = net.open();
    let starts = flight(&mut net, &mut conn, 1);
    let mut gaps = Vec::new();
    let mut last = net.now;
    while conn.closed(&mut net).is_none() {
        net.wait(SEC / 20);
        for frame in net.all() {
            let (tcp, data) = frame.tcp();
            if tcp.flags & RST == 0 {
                assert_eq!((tcp.seq, data.len()), (starts[0], 1460));
                gaps.push((net.now - last) / (SEC / 20));
                last = net.now;
            }
        }
        assert!(net.now < 60 * MINUTE);
    }
    assert_eq!(gaps[..5], [4, 8, 16, 32, 64], "200 ms, doubling");
    assert_eq!(gaps.len(), 15);
    assert!(gaps.iter().all(|g| *g <= 2400), "never more than two minutes");
}

#[test]
fn case_12_after_a_timeout_the_rest_follows_the_answers() {
    let mut net = Net::new();
    let mut conn =
        net.open_with(GUEST_PORT, Tcp { mss: Some(1460), window_scale: Some(7), ..Tcp::default() });
    let starts = flight(&mut net, &mut conn, 4);
    net.wait(SEC / 4);
    let (first, data) = net.recv_tcp();
    assert_eq!((first.seq, data.len()), (starts[0], 1460));
    net.quiet();
    conn.ack = starts[1];
    conn.send(&mut net, ACK, b"");
    let rest: usize = net.all().iter().map(|f| f.tcp().1.len()).sum();
    assert_eq!(rest, 3 * 1460);
}

#[test]
fn measured_round_trip_sets_the_timer() {
    let mut net = Net::new();
    let mut conn = net.open();
    // The guest answers after half a second: an honest path is that long.
    for _ in 0..12 {
        net.host().feed(conn.sock, b"x");
        net.step();
        net.wait(SEC / 2);
        let frames = net.all();
        conn.ack = conn.ack.wrapping_add(1);
        conn.send(&mut net, ACK, b"");
        drop(frames);
    }
    let before = net.engine.stats().timeouts;
    net.host().feed(conn.sock, b"x");
    net.step();
    net.wait(SEC / 2);
    assert_eq!(net.engine.stats().timeouts, before, "no needless retransmission any more");
}

#[test]
fn host_queue_holds_what_is_not_acknowledged() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().feed(conn.sock, &vec![1; 40_000]);
    net.step();
    net.all();
    assert_eq!(net.host().sockets[conn.sock as usize].queue.len(), 40_000);
    conn.ack = conn.ack.wrapping_add(30_000);
    conn.send(&mut net, ACK, b"");
    assert_eq!(net.host().sockets[conn.sock as usize].queue.len(), 10_000);
    assert_eq!(net.engine.core.buffered, 0);
}

#[test]
fn nothing_that_is_acknowledged_stays_in_the_hosts_queue() {
    // Linux frees what it has joined only as a whole: a rest of a few bytes can keep the sender's window shut.
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().feed(conn.sock, &vec![1; 65_000]);
    net.step();
    net.all();
    for step in [60_000, 4_999] {
        conn.ack = conn.ack.wrapping_add(step);
        conn.send(&mut net, ACK, b"");
    }
    assert_eq!(net.host().sockets[conn.sock as usize].queue.len(), 65_000 - 60_000, "more is under way");
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(&mut net, ACK, b"");
    assert_eq!(net.host().sockets[conn.sock as usize].queue.len(), 0);
}

#[test]
fn repeated_losses_do_not_stretch_the_timer() {
    // A measure that took the timer itself for a round trip would grow it each time.
    let mut net = Net::new();
    let mut conn = net.open();
    let began = net.now;
    for _ in 0..12 {
        let starts = flight(&mut net, &mut conn, 1);
        let again = loop {
            net.wait(SEC / 20);
            if let Some(frame) = net.recv() {
                break frame.tcp().0.seq;
            }
        };
        assert_eq!(again, starts[0]);
        conn.ack = starts[0].wrapping_add(1460);
        conn.send(&mut net, ACK, b"");
        net.quiet();
    }
    assert!(net.now - began < 4 * SEC, "{} µs", net.now - began);
}
