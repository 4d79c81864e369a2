//! Queries and answers in any order, with resolvers that are silent, refuse, or answer what nobody asked.

use super::super::*;
use super::{Random, run};
use crate::slirp::wire::dns::{A, AAAA, tests::query};
use std::collections::HashMap;

fn history(seed: u64) {
    let mut random = Random(seed);
    let count = random.below(4);
    let resolver = |i: usize| SocketAddr::new([198, 51, 100, i as u8].into(), 53);
    let mut net = Net::with(Config {
        resolvers: (0..count).map(resolver).collect(),
        names: vec![("db".into(), vec!["10.0.2.9".parse().unwrap(), "fd00::9".parse().unwrap()])],
        denied_names: vec!["evil.example".into()],
        ..Config::default()
    });
    for i in 0..count {
        if random.once_in(5) {
            let refused =
                crate::slirp::host::simulated::Outcome::Fails(std::io::ErrorKind::NetworkUnreachable);
            net.host().outcomes.insert(resolver(i), refused);
        }
    }
    let to: SocketAddr = "10.0.2.3:53".parse().unwrap();
    // By guest port and identification: how many good queries there were, and how many answers.
    let mut asked: HashMap<(u16, u16), (u32, u32)> = HashMap::new();
    for _ in 0..300 {
        match random.below(4) {
            0 | 1 => {
                let name =
                    random.pick(&["db", "www.example", "a.evil.example", "evil.example", "xevil.example"]);
                let mut message = query(name, random.pick(&[A, AAAA, 15]));
                message[..2].copy_from_slice(&(random.below(40) as u16).to_be_bytes());
                if random.once_in(4) {
                    random.damage(&mut message);
                    message.truncate(1400);
                }
                let port = 2000 + random.below(3) as u16;
                if let Some(id) = message.first_chunk::<2>() {
                    asked.entry((port, u16::from_be_bytes(*id))).or_default().0 += 1;
                }
                net.datagram_to(to, port, &message);
            }
            2 if !net.host().sockets.is_empty() => {
                let sockets = net.host().sockets.len();
                let sock = random.below(sockets);
                if net.host().sockets[sock].closed.is_some() {
                    continue;
                }
                let last = net.host().sockets[sock].datagrams.last().map(|(d, _)| d.clone());
                let mut answer = last.unwrap_or_default();
                if let Some(flags) = answer.get_mut(2) {
                    *flags |= 0x80;
                }
                if random.once_in(3) {
                    random.damage(&mut answer);
                    answer.truncate(65_507);
                }
                if random.once_in(6) {
                    let offender = [198, 51, 100, 1].into();
                    let fault = crate::slirp::host::Fault { kind: 3, code: 3, info: 0, offender };
                    net.host().icmp(sock as Sock, fault);
                } else if !answer.is_empty() {
                    let len = answer.len();
                    net.host().datagram(sock as Sock, &answer, len, None);
                }
                net.step();
            }
            _ => net.wait(random.next() % (2 * SEC)),
        }
        answers(&mut net, &mut asked);
        assert!(net.host().open_count() <= 3 * count);
    }
    // What nobody answers is told so, or was pushed out by a newer one: nothing waits any more.
    net.wait(MINUTE);
    answers(&mut net, &mut asked);
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0));
}

fn answers(net: &mut Net, asked: &mut HashMap<(u16, u16), (u32, u32)>) {
    for frame in net.all() {
        // A large answer comes in pieces; the first has the header.
        let Some(ip) = frame.ip.filter(|ip| ip.proto == ip::UDP && ip.part.is_none()) else { continue };
        assert_eq!(ip.src, IpAddr::from([10, 0, 2, 3]));
        let (udp, body) = frame.udp();
        let id = u16::from_be_bytes(*body.first_chunk().unwrap());
        let entry = asked.get_mut(&(udp.dst_port, id)).expect("only who asked is answered");
        entry.1 += 1;
        assert!(entry.1 <= entry.0, "one answer a query: {entry:?}");
    }
}

#[test]
fn dns() {
    run(history);
}
