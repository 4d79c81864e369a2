//! Ethernet II: the 14 bytes before everything (IEEE 802.3; no VLAN tags on a tap of ours).

use super::Reader;

/// Length of the header.
pub const LEN: usize = 14;
/// `EtherType` of `IPv4`.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;
/// `EtherType` of `IPv6`.
pub const IPV6: u16 = 0x86dd;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that every station hears.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// True for broadcast and multicast.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

/// Where a frame goes, whence it comes, what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// `EtherType`.
    pub kind: u16,
}

impl Ethernet {
    /// Splits a frame into header and packet.
    pub fn parse(frame: &[u8]) -> Option<(Self, &[u8])> {
        let mut r = Reader::new(frame);
        let header = Self { dst: Mac(r.array()?), src: Mac(r.array()?), kind: r.u16()? };
        Some((header, r.rest()))
    }

    /// The header's bytes.
    pub fn emit(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..6].copy_from_slice(&self.dst.0);
        out[6..12].copy_from_slice(&self.src.0);
        out[12..].copy_from_slice(&self.kind.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let header = Ethernet { dst: Mac::BROADCAST, src: Mac([2, 0, 0, 0, 0, 1]), kind: ARP };
        let mut frame = header.emit().to_vec();
        frame.extend_from_slice(b"xy");
        assert_eq!(Ethernet::parse(&frame), Some((header, &b"xy"[..])));
        assert_eq!(Ethernet::parse(&frame[..13]), None);
        assert!(header.dst.is_multicast() && !header.src.is_multicast());
    }
}
