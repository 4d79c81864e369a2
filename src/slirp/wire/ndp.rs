//! Neighbour discovery bodies (RFC 4861, 8106): solicitations in, advertisements out.
//!
//! These are what follows type, code and checksum of an `Icmpv6`: its four `rest` bytes and its data.

use super::Reader;
use super::ethernet::Mac;
use super::icmpv6::Icmpv6;
use std::net::Ipv6Addr;

/// Router solicitation.
pub const ROUTER_SOLICIT: u8 = 133;
/// Router advertisement.
pub const ROUTER_ADVERT: u8 = 134;
/// Neighbour solicitation.
pub const NEIGHBOR_SOLICIT: u8 = 135;
/// Neighbour advertisement.
pub const NEIGHBOR_ADVERT: u8 = 136;

/// Reads whom a neighbour solicitation asks for; `None` if its options are malformed.
pub fn solicited(message: &Icmpv6<'_>) -> Option<Ipv6Addr> {
    let mut r = Reader::new(message.data);
    let target = Ipv6Addr::from(r.array::<16>()?);
    check_options(r.rest())?;
    (!target.is_multicast()).then_some(target)
}

/// Walks an option list: each length counts units of eight bytes and is not zero.
pub fn check_options(options: &[u8]) -> Option<()> {
    let mut r = Reader::new(options);
    while let Some(_kind) = r.u8() {
        let units = usize::from(r.u8()?);
        r.take((units * 8).checked_sub(2)?)?;
    }
    Some(())
}

/// The answer "`target` is at `mac`", as `rest` and data of a [`NEIGHBOR_ADVERT`]. `solicited` tells whether a
/// single host asked.
pub fn advertise(target: Ipv6Addr, mac: Mac, solicited: bool) -> ([u8; 4], [u8; 24]) {
    let mut data = [0; 24];
    data[..16].copy_from_slice(&target.octets());
    data[16..18].copy_from_slice(&[2, 1]);
    data[18..].copy_from_slice(&mac.0);
    // Router, solicited, override.
    ([if solicited { 0xe0 } else { 0xa0 }, 0, 0, 0], data)
}

/// What a router advertisement of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterAdvert {
    /// The router's hardware address.
    pub mac: Mac,
    /// The link's MTU.
    pub mtu: u32,
    /// The on-link /64 from which guests make their addresses.
    pub prefix: Ipv6Addr,
    /// The resolver.
    pub dns: Ipv6Addr,
    /// For how many seconds all of this holds.
    pub lifetime: u16,
}

impl RouterAdvert {
    /// `rest` and data of a [`ROUTER_ADVERT`].
    pub fn emit(&self) -> ([u8; 4], Vec<u8>) {
        let seconds = u32::from(self.lifetime).to_be_bytes();
        let mut out = vec![0; 8]; // reachable time and retransmit timer: unspecified
        out.extend_from_slice(&[1, 1]);
        out.extend_from_slice(&self.mac.0);
        out.extend_from_slice(&[5, 1, 0, 0]);
        out.extend_from_slice(&self.mtu.to_be_bytes());
        out.extend_from_slice(&[3, 4, 64, 0xc0]); // on link, autonomous
        out.extend_from_slice(&seconds);
        out.extend_from_slice(&seconds);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.prefix.octets());
        if !self.dns.is_unspecified() {
            out.extend_from_slice(&[25, 3, 0, 0]);
            out.extend_from_slice(&seconds);
            out.extend_from_slice(&self.dns.octets());
        }
        let [high, low] = self.lifetime.to_be_bytes();
        ([64, 0, high, low], out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solicitation_with_good_and_bad_options() {
        let target: Ipv6Addr = "fd00::2".parse().unwrap();
        let with = |options: &[u8]| {
            let data = [&target.octets()[..], options].concat();
            solicited(&Icmpv6 { kind: NEIGHBOR_SOLICIT, code: 0, rest: [0; 4], data: &data })
        };
        assert_eq!(with(&[]), Some(target));
        assert_eq!(with(&[1, 1, 2, 2, 2, 2, 2, 2]), Some(target));
        assert_eq!(with(&[1, 0, 2, 2, 2, 2, 2, 2]), None, "zero length");
        assert_eq!(with(&[1, 2, 2, 2, 2, 2, 2, 2]), None, "length beyond the end");
        assert_eq!(with(&[1]), None);
    }

    #[test]
    fn advertisements_have_well_formed_options() {
        let advert = RouterAdvert {
            mac: Mac([2; 6]),
            mtu: 1500,
            prefix: "fd00::".parse().unwrap(),
            dns: "fd00::3".parse().unwrap(),
            lifetime: 1800,
        };
        let (rest, data) = advert.emit();
        assert_eq!(rest, [64, 0, 7, 8]);
        assert_eq!(check_options(&data[8..]), Some(()));
        assert_eq!(data.len(), 8 + 8 + 8 + 32 + 24);
        let without = RouterAdvert { dns: Ipv6Addr::UNSPECIFIED, ..advert }.emit().1;
        assert_eq!((check_options(&without[8..]), without.len()), (Some(()), data.len() - 24));
        let (rest, data) = advertise(advert.dns, advert.mac, true);
        assert_eq!((rest[0], check_options(&data[16..])), (0xe0, Some(())));
    }
}
