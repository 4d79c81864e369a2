//! Either family as one header, so that the transports need not care.

use super::ipv4::{self, Ipv4};
use super::ipv6::{self, Ipv6};
use super::{checksum::Sum, ethernet};
use std::net::IpAddr;

/// ICMP for `IPv4`.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for `IPv6`.
pub const ICMPV6: u8 = 58;

/// Fragment identity and place, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Identification.
    pub id: u32,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// More follow.
    pub more: bool,
}

/// What the transports need to know about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination, of the same family.
    pub dst: IpAddr,
    /// Protocol number.
    pub proto: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Don't fragment; always true for `IPv6`.
    pub dont_fragment: bool,
    /// Set on parts of a cut packet.
    pub part: Option<Part>,
}

impl Ip {
    /// Reads a packet of the family that `kind` names.
    pub fn parse(kind: u16, packet: &[u8]) -> Option<(Self, &[u8])> {
        if kind == ethernet::IPV4 {
            let (h, payload) = Ipv4::parse(packet)?;
            let part = h.is_fragment().then(|| Part {
                id: u32::from(h.id),
                offset: h.offset.into(),
                more: h.more_fragments,
            });
            let ip = Self {
                src: h.src.into(),
                dst: h.dst.into(),
                proto: h.proto,
                ttl: h.ttl,
                tos: h.tos,
                dont_fragment: h.dont_fragment,
                part,
            };
            return Some((ip, payload));
        }
        let (h, payload) = Ipv6::parse(packet)?;
        let part = h.fragment.filter(|f| f.more || f.offset != 0).map(|f| Part {
            id: f.id,
            offset: f.offset.into(),
            more: f.more,
        });
        let ip = Self {
            src: h.src.into(),
            dst: h.dst.into(),
            proto: h.proto,
            ttl: h.ttl,
            tos: h.tos,
            dont_fragment: true,
            part,
        };
        Some((ip, payload))
    }

    /// A packet from `src` to `dst` with the defaults of the engine.
    pub fn new(src: IpAddr, dst: IpAddr, proto: u8) -> Self {
        Self { src, dst, proto, ttl: 64, tos: 0, dont_fragment: true, part: None }
    }

    /// Length of the header that [`Self::emit_into`] writes.
    pub fn header_len(&self) -> usize {
        if self.src.is_ipv4() { ipv4::LEN } else { ipv6::LEN }
    }

    /// The largest payload that one packet of this family can carry.
    pub fn max_payload(&self) -> usize {
        if self.src.is_ipv4() { 65535 - ipv4::LEN } else { 65535 }
    }

    /// The frame's `EtherType`.
    pub fn kind(&self) -> u16 {
        if self.src.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 }
    }

    /// Writes the header for `payload_len` bytes to the start of `out`. Fragments are never emitted.
    pub fn emit_into(&self, out: &mut [u8], payload_len: usize) {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4 {
                    src,
                    dst,
                    proto: self.proto,
                    ttl: self.ttl,
                    tos: self.tos,
                    id: 0,
                    dont_fragment: self.dont_fragment,
                    more_fragments: false,
                    offset: 0,
                };
                super::put(out, 0, &header.emit(payload_len));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header =
                    Ipv6 { src, dst, proto: self.proto, ttl: self.ttl, tos: self.tos, fragment: None };
                super::put(out, 0, &header.emit(payload_len));
            }
            _ => {}
        }
    }

    /// One part of a packet of this header.
    pub fn emit_part(&self, part: Part, piece: &[u8]) -> Vec<u8> {
        let mut out = if let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src, self.dst) {
            let header = Ipv4 {
                src,
                dst,
                proto: self.proto,
                ttl: self.ttl,
                tos: self.tos,
                id: part.id as u16,
                dont_fragment: false,
                more_fragments: part.more,
                offset: part.offset as u16,
            };
            header.emit(piece.len()).to_vec()
        } else {
            let mut out = vec![0; ipv6::LEN + ipv6::FRAGMENT_LEN];
            Self { proto: ipv6::FRAGMENT, ..*self }.emit_into(&mut out, ipv6::FRAGMENT_LEN + piece.len());
            let place = part.offset as u16 | u16::from(part.more);
            super::put(&mut out, ipv6::LEN, &[self.proto]);
            super::put(&mut out, ipv6::LEN + 2, &place.to_be_bytes());
            super::put(&mut out, ipv6::LEN + 4, &part.id.to_be_bytes());
            out
        };
        out.extend_from_slice(piece);
        out
    }

    /// The pseudo-header's sum for `len` bytes of transport.
    pub fn pseudo(&self, len: usize) -> Sum {
        Sum::pseudo(self.src, self.dst, self.proto, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_round_trip() {
        for (src, dst, kind) in
            [("10.0.2.2", "10.0.2.100", ethernet::IPV4), ("fd00::2", "fd00::100", ethernet::IPV6)]
        {
            let ip = Ip::new(src.parse().unwrap(), dst.parse().unwrap(), UDP);
            let mut packet = vec![0; ip.header_len() + 2];
            ip.emit_into(&mut packet, 2);
            assert_eq!(ip.kind(), kind);
            assert_eq!(Ip::parse(kind, &packet), Some((ip, &[0u8, 0][..])));
        }
    }

    #[test]
    fn atomic_fragment_is_a_whole_packet() {
        let mut packet = Ipv6 { proto: ipv6::FRAGMENT, ..ipv6::tests::sample() }.emit(8).to_vec();
        packet.extend_from_slice(&[17, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(Ip::parse(ethernet::IPV6, &packet).unwrap().0.part, None, "RFC 6946");
    }
}
