//! The loop: sleep until something happens, give it to the engine, answer the owner.

use crate::control::{self, Beside, Failure, Given, Setup};
use crate::host::{self, Sockets};
use crate::record::Output;
use crate::slirp::device::{Capabilities, Fault, Faults, Filter, Recorder, Trace};
use crate::slirp::engine::{BATCH, Engine};
use crate::slirp::forward::Forward;
use crate::slirp::time::Time;
use crate::sys::{self, EPOLLIN, Event, Fd};
use crate::tap::{self, Link, Tap};
use crate::waiting::{self, Waiting};
use crate::within::{self, Within};
use crate::{attach, bridging, interface, packet, sandbox, switching};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const CONTROL: Fd = 0;
/// Tokens that are not flows'. A flow's generation would have to reach its last value to look like one.
const TAP: u64 = u64::MAX - 1;
const OWNER: u64 = u64::MAX - 2;
const GONE: u64 = u64::MAX - 3;
const LISTEN: u64 = u64::MAX - 4;
/// And the first of those who connected.
const CLIENT: u64 = u64::MAX - 64;
/// How many may be connected at once.
const CLIENTS: usize = 16;
/// Batches of frames taken before the sockets get their turn.
const ROUNDS: usize = 4;
/// How many captures there may be at once.
const RECORDERS: usize = 8;
/// How many may listen to events at once.
const LISTENERS: usize = 16;
/// Descriptors kept free of flows.
const RESERVE: u64 = 64;

/// Sets everything up and serves until the owner or the guest is gone.
pub fn serve() -> Result<(), Failure> {
    sys::close_range(3, u32::MAX);
    // What takes time and needs no description comes first: the owner may still be making the namespace.
    let (descriptors, several) = (sys::raise_descriptor_limit(), waiting::several());
    let first =
        control::receive(CONTROL, 0).map_err(|e| Failure::new("read the description", "recvmsg", e))?;
    let Some((text, fds)) = first else { return Ok(()) };
    match text.split_whitespace().next() {
        Some("switch") => return switching::serve(&text, fds),
        Some("interface") => return interface::serve(&text, fds),
        Some("bridge") => return bridging::serve(&text, fds),
        _ => {}
    }
    let mut setup = Setup::parse(&text, fds)?;
    let limit = descriptors.saturating_sub(RESERVE).max(RESERVE) as usize;
    setup.config.limits.flows = setup.config.limits.flows.min(limit);

    let handed = setup.link.zip(setup.namespaces.first().copied());
    // Published TCP ports go around the interface unless something is asked of it that only frames can show, and
    // with too few descriptors: each such connection takes two.
    let around = setup.splice
        && setup.configure
        && setup.watch.is_some()
        && setup.faults == Faults::default()
        && limit > 4 * within::DESCRIPTORS;
    let (made, child) = match handed {
        Some((_, fd)) => {
            sys::nonblocking(fd);
            (attach::Interface::given(fd), None)
        }
        None => attach::attach(&setup, around)?,
    };
    let fd = made.fd;
    let plain = setup.link == Some(Given::Plain);
    let capabilities = if plain {
        Capabilities::default()
    } else if made.packet {
        let limits = &mut setup.config.limits;
        limits.window = limits.window.min(packet::window(fd));
        Capabilities::ALL
    } else {
        tap::offload(fd)
    };
    let tap = Tap { fd, capabilities, plain };
    let device = if setup.faults == Faults::default() {
        Link::Plain(tap)
    } else {
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), fd);
        Link::Bad(Box::new(Fault::new(tap, setup.faults, setup.faults, seed)))
    };
    let poll = |errno| Failure::new("start the loop", "epoll", errno);
    let epoll = sys::epoll().map_err(poll)?;
    sys::epoll_add(epoll, fd, EPOLLIN, TAP).map_err(poll)?;
    sys::epoll_add(epoll, CONTROL, EPOLLIN, OWNER).map_err(poll)?;
    if let Some(listen) = setup.listen {
        sys::nonblocking(listen);
        sys::epoll_add(epoll, listen, EPOLLIN, LISTEN).map_err(poll)?;
    }
    for watched in [setup.watch, setup.owner].into_iter().flatten() {
        sys::epoll_add(epoll, watched, EPOLLIN, GONE).map_err(poll)?;
    }
    for fd in setup.namespaces.iter().filter(|each| Some(**each) != setup.watch && **each != fd) {
        sys::close(*fd);
    }
    let (start, epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let device = Trace::new(device, epoch.as_micros() as Time);
    let mut sockets = Sockets::new(epoll, &setup.outbound);
    sockets.within = child.map(|child| Within::new(child.channel));
    let spare = limit.saturating_sub(setup.config.limits.flows);
    let mut engine = Engine::new(setup.config, sockets, device, 0);
    if child.is_some() {
        engine.go_around(spare, within::DESCRIPTORS);
    }
    let waiting = Waiting::new(epoll, several);
    let kind = if made.packet { "packet" } else { "tap" };
    let about = format!("{} {kind}", std::process::id());
    sandbox::enter()?;
    control::send(CONTROL, &format!("ok {kind}")).map_err(|e| Failure::new("report success", "send", e))?;
    let (listen, owner) = (setup.listen, setup.owner);
    let (forwards, clients) = (BTreeMap::new(), [None; CLIENTS]);
    let (listeners, kept) = (Vec::new(), false);
    Loop { engine, waiting, start, listeners, forwards, about, owner, kept, listen, clients }.run();
    if let Some(child) = child {
        child.end();
    }
    Ok(())
}

struct Loop {
    engine: Engine<Sockets, Trace<Link, Output>>,
    waiting: Waiting,
    start: Instant,
    /// Sockets of those who listen to events, and how many events each has missed.
    listeners: Vec<(Fd, u64)>,
    /// What followed `forward`, by the number of each.
    forwards: BTreeMap<usize, String>,
    /// Our pid and the kind of interface.
    about: String,
    /// The owner's pidfd.
    owner: Option<Fd>,
    /// We do not end with the owner.
    kept: bool,
    /// Where more may connect.
    listen: Option<Fd>,
    /// Those who have.
    clients: [Option<Fd>; CLIENTS],
}

impl Loop {
    fn now(&self) -> Time {
        self.start.elapsed().as_micros() as Time
    }

    /// Until when to sleep, in whole milliseconds from now: nothing here is so urgent that it could not be done with
    /// what is due a moment later.
    fn due(&self) -> Option<Instant> {
        let left = if self.engine.busy() { 0 } else { self.engine.next_due()?.saturating_sub(self.now()) };
        Some(Instant::now() + Duration::from_millis(left.div_ceil(1000).min(60_000)))
    }

    fn run(&mut self) {
        let mut events = [Event::default(); 128];
        loop {
            let due = self.due();
            let n = self.waiting.wait(&mut events, due);
            self.engine.advance(self.now());
            let mut frames = self.engine.arrived();
            for event in events.get(..n).unwrap_or(&[]) {
                let (token, bits) = (event.token, event.events);
                match token {
                    TAP => frames = true,
                    OWNER => {
                        if !self.answer(CONTROL) {
                            if !self.kept {
                                return;
                            }
                            sys::epoll_remove(self.waiting.epoll, CONTROL);
                            sys::close(CONTROL);
                        }
                    }
                    GONE => return,
                    LISTEN => self.accept(),
                    CLIENT.. => self.client((token - CLIENT) as usize),
                    _ => self.engine.host_event(token, host::ready(bits)),
                }
            }
            if frames {
                for _ in 0..ROUNDS {
                    match self.engine.receive() {
                        Ok(BATCH) => {}
                        Ok(_) => break,
                        // EBADFD or EIO: the interface is gone, with its namespace.
                        Err(_) => return,
                    }
                }
            } else {
                self.engine.settle();
            }
            self.tell();
        }
    }

    /// Answers one request; false when who asked is gone.
    fn answer(&mut self, fd: Fd) -> bool {
        control::answer(fd, |text, fds| self.request(text, fds).ok_or(sys::EINVAL))
    }

    /// Takes one more who may ask; whoever comes when there are too many finds a closed door.
    fn accept(&mut self) {
        let Some(Ok(fd)) = self.listen.map(|listen| sys::accept(listen, &mut [0; 110])) else { return };
        let free = self.clients.iter_mut().enumerate().find(|(_, client)| client.is_none());
        match free {
            Some((slot, client))
                if sys::epoll_add(self.waiting.epoll, fd, EPOLLIN, CLIENT + slot as u64).is_ok() =>
            {
                *client = Some(fd);
            }
            _ => sys::close(fd),
        }
    }

    fn client(&mut self, slot: usize) {
        let Some(fd) = self.clients.get(slot).copied().flatten() else { return };
        if !self.answer(fd) {
            sys::close(fd);
            if let Some(client) = self.clients.get_mut(slot) {
                *client = None;
            }
        }
    }

    /// Tells the events of this wake-up to all who listen. Who does not read misses some, and is told how many.
    fn tell(&mut self) {
        let core = &mut self.engine.core;
        let Some(events) = core.events.as_mut().filter(|events| !events.is_empty()) else { return };
        let (lines, untold) = (std::mem::take(events), std::mem::take(&mut core.untold));
        self.listeners.retain_mut(|(fd, missed)| {
            *missed += untold;
            let mut text = lines.join("\n");
            if *missed > 0 {
                let _ = write!(text, "\nmissed {missed}");
            }
            match control::send(*fd, &text) {
                Ok(_) => *missed = 0,
                Err(sys::EAGAIN) => *missed += lines.len() as u64,
                Err(_) => {
                    sys::close(*fd);
                    return false;
                }
            }
            true
        });
        if self.listeners.is_empty() {
            self.engine.core.events = None;
        }
    }

    /// Takes one more listener; false if there are too many.
    fn listen(&mut self, fd: Fd) -> bool {
        // Those who left are noticed when something is told to them; or here.
        self.listeners.retain(|(fd, _)| {
            let left = sys::recv(*fd, &mut [0; 1], 0x40) == Ok(0);
            if left {
                sys::close(*fd);
            }
            !left
        });
        if self.listeners.len() >= LISTENERS {
            return false;
        }
        self.listeners.push((fd, 0));
        self.engine.core.events.get_or_insert_default();
        true
    }

    fn request(&mut self, text: &str, fds: &mut Beside) -> Option<String> {
        let mut words = text.split_whitespace();
        match words.next()? {
            "forward" => {
                let tcp = match words.next()? {
                    "tcp" => true,
                    "udp" => false,
                    _ => return None,
                };
                let to = words.next()?.parse().ok()?;
                let listener = fds.take()?;
                self.engine.core.tell(|| text.replacen("forward", "forward-added", 1));
                let number = self.engine.add_forward(Forward { listener, tcp, to });
                self.forwards.insert(number, text.trim_start_matches("forward").trim().to_owned());
                Some(format!("ok {number}"))
            }
            "unforward" => {
                let number = words.next()?.parse().ok()?;
                self.forwards.remove(&number);
                let known = self.engine.remove_forward(number);
                Some(if known {
                    let rest: Vec<&str> = words.collect();
                    self.engine.core.tell(|| format!("forward-removed {}", rest.join(" ")));
                    "ok".into()
                } else {
                    Failure::new("end a forward", "unforward", sys::ENOENT).message()
                })
            }
            "events" => {
                let fd = fds.take()?;
                Some(if self.listen(fd) {
                    "ok".into()
                } else {
                    sys::close(fd);
                    Failure::new("listen to events", "events", sys::ENOSPC).message()
                })
            }
            "capture" => {
                let snap = words.next()?.parse().ok()?;
                let filter = Filter::parse(words)?;
                if self.engine.core.device.recorders() >= RECORDERS {
                    return Some(Failure::new("start a capture", "capture", sys::ENOSPC).message());
                }
                let output = Output::new(fds.take()?);
                match Recorder::new(output, filter, snap) {
                    Ok(recorder) => Some(format!("ok {}", self.engine.core.device.record(recorder))),
                    Err(error) => {
                        output.close();
                        let errno = error.raw_os_error().unwrap_or(sys::EINVAL);
                        Some(Failure::new("start a capture", "write", errno).message())
                    }
                }
            }
            "uncapture" => {
                let Some((recorder, output)) = self.engine.core.device.stop(words.next()?.parse().ok()?)
                else {
                    return Some(Failure::new("end a capture", "uncapture", sys::ENOENT).message());
                };
                output.close();
                let Recorder { written, dropped, failure, .. } = recorder;
                Some(format!("ok {written} {dropped} {}", failure.unwrap_or(0)))
            }
            "forwards" => {
                let lines: Vec<String> =
                    self.forwards.iter().map(|(n, words)| format!("{n} {words}")).collect();
                Some(format!("ok\n{}", lines.join("\n")))
            }
            "about" => Some(format!("ok {}", self.about)),
            "keep" => {
                self.kept = true;
                if let Some(owner) = self.owner.take() {
                    sys::epoll_remove(self.waiting.epoll, owner);
                    sys::close(owner);
                }
                Some("ok".into())
            }
            "stats" => Some(format!(
                "ok\nflows {}\nbuffered {}\n{}",
                self.engine.flow_count(),
                self.engine.core.buffered,
                self.engine.stats().lines()
            )),
            "flows" => Some(format!("ok\n{}", self.engine.flow_lines(control::MAX - 256))),
            "resolvers" => {
                self.engine.core.config.resolvers = control::resolvers(words)?;
                self.engine.core.resolver = 0;
                Some("ok".into())
            }
            _ => None,
        }
    }
}
