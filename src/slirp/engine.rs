//! The engine: takes frames, events and the time; finds the flow; lets the protocol act.
//!
//! It is driven from outside and never blocks: `advance` gives the time, `receive` takes a batch of frames from
//! the device, `host_event` takes what epoll reports, `next_due` and `busy` say how long the caller may sleep. So
//! the same engine runs over a tap with kernel sockets and in a test over a cable in memory with a virtual clock.
//! Whatever the guest sends, the worst is a counter that goes up.

use super::config::{Config, Refusal};
use super::core::Core;
use super::device::{Device, MAX_FRAME};
use super::dhcp::Leases;
use super::flow::{Id, Key, Table};
use super::fragment::Reassembly;
use super::host::{Host, Ready};
use super::stats::{Stats, Traffic};
use super::time::{NEVER, SEC, Time};
use super::wire::ip;
use super::{forward, icmp, splice, tcp, udp};
use std::collections::VecDeque;

/// Frames taken in one batch.
pub const BATCH: usize = 64;
/// How often idle flows are looked for.
const SWEEP: Time = SEC;

/// A flow of any protocol.
#[derive(Debug)]
pub enum Flow {
    /// A connection.
    Tcp(tcp::Tcb),
    /// A UDP association.
    Udp(udp::Assoc),
    /// An echo identifier.
    Ping(icmp::Ping),
    /// A connection that goes around the interface.
    Spliced(splice::Spliced),
}

impl Flow {
    /// What it has carried.
    fn traffic(&self) -> Traffic {
        match self {
            Self::Tcp(tcb) => tcb.traffic,
            Self::Udp(udp::Assoc { kind: udp::Kind::Dns(relay), traffic, .. }) => {
                Traffic { received: relay.received, ..*traffic }
            }
            Self::Udp(assoc) => assoc.traffic,
            Self::Ping(ping) => ping.traffic,
            Self::Spliced(spliced) => spliced.traffic,
        }
    }
}

/// Protocol, guest and remote of a flow.
fn named(key: &Key) -> String {
    let name = match key.proto {
        ip::TCP => "tcp",
        ip::UDP => "udp",
        _ => "icmp",
    };
    format!("{name} {} {}", key.guest(), key.remote())
}

/// The engine of one network interface.
#[derive(Debug)]
pub struct Engine<H, D> {
    /// What the protocols share.
    pub core: Core<H, D>,
    pub(super) flows: Table<Flow>,
    pub(super) forwards: Vec<Option<forward::Forward>>,
    pub(super) splicing: Option<splice::Splicing>,
    pub(super) reassembly: Reassembly,
    pub(super) leases: Leases,
    pub(super) run: udp::Run,
    rx: Vec<u8>,
    /// Handshakes in order of age, and how many of them are not finished.
    pub(super) embryos: VecDeque<Id>,
    pub(super) half_open: usize,
    pub(super) turns: VecDeque<Id>,
    /// Forwards whose turn was over before their sockets were empty.
    pub(super) waiting: Vec<usize>,
    /// The port that was last given to a client without one.
    pub(super) port: u16,
    swept: Time,
}

impl<H: Host, D: Device> Engine<H, D> {
    /// An engine for the interface behind `device`, at `now`.
    pub fn new(config: Config, host: H, device: D, now: Time) -> Self {
        Self {
            core: Core::new(config, host, device, now),
            flows: Table::default(),
            forwards: Vec::new(),
            splicing: None,
            reassembly: Reassembly::default(),
            leases: Leases::default(),
            run: udp::Run::default(),
            rx: vec![0; MAX_FRAME],
            embryos: VecDeque::new(),
            half_open: 0,
            turns: VecDeque::new(),
            waiting: Vec::new(),
            port: forward::EPHEMERAL,
            swept: now,
        }
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats { fragments: self.reassembly.dropped, ..self.core.stats }
    }

    /// One flow a line, up to `most` bytes: protocol, guest, remote, state, seconds of silence, bytes sent and
    /// received, segments sent to the guest again.
    pub fn flow_lines(&self, most: usize) -> String {
        let mut out = String::new();
        for (_, key, flow, used) in self.flows.iter() {
            let state = match flow {
                Flow::Tcp(tcb) => format!("{:?}", tcb.state),
                Flow::Udp(assoc) => if assoc.replied { "replied" } else { "sent" }.into(),
                Flow::Ping(_) => "echo".into(),
                Flow::Spliced(spliced) => spliced.state().into(),
            };
            let idle = self.core.now.saturating_sub(used) / SEC;
            let Traffic { sent, received, resent } = flow.traffic();
            let line = format!("{} {state} {idle} {sent} {received} {resent}\n", named(key));
            if out.len() + line.len() > most {
                break;
            }
            out.push_str(&line);
        }
        out
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// True if there is work that waits for nothing but its turn.
    pub fn busy(&self) -> bool {
        !self.turns.is_empty() || !self.waiting.is_empty()
    }

    /// When [`Self::advance`] must be called at the latest.
    pub fn next_due(&self) -> Option<Time> {
        let sweep = (!self.flows.is_empty()).then_some(self.swept + SWEEP);
        [self.flows.next_due(), self.core.device.next_due(), sweep].into_iter().flatten().min()
    }

    /// True if the device holds frames back whose time has come: it does not wake anybody for them.
    pub fn arrived(&self) -> bool {
        self.core.device.next_due().is_some_and(|due| due <= self.core.now)
    }

    /// It is `now`: timers run out, idle flows are forgotten, those that wait for their turn get it.
    pub fn advance(&mut self, now: Time) {
        self.core.now = self.core.now.max(now);
        self.core.device.advance(self.core.now);
        while let Some(id) = self.flows.expired(self.core.now) {
            self.expire(id);
        }
        if self.core.now >= self.swept + SWEEP {
            self.swept = self.core.now;
            self.sweep();
        }
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else { break };
            let ready = Ready { read: true, ..Ready::default() };
            self.flow_ready(id, ready);
        }
        for index in std::mem::take(&mut self.waiting) {
            self.forward_ready(index);
        }
    }

    /// Takes up to a batch of frames from the device and settles what they call for; how many there were.
    pub fn receive(&mut self) -> std::io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.rx);
        let mut count = 0;
        let mut result = Ok(());
        while count < BATCH {
            match self.core.device.recv(&mut buffer) {
                Ok(Some(len)) => self.frame(buffer.get(..len).unwrap_or(&[])),
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            count += 1;
        }
        self.rx = buffer;
        self.settle();
        result.map(|()| count)
    }

    /// Does what the batch's end calls for: one send and one acknowledgement for each flow that was touched.
    pub fn settle(&mut self) {
        self.flush_run();
        let mut dirty = std::mem::take(&mut self.core.dirty);
        for id in dirty.drain(..) {
            self.with_tcp(id, tcp::Tcb::settle);
        }
        self.core.dirty = dirty;
    }

    /// What epoll reports about the socket watched with `token`.
    pub fn host_event(&mut self, token: u64, ready: Ready) {
        match forward::from_token(token) {
            Some(index) => self.forward_ready(index),
            None if splice::is_inner(token) => {
                self.spliced_ready(Id::from_token(splice::outer(token)), ready, true);
            }
            None => self.flow_ready(Id::from_token(token), ready),
        }
    }

    fn flow_ready(&mut self, id: Id, ready: Ready) {
        let now = self.core.now;
        match self.flows.get(id) {
            Some((_, Flow::Tcp(_))) => self.with_tcp(id, |tcb, core, key| tcb.host_ready(core, key, ready)),
            Some((key, Flow::Udp(assoc))) => {
                let key = *key;
                assoc.host_ready(&mut self.core, &key, ready);
                if assoc.more {
                    self.turns.push_back(id);
                }
                self.after_dns(id);
            }
            Some((key, Flow::Ping(ping))) => ping.host_ready(&mut self.core, key, ready),
            Some((_, Flow::Spliced(_))) => return self.spliced_ready(id, ready, false),
            None => return,
        }
        self.flows.touch(id, now);
    }

    /// Lets a connection act and does the bookkeeping afterwards.
    pub(super) fn with_tcp(
        &mut self,
        id: Id,
        act: impl FnOnce(&mut tcp::Tcb, &mut Core<H, D>, &Key) -> tcp::Fate,
    ) {
        let Some((key, Flow::Tcp(tcb))) = self.flows.get(id) else { return };
        let (was_half_open, sock) = (tcb.half_open(), tcb.sock);
        let fate = act(tcb, &mut self.core, key);
        let gone = fate == tcp::Fate::Gone;
        if was_half_open && (gone || !tcb.half_open()) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        if gone {
            self.forget(id);
            return;
        }
        if tcb.sock != sock {
            self.core.host.watch(tcb.sock, id.token());
        }
        let (deadline, turn) = (tcb.deadline(), tcb.wants_turn());
        if deadline != NEVER {
            self.flows.arm(id, deadline);
        }
        if turn && !self.turns.contains(&id) {
            self.turns.push_back(id);
        }
    }

    fn expire(&mut self, id: Id) {
        let now = self.core.now;
        match self.flows.get(id) {
            Some((_, Flow::Tcp(tcb))) => {
                if tcb.deadline() <= now {
                    self.with_tcp(id, tcp::Tcb::expired);
                } else {
                    let deadline = tcb.deadline();
                    if deadline != NEVER {
                        self.flows.arm(id, deadline);
                    }
                }
            }
            Some((key, Flow::Udp(udp::Assoc { kind: udp::Kind::Dns(relay), .. }))) => {
                relay.expired(&mut self.core, key);
                self.after_dns(id);
            }
            Some((_, Flow::Spliced(_))) => self.unanswered(id),
            _ => {}
        }
    }

    /// Forgets what has been silent for too long, and asks silent guests whether they are there.
    fn sweep(&mut self) {
        let (now, keepalive) = (self.core.now, self.core.config.limits.keepalive);
        let mut old = Vec::new();
        for (id, _, flow, used) in self.flows.iter() {
            let patience = match flow {
                Flow::Tcp(_) | Flow::Spliced(_) => keepalive,
                Flow::Udp(assoc) => assoc.patience(),
                Flow::Ping(_) => icmp::PATIENCE,
            };
            if now.saturating_sub(used) >= patience {
                old.push(id);
            }
        }
        for id in old {
            if let Some((_, Flow::Tcp(_))) = self.flows.get(id) {
                self.with_tcp(id, tcp::Tcb::probe_life);
                self.flows.touch(id, now);
            } else if let Some((_, Flow::Spliced(spliced))) = self.flows.get(id) {
                spliced.silent(&mut self.core);
                self.flows.touch(id, now);
            } else {
                self.remove(id);
            }
        }
    }

    /// Makes sure that one more flow is allowed.
    pub(super) fn make_room(&mut self) {
        let beside = self.splicing.as_ref().map_or(0, splice::Splicing::beside);
        if self.flows.len() + beside >= self.core.config.limits.flows {
            self.shed();
        }
    }

    /// Gives up the flows that have been idle longest.
    pub(super) fn shed(&mut self) {
        for id in self.flows.idlest() {
            self.core.stats.shed += 1;
            self.remove(id);
        }
    }

    /// Takes a flow whose end has come out of the table.
    pub(super) fn forget(&mut self, id: Id) {
        let Some((key, flow)) = self.flows.remove(id) else { return };
        let Traffic { sent, received, .. } = flow.traffic();
        self.core.tell(|| format!("closed {} {sent} {received}", named(&key)));
    }

    /// A flow has begun.
    pub(super) fn begun(&mut self, key: &Key) {
        self.core.tell(|| format!("opened {}", named(key)));
    }

    /// The policy has refused a flow.
    pub(super) fn refused(&mut self, key: &Key, why: Refusal) {
        self.core.tell(|| format!("refused {} {}", named(key), why.name()));
    }

    /// Takes a flow out and closes what it has.
    pub(super) fn remove(&mut self, id: Id) {
        match self.flows.get(id) {
            Some((_, Flow::Tcp(_))) => self.with_tcp(id, tcp::Tcb::abort),
            Some((_, Flow::Udp(assoc))) => {
                assoc.close(&mut self.core);
                self.forget(id);
            }
            Some((_, Flow::Ping(ping))) => {
                ping.close(&mut self.core);
                self.forget(id);
            }
            Some((_, Flow::Spliced(_))) => self.end_spliced(id, true),
            None => {}
        }
    }
}
