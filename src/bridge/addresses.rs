//! Subnets that collide with no route of the host, and the addresses in them. No system call is made here.
//!
//! The router is the subnet's first address. The IPv6 network is one of unique local addresses (RFC 4193) in which the
//! last 32 bits are the IPv4 address, so that whoever has the one has the other.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The upper 96 bits of all IPv6 addresses.
const UNIQUE_LOCAL: u128 = 0xfdd2_d2d2_d2d2_0000_0000_0000;
/// How many of them those are.
pub const BITS6: u8 = 96;

/// An IPv4 network of 8 to 30 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    /// Its prefix.
    pub bits: u8,
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (network, bits) = text.split_once('/').ok_or(())?;
        let (network, bits) =
            (network.parse::<Ipv4Addr>().map_err(drop)?.to_bits(), bits.parse().map_err(drop)?);
        let found = Self { network, bits };
        if (8..=30).contains(&bits) && network & !found.mask() == 0 { Ok(found) } else { Err(()) }
    }
}

impl Subnet {
    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.bits))
    }

    /// Whether it has an address in common with another network.
    pub fn overlaps(self, other: Ipv4Addr, bits: u8) -> bool {
        let bits = u32::from(self.bits.min(bits)).clamp(1, 32);
        (self.network ^ other.to_bits()) >> (32 - bits) == 0
    }

    /// Its network and the prefix's mask.
    pub fn masked(self) -> (Ipv4Addr, Ipv4Addr) {
        (self.network.into(), self.mask().into())
    }

    /// The router's address, the same for all of its containers.
    pub fn router(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// Its addresses for containers, each once, beginning anywhere.
    pub fn addresses(self, start: u32) -> impl Iterator<Item = Ipv4Addr> {
        let count = !self.mask() - 2; // neither the network, nor the router, nor the broadcast address
        (0..count).map(move |i| (self.network + 2 + (start % count + i) % count).into())
    }
}

/// The IPv6 address of whoever has this IPv4 address.
pub fn sixth(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(UNIQUE_LOCAL << 32 | u128::from(address.to_bits()))
}

/// The name of the host's interface to whoever has this address; the table's too.
pub fn name(address: Ipv4Addr) -> String {
    format!("r2d2-{:08x}", address.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_strictly() {
        assert!("10.1.2.0/24".parse::<Subnet>().is_ok());
        for wrong in ["10.1.2.1/24", "10.1.2.0", "10.0.0.0/7", "10.1.2.0/31", "fd00::/64", "10.1.2.0/x"] {
            assert!(wrong.parse::<Subnet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let subnet: Subnet = "10.1.0.0/16".parse().unwrap();
        for (other, bits, expected) in [
            ("10.1.2.0", 24, true),
            ("10.0.0.0", 8, true),
            ("10.1.0.7", 32, true),
            ("10.2.0.0", 16, false),
            ("11.1.0.0", 16, false),
        ] {
            assert_eq!(subnet.overlaps(other.parse().unwrap(), bits), expected, "{other}/{bits}");
        }
    }

    #[test]
    fn every_address_comes_once_wherever_one_begins() {
        let subnet: Subnet = "10.1.2.0/29".parse().unwrap();
        for start in [0, 3, u32::MAX] {
            let mut found: Vec<_> = subnet.addresses(start).map(|a| a.octets()[3]).collect();
            found.sort_unstable();
            assert_eq!(found, [2, 3, 4, 5, 6]);
        }
        assert_eq!(subnet.router(), Ipv4Addr::new(10, 1, 2, 1));
        assert_eq!(sixth(Ipv4Addr::new(10, 1, 2, 3)).to_string(), "fdd2:d2d2:d2d2::a01:203");
        assert_eq!(name(Ipv4Addr::new(10, 1, 2, 3)), "r2d2-0a010203");
    }
}
