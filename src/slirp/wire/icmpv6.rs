//! ICMP for `IPv6` (RFC 4443). Neighbour discovery, which rides on it, is in `ndp`.

use super::ip::Ip;
use super::{Reader, ipv6};

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big; the four bytes are the MTU.
pub const TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Echo request.
pub const ECHO: u8 = 128;
/// Answer to an echo request.
pub const ECHO_REPLY: u8 = 129;
/// Code of [`UNREACHABLE`]: no route; ENETUNREACH.
pub const NO_ROUTE: u8 = 0;
/// Code of [`UNREACHABLE`]: administratively prohibited; EACCES.
pub const PROHIBITED: u8 = 1;
/// Code of [`UNREACHABLE`]: address; EHOSTUNREACH.
pub const ADDRESS: u8 = 3;
/// Code of [`UNREACHABLE`]: port; ECONNREFUSED.
pub const PORT: u8 = 4;

/// A message: type, code, the four bytes that depend on them, and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmpv6<'a> {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier and sequence of an echo, or the MTU.
    pub rest: [u8; 4],
    /// Echo data, the quoted packet, or a neighbour discovery body.
    pub data: &'a [u8],
}

impl<'a> Icmpv6<'a> {
    /// Reads a message whose checksum, which covers the addresses, is right.
    pub fn parse(ip: &Ip, message: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(message);
        let (kind, code, _) = (r.u8()?, r.u8()?, r.u16()?);
        let rest = r.array()?;
        let good = ip.pseudo(message.len()).bytes(message).verifies();
        good.then_some(Self { kind, code, rest, data: r.rest() })
    }

    /// The message's bytes, for the packet header `ip`.
    pub fn emit(&self, ip: &Ip) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.data.len());
        out.extend_from_slice(&[self.kind, self.code, 0, 0]);
        out.extend_from_slice(&self.rest);
        out.extend_from_slice(self.data);
        let sum = ip.pseudo(out.len()).bytes(&out).finish();
        super::put(&mut out, 2, &sum.to_be_bytes());
        out
    }

    /// Identifier and sequence number of an echo.
    pub fn echo(&self) -> (u16, u16) {
        let [a, b, c, d] = self.rest;
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }
}

/// How much of `packet` an error quotes: as much as fits the least MTU (RFC 4443 §3.1).
pub fn quote(packet: &[u8]) -> &[u8] {
    packet.get(..1280 - ipv6::LEN - 8).unwrap_or(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::ip;

    #[test]
    fn checksum_covers_the_addresses() {
        let ip = Ip::new("fd00::100".parse().unwrap(), "fd00::2".parse().unwrap(), ip::ICMPV6);
        let ping = Icmpv6 { kind: ECHO, code: 0, rest: [0, 7, 0, 9], data: b"odd" };
        let bytes = ping.emit(&ip);
        assert_eq!(Icmpv6::parse(&ip, &bytes), Some(ping));
        assert_eq!(ping.echo(), (7, 9));
        let other = Ip { dst: "fd00::3".parse().unwrap(), ..ip };
        assert_eq!(Icmpv6::parse(&other, &bytes), None);
        assert_eq!(quote(&[0; 2000]).len(), 1232);
    }
}
