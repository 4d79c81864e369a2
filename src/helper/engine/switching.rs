//! The loop of a network of containers: many interfaces, the switch between them (`slirp::fabric`), and the engine
//! as one more node of it, which is the members' resolver and, if that is wanted, their gateway.
//!
//! The engine's device is a cable in memory. Descriptors of interfaces come over the control socket with a pidfd of
//! the member, whose end frees its port. In the order of each round: what the kernel reports, frames whose time has
//! come, the engine. Sleeping is exact to the microsecond (`epoll_pwait2`), for a delayed frame must not wait for a
//! millisecond to end.

use crate::control::{self, Beside, Failure, Setup};
use crate::host::{self, Sockets};
use crate::sandbox;
use crate::slirp::capture::{Capture, Points};
use crate::slirp::device::{self, Capabilities, Device, Filter, MAX_FRAME, Memory};
use crate::slirp::engine::{BATCH, Engine};
use crate::slirp::fabric::{Fabric, Hop, Node, Ports};
use crate::slirp::forward::Forward;
use crate::slirp::link::Impairment;
use crate::slirp::time::Time;
use crate::sys::{self, EPOLLIN, Event, Fd};
use crate::waiting::{self, Waiting};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CONTROL: Fd = 0;
/// Tokens that are not flows': a flow's generation would have to reach its last value to look like one.
const OWNER: u64 = u64::MAX - 2;
const GONE: u64 = u64::MAX - 3;
/// Tokens of nodes: these and the node's number.
const FRAMES: u64 = 0xffff_ffff_0001_0000;
const ENDED: u64 = 0xffff_ffff_0002_0000;
/// Descriptors kept free of flows.
const RESERVE: u64 = 4096;
/// Frames that may wait for the engine, or from it.
const CABLE: usize = 8192;
/// The engine's node.
const GATEWAY: Node = 0;

/// One member's end.
#[derive(Clone, Copy)]
struct Port {
    fd: Fd,
    watch: Fd,
    takes: Capabilities,
}

/// A file of the owner's, closed with its capture.
struct File(Fd);

impl std::io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sys::write(self.0, bytes).map_err(std::io::Error::from_raw_os_error)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

/// Where frames go.
struct Joined {
    captures: Vec<Option<Capture<File>>>,
    /// The time at which the clock stood at zero, since 1970.
    epoch: Duration,
    start: Instant,
    /// By node.
    ports: Vec<Option<Port>>,
    /// The end of the cable to the engine.
    cable: Memory,
    /// The engine has frames to take.
    waiting: bool,
}

impl Ports for Joined {
    fn takes(&self, node: Node) -> Capabilities {
        match self.ports.get(usize::from(node)) {
            Some(Some(port)) => port.takes,
            _ => Capabilities::ALL,
        }
    }

    fn seen(&mut self, node: Node, name: &str, received: bool, frame: &[u8]) {
        if self.captures.is_empty() {
            return;
        }
        let time = (self.epoch + self.start.elapsed()).as_micros() as Time;
        for capture in self.captures.iter_mut().flatten() {
            capture.frame(time, node, name, received, frame);
        }
    }

    fn send(&mut self, node: Node, frame: &[u8]) -> bool {
        if node == GATEWAY {
            self.waiting = true;
            return self.cable.send(frame).is_ok();
        }
        let port = self.ports.get(usize::from(node)).copied().flatten();
        port.is_some_and(|port| sys::write(port.fd, frame).is_ok())
    }
}

/// Sets the network up and serves until its owner is gone.
pub fn serve(text: &str, fds: Vec<Fd>) -> Result<(), Failure> {
    let mut setup = Setup::read(text, fds)?;
    let descriptors = sys::raise_descriptor_limit();
    let flows = descriptors.saturating_sub(RESERVE.min(descriptors / 2)) as usize;
    setup.config.limits.flows = setup.config.limits.flows.min(flows.max(64));
    let poll = |errno| Failure::new("start the loop", "epoll", errno);
    let epoll = sys::epoll().map_err(poll)?;
    sys::epoll_add(epoll, CONTROL, EPOLLIN, OWNER).map_err(poll)?;
    for watched in setup.owner.iter().chain(&setup.namespaces) {
        sys::epoll_add(epoll, *watched, EPOLLIN, GONE).map_err(poll)?;
    }
    // PR_SET_TIMERSLACK: the kernel's 50 µs would be felt.
    let _ = sys::prctl(29, 1);
    let (start, epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let (near, cable) = device::pair(Capabilities::ALL, CABLE);
    let mut fabric = Fabric::new(setup.seed);
    fabric.join("gateway");
    let engine = Engine::new(setup.config, Sockets::new(epoll, &[]), near, 0);
    let waiting = Waiting::new(epoll, waiting::several());
    sandbox::enter()?;
    control::send(CONTROL, "ok switch").map_err(|e| Failure::new("report success", "send", e))?;
    Loop {
        engine,
        fabric,
        joined: Joined { ports: vec![None], cable, waiting: false, captures: Vec::new(), epoch, start },
        waiting,
        start,
        buffer: vec![0; MAX_FRAME],
    }
    .run();
    Ok(())
}

struct Loop {
    engine: Engine<Sockets, Memory>,
    fabric: Fabric,
    joined: Joined,
    waiting: Waiting,
    start: Instant,
    buffer: Vec<u8>,
}

impl Loop {
    fn now(&self) -> Time {
        self.start.elapsed().as_micros() as Time
    }

    /// Until when to sleep.
    fn due(&self) -> Option<Instant> {
        if self.engine.busy() {
            return Some(self.start);
        }
        let due = self.engine.next_due().into_iter().chain(self.fabric.next_due()).min()?;
        Some(self.start + Duration::from_micros(due))
    }

    fn run(&mut self) {
        let mut events = [Event::default(); 128];
        loop {
            let due = self.due();
            let n = self.waiting.wait(&mut events, due);
            let now = self.now();
            self.engine.advance(now);
            self.fabric.advance(now, &mut self.joined);
            for event in events.get(..n).unwrap_or(&[]) {
                let (token, bits) = (event.token, event.events);
                let node = token as Node;
                match token {
                    OWNER => {
                        if !control::answer(CONTROL, |text, fds| self.request(text, fds)) {
                            return;
                        }
                    }
                    GONE => return,
                    _ if token & !0xffff == FRAMES => self.frames(node),
                    _ if token & !0xffff == ENDED => self.leave(node),
                    _ => self.engine.host_event(token, host::ready(bits)),
                }
            }
            self.engine.settle();
            self.exchange();
        }
    }

    /// Takes a batch of frames from a member.
    fn frames(&mut self, node: Node) {
        let Some(Some(port)) = self.joined.ports.get(usize::from(node)).copied() else { return };
        for _ in 0..BATCH {
            match sys::read(port.fd, &mut self.buffer) {
                Ok(len) => {
                    let now = self.start.elapsed().as_micros() as Time;
                    let frame = self.buffer.get(..len).unwrap_or(&[]);
                    self.fabric.receive(now, node, frame, &mut self.joined);
                }
                // ENETDOWN: a packet socket's interface is down. EBADFD or EIO: it is gone, with its namespace.
                Err(sys::EAGAIN | sys::EINTR | sys::ENETDOWN) => return,
                Err(_) => return self.leave(node),
            }
        }
    }

    /// Lets the engine have what is for it, and the switch what is from it.
    fn exchange(&mut self) {
        while self.joined.waiting {
            self.joined.waiting = false;
            while matches!(self.engine.receive(), Ok(BATCH)) {}
            self.drain_engine();
        }
        self.drain_engine();
    }

    fn drain_engine(&mut self) {
        while let Some(frame) = self.joined.cable.pop() {
            let now = self.now();
            self.fabric.receive(now, GATEWAY, &frame, &mut self.joined);
        }
    }

    /// A member has ended, or is to be let go.
    fn leave(&mut self, node: Node) {
        let Some(port) = self.joined.ports.get_mut(usize::from(node)).and_then(Option::take) else { return };
        for fd in [port.fd, port.watch] {
            // The owner may still hold the descriptor, and what it holds is reported.
            sys::epoll_remove(self.waiting.epoll, fd);
            sys::close(fd);
        }
        self.fabric.leave(node);
    }

    fn request(&mut self, text: &str, fds: &mut Beside) -> Result<String, i32> {
        let mut words = text.lines().next().unwrap_or_default().split_whitespace();
        let first = words.next().ok_or(sys::EINVAL)?;
        let node = |fabric: &Fabric, name: &str| fabric.find(name).ok_or(sys::ENOENT);
        match first {
            "port" => {
                let mut word = || words.next().ok_or(sys::EINVAL);
                let (name, _kind) = (word()?, word()?);
                let takes =
                    Capabilities { checksum: word()? == "1", tso: word()? == "1", uso: word()? == "1" };
                let mut known = text.lines().nth(1).unwrap_or_default().split_whitespace();
                let mac = known.next().and_then(control::mac).ok_or(sys::EINVAL)?;
                let known: Vec<_> =
                    known.map(str::parse).collect::<Result<_, _>>().map_err(|_| sys::EINVAL)?;
                let (fd, watch) = fds.pair().ok_or(sys::EINVAL)?;
                if let Err(errno) = self.join(name, Port { fd, watch, takes }) {
                    sys::close(fd);
                    sys::close(watch);
                    return Err(errno);
                }
                for address in known {
                    self.engine.core.learn(address, mac);
                }
                return Ok("ok".into());
            }
            "unport" => {
                let node = node(&self.fabric, words.next().ok_or(sys::EINVAL)?)?;
                self.leave(node);
            }
            "up" => {
                let up = self.joined.ports.iter().enumerate().filter(|(_, port)| port.is_some());
                let names = up.map(|(node, _)| self.fabric.name(node as Node)).collect::<Vec<_>>();
                return Ok(format!("ok {}", names.join(" ")));
            }
            "names" => {
                let (names, views) = control::names(text.lines().skip(1)).ok_or(sys::EINVAL)?;
                self.engine.core.config.names = names;
                self.engine.core.config.views = views;
            }
            "link" => {
                let hop = self.hop(&mut words)?;
                let how = Impairment::parse(words).ok_or(sys::EINVAL)?;
                self.fabric.impair(hop, how);
            }
            "cut" => {
                let cut = words.next() == Some("on");
                for line in text.lines().skip(1) {
                    let (from, to) = line.split_once(' ').ok_or(sys::EINVAL)?;
                    let (from, to) = (node(&self.fabric, from)?, node(&self.fabric, to)?);
                    self.fabric.cut(from, to, cut);
                }
            }
            "heal" => self.fabric.heal(),
            "passed" => {
                let hop = self.hop(&mut words)?;
                return Ok(format!("ok {}", self.fabric.hop_line(hop)));
            }
            "capture" => {
                let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or(sys::EINVAL);
                let (snap, limit): (u64, u64) = (number()?, number()?);
                let filter = Filter::parse(words).ok_or(sys::EINVAL)?;
                let points = self.points(text.lines().skip(1), filter)?;
                let file = fds.take().ok_or(sys::EINVAL)?;
                let made = Capture::new(File(file), points, snap as usize, limit).map_err(|_| sys::EINVAL)?;
                let captures = &mut self.joined.captures;
                let at = captures.iter().position(Option::is_none).unwrap_or(captures.len());
                captures.resize_with(captures.len().max(at + 1), || None);
                if let Some(place) = captures.get_mut(at) {
                    *place = Some(made);
                }
                return Ok(format!("ok {at}"));
            }
            "forward" => {
                let tcp = words.next() == Some("tcp");
                let to = words.next().and_then(|word| word.parse().ok()).ok_or(sys::EINVAL)?;
                let listener = fds.take().ok_or(sys::EINVAL)?;
                return Ok(format!("ok {}", self.engine.add_forward(Forward { listener, tcp, to })));
            }
            "unforward" => {
                let number = words.next().and_then(|word| word.parse().ok()).ok_or(sys::EINVAL)?;
                if !self.engine.remove_forward(number) {
                    return Err(sys::ENOENT);
                }
            }
            "captured" | "uncapture" => {
                let at: usize = words.next().and_then(|word| word.parse().ok()).ok_or(sys::EINVAL)?;
                let place = self.joined.captures.get_mut(at).ok_or(sys::ENOENT)?;
                let capture = place.as_ref().ok_or(sys::ENOENT)?;
                let reply = format!("ok {} {}", capture.frames, capture.dropped);
                if first == "uncapture" {
                    *place = None;
                }
                return Ok(reply);
            }
            "stats" => return Ok(format!("ok\n{}", self.fabric.lines(control::MAX - 256))),
            "gateway" => {
                let (flows, buffered) = (self.engine.flow_count(), self.engine.core.buffered);
                let stats = self.engine.stats().lines();
                return Ok(format!("ok\nflows {flows}\nbuffered {buffered}\n{stats}"));
            }
            "flows" => return Ok(format!("ok\n{}", self.engine.flow_lines(control::MAX - 256))),
            "resolvers" => {
                self.engine.core.config.resolvers = control::resolvers(words).ok_or(sys::EINVAL)?;
                self.engine.core.resolver = 0;
            }
            _ => return Err(sys::EINVAL),
        }
        Ok("ok".into())
    }

    /// Where a capture is to look.
    fn points<'a>(&self, lines: impl Iterator<Item = &'a str>, filter: Filter) -> Result<Points, i32> {
        let mut points = Points { filter, ..Points::default() };
        for line in lines {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("sent", _) => points.sent = true,
                ("received", _) => points.received = true,
                ("node", name) => points.nodes.push(self.fabric.find(name).ok_or(sys::ENOENT)?),
                _ => return Err(sys::EINVAL),
            }
        }
        Ok(points)
    }

    /// The direction of a link that words name.
    fn hop<'a>(&self, words: &mut impl Iterator<Item = &'a str>) -> Result<Hop, i32> {
        let mut word = || words.next().ok_or(sys::EINVAL);
        let kind = word()?;
        let mut node = || self.fabric.find(word()?).ok_or(sys::ENOENT);
        match kind {
            "out" => node().map(Hop::Out),
            "into" => node().map(|to| Hop::Into(to, to)),
            "between" => Ok(Hop::Between(node()?, node()?)),
            _ => Err(sys::EINVAL),
        }
    }

    /// Takes a member in.
    fn join(&mut self, name: &str, port: Port) -> Result<(), i32> {
        let node = self.fabric.join(name).ok_or(sys::EEXIST)?;
        let at = usize::from(node);
        if self.joined.ports.len() <= at {
            self.joined.ports.resize(at + 1, None);
        }
        let watched = sys::epoll_add(self.waiting.epoll, port.fd, EPOLLIN, FRAMES | u64::from(node))
            .and_then(|_| sys::epoll_add(self.waiting.epoll, port.watch, EPOLLIN, ENDED | u64::from(node)));
        if let Err(errno) = watched {
            sys::epoll_remove(self.waiting.epoll, port.fd);
            self.fabric.leave(node);
            return Err(errno);
        }
        if let Some(place) = self.joined.ports.get_mut(at) {
            *place = Some(port);
        }
        Ok(())
    }
}
