//! Which frames a capture wants: an expression in postfix form, as the caller has compiled it (python `capture`).
//!
//! Words: `tcp` `udp` `icmp` `arp` `ip` `ip6`, `net=ADDRESS/LENGTH` and `port=FIRST-LAST` (either end; with `src-` or
//! `dst-` before them that end only), `and` `or` `not`. No words: everything.

use crate::slirp::wire::ethernet::{self, Ethernet};
use crate::slirp::wire::ip::{self, Ip};
use std::net::IpAddr;

/// The deepest stack that an expression may need.
const DEPTH: usize = 64;
/// The most words.
const WORDS: usize = 1024;

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Either,
    Source,
    Destination,
}

impl End {
    fn test<T>(self, (source, destination): (T, T), holds: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Either => holds(source) || holds(destination),
            Self::Source => holds(source),
            Self::Destination => holds(destination),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Kind(u16),
    Proto(&'static [u8]),
    Net(End, IpAddr, u8),
    Port(End, u16, u16),
    And,
    Or,
    Not,
}

/// An expression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<Op>);

impl Op {
    fn parse(word: &str) -> Option<Self> {
        let (end, word) = match word.split_once('-') {
            Some(("src", rest)) => (End::Source, rest),
            Some(("dst", rest)) => (End::Destination, rest),
            _ => (End::Either, word),
        };
        if let Some((what, value)) = word.split_once('=') {
            return match what {
                "net" => {
                    let (address, len) = value.split_once('/')?;
                    Some(Self::Net(end, address.parse().ok()?, len.parse().ok()?))
                }
                "port" => {
                    let (first, last) = value.split_once('-')?;
                    Some(Self::Port(end, first.parse().ok()?, last.parse().ok()?))
                }
                _ => None,
            };
        }
        Some(match word {
            "tcp" => Self::Proto(&[ip::TCP]),
            "udp" => Self::Proto(&[ip::UDP]),
            "icmp" => Self::Proto(&[ip::ICMP, ip::ICMPV6]),
            "arp" => Self::Kind(ethernet::ARP),
            "ip" => Self::Kind(ethernet::IPV4),
            "ip6" => Self::Kind(ethernet::IPV6),
            "and" => Self::And,
            "or" => Self::Or,
            "not" => Self::Not,
            _ => return None,
        })
    }
}

impl Filter {
    /// Reads the words; `None` if they are no expression.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut ops, mut depth) = (Vec::new(), 0usize);
        for word in words {
            let op = Op::parse(word)?;
            depth = match op {
                Op::And | Op::Or => depth.checked_sub(2)? + 1,
                Op::Not => depth.checked_sub(1)? + 1,
                _ => depth + 1,
            };
            if depth > DEPTH || ops.len() >= WORDS {
                return None;
            }
            ops.push(op);
        }
        (ops.is_empty() || depth == 1).then_some(Self(ops))
    }

    /// True for a frame that is wanted.
    pub fn wants(&self, frame: &[u8]) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some((eth, packet)) = Ethernet::parse(frame) else { return false };
        let parsed = Ip::parse(eth.kind, packet);
        let ports = parsed.and_then(|(header, payload)| {
            let ports = payload.first_chunk::<4>()?;
            let first = header.part.is_none_or(|part| part.offset == 0);
            let has = first && matches!(header.proto, ip::TCP | ip::UDP);
            has.then(|| (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
        });
        // Bit 0 is the top of the stack.
        let mut stack = 0u64;
        for op in &self.0 {
            let found = match op {
                Op::Kind(kind) => eth.kind == *kind,
                Op::Proto(protocols) => parsed.is_some_and(|(header, _)| protocols.contains(&header.proto)),
                Op::Net(end, net, len) => parsed.is_some_and(|(header, _)| {
                    end.test((header.src, header.dst), |a| crate::slirp::config::in_network(a, *net, *len))
                }),
                Op::Port(end, first, last) => {
                    ports.is_some_and(|ports| end.test(ports, |port| (*first..=*last).contains(&port)))
                }
                Op::Not => {
                    stack ^= 1;
                    continue;
                }
                Op::And | Op::Or => {
                    let (a, b) = (stack & 1, stack >> 1 & 1);
                    stack >>= 2;
                    if *op == Op::And { a & b == 1 } else { a | b == 1 }
                }
            };
            stack = stack << 1 | u64::from(found);
        }
        stack & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::ethernet::Mac;
    use crate::slirp::wire::udp::Udp;

    fn datagram(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
            (from.parse().unwrap(), to.parse().unwrap());
        let ip = Ip::new(from.ip(), to.ip(), ip::UDP);
        let mut packet = vec![0; ip.header_len()];
        ip.emit_into(&mut packet, 9);
        packet.extend(Udp { src_port: from.port(), dst_port: to.port() }.emit(1, 0));
        let eth = Ethernet { dst: Mac([2; 6]), src: Mac([4; 6]), kind: ip.kind() };
        [&eth.emit()[..], &packet, b"x"].concat()
    }

    fn wants(expression: &str, frame: &[u8]) -> bool {
        Filter::parse(expression.split_whitespace()).expect(expression).wants(frame)
    }

    #[test]
    fn every_word() {
        let v4 = datagram("10.0.2.100:4000", "192.0.2.1:53");
        let v6 = datagram("[fd00::100]:4000", "[2001:db8::1]:53");
        for yes in [
            "",
            "udp",
            "ip",
            "net=192.0.2.0/24",
            "src-net=10.0.0.0/8",
            "port=53-53",
            "dst-port=1-100",
            "arp not",
            "udp tcp or",
            "udp port=4000-4000 and",
            "tcp udp not and not",
        ] {
            assert!(wants(yes, &v4), "{yes}");
        }
        for no in [
            "tcp",
            "arp",
            "ip6",
            "icmp",
            "dst-net=10.0.0.0/8",
            "src-port=53-53",
            "udp tcp and",
            "udp not",
            "net=fd00::/64",
        ] {
            assert!(!wants(no, &v4), "{no}");
        }
        assert!(wants("ip6 src-net=fd00::/64 and dst-port=53-53 and", &v6));
        assert!(!wants("net=10.0.2.0/24", &v6) && !wants("udp", b"short"));
    }

    #[test]
    fn what_is_no_expression() {
        for bad in
            ["and", "not", "udp udp", "udp and", "net=1.2.3.4", "port=1", "port=1-99999", "src-udpx", "x=1"]
        {
            assert_eq!(Filter::parse(bad.split_whitespace()), None, "{bad}");
        }
        let deep = "udp ".repeat(65) + &"and ".repeat(64);
        assert_eq!(Filter::parse(deep.split_whitespace()), None);
        assert_eq!(Filter::parse(vec!["udp", "not"].into_iter().chain(vec!["not"; 2000])), None);
    }
}
