//! Cut packets of the guest are put together again before anything else looks at them.
//!
//! Bounded in every way: so many packets at once, each no longer than a packet can be, each for so long.
//! Overlapping parts make the whole packet void (RFC 5722), which ends teardrop and its relatives.

use super::time::{SEC, Time};
use super::wire::ip::{Ip, Part};
use std::net::IpAddr;

/// How many packets may be incomplete at once.
const CONTEXTS: usize = 64;
/// How long a packet may stay incomplete.
const LIFETIME: Time = 15 * SEC;
/// The most parts of one packet.
const PARTS: usize = 128;

type Name = (IpAddr, IpAddr, u8, u32);

/// One incomplete packet.
#[derive(Debug)]
struct Context {
    name: Name,
    born: Time,
    data: Vec<u8>,
    /// What is there: start and end, in order of arrival.
    parts: Vec<(usize, usize)>,
    /// Known when the last part is there.
    total: Option<usize>,
    /// Overlapped: what still comes of it is dropped.
    void: bool,
}

/// Packets that are being put together.
#[derive(Debug, Default)]
pub struct Reassembly {
    contexts: Vec<Context>,
    /// Parts that were dropped.
    pub dropped: u64,
}

impl Reassembly {
    /// Takes a part; gives the whole when it is complete.
    pub fn add(&mut self, now: Time, ip: &Ip, part: Part, payload: &[u8]) -> Option<(Ip, Vec<u8>)> {
        self.contexts.retain(|c| now.saturating_sub(c.born) < LIFETIME);
        let end = part.offset + payload.len();
        // All but the last are multiples of eight; none is empty or longer than a packet.
        if payload.is_empty() || end > ip.max_payload() || (part.more && payload.len() % 8 != 0) {
            self.dropped += 1;
            return None;
        }
        let name = (ip.src, ip.dst, ip.proto, part.id);
        let at = self.find(name, now);
        let context = self.contexts.get_mut(at)?;
        if !context.add(part, end, payload) {
            self.dropped += 1;
            return None;
        }
        let held: usize = context.parts.iter().map(|(s, e)| e - s).sum();
        if context.void || context.total != Some(held) {
            return None;
        }
        let whole = self.contexts.swap_remove(at);
        Some((Ip { part: None, ..*ip }, whole.data))
    }

    /// How many packets are incomplete.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.contexts.len()
    }

    /// The context of that name; a new one takes the place of the oldest if there are too many.
    fn find(&mut self, name: Name, now: Time) -> usize {
        if let Some(at) = self.contexts.iter().position(|c| c.name == name) {
            return at;
        }
        if self.contexts.len() >= CONTEXTS {
            let oldest = self.contexts.iter().enumerate().min_by_key(|(_, c)| c.born).map_or(0, |(at, _)| at);
            self.contexts.swap_remove(oldest);
            self.dropped += 1;
        }
        self.contexts.push(Context {
            name,
            born: now,
            data: Vec::new(),
            parts: Vec::new(),
            total: None,
            void: false,
        });
        self.contexts.len() - 1
    }
}

impl Context {
    /// Puts a part in its place; false if it, and with it the packet, is void.
    fn add(&mut self, part: Part, end: usize, payload: &[u8]) -> bool {
        if self.parts.contains(&(part.offset, end)) {
            return true; // the same part again: a duplicate, not an attack
        }
        let overlap = self.parts.iter().any(|(s, e)| part.offset < *e && *s < end);
        let beyond = self.total.is_some_and(|t| end > t || !part.more)
            || (!part.more && self.parts.iter().any(|(_, e)| *e > end));
        if self.void || overlap || beyond || self.parts.len() >= PARTS {
            self.void = true;
            self.data = Vec::new();
            return false;
        }
        if !part.more {
            self.total = Some(end);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        super::wire::put(&mut self.data, part.offset, payload);
        self.parts.push((part.offset, end));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::ip;

    fn packet() -> Ip {
        Ip::new([10, 0, 2, 100].into(), [192, 0, 2, 1].into(), ip::UDP)
    }

    fn part(id: u32, offset: usize, more: bool) -> Part {
        Part { id, offset, more }
    }

    #[test]
    fn any_order_and_duplicates() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut r = Reassembly::default();
            let parts = [(0, true, [1u8; 8].to_vec()), (8, true, [2; 8].to_vec()), (16, false, vec![3; 3])];
            let mut whole = None;
            for i in order {
                let (offset, more, data) = &parts[i];
                assert!(whole.is_none());
                whole = r.add(0, &packet(), part(7, *offset, *more), data);
                if whole.is_none() {
                    assert!(r.add(0, &packet(), part(7, *offset, *more), data).is_none(), "again");
                }
            }
            let (ip, data) = whole.unwrap();
            assert_eq!((ip.part, data.len(), data[15], data[18]), (None, 19, 2, 3));
        }
    }

    #[test]
    fn overlap_teardrop_and_ping_of_death_are_void() {
        let mut r = Reassembly::default();
        assert!(r.add(0, &packet(), part(1, 0, true), &[0; 16]).is_none());
        assert!(r.add(0, &packet(), part(1, 8, false), &[0; 4]).is_none(), "inside the first");
        assert!(r.add(0, &packet(), part(1, 16, false), &[0; 4]).is_none(), "void for good");
        assert!(r.add(0, &packet(), part(2, 65528, false), &[0; 100]).is_none(), "longer than a packet");
        assert!(r.add(0, &packet(), part(3, 0, true), &[0; 7]).is_none(), "not a multiple of eight");
        assert!(r.add(0, &packet(), part(4, 0, false), &[]).is_none());
        assert!(r.add(0, &packet(), part(5, 8, false), &[0; 8]).is_none());
        assert!(r.add(0, &packet(), part(5, 16, false), &[0; 8]).is_none(), "two ends");
        assert_eq!(r.dropped, 6);
    }

    #[test]
    fn bounded_in_number_and_time() {
        let mut r = Reassembly::default();
        for id in 0..1000 {
            r.add(u64::from(id), &packet(), part(id, 0, true), &[0; 8]);
        }
        assert_eq!(r.contexts.len(), CONTEXTS);
        assert!(r.add(1000, &packet(), part(999, 8, false), &[0; 8]).is_some());
        assert!(r.add(1000 + LIFETIME, &packet(), part(998, 8, false), &[0; 8]).is_none(), "too late");
        assert_eq!(r.contexts.len(), 1);
    }
}
