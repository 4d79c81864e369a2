//! The control socket: one message a request, one a reply; lines of words, descriptors beside them.
//!
//! The owner writes it, so a malformed message is the owner's bug and is refused, not survived at all costs; but
//! nothing in it can crash the engine either.
//!
//! | request | reply |
//! | --- | --- |
//! | the description of the network, with descriptors (first message only) | `ok` |
//! | `forward tcp 10.0.2.100:80 NAME` with a listening socket | `ok 3` |
//! | `unforward 3 tcp 10.0.2.100:80 NAME` | `ok` |
//! | `events` with a seqpacket socket that events are told to, some lines a message | `ok` |
//! | `capture 262144 tcp port=80-80 and` with a file or a seqpacket socket: snaplen, filter | `ok 1` |
//! | `uncapture 1` | `ok`, packets written and missing, errno of what ended it before |
//! | `forwards` | `ok`, then one forward a line: its number and what followed `forward` |
//! | `about` | `ok`, our pid, `tap` or `packet` |
//! | `keep`: do not end with the owner | `ok` |
//! | `stats` | `ok`, then one counter a line |
//! | `flows` | `ok`, then one flow a line |
//! | `resolvers 192.0.2.1:53 …` | `ok` |
//!
//! A network of containers (`switching`) takes these besides `flows` and `resolvers`; links and nodes by name:
//!
//! | request | reply |
//! | --- | --- |
//! | `port db tap 1 1 1`, then its hardware address and its addresses, with an interface and the member's pidfd | `ok` |
//! | `forward`, `unforward` as above | |
//! | `unport db` | `ok` |
//! | `up` | `ok` and the names of those that are |
//! | `names`, then a name and its addresses a line, with `@` and an address first for that asker only | `ok` |
//! | `link between db web 50000 0 0 0 0 0 0 1000`, or `out db …`, `into db …` | `ok` |
//! | `cut on` or `cut off`, then two names a line; `heal` | `ok` |
//! | `passed between db web`, or `out db`, `into db` | `ok` and the counters of that direction |
//! | `capture 65535 1000000 tcp port=80-80 and`, then `sent`, `received`, `node db` a line, with a file | `ok 0` |
//! | `captured 0`; `uncapture 0`, which ends it | `ok`, frames written, frames that there was no room for |
//! | `stats`; `gateway` | `ok`, then the counters of a node a line; of the engine |
//!
//! The keeper of a container's place in the kernel's network (`bridging`) takes `forward`, `unforward`, `forwards`,
//! `about`, `keep` and `stats`; its `ok` and `about` go on with the interface, the addresses of both ends, and chains of
//! other firewalls that are in the way.
//!
//! A failure is `error`, step, system call and errno, separated by tabs.

use crate::rights;
use crate::slirp::config::{Config, Loopback, V4, V6};
use crate::slirp::device::Faults;
use crate::slirp::policy::{Domain, Rule, Whom};
use crate::slirp::wire::ethernet::Mac;
use crate::sys::{self, Fd};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The longest message.
pub const MAX: usize = 64 << 10;

/// A step that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    step: String,
    syscall: String,
    errno: i32,
}

impl Failure {
    /// Whether this was the reason.
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }

    /// A failure.
    pub fn new(step: &str, syscall: &str, errno: i32) -> Self {
        Self { step: step.into(), syscall: syscall.into(), errno }
    }

    /// As a message.
    pub fn message(&self) -> String {
        format!("error\t{}\t{}\t{}", self.step, self.syscall, self.errno)
    }

    /// Back from a message.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("error\t")?.split('\t');
        Some(Self::new(words.next()?, words.next()?, words.next()?.parse().ok()?))
    }
}

/// Which kind of interface is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tap, or a veth pair where there can be none.
    Any,
    /// A tap.
    Tap,
    /// A veth pair.
    Packet,
}

/// How frames look on a link that was handed to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// A tap with `IFF_VNET_HDR`.
    Tap,
    /// Nothing before the frame.
    Plain,
}

/// What the first message says.
#[derive(Debug)]
pub struct Setup {
    /// The network.
    pub config: Config,
    /// The interface's name.
    pub ifname: String,
    /// Whether to give the interface addresses and routes.
    pub configure: bool,
    /// Whether the gateway becomes the default route.
    pub routes: bool,
    /// The interface is a network's: nobody but us configures it.
    pub member: bool,
    /// The namespace passes packets on between its interfaces.
    pub forward: bool,
    /// Other networks, and by which router they are reached.
    pub via: Vec<(IpAddr, u8, IpAddr)>,
    /// Where a network's chances come from.
    pub seed: u64,
    /// Published TCP ports may go around the interface.
    pub splice: bool,
    /// Which kind of interface.
    pub device: Kind,
    /// A pidfd, or a user and a network namespace.
    pub namespaces: Vec<Fd>,
    /// Ends us when it does: the pidfd among `namespaces`.
    pub watch: Option<Fd>,
    /// Frames are exchanged over the descriptor among `namespaces`: a tap that somebody else made, or a socket
    /// whose packets are frames; with their `virtio_net_hdr` or without.
    pub link: Option<Given>,
    /// Source addresses of what we open, by family.
    pub outbound: Vec<IpAddr>,
    /// How bad the way to the guest is, each way.
    pub faults: Faults,
    /// A pidfd of the owner, for the case that a fork of it keeps the control socket open.
    pub owner: Option<Fd>,
    /// A listening seqpacket socket, on which whoever connects may ask what the owner may.
    pub listen: Option<Fd>,
}

/// The descriptors beside a request: who takes one owns it, and those that nobody took are closed.
pub struct Beside(Vec<Fd>);

impl Beside {
    /// The next one.
    pub fn take(&mut self) -> Option<Fd> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Both of exactly two.
    pub fn pair(&mut self) -> Option<(Fd, Fd)> {
        let [first, second] = *self.0 else { return None };
        self.0.clear();
        Some((first, second))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for fd in &self.0 {
            sys::close(*fd);
        }
    }
}

/// Receives a message; `None` at the end. One that is too long comes cut, but longer than
/// `MAX`.
pub fn receive(fd: Fd, flags: i32) -> Result<Option<(String, Vec<Fd>)>, i32> {
    let (mut text, mut control) = (vec![0; MAX + 1], [0u8; 256]);
    let (n, len, _) = sys::recvmsg(fd, &mut text, &mut control, flags | 0x4000_0000)?;
    let fds: Vec<Fd> = rights::passed(control.get(..len).unwrap_or(&[])).collect();
    if n == 0 && fds.is_empty() {
        return Ok(None);
    }
    text.truncate(n);
    Ok(Some((String::from_utf8_lossy(&text).into_owned(), fds)))
}

/// Sends a reply.
pub fn send(fd: Fd, text: &str) -> Result<usize, i32> {
    sys::send(fd, text.as_bytes().get(..MAX).unwrap_or(text.as_bytes()), 0x4040, &[])
}

/// Answers the owner's next request; false when it is gone.
pub fn answer(fd: Fd, request: impl FnOnce(&str, &mut Beside) -> Result<String, i32>) -> bool {
    let (text, fds) = match receive(fd, 0x40) {
        Ok(Some(message)) => message,
        Err(sys::EAGAIN | sys::EINTR) => return true,
        Ok(None) | Err(_) => return false,
    };
    let mut fds = Beside(fds);
    // Half of a list of names would be taken for the whole.
    let reply = if text.len() > MAX { Err(sys::EMSGSIZE) } else { request(&text, &mut fds) };
    let reply =
        reply.unwrap_or_else(|errno| Failure::new("understand the request", "parse", errno).message());
    drop(fds);
    send(fd, &reply).is_ok()
}

/// The words of a line, parsed; `None` if one is missing or malformed.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl Words<'_> {
    fn next<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }
}

/// A hardware address.
pub fn mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac.0 {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn ports(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

impl Setup {
    /// Reads the first message of one that makes an interface.
    pub fn parse(text: &str, fds: Vec<Fd>) -> Result<Self, Failure> {
        let setup = Self::read(text, fds)?;
        if setup.namespaces.is_empty() || setup.ifname.is_empty() || setup.ifname.len() > 15 {
            return Err(Failure::new("read the description", "parse", sys::EINVAL));
        }
        Ok(setup)
    }

    /// Reads the first message.
    pub fn read(text: &str, fds: Vec<Fd>) -> Result<Self, Failure> {
        if text.len() > MAX {
            return Err(Failure::new("read the description", "parse", sys::EMSGSIZE));
        }
        let mut setup = Self {
            config: Config::default(),
            ifname: "tap0".into(),
            configure: true,
            routes: true,
            member: false,
            forward: false,
            via: Vec::new(),
            seed: 0,
            splice: false,
            device: Kind::Any,
            namespaces: fds,
            watch: None,
            link: None,
            outbound: Vec::new(),
            faults: Faults::default(),
            owner: None,
            listen: None,
        };
        for line in text.lines() {
            setup
                .line(line)
                .ok_or_else(|| Failure::new(&format!("read the line {line:?}"), "parse", sys::EINVAL))?;
        }
        Ok(setup)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let config = &mut self.config;
        let mut words = Words(line.split_whitespace());
        match words.0.next()? {
            "ifname" => self.ifname = words.next()?,
            "configure" => self.configure = words.next()?,
            "switch" => self.seed = words.next()?,
            "interface" => self.member = true,
            "routes" => self.routes = words.next()?,
            "forward" => self.forward = words.next()?,
            "via" => self.via.push((words.next()?, words.next()?, words.next()?)),
            "closed" => config.closed = words.next()?,
            "services" => config.services = words.next()?,
            "splice" => self.splice = words.next()?,
            "device" => {
                self.device = match words.0.next()? {
                    "any" => Kind::Any,
                    "tap" => Kind::Tap,
                    "packet" => Kind::Packet,
                    _ => return None,
                }
            }
            "watch" => self.watch = self.namespaces.first().copied(),
            "link" => {
                self.link = match words.0.next()? {
                    "tap" => Some(Given::Tap),
                    "plain" => Some(Given::Plain),
                    _ => return None,
                }
            }
            "outbound" => self.outbound.push(words.next()?),
            "owner" => self.owner = self.namespaces.pop(),
            "listen" => {
                if self.namespaces.len() < 2 {
                    return None;
                }
                self.listen = Some(self.namespaces.remove(1));
            }
            "faults" => {
                self.faults = Faults { loss: words.next()?, delay: words.next()?, ..Faults::default() };
            }
            "mtu" => config.mtu = words.next()?,
            "mac" => config.mac = mac(words.0.next()?)?,
            "guest-mac" => config.guest_mac = mac(words.0.next()?)?,
            "v4" => {
                config.v4 = V4 {
                    prefix: words.next()?,
                    guest: words.next()?,
                    gateway: words.next()?,
                    dns: words.next()?,
                    dhcp: words.next()?,
                }
            }
            "v6" => {
                config.v6 = match words.0.next()? {
                    "off" => None,
                    guest => {
                        Some(V6 { guest: guest.parse().ok()?, gateway: words.next()?, dns: words.next()? })
                    }
                }
            }
            "loopback" => {
                config.loopback = match words.0.next()? {
                    "deny" => Loopback::Deny,
                    "allow" => Loopback::Allow,
                    first => Loopback::Ports(
                        std::iter::once(first).chain(words.0).map(ports).collect::<Option<Vec<_>>>()?,
                    ),
                }
            }
            "resolver" => config.resolvers.push(words.next()?),
            "search" => config.search.push(words.next()?),
            "name" => config.names.push(name(words.0)?),
            "deny-name" => config.denied_names.push(Domain::whole(words.0.next()?)),
            "allow" => config.rules.push(rule(true, words)?),
            "deny" => config.rules.push(rule(false, words)?),
            _ => return None,
        }
        Some(())
    }
}

/// `allow 192.0.2.0/24 80-90`; `*` stands for every address, `*.example.org` for those of names below that.
fn rule(allow: bool, mut words: Words<'_>) -> Option<Rule> {
    let whom = match words.0.next()? {
        "*" => Whom::All,
        word => match word.split_once('/') {
            Some((address, len)) => Whom::Net(address.parse().ok()?, len.parse().ok()?),
            None => Whom::Names(Domain::of(word)),
        },
    };
    Some(Rule { allow, whom, ports: words.0.next().map_or(Some(0..=65535), ports)? })
}

/// `db 10.0.2.9 fd00::9`.
fn name(mut words: std::str::SplitWhitespace<'_>) -> Option<(String, Vec<IpAddr>)> {
    let name = words.next()?.to_ascii_lowercase();
    Some((name, words.map(str::parse).collect::<Result<_, _>>().ok()?))
}

/// A name with its addresses.
type Name = (String, Vec<IpAddr>);
/// A name as one asker has it.
type View = (IpAddr, String, Vec<IpAddr>);

/// The names of a `names` request, one a line: those for all, and those for one asker (`@10.0.2.9 db …`).
pub fn names<'a>(lines: impl Iterator<Item = &'a str>) -> Option<(Vec<Name>, Vec<View>)> {
    let (mut all, mut views) = (Vec::new(), Vec::new());
    for line in lines {
        match line.strip_prefix('@') {
            None => all.push(name(line.split_whitespace())?),
            Some(line) => {
                let (asker, rest) = line.split_once(' ')?;
                let (name, addresses) = name(rest.split_whitespace())?;
                views.push((asker.parse().ok()?, name, addresses));
            }
        }
    }
    Some((all, views))
}

/// The resolvers of a `resolvers` request.
pub fn resolvers(words: std::str::SplitWhitespace<'_>) -> Option<Vec<SocketAddr>> {
    words.map(str::parse).collect::<Result<_, _>>().ok()
}
