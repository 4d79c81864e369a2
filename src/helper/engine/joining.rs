//! Joining a container to the kernel's own network: interfaces, addresses, routes, the firewall's table
//! (`src/bridge` has the picture). Runs in the keeper (`bridging`), in the namespaces of its owner, before it gives up
//! what it does not need.
//!
//! A forked child joins the container's namespaces and hands back a descriptor of the network namespace and a netlink
//! socket in it; both are closed once they have been used, or the namespace would stay.

use crate::attach;
use crate::bridge::addresses::{self, Subnet};
use crate::bridge::rules::{self, Guest};
use crate::bridge::{link, nft};
use crate::control::Failure;
use crate::guard::Guard;
use crate::sys::{self, Fd};
use crate::talk::{self, Netlink, failed};
use std::net::{IpAddr, Ipv4Addr};

/// What the first message says.
#[derive(Default)]
pub struct Wanted {
    ifname: String,
    mtu: u32,
    subnets: Vec<Subnet>,
    ipv6: bool,
    /// The user's word that this machine may become a router.
    forward: bool,
    /// A pidfd of the container's PID 1.
    pub target: Fd,
    /// A pidfd of the owner.
    pub owner: Option<Fd>,
    /// Where whoever connects may ask what the owner may.
    pub listen: Option<Fd>,
}

impl Wanted {
    /// Reads it, with the descriptors beside it.
    pub fn read(text: &str, mut fds: Vec<Fd>) -> Result<Self, Failure> {
        let mut wanted = Self { target: -1, ..Self::default() };
        for line in text.lines() {
            wanted
                .line(line, &mut fds)
                .ok_or_else(|| Failure::new(&format!("read the line {line:?}"), "parse", sys::EINVAL))?;
        }
        let usable = wanted.target >= 0 && !wanted.subnets.is_empty() && !wanted.ifname.is_empty();
        if usable { Ok(wanted) } else { Err(Failure::new("read the description", "parse", sys::EINVAL)) }
    }

    fn line(&mut self, line: &str, fds: &mut Vec<Fd>) -> Option<()> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "bridge" => {}
            "ifname" => self.ifname = words.next()?.into(),
            "mtu" => self.mtu = words.next()?.parse().ok()?,
            "subnet" => self.subnets.push(words.next()?.parse().ok()?),
            "ipv6" => self.ipv6 = words.next()?.parse().ok()?,
            "forward" => self.forward = words.next()?.parse().ok()?,
            "watch" => self.target = fds.first().copied()?,
            "listen" => self.listen = (fds.len() > 1).then(|| fds.remove(1)),
            "owner" => self.owner = fds.pop(),
            _ => return None,
        }
        Some(())
    }
}

/// What was made.
pub struct Made {
    /// The container, as the firewall sees it.
    pub guest: Guest,
    /// The host's end of its wire.
    pub index: u32,
    /// For rtnetlink.
    pub route: Netlink,
    /// Owns the table.
    pub firewall: Netlink,
    /// `route_localnet` of the host's end, to be written when a port of the loopback leads inside.
    pub localnet: Option<Fd>,
    /// Removes the interface if we cannot.
    pub guard: Guard,
}

/// Makes all of it, or nothing.
pub fn make(wanted: &Wanted) -> Result<Made, Failure> {
    let route = Netlink::open(talk::ROUTE).map_err(failed("open rtnetlink"))?;
    let firewall = Netlink::open(talk::NETFILTER).map_err(failed("open nf_tables"))?;
    if wanted.forward {
        attach::set("ipv4/ip_forward", b"1")
            .map_err(|errno| Failure::new("turn net.ipv4.ip_forward on", "write", errno))?;
    }
    let subnet = choose(&route, &wanted.subnets)?;
    let (_, fds) = attach::elsewhere(|| {
        attach::join(&[wanted.target])?;
        // What eth0 begins with; nobody but us configures it.
        for (name, value) in [("accept_ra", "0"), ("router_solicitations", "0"), ("accept_dad", "0")] {
            let _ = attach::set(&format!("ipv6/conf/default/{name}"), value.as_bytes());
        }
        let _ = attach::set("ipv6/conf/default/disable_ipv6", if wanted.ipv6 { b"0" } else { b"1" });
        let joining = |call| move |errno| Failure::new("join the namespaces", call, errno);
        let namespace = sys::open(c"/proc/self/ns/net", sys::Access::Read).map_err(joining("open"))?;
        let inside = Netlink::open(talk::ROUTE).map_err(joining("socket"))?;
        Ok(("joined", vec![namespace, inside.0]))
    })?;
    let [namespace, inside] = *fds else {
        return Err(Failure::new("join the namespaces", "recvmsg", sys::EINVAL));
    };
    let claimed = claim(&route, wanted, subnet, namespace);
    sys::close(namespace);
    let (guest, index) = claimed?;
    let guard = Guard::start(index).inspect_err(|_| {
        let _ = route.tell(&link::remove(index));
    })?;
    let finished = finish(wanted, &guest, &Netlink(inside), &firewall);
    sys::close(inside);
    if let Err(failure) = finished {
        guard.end();
        return Err(failure);
    }
    let localnet =
        attach::setting(&format!("ipv4/conf/{}/route_localnet", guest.interface), sys::Access::Write).ok();
    Ok(Made { guest, index, route, firewall, localnet, guard })
}

/// The first subnet that no route of the host leads to.
fn choose(route: &Netlink, subnets: &[Subnet]) -> Result<Subnet, Failure> {
    let mut routes = Vec::new();
    route
        .ask(&link::routes(), 0, |_, body| routes.extend(link::claimed(body)))
        .map_err(failed("look at the routes of this machine"))?;
    let mut collision = String::new();
    for subnet in subnets {
        let (network, router) = (subnet.masked().0, subnet.router());
        // The router's own address is on every wire of ours.
        let taken =
            |(to, bits): &&(Ipv4Addr, u8)| subnet.overlaps(*to, *bits) && (*to, *bits) != (router, 32);
        match routes.iter().find(taken) {
            None => return Ok(*subnet),
            Some((to, bits)) => {
                collision = format!("{network}/{} overlaps the route to {to}/{bits}", subnet.bits);
            }
        }
    }
    Err(Failure::new(&format!("choose a subnet ({collision})"), "netlink", sys::EADDRINUSE))
}

/// Makes the veth pair and takes an address by that; the host's end stands then.
fn claim(route: &Netlink, wanted: &Wanted, subnet: Subnet, namespace: Fd) -> Result<(Guest, u32), Failure> {
    let start = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id()) as u32;
    for v4 in subnet.addresses(start) {
        let interface = addresses::name(v4);
        match route.tell(&link::veth(&interface, &wanted.ifname, namespace, wanted.mtu)) {
            Ok(()) => {}
            // Ours is taken, and its address with it; or theirs is.
            Err(sys::EEXIST) if route.index(&interface).is_ok() => continue,
            Err(errno) => return Err(failed("make the veth pair")(errno)),
        }
        let index = route.index(&interface).map_err(failed("find the veth pair"))?;
        let guest = Guest { interface, v4, v6: wanted.ipv6.then(|| addresses::sixth(v4)), subnet };
        match stand(route, index, guest) {
            Ok(Some(guest)) => return Ok((guest, index)),
            Ok(None) => {
                let _ = route.tell(&link::remove(index));
            }
            Err(failure) => {
                let _ = route.tell(&link::remove(index));
                return Err(failure);
            }
        }
    }
    Err(Failure::new("choose an address (all of the subnet are taken)", "netlink", sys::EADDRNOTAVAIL))
}

/// Brings the host's end up, with a route to the container; `None` if somebody else has a route to that address.
fn stand(route: &Netlink, index: u32, mut guest: Guest) -> Result<Option<Guest>, Failure> {
    let name = &guest.interface;
    let set = |setting: String, value: &[u8]| match attach::set(&setting, value) {
        Err(errno) if errno != sys::ENOENT => Err(Failure::new(&format!("set {setting}"), "write", errno)),
        _ => Ok(()),
    };
    // The container is not to tell us where our routers are: neither by advertisement nor by redirection.
    for (setting, value) in [
        (format!("ipv6/conf/{name}/accept_ra"), b"0"),
        (format!("ipv6/conf/{name}/accept_redirects"), b"0"),
        (format!("ipv6/conf/{name}/accept_dad"), b"0"),
        (format!("ipv6/conf/{name}/disable_ipv6"), if guest.v6.is_some() { b"0" } else { b"1" }),
        (format!("ipv4/conf/{name}/accept_redirects"), b"0"),
        (format!("ipv4/conf/{name}/forwarding"), b"1"),
    ] {
        set(setting, value)?;
    }
    route.tell(&link::up(index)).map_err(failed("bring the veth pair up"))?;
    let router: IpAddr = guest.subnet.router().into();
    route.tell(&link::address(index, router)).map_err(failed("add the router's address"))?;
    match route.tell(&link::reach(index, guest.v4.into(), Some(router))) {
        Err(sys::EEXIST) => return Ok(None),
        other => other.map_err(failed("add the route to the container"))?,
    }
    if let Some(v6) = guest.v6 {
        let router = addresses::sixth(guest.subnet.router()).into();
        match route.tell(&link::address(index, router)) {
            Ok(()) => {}
            // A kernel without IPv6 does without.
            Err(95 | 97 | 13) => {
                guest.v6 = None;
                return Ok(Some(guest));
            }
            Err(errno) => return Err(failed("add the router's IPv6 address")(errno)),
        }
        match route.tell(&link::reach(index, v6.into(), None)) {
            Err(sys::EEXIST) => return Ok(None),
            other => other.map_err(failed("add the IPv6 route to the container"))?,
        }
    }
    Ok(Some(guest))
}

/// The container's end, and the firewall's table.
fn finish(wanted: &Wanted, guest: &Guest, inside: &Netlink, firewall: &Netlink) -> Result<(), Failure> {
    let (table, last) = rules::table(guest);
    firewall.ask(&table, last, |_, _| {}).map_err(failed("make the firewall's table"))?;
    let index = inside.index(&wanted.ifname).map_err(failed("find the container's interface"))?;
    inside.tell(&link::up(index)).map_err(failed("bring the container's interface up"))?;
    let mut ends: Vec<(IpAddr, IpAddr)> = vec![(guest.v4.into(), guest.subnet.router().into())];
    if let Some(v6) = guest.v6 {
        ends.push((v6.into(), addresses::sixth(guest.subnet.router()).into()));
    }
    for (address, router) in ends {
        inside.tell(&link::address(index, address)).map_err(failed("add the container's address"))?;
        inside.tell(&link::reach(index, router, None)).map_err(failed("add the route to the router"))?;
        // Where this machine passes no IPv6 on, programs are to know at once that there is none.
        if address.is_ipv4() || forwards6() {
            inside.tell(&link::default_route(index, router)).map_err(failed("add the default route"))?;
        }
    }
    Ok(())
}

fn forwards6() -> bool {
    let Ok(fd) = attach::setting("ipv6/conf/all/forwarding", sys::Access::Read) else { return false };
    let mut value = [0];
    let read = sys::read(fd, &mut value);
    sys::close(fd);
    read == Ok(1) && value != *b"0"
}

/// Chains of others that drop what is forwarded and have no rule about us, `family:table:chain`; `-` for none.
pub fn closed(firewall: &Netlink) -> String {
    let mut found = Vec::new();
    let _ = firewall.ask(&nft::chains(), 0, |_, body| found.extend(nft::closed(body)));
    found.retain(|(family, table, chain)| {
        let mut known = false;
        let _ = firewall.ask(&nft::rules(*family, table, chain), 0, |_, body| {
            known |= body.windows(5).any(|bytes| bytes == b"r2d2-");
        });
        !known
    });
    let family = |family| match family {
        2 => "ip",
        10 => "ip6",
        _ => "inet",
    };
    let words = found.iter().map(|(f, table, chain)| format!("{}:{table}:{chain}", family(*f)));
    let words = words.collect::<Vec<_>>().join(",").split_whitespace().collect::<String>();
    if words.is_empty() { "-".into() } else { words }
}
