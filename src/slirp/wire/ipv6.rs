//! `IPv6` headers and the chain of extension headers (RFC 8200).
//!
//! Hop-by-hop, destination and routing headers are walked over (at most eight); a routing header that is not
//! used up makes the packet malformed, as we do not source-route (RFC 5095). One fragment header is understood.

use super::Reader;
use std::net::Ipv6Addr;

/// Length of the fixed header.
pub const LEN: usize = 40;
/// Length of the fragment header.
pub const FRAGMENT_LEN: usize = 8;
/// Extension header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Extension header: routing.
pub const ROUTING: u8 = 43;
/// Extension header: fragment.
pub const FRAGMENT: u8 = 44;
/// Extension header: destination options.
pub const DESTINATION: u8 = 60;

/// Which part of a cut packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Where it starts, in bytes.
    pub offset: u16,
    /// More follow.
    pub more: bool,
}

/// The fields that the engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Protocol after all extension headers (or after the fragment header).
    pub proto: u8,
    /// Hop limit.
    pub ttl: u8,
    /// Traffic class: DSCP and ECN.
    pub tos: u8,
    /// Set on parts of a cut packet.
    pub fragment: Option<Fragment>,
}

impl Ipv6 {
    /// Splits a packet into header and payload.
    pub fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let mut r = Reader::new(packet);
        let first = r.u32()?;
        let len = usize::from(r.u16()?);
        let (mut next, ttl) = (r.u8()?, r.u8()?);
        let (src, dst) = (r.array::<16>()?.into(), r.array::<16>()?.into());
        if first >> 28 != 6 {
            return None;
        }
        let mut body = Reader::new(r.take(len)?);
        let mut fragment = None;
        for _ in 0..8 {
            match next {
                HOP_BY_HOP | DESTINATION | ROUTING => {
                    let kind = next;
                    next = body.u8()?;
                    let units = usize::from(body.u8()?);
                    let rest = body.take(units * 8 + 6)?;
                    if kind == ROUTING && rest.get(1) != Some(&0) {
                        return None;
                    }
                }
                FRAGMENT => {
                    next = body.u8()?;
                    body.u8()?;
                    let place = body.u16()?;
                    fragment = Some(Fragment { id: body.u32()?, offset: place & !7, more: place & 1 == 1 });
                    break;
                }
                _ => break,
            }
        }
        let header = Self { src, dst, proto: next, ttl, tos: (first >> 20) as u8, fragment };
        Some((header, body.rest()))
    }

    /// A header for `payload_len` bytes; `fragment` is not written, the engine never cuts.
    pub fn emit(&self, payload_len: usize) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..4].copy_from_slice(&((6 << 28) | (u32::from(self.tos) << 20)).to_be_bytes());
        out[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
        out[6] = self.proto;
        out[7] = self.ttl;
        out[8..24].copy_from_slice(&self.src.octets());
        out[24..].copy_from_slice(&self.dst.octets());
        out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Ipv6 {
        Ipv6 {
            src: "fd00::100".parse().unwrap(),
            dst: "2001:db8::1".parse().unwrap(),
            proto: 17,
            ttl: 64,
            tos: 0,
            fragment: None,
        }
    }

    #[test]
    fn round_trip_and_truncation() {
        let mut packet = sample().emit(3).to_vec();
        packet.extend_from_slice(b"abcdef");
        assert_eq!(Ipv6::parse(&packet), Some((sample(), &b"abc"[..])));
        for len in 0..43 {
            assert_eq!(Ipv6::parse(&packet[..len]), None, "{len}");
        }
    }

    #[test]
    fn extension_chain_and_fragment() {
        let mut packet = Ipv6 { proto: HOP_BY_HOP, ..sample() }.emit(8 + 8 + 2).to_vec();
        packet.extend_from_slice(&[FRAGMENT, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&[17, 0, 0x05, 0xc9, 0, 0, 0, 9, 1, 2]);
        let (header, payload) = Ipv6::parse(&packet).unwrap();
        assert_eq!(header.fragment, Some(Fragment { id: 9, offset: 0x5c8, more: true }));
        assert_eq!((header.proto, payload), (17, &[1u8, 2][..]));
    }

    #[test]
    fn unfinished_routing_header_is_refused() {
        let mut packet = Ipv6 { proto: ROUTING, ..sample() }.emit(8).to_vec();
        packet.extend_from_slice(&[17, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(Ipv6::parse(&packet), None);
    }
}
