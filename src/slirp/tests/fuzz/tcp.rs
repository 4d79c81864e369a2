//! One connection with a guest that lies, forgets, repeats and falls silent, and a host that pauses; then both
//! behave, and everything that is still missing must arrive, in both directions.
//!
//! What holds at every step: the host has got a prefix of what the guest's stream is; a segment carries what the
//! host's stream has at its place, within the window that the guest offered; acknowledgements and the window's right
//! edge never move back.

use super::super::*;
use super::{Random, run};
use crate::slirp::tcp::seq;
use crate::slirp::wire::tcp::{FIN, PSH, RST, Sack, URG};
use std::ops::Range;

/// A stream's byte at a place.
fn byte(salt: u32, at: usize) -> u8 {
    ((at as u32).wrapping_add(salt).wrapping_mul(2_654_435_761) >> 13) as u8
}

fn stretch(salt: u32, from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|at| byte(salt, at)).collect()
}

struct Guest {
    conn: Conn,
    scale: u8,
    /// How the engine scales its window.
    theirs: u8,
    sack: bool,
    /// First sequence numbers of the streams.
    up: u32,
    down: u32,
    /// Length of the guest's stream, and how much of it the engine has acknowledged (with the FIN).
    len: usize,
    acked: usize,
    /// How much of it the host has got.
    heard: usize,
    /// The most that was ever sent, as a sequence number.
    sent: u32,
    /// What has arrived of the host's stream.
    got: Vec<bool>,
    next: usize,
    ended: bool,
    /// The furthest that the guest has allowed, and the engine.
    allowed: u32,
    edge: u32,
    reset: bool,
}

impl Guest {
    fn open(random: &mut Random, net: &mut Net, len: usize) -> Self {
        let scale = random.pick(&[None, Some(0), Some(7), Some(14)]);
        let sack = random.once_in(2);
        let mss = random.pick(&[Some(1460), Some(100), Some(65495), None]);
        let options = Tcp { mss, window_scale: scale, sack_permitted: sack, ..Tcp::default() };
        let conn = net.open_with(GUEST_PORT, options);
        let theirs = scale.map_or(0, |_| crate::slirp::tcp::SCALE);
        let scale = scale.unwrap_or(0);
        let allowed = conn.ack.wrapping_add(65535.max(1000 << scale));
        Self {
            conn,
            scale,
            theirs,
            sack,
            up: conn.seq,
            down: conn.ack,
            len,
            acked: 0,
            heard: 0,
            sent: conn.seq,
            got: Vec::new(),
            next: 0,
            ended: false,
            allowed,
            edge: conn.seq,
            reset: false,
        }
    }

    /// Acknowledgement of what has arrived without a hole.
    fn ack(&self) -> u32 {
        self.down.wrapping_add(self.next as u32).wrapping_add(u32::from(self.ended))
    }

    /// Sends that part of the stream, with the FIN if it reaches the end and `fin`; `told` has acknowledgement, window
    /// and ranges.
    fn say(&mut self, net: &mut Net, part: Range<usize>, fin: bool, told: Tcp) {
        let Range { start: from, end: to } = part;
        let fin = fin && to == self.len;
        let flags = ACK | if fin { FIN } else { 0 };
        let at = self.up.wrapping_add(from as u32);
        let end = self.up.wrapping_add(to as u32).wrapping_add(u32::from(fin));
        self.sent = seq::later(self.sent, end);
        self.allowed = seq::later(self.allowed, told.ack.wrapping_add(u32::from(told.window) << self.scale));
        let header = Tcp { src_port: self.conn.port, seq: at, flags, ..told };
        net.segment_to(self.conn.to, header, &stretch(1, from, to));
    }

    /// Looks at what the engine has sent; with `deaf` it is lost on the way.
    fn hear(&mut self, frame: &Frame, deaf: bool) {
        let (tcp, data) = frame.tcp();
        if tcp.flags & RST != 0 {
            self.reset = true;
            return;
        }
        assert_eq!(tcp.flags & SYN, 0);
        let from = tcp.seq.wrapping_sub(self.down) as usize;
        if !data.is_empty() {
            assert!(data == stretch(2, from, from + data.len()), "the host's stream at {from}");
            let end = tcp.seq.wrapping_add(data.len() as u32);
            assert!(!seq::after(end, self.allowed), "within the guest's window");
        }
        assert!(!seq::after(tcp.ack, self.sent), "acknowledged is only what was sent");
        let acked = tcp.ack.wrapping_sub(self.up) as usize;
        assert!(acked >= self.acked, "acknowledgements never move back");
        self.acked = acked;
        let edge = tcp.ack.wrapping_add(u32::from(tcp.window) << self.theirs);
        assert!(!seq::before(edge, self.edge), "the window never shrinks");
        self.edge = edge;
        if deaf {
            return;
        }
        // A probe without data stands before the stream's begin.
        if !data.is_empty() && self.got.len() < from + data.len() {
            self.got.resize(from + data.len(), false);
        }
        self.got.iter_mut().skip(from).take(data.len()).for_each(|b| *b = true);
        while self.got.get(self.next) == Some(&true) {
            self.next += 1;
        }
        if tcp.flags & FIN != 0 && from.wrapping_add(data.len()) == self.next {
            self.ended = true;
        }
    }

    /// Honest ranges behind the first hole, or nonsense.
    fn ranges(&self, random: &mut Random) -> Sack {
        let mut sack = Sack::default();
        if !self.sack {
            return sack;
        }
        let hole = self.got.iter().skip(self.next).position(|b| *b).map(|at| self.next + at);
        if let Some(left) = hole {
            let run = self.got.iter().skip(left).take_while(|b| **b).count();
            sack.push((self.down.wrapping_add(left as u32), self.down.wrapping_add((left + run) as u32)));
        }
        if random.once_in(10) {
            let left = self.down.wrapping_add(random.odd());
            sack.push((left, left.wrapping_add(random.odd())));
        }
        sack
    }
}

fn history(seed: u64) {
    let mut random = Random(seed);
    let mut config = Config::default();
    config.limits.buffered = random.pick(&[64 << 10, 128 << 20]);
    config.limits.window = random.pick(&[20_000, 8_388_480]);
    let bound = config.limits.buffered;
    let mut net = Net::on(config, random.pick(&[Capabilities::ALL, Capabilities::default()]));
    let (up, down) = (random.below(120_000), random.below(200_000));
    let mut guest = Guest::open(&mut random, &mut net, up);
    let sock = guest.conn.sock;
    let mut fed = 0;
    let check = |net: &mut Net, guest: &mut Guest, random: &mut Random, deaf: usize| {
        for frame in net.all() {
            guest.hear(&frame, deaf > 0 && random.once_in(deaf));
        }
        let sent = &net.host().sockets[sock as usize].sent;
        let fresh = sent.get(guest.heard..).expect("nothing is taken back");
        assert!(sent.len() <= up && *fresh == stretch(1, guest.heard, sent.len()), "the guest's stream");
        guest.heard = sent.len();
        assert!(net.engine.core.buffered <= bound);
    };
    for _ in 0..150 {
        match random.below(12) {
            0..=4 => {
                let near = guest.acked.min(up) + random.below(6000);
                let from = near.saturating_sub(random.below(5000)).min(up);
                let most = random.pick(&[2, 1500, 20_000]);
                let to = (from + random.below(most)).min(up);
                let ack = match random.below(8) {
                    0 => guest.ack().wrapping_sub(random.below(3000) as u32),
                    1 => guest.ack().wrapping_add(0x1000_0000),
                    _ => guest.ack(),
                };
                let future = seq::after(ack, guest.ack());
                let window = random.pick(&[0, 1, 100, 3000, 65535]);
                let sack = guest.ranges(&mut random);
                let allowed = guest.allowed;
                guest.say(&mut net, from..to, random.once_in(2), Tcp { ack, window, sack, ..Tcp::default() });
                if future {
                    guest.allowed = allowed;
                }
            }
            5 => {
                // Resets and SYNs that are not where they should be, urgent data, nothing at all.
                let off = 1 + random.below(100_000) as u32;
                let flags = random.pick(&[RST, SYN, SYN | ACK, ACK | URG | PSH, 0]);
                // A guest that acknowledges from a place of its stream which it never reaches confuses but itself.
                let off = if flags & URG != 0 { 0 } else { off };
                let header = Tcp {
                    seq: guest.up.wrapping_add(guest.acked as u32).wrapping_add(off),
                    ack: guest.ack(),
                    ..guest.conn.header(flags)
                };
                let allowed = header.ack.wrapping_add(u32::from(header.window) << guest.scale);
                guest.allowed = seq::later(guest.allowed, allowed);
                net.segment_to(guest.conn.to, header, b"");
            }
            6 | 7 if fed < down => {
                let to = (fed + 1 + random.below(30_000)).min(down);
                net.host().feed(sock, &stretch(2, fed, to));
                fed = to;
                net.step();
            }
            8 => {
                let room = random.below(20_000);
                net.host().make_room(sock, room);
                net.step();
            }
            9 => net.wait(random.next() % (SEC / 2)),
            10 => net.wait(random.next() % (3 * SEC)),
            _ => net.step(),
        }
        check(&mut net, &mut guest, &mut random, 4);
        assert!(!guest.reset, "nothing was wrong enough");
    }
    // From here on everybody does what is right.
    net.host().make_room(sock, usize::MAX / 2);
    net.host().feed(sock, &stretch(2, fed, down));
    net.host().end(sock);
    net.step();
    let began = net.now;
    let mut patience = 0;
    while net.host().sockets[sock as usize].closed.is_none() {
        check(&mut net, &mut guest, &mut random, 0);
        assert!(
            net.now - began < 600 * SEC,
            "it goes on: {} of {up} up, {} of {down} down, {:?}",
            guest.acked,
            guest.next,
            net.engine.flows.iter().map(|(_, _, flow, _)| flow).collect::<Vec<_>>()
        );
        // Sends as far as the window goes; again from what is acknowledged when nothing has moved for a while.
        let before = (guest.acked, guest.next);
        let from = guest.acked.min(up);
        let room = guest.edge.wrapping_sub(guest.up.wrapping_add(from as u32)) as usize;
        let to = (from + room.min(10_000)).min(up);
        if patience == 0 {
            let sack = guest.ranges(&mut Random(1));
            let told = Tcp { ack: guest.ack(), window: 65535, sack, ..Tcp::default() };
            guest.say(&mut net, from..to, true, told);
        } else {
            let (at, ack) = (guest.acked.min(up + 1), guest.ack());
            guest.allowed = seq::later(guest.allowed, ack.wrapping_add(65535 << guest.scale));
            let seq = guest.up.wrapping_add(at as u32);
            net.segment_to(guest.conn.to, Tcp { seq, ack, window: 65535, ..guest.conn.header(ACK) }, b"");
        }
        check(&mut net, &mut guest, &mut random, 0);
        patience = if (guest.acked, guest.next) == before { (patience + 1) % 5 } else { 0 };
        net.wait(SEC / 10);
    }
    check(&mut net, &mut guest, &mut random, 0);
    let socket = &net.host().sockets[sock as usize];
    assert_eq!((socket.closed, socket.shut, socket.sent.len()), (Some(false), true, up));
    assert_eq!((guest.next, guest.ended, guest.reset), (down, true, false));
    net.wait(10 * SEC);
    assert_eq!((net.engine.flow_count(), net.engine.core.buffered), (0, 0));
}

#[test]
fn tcp() {
    run(history);
}
