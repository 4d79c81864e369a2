//! The requests of rtnetlink(7) that a container's interface takes: made and read here, sent by the keeper.

use std::net::{IpAddr, Ipv4Addr};

use super::message::{
    ACKNOWLEDGED, Attributes, CREATE, DUMP, EXCLUSIVE, attribute, attributes, number, request,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
/// `RT_SCOPE_LINK`: the destination is at the other end of the wire.
const ON_LINK: u8 = 253;
/// Who made a route (`rtm_protocol`): a number that nobody else uses tells ours from the host's own.
pub const OURS: u8 = 0xd2;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// `AF_INET` or `AF_INET6`.
fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// All the bits of an address.
pub fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Makes a veth pair: `near` here, `far` in the network namespace behind the descriptor. `EEXIST`: a name is taken.
pub fn veth(near: &str, far: &str, namespace: i32, mtu: u32) -> Vec<u8> {
    let ends = |attributes: Attributes| attributes.ne32(IFLA_MTU, mtu);
    let far = ends(Attributes::new().text(IFLA_IFNAME, far)).bytes(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
    let peer = [&[0; 16], far.as_bytes()].concat();
    let data = Attributes::new().bytes(VETH_INFO_PEER, &peer);
    let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &data);
    let whole = ends(Attributes::new().text(IFLA_IFNAME, near)).nest(IFLA_LINKINFO, &info);
    request(RTM_NEWLINK, ACKNOWLEDGED | CREATE | EXCLUSIVE, 1, &[0; 16], &whole)
}

/// The interface of this name: its [`index`] and its [`counters`].
pub fn find(name: &str) -> Vec<u8> {
    request(RTM_GETLINK, ACKNOWLEDGED, 1, &[0; 16], &Attributes::new().text(IFLA_IFNAME, name))
}

/// The index in the answer to [`find`].
pub fn index(body: &[u8]) -> u32 {
    number(body.get(4..).unwrap_or(&[]))
}

/// The counters in the answer to [`find`], by the names that they have at the other end of the wire.
pub fn counters(body: &[u8]) -> Vec<(&'static str, u64)> {
    // struct rtnl_link_stats64 (if_link.h), which begins with what this end received.
    const NAMES: [&str; 8] = [
        "tx_packets",
        "rx_packets",
        "tx_bytes",
        "rx_bytes",
        "tx_errors",
        "rx_errors",
        "tx_dropped",
        "rx_dropped",
    ];
    let stats = attribute(body.get(16..).unwrap_or(&[]), IFLA_STATS64).unwrap_or(&[]);
    let values = stats.chunks_exact(8).map(|bytes| bytes.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)));
    NAMES.into_iter().zip(values).collect()
}

/// Brings an interface up.
pub fn up(index: u32) -> Vec<u8> {
    let mut body = [0; 16]; // struct ifinfomsg: family, type, index, flags, mask of flags
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&1u32.to_ne_bytes());
    body[12..].copy_from_slice(&1u32.to_ne_bytes());
    request(RTM_NEWLINK, ACKNOWLEDGED, 1, &body, &Attributes::new())
}

/// Removes an interface, and a veth pair's other end with it.
pub fn remove(index: u32) -> Vec<u8> {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    request(RTM_DELLINK, ACKNOWLEDGED, 1, &body, &Attributes::new())
}

/// Gives an interface an address that has no network around it; nobody is asked whether it is taken.
pub fn address(index: u32, address: IpAddr) -> Vec<u8> {
    let mut body = vec![family(address), bits(address), 0, 0]; // struct ifaddrmsg
    body.extend_from_slice(&index.to_ne_bytes());
    let value = octets(address);
    let attributes =
        Attributes::new().bytes(IFA_LOCAL, &value).bytes(IFA_ADDRESS, &value).ne32(IFA_FLAGS, IFA_F_NODAD);
    request(RTM_NEWADDR, ACKNOWLEDGED | CREATE | EXCLUSIVE, 1, &body, &attributes)
}

/// `to` is at the other end of the interface. `EEXIST`: there is a route to it already.
pub fn reach(index: u32, to: IpAddr, source: Option<IpAddr>) -> Vec<u8> {
    // struct rtmsg: family, bits, source bits, tos, main table, protocol, scope, unicast, flags.
    let body = [family(to), bits(to), 0, 0, 254, OURS, ON_LINK, 1, 0, 0, 0, 0];
    let mut attributes = Attributes::new().bytes(RTA_DST, &octets(to)).ne32(RTA_OIF, index);
    if let Some(source) = source {
        attributes = attributes.bytes(RTA_PREFSRC, &octets(source));
    }
    request(RTM_NEWROUTE, ACKNOWLEDGED | CREATE | EXCLUSIVE, 1, &body, &attributes)
}

/// The rest of the world is behind `router`.
pub fn default_route(index: u32, router: IpAddr) -> Vec<u8> {
    let body = [family(router), 0, 0, 0, 254, OURS, 0, 1, 0, 0, 0, 0];
    let attributes = Attributes::new().bytes(RTA_GATEWAY, &octets(router)).ne32(RTA_OIF, index);
    request(RTM_NEWROUTE, ACKNOWLEDGED | CREATE | EXCLUSIVE, 1, &body, &attributes)
}

/// All IPv4 routes, of all tables.
pub fn routes() -> Vec<u8> {
    request(RTM_GETROUTE, 1 | DUMP, 1, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &Attributes::new())
}

/// Where a route of the answer to [`routes`] leads, if anything but ours has a claim to it by that: not a default
/// route.
pub fn claimed(body: &[u8]) -> Option<(Ipv4Addr, u8)> {
    let (prefix, protocol) = (*body.get(1)?, *body.get(5)?);
    if prefix == 0 || protocol == OURS {
        return None;
    }
    let (_, to) = attributes(body.get(12..)?).find(|(kind, _)| *kind == RTA_DST)?;
    Some((Ipv4Addr::from(*to.first_chunk::<4>()?), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::messages;

    #[test]
    fn a_route_is_claimed_unless_it_is_ours_or_the_default() {
        let body = |bytes: &[u8]| messages(bytes).next().map(|m| m.body.to_vec()).unwrap();
        let to = IpAddr::from([10, 1, 0, 0]);
        let mut foreign = body(&reach(3, to, None));
        assert_eq!(claimed(&foreign), None, "ours");
        (foreign[1], foreign[5]) = (16, 4);
        assert_eq!(claimed(&foreign), Some((Ipv4Addr::new(10, 1, 0, 0), 16)));
        let mut default = body(&default_route(3, to));
        default[5] = 4;
        assert_eq!(claimed(&default), None);
        assert_eq!(claimed(&[]), None);
    }
}
