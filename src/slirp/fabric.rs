//! A network of nodes: the switch, the links to it, and what is done to frames on their way.
//!
//! A frame passes three directions of links, each of which may be impaired: out of its node, from that node to the
//! other (what two nodes in particular have between them), and into the other node. Where nothing is impaired it is
//! passed on at once and whole, from the buffer that it was read into.
//!
//! ```text
//!   a ── out of a ──► switch ── from a to b ──► into b ──► b
//!                        └───── from a to c ──► into c ──► c
//! ```
//!
//! Frames on the wire are what is counted, and what is lost and delayed: a large one (`gso_size`) counts for the
//! frames that it stands for, and is cut into them before it enters an impaired direction.
//!
//! A node keeps its number and its links for as long as the network lives, so that one which ends and comes again
//! under its name finds its links as they were. Driven from outside as the engine is: [`Fabric::receive`] takes a
//! frame, [`Fabric::advance`] the time.

use super::device::Capabilities;
use super::link::{self, Fates, Impairment, Link};
use super::segment;
use super::switch::{Switch, Way};
use super::time::Time;
use super::wire::ethernet::Ethernet;
use super::wire::vnet::{self, VnetHeader};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write;

/// A node's number, which is its port's.
pub type Node = super::switch::Port;
/// The most nodes.
pub const NODES: usize = 1024;
/// Bytes of frames under way; more are lost, as on a wire too long for its switch.
const UNDER_WAY: usize = 256 << 20;

/// Where frames leave the network.
pub trait Ports {
    /// What `node` takes undone.
    fn takes(&self, node: Node) -> Capabilities;

    /// Hands a frame with its header to `node`; false if there was no room.
    fn send(&mut self, node: Node, frame: &[u8]) -> bool;

    /// A node has sent a frame, or received it.
    fn seen(&mut self, _node: Node, _name: &str, _received: bool, _frame: &[u8]) {}
}

/// Frames on the wire, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// Bytes, from the Ethernet header on; those of a large frame once.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, frames: u64, bytes: &[u8]) {
        self.frames += frames;
        self.bytes += bytes.len().saturating_sub(vnet::LEN) as u64;
    }
}

/// A node.
#[derive(Debug)]
struct Member {
    name: String,
    up: bool,
    sent: Count,
    received: Count,
    /// Frames that are none.
    malformed: u64,
    /// Frames that its interface had no room for.
    full: u64,
    out: Option<Box<Link>>,
    into: Option<Box<Link>>,
}

/// What lies between two nodes, in one direction.
#[derive(Debug, Default)]
struct Pair {
    cut: bool,
    passed: Count,
    severed: u64,
    link: Option<Box<Link>>,
}

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// From a node to the switch.
    Out(Node),
    /// Between two nodes.
    Between(Node, Node),
    /// To the second node, which the first sent to.
    Into(Node, Node),
}

/// A frame on a wire, soonest first; the counter keeps the order of equals. Without a frame it is the time at which
/// the direction gives up what it holds back.
type Flight = Reverse<(Time, u64, Hop, Option<Vec<u8>>)>;

/// The network.
#[derive(Debug)]
pub struct Fabric {
    seed: u64,
    switch: Switch,
    members: Vec<Member>,
    /// By sender and receiver.
    pairs: Vec<Vec<Pair>>,
    wire: BinaryHeap<Flight>,
    /// Bytes in `wire`.
    under_way: usize,
    count: u64,
    /// Frames lost because too much was under way.
    crowded: u64,
}

fn find<'a>(members: &'a mut [Member], pairs: &'a mut [Vec<Pair>], hop: Hop) -> &'a mut Option<Box<Link>> {
    match hop {
        Hop::Out(from) => &mut members[usize::from(from)].out,
        Hop::Between(from, to) => &mut pairs[usize::from(from)][usize::from(to)].link,
        Hop::Into(_, to) => &mut members[usize::from(to)].into,
    }
}

impl Fabric {
    /// A network whose chances are those of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            switch: Switch::default(),
            members: Vec::new(),
            pairs: Vec::new(),
            wire: BinaryHeap::new(),
            under_way: 0,
            count: 0,
            crowded: 0,
        }
    }

    /// The node of this name.
    pub fn find(&self, name: &str) -> Option<Node> {
        self.members.iter().position(|m| m.name == name).map(|at| at as Node)
    }

    /// A node's name.
    pub fn name(&self, node: Node) -> &str {
        self.members.get(usize::from(node)).map_or("", |member| &member.name)
    }

    /// Brings the node of this name up; `None` if it is up already, or there are too many.
    pub fn join(&mut self, name: &str) -> Option<Node> {
        if let Some(node) = self.find(name) {
            let member = self.members.get_mut(usize::from(node))?;
            return (!std::mem::replace(&mut member.up, true)).then_some(node);
        }
        if self.members.len() >= NODES {
            return None;
        }
        self.members.push(Member {
            name: name.into(),
            up: true,
            sent: Count::default(),
            received: Count::default(),
            malformed: 0,
            full: 0,
            out: None,
            into: None,
        });
        let count = self.members.len();
        self.pairs.push(Vec::new());
        for row in &mut self.pairs {
            row.resize_with(count, Pair::default);
        }
        Some((count - 1) as Node)
    }

    /// Takes a node down.
    pub fn leave(&mut self, node: Node) {
        if let Some(member) = self.members.get_mut(usize::from(node)) {
            member.up = false;
        }
        self.switch.forget(node);
    }

    /// Sets what `hop` does to frames. Its chances go on where they were.
    pub fn impair(&mut self, hop: Hop, how: Impairment) {
        let name = |node: Node| self.members[usize::from(node)].name.as_str();
        let key = match hop {
            Hop::Out(from) => link::key(self.seed, &format!("{}>", name(from))),
            Hop::Between(from, to) => link::key(self.seed, &format!("{}>{}", name(from), name(to))),
            Hop::Into(_, to) => link::key(self.seed, &format!(">{}", name(to))),
        };
        let link = find(&mut self.members, &mut self.pairs, hop);
        match link {
            Some(link) => link.how = how,
            None => *link = Some(Box::new(Link::new(key, how))),
        }
    }

    /// Cuts or heals the way from one node to another. What is under way is lost.
    pub fn cut(&mut self, from: Node, to: Node, cut: bool) {
        self.pairs[usize::from(from)][usize::from(to)].cut = cut;
    }

    /// Heals every cut.
    pub fn heal(&mut self) {
        for pair in self.pairs.iter_mut().flatten() {
            pair.cut = false;
        }
    }

    /// A frame of `from` with its header.
    pub fn receive(&mut self, now: Time, from: Node, frame: &[u8], ports: &mut impl Ports) {
        let member = &mut self.members[usize::from(from)];
        if !sound(frame) {
            member.malformed += 1;
            return;
        }
        member.sent.add(segment::count(frame), frame);
        ports.seen(from, &member.name, false, frame);
        self.enter(now, Hop::Out(from), frame, ports);
        if !self.wire.is_empty() {
            self.advance(now, ports);
        }
    }

    /// When [`Self::advance`] must be called.
    pub fn next_due(&self) -> Option<Time> {
        self.wire.peek().map(|Reverse((due, ..))| *due)
    }

    /// It is `now`: frames whose time has come arrive.
    pub fn advance(&mut self, now: Time, ports: &mut impl Ports) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, _, hop, frame))) = self.wire.pop() else { return };
            let frame = if let Some(frame) = frame {
                self.under_way -= frame.len();
                Some(frame)
            } else {
                find(&mut self.members, &mut self.pairs, hop).as_mut().and_then(|link| link.release(now))
            };
            if let Some(frame) = frame {
                self.passed(now, hop, &frame, ports);
            }
        }
    }

    /// A frame enters a direction.
    fn enter(&mut self, now: Time, hop: Hop, frame: &[u8], ports: &mut impl Ports) {
        let Self { members, pairs, wire, under_way, count, crowded, .. } = self;
        let link = find(members, pairs, hop).as_mut().filter(|link| !link.how.is_none());
        let Some(link) = link else { return self.passed(now, hop, frame, ports) };
        let mut push = |due, frame: Option<Vec<u8>>| {
            let len = frame.as_ref().map_or(0, Vec::len);
            if *under_way + len > UNDER_WAY {
                *crowded += 1;
                return;
            }
            *under_way += len;
            *count += 1;
            wire.push(Reverse((due, *count, hop, frame)));
        };
        let whole = segment::cut(frame, |piece| {
            if let Some(due) = link.pass(now, piece, |due, frame| push(due, Some(frame))) {
                push(due, None);
            }
        });
        if !whole {
            self.members[usize::from(match hop {
                Hop::Out(from) | Hop::Between(from, _) | Hop::Into(from, _) => from,
            })]
            .malformed += 1;
        }
    }

    /// A frame has come to the end of a direction.
    fn passed(&mut self, now: Time, hop: Hop, frame: &[u8], ports: &mut impl Ports) {
        match hop {
            Hop::Out(from) => {
                let Some((eth, _)) = frame.get(vnet::LEN..).and_then(Ethernet::parse) else { return };
                if !self.members[usize::from(from)].up {
                    return;
                }
                self.switch.learn(now, from, eth.src);
                match self.switch.way(now, from, eth.dst) {
                    Way::Port(to) => self.toward(now, from, to, frame, ports),
                    Way::Flood => {
                        for to in (0..self.members.len() as Node).filter(|to| *to != from) {
                            self.toward(now, from, to, frame, ports);
                        }
                    }
                    Way::Back => {}
                }
            }
            Hop::Between(from, to) => self.enter(now, Hop::Into(from, to), frame, ports),
            Hop::Into(from, to) => self.deliver(from, to, frame, ports),
        }
    }

    fn toward(&mut self, now: Time, from: Node, to: Node, frame: &[u8], ports: &mut impl Ports) {
        if self.members[usize::from(to)].up && !self.severed(from, to, frame) {
            self.enter(now, Hop::Between(from, to), frame, ports);
        }
    }

    /// Whether the way is cut; the frame is counted as lost to that.
    fn severed(&mut self, from: Node, to: Node, frame: &[u8]) -> bool {
        let pair = &mut self.pairs[usize::from(from)][usize::from(to)];
        if pair.cut {
            pair.severed += segment::count(frame);
        }
        pair.cut
    }

    fn deliver(&mut self, from: Node, to: Node, frame: &[u8], ports: &mut impl Ports) {
        if !self.members[usize::from(to)].up || self.severed(from, to, frame) {
            return;
        }
        let takes = ports.takes(to);
        let Some((meta, _)) = VnetHeader::parse(frame) else { return };
        let large = match meta.gso_type & !vnet::GSO_ECN {
            vnet::GSO_NONE => false,
            vnet::GSO_UDP_L4 => !takes.uso,
            _ => !takes.tso,
        };
        let undone = meta.flags & vnet::NEEDS_CSUM != 0 && !takes.checksum;
        if !large && !undone {
            return self.hand(from, to, frame, ports);
        }
        let mut pieces = Vec::new();
        if segment::cut(frame, |piece| pieces.push(piece)) {
            for piece in pieces {
                self.hand(from, to, &piece, ports);
            }
        } else {
            self.members[usize::from(from)].malformed += 1;
        }
    }

    fn hand(&mut self, from: Node, to: Node, frame: &[u8], ports: &mut impl Ports) {
        let member = &mut self.members[usize::from(to)];
        let frames = segment::count(frame);
        if !ports.send(to, frame) {
            member.full += frames;
            return;
        }
        member.received.add(frames, frame);
        self.pairs[usize::from(from)][usize::from(to)].passed.add(frames, frame);
        ports.seen(to, &member.name, true, frame);
    }

    /// The counters of the network and of each node, a node a line, up to `most` bytes.
    pub fn lines(&self, most: usize) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "network {} {} {} {}",
            self.switch.stations(),
            self.wire.len(),
            self.under_way,
            self.crowded
        );
        for member in self.members.iter().filter(|m| m.up) {
            let Member { name, sent, received, malformed, full, .. } = member;
            let line = format!(
                "node {name} {} {} {} {} {malformed} {full}{}{}\n",
                sent.frames,
                sent.bytes,
                received.frames,
                received.bytes,
                fates(member.out.as_deref()),
                fates(member.into.as_deref()),
            );
            if out.len() + line.len() > most {
                break;
            }
            out.push_str(&line);
        }
        out
    }

    /// What passed in a direction: frames, bytes, lost to cuts, and what the link did.
    pub fn hop_line(&self, hop: Hop) -> String {
        let (passed, severed, link) = match hop {
            Hop::Out(node) => (self.members[usize::from(node)].sent, 0, &self.members[usize::from(node)].out),
            Hop::Into(_, node) => {
                (self.members[usize::from(node)].received, 0, &self.members[usize::from(node)].into)
            }
            Hop::Between(from, to) => {
                let pair = &self.pairs[usize::from(from)][usize::from(to)];
                (pair.passed, pair.severed, &pair.link)
            }
        };
        format!("{} {} {severed}{}", passed.frames, passed.bytes, fates(link.as_deref()))
    }
}

fn fates(link: Option<&Link>) -> String {
    let Fates { lost, overflowed, duplicated, corrupted, reordered } =
        link.map_or_else(Fates::default, |l| l.fates);
    format!(" {lost} {overflowed} {duplicated} {corrupted} {reordered}")
}

/// Whether this is a frame at all, and its header does not lie about it.
fn sound(frame: &[u8]) -> bool {
    VnetHeader::parse(frame).is_some_and(|(meta, body)| {
        meta.fits(body.len()) && Ethernet::parse(body).is_some_and(|(eth, _)| !eth.src.is_multicast())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::link::CERTAIN;
    use crate::slirp::segment::tests::large;
    use crate::slirp::wire::ethernet::{IPV4, Mac};

    /// Ports that remember what they were handed.
    struct Seen(Vec<(Node, Vec<u8>)>, Capabilities);

    impl Ports for Seen {
        fn takes(&self, _: Node) -> Capabilities {
            self.1
        }

        fn send(&mut self, node: Node, frame: &[u8]) -> bool {
            self.0.push((node, frame.to_vec()));
            true
        }
    }

    fn seen() -> Seen {
        Seen(Vec::new(), Capabilities::ALL)
    }

    fn mac(node: Node) -> Mac {
        Mac([2, 0, 0, 0, 0, node as u8])
    }

    fn frame(from: Node, to: Mac, mark: u8) -> Vec<u8> {
        let mut out = vec![0; vnet::LEN];
        out.extend_from_slice(&Ethernet { dst: to, src: mac(from), kind: IPV4 }.emit());
        out.resize(vnet::LEN + 60, mark);
        out
    }

    fn network(names: &[&str]) -> Fabric {
        let mut fabric = Fabric::new(7);
        for name in names {
            fabric.join(name).unwrap();
        }
        fabric
    }

    #[test]
    fn unknown_goes_to_all_and_known_to_one() {
        let mut fabric = network(&["a", "b", "c"]);
        let mut ports = seen();
        fabric.receive(0, 0, &frame(0, mac(1), 1), &mut ports);
        assert_eq!(ports.0.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2]);
        ports.0.clear();
        fabric.receive(1, 1, &frame(1, mac(0), 2), &mut ports);
        fabric.receive(2, 0, &frame(0, mac(1), 3), &mut ports);
        assert_eq!(ports.0.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1]);
        fabric.leave(1);
        ports.0.clear();
        fabric.receive(3, 0, &frame(0, mac(1), 3), &mut ports);
        assert_eq!(ports.0.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2], "forgotten, so all are asked");
        assert_eq!(fabric.join("b"), Some(1), "under its old number");
        assert_eq!(fabric.join("b"), None);
    }

    #[test]
    fn cuts_hold_in_one_direction_and_for_what_is_under_way() {
        let mut fabric = network(&["a", "b"]);
        let mut ports = seen();
        fabric.impair(Hop::Between(0, 1), Impairment { delay: 100, ..Impairment::default() });
        fabric.receive(0, 0, &frame(0, mac(1), 1), &mut ports);
        fabric.cut(0, 1, true);
        fabric.advance(100, &mut ports);
        fabric.receive(200, 0, &frame(0, mac(1), 2), &mut ports);
        assert!(ports.0.is_empty());
        fabric.receive(200, 1, &frame(1, mac(0), 3), &mut ports);
        assert_eq!(ports.0.len(), 1, "the other direction is whole");
        fabric.heal();
        fabric.receive(300, 0, &frame(0, mac(1), 4), &mut ports);
        assert_eq!((ports.0.len(), fabric.next_due()), (1, Some(400)));
        fabric.advance(400, &mut ports);
        assert_eq!(ports.0.len(), 2);
        assert!(
            fabric.hop_line(Hop::Between(0, 1)).starts_with("1 60 2 "),
            "{}",
            fabric.hop_line(Hop::Between(0, 1))
        );
    }

    #[test]
    fn delays_of_all_three_directions_add_up() {
        let mut fabric = network(&["a", "b"]);
        let mut ports = seen();
        for (hop, delay) in [(Hop::Out(0), 10), (Hop::Between(0, 1), 20), (Hop::Into(0, 1), 30)] {
            fabric.impair(hop, Impairment { delay, ..Impairment::default() });
        }
        fabric.receive(5, 0, &frame(0, mac(1), 1), &mut ports);
        for due in [15, 35, 65] {
            assert!(ports.0.is_empty());
            assert_eq!(fabric.next_due(), Some(due));
            fabric.advance(due, &mut ports);
        }
        assert_eq!((ports.0.len(), fabric.next_due(), fabric.under_way), (1, None, 0));
        fabric.impair(Hop::Out(0), Impairment::default());
        fabric.receive(100, 0, &frame(0, mac(1), 1), &mut ports);
        assert_eq!(fabric.next_due(), Some(120), "cleared at run time");
    }

    #[test]
    fn large_frames_are_cut_for_bad_links_and_for_ports_that_do_not_take_them() {
        let data = vec![1; 10_000];
        let mut fabric = network(&["a", "b"]);
        let mut ports = seen();
        fabric.receive(0, 0, &large(true, &data, 1000), &mut ports);
        assert_eq!(ports.0.len(), 1);
        assert!(fabric.hop_line(Hop::Between(0, 1)).starts_with("10 "), "ten frames on the wire");
        ports.1.tso = false;
        fabric.receive(0, 0, &large(true, &data, 1000), &mut ports);
        assert_eq!(ports.0.len(), 11);
        ports.1.tso = true;
        fabric.impair(Hop::Into(0, 1), Impairment { loss: CERTAIN / 2, ..Impairment::default() });
        fabric.receive(0, 0, &large(true, &data, 1000), &mut ports);
        assert!((12..21).contains(&ports.0.len()), "{}", ports.0.len());
    }

    #[test]
    fn hostile_frames_are_counted_and_harm_nobody() {
        let mut fabric = network(&["a", "b", "c"]);
        let bad = Impairment {
            delay: 3,
            jitter: 2,
            loss: CERTAIN / 8,
            corrupt: CERTAIN / 2,
            ..Impairment::default()
        };
        fabric.impair(Hop::Out(0), Impairment { reorder: CERTAIN / 3, duplicate: CERTAIN / 3, ..bad });
        fabric.impair(Hop::Between(1, 2), Impairment { rate: 1_000_000, queue: 3, ..bad });
        let mut ports = Seen(Vec::new(), Capabilities { tso: false, ..Capabilities::ALL });
        let seeds = [frame(0, mac(1), 1), large(true, &[1; 4000], 500), large(false, &[2; 4000], 1)];
        let mut state = 1;
        for now in 0..6000 {
            let mut frame = seeds[link::next(&mut state) as usize % seeds.len()].clone();
            for _ in 0..link::next(&mut state) % 6 {
                let at = link::next(&mut state) as usize % frame.len().min(120);
                frame[at] = link::next(&mut state) as u8;
            }
            frame.truncate(link::next(&mut state) as usize % (frame.len() + 1));
            if frame.len() > 21 {
                frame[16] &= 0xfe;
            }
            let from = (link::next(&mut state) % 3) as Node;
            match link::next(&mut state) % 64 {
                0 => fabric.leave(from),
                1 => drop(fabric.join(["a", "b", "c"][usize::from(from)])),
                2 => fabric.cut(from, (from + 1) % 3, true),
                3 => fabric.heal(),
                _ => {}
            }
            fabric.receive(now, from, &frame, &mut ports);
            fabric.advance(now, &mut ports);
            ports.0.clear();
        }
        fabric.advance(10_000_000, &mut ports);
        assert_eq!((fabric.wire.len(), fabric.under_way), (0, 0), "nothing is held for ever");
        assert!(fabric.lines(60_000).lines().count() <= 4);
        assert!(fabric.members.iter().all(|m| m.malformed > 0));
    }

    #[test]
    fn there_is_an_end_to_names() {
        let mut fabric = Fabric::new(0);
        for n in 0..NODES {
            assert!(fabric.join(&format!("n{n}")).is_some());
        }
        assert_eq!(fabric.join("one more"), None);
    }
}
