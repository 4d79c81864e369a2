//! What the firewall's table of one container holds. No system call is made here; the keeper sends it.
//!
//! Base chains of several tables all have their say: `accept` here ends this chain alone, and what another table drops
//! is dropped. So these rules can keep something out, but they cannot let anything through a firewall that is closed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addresses::{BITS6, Subnet, sixth};
use super::nft::{Batch, Chain, Field, Rule, Way};

/// What all interfaces of containers begin with.
const OURS: &str = "r2d2-";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));

/// A container, as the host's firewall sees it.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The host's end of its wire.
    pub interface: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub v6: Option<Ipv6Addr>,
    /// Where both are from.
    pub subnet: Subnet,
}

/// A port of the host that leads inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// TCP, or UDP.
    pub tcp: bool,
    /// The host's address; unspecified for all of that family.
    pub host: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// Where it leads.
    pub guest_port: u16,
}

impl Guest {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.v4.into()), self.v6.map(Into::into)].into_iter().flatten()
    }

    fn to(&self) -> Rule {
        Rule::new().interface(Way::Out, false, &self.interface)
    }

    /// The rules that it has from the beginning.
    pub fn rules(&self) -> Vec<(Chain, Rule)> {
        let mut found = Vec::new();
        let mut add = |chain, rule| found.push((chain, rule));
        // A packet passes the chains of all containers: out of those that are not its own by the first rule.
        add(Chain::Guard, Rule::new().interface(Way::In, true, &self.interface).accept());
        add(Chain::Forward, Rule::new().interface(Way::Out, true, &self.interface).accept());
        // It speaks for itself only, and never to the host's loopback, which `route_localnet` would let in
        // (CVE-2020-8558).
        let v4 = IpAddr::V4(self.v4);
        add(Chain::Guard, Rule::new().family(v4).is(Field::Source, true, v4).drop());
        add(Chain::Guard, Rule::new().family(v4).within(Field::Destination, false, LOOPBACK, 8).drop());
        let six = Rule::new().family(Ipv6Addr::UNSPECIFIED.into());
        add(
            Chain::Guard,
            match self.v6 {
                // The link's own addresses are those of neighbour discovery.
                Some(v6) => six
                    .is(Field::Source, true, v6.into())
                    .within(Field::Source, true, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)
                    .is(Field::Source, true, Ipv6Addr::UNSPECIFIED.into())
                    .drop(),
                None => six.drop(),
            },
        );
        // In come answers, what was published, and its fellows.
        add(Chain::Forward, Rule::new().answers().accept());
        add(Chain::Forward, Rule::new().redirected().accept());
        let fellows = || Rule::new().interfaces(Way::In, false, OURS);
        let (network, _) = self.subnet.masked();
        add(
            Chain::Forward,
            fellows().family(v4).within(Field::Source, false, network.into(), self.subnet.bits).accept(),
        );
        if let Some(v6) = self.v6 {
            let bits = BITS6 + self.subnet.bits;
            let rule = fellows().family(v6.into()).within(Field::Source, false, sixth(network).into(), bits);
            add(Chain::Forward, rule.accept());
        }
        add(Chain::Forward, Rule::new().drop());
        for address in self.addresses() {
            let family = || Rule::new().family(address);
            // Out into the world; to its fellows it goes as itself.
            let out = family().is(Field::Source, false, address).interfaces(Way::Out, true, OURS);
            add(Chain::Postrouting, out.masquerade());
            // By a published port it may send to itself, which nobody takes from his own address.
            add(Chain::Postrouting, self.to().family(address).is(Field::Source, false, address).masquerade());
        }
        // What this machine sends from its loopback could not be answered. IPv6 has no `route_localnet`.
        add(Chain::Postrouting, self.to().family(v4).within(Field::Source, false, LOOPBACK, 8).masquerade());
        found
    }

    /// The rules of a published port; `None` if the container has no address of its family.
    pub fn publish(&self, port: Published) -> Option<Vec<(Chain, Rule)>> {
        let to: IpAddr = if port.host.is_ipv4() { self.v4.into() } else { self.v6?.into() };
        let rule = || {
            let rule = Rule::new().family(to);
            let rule = if port.host.is_unspecified() {
                rule.to_this_machine()
            } else {
                rule.is(Field::Destination, false, port.host)
            };
            rule.port(port.tcp, port.host_port).dnat(to, port.guest_port)
        };
        let mut found = vec![(Chain::Output, rule())];
        // What comes from a wire with a loopback address is forged, and would get in by a changed destination.
        if !port.host.is_loopback() {
            found.push((Chain::Prerouting, rule()));
        }
        Some(found)
    }
}

/// The whole table of a new container.
pub fn table(guest: &Guest) -> (Vec<u8>, u32) {
    let mut batch = Batch::new(&guest.interface);
    batch.table();
    for (chain, rule) in guest.rules() {
        batch.rule(chain, &rule);
    }
    batch.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::message::messages;

    fn guest(v6: Option<Ipv6Addr>) -> Guest {
        let v4 = Ipv4Addr::new(10, 210, 0, 9);
        Guest { interface: "r2d2-0ad20009".into(), v4, v6, subnet: "10.210.0.0/16".parse().unwrap() }
    }

    #[test]
    fn a_loopback_port_is_none_for_the_world() {
        let port =
            |host: &str| Published { tcp: true, host: host.parse().unwrap(), host_port: 80, guest_port: 8 };
        let guest = guest(None);
        let chains =
            |host| guest.publish(port(host)).unwrap().iter().map(|(chain, _)| *chain).collect::<Vec<_>>();
        assert_eq!(chains("127.0.0.1"), [Chain::Output]);
        assert_eq!(chains("0.0.0.0"), [Chain::Output, Chain::Prerouting]);
        assert!(guest.publish(port("::1")).is_none(), "it has no such address");
    }

    #[test]
    fn a_table_is_one_batch_with_numbered_requests() {
        let (bytes, last) = table(&guest(Some(sixth(Ipv4Addr::new(10, 210, 0, 9)))));
        let found: Vec<_> = messages(&bytes).map(|message| message.sequence).collect();
        let middle: Vec<_> = (1..=last).collect();
        assert_eq!(found[1..found.len() - 1], middle);
    }
}
