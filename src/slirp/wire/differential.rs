//! The wire layer against two independent implementations, on valid frames and on mutated ones.
//!
//! Whatever a mutation does, parsing must not panic; and where an oracle and we both accept a header, both must
//! have read the same.

use super::{ethernet, ip, ip::Ip, ipv4::Ipv4, ipv6::Ipv6, tcp, tcp::Tcp, udp::Udp, vnet};
use smoltcp::wire as smol;
use std::net::IpAddr;

/// A small generator (splitmix64): a failing case is named by its seed.
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

fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        ("fd00::100".parse().unwrap(), "2001:db8::1".parse().unwrap())
    } else {
        ([10, 0, 2, 100].into(), [192, 0, 2, 1].into())
    }
}

/// A packet of `proto` around `body`.
fn packet(ip: &Ip, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; ip.header_len()];
    ip.emit_into(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

fn tcp_packet(random: &mut Random, v6: bool) -> Vec<u8> {
    let (src, dst) = addresses(v6);
    let ip = Ip::new(src, dst, ip::TCP);
    let mut header = Tcp {
        src_port: random.next() as u16,
        dst_port: random.next() as u16,
        seq: random.next() as u32,
        ack: random.next() as u32,
        flags: tcp::ACK,
        window: random.next() as u16,
        ..Tcp::default()
    };
    if random.below(2) == 0 {
        header.flags = tcp::SYN;
        header.mss = Some(1460);
        header.window_scale = Some(random.below(15) as u8);
        header.sack_permitted = true;
    } else {
        for _ in 0..random.below(4) {
            let left = random.next() as u32;
            header.sack.push((left, left.wrapping_add(100)));
        }
    }
    let (head, len) = header.emit(0);
    let mut segment = head[..len].to_vec();
    segment.extend((0..random.below(40)).map(|i| i as u8));
    let sum = ip.pseudo(segment.len()).bytes(&segment).finish();
    super::put(&mut segment, 16, &sum.to_be_bytes());
    packet(&ip, &segment)
}

fn udp_packet(random: &mut Random, v6: bool) -> Vec<u8> {
    let (src, dst) = addresses(v6);
    let ip = Ip::new(src, dst, ip::UDP);
    let udp = Udp { src_port: random.next() as u16, dst_port: random.next() as u16 };
    let data: Vec<u8> = (0..random.below(60)).map(|_| random.next() as u8).collect();
    let head = udp.emit(data.len(), udp.checksum(&ip, &data));
    packet(&ip, &[&head[..], &data].concat())
}

/// Compares what smoltcp and we make of a packet's TCP; returns whether both accepted it.
fn same_tcp(kind: u16, bytes: &[u8]) -> bool {
    let Some((ip, segment)) = Ip::parse(kind, bytes) else { return false };
    if ip.proto != ip::TCP || ip.part.is_some() {
        return false;
    }
    let ours = Tcp::parse(&ip, segment, false);
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    let theirs = smol::TcpPacket::new_checked(segment)
        .ok()
        .and_then(|p| smol::TcpRepr::parse(&p, &ip.src.into(), &ip.dst.into(), &caps).ok());
    let (Some((ours, data)), Some(theirs)) = (ours, theirs) else { return false };
    assert_eq!((ours.src_port, ours.dst_port), (theirs.src_port, theirs.dst_port));
    assert_eq!(ours.seq as i32, theirs.seq_number.0);
    assert_eq!((ours.flags & tcp::ACK != 0).then_some(ours.ack as i32), theirs.ack_number.map(|a| a.0));
    assert_eq!((ours.window, data), (theirs.window_len, theirs.payload));
    if ours.flags & tcp::SYN != 0 {
        assert_eq!(ours.mss.filter(|m| *m != 0), theirs.max_seg_size);
        assert_eq!(ours.window_scale.map(|s| s.min(14)), theirs.window_scale);
        assert_eq!(ours.sack_permitted, theirs.sack_permitted);
    } else {
        let ranges: Vec<_> = theirs.sack_ranges.iter().flatten().copied().collect();
        assert_eq!(ours.sack.as_slice()[..ours.sack.as_slice().len().min(3)], ranges[..]);
    }
    true
}

#[test]
fn tcp_agrees_with_smoltcp() {
    let mut random = Random(1);
    let mut agreed = 0;
    for round in 0..4000 {
        let v6 = round % 2 == 0;
        let kind = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let bytes = tcp_packet(&mut random, v6);
        assert!(same_tcp(kind, &bytes), "a valid segment is read by both (round {round})");
        let mut bad = bytes;
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len());
            bad[at] = random.next() as u8;
        }
        bad.truncate(bad.len() - random.below(4));
        agreed += usize::from(same_tcp(kind, &bad));
    }
    assert!(agreed < 2000, "mutations are mostly refused");
}

#[test]
fn valid_packets_agree_with_etherparse() {
    let mut random = Random(2);
    for round in 0..2000 {
        let v6 = round % 2 == 0;
        let bytes = if round % 4 < 2 { udp_packet(&mut random, v6) } else { tcp_packet(&mut random, v6) };
        let kind = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let (ip, body) = Ip::parse(kind, &bytes).unwrap();
        let theirs = etherparse::SlicedPacket::from_ip(&bytes).unwrap();
        match theirs.net.unwrap() {
            etherparse::NetSlice::Ipv4(h) => {
                assert_eq!(IpAddr::V4(h.header().source_addr()), ip.src);
                assert_eq!(h.header().ttl(), ip.ttl);
            }
            etherparse::NetSlice::Ipv6(h) => assert_eq!(IpAddr::V6(h.header().destination_addr()), ip.dst),
            etherparse::NetSlice::Arp(_) => unreachable!(),
        }
        match theirs.transport.unwrap() {
            etherparse::TransportSlice::Udp(h) => {
                let (udp, data) = Udp::parse(&ip, body, false, false).unwrap();
                assert_eq!((h.source_port(), h.destination_port()), (udp.src_port, udp.dst_port));
                assert_eq!(h.payload(), data);
            }
            etherparse::TransportSlice::Tcp(h) => {
                let (tcp, data) = Tcp::parse(&ip, body, false).unwrap();
                assert_eq!((h.sequence_number(), h.payload()), (tcp.seq, data));
                assert_eq!(h.to_header().checksum, {
                    let mut zeroed = body.to_vec();
                    super::put(&mut zeroed, 16, &[0, 0]);
                    ip.pseudo(zeroed.len()).bytes(&zeroed).finish()
                });
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn ip_headers_agree_with_smoltcp_under_mutation() {
    let mut random = Random(3);
    for round in 0..8000 {
        let v6 = round % 2 == 0;
        let mut bytes = udp_packet(&mut random, v6);
        let at = random.below(bytes.len());
        bytes[at] = random.next() as u8;
        bytes.truncate(bytes.len() - random.below(3));
        if v6 {
            let theirs = smol::Ipv6Packet::new_checked(&bytes[..]).ok().filter(|p| p.version() == 6);
            if let (Some((ours, _)), Some(theirs)) = (Ipv6::parse(&bytes), theirs) {
                assert_eq!(
                    (ours.src, ours.dst, ours.ttl),
                    (theirs.src_addr(), theirs.dst_addr(), theirs.hop_limit())
                );
            }
        } else {
            let theirs = smol::Ipv4Packet::new_checked(&bytes[..])
                .ok()
                .filter(|p| p.version() == 4 && p.header_len() >= 20 && p.verify_checksum());
            let ours = Ipv4::parse(&bytes);
            assert_eq!(ours.is_some(), theirs.is_some(), "round {round}");
            if let (Some((ours, payload)), Some(theirs)) = (ours, theirs) {
                assert_eq!(
                    (ours.src, ours.dst, ours.ttl),
                    (theirs.src_addr(), theirs.dst_addr(), theirs.hop_limit())
                );
                assert_eq!(payload, theirs.payload());
            }
        }
    }
}

#[test]
fn noise_never_panics() {
    let mut random = Random(4);
    for _ in 0..20000 {
        let noise: Vec<u8> = (0..random.below(120)).map(|_| random.next() as u8).collect();
        let (src, dst) = addresses(noise.len() % 2 == 0);
        let ip = Ip::new(src, dst, ip::UDP);
        let _ = vnet::VnetHeader::parse(&noise).map(|(h, f)| h.fits(f.len()));
        let _ = ethernet::Ethernet::parse(&noise);
        let _ = super::arp::Arp::parse(&noise);
        let _ = Ip::parse(ethernet::IPV4, &noise);
        let _ = Ip::parse(ethernet::IPV6, &noise);
        let _ = Tcp::parse(&ip, &noise, true);
        let _ = Udp::parse(&ip, &noise, true, noise.len() % 3 == 0);
        let _ = super::icmpv4::Icmp::parse(&noise);
        let _ = super::icmpv6::Icmpv6::parse(&ip, &noise).map(|m| super::ndp::solicited(&m));
        let _ = super::dhcp::Request::parse(&noise);
        let _ = super::dns::Query::parse(&noise);
    }
}
