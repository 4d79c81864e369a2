//! UDP (RFC 768, RFC 8200 §8.1).

use super::Reader;
use super::ip::Ip;

/// Length of the header.
pub const LEN: usize = 8;

/// Source and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl Udp {
    /// Splits a datagram into header and data.
    ///
    /// `trusted`: the device vouches for the checksum. `gso`: several datagrams in one frame, so that the length
    /// field is that of the frame and may not fit 16 bits. A datagram without checksum is legal in `IPv4` only.
    pub fn parse<'a>(ip: &Ip, datagram: &'a [u8], trusted: bool, gso: bool) -> Option<(Self, &'a [u8])> {
        let mut r = Reader::new(datagram);
        let header = Self { src_port: r.u16()?, dst_port: r.u16()? };
        let (len, sum) = (usize::from(r.u16()?), r.u16()?);
        let whole = if gso { datagram } else { datagram.get(..len)? };
        let data = whole.get(LEN..)?;
        let checked = trusted
            || (sum == 0 && ip.src.is_ipv4())
            || (sum != 0 && ip.pseudo(whole.len()).bytes(whole).verifies());
        checked.then_some((header, data))
    }

    /// A header for `data_len` bytes with `checksum` in its field.
    pub fn emit(&self, data_len: usize, checksum: u16) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..6].copy_from_slice(&((LEN + data_len) as u16).to_be_bytes());
        out[6..].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    /// The checksum of a datagram; 0 is sent as 0xffff, for 0 means none.
    pub fn checksum(&self, ip: &Ip, data: &[u8]) -> u16 {
        let head = self.emit(data.len(), 0);
        match ip.pseudo(LEN + data.len()).bytes(&head).bytes(data).finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::ip;

    fn datagram(ip: &Ip) -> Vec<u8> {
        let udp = Udp { src_port: 5353, dst_port: 53 };
        let mut bytes = udp.emit(5, udp.checksum(ip, b"hello")).to_vec();
        bytes.extend_from_slice(b"hello");
        bytes
    }

    #[test]
    fn checked_both_families() {
        for (a, b) in [("10.0.2.100", "10.0.2.3"), ("fd00::100", "fd00::3")] {
            let ip = Ip::new(a.parse().unwrap(), b.parse().unwrap(), ip::UDP);
            let good = datagram(&ip);
            let (udp, data) = Udp::parse(&ip, &good, false, false).unwrap();
            assert_eq!((udp.src_port, udp.dst_port, data), (5353, 53, &b"hello"[..]));
            let mut bad = good.clone();
            bad[9] ^= 1;
            assert_eq!(Udp::parse(&ip, &bad, false, false), None);
            assert!(Udp::parse(&ip, &bad, true, false).is_some(), "the device vouches");
            let mut none = good;
            none[6] = 0;
            none[7] = 0;
            assert_eq!(Udp::parse(&ip, &none, false, false).is_some(), ip.src.is_ipv4(), "zero sum: v4 only");
        }
    }

    #[test]
    fn length_mismatch() {
        let ip = Ip::new([10, 0, 2, 100].into(), [10, 0, 2, 3].into(), ip::UDP);
        let good = datagram(&ip);
        for len in [0u16, 7, 14, u16::MAX] {
            let mut bad = good.clone();
            bad[4..6].copy_from_slice(&len.to_be_bytes());
            assert_eq!(Udp::parse(&ip, &bad, true, false), None, "{len}");
        }
        assert!(Udp::parse(&ip, &good, true, true).is_some());
        assert_eq!(Udp::parse(&ip, &good[..7], true, true), None);
    }
}
