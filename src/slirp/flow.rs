//! The table of flows: every TCP connection, UDP association and echo identifier, under one bound.
//!
//! Entries lie in pieces of memory that never move and are named by [`Id`]: index and generation, so that an event about an entry that
//! has since been replaced finds nothing. They are found by [`Key`] through an open-addressed index of 32-bit
//! slots, hashed with a key that the guest cannot know. Timers are a heap with lazy entries: moving a deadline
//! later costs nothing, and an entry that comes up early is put back. Idle entries are found by a sweep once a
//! second and, at the bound, by a sweep that sheds the longest idle sixteenth.

use super::time::{NEVER, Time};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Who talks with whom, as the guest sees it; `IPv4` addresses in their `IPv6` mapped form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    guest: Ipv6Addr,
    remote: Ipv6Addr,
    guest_port: u16,
    remote_port: u16,
    /// Protocol number.
    pub proto: u8,
}

impl Key {
    /// A key. Addresses that are mapped on the wire must have been refused before.
    pub fn new(proto: u8, guest: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            guest: unify(guest.ip()),
            remote: unify(remote.ip()),
            guest_port: guest.port(),
            remote_port: remote.port(),
            proto,
        }
    }

    /// The guest's end.
    pub fn guest(&self) -> SocketAddr {
        SocketAddr::new(self.guest.to_canonical(), self.guest_port)
    }

    /// The other end.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote.to_canonical(), self.remote_port)
    }
}

fn unify(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

/// Names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    index: u32,
    generation: u32,
}

impl Id {
    /// As one number, for the kernel to hand back with an event.
    pub fn token(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    /// Back from [`Self::token`].
    pub fn from_token(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// An entry with what the table itself needs.
#[derive(Debug)]
struct Slot<T> {
    key: Key,
    generation: u32,
    /// When the entry last did something.
    used: Time,
    /// The earliest heap entry that will wake it.
    armed: Time,
    value: Option<T>,
}

/// Slots, a piece at a time: one vector of all would be copied as it grows, and half of it stand empty.
#[derive(Debug)]
struct Slots<T>(Vec<Vec<Slot<T>>>);

impl<T> Slots<T> {
    /// How many there are in a piece.
    const PIECE: usize = 64;

    fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * Self::PIECE + last.len())
    }

    fn get(&self, index: usize) -> Option<&Slot<T>> {
        self.0.get(index / Self::PIECE)?.get(index % Self::PIECE)
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut Slot<T>> {
        self.0.get_mut(index / Self::PIECE)?.get_mut(index % Self::PIECE)
    }

    fn push(&mut self, slot: Slot<T>) {
        match self.0.last_mut() {
            Some(last) if last.len() < Self::PIECE => last.push(slot),
            _ => {
                let mut piece = Vec::with_capacity(Self::PIECE);
                piece.push(slot);
                self.0.push(piece);
            }
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table<T> {
    slots: Slots<T>,
    free: Vec<u32>,
    /// Indices plus one; zero is empty. Length is a power of two, at most three quarters full.
    index: Vec<u32>,
    len: usize,
    hasher: RandomState,
    timers: BinaryHeap<Reverse<(Time, u64)>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            slots: Slots(Vec::new()),
            free: Vec::new(),
            index: vec![0; 64],
            len: 0,
            hasher: RandomState::new(),
            timers: BinaryHeap::new(),
        }
    }
}

impl<T> Table<T> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of that name.
    pub fn get(&mut self, id: Id) -> Option<(&Key, &mut T)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        let Slot { key, generation, value, .. } = slot;
        if *generation == id.generation { value.as_mut().map(|value| (&*key, value)) } else { None }
    }

    /// Finds an entry by key.
    pub fn find(&self, key: &Key) -> Option<Id> {
        let at = self.position(key)?;
        let index = self.index.get(at)?.checked_sub(1)?;
        let generation = self.slots.get(index as usize)?.generation;
        Some(Id { index, generation })
    }

    /// Adds an entry; one with the same key must not be there.
    pub fn insert(&mut self, key: Key, value: T, now: Time) -> Id {
        if (self.len + 1) * 4 > self.index.len() * 3 {
            self.grow();
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { key, generation: 0, used: now, armed: NEVER, value: None });
            (self.slots.len() - 1) as u32
        });
        self.len += 1;
        self.link(&key, index);
        let mut generation = 0;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            generation = slot.generation;
            *slot = Slot { key, generation, used: now, armed: NEVER, value: Some(value) };
        }
        Id { index, generation }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: Id) -> Option<(Key, T)> {
        let slot = self.slots.get_mut(id.index as usize).filter(|s| s.generation == id.generation)?;
        let value = slot.value.take()?;
        // 30 bits: the highest of a token marks those that are no flows', the next a flow's second socket.
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 2);
        let key = slot.key;
        self.free.push(id.index);
        self.len -= 1;
        self.unlink(&key, id.index);
        Some((key, value))
    }

    /// Notes that the entry did something.
    pub fn touch(&mut self, id: Id, now: Time) {
        if let Some(slot) = self.slots.get_mut(id.index as usize).filter(|s| s.generation == id.generation) {
            slot.used = now;
        }
    }

    /// Makes sure that [`Self::expired`] names the entry at `deadline` or before.
    pub fn arm(&mut self, id: Id, deadline: Time) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        if slot.generation == id.generation && deadline < slot.armed {
            slot.armed = deadline;
            self.timers.push(Reverse((deadline, id.token())));
        }
    }

    /// The next entry whose armed time has come; it must be armed again if it still has a deadline.
    pub fn expired(&mut self, now: Time) -> Option<Id> {
        while let Some(Reverse((due, token))) = self.timers.peek().copied() {
            if due > now {
                return None;
            }
            self.timers.pop();
            let id = Id::from_token(token);
            if let Some(slot) = self.slots.get_mut(id.index as usize) {
                if slot.generation == id.generation && slot.armed == due {
                    slot.armed = NEVER;
                    return Some(id);
                }
            }
        }
        None
    }

    /// When [`Self::expired`] should be asked again.
    pub fn next_due(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// Every entry with the time of its last use.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Key, &T, Time)> {
        self.slots.0.iter().flatten().enumerate().filter_map(|(index, slot)| {
            let id = Id { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (id, &slot.key, value, slot.used))
        })
    }

    /// A sixteenth of all entries, at least one: those that have been idle longest.
    pub fn idlest(&self) -> Vec<Id> {
        let mut all: Vec<(Time, Id)> = self.iter().map(|(id, _, _, used)| (used, id)).collect();
        all.sort_unstable();
        all.truncate((all.len() / 16).max(1));
        all.into_iter().map(|(_, id)| id).collect()
    }

    fn start(&self, key: &Key) -> usize {
        self.hasher.hash_one(key) as usize & (self.index.len() - 1)
    }

    /// Where in the index the key stands.
    fn position(&self, key: &Key) -> Option<usize> {
        let mut at = self.start(key);
        loop {
            let index = self.index.get(at)?.checked_sub(1)?;
            if self.slots.get(index as usize)?.key == *key {
                return Some(at);
            }
            at = (at + 1) & (self.index.len() - 1);
        }
    }

    fn link(&mut self, key: &Key, index: u32) {
        let mut at = self.start(key);
        while self.index.get(at).is_some_and(|i| *i != 0) {
            at = (at + 1) & (self.index.len() - 1);
        }
        if let Some(place) = self.index.get_mut(at) {
            *place = index + 1;
        }
    }

    /// Takes an index out and moves back those behind it that would not be found any more.
    fn unlink(&mut self, key: &Key, index: u32) {
        let mask = self.index.len() - 1;
        let mut hole = self.start(key);
        while self.index.get(hole).is_some_and(|i| *i != index + 1) {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let Some(next) = self.index.get(at).and_then(|i| i.checked_sub(1)) else { break };
            let Some(home) = self.slots.get(next as usize).map(|s| self.start(&s.key)) else { break };
            // May stay if its home lies cyclically within (hole, at].
            if (at.wrapping_sub(home) & mask) < (at.wrapping_sub(hole) & mask) {
                continue;
            }
            self.index.swap(hole, at);
            hole = at;
        }
        if let Some(place) = self.index.get_mut(hole) {
            *place = 0;
        }
    }

    fn grow(&mut self) {
        self.index = vec![0; self.index.len() * 2];
        for index in 0..self.slots.len() {
            if let Some(key) = self.slots.get(index).filter(|s| s.value.is_some()).map(|s| s.key) {
                self.link(&key, index as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key::new(6, SocketAddr::new([10, 0, 2, 100].into(), port), "192.0.2.1:80".parse().unwrap())
    }

    #[test]
    fn an_idle_connection_is_one_small_entry() {
        let size = size_of::<Slot<crate::slirp::engine::Flow>>();
        // With 16 for a timer, 8 of the index and what the host's side notes: below 256.
        assert!(size <= 200, "{size} bytes");
    }

    #[test]
    fn behaves_like_a_map_under_churn() {
        let mut table = Table::default();
        let mut model = std::collections::HashMap::new();
        let mut random = 1u64;
        for step in 0..20_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let port = (random >> 33) as u16 % 700;
            if let Some(id) = model.remove(&port) {
                assert_eq!(table.find(&key(port)), Some(id));
                assert_eq!(table.remove(id), Some((key(port), port)));
                assert!(table.get(id).is_none());
            } else {
                assert_eq!(table.find(&key(port)), None);
                model.insert(port, table.insert(key(port), port, step));
            }
            assert_eq!(table.len(), model.len());
        }
        for (port, id) in model {
            assert_eq!(table.get(id).map(|(k, v)| (*k, *v)), Some((key(port), port)));
        }
    }

    #[test]
    fn timers_are_lazy_but_never_late() {
        let mut table = Table::default();
        let id = table.insert(key(1), (), 0);
        table.arm(id, 100);
        table.arm(id, 500);
        assert_eq!((table.expired(99), table.next_due()), (None, Some(100)));
        assert_eq!(table.expired(100), Some(id));
        assert_eq!(table.expired(1000), None, "must be armed again");
        table.arm(id, 500);
        table.arm(id, 300);
        assert_eq!(table.expired(400), Some(id));
        assert_eq!(table.expired(600), None, "the later entry is stale");
        table.arm(id, 700);
        table.remove(id);
        assert_eq!(table.expired(800), None);
    }

    #[test]
    fn the_longest_idle_are_shed_first() {
        let mut table = Table::default();
        let ids: Vec<Id> = (0..32).map(|i| table.insert(key(i), (), u64::from(i))).collect();
        table.touch(ids[0], 100);
        assert_eq!(table.idlest(), [ids[1], ids[2]]);
        assert_eq!(Id::from_token(ids[5].token()), ids[5]);
    }

    #[test]
    fn addresses_come_back_as_they_were() {
        let key = Key::new(17, "[fd00::100]:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap());
        assert_eq!(
            (key.guest().to_string(), key.remote().to_string()),
            ("[fd00::100]:1".into(), "[2001:db8::1]:2".into())
        );
        assert_eq!(super::tests::key(9).guest().to_string(), "10.0.2.100:9");
    }
}
