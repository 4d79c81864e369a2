//! ARP for `IPv4` over Ethernet (RFC 826).

use super::Reader;
use super::ethernet::Mac;
use std::net::Ipv4Addr;

/// Length of the packet.
pub const LEN: usize = 28;
/// Who has?
pub const REQUEST: u16 = 1;
/// Is at.
pub const REPLY: u16 = 2;

/// One question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`].
    pub op: u16,
    /// The sender's hardware address.
    pub sender_mac: Mac,
    /// The sender's address; 0.0.0.0 in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's hardware address; meaningless in a request.
    pub target_mac: Mac,
    /// Whose hardware address is asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads a packet; `None` for other hardware or protocol.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let mut r = Reader::new(packet);
        let kind: [u8; 6] = r.array()?;
        if kind != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        Some(Self {
            op: r.u16()?,
            sender_mac: Mac(r.array()?),
            sender: r.array::<4>()?.into(),
            target_mac: Mac(r.array()?),
            target: r.array::<4>()?.into(),
        })
    }

    /// The packet's bytes.
    pub fn emit(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        out[6..8].copy_from_slice(&self.op.to_be_bytes());
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..].copy_from_slice(&self.target.octets());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_short() {
        let arp = Arp {
            op: REQUEST,
            sender_mac: Mac([1, 2, 3, 4, 5, 6]),
            sender: [10, 0, 2, 100].into(),
            target_mac: Mac::default(),
            target: [10, 0, 2, 2].into(),
        };
        let bytes = arp.emit();
        assert_eq!(Arp::parse(&bytes), Some(arp));
        for len in 0..LEN {
            assert_eq!(Arp::parse(&bytes[..len]), None);
        }
        let mut other = bytes;
        other[4] = 8;
        assert_eq!(Arp::parse(&other), None, "hardware length 8");
    }
}
