//! The part of rtnetlink(7) that configures an interface: link, address, route. One request at a time, each
//! acknowledged. Runs in the child that has joined the namespace.

use crate::sys::{self, Fd};
use std::net::IpAddr;

const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_REPLACE: u16 = 0x100;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
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
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_CC_ALGO: u16 = 16;
/// What the kernel says of the routes to a link's own network that it makes.
const PROTOCOL_KERNEL: u8 = 2;
const SCOPE_LINK: u8 = 253;
/// The priority of such routes of `IPv6`.
const PRIORITY: u32 = 256;
const RTA_TABLE: u16 = 15;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;

/// A netlink socket.
pub struct Netlink(Fd);

/// A request under construction.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut out = vec![0; 16];
        crate::slirp::wire::put(&mut out, 4, &kind.to_ne_bytes());
        crate::slirp::wire::put(&mut out, 6, &(flags | NLM_F_REQUEST_ACK).to_ne_bytes());
        out.extend_from_slice(body);
        Self(out)
    }

    /// A part of a request, to be nested.
    fn bare(body: &[u8]) -> Self {
        Self(body.to_vec())
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl Request {
    /// Names the congestion control of a route.
    fn controlled(self, congestion: Option<&str>) -> Self {
        let Some(name) = congestion else { return self };
        let metrics = Self::bare(&[]).attribute(RTAX_CC_ALGO, &[name.as_bytes(), b"\0"].concat());
        self.attribute(RTA_METRICS, &metrics.0)
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

impl Netlink {
    /// Opens a socket in the namespace that we are in.
    pub fn open() -> Result<Self, i32> {
        // AF_NETLINK, SOCK_RAW, NETLINK_ROUTE; blocking is not needed: the kernel answers within the send.
        sys::socket(16, 3, 0).map(Self)
    }

    /// A socket that was opened before.
    pub fn of(fd: Fd) -> Self {
        Self(fd)
    }

    /// Its descriptor.
    pub fn fd(&self) -> Fd {
        self.0
    }

    /// Sends a request and reads its acknowledgement.
    fn ask(&self, request: Request) -> Result<(), i32> {
        let mut bytes = request.0;
        let len = bytes.len() as u32;
        crate::slirp::wire::put(&mut bytes, 0, &len.to_ne_bytes());
        sys::send(self.0, &bytes, 0, &[])?;
        let mut answer = [0u8; 1024];
        let n = sys::recv(self.0, &mut answer, 0)?;
        // struct nlmsghdr, then nlmsgerr's errno, negative.
        let errno =
            answer.get(16..n).and_then(|b| b.first_chunk::<4>()).map_or(-5, |b| i32::from_ne_bytes(*b));
        if errno == 0 { Ok(()) } else { Err(-errno) }
    }

    /// The number of an interface.
    pub fn index(&self, name: &str) -> Result<u32, i32> {
        let mut request = [0u8; 40];
        crate::slirp::wire::put(&mut request, 0, name.as_bytes());
        sys::ioctl(self.0, 0x8933, &mut request)?; // SIOCGIFINDEX
        Ok(request.get(16..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_ne_bytes(*b)))
    }

    /// Makes a veth pair: `near` here, `far` in the network namespace `namespace`.
    pub fn veth(&self, near: &str, far: &str, namespace: Fd) -> Result<(), i32> {
        let peer = Request::bare(&[0; 16])
            .attribute(IFLA_IFNAME, &[far.as_bytes(), b"\0"].concat())
            .attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
        let data = Request::bare(&[]).attribute(VETH_INFO_PEER, &peer.0);
        let info = Request::bare(&[]).attribute(IFLA_INFO_KIND, b"veth\0").attribute(IFLA_INFO_DATA, &data.0);
        let request = Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &[0; 16])
            .attribute(IFLA_IFNAME, &[near.as_bytes(), b"\0"].concat())
            .attribute(IFLA_LINKINFO, &info.0);
        self.ask(request)
    }

    /// Removes an interface, and waits until it is gone.
    pub fn remove(&self, name: &str) -> Result<(), i32> {
        let name = [name.as_bytes(), b"\0"].concat();
        self.ask(Request::new(RTM_DELLINK, 0, &[0; 16]).attribute(IFLA_IFNAME, &name))
    }

    /// Sets hardware address and MTU if given, and brings the interface up.
    pub fn up(&self, index: u32, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Result<(), i32> {
        let mut body = vec![0; 16]; // struct ifinfomsg
        crate::slirp::wire::put(&mut body, 4, &index.to_ne_bytes());
        crate::slirp::wire::put(&mut body, 8, &1u32.to_ne_bytes()); // IFF_UP
        crate::slirp::wire::put(&mut body, 12, &1u32.to_ne_bytes());
        let mut request = Request::new(RTM_NEWLINK, 0, &body);
        if let Some(mac) = mac {
            request = request.attribute(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = mtu {
            request = request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.ask(request)
    }

    /// Gives the interface an address; without duplicate address detection, for we know the whole link.
    pub fn address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), i32> {
        let mut body = vec![family(address), prefix, 0, 0]; // struct ifaddrmsg
        body.extend_from_slice(&index.to_ne_bytes());
        let value = octets(address);
        let request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .attribute(IFA_LOCAL, &value)
            .attribute(IFA_ADDRESS, &value)
            .attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        self.ask(request)
    }

    /// Lets so many frames wait in the interface.
    pub fn queue(&self, index: u32, frames: u32) -> Result<(), i32> {
        let mut body = vec![0; 16]; // struct ifinfomsg
        crate::slirp::wire::put(&mut body, 4, &index.to_ne_bytes());
        self.ask(Request::new(RTM_NEWLINK, 0, &body).attribute(IFLA_TXQLEN, &frames.to_ne_bytes()))
    }

    /// Reaches a network by `gateway`.
    pub fn route(&self, index: u32, to: IpAddr, prefix: u8, gateway: IpAddr) -> Result<(), i32> {
        let body = [family(gateway), prefix, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .attribute(RTA_DST, &octets(to))
            .attribute(RTA_GATEWAY, &octets(gateway))
            .attribute(RTA_OIF, &index.to_ne_bytes());
        self.ask(request)
    }

    /// Makes all packets that carry `mark` look in the table of that number, before every other rule but the one for
    /// the namespace's own addresses; or ends that. `family`: `AF_INET` or `AF_INET6`.
    pub fn mark_rule(&self, family: u8, mark: u32, add: bool) -> Result<(), i32> {
        // struct fib_rule_hdr: the table is told by an attribute, FR_ACT_TO_TBL.
        let body = [family, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let (kind, flags) = if add { (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL) } else { (RTM_DELRULE, 0) };
        let request = Request::new(kind, flags, &body)
            .attribute(FRA_PRIORITY, &1u32.to_ne_bytes())
            .attribute(FRA_FWMARK, &mark.to_ne_bytes())
            .attribute(FRA_FWMASK, &u32::MAX.to_ne_bytes())
            .attribute(FRA_TABLE, &mark.to_ne_bytes());
        self.ask(request)
    }

    /// Makes every address one of `lo`, interface number `lo`, in the table of that number; or ends that.
    pub fn everything_local(&self, family: u8, lo: u32, table: u32, add: bool) -> Result<(), i32> {
        // struct rtmsg: static, scope host, RTN_LOCAL; the table is told by an attribute.
        let body = [family, 0, 0, 0, 0, 4, 254, 2, 0, 0, 0, 0];
        let (kind, flags) = if add { (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL) } else { (RTM_DELROUTE, 0) };
        let request = Request::new(kind, flags, &body)
            .attribute(RTA_TABLE, &table.to_ne_bytes())
            .attribute(RTA_OIF, &lo.to_ne_bytes());
        self.ask(request)
    }

    /// Makes `gateway` the default route; with `congestion`, connections over it use that control.
    pub fn default_route(&self, index: u32, gateway: IpAddr, congestion: Option<&str>) -> Result<(), i32> {
        // struct rtmsg: main table, static, universe, unicast.
        let body = [family(gateway), 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .attribute(RTA_GATEWAY, &octets(gateway))
            .attribute(RTA_OIF, &index.to_ne_bytes());
        self.ask(request.controlled(congestion))
    }

    /// Makes the connections to the link's own network use the congestion control `congestion`: puts a route in
    /// place of the one that the kernel made with `address`.
    pub fn control(&self, index: u32, address: IpAddr, prefix: u8, congestion: &str) -> Result<(), i32> {
        let (v4, mut network) = (address.is_ipv4(), octets(address));
        for (at, octet) in network.iter_mut().enumerate() {
            let bits = usize::from(prefix).saturating_sub(8 * at).min(8);
            *octet &= (0xff00u16 >> bits) as u8;
        }
        let scope = if v4 { SCOPE_LINK } else { 0 };
        let body = [family(address), prefix, 0, 0, 254, PROTOCOL_KERNEL, scope, 1, 0, 0, 0, 0];
        let request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .attribute(RTA_DST, &network)
            .attribute(RTA_OIF, &index.to_ne_bytes());
        let request = if v4 {
            request.attribute(RTA_PREFSRC, &octets(address))
        } else {
            request.attribute(RTA_PRIORITY, &PRIORITY.to_ne_bytes())
        };
        self.ask(request.controlled(Some(congestion)))
    }
}
