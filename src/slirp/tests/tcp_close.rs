//! Ending connections: half-close, FIN with data, again and again, `TIME_WAIT`.

use super::*;
use crate::slirp::wire::tcp::{FIN, RST};

#[test]
fn case_16_guest_closes_its_half_and_still_hears() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.send(&mut net, ACK | FIN, b"");
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    assert!(net.host().sockets[conn.sock as usize].shut);
    net.host().feed(conn.sock, b"still here");
    net.step();
    assert_eq!(conn.hear(&mut net), b"still here");
    net.host().end(conn.sock);
    net.step();
    let (fin, _) = net.recv_tcp();
    assert_eq!((fin.flags, fin.seq), (FIN | ACK, conn.ack));
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(&mut net, ACK, b"");
    assert_eq!((conn.closed(&mut net), net.engine.flow_count()), (Some(false), 0));
    assert!(net.host().sockets[conn.sock as usize].queue.is_empty(), "or closing would reset the peer");
}

#[test]
fn case_16_host_closes_its_half_and_still_hears() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().feed(conn.sock, b"bye");
    net.host().end(conn.sock);
    net.step();
    assert_eq!(conn.hear(&mut net), b"bye");
    assert_eq!(net.recv_tcp().0.flags, FIN | ACK);
    conn.ack = conn.ack.wrapping_add(1);
    conn.say(&mut net, b"not yet");
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    assert_eq!(conn.sent(&mut net), b"not yet");
    assert_eq!(conn.closed(&mut net), None);
    conn.send(&mut net, ACK | FIN, b"");
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    assert_eq!(conn.closed(&mut net), Some(false));
}

#[test]
fn case_17_fin_with_data_and_fin_again() {
    let mut net = Net::new();
    let mut conn = net.open();
    for _ in 0..2 {
        conn.send(&mut net, ACK | FIN, b"the end");
        assert_eq!(net.recv_tcp().0.ack, conn.seq.wrapping_add(8));
    }
    assert_eq!(conn.sent(&mut net), b"the end");
    conn.seq = conn.seq.wrapping_add(8);
    net.segment_to(conn.to, Tcp { seq: conn.seq, ..conn.header(ACK) }, b"after the end");
    net.recv_tcp();
    assert_eq!(conn.sent(&mut net), b"the end");
}

#[test]
fn case_17_fin_behind_a_hole_waits_for_it() {
    let mut net = Net::new();
    let conn = net.open();
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_add(5), ..conn.header(ACK | FIN) }, b"world");
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    assert!(!net.host().sockets[conn.sock as usize].shut);
    conn.send(&mut net, ACK, b"hello");
    assert_eq!(net.recv_tcp().0.ack, conn.seq.wrapping_add(11));
    assert!(net.host().sockets[conn.sock as usize].shut);
    assert_eq!(conn.sent(&mut net), b"helloworld");
}

#[test]
fn case_17_fin_is_acknowledged_only_when_the_host_has_everything() {
    let mut net = Net::new();
    let conn = net.open();
    net.host().sockets[conn.sock as usize].room = 3;
    conn.send(&mut net, ACK | FIN, b"slow reader");
    assert_eq!(net.recv_tcp().0.ack, conn.seq.wrapping_add(11), "the data, not the FIN");
    assert!(!net.host().sockets[conn.sock as usize].shut);
    net.host().make_room(conn.sock, 100);
    net.step();
    assert_eq!(net.recv_tcp().0.ack, conn.seq.wrapping_add(12));
    assert!(net.host().sockets[conn.sock as usize].shut);
    assert_eq!(conn.sent(&mut net), b"slow reader");
}

#[test]
fn case_17_reset_after_fin() {
    let mut net = Net::new();
    let mut conn = net.open();
    conn.send(&mut net, ACK | FIN, b"");
    conn.seq = conn.seq.wrapping_add(1);
    net.all();
    conn.send(&mut net, RST, b"");
    assert_eq!((conn.closed(&mut net), net.engine.flow_count()), (Some(true), 0));
}

#[test]
fn case_17_reset_after_both_fins_takes_nothing_from_the_host() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().end(conn.sock);
    net.step();
    assert_eq!(net.recv_tcp().0.flags, FIN | ACK);
    conn.send(&mut net, ACK | FIN, b"last");
    conn.seq = conn.seq.wrapping_add(5);
    net.all();
    conn.send(&mut net, RST, b"");
    assert_eq!((conn.closed(&mut net), net.engine.flow_count()), (Some(false), 0));
    assert_eq!(conn.sent(&mut net), b"last");
}

#[test]
fn case_12_our_fin_is_sent_again() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().end(conn.sock);
    net.step();
    let (fin, _) = net.recv_tcp();
    net.wait(SEC);
    let again = net.all();
    assert!(again.len() >= 2);
    for frame in again {
        let (tcp, _) = frame.tcp();
        assert_eq!((tcp.flags, tcp.seq), (fin.flags, fin.seq));
    }
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(&mut net, ACK, b"");
    net.wait(10 * SEC);
    net.quiet();
}

/// Closes from the host's side first.
fn close_first(net: &mut Net, conn: &mut Conn) {
    net.host().end(conn.sock);
    net.step();
    net.recv_tcp();
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(net, ACK | FIN, b"");
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
}

#[test]
fn case_18_time_wait_answers_a_late_fin_and_yields_to_a_new_connection() {
    let mut net = Net::new();
    let mut conn = net.open();
    close_first(&mut net, &mut conn);
    assert_eq!(net.engine.flow_count(), 1, "remembered");
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_sub(1), ..conn.header(ACK | FIN) }, b"");
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    let syn = Tcp { flags: SYN, window: 65535, ..Tcp::default() };
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_sub(100), ..syn }, b"");
    assert_eq!(net.recv_tcp().0.flags, ACK, "an old SYN");
    net.segment_to(conn.to, Tcp { seq: conn.seq.wrapping_add(100), ..syn }, b"");
    let answers = net.all();
    assert_eq!(answers.last().unwrap().tcp().0.flags, SYN | ACK);
}

#[test]
fn case_18_time_wait_ends() {
    let mut net = Net::new();
    let mut conn = net.open();
    close_first(&mut net, &mut conn);
    net.wait(5 * SEC);
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0));
    net.quiet();
}

#[test]
fn both_close_at_once() {
    let mut net = Net::new();
    let mut conn = net.open();
    net.host().end(conn.sock);
    net.step();
    net.recv_tcp();
    // The guest's FIN has crossed ours.
    conn.send(&mut net, ACK | FIN, b"");
    conn.seq = conn.seq.wrapping_add(1);
    assert_eq!(net.recv_tcp().0.ack, conn.seq);
    conn.ack = conn.ack.wrapping_add(1);
    conn.send(&mut net, ACK, b"");
    assert_eq!(conn.closed(&mut net), Some(false));
}
