//! Queries and answers in any order, with resolvers that are silent, refuse, or answer what nobody asked; answers with
//! aliases and addresses, right, damaged and without end, by which names are judged.

use super::super::*;
use super::{Random, run};
use crate::slirp::policy::{Domain, Rule, Whom};
use crate::slirp::wire::dns::tests::{Record, answer, query};
use crate::slirp::wire::dns::{A, AAAA};
use std::collections::HashMap;

/// Names that are asked for, and that answers speak of.
const NAMES: [&str; 8] = [
    "db",
    "www.example",
    "a.evil.example",
    "evil.example",
    "xevil.example",
    "good.example",
    "a.good.example",
    "bad.example",
];

/// Good names and no others, and a bad one that is resolved.
fn rules() -> Vec<Rule> {
    let rule = |allow, whom| Rule { allow, whom, ports: 0..=65535 };
    vec![
        rule(true, Whom::Names(Domain::of("*.good.example"))),
        rule(false, Whom::Names(Domain::of("bad.example"))),
        rule(false, Whom::All),
    ]
}

/// What a resolver says: aliases and addresses of names that were asked for, or of others.
fn reply(random: &mut Random, ask: &[u8]) -> Vec<u8> {
    let mut records: Vec<Record<'_>> = Vec::new();
    for _ in 0..random.below(6) {
        let data = match random.below(3) {
            0 => Err(random.pick(&NAMES)),
            1 => Ok([203, 0, 113, random.below(4) as u8].into()),
            _ => Ok(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | random.below(4) as u128).into()),
        };
        records.push((random.pick(&NAMES), data, random.odd()));
    }
    let mut message = answer(ask, &records);
    if random.once_in(2) {
        // A pointer instead of a name's first label: back, onto itself, or forward.
        let at = random.below(message.len());
        let anywhere = random.below(message.len());
        let to = random.pick(&[12, at, at + 1, anywhere]) as u16;
        message.iter_mut().skip(at).zip((0xc000 | to).to_be_bytes()).for_each(|(b, v)| *b = v);
    }
    message
}

fn history(seed: u64) {
    let mut random = Random(seed);
    let judged = random.once_in(2);
    let count = random.below(4);
    let resolver = |i: usize| SocketAddr::new([198, 51, 100, i as u8].into(), 53);
    let mut net = Net::with(Config {
        resolvers: (0..count).map(resolver).collect(),
        names: vec![("db".into(), vec!["10.0.2.9".parse().unwrap(), "fd00::9".parse().unwrap()])],
        denied_names: if judged { vec![Domain::whole("evil.example")] } else { Vec::new() },
        rules: if judged { rules() } else { Vec::new() },
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
                let name = random.pick(&NAMES);
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
                    if answer.len() > 12 && random.once_in(2) {
                        answer = reply(&mut random, &answer);
                    }
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
    reached(&mut net, judged);
    // What nobody answers is told so, or was pushed out by a newer one: nothing waits any more.
    net.wait(MINUTE);
    answers(&mut net, &mut asked);
    assert_eq!((net.engine.flow_count(), net.host().open_count()), (0, 0));
}

/// Under an allow-list nobody is reached but whom answers about good names spoke of.
fn reached(net: &mut Net, judged: bool) {
    let open = net.host().open_count();
    for last in 0..6 {
        net.datagram_to(SocketAddr::new([203, 0, 114, last].into(), 9), 9, b"x");
    }
    net.all();
    assert_eq!(net.host().open_count() - open, if judged { 0 } else { 6 }, "no answer speaks of them");
    assert!(net.engine.core.learnt.held() <= 3 * 8 + 8, "addresses of the rules' names");
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
