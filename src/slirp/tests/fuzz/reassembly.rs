//! Packets cut in every way. What was cut properly comes out as it was, whatever else is under way; what was not
//! does no harm.

use super::{Random, run};
use crate::slirp::fragment::Reassembly;
use crate::slirp::time::SEC;
use crate::slirp::wire::ip::{self, Ip, Part};

/// A packet's content is a function of its identification, so that any mixture shows.
fn content(id: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32 ^ id.wrapping_mul(0x9e37_79b9) >> 7) as u8).collect()
}

struct Packet {
    ip: Ip,
    id: u32,
    data: Vec<u8>,
    parts: Vec<(Part, Vec<u8>)>,
    honest: bool,
    arrived: bool,
}

fn cut(random: &mut Random, id: u32) -> Packet {
    let v6 = random.once_in(2);
    let ip = if v6 {
        Ip::new("fd00::100".parse().unwrap(), "2001:db8::1".parse().unwrap(), ip::UDP)
    } else {
        Ip::new([10, 0, 2, 100].into(), [192, 0, 2, 1].into(), ip::UDP)
    };
    let most = random.pick(&[100, 3000, 65_000]);
    let len = 9 + random.below(most);
    let data = content(id, len);
    let size = (8 + random.below(len)).max(len / 100 + 8) / 8 * 8;
    let mut parts: Vec<(Part, Vec<u8>)> = data
        .chunks(size)
        .enumerate()
        .map(|(i, piece)| (Part { id, offset: i * size, more: (i + 1) * size < len }, piece.to_vec()))
        .collect();
    let mut honest = true;
    if random.once_in(3) {
        let at = random.below(parts.len());
        let (part, piece) = parts[at].clone();
        match random.below(4) {
            // The same again is no lie.
            0 => parts.push((part, piece)),
            1 => {
                honest = false;
                parts.remove(at);
            }
            2 => {
                honest = false;
                parts.push((Part { offset: part.offset + 8, ..part }, vec![0xee; piece.len() / 8 * 8]));
            }
            _ => {
                honest = false;
                parts.push((Part { more: !part.more, ..part }, piece));
            }
        }
    }
    for i in (1..parts.len()).rev() {
        parts.swap(i, random.below(i + 1));
    }
    Packet { ip, id, data, parts, honest, arrived: false }
}

fn history(seed: u64) {
    let mut random = Random(seed);
    let mut reassembly = Reassembly::default();
    let mut now = 0;
    let mut under_way: Vec<Packet> = (0..20).map(|id| cut(&mut random, id)).collect();
    while !under_way.is_empty() {
        let at = random.below(under_way.len());
        let packet = &mut under_way[at];
        let Some((part, piece)) = packet.parts.pop() else {
            let packet = under_way.swap_remove(at);
            assert!(packet.arrived || !packet.honest, "an honest packet is lost: {}", packet.id);
            continue;
        };
        if let Some((ip, data)) = reassembly.add(now, &packet.ip, part, &piece) {
            assert_eq!((ip.src, ip.part), (packet.ip.src, None));
            assert!(!packet.honest || data == packet.data, "{} comes out as it was", packet.id);
            packet.arrived = true;
        }
        now += random.next() % 1000;
    }
    // Too late is too late, and what never ends is forgotten.
    now += 20 * SEC;
    let ip = Ip::new([10, 0, 2, 100].into(), [192, 0, 2, 1].into(), ip::UDP);
    assert_eq!(reassembly.add(now, &ip, Part { id: 999, offset: 0, more: true }, &[0; 8]), None);
    assert_eq!(reassembly.waiting(), 1);
}

#[test]
fn reassembly() {
    run(history);
}
