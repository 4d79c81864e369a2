//! What a network is told when it is made: addresses, names, limits, and who may be reached (`policy`).
//!
//! The addresses are fixed and private and never derived from the host's, so that a laptop that changes networks,
//! or a host without any route, changes nothing inside. [`Config::judge`] is the one place where a destination
//! named by the guest becomes a destination of the host, or a refusal that the guest's application sees at once.

use super::policy::{Domain, Learnt, Opinion, Rule};
use super::time::{SEC, Time};
use super::wire::ethernet::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// The `IPv4` side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V4 {
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The guest.
    pub guest: Ipv4Addr,
    /// Our address as a router, and the host's loopback where that is allowed.
    pub gateway: Ipv4Addr,
    /// Our address as a resolver; unspecified if there is to be none.
    pub dns: Ipv4Addr,
    /// The first of 16 addresses for those who ask by DHCP.
    pub dhcp: Ipv4Addr,
}

/// The `IPv6` side, always a /64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V6 {
    /// The guest.
    pub guest: Ipv6Addr,
    /// Our address as a router, and the host's loopback where that is allowed.
    pub gateway: Ipv6Addr,
    /// Our address as a resolver; unspecified if there is to be none.
    pub dns: Ipv6Addr,
}

/// Which of the host's loopback services the guest reaches at the gateway's address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Loopback {
    /// None: connecting fails at once with ENETUNREACH.
    #[default]
    Deny,
    /// All.
    Allow,
    /// Those on these ports.
    Ports(Vec<RangeInclusive<u16>>),
}

/// Bounds on what a guest can make us hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows of all protocols; the longest idle is shed for a new one.
    pub flows: usize,
    /// TCP handshakes not finished; the oldest gives way.
    pub half_open: usize,
    /// The largest window that a TCP flow offers its guest, in bytes; at most 8 388 480.
    pub window: u32,
    /// The most that a TCP flow may have under way to the guest, in bytes.
    pub inflight: u32,
    /// Guest data held for slow hosts and behind holes, all flows together, in bytes.
    pub buffered: usize,
    /// After how much silence a TCP guest is probed.
    pub keepalive: Time,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 65536,
            half_open: 1024,
            window: 8_388_480,
            inflight: 16 << 20,
            buffered: 128 << 20,
            keepalive: 60 * SEC,
        }
    }
}

/// Everything a network is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Our hardware address.
    pub mac: Mac,
    /// The guest's, as far as known.
    pub guest_mac: Mac,
    /// The largest packet on the link.
    pub mtu: u16,
    /// `IPv4`.
    pub v4: V4,
    /// `IPv6`, if on.
    pub v6: Option<V6>,
    /// The host's loopback.
    pub loopback: Loopback,
    /// The host's resolvers, best first.
    pub resolvers: Vec<SocketAddr>,
    /// Search domains for those who ask by DHCP.
    pub search: Vec<String>,
    /// Names that we answer ourselves; lower case.
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// The same for one asker only; lower case.
    pub views: Vec<(IpAddr, String, Vec<IpAddr>)>,
    /// Names that are not resolved.
    pub denied_names: Vec<Domain>,
    /// Who may be reached.
    pub rules: Vec<Rule>,
    /// There is no way out: nobody but ourselves is reached, clients of forwards appear as the gateway, and names
    /// that we do not know do not exist.
    pub closed: bool,
    /// Whether we offer addresses and routes to those who ask for them (DHCP, router solicitations).
    pub services: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
            guest_mac: Mac([0x52, 0x55, 10, 0, 2, 100]),
            mtu: 1500,
            v4: V4 {
                prefix: 24,
                guest: Ipv4Addr::new(10, 0, 2, 100),
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Ipv4Addr::new(10, 0, 2, 3),
                dhcp: Ipv4Addr::new(10, 0, 2, 15),
            },
            v6: Some(V6 {
                guest: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
                gateway: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
                dns: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3),
            }),
            loopback: Loopback::Deny,
            resolvers: Vec::new(),
            search: Vec::new(),
            names: Vec::new(),
            views: Vec::new(),
            denied_names: Vec::new(),
            rules: Vec::new(),
            closed: false,
            services: true,
            limits: Limits::default(),
        }
    }
}

/// How a refusal looks to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// ECONNREFUSED: a TCP reset, or port unreachable.
    Port,
    /// ENETUNREACH.
    Net,
    /// EHOSTUNREACH.
    Host,
    /// EHOSTUNREACH or EACCES: administratively prohibited.
    Prohibited,
    /// ENETUNREACH: not among those that may be reached. Datagrams to `IPv6`: EACCES, which alone is told at once.
    Unlisted,
    /// Nothing: the guest's own timers must run out.
    Silent,
}

impl Refusal {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Net | Self::Unlisted => "network",
            Self::Host => "host",
            Self::Prohibited => "prohibited",
            Self::Silent => "silent",
        }
    }
}

/// What becomes of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Connect there.
    To(SocketAddr),
    /// It is our resolver.
    Dns,
    /// No.
    Refuse(Refusal),
}

impl Config {
    /// Where a packet for `to`:`port` goes `now`, by what was `learnt` of names.
    pub fn judge(&self, learnt: &Learnt, now: Time, to: IpAddr, port: u16) -> Verdict {
        let (gateway, dns) = match to {
            IpAddr::V4(to) => (to == self.v4.gateway, to == self.v4.dns),
            IpAddr::V6(to) => self.v6.as_ref().map_or((false, false), |v6| (to == v6.gateway, to == v6.dns)),
        };
        if dns && !to.is_unspecified() {
            return if port == 53 { Verdict::Dns } else { Verdict::Refuse(Refusal::Port) };
        }
        if gateway {
            let open = match &self.loopback {
                Loopback::Deny => false,
                Loopback::Allow => true,
                Loopback::Ports(ports) => ports.iter().any(|range| range.contains(&port)),
            };
            let host: IpAddr =
                if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return if open {
                Verdict::To(SocketAddr::new(host, port))
            } else {
                Verdict::Refuse(Refusal::Net)
            };
        }
        if !routable(to) || (self.closed && !self.is_local(to)) {
            return Verdict::Refuse(Refusal::Net);
        }
        if self.is_local(to) {
            return Verdict::Refuse(Refusal::Host);
        }
        match self.opinion(learnt, now, to, port) {
            Opinion::Allowed => Verdict::To(SocketAddr::new(to, port)),
            Opinion::Denied => Verdict::Refuse(Refusal::Prohibited),
            Opinion::Unlisted => Verdict::Refuse(Refusal::Unlisted),
        }
    }

    /// True for addresses of the link itself.
    pub fn is_local(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => in_network(address, self.v4.gateway.into(), self.v4.prefix),
            IpAddr::V6(a) => {
                a.is_unicast_link_local()
                    || self.v6.as_ref().is_some_and(|v6| in_network(address, v6.gateway.into(), 64))
            }
        }
    }

    /// True for the addresses that we answer for.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            _ if address.is_unspecified() => false,
            IpAddr::V4(a) => a == self.v4.gateway || a == self.v4.dns,
            IpAddr::V6(a) => {
                a == self.link_local() || self.v6.as_ref().is_some_and(|v6| a == v6.gateway || a == v6.dns)
            }
        }
    }

    /// True for a source that a guest on this link may use: only its own addresses are forwarded.
    pub fn is_guest(&self, address: IpAddr) -> bool {
        self.is_local(address) && !self.is_ours(address) && !self.is_broadcast(address)
    }

    /// True for the subnet's and the global broadcast address and the subnet's own name.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(a) = address else { return false };
        let host_bits = u32::MAX.checked_shr(self.v4.prefix.into()).unwrap_or(0);
        a.is_broadcast()
            || (self.is_local(address)
                && (a.to_bits() & host_bits == host_bits || a.to_bits() & host_bits == 0))
    }

    /// Our link-local address (RFC 4291 appendix A).
    pub fn link_local(&self) -> Ipv6Addr {
        let mac = self.mac.0;
        let half = [mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]];
        Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(u64::from_be_bytes(half)))
    }

    /// The router's address of the family of `other`, as the source of our errors.
    pub fn router(&self, other: IpAddr) -> IpAddr {
        match (other, &self.v6) {
            (IpAddr::V4(_), _) => self.v4.gateway.into(),
            (IpAddr::V6(_), Some(v6)) => v6.gateway.into(),
            (IpAddr::V6(_), None) => self.link_local().into(),
        }
    }

    /// The largest TCP payload of one packet of the family of `address`.
    pub fn mss(&self, address: IpAddr) -> u16 {
        self.mtu.saturating_sub(if address.is_ipv4() { 40 } else { 60 }).max(88)
    }
}

/// True if `address` lies in the network; addresses of the other family never do.
pub(super) fn in_network(address: IpAddr, network: IpAddr, len: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(len.into())).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(len.into())).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        _ => false,
    }
}

/// True for a destination that a router may forward to.
fn routable(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.octets()[0] == 0
                || a.is_multicast()
                || a.is_broadcast()
                || a.octets()[0] >= 240)
        }
        IpAddr::V6(a) => {
            !(a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::policy::Whom;

    fn judge(config: &Config, to: &str, port: u16) -> Verdict {
        config.judge(&Learnt::default(), 0, to.parse().unwrap(), port)
    }

    #[test]
    fn host_loopback_is_denied_unless_asked_for() {
        let mut config = Config::default();
        for gateway in ["10.0.2.2", "fd00::2"] {
            assert_eq!(judge(&config, gateway, 80), Verdict::Refuse(Refusal::Net));
        }
        config.loopback = Loopback::Ports(vec![8000..=8001]);
        assert_eq!(judge(&config, "10.0.2.2", 8001), Verdict::To("127.0.0.1:8001".parse().unwrap()));
        assert_eq!(judge(&config, "fd00::2", 8002), Verdict::Refuse(Refusal::Net));
        config.loopback = Loopback::Allow;
        assert_eq!(judge(&config, "fd00::2", 8002), Verdict::To("[::1]:8002".parse().unwrap()));
    }

    #[test]
    fn no_way_around_the_gateway_to_loopback() {
        let config = Config::default();
        for to in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "0.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
        ] {
            assert_eq!(judge(&config, to, 80), Verdict::Refuse(Refusal::Net), "{to}");
        }
        for to in ["224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fe80::1"] {
            assert_eq!(judge(&config, to, 80), Verdict::Refuse(Refusal::Net), "{to}");
        }
        assert_eq!(judge(&config, "10.0.2.7", 80), Verdict::Refuse(Refusal::Host));
        assert_eq!(judge(&config, "10.0.3.7", 80), Verdict::To("10.0.3.7:80".parse().unwrap()));
    }

    #[test]
    fn without_a_resolver_nobody_has_its_address() {
        let mut config = Config::default();
        assert_eq!(judge(&config, "10.0.2.3", 53), Verdict::Dns);
        assert_eq!(judge(&config, "fd00::3", 53), Verdict::Dns);
        config.v4.dns = Ipv4Addr::UNSPECIFIED;
        config.v6.as_mut().unwrap().dns = Ipv6Addr::UNSPECIFIED;
        for nobody in ["10.0.2.3", "fd00::3"] {
            assert_eq!(judge(&config, nobody, 53), Verdict::Refuse(Refusal::Host));
            assert!(!config.is_ours(nobody.parse().unwrap()));
        }
        for unspecified in ["0.0.0.0", "::"] {
            assert_eq!(judge(&config, unspecified, 53), Verdict::Refuse(Refusal::Net));
            assert!(!config.is_ours(unspecified.parse().unwrap()));
        }
    }

    #[test]
    fn first_matching_rule_decides() {
        let rule =
            |allow, net: &str, len, ports| Rule { allow, whom: Whom::Net(net.parse().unwrap(), len), ports };
        let everything = Rule { allow: false, whom: Whom::All, ports: 0..=65535 };
        let config = Config {
            rules: vec![
                rule(true, "192.0.2.0", 24, 443..=443),
                rule(true, "2001:db8::", 32, 0..=65535),
                everything,
            ],
            ..Config::default()
        };
        assert!(matches!(judge(&config, "192.0.2.9", 443), Verdict::To(_)));
        assert_eq!(judge(&config, "192.0.2.9", 80), Verdict::Refuse(Refusal::Unlisted));
        assert!(matches!(judge(&config, "2001:db8::1", 80), Verdict::To(_)));
        assert_eq!(judge(&config, "10.0.2.3", 53), Verdict::Dns);
        assert_eq!(judge(&config, "10.0.2.3", 80), Verdict::Refuse(Refusal::Port));
    }

    #[test]
    fn only_the_guests_own_addresses_are_forwarded() {
        let config = Config::default();
        let guest = |a: &str| config.is_guest(a.parse().unwrap());
        assert!(guest("10.0.2.100") && guest("10.0.2.15") && guest("fd00::100") && guest("fe80::1234"));
        for spoofed in
            ["10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "192.0.2.1", "fd00::2", "2001:db8::1"]
        {
            assert!(!guest(spoofed), "{spoofed}");
        }
        assert!(!guest(&config.link_local().to_string()));
    }
}
