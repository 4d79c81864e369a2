//! The keeper of a container's place in the kernel's own network: it has the network made (`joining`), and then keeps
//! what must not outlive the container.
//!
//! Packets never come here: they are the kernel's. What is kept is two kinds of socket: the one that owns the table,
//! which vanishes with it, and one for each published port, on which nothing ever arrives but which nobody else can
//! have meanwhile (`EADDRINUSE`). It ends with its owner or with the container's PID 1, whichever is first, and removes
//! the veth pair then; if it cannot, its `guard` does, or the kernel with the container's network namespace.

use crate::bridge::nft::{self, Batch, Chain};
use crate::bridge::rules::Published;
use crate::bridge::{addresses, conntrack, link};
use crate::control::{self, Beside, Failure};
use crate::guard::CAP_NET_ADMIN;
use crate::joining::{self, Made, Wanted};
use crate::sandbox;
use crate::sys::{self, EPOLLIN, Event, Fd};
use crate::talk::failed;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const CONTROL: Fd = 0;
const GONE: u64 = u64::MAX;
const LISTEN: u64 = u64::MAX - 1;
/// How many may be connected at once, besides the owner.
const CLIENTS: usize = 16;

/// Makes the network and keeps it until the owner or the container is gone.
pub fn serve(text: &str, fds: Vec<Fd>) -> Result<(), Failure> {
    let wanted = Wanted::read(text, fds)?;
    let made = joining::make(&wanted)?;
    let router = made.guest.subnet.router();
    let sixth = |v4| made.guest.v6.map_or("-".into(), |_| addresses::sixth(v4).to_string());
    let about = format!(
        "bridge {} {} {router} {} {} {}",
        made.guest.interface,
        made.guest.v4,
        sixth(made.guest.v4),
        sixth(router),
        joining::closed(&made.firewall),
    );
    let keeper = Keeper {
        index: made.index,
        made,
        about,
        pid: std::process::id(),
        owner: wanted.owner,
        kept: false,
        listen: wanted.listen,
        clients: [None; CLIENTS],
        ports: BTreeMap::new(),
        next: 1,
    };
    keeper.serve(wanted.target)
}

/// A published port: the socket that holds it, its rules by their handles, what followed `forward`.
struct Port {
    holder: Fd,
    rules: Vec<(Chain, u64)>,
    words: String,
}

struct Keeper {
    made: Made,
    index: u32,
    about: String,
    /// Ours; the sandbox would not tell.
    pid: u32,
    owner: Option<Fd>,
    /// We do not end with the owner.
    kept: bool,
    listen: Option<Fd>,
    clients: [Option<Fd>; CLIENTS],
    ports: BTreeMap<usize, Port>,
    next: usize,
}

impl Keeper {
    fn serve(mut self, target: Fd) -> Result<(), Failure> {
        let poll = |errno| Failure::new("start the loop", "epoll", errno);
        let epoll = sys::epoll().map_err(poll)?;
        sys::epoll_add(epoll, CONTROL, EPOLLIN, CONTROL as u64).map_err(poll)?;
        for fd in [Some(target), self.owner].into_iter().flatten() {
            sys::epoll_add(epoll, fd, EPOLLIN, GONE).map_err(poll)?;
        }
        if let Some(listen) = self.listen {
            sys::nonblocking(listen);
            sys::epoll_add(epoll, listen, EPOLLIN, LISTEN).map_err(poll)?;
        }
        let ready = sandbox::enter_with(CAP_NET_ADMIN).and_then(|()| {
            control::send(CONTROL, &format!("ok {}", self.about))
                .map_err(|e| Failure::new("report success", "send", e))
        });
        if ready.is_ok() {
            self.run(epoll);
        }
        let _ = self.made.route.tell(&link::remove(self.index));
        self.made.guard.end();
        ready.map(drop)
    }

    /// Serves until the owner or the container is gone.
    fn run(&mut self, epoll: Fd) {
        let mut events = [Event::default(); 32];
        loop {
            let n = sys::epoll_wait(epoll, &mut events, -1).unwrap_or(0);
            for event in events.get(..n).unwrap_or(&[]) {
                match event.token {
                    GONE => return,
                    LISTEN => self.accept(epoll),
                    0 => {
                        if !self.answer(epoll, CONTROL) {
                            if !self.kept {
                                return;
                            }
                            sys::epoll_remove(epoll, CONTROL);
                            sys::close(CONTROL);
                        }
                    }
                    slot => self.client(epoll, slot as usize - 1),
                }
            }
        }
    }

    fn answer(&mut self, epoll: Fd, fd: Fd) -> bool {
        control::answer(fd, |text, fds| self.request(epoll, text, fds).ok_or(sys::EINVAL))
    }

    fn accept(&mut self, epoll: Fd) {
        let Some(Ok(fd)) = self.listen.map(|listen| sys::accept(listen, &mut [0; 110])) else { return };
        match self.clients.iter_mut().enumerate().find(|(_, client)| client.is_none()) {
            Some((slot, client)) if sys::epoll_add(epoll, fd, EPOLLIN, 1 + slot as u64).is_ok() => {
                *client = Some(fd);
            }
            _ => sys::close(fd),
        }
    }

    fn client(&mut self, epoll: Fd, slot: usize) {
        let Some(fd) = self.clients.get(slot).copied().flatten() else { return };
        if !self.answer(epoll, fd) {
            sys::close(fd);
            self.clients[slot] = None;
        }
    }

    fn request(&mut self, epoll: Fd, text: &str, fds: &mut Beside) -> Option<String> {
        let mut words = text.split_whitespace();
        match words.next()? {
            "forward" => {
                let tcp = match words.next()? {
                    "tcp" => true,
                    "udp" => false,
                    _ => return None,
                };
                let (to, at): (SocketAddr, SocketAddr) =
                    (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                let port = Published { tcp, host: at.ip(), host_port: at.port(), guest_port: to.port() };
                let holder = fds.take()?;
                match self.publish(port) {
                    Ok(rules) => {
                        let words = text.trim_start_matches("forward").trim().to_owned();
                        let number = self.next;
                        self.next += 1;
                        self.ports.insert(number, Port { holder, rules, words });
                        Some(format!("ok {number}"))
                    }
                    Err(failure) => {
                        sys::close(holder);
                        Some(failure.message())
                    }
                }
            }
            "unforward" => {
                let Some(port) = self.ports.remove(&words.next()?.parse().ok()?) else {
                    return Some(Failure::new("end a forward", "unforward", sys::ENOENT).message());
                };
                let mut batch = Batch::new(&self.made.guest.interface);
                for (chain, handle) in port.rules {
                    batch.remove(chain, handle);
                }
                let (bytes, last) = batch.finish();
                let done = self.made.firewall.ask(&bytes, last, |_, _| {});
                sys::close(port.holder);
                Some(done.map_or_else(|e| failed("end a forward")(e).message(), |()| "ok".into()))
            }
            "forwards" => {
                let lines: Vec<String> =
                    self.ports.iter().map(|(n, port)| format!("{n} {}", port.words)).collect();
                Some(format!("ok\n{}", lines.join("\n")))
            }
            "about" => Some(format!("ok {} {}", self.pid, self.about)),
            "keep" => {
                self.kept = true;
                if let Some(owner) = self.owner.take() {
                    sys::epoll_remove(epoll, owner);
                    sys::close(owner);
                }
                Some("ok".into())
            }
            "stats" => {
                let mut lines = Vec::new();
                let asked = self.made.route.ask(&link::find(&self.made.guest.interface), 1, |_, body| {
                    lines.extend(link::counters(body).iter().map(|(name, value)| format!("{name} {value}")));
                });
                Some(match asked {
                    Ok(()) => format!("ok\n{}", lines.join("\n")),
                    Err(errno) => failed("read the counters")(errno).message(),
                })
            }
            _ => None,
        }
    }

    /// Leads a port inside: the handles of its rules.
    fn publish(&mut self, port: Published) -> Result<Vec<(Chain, u64)>, Failure> {
        let step = "lead a port inside";
        let rules = self.made.guest.publish(port).ok_or_else(|| failed(step)(sys::EADDRNOTAVAIL))?;
        if port.host == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || (port.host.is_loopback() && port.host.is_ipv4())
        {
            let fd =
                self.made.localnet.ok_or_else(|| Failure::new("set route_localnet", "open", sys::EACCES))?;
            sys::write(fd, b"1").map_err(|errno| Failure::new("set route_localnet", "write", errno))?;
        }
        let mut batch = Batch::new(&self.made.guest.interface);
        for (chain, rule) in &rules {
            batch.rule(*chain, rule);
        }
        let (bytes, last) = batch.finish();
        let mut handles = Vec::new();
        self.made
            .firewall
            .ask(&bytes, last, |kind, body| handles.extend(nft::handle(kind, body)))
            .map_err(failed(step))?;
        if !port.tcp {
            self.forget(port);
        }
        Ok(rules.iter().map(|(chain, _)| *chain).zip(handles).collect())
    }
    /// Lets datagrams that are under way to a port find its new rules; a kernel without this needs no more.
    fn forget(&self, port: Published) {
        let mut stale = Vec::new();
        let firewall = &self.made.firewall;
        let _ = firewall
            .ask(&conntrack::all(port.host), 0, |_, body| stale.extend(conntrack::forget(body, port)));
        for request in stale {
            let _ = firewall.tell(&request);
        }
    }
}
