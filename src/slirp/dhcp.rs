//! The DHCP server: for guests of guests, such as a virtual machine in the container. The container itself is
//! configured by netlink and never asks. Sixteen addresses; a lease belongs to a hardware address.

use super::core::Core;
use super::device::Device;
use super::host::Host;
use super::time::{SEC, Time};
use super::wire::dhcp::{self, Reply, Request};
use super::wire::ethernet::Mac;
use super::wire::ip::{self, Ip};
use super::wire::udp::Udp;
use std::net::{IpAddr, Ipv4Addr};

/// How many addresses there are to give.
const LEASES: u32 = 16;
/// For how long.
const LEASE: Time = 24 * 3600 * SEC;
/// How long an offer is kept for its client.
const OFFER: Time = 60 * SEC;

/// Who has which address until when.
#[derive(Debug, Default)]
pub struct Leases(Vec<(Mac, Ipv4Addr, Time)>);

impl Leases {
    /// The client's address, or a free one: the wanted one if that is free.
    fn choose(&mut self, mac: Mac, wanted: Option<Ipv4Addr>, first: Ipv4Addr, now: Time) -> Option<Ipv4Addr> {
        self.0.retain(|(_, _, until)| *until > now);
        if let Some((_, address, _)) = self.0.iter().find(|(m, _, _)| *m == mac) {
            return Some(*address);
        }
        let pool = (0..LEASES).map(|i| Ipv4Addr::from_bits(first.to_bits().wrapping_add(i)));
        let free = |a: &Ipv4Addr| !self.0.iter().any(|(_, taken, _)| taken == a);
        wanted.filter(|w| pool.clone().any(|a| a == *w) && free(w)).or_else(|| pool.clone().find(free))
    }

    fn keep(&mut self, mac: Mac, address: Ipv4Addr, until: Time) {
        self.0.retain(|(m, _, _)| *m != mac);
        self.0.push((mac, address, until));
    }
}

/// A message to the server's port.
pub fn request<H: Host, D: Device>(core: &mut Core<H, D>, leases: &mut Leases, message: &[u8]) {
    if !core.config.services {
        return;
    }
    let Some(request) = Request::parse(message) else {
        core.stats.malformed += 1;
        return;
    };
    let v4 = core.config.v4.clone();
    if request.server.is_some_and(|server| server != v4.gateway) {
        return;
    }
    let (kind, address) = match request.kind {
        dhcp::DISCOVER => {
            let Some(address) = leases.choose(request.mac, request.wanted, v4.dhcp, core.now) else { return };
            leases.keep(request.mac, address, core.now + OFFER);
            (dhcp::OFFER, address)
        }
        dhcp::REQUEST => {
            let wanted = request.wanted.unwrap_or(request.client);
            match leases.choose(request.mac, Some(wanted), v4.dhcp, core.now) {
                Some(address) if address == wanted => {
                    leases.keep(request.mac, address, core.now + LEASE);
                    (dhcp::ACK, address)
                }
                _ => (dhcp::NAK, Ipv4Addr::UNSPECIFIED),
            }
        }
        dhcp::INFORM => (dhcp::ACK, Ipv4Addr::UNSPECIFIED),
        dhcp::RELEASE | dhcp::DECLINE => {
            leases.0.retain(|(m, _, _)| *m != request.mac);
            return;
        }
        _ => return,
    };
    let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(v4.prefix)).unwrap_or(0));
    let search = std::mem::take(&mut core.config.search);
    let reply = Reply {
        kind,
        address,
        server: v4.gateway,
        mask,
        router: v4.gateway,
        dns: v4.dns,
        mtu: core.config.mtu,
        lease: (LEASE / SEC) as u32,
        search: &search,
    };
    let body = reply.emit(&request);
    core.config.search = search;
    // Who has no address yet cannot be asked for its hardware address: it is told by name, or all are.
    let to = if kind == dhcp::NAK
        || request.broadcast
        || (address.is_unspecified() && request.client.is_unspecified())
    {
        Ipv4Addr::BROADCAST
    } else if address.is_unspecified() {
        request.client
    } else {
        core.learn(address.into(), request.mac);
        address
    };
    let ip = Ip { dont_fragment: false, ..Ip::new(v4.gateway.into(), IpAddr::V4(to), ip::UDP) };
    let udp = Udp { src_port: dhcp::SERVER_PORT, dst_port: dhcp::CLIENT_PORT };
    let datagram = [&udp.emit(body.len(), udp.checksum(&ip, &body))[..], &body].concat();
    core.send_ip(&ip, &datagram);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_addresses_then_none_until_a_lease_ends() {
        let first = Ipv4Addr::new(10, 0, 2, 15);
        let mut leases = Leases::default();
        for i in 0..16 {
            let address = leases.choose(Mac([i; 6]), None, first, 0).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 0, 2, 15 + i));
            leases.keep(Mac([i; 6]), address, LEASE);
        }
        assert_eq!(leases.choose(Mac([99; 6]), None, first, 0), None);
        assert_eq!(
            leases.choose(Mac([3; 6]), None, first, 0),
            Some([10, 0, 2, 18].into()),
            "one's own again"
        );
        assert_eq!(
            leases.choose(Mac([99; 6]), Some([10, 0, 2, 20].into()), first, LEASE),
            Some([10, 0, 2, 20].into())
        );
        assert_eq!(
            leases.choose(Mac([99; 6]), Some([10, 0, 2, 2].into()), first, LEASE),
            Some(first),
            "not ours to give"
        );
    }
}
