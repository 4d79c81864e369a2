//! Frames of a real kernel, mutated. Whatever comes: no panic, bounds hold, answers are well formed and few.

use super::super::*;
use super::{Random, run};
use crate::slirp::device::Device;

/// What a Linux guest and busybox's udhcpc sent through a real engine: ARP, neighbour discovery, echo (cut ones too),
/// TCP with and without options, urgent data and resets, DNS, DHCP, broadcast and multicast.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    let hex = |line: &str| {
        let digits = line.as_bytes().chunks(2);
        digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    };
    include_str!("corpus.hex").lines().map(hex).collect()
}

fn history(seed: u64, corpus: &[Vec<u8>]) {
    let mut random = Random(seed);
    let mut config = Config { resolvers: vec!["198.51.100.1:53".parse().unwrap()], ..Config::default() };
    config.limits.flows = 48;
    config.limits.half_open = 12;
    config.limits.buffered = 1 << 18;
    config.loopback = if random.once_in(2) { Loopback::Allow } else { Loopback::Deny };
    let capabilities = random.pick(&[Capabilities::ALL, Capabilities::default()]);
    let mut net = Net::on(config, capabilities);
    let mut sent = 0;
    for _ in 0..400 {
        let mut frame = corpus[random.below(corpus.len())].clone();
        let mut meta = VnetHeader { flags: random.pick(&[0, vnet::NEEDS_CSUM, 2]), ..VnetHeader::default() };
        if !random.once_in(4) {
            random.damage(&mut frame);
        }
        if random.once_in(5) {
            meta.gso_type = random.pick(&[vnet::GSO_TCPV4, vnet::GSO_TCPV6, vnet::GSO_UDP_L4, 3]);
            meta.gso_size = random.odd() as u16;
            meta.csum_start = random.odd() as u16;
        }
        let whole = [&meta.emit()[..], &frame].concat();
        net.guest.send(&whole[..whole.len().min(crate::slirp::device::MAX_FRAME)]).unwrap();
        let sockets = net.host().sockets.len();
        if sockets > 0 {
            let sock = random.below(sockets) as Sock;
            if net.host().sockets[sock as usize].closed.is_none() {
                match random.below(12) {
                    0 => net.host().feed(sock, &vec![7; 9000]),
                    1 => net.host().datagram(sock, &vec![9; 1 + random.below(3000)], 700, None),
                    2 => net.host().end(sock),
                    3 => net.host().sockets[sock as usize].room = random.below(2000),
                    _ => {}
                }
            }
        }
        net.step();
        if random.once_in(20) {
            net.wait(random.next() % (2 * SEC));
        }
        // `recv` holds every frame to be well formed.
        sent += net.all().len();
        assert!(net.engine.flow_count() <= 48);
        assert!(net.engine.core.buffered <= 1 << 18);
    }
    assert!(sent < 400 * 30, "{sent} frames in answer to 400");
    for _ in 0..80 {
        net.wait(MINUTE);
        net.all();
    }
    assert_eq!((net.engine.flow_count(), net.engine.core.buffered), (0, 0));
    assert_eq!(net.host().open_count(), 0);
}

#[test]
fn frames() {
    let corpus = corpus();
    assert!(corpus.len() > 20);
    run(|seed| history(seed, &corpus));
}
