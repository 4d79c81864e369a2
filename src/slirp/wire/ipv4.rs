//! `IPv4` headers (RFC 791). Options are skipped, never sent, never acted upon.

use super::Reader;
use super::checksum::Sum;
use std::net::Ipv4Addr;

/// Length of a header without options.
pub const LEN: usize = 20;

/// The fields that the engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol number.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification, for fragments.
    pub id: u16,
    /// Must not be cut.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Where this fragment starts, in bytes.
    pub offset: u16,
}

impl Ipv4 {
    /// Splits a packet into header and payload; trailing padding of the frame is cut off. The header's checksum
    /// must be right.
    pub fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let mut r = Reader::new(packet);
        let first = r.u8()?;
        let header_len = usize::from(first & 15) * 4;
        let tos = r.u8()?;
        let total = usize::from(r.u16()?);
        if first >> 4 != 4 || header_len < LEN || total < header_len {
            return None;
        }
        let (id, fragment) = (r.u16()?, r.u16()?);
        let (ttl, proto) = (r.u8()?, r.u8()?);
        r.u16()?;
        let header = Self {
            src: r.array::<4>()?.into(),
            dst: r.array::<4>()?.into(),
            proto,
            ttl,
            tos,
            id,
            dont_fragment: fragment & 0x4000 != 0,
            more_fragments: fragment & 0x2000 != 0,
            offset: (fragment & 0x1fff) << 3,
        };
        let (whole, payload) = packet.get(..total)?.split_at_checked(header_len)?;
        Sum::default().bytes(whole).verifies().then_some((header, payload))
    }

    /// A header for `payload_len` bytes.
    pub fn emit(&self, payload_len: usize) -> [u8; LEN] {
        let mut out = [0; LEN];
        let fragment = (u16::from(self.dont_fragment) << 14)
            | (u16::from(self.more_fragments) << 13)
            | ((self.offset >> 3) & 0x1fff);
        out[0] = 0x45;
        out[1] = self.tos;
        out[2..4].copy_from_slice(&((LEN + payload_len) as u16).to_be_bytes());
        out[4..6].copy_from_slice(&self.id.to_be_bytes());
        out[6..8].copy_from_slice(&fragment.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.proto;
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..].copy_from_slice(&self.dst.octets());
        let sum = Sum::default().bytes(&out).finish();
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out
    }

    /// True for any part of a cut packet.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset != 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Ipv4 {
        Ipv4 {
            src: [10, 0, 2, 100].into(),
            dst: [192, 0, 2, 1].into(),
            proto: 17,
            ttl: 64,
            tos: 0,
            id: 7,
            dont_fragment: true,
            more_fragments: false,
            offset: 0,
        }
    }

    #[test]
    fn round_trip_cuts_padding() {
        let header = sample();
        let mut packet = header.emit(3).to_vec();
        packet.extend_from_slice(b"abc-padding");
        assert_eq!(Ipv4::parse(&packet), Some((header, &b"abc"[..])));
        for len in 0..23 {
            assert_eq!(Ipv4::parse(&packet[..len]), None, "{len}");
        }
    }

    #[test]
    fn options_are_skipped() {
        let mut packet = sample().emit(6).to_vec();
        packet[0] = 0x46;
        packet.extend_from_slice(&[1, 1, 1, 0, b'h', b'i']);
        packet[10] = 0;
        packet[11] = 0;
        let sum = Sum::default().bytes(&packet[..24]).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let (header, payload) = Ipv4::parse(&packet).unwrap();
        assert_eq!((header, payload), (sample(), &b"hi"[..]));
    }

    #[test]
    fn bad_checksum_version_and_lengths() {
        let good = sample().emit(0);
        for (at, value) in [(0, 0x55), (0, 0x44), (8, 1), (3, 10), (3, 21)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Ipv4::parse(&bad), None, "{at}={value}");
        }
    }

    #[test]
    fn fragment_fields() {
        let part = Ipv4 { dont_fragment: false, more_fragments: true, offset: 1480, ..sample() };
        let packet = part.emit(0);
        let (read, _) = Ipv4::parse(&packet).unwrap();
        assert!(read == part && read.is_fragment());
    }
}
