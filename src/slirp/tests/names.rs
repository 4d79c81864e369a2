//! What names are allowed, what is denied, and the addresses that they stand for: learnt from answers, judged in packets.

use super::*;
use crate::slirp::policy::{Domain, Rule, Whom};
use crate::slirp::wire::dns::tests::{Record, answer, query};
use crate::slirp::wire::dns::{A, AAAA, NO_ERROR, REFUSED, SERVER_FAILURE};
use crate::slirp::wire::{icmpv4, icmpv6, tcp};

/// Rules as they are written: `+` allows, `-` denies.
fn rules(texts: &[&str]) -> Vec<Rule> {
    let rule = |text: &&str| {
        let (allow, rest) = (text.starts_with('+'), &text[1..]);
        let (whom, port) = rest.split_once(' ').map_or((rest, None), |(w, p)| (w, p.parse().ok()));
        let whom = match whom.split_once('/') {
            Some((address, len)) => Whom::Net(address.parse().unwrap(), len.parse().unwrap()),
            None if whom == "*" => Whom::All,
            None => Whom::Names(Domain::of(whom)),
        };
        Rule { allow, whom, ports: port.map_or(0..=65535, |port: u16| port..=port) }
    };
    texts.iter().map(rule).collect()
}

fn net(texts: &[&str], denied: &[&str]) -> Net {
    Net::with(Config {
        resolvers: vec!["198.51.100.1:53".parse().unwrap()],
        rules: rules(texts),
        denied_names: denied.iter().map(|name| Domain::whole(name)).collect(),
        ..Config::default()
    })
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The guest asks, the resolver answers with these records: what the guest is told.
fn told(net: &mut Net, name: &str, kind: u16, records: &[Record<'_>]) -> u8 {
    let ask = query(name, kind);
    net.datagram_to("10.0.2.3:53".parse().unwrap(), 777, &ask);
    if net.host().sockets.iter().any(|s| s.datagrams.last().is_some_and(|(d, _)| *d == ask)) {
        let reply = answer(&ask, records);
        let sock = net.host().sockets.iter().position(|s| s.to == Some("198.51.100.1:53".parse().unwrap()));
        net.host().datagram(sock.unwrap() as Sock, &reply, reply.len(), None);
        net.host().sockets[sock.unwrap()].datagrams.clear();
        net.step();
    }
    net.recv().expect("an answer").udp().1[3] & 15
}

/// How a connection's first segment fares: `None` if it goes out, else type and code of the ICMP error.
fn tried(net: &mut Net, to: &str, port: u16) -> Option<(u8, u8)> {
    let to = SocketAddr::new(address(to), port);
    let before = net.v6;
    net.v6 = to.is_ipv6();
    let from = 30000 + net.host().sockets.len() as u16 * 7 + port % 7;
    net.segment_to(to, Tcp { src_port: from, seq: 1, flags: SYN, window: 1000, ..Tcp::default() }, b"");
    net.v6 = before;
    let frame = net.recv().expect("an answer");
    if frame.ip.unwrap().proto == ip::TCP {
        assert_eq!(frame.tcp().0.flags, SYN | tcp::ACK);
        return None;
    }
    let (kind, code, ..) = frame.icmp();
    Some((kind, code))
}

const UNLISTED: Option<(u8, u8)> = Some((icmpv4::UNREACHABLE, icmpv4::NET_PROHIBITED));
const DENIED: Option<(u8, u8)> = Some((icmpv4::UNREACHABLE, icmpv4::PROHIBITED));

#[test]
fn an_allowed_name_admits_the_addresses_that_it_was_found_to_have() {
    let mut net = net(&["+shop.example 443", "+*.cdn.example", "-*"], &[]);
    assert_eq!(tried(&mut net, "203.0.113.5", 443), UNLISTED, "nobody has asked");
    let found = [("shop.example", Ok(address("203.0.113.5")), 300), ("x", Ok(address("203.0.113.7")), 300)];
    assert_eq!(told(&mut net, "Shop.EXAMPLE", A, &found), NO_ERROR);
    assert_eq!(tried(&mut net, "203.0.113.5", 443), None);
    assert_eq!(tried(&mut net, "203.0.113.5", 80), UNLISTED, "another port");
    assert_eq!(tried(&mut net, "203.0.113.6", 443), UNLISTED, "another address");
    assert_eq!(tried(&mut net, "203.0.113.7", 443), UNLISTED, "of no name that was asked for");
    let found = [("shop.example", Ok(address("2001:db8::5")), 300)];
    assert_eq!(told(&mut net, "shop.example", AAAA, &found), NO_ERROR);
    assert_eq!(tried(&mut net, "2001:db8::5", 443), None);
    assert_eq!(tried(&mut net, "2001:db8::6", 443), Some((icmpv6::UNREACHABLE, icmpv6::NO_ROUTE)));
    // Names below, not the name itself.
    told(&mut net, "cdn.example", A, &[("cdn.example", Ok(address("203.0.113.8")), 300)]);
    told(&mut net, "a.b.cdn.example", A, &[("a.b.cdn.example", Ok(address("203.0.113.9")), 300)]);
    assert_eq!((tried(&mut net, "203.0.113.8", 1), tried(&mut net, "203.0.113.9", 1)), (UNLISTED, None));
    // Other names are resolved, and lead nowhere.
    assert_eq!(told(&mut net, "x.example", A, &[("x.example", Ok(address("203.0.113.10")), 300)]), NO_ERROR);
    assert_eq!(tried(&mut net, "203.0.113.10", 443), UNLISTED);
}

#[test]
fn datagrams_to_who_is_not_listed_are_refused_by_errors_that_applications_see() {
    let mut net = net(&["+shop.example", "-*"], &[]);
    net.datagram_to("203.0.113.5:9".parse().unwrap(), 5000, b"x");
    assert_eq!(net.recv().unwrap().icmp().1, icmpv4::NET_PROHIBITED);
    net.v6 = true;
    net.datagram_to("[2001:db8::5]:9".parse().unwrap(), 5000, b"x");
    assert_eq!(net.recv().unwrap().icmp().1, icmpv6::PROHIBITED);
}

#[test]
fn what_was_learnt_is_forgotten_when_its_time_is_over() {
    let mut net = net(&["+shop.example", "-*"], &[]);
    told(&mut net, "shop.example", A, &[("shop.example", Ok(address("203.0.113.5")), 300)]);
    told(&mut net, "shop.example", A, &[("shop.example", Ok(address("203.0.113.6")), 0)]);
    net.wait(59 * SEC);
    assert_eq!(tried(&mut net, "203.0.113.6", 80), None, "a minute to connect, whatever is said");
    net.wait(2 * SEC);
    net.all();
    assert_eq!(tried(&mut net, "203.0.113.6", 80), UNLISTED);
    assert_eq!(tried(&mut net, "203.0.113.5", 80), None);
    net.wait(240 * SEC);
    net.all();
    assert_eq!(tried(&mut net, "203.0.113.5", 80), UNLISTED);
}

#[test]
fn an_alias_of_an_allowed_name_brings_its_addresses_and_no_name() {
    let mut net = net(&["+shop.example", "-*"], &[]);
    let chain =
        [("shop.example", Err("edge.cdn.example"), 9), ("edge.cdn.example", Ok(address("203.0.113.5")), 300)];
    told(&mut net, "shop.example", A, &chain);
    assert_eq!(tried(&mut net, "203.0.113.5", 80), None);
    // Whoever makes an alias of an allowed name has not become it.
    let trick =
        [("evil.example", Err("shop.example"), 9), ("shop.example", Ok(address("203.0.113.66")), 300)];
    told(&mut net, "evil.example", A, &trick);
    assert_eq!(tried(&mut net, "203.0.113.66", 80), UNLISTED);
}

#[test]
fn a_denied_name_is_refused_in_answers_and_by_address() {
    let mut net = net(&[], &["evil.example"]);
    for name in ["evil.example", "a.EVIL.example"] {
        assert_eq!(told(&mut net, name, A, &[]), REFUSED);
    }
    assert!(net.host().sockets.is_empty(), "nothing of it leaves");
    assert_eq!(tried(&mut net, "203.0.113.66", 80), None, "an address without a name");
    net.wait(MINUTE);
    net.all();
    let chain =
        [("fine.example", Err("x.evil.example"), 9), ("x.evil.example", Ok(address("203.0.113.66")), 300)];
    assert_eq!(told(&mut net, "fine.example", A, &chain), REFUSED, "an alias of it");
    assert_eq!(tried(&mut net, "203.0.113.66", 80), DENIED);
    assert_eq!(told(&mut net, "fine.example", 65, &chain[..1]), REFUSED, "whatever is asked for");
    assert_eq!(
        told(&mut net, "xevil.example", A, &[("xevil.example", Ok(address("203.0.113.7")), 9)]),
        NO_ERROR
    );
    assert_eq!(tried(&mut net, "203.0.113.7", 80), None);
}

#[test]
fn a_rule_denies_a_name_that_is_resolved() {
    let mut net = net(&["-*.mail.example 25", "-bad.example"], &[]);
    told(&mut net, "mx.mail.example", A, &[("mx.mail.example", Ok(address("203.0.113.5")), 300)]);
    assert_eq!((tried(&mut net, "203.0.113.5", 25), tried(&mut net, "203.0.113.5", 587)), (DENIED, None));
    let chain = [("fine.example", Err("bad.example"), 9), ("bad.example", Ok(address("203.0.113.66")), 300)];
    assert_eq!(told(&mut net, "fine.example", A, &chain), NO_ERROR);
    assert_eq!(tried(&mut net, "203.0.113.66", 80), DENIED, "by its alias too");
}

#[test]
fn of_names_that_share_an_address_the_first_rule_decides() {
    let shared = Ok(address("203.0.113.5"));
    let both = |net: &mut Net| {
        told(net, "good.example", A, &[("good.example", shared, 300)]);
        told(
            net,
            "fine.example",
            A,
            &[("fine.example", Err("bad.example"), 9), ("bad.example", shared, 300)],
        );
        (tried(net, "203.0.113.5", 80), tried(net, "203.0.113.5", 443))
    };
    assert_eq!(
        both(&mut net(&["-bad.example"], &[])),
        (DENIED, DENIED),
        "denied, and named by no rule besides"
    );
    assert_eq!(both(&mut net(&[], &["bad.example"])), (DENIED, DENIED));
    assert_eq!(both(&mut net(&["+good.example 443", "-bad.example"], &[])), (DENIED, None), "allowed first");
    assert_eq!(both(&mut net(&["+good.example 443"], &["bad.example"])), (DENIED, None));
    assert_eq!(both(&mut net(&["+good.example 443", "-*"], &["bad.example"])), (DENIED, None));
    assert_eq!(
        both(&mut net(&["+203.0.113.0/24 443", "-bad.example"], &[])),
        (DENIED, None),
        "by network too"
    );
    // An allowed name below a denied one is resolved.
    let mut net = net(&["+api.bad.example"], &["bad.example"]);
    assert_eq!(told(&mut net, "api.bad.example", A, &[("api.bad.example", shared, 300)]), NO_ERROR);
    assert_eq!(told(&mut net, "web.bad.example", A, &[]), REFUSED);
}

#[test]
fn all_names_but_the_allowed_and_ones_own() {
    let mut net = net(&["+*.good.example", "-*"], &["*"]);
    net.engine.core.config.names = vec![("db".into(), vec![address("10.0.2.9")])];
    assert_eq!(
        told(&mut net, "a.good.example", A, &[("a.good.example", Ok(address("203.0.113.5")), 9)]),
        NO_ERROR
    );
    assert_eq!(tried(&mut net, "203.0.113.5", 80), None);
    assert_eq!(
        (told(&mut net, "db", A, &[]), told(&mut net, "secret.data.example", A, &[])),
        (NO_ERROR, REFUSED)
    );
}

#[test]
fn a_static_name_has_its_addresses_for_ever() {
    let mut net = net(&["+api", "-*"], &[]);
    net.engine.core.config.names = vec![("api".into(), vec![address("203.0.113.5")])];
    assert_eq!((tried(&mut net, "203.0.113.5", 80), tried(&mut net, "203.0.113.6", 80)), (None, UNLISTED));
}

#[test]
fn what_cannot_be_read_is_not_relayed_where_names_are_judged() {
    let dns: SocketAddr = "10.0.2.3:53".parse().unwrap();
    let mut net = net(&[], &["evil.example"]);
    let mut two = query("evil.example", A);
    two[5] = 2;
    net.datagram_to(dns, 777, &two);
    assert!(net.host().sockets.is_empty(), "two questions");
    net.quiet();
    // An answer to another question is none; one that has no end is a failure.
    let ask = query("www.example", A);
    net.datagram_to(dns, 777, &ask);
    let other = answer(&query("other.example", A), &[]);
    net.host().datagram(0, &other, other.len(), None);
    net.step();
    net.quiet();
    let mut broken = answer(&ask, &[("www.example", Ok(address("203.0.113.5")), 9)]);
    broken.truncate(broken.len() - 1);
    net.host().datagram(0, &broken, broken.len(), None);
    net.step();
    assert_eq!(net.recv().unwrap().udp().1[3] & 15, SERVER_FAILURE);
    // Over TCP nothing is read, so nothing is said.
    net.segment_to(dns, Tcp { seq: 1, flags: SYN, window: 1000, ..Tcp::default() }, b"");
    assert!(net.recv_tcp().0.flags & tcp::RST != 0);
}
