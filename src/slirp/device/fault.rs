//! A device that treats frames as a bad network does: it loses, delays, reorders, doubles and damages them.
//!
//! All chance comes from one seed, and all time from [`Device::advance`], so that a run can be repeated exactly.
//! A damaged frame first gets the checksum that was left to the device: a network that flips a bit does so after
//! the sender's card has summed, and the receiver must be able to notice.

use super::{Capabilities, Device};
use crate::slirp::time::Time;
use crate::slirp::wire::{ethernet, vnet};
use crate::slirp::{link, segment};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

/// How bad the network is, for one direction. Chances are per 10 000 frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Frames that vanish.
    pub loss: u32,
    /// Frames that arrive twice.
    pub duplicate: u32,
    /// Frames with one bit flipped.
    pub corrupt: u32,
    /// Every frame arrives this much later.
    pub delay: Time,
    /// Up to this much more, by chance: frames overtake each other.
    pub jitter: Time,
}

/// Frames under way in one direction, soonest first; the counter keeps the order of equals.
type Wire = BinaryHeap<Reverse<(Time, u64, Vec<u8>)>>;

/// The device.
#[derive(Debug)]
pub struct Fault<D> {
    device: D,
    /// From the device to us.
    inward: Faults,
    /// From us to the device.
    outward: Faults,
    random: u64,
    now: Time,
    count: u64,
    arriving: Wire,
    leaving: Wire,
    buffer: Vec<u8>,
    /// Frames that were lost so far, both directions.
    pub lost: u64,
}

impl<D: Device> Fault<D> {
    /// Wraps `device`.
    pub fn new(device: D, inward: Faults, outward: Faults, seed: u64) -> Self {
        Self {
            device,
            inward,
            outward,
            random: seed,
            now: 0,
            count: 0,
            arriving: Wire::new(),
            leaving: Wire::new(),
            buffer: vec![0; super::MAX_FRAME],
            lost: 0,
        }
    }

    /// The wrapped device.
    pub fn inner(&mut self) -> &mut D {
        &mut self.device
    }

    fn next(&mut self) -> u64 {
        link::next(&mut self.random)
    }

    fn chance(&mut self, per_10000: u32) -> bool {
        self.next() % 10_000 < u64::from(per_10000)
    }

    /// Decides the fate of a frame and puts what is left of it on a wire.
    fn subject(&mut self, faults: Faults, frame: &[u8], outward: bool) {
        if self.chance(faults.loss) {
            self.lost += 1;
            return;
        }
        for _ in 0..=usize::from(self.chance(faults.duplicate)) {
            let mut copy = frame.to_vec();
            if self.chance(faults.corrupt) {
                segment::complete(&mut copy);
                let bit = self.next() as usize;
                // Not in the Ethernet header: a link has a checksum of its own for that.
                let start = vnet::LEN + ethernet::LEN;
                let damaged = copy.len().checked_sub(start).filter(|n| *n > 0);
                if let Some(byte) = damaged.and_then(|n| copy.get_mut(start + bit / 8 % n)) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            let jitter = if faults.jitter == 0 { 0 } else { self.next() % faults.jitter };
            let due = self.now + faults.delay + jitter;
            self.count += 1;
            let entry = Reverse((due, self.count, copy));
            if outward { self.leaving.push(entry) } else { self.arriving.push(entry) }
        }
    }

    /// Takes the next frame that is due off a wire.
    fn due(wire: &mut Wire, now: Time) -> Option<Vec<u8>> {
        wire.peek().filter(|Reverse((due, ..))| *due <= now)?;
        wire.pop().map(|Reverse((_, _, frame))| frame)
    }

    fn deliver(&mut self) -> io::Result<()> {
        while let Some(frame) = Self::due(&mut self.leaving, self.now) {
            self.device.send(&frame)?;
        }
        Ok(())
    }
}

impl<D: Device> Device for Fault<D> {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut frame = std::mem::take(&mut self.buffer);
        let end = loop {
            match self.device.recv(&mut frame) {
                Ok(Some(len)) => self.subject(self.inward, frame.get(..len).unwrap_or(&[]), false),
                Ok(None) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        self.buffer = frame;
        let Some(frame) = Self::due(&mut self.arriving, self.now) else { return end };
        let target = buffer.get_mut(..frame.len()).ok_or(io::ErrorKind::InvalidData)?;
        target.copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.subject(self.outward, frame, true);
        self.deliver()
    }

    fn advance(&mut self, now: Time) {
        self.now = now;
        self.device.advance(now);
        // A full device loses frames, as it would without us.
        let _ = self.deliver();
    }

    fn next_due(&self) -> Option<Time> {
        [&self.arriving, &self.leaving]
            .into_iter()
            .filter_map(|wire| wire.peek().map(|Reverse((due, ..))| *due))
            .chain(self.device.next_due())
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::device::pair;

    fn run(faults: Faults, seed: u64) -> (Vec<Vec<u8>>, u64) {
        let (near, mut far) = pair(Capabilities::ALL, 4096);
        let mut fault = Fault::new(near, Faults::default(), faults, seed);
        for i in 0..1000u32 {
            fault.advance(u64::from(i));
            fault.send(&[&[0; vnet::LEN], &i.to_be_bytes()[..], &[0; 60]].concat()).unwrap();
        }
        fault.advance(1_000_000);
        (std::iter::from_fn(|| far.pop()).collect(), fault.lost)
    }

    #[test]
    fn a_seed_gives_one_history() {
        let faults = Faults { loss: 500, duplicate: 100, corrupt: 100, delay: 10, jitter: 50 };
        assert_eq!(run(faults, 7), run(faults, 7));
        assert_ne!(run(faults, 7), run(faults, 8));
        let (frames, lost) = run(faults, 7);
        assert!((20..100).contains(&lost), "{lost}");
        assert!(frames.len() as u64 > 1000 - lost, "some arrive twice");
        assert!(frames.windows(2).any(|w| w[0] > w[1]), "some overtake");
    }

    #[test]
    fn without_faults_it_is_a_cable() {
        let (frames, lost) = run(Faults::default(), 1);
        assert_eq!((frames.len(), lost), (1000, 0));
        assert!(frames.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn end_of_the_device_shows() {
        struct Gone;
        impl Device for Gone {
            fn capabilities(&self) -> Capabilities {
                Capabilities::ALL
            }
            fn recv(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn send(&mut self, _: &[u8]) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut fault = Fault::new(Gone, Faults::default(), Faults::default(), 1);
        assert_eq!(fault.recv(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn delay_holds_both_directions_back() {
        let (near, mut far) = pair(Capabilities::ALL, 8);
        let slow = Faults { delay: 100, ..Faults::default() };
        let mut fault = Fault::new(near, slow, slow, 1);
        fault.advance(5);
        far.send(b"in").unwrap();
        fault.send(b"out").unwrap();
        let mut buffer = vec![0; 16];
        assert_eq!(fault.recv(&mut buffer).unwrap(), None);
        assert_eq!((far.pop(), fault.next_due()), (None, Some(105)));
        fault.advance(105);
        assert_eq!(fault.recv(&mut buffer).unwrap(), Some(2));
        assert_eq!((far.pop(), fault.next_due()), (Some(b"out".to_vec()), None));
    }
}
