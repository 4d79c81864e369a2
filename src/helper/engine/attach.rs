//! Joining the namespaces and making the interface there: in a forked child, whose descriptor of the interface is
//! all that comes back. The child ends before the engine handles its first packet, or stays to make sockets there
//! (`within`).

use crate::control::{Failure, Kind, Setup};
use crate::netlink::Netlink;
use crate::slirp::device::Faults;
use crate::sys::{self, Fd};
use crate::within::{self, Child};
use crate::{packet, rights, tap};

const CLONE_NEWUSER: i32 = 0x1000_0000;
const CLONE_NEWNET: i32 = 0x4000_0000;
/// Frames that wait in a member's interface for the switch.
const QUEUE: u32 = 10_000;
/// The congestion control of a guest's connections; every kernel has it.
///
/// Between guest and engine nothing is ever congested: it is a wire in memory, and the window is all that bounds a
/// sender. What the world needs is done by the host's sockets, under the host's control. A control that paces (BBR)
/// would wake the engine for every frame, at twice the cost and half the speed.
const CONGESTION: &str = "reno";

/// The interface, seen from here.
#[derive(Debug, Clone, Copy)]
pub struct Interface {
    /// Frames are read from and written to this.
    pub fd: Fd,
    /// It is a packet socket, no tap.
    pub packet: bool,
    /// Of a packet socket the netlink socket beside it.
    beside: Option<Fd>,
}

impl Interface {
    /// A link that somebody else made.
    pub fn given(fd: Fd) -> Self {
        Self { fd, packet: false, beside: None }
    }
}

/// Makes the interface of `setup` in the namespaces that its descriptors name; its descriptor, and the child if it
/// is to `stay`.
pub fn attach(setup: &Setup, stay: bool) -> Result<(Interface, Option<Child>), Failure> {
    let make = || {
        let made = inside(setup)?;
        let word = if made.packet { "packet" } else { "tap" };
        Ok((word, [Some(made.fd), made.beside].into_iter().flatten().collect()))
    };
    let (kind, fds, child) = start(make, stay.then_some(within::serve))?;
    let fd = fds.first().copied().ok_or_else(|| Failure::new("attach", "exit", sys::EINVAL))?;
    let beside = fds.get(1).copied();
    if let Some(netlink) = beside {
        packet::remember(netlink, setup.watch);
    }
    Ok((Interface { fd, packet: kind == "packet", beside }, child))
}

/// Does something in a forked child, which may leave our namespaces: a word and the descriptors that come of it.
pub fn elsewhere(
    work: impl FnOnce() -> Result<(&'static str, Vec<Fd>), Failure>,
) -> Result<(String, Vec<Fd>), Failure> {
    start(work, None).map(|(word, fds, _)| (word, fds))
}

/// The same in a child that goes on with `then`, if there is such, unless the work fails.
fn start(
    work: impl FnOnce() -> Result<(&'static str, Vec<Fd>), Failure>,
    then: Option<fn(Fd)>,
) -> Result<(String, Vec<Fd>, Option<Child>), Failure> {
    let (ours, theirs) =
        sys::socketpair().map_err(|e| Failure::new("start the attaching child", "socketpair", e))?;
    let Some(pid) = sys::fork().map_err(|e| Failure::new("start the attaching child", "fork", e))? else {
        sys::name(c"r2d2-attach");
        let code = match work() {
            Ok((word, fds)) => {
                let sent = sys::sendmsg(theirs, word.as_bytes(), &rights::pass(&fds), 0);
                if let (Ok(_), Some(then)) = (sent, then) {
                    then(theirs);
                }
                i32::from(sent.is_err())
            }
            Err(failure) => i32::from(sys::send(theirs, failure.message().as_bytes(), 0, &[]).is_err()),
        };
        sys::exit(code);
    };
    sys::close(theirs);
    let (mut text, mut control) = ([0u8; 1024], [0u8; 64]);
    let answer = sys::recvmsg(ours, &mut text, &mut control, 0x4000_0000); // MSG_CMSG_CLOEXEC
    let filled = answer.as_ref().map_or(0, |(_, len, _)| *len);
    let fds: Vec<Fd> = rights::passed(control.get(..filled).unwrap_or(&[])).collect();
    let child = (then.is_some() && !fds.is_empty()).then_some(Child { pid, channel: ours });
    if child.is_none() {
        sys::wait(pid);
        sys::close(ours);
    }
    let (n, ..) = answer.map_err(|e| Failure::new("hear from the attaching child", "recvmsg", e))?;
    let text = String::from_utf8_lossy(text.get(..n).unwrap_or(&[])).into_owned();
    if !fds.is_empty() {
        return Ok((text, fds, child));
    }
    Err(Failure::parse(&text).unwrap_or_else(|| Failure::new("attach", "exit", sys::EINVAL)))
}

/// In the child: joins, makes, configures.
pub fn inside(setup: &Setup) -> Result<Interface, Failure> {
    join(&setup.namespaces)?;
    let pair = || {
        let (fd, netlink) = packet::create(&setup.ifname, setup.config.mtu.into())?;
        Ok(Interface { fd, packet: true, beside: Some(netlink) })
    };
    let made = if setup.device == Kind::Packet {
        pair()?
    } else {
        match tap::create(&setup.ifname) {
            Ok(fd) => Interface::given(fd),
            // Not there, or not for us: there is another way.
            Err(("open /dev/net/tun", errno)) if setup.device == Kind::Any => {
                pair().map_err(|failure| {
                    // A name that is taken is taken for both kinds; else the better way is what is missing.
                    let taken = failure.is(sys::EEXIST);
                    if taken { failure } else { Failure::new("make the tap", "open /dev/net/tun", errno) }
                })?
            }
            Err((call, errno)) => return Err(Failure::new("make the tap", call, errno)),
        }
    };
    configure(setup)?;
    Ok(made)
}

/// Joins the user and the network namespace that one descriptor names, a pidfd, or two.
pub fn join(namespaces: &[Fd]) -> Result<(), Failure> {
    let failed = |errno| Failure::new("join the namespaces", "setns", errno);
    if let [fd] = *namespaces {
        // A pidfd. EINVAL: the user namespace is our own, or the kernel is too old to join both at once.
        return match sys::setns(fd, CLONE_NEWUSER | CLONE_NEWNET) {
            Err(sys::EINVAL) => sys::setns(fd, CLONE_NEWNET),
            other => other,
        }
        .map(drop)
        .map_err(failed);
    }
    let [user, net] = *namespaces else { return Err(failed(sys::EINVAL)) };
    // User namespace first: it gives the right to join the other. EINVAL: it is our own.
    match sys::setns(user, CLONE_NEWUSER) {
        Ok(_) | Err(sys::EINVAL) => {}
        Err(errno) => return Err(failed(errno)),
    }
    // A descriptor of something else must end here: what follows would change the namespace that we are in.
    sys::setns(net, CLONE_NEWNET).map(drop).map_err(failed)
}

/// Writes a setting of the namespace that we are in (/proc/sys/net), if it exists.
fn write(name: &str, value: &[u8]) {
    let _ = set(name, value);
}

/// Opens a setting of the namespace that we are in.
pub fn setting(name: &str, access: sys::Access) -> Result<Fd, i32> {
    let path = format!("/proc/sys/net/{name}\0");
    let path = std::ffi::CStr::from_bytes_with_nul(path.as_bytes()).map_err(|_| sys::EINVAL)?;
    sys::open(path, access)
}

/// Writes a setting of the namespace that we are in; `ENOENT` where it does not exist.
pub fn set(name: &str, value: &[u8]) -> Result<(), i32> {
    let fd = setting(name, sys::Access::Write)?;
    let written = sys::write(fd, value);
    sys::close(fd);
    written.map(drop)
}

/// Lets the namespace's kernel neither believe nor send router messages on an interface that is configured here.
fn quiet(ifname: &str) {
    write(&format!("ipv6/conf/{ifname}/accept_ra"), b"0");
    write(&format!("ipv6/conf/{ifname}/router_solicitations"), b"0");
}

fn configure(setup: &Setup) -> Result<(), Failure> {
    let config = &setup.config;
    let step = |what: &str, errno| Failure::new(what, "netlink", errno);
    let netlink = Netlink::open().map_err(|e| step("open netlink", e))?;
    let lo = netlink.index("lo").map_err(|e| step("find lo", e))?;
    netlink.up(lo, None, None).map_err(|e| step("bring lo up", e))?;
    let tap = netlink.index(&setup.ifname).map_err(|e| step("find the interface", e))?;
    if config.v6.is_some() {
        // Some systems turn IPv6 off for new interfaces. Where it does not exist at all, the address below fails.
        write(&format!("ipv6/conf/{}/disable_ipv6", setup.ifname), b"0");
    }
    if setup.member {
        quiet(&setup.ifname);
        netlink.queue(tap, QUEUE).map_err(|e| step("set the interface's queue", e))?;
    }
    if setup.forward {
        write("ipv4/ip_forward", b"1");
        write("ipv6/conf/all/forwarding", b"1");
    }
    netlink
        .up(tap, Some(config.guest_mac.0), Some(config.mtu.into()))
        .map_err(|e| step("set the interface's address and MTU", e))?;
    if !setup.configure {
        return Ok(());
    }
    // A bad road is for the guest to see: as it would be, with the control that it has. So are roads between guests.
    let congestion = (setup.faults == Faults::default() && !setup.member).then_some(CONGESTION);
    netlink
        .address(tap, config.v4.guest.into(), config.v4.prefix)
        .map_err(|e| step("add the IPv4 address", e))?;
    if let Some(name) = congestion {
        netlink
            .control(tap, config.v4.guest.into(), config.v4.prefix, name)
            .map_err(|e| step("set the IPv4 link's congestion control", e))?;
    }
    if setup.routes {
        netlink
            .default_route(tap, config.v4.gateway.into(), congestion)
            .map_err(|e| step("add the IPv4 route", e))?;
    }
    for (to, prefix, router) in setup.via.iter().filter(|(to, ..)| to.is_ipv4()) {
        netlink.route(tap, *to, *prefix, *router).map_err(|e| step("add a route", e))?;
    }
    if let Some(v6) = &config.v6 {
        // A kernel without IPv6 (EAFNOSUPPORT, EOPNOTSUPP) does without.
        match netlink.address(tap, v6.guest.into(), 64) {
            Ok(()) => {}
            Err(95 | 97 | 13) => return Ok(()),
            Err(errno) => return Err(step("add the IPv6 address", errno)),
        }
        if let Some(name) = congestion {
            netlink
                .control(tap, v6.guest.into(), 64, name)
                .map_err(|e| step("set the IPv6 link's congestion control", e))?;
        }
        if setup.routes {
            netlink
                .default_route(tap, v6.gateway.into(), congestion)
                .map_err(|e| step("add the IPv6 route", e))?;
        }
        for (to, prefix, router) in setup.via.iter().filter(|(to, ..)| to.is_ipv6()) {
            netlink.route(tap, *to, *prefix, *router).map_err(|e| step("add a route", e))?;
        }
    }
    Ok(())
}
