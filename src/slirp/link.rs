//! One direction of a link, and how badly it treats what passes.
//!
//! In the order of a real one: the sender's queue (rate and its length), the wire (loss, damage), the way (delay,
//! jitter, duplicates, order). What happens to a frame depends on nothing but the seed, the direction, and how many
//! frames of its class went before it: neither on the time nor on other links. A class is an `EtherType` with an IP
//! protocol, so that the neighbour discovery which a kernel sends when it likes changes nothing for the datagrams
//! of a test.
//!
//! Jitter alone never reorders: a frame is not delivered before its predecessor. Order is what `reorder` changes: a
//! frame so chosen is held back until the next one has passed, or for [`HOLD`].

use super::segment;
use super::time::{MS, Time};
use super::wire::{ethernet, ip, vnet};
use std::collections::VecDeque;

/// How long a frame that is to be overtaken waits for one that overtakes it.
pub const HOLD: Time = 20 * MS;
/// Classes of frames with a stream of chances each.
const CLASSES: usize = 8;
/// What a certain chance is.
pub const CERTAIN: u32 = 1_000_000_000;

/// How bad the direction is. Chances are per [`CERTAIN`] frames; spans in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impairment {
    /// Every frame arrives this much later.
    pub delay: Time,
    /// And up to this much earlier or later than that.
    pub jitter: Time,
    /// Frames that vanish.
    pub loss: u32,
    /// Frames that arrive twice.
    pub duplicate: u32,
    /// Frames that the next one overtakes.
    pub reorder: u32,
    /// Frames with one bit flipped.
    pub corrupt: u32,
    /// Bits a second; 0 for no limit.
    pub rate: u64,
    /// Frames that may wait for the rate.
    pub queue: usize,
}

impl Default for Impairment {
    fn default() -> Self {
        Self { delay: 0, jitter: 0, loss: 0, duplicate: 0, reorder: 0, corrupt: 0, rate: 0, queue: 1000 }
    }
}

impl Impairment {
    /// True if it changes nothing.
    pub fn is_none(&self) -> bool {
        Self { queue: 1000, ..*self } == Self::default()
    }

    /// The fields in their order, as words.
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        fn next<'a, T: std::str::FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
            words.next()?.parse().ok()
        }
        let found = Self {
            delay: next(&mut words)?,
            jitter: next(&mut words)?,
            loss: next(&mut words)?,
            duplicate: next(&mut words)?,
            reorder: next(&mut words)?,
            corrupt: next(&mut words)?,
            rate: next(&mut words)?,
            queue: next(&mut words)?,
        };
        words.next().is_none().then_some(found)
    }
}

/// What has become of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fates {
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the queue was full.
    pub overflowed: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Overtaken.
    pub reordered: u64,
}

/// The direction.
#[derive(Debug)]
pub struct Link {
    /// How bad it is.
    pub how: Impairment,
    /// What it did.
    pub fates: Fates,
    key: u64,
    seen: [u64; CLASSES],
    /// When the sender's card is free again, in nanoseconds.
    free: u64,
    /// When those that wait for the card will have left it.
    leaving: VecDeque<u64>,
    /// When the last frame arrives.
    last: Time,
    /// One that is to be overtaken, and when it goes all the same.
    held: Option<(Time, Vec<u8>)>,
}

/// splitmix64's output function (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next number of a stream: splitmix64.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(GOLDEN);
    mix(*state)
}

/// A stream's key from the network's seed and the direction's name.
pub fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed.wrapping_add(GOLDEN)), |state, byte| {
        mix((state ^ u64::from(byte)).wrapping_add(GOLDEN))
    })
}

/// Which stream of chances a frame (with its `virtio_net_hdr`) takes from.
fn class(bytes: &[u8]) -> usize {
    let byte = |at: usize| bytes.get(vnet::LEN + at).copied().unwrap_or(0);
    match (u16::from_be_bytes([byte(12), byte(13)]), byte(ethernet::LEN + 9), byte(ethernet::LEN + 6)) {
        (ethernet::ARP, ..) => 0,
        (ethernet::IPV4, ip::TCP, _) => 1,
        (ethernet::IPV4, ip::UDP, _) => 2,
        (ethernet::IPV4, ..) => 3,
        (ethernet::IPV6, _, ip::TCP) => 4,
        (ethernet::IPV6, _, ip::UDP) => 5,
        // Echo is a test's; neighbour discovery and multicast reports are the kernel's.
        (ethernet::IPV6, _, ip::ICMPV6) if byte(ethernet::LEN + 40) & 0xfe == 128 => 6,
        _ => 7,
    }
}

impl Link {
    /// A direction with the chances of `key`.
    pub fn new(key: u64, how: Impairment) -> Self {
        Self {
            how,
            fates: Fates::default(),
            key,
            seen: [0; CLASSES],
            free: 0,
            leaving: VecDeque::new(),
            last: 0,
            held: None,
        }
    }

    /// A wire frame sets out at `now`; what arrives of it, and when, is given to `out`. When a frame is held back,
    /// the time at which [`Self::release`] must be called at the latest is returned.
    pub fn pass(
        &mut self,
        now: Time,
        mut frame: Vec<u8>,
        mut out: impl FnMut(Time, Vec<u8>),
    ) -> Option<Time> {
        let class = class(&frame);
        let number = self.seen.get_mut(class).map_or(0, |n| {
            *n += 1;
            *n
        });
        let mut state = self.key ^ mix((class as u64) << 56 | number);
        let mut draw = || next(&mut state);
        // Always all of them, so that a setting which changes at run time leaves the others' fates alone.
        let (loss, twice, damage, swap) = (draw(), draw(), draw(), draw());
        let (bit, jitter) = (draw(), draw());
        let hit = |draw: u64, chance: u32| draw % u64::from(CERTAIN) < u64::from(chance);

        if hit(loss, self.how.loss) {
            self.fates.lost += 1;
            return None;
        }
        let Some(left) = self.transmit(now, &frame) else {
            self.fates.overflowed += 1;
            return None;
        };
        if hit(damage, self.how.corrupt) {
            segment::complete(&mut frame);
            // Not in the Ethernet header: a link has a checksum of its own for that.
            let start = vnet::LEN + ethernet::LEN;
            let body = frame.len().saturating_sub(start).max(1);
            if let Some(byte) = frame.get_mut(start + (bit >> 3) as usize % body) {
                *byte ^= 1 << (bit & 7);
                self.fates.corrupted += 1;
            }
        }
        let spread = match self.how.jitter {
            0 => 0,
            jitter_max => jitter % (2 * jitter_max + 1),
        };
        let due = (left + self.how.delay + spread).saturating_sub(self.how.jitter).max(left).max(self.last);
        self.last = due;
        if hit(twice, self.how.duplicate) {
            self.fates.duplicated += 1;
            out(due, frame.clone());
        }
        if hit(swap, self.how.reorder) && self.held.is_none() {
            self.fates.reordered += 1;
            self.held = Some((due + HOLD, frame));
            return Some(due + HOLD);
        }
        out(due, frame);
        if let Some((_, held)) = self.held.take() {
            out(due, held);
        }
        None
    }

    /// When a frame that sets out now has left the card; `None` if the queue is full.
    fn transmit(&mut self, now: Time, frame: &[u8]) -> Option<Time> {
        if self.how.rate == 0 {
            return Some(now);
        }
        let now = now * 1000;
        while self.leaving.front().is_some_and(|time| *time <= now) {
            self.leaving.pop_front();
        }
        // The one on the card does not wait.
        if self.leaving.len() > self.how.queue {
            return None;
        }
        let bits = frame.len().saturating_sub(vnet::LEN) as u64 * 8;
        self.free = self.free.max(now) + bits.saturating_mul(1_000_000_000) / self.how.rate;
        self.leaving.push_back(self.free);
        Some(self.free.div_ceil(1000))
    }

    /// Gives back the frame that is held, if its time has come.
    pub fn release(&mut self, now: Time) -> Option<Vec<u8>> {
        self.held.take_if(|(due, _)| *due <= now).map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbered UDP datagrams, `every` microseconds apart; number and arrival of each that came.
    fn run(key: u64, how: Impairment, count: u32, every: Time) -> (Vec<(u32, Time)>, Fates) {
        let mut link = Link::new(key, how);
        let mut came = Vec::new();
        let mut note = |time: Time, frame: &[u8]| {
            came.push((time, u32::from_be_bytes(*frame[vnet::LEN + 60..].first_chunk().unwrap())));
        };
        let mut frame = vec![0; vnet::LEN + 125];
        frame[vnet::LEN + 12] = 8;
        frame[vnet::LEN + 23] = ip::UDP;
        for i in 0..count {
            let now = Time::from(i) * every;
            if let Some(held) = link.release(now) {
                note(now, &held);
            }
            frame[vnet::LEN + 60..vnet::LEN + 64].copy_from_slice(&i.to_be_bytes());
            link.pass(now, frame.clone(), |time, frame| note(time, &frame));
        }
        let fates = link.fates;
        (came.into_iter().map(|(time, i)| (i, time)).collect(), fates)
    }

    #[test]
    fn nothing_asked_is_nothing_done() {
        let (came, fates) = run(1, Impairment::default(), 100, 10);
        assert_eq!(came, (0..100).map(|i| (i, Time::from(i) * 10)).collect::<Vec<_>>());
        assert_eq!(fates, Fates::default());
        assert!(Impairment::default().is_none());
    }

    #[test]
    fn seed_and_name_decide() {
        let how = Impairment { loss: CERTAIN / 20, duplicate: CERTAIN / 50, ..Impairment::default() };
        let (a, b) = (key(7, "db>web"), key(7, "web>db"));
        let came = |key, every| run(key, how, 1000, every).0.iter().map(|(i, _)| *i).collect::<Vec<_>>();
        assert!(came(a, 10) == came(a, 999), "the time does not matter");
        assert!(came(a, 10) != came(b, 10) && came(a, 10) != came(key(8, "db>web"), 10));
        let (came, fates) = run(a, how, 10_000, 1);
        assert!((400..600).contains(&fates.lost), "{fates:?}");
        assert!((140..260).contains(&fates.duplicated), "{fates:?}");
        assert_eq!(came.len() as u64, 10_000 - fates.lost + fates.duplicated);
    }

    #[test]
    fn other_settings_leave_losses_alone() {
        let lost = |how| {
            let (came, _) = run(3, how, 1000, 10);
            (0..1000).filter(|i| !came.iter().any(|(n, _)| n == i)).collect::<Vec<u32>>()
        };
        let loss = Impairment { loss: CERTAIN / 10, ..Impairment::default() };
        assert_eq!(lost(loss), lost(Impairment { delay: 50, jitter: 40, duplicate: CERTAIN / 2, ..loss }));
    }

    #[test]
    fn delay_and_jitter_keep_order_and_bounds() {
        let how = Impairment { delay: 500, jitter: 100, ..Impairment::default() };
        let (came, _) = run(5, how, 2000, 7);
        assert!(came.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1));
        let late: Vec<Time> = came.iter().map(|(i, time)| time - Time::from(*i) * 7).collect();
        assert!(late.iter().all(|t| (400..=600).contains(t)), "{late:?}");
        assert!(late.iter().any(|t| *t < 500), "some come early");
    }

    #[test]
    fn rate_spaces_and_queue_bounds() {
        // 125 bytes are 1000 bits: a millisecond each.
        let how = Impairment { rate: 1_000_000, queue: 10, ..Impairment::default() };
        let (came, fates) = run(1, how, 100, 0);
        assert_eq!(came.len(), 11, "one on the card and ten behind it");
        assert_eq!(fates.overflowed, 89);
        assert!(came.iter().enumerate().all(|(i, (_, time))| *time == (i as Time + 1) * 1000));
    }

    #[test]
    fn reordered_frames_are_overtaken_by_one() {
        let how = Impairment { reorder: CERTAIN / 10, ..Impairment::default() };
        let (came, fates) = run(2, how, 1000, 10);
        let back = came.windows(2).filter(|w| w[1].0 + 1 == w[0].0).count() as u64;
        assert!(fates.reordered > 50);
        assert!(back + 1 >= fates.reordered, "{back} {fates:?}");
        let rare = Impairment { reorder: CERTAIN, ..Impairment::default() };
        let (came, _) = run(2, rare, 2, 2 * HOLD);
        assert_eq!(came, [(0, 2 * HOLD)], "nobody came to overtake it");
    }

    #[test]
    fn damage_is_one_bit_behind_the_ethernet_header() {
        let how = Impairment { corrupt: CERTAIN, ..Impairment::default() };
        let mut link = Link::new(9, how);
        for _ in 0..200 {
            let frame = vec![0u8; vnet::LEN + 64];
            link.pass(0, frame, |_, frame| {
                assert_eq!(frame.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
                assert!(frame[..vnet::LEN + ethernet::LEN].iter().all(|b| *b == 0));
            });
        }
    }

    #[test]
    fn settings_as_words() {
        let how = Impairment::parse("50 1 2 3 4 5 6 7".split(' ')).unwrap();
        let all =
            (how.delay, how.jitter, how.loss, how.duplicate, how.reorder, how.corrupt, how.rate, how.queue);
        assert_eq!(all, (50, 1, 2, 3, 4, 5, 6, 7));
        assert_eq!(Impairment::parse("50 1 2 3 4 5 6".split(' ')), None);
        assert_eq!(Impairment::parse("50 1 2 3 4 5 6 7 8".split(' ')), None);
    }
}
