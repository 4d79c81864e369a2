//! Many DHCP clients and damaged messages: no address is given twice, none outside the pool, every answer is sound.

use super::super::*;
use super::{Random, run};
use crate::slirp::wire::dhcp::{ACK, DISCOVER, INFORM, OFFER, tests::request};
use std::collections::HashMap;
use std::net::Ipv4Addr;

fn history(seed: u64) {
    let mut random = Random(seed);
    let mut net =
        Net::with(Config { search: vec!["example.org".into(); random.below(30)], ..Config::default() });
    // Who holds which address until when.
    let mut held: HashMap<Ipv4Addr, ([u8; 6], Time)> = HashMap::new();
    for _ in 0..300 {
        let mac = [2, 0, 0, 0, 0, random.below(24) as u8];
        let wanted = [10, 0, 2, 10 + random.below(30) as u8];
        let mut options = vec![53, 1, DISCOVER + random.below(usize::from(INFORM)) as u8];
        if random.once_in(2) {
            options.extend([50, 4].into_iter().chain(wanted));
        }
        if random.once_in(4) {
            options.extend([54, 4, 10, 0, 2, random.pick(&[2, 3])]);
        }
        options.push(255);
        let mut message = request(&options);
        message[28..34].copy_from_slice(&mac);
        message[10] = random.pick(&[0, 0x80]);
        let damaged = random.once_in(3);
        if damaged {
            random.damage(&mut message);
            message.truncate(1400);
        }
        net.datagram_to("255.255.255.255:67".parse().unwrap(), 68, &message);
        for frame in net.all() {
            let Some(ip) = frame.ip.filter(|ip| ip.proto == ip::UDP) else { continue };
            assert_eq!(ip.src, IpAddr::from([10, 0, 2, 2]));
            let (udp, body) = frame.udp();
            assert_eq!((udp.src_port, udp.dst_port), (67, 68));
            assert!(body.len() >= 300 && body[..4] == [2, 1, 6, 0], "a BOOTP reply");
            let (kind, address) = (body[242], Ipv4Addr::new(body[16], body[17], body[18], body[19]));
            if matches!(kind, OFFER | ACK) && !address.is_unspecified() {
                assert!((15..31).contains(&address.octets()[3]), "{address} is of the pool");
                let client: [u8; 6] = body[28..34].try_into().unwrap();
                if let Some((other, until)) = held.get(&address) {
                    assert!(*other == client || *until <= net.now, "{address} is somebody else's");
                }
                held.retain(|_, (mac, _)| *mac != client);
                let lease = if kind == ACK { 24 * 3600 * SEC } else { MINUTE };
                held.insert(address, (client, net.now + lease));
            }
        }
        // Who gives back has nothing; a damaged message may have done so too, for anybody.
        if matches!(options[2], 4 | 7) {
            held.retain(|_, (owner, _)| *owner != mac);
        }
        if damaged {
            if let Some(owner) = message.get(28..34) {
                held.retain(|_, (mac, _)| mac[..] != *owner);
            }
        }
        if random.once_in(20) {
            net.wait(random.next() % (90 * SEC));
        }
    }
}

#[test]
fn dhcp() {
    run(history);
}
