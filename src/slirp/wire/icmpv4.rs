//! ICMP for `IPv4` (RFC 792, 1122, 1191): echo and the errors that an engine in the middle must send.

use super::checksum::Sum;
use super::ip::Ip;
use super::{Reader, ipv4};

/// Answer to an echo request.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Echo request.
pub const ECHO: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Code of [`UNREACHABLE`]: network; a connect fails with ENETUNREACH.
pub const NET: u8 = 0;
/// Code of [`UNREACHABLE`]: host; EHOSTUNREACH.
pub const HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: port; ECONNREFUSED.
pub const PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: too big and not to be cut; the last 16 bits give the MTU.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`]: administratively prohibited.
pub const PROHIBITED: u8 = 13;
/// Code: the network is administratively prohibited.
pub const NET_PROHIBITED: u8 = 9;

/// A message: type, code, the four bytes that depend on them, and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp<'a> {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier and sequence of an echo; MTU of "fragmentation needed".
    pub rest: [u8; 4],
    /// Echo data, or the quoted packet.
    pub data: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// Reads a message whose checksum is right.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(message);
        let (kind, code, _) = (r.u8()?, r.u8()?, r.u16()?);
        let rest = r.array()?;
        Sum::default().bytes(message).verifies().then_some(Self { kind, code, rest, data: r.rest() })
    }

    /// The message's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.data.len());
        out.extend_from_slice(&[self.kind, self.code, 0, 0]);
        out.extend_from_slice(&self.rest);
        out.extend_from_slice(self.data);
        let sum = Sum::default().bytes(&out).finish();
        super::put(&mut out, 2, &sum.to_be_bytes());
        out
    }

    /// Identifier and sequence number of an echo.
    pub fn echo(&self) -> (u16, u16) {
        let [a, b, c, d] = self.rest;
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }

    /// True for the messages that must never be answered by an error (RFC 1122 §3.2.2).
    pub fn is_error(&self) -> bool {
        matches!(self.kind, 3 | 4 | 5 | 11 | 12)
    }
}

/// How much of `packet` an error quotes: as much as fits 576 bytes in all (RFC 1812 §4.3.2.3).
pub fn quote(packet: &[u8]) -> &[u8] {
    packet.get(..576 - ipv4::LEN - 8).unwrap_or(packet)
}

/// True if an error about a packet with this header may be sent: not about later fragments, nor about
/// broadcast, multicast or a source that is no single host.
pub fn may_report(ip: &Ip) -> bool {
    let single = match (ip.src, ip.dst) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
            !(src.is_unspecified()
                || src.is_multicast()
                || src.is_broadcast()
                || src.is_loopback()
                || dst.is_multicast()
                || dst.is_broadcast())
        }
        _ => !(ip.src.is_unspecified() || ip.src.is_multicast() || ip.dst.is_multicast()),
    };
    single && ip.part.is_none_or(|p| p.offset == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::ip;

    #[test]
    fn round_trip_and_checksum() {
        let ping = Icmp { kind: ECHO, code: 0, rest: [0, 7, 0, 9], data: b"payload" };
        let mut bytes = ping.emit();
        assert_eq!(Icmp::parse(&bytes), Some(ping));
        assert_eq!((ping.echo(), ping.is_error()), ((7, 9), false));
        bytes[9] ^= 1;
        assert_eq!(Icmp::parse(&bytes), None);
        assert_eq!(Icmp::parse(&bytes[..7]), None);
    }

    #[test]
    fn quoting_is_bounded_and_errors_are_not_sent_to_crowds() {
        assert_eq!(quote(&[0; 2000]).len(), 548);
        assert_eq!(quote(&[0; 20]).len(), 20);
        let one = Ip::new([10, 0, 2, 100].into(), [192, 0, 2, 1].into(), ip::UDP);
        assert!(may_report(&one));
        assert!(!may_report(&Ip { dst: [255; 4].into(), ..one }));
        assert!(!may_report(&Ip { dst: [224, 0, 0, 1].into(), ..one }));
        assert!(!may_report(&Ip { src: [0; 4].into(), ..one }));
        assert!(!may_report(&Ip { part: Some(ip::Part { id: 1, offset: 8, more: true }), ..one }));
    }
}
