//! An Ethernet switch's memory: which station was last heard on which port (IEEE 802.1D).
//!
//! A frame for a station that was heard goes to its port, all others to every port but the one that they came
//! from. There is one switch and ports have one end each, so frames cannot go round. What hostile stations can do
//! is bounded: a port remembers [`STATIONS`] of them, and the oldest gives way.

use super::time::{SEC, Time};
use super::wire::ethernet::Mac;
use std::collections::HashMap;

/// A port's number.
pub type Port = u16;
/// How many stations are remembered of each port.
pub const STATIONS: usize = 64;
/// After how much silence a station is forgotten (802.1D's default).
pub const AGE: Time = 300 * SEC;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To one port.
    Port(Port),
    /// To all others.
    Flood,
    /// Nowhere: its station is on the port that it came from.
    Back,
}

/// What is known of the stations.
#[derive(Debug, Default)]
pub struct Switch {
    heard: HashMap<Mac, (Port, Time)>,
    /// How many stations each port has.
    held: HashMap<Port, usize>,
}

impl Switch {
    /// How many stations are known.
    pub fn stations(&self) -> usize {
        self.heard.len()
    }

    /// A frame from `station` came in on `port`.
    pub fn learn(&mut self, now: Time, port: Port, station: Mac) {
        if station.is_multicast() {
            return;
        }
        if let Some((old, seen)) = self.heard.get_mut(&station) {
            *seen = now;
            if *old == port {
                return;
            }
            // It has moved.
            let before = std::mem::replace(old, port);
            self.count(before, false);
            self.count(port, true);
        } else {
            self.heard.insert(station, (port, now));
            self.count(port, true);
        }
        if self.held.get(&port).is_some_and(|n| *n > STATIONS) {
            let of_port = self.heard.iter().filter(|(mac, (p, _))| *p == port && **mac != station);
            if let Some(oldest) = of_port.min_by_key(|(mac, (_, seen))| (*seen, mac.0)).map(|(mac, _)| *mac) {
                self.heard.remove(&oldest);
                self.count(port, false);
            }
        }
    }

    fn count(&mut self, port: Port, more: bool) {
        let held = self.held.entry(port).or_default();
        *held = if more { *held + 1 } else { held.saturating_sub(1) };
    }

    /// Where a frame for `station` that came in on `port` goes.
    pub fn way(&self, now: Time, port: Port, station: Mac) -> Way {
        match self.heard.get(&station) {
            Some((to, _)) if *to == port => Way::Back,
            Some((to, seen)) if now.saturating_sub(*seen) < AGE => Way::Port(*to),
            _ => Way::Flood,
        }
    }

    /// Forgets the stations of a port.
    pub fn forget(&mut self, port: Port) {
        self.heard.retain(|_, (of, _)| *of != port);
        self.held.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> Mac {
        let b = n.to_be_bytes();
        Mac([2, 0, b[0], b[1], b[2], b[3]])
    }

    #[test]
    fn stations_are_learned_move_and_age() {
        let mut switch = Switch::default();
        assert_eq!(switch.way(0, 1, mac(9)), Way::Flood);
        switch.learn(0, 2, mac(9));
        assert_eq!(switch.way(1, 1, mac(9)), Way::Port(2));
        assert_eq!(switch.way(1, 2, mac(9)), Way::Back, "never to where it came from");
        switch.learn(5, 3, mac(9));
        assert_eq!(switch.way(6, 1, mac(9)), Way::Port(3));
        assert_eq!(switch.way(5 + AGE, 1, mac(9)), Way::Flood);
        switch.forget(3);
        assert_eq!((switch.way(6, 1, mac(9)), switch.stations()), (Way::Flood, 0));
    }

    #[test]
    fn groups_are_no_stations() {
        let mut switch = Switch::default();
        switch.learn(0, 1, Mac::BROADCAST);
        switch.learn(0, 1, Mac([0x33, 0x33, 0, 0, 0, 1]));
        assert_eq!(switch.stations(), 0);
        assert_eq!(switch.way(0, 2, Mac::BROADCAST), Way::Flood);
    }

    #[test]
    fn a_port_that_invents_stations_forgets_its_own() {
        let mut switch = Switch::default();
        switch.learn(0, 2, mac(1));
        for n in 0..10_000 {
            switch.learn(Time::from(n), 1, mac(100 + n));
        }
        assert_eq!(switch.stations(), STATIONS + 1);
        assert_eq!(switch.way(1, 1, mac(1)), Way::Port(2), "another port's are not touched");
        assert_eq!(switch.way(10_000, 2, mac(10_099)), Way::Port(1), "the newest stays");
        assert_eq!(switch.way(10_000, 2, mac(100)), Way::Flood);
        for n in 0..STATIONS as u32 {
            switch.learn(20_000, 3, mac(10_099 - n));
        }
        assert_eq!(switch.held.get(&1), Some(&0));
    }
}
