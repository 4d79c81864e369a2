//! The Internet checksum (RFC 1071), with and without the pseudo-header.
//!
//! The sum is taken over native-endian 32-bit words in a 64-bit accumulator, a form that the compiler turns
//! into vector instructions, and is brought to network order at the end: one's complement addition does not
//! mind the order of bytes (RFC 1071 §2B). With offloads the engine rarely runs this over payload; it does on
//! plain devices, for fragments and for ICMP.

use std::net::IpAddr;

/// A running one's complement sum in network order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds a 16-bit field.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds `bytes`, padded with a zero if their number is odd. Only the last part of a message may be odd.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut sum = 0u64;
        let words = bytes.chunks_exact(4);
        let mut last = [0u8; 4];
        let tail = words.remainder();
        for word in words {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        Self(self.0 + u64::from(u16::from_be(fold(sum))))
    }

    /// The pseudo-header of TCP, UDP and `ICMPv6`. Must be given two addresses of one family.
    #[must_use]
    pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Self {
        let sum = match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Self::default().bytes(&s.octets()).bytes(&d.octets()),
            (IpAddr::V6(s), IpAddr::V6(d)) => Self::default().bytes(&s.octets()).bytes(&d.octets()),
            _ => Self::default(),
        };
        sum.word(u16::from(proto)).bytes(&(len as u32).to_be_bytes())
    }

    /// The sum folded to 16 bits, not complemented: what `csum_start` offload wants in the field.
    pub fn partial(self) -> u16 {
        fold(self.0)
    }

    /// The checksum field of a message whose own field was taken as zero.
    pub fn finish(self) -> u16 {
        !fold(self.0)
    }

    /// True for a message summed with its checksum field in place.
    pub fn verifies(self) -> bool {
        fold(self.0) == 0xffff
    }
}

/// Folds carries until 16 bits remain.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 1071, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn equals_the_definition_at_every_length() {
        let data: Vec<u8> = (0..2000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for len in 0..data.len() {
            assert_eq!(Sum::default().bytes(&data[..len]).finish(), reference(&data[..len]), "{len}");
        }
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert!(sum.word(sum.finish()).verifies());
    }

    #[test]
    fn pseudo_header_of_both_families() {
        let v4 = Sum::pseudo([10, 0, 2, 100].into(), [10, 0, 2, 2].into(), 17, 8);
        assert_eq!(v4.finish(), reference(&[10, 0, 2, 100, 10, 0, 2, 2, 0, 17, 0, 8]));
        let a = std::net::Ipv6Addr::LOCALHOST;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&a.octets());
        bytes.extend_from_slice(&a.octets());
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 58]);
        assert_eq!(Sum::pseudo(a.into(), a.into(), 58, 65536).finish(), reference(&bytes));
    }
}
