//! What the kernel's connection tracking remembers of UDP, by netlink: made and read here, sent by the keeper.
//!
//! A destination is changed for the first packet of a flow, and remembered for the rest. UDP has no end, so a client
//! that goes on sending from one port (DNS, QUIC, syslog) would be led to the container that had the host's port
//! before, or to nobody, for as long as it does not pause for half a minute. So flows to a port are forgotten when it
//! is published.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{ACKNOWLEDGED, Attributes, DUMP, attribute, request};
use super::rules::Published;

/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte of every type.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const NESTED: u16 = 0x8000;
const UDP: u8 = 17;

/// Asks for all connections of the family of an address.
pub fn all(like: IpAddr) -> Vec<u8> {
    request(GET, 1 | DUMP, 1, &generic(like), &Attributes::new())
}

/// `struct nfgenmsg`.
fn generic(like: IpAddr) -> [u8; 4] {
    [if like.is_ipv4() { 2 } else { 10 }, 0, 0, 0]
}

/// The request to forget a flow of the answer to [`all`], if it is one to this port.
pub fn forget(body: &[u8], port: Published) -> Option<Vec<u8>> {
    let rest = body.get(4..)?;
    let original = attribute(rest, CTA_TUPLE_ORIG)?;
    let (ip, transport) = (attribute(original, 1)?, attribute(original, 2)?);
    let to = match port.host {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(*attribute(ip, 2)?.first_chunk::<4>()?)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(*attribute(ip, 4)?.first_chunk::<16>()?)),
    };
    let to_port = attribute(transport, 3)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    let here = port.host.is_unspecified() || port.host == to;
    if attribute(transport, 1)? != [UDP] || to_port != port.host_port || !here {
        return None;
    }
    let mut which = Attributes::new().bytes(CTA_TUPLE_ORIG | NESTED, original);
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(value) = attribute(rest, kind) {
            which = which.bytes(kind, value);
        }
    }
    Some(request(DELETE, ACKNOWLEDGED, 1, &generic(port.host), &which))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::messages;

    #[test]
    fn only_flows_to_the_port_are_forgotten() {
        let port =
            Published { tcp: false, host: "192.0.2.1".parse().unwrap(), host_port: 53, guest_port: 53 };
        let told = |protocol: u8, to: [u8; 4], port: u16| {
            let ip = Attributes::new().bytes(1, &[192, 0, 2, 9]).bytes(2, &to);
            let transport = Attributes::new().bytes(1, &[protocol]).bytes(3, &port.to_be_bytes());
            let tuple = Attributes::new().nest(1, &ip).nest(2, &transport);
            [&[2, 0, 0, 0], Attributes::new().nest(1, &tuple).be32(CTA_ID, 7).as_bytes()].concat()
        };
        let bytes = forget(&told(17, [192, 0, 2, 1], 53), port).unwrap();
        let body = messages(&bytes).next().unwrap().body.to_vec();
        assert_eq!(attribute(&body[4..], CTA_ID), Some(&[0, 0, 0, 7][..]));
        for other in [told(6, [192, 0, 2, 1], 53), told(17, [192, 0, 2, 2], 53), told(17, [192, 0, 2, 1], 54)]
        {
            assert!(forget(&other, port).is_none());
        }
        let everywhere = Published { host: "0.0.0.0".parse().unwrap(), ..port };
        assert!(forget(&told(17, [192, 0, 2, 2], 53), everywhere).is_some());
        assert!(forget(&[], port).is_none());
    }
}
