//! Published TCP ports without the wire: from the client's socket to one in the guest's own kernel and back.
//!
//! A connection that the host accepted is offered to the guest by a socket that was made inside the guest's namespace
//! and is bound to the client's address (`Host::connect_within`; the kernel's side of it is in
//! `src/helper/engine/within.rs`). So the guest sees what it would see over the interface, the client's own address
//! and port, or the router for those that `forward` shows as it; and then the two kernels do all the work: bytes go
//! from socket to pipe to socket (splice(2)), and no frame is made.
//!
//! ```text
//!   client ── outer socket ── pipe ──► inner socket ── lo of the guest ── server
//!                          ◄── pipe ──
//! ```
//!
//! A pipe is borrowed for as long as there is something in it: those who do not read keep one, others share. When
//! there is none, bytes are copied ([`Lane::copy`]). The end of one direction is passed on, whatever the other does;
//! a reset of either side resets the other.
//!
//! Everything that cannot be so goes over the interface as ever: a guest without what it takes, or with other
//! addresses than those that it was given; too few descriptors; somebody who wants to see the frames. A guest that
//! refuses is asked again over the interface: perhaps its server is bound to that (`SO_BINDTODEVICE`); else the
//! client, whom the host has accepted, is reset. So is one that lets [`PATIENCE`] pass without an answer, perhaps
//! because of a filter of its own, and others over the interface for a while.

use super::core::Core;
use super::device::Device;
use super::engine::{Engine, Flow};
use super::flow::{Id, Key};
use super::host::{Host, Peek, Pipe, Ready, Sock};
use super::stats::Traffic;
use super::tcp;
use super::time::{MS, NEVER, SEC, Time};
use std::io::ErrorKind;

/// Marks a token as that of a flow's inner socket.
const INNER: u64 = 1 << 62;
/// How long a guest may take to answer. Its kernel answers at once, and a SYN is sent again after as long.
const PATIENCE: Time = SEC;
/// And what is still to be looked at after that.
const MOMENT: Time = 10 * MS;
/// How long the interface is used for all after that.
const DISTRUST: Time = 60 * SEC;
/// What goes into a pipe at once.
const CHUNK: usize = 1 << 20;
/// What is read and sent first: most messages are short, and two copies of them cost less than a pipe. Fits any pipe,
/// should the receiver not take it.
const FIRST: usize = 16 << 10;
/// What a direction may carry before others have their turn.
const TURN: usize = 8 << 20;
/// What is copied at once when there is no pipe.
const COPY: usize = 64 << 10;

/// Whether a token is an inner socket's. Those of forwards and the loop's own have the highest bit.
pub fn is_inner(token: u64) -> bool {
    token & INNER != 0
}

/// The token of the flow whose inner socket this is about.
pub fn outer(token: u64) -> u64 {
    token & !INNER
}

/// That connections may go around the interface, and how it goes.
#[derive(Debug)]
pub struct Splicing {
    /// Descriptors that no flow would get anyway.
    spare: usize,
    /// Those of pipes and sockets in stock.
    stock: usize,
    /// Connections that go around: each has one more than it is counted for.
    count: usize,
    /// Not before.
    from: Time,
}

impl Splicing {
    /// Descriptors that flows cannot have.
    pub fn beside(&self) -> usize {
        (self.count + self.stock).saturating_sub(self.spare)
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    /// What the bytes are in.
    pipe: Option<Pipe>,
    /// How many.
    held: usize,
    /// The receiver takes no more at present.
    full: bool,
    /// Its turn was over before it was at the end.
    more: bool,
    /// All was passed on, and then the end.
    shut: bool,
}

/// What is known of a lane's sender when something is to be carried.
#[derive(Debug, Clone, Copy)]
struct Hint {
    /// A short read is the last: no end was reported, and whatever comes now will be.
    short: bool,
    /// There may be an urgent byte (tcp(7)).
    urgent: bool,
    /// The other direction is at its end already.
    final_lane: bool,
}

impl Lane {
    /// Carries what there is as far as it goes: how much.
    fn carry<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        (from, to): (Sock, Sock),
        hint: Hint,
    ) -> Result<usize, ErrorKind> {
        let (mut moved, mut last, mut bulk) = (0, false, false);
        (self.more, self.full) = (false, false);
        while !self.shut && !last {
            if let (Some(pipe), true) = (self.pipe, self.held > 0) {
                match core.host.splice(pipe.read, to, self.held)? {
                    Some(n) if n > 0 => {
                        self.held = self.held.saturating_sub(n);
                        moved += n;
                        continue;
                    }
                    _ => {
                        self.full = true;
                        return Ok(moved);
                    }
                }
            }
            if moved >= TURN {
                self.more = true;
                break;
            }
            let Some(pipe) = self.pipe.or_else(|| core.host.pipe()) else {
                moved += self.copy(core, (from, to), hint)?;
                break;
            };
            self.pipe = Some(pipe);
            if bulk {
                match core.host.splice(from, pipe.write, CHUNK)? {
                    Some(n) if n > 0 => self.held = n,
                    // The end, or an urgent byte, at which splice(2) stops: a reader knows.
                    Some(_) => bulk = false,
                    None if hint.urgent => bulk = false,
                    None => break,
                }
                continue;
            }
            let (host, place) = core.payload(FIRST);
            match host.read(from, place)? {
                Peek::Data(n) => {
                    let data = place.get(..n).unwrap_or(&[]);
                    let sent = host.send(to, data)?;
                    moved += sent;
                    let rest = data.get(sent..).unwrap_or(&[]);
                    if !rest.is_empty() {
                        self.held = host.fill(pipe, rest);
                        if self.held < rest.len() {
                            return Err(ErrorKind::OutOfMemory);
                        }
                        self.full = true;
                        return Ok(moved);
                    }
                    (bulk, last) = (n == FIRST, n < FIRST && hint.short);
                }
                Peek::Blocked => break,
                Peek::End => self.end(core, to, hint),
            }
        }
        self.give_back(core);
        Ok(moved)
    }

    /// Passes the end on. What both have said the end of is closed, which says it too.
    fn end<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, to: Sock, hint: Hint) {
        if !hint.final_lane {
            core.host.shutdown(to);
        }
        self.shut = true;
    }

    /// The same without a pipe: what is not taken stays in the queue.
    fn copy<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        (from, to): (Sock, Sock),
        hint: Hint,
    ) -> Result<usize, ErrorKind> {
        let mut moved = 0;
        while moved < TURN {
            let (host, place) = core.payload(COPY);
            match host.peek(from, 0, place)? {
                Peek::Data(n) => {
                    let sent = host.send(to, place.get(..n).unwrap_or(&[]))?;
                    host.discard(from, sent)?;
                    moved += sent;
                    if sent < n {
                        self.full = true;
                        return Ok(moved);
                    }
                }
                Peek::Blocked => return Ok(moved),
                Peek::End => {
                    self.end(core, to, hint);
                    return Ok(moved);
                }
            }
        }
        self.more = true;
        Ok(moved)
    }

    fn give_back<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        if let Some(pipe) = self.pipe.take() {
            core.host.put_back(pipe, self.held == 0);
        }
    }
}

/// A connection that goes around the interface.
#[derive(Debug)]
pub struct Spliced {
    outer: Sock,
    inner: Sock,
    /// The guest has not answered. Meanwhile: what was told about the client's socket.
    connecting: Option<Ready>,
    /// It has had its time.
    late: bool,
    /// The client came by a Unix socket.
    unix: bool,
    inward: Lane,
    outward: Lane,
    /// What it has carried.
    pub traffic: Traffic,
}

impl Spliced {
    /// Its name in lists.
    pub fn state(&self) -> &'static str {
        if self.connecting.is_some() { "SynSent" } else { "Spliced" }
    }

    /// Nothing was said for long: the kernel is to find out whether the client still lives. (The server does: it is
    /// on this machine.)
    pub fn silent<H: Host, D: Device>(&self, core: &mut Core<H, D>) {
        core.host.keepalive(self.outer);
    }

    /// Carries on what an event on one of the sockets makes possible: what can be read there goes to the other, and
    /// if it takes more than before, what waited for that.
    fn carry<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        ready: Ready,
        inner: bool,
    ) -> Result<(), ErrorKind> {
        // What was told while a lane was full, or its turn over, is told no more. And a Unix socket stops a reader
        // where descriptors were passed.
        let hint = |lane: &Lane, other: &Lane, news: bool| {
            let seen = news && !lane.full && !lane.more;
            let short = seen && !ready.hangup && !ready.urgent && (inner || !self.unix);
            Hint { short, urgent: !seen || ready.urgent, final_lane: other.shut }
        };
        let inward = hint(&self.inward, &self.outward, !inner);
        let read = ready.read || ready.hangup;
        if (read && !inner) || (self.inward.full && inner) || self.inward.more {
            self.traffic.received += self.inward.carry(core, (self.outer, self.inner), inward)? as u64;
        }
        let outward = hint(&self.outward, &self.inward, inner);
        if (read && inner) || (self.outward.full && !inner) || self.outward.more {
            self.traffic.sent += self.outward.carry(core, (self.inner, self.outer), outward)? as u64;
        }
        if ready.error {
            core.host.connected(if inner { self.inner } else { self.outer })?;
        }
        Ok(())
    }
}

impl<H: Host, D: Device> Engine<H, D> {
    /// From now on published TCP ports go around the interface where they can. `spare`: how many descriptors there
    /// are that no flow would get; `stock`: how many are used whatever the number of connections.
    pub fn go_around(&mut self, spare: usize, stock: usize) {
        self.splicing = Some(Splicing { spare, stock, count: 0, from: 0 });
    }

    /// Whether one more connection to `key`'s guest may go around.
    fn may_splice(&self, key: &Key) -> bool {
        let Some(splicing) = &self.splicing else { return false };
        // Half of what nobody else would get, or a quarter: the rest is for those that go over the interface, and
        // for one flow more that each of these costs.
        let room = splicing.count < splicing.spare / 2 || splicing.count < self.core.config.limits.flows / 4;
        let to = key.guest().ip();
        room && self.core.now >= splicing.from
            && to == self.core.config.guest_address(to)
            && !self.core.device.recorded()
    }

    /// Lets a client's connection go around the interface; false if it must go over it.
    pub(super) fn splice(&mut self, key: &Key, sock: Sock, unix: bool) -> bool {
        if !self.may_splice(key) {
            self.core.stats.tcp_unspliced += u64::from(self.splicing.is_some());
            return false;
        }
        let Ok((inner, done)) = self.core.host.connect_within(key.remote(), key.guest()) else {
            self.core.stats.tcp_unspliced += 1;
            return false;
        };
        let flow = Spliced {
            outer: sock,
            inner,
            connecting: (!done).then(Ready::default),
            late: false,
            unix,
            inward: Lane::default(),
            outward: Lane::default(),
            traffic: Traffic::default(),
        };
        self.begun(key);
        self.core.stats.tcp_in += 1;
        let id = self.flows.insert(*key, Flow::Spliced(flow), self.core.now);
        if let Some(splicing) = &mut self.splicing {
            splicing.count += 1;
        }
        self.core.host.watch(sock, id.token());
        self.core.host.watch(inner, id.token() | INNER);
        if done {
            self.core.stats.tcp_spliced += 1;
        } else {
            self.flows.arm(id, self.core.now + PATIENCE);
        }
        true
    }

    /// What epoll says about one of the sockets.
    pub(super) fn spliced_ready(&mut self, id: Id, ready: Ready, inner: bool) {
        let now = self.core.now;
        let Some((_, Flow::Spliced(flow))) = self.flows.get(id) else { return };
        let mut outcome = Ok(());
        if let Some(told) = flow.connecting {
            if !inner {
                // The client's data waits in its socket until there is somebody to have it.
                flow.connecting = Some(told.and(ready));
                return;
            }
            if !(ready.write || ready.hangup) {
                return;
            }
            // Refused, perhaps because a server waits for what comes by the interface alone.
            if ready.hangup && self.core.host.connected(flow.inner).is_err() {
                return self.go_over(id);
            }
            flow.connecting = None;
            self.core.stats.tcp_spliced += 1;
            outcome = flow.carry(&mut self.core, told, false);
        }
        outcome = outcome.and_then(|()| flow.carry(&mut self.core, ready, inner));
        let (over, more) = (flow.inward.shut && flow.outward.shut, flow.inward.more || flow.outward.more);
        if over || outcome.is_err() {
            return self.end_spliced(id, outcome.is_err());
        }
        if more && !self.turns.contains(&id) {
            self.turns.push_back(id);
        }
        self.flows.touch(id, now);
    }

    /// The guest has not answered in time.
    pub(super) fn unanswered(&mut self, id: Id) {
        let Some((_, Flow::Spliced(flow))) = self.flows.get(id) else { return };
        if flow.connecting.is_none() {
            return;
        }
        // Perhaps it was us who had no time: what has happened meanwhile is told right after this.
        if !std::mem::replace(&mut flow.late, true) {
            return self.flows.arm(id, self.core.now + MOMENT);
        }
        self.go_over(id);
        if let Some(splicing) = &mut self.splicing {
            splicing.from = self.core.now + DISTRUST;
        }
    }

    /// A connection that the guest has not taken goes over the interface, under the same name: how that is answered
    /// is how it ends.
    fn go_over(&mut self, id: Id) {
        let Some((key, Flow::Spliced(flow))) = self.flows.get(id) else { return };
        let (key, outer) = (*key, flow.outer);
        self.core.host.close(flow.inner, true);
        self.core.stats.tcp_unspliced += 1;
        self.core.stats.tcp_in = self.core.stats.tcp_in.saturating_sub(1);
        let tcb = tcp::accept(&mut self.core, &key, outer);
        let deadline = tcb.deadline();
        if let Some((_, flow)) = self.flows.get(id) {
            *flow = Flow::Tcp(tcb);
        }
        if deadline != NEVER {
            self.flows.arm(id, deadline);
        }
        self.half_open += 1;
        self.embryos.push_back(id);
        if let Some(splicing) = &mut self.splicing {
            splicing.count = splicing.count.saturating_sub(1);
        }
    }

    /// Ends a connection; both sides see it reset, or both have had its end.
    pub(super) fn end_spliced(&mut self, id: Id, reset: bool) {
        let Some((_, Flow::Spliced(flow))) = self.flows.get(id) else { return };
        flow.inward.give_back(&mut self.core);
        flow.outward.give_back(&mut self.core);
        self.core.host.close(flow.inner, reset);
        self.core.host.close(flow.outer, reset);
        if let Some(splicing) = &mut self.splicing {
            splicing.count = splicing.count.saturating_sub(1);
        }
        self.forget(id);
    }
}
