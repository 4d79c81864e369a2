//! A device that writes what passes through it in pcapng form (draft-ietf-opsawg-pcapng), for tcpdump and Wireshark.
//!
//! Frames appear as the engine sees them: large ones uncut, without the `virtio_net_hdr`, and with checksums that
//! may be left undone (Wireshark calls that "checksum offload"). Directions are the guest's: what it sends is
//! outbound. Recorders come and go while the device runs; one that fails is kept only to say so.

use super::filter::Filter;
use super::{Capabilities, Device};
use crate::slirp::pcapng;
use crate::slirp::time::Time;
use crate::slirp::wire::vnet;
use std::io;

/// Where blocks go.
pub trait Sink {
    /// Writes one block whole; false if there is no room for it at present.
    fn put(&mut self, block: &[u8]) -> io::Result<bool>;
}

/// Writes the frames that a filter wants.
#[derive(Debug)]
pub struct Recorder<S> {
    sink: S,
    filter: Filter,
    snap: usize,
    block: Vec<u8>,
    /// Frames that were written.
    pub written: u64,
    /// Frames for which there was no room.
    pub dropped: u64,
    /// What ended the writing.
    pub failure: Option<i32>,
}

impl<S: Sink> Recorder<S> {
    /// Writes the beginning. At most `snap` bytes of each frame are kept.
    pub fn new(mut sink: S, filter: Filter, snap: usize) -> io::Result<Self> {
        let mut head = Vec::new();
        pcapng::section(&mut head);
        pcapng::interface(&mut head, snap, None);
        sink.put(&head)?;
        Ok(Self { sink, filter, snap, block: Vec::new(), written: 0, dropped: 0, failure: None })
    }

    /// Writes one frame (without `virtio_net_hdr`) that passed at `time`, microseconds since 1970.
    fn frame(&mut self, time: Time, outbound: bool, frame: &[u8]) {
        if self.failure.is_some() || !self.filter.wants(frame) {
            return;
        }
        self.block.clear();
        pcapng::packet(&mut self.block, 0, time, !outbound, frame, self.snap);
        match self.sink.put(&self.block) {
            Ok(true) => self.written += 1,
            Ok(false) => self.dropped += 1,
            Err(error) => self.failure = Some(error.raw_os_error().unwrap_or(0)),
        }
    }

    /// Writes the end: how many frames there are, and how many are missing.
    fn finish(&mut self, time: Time) {
        let mut bytes = Vec::new();
        pcapng::statistics(&mut bytes, time, self.written + self.dropped, self.dropped);
        let _ = self.sink.put(&bytes);
    }
}

/// A device whose traffic may be recorded.
#[derive(Debug)]
pub struct Trace<D, S> {
    device: D,
    recorders: Vec<(u32, Recorder<S>)>,
    count: u32,
    epoch: Time,
    now: Time,
}

impl<D: Device, S: Sink> Trace<D, S> {
    /// Wraps `device`; `epoch` is the time since 1970 at which the engine's clock stood at zero.
    pub fn new(device: D, epoch: Time) -> Self {
        Self { device, recorders: Vec::new(), count: 0, epoch, now: 0 }
    }

    /// Adds a recorder; its number is for [`Self::stop`].
    pub fn record(&mut self, recorder: Recorder<S>) -> u32 {
        self.count += 1;
        self.recorders.push((self.count, recorder));
        self.count
    }

    /// How many recorders there are.
    pub fn recorders(&self) -> usize {
        self.recorders.len()
    }

    /// Ends a recorder and gives it back.
    pub fn stop(&mut self, number: u32) -> Option<(Recorder<S>, S)>
    where
        S: Copy,
    {
        let at = self.recorders.iter().position(|(n, _)| *n == number)?;
        let (_, mut recorder) = self.recorders.remove(at);
        if recorder.failure.is_none() {
            recorder.finish(self.epoch + self.now);
        }
        let sink = recorder.sink;
        Some((recorder, sink))
    }

    fn note(&mut self, outbound: bool, frame: &[u8]) {
        let time = self.epoch + self.now;
        if let Some(frame) = frame.get(vnet::LEN..) {
            for (_, recorder) in &mut self.recorders {
                recorder.frame(time, outbound, frame);
            }
        }
    }
}

impl<D: Device, S: Sink> Device for Trace<D, S> {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let got = self.device.recv(buffer)?;
        if !self.recorders.is_empty() {
            if let Some(frame) = got.and_then(|len| buffer.get(..len)) {
                self.note(true, frame);
            }
        }
        Ok(got)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if !self.recorders.is_empty() {
            self.note(false, frame);
        }
        self.device.send(frame)
    }

    fn advance(&mut self, now: Time) {
        self.now = now;
        self.device.advance(now);
    }

    fn recorded(&self) -> bool {
        !self.recorders.is_empty()
    }

    fn next_due(&self) -> Option<Time> {
        self.device.next_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::device::pair;
    use std::cell::RefCell;

    /// Room for so many blocks.
    #[derive(Debug, Clone, Copy)]
    struct Shelf<'a>(&'a RefCell<Vec<Vec<u8>>>, usize);

    impl Sink for Shelf<'_> {
        fn put(&mut self, block: &[u8]) -> io::Result<bool> {
            let room = self.0.borrow().len() < self.1;
            if room {
                self.0.borrow_mut().push(block.to_vec());
            }
            Ok(room)
        }
    }

    #[test]
    fn both_directions_are_written_as_far_as_there_is_room() {
        let (near, mut far) = pair(Capabilities::ALL, 8);
        let blocks = RefCell::new(Vec::new());
        let mut trace = Trace::new(near, 7 << 32);
        trace.send(b"0123456789nobody looks").unwrap();
        let number = trace.record(Recorder::new(Shelf(&blocks, 3), Filter::default(), 4).unwrap());
        trace.advance(0x21);
        trace.send(b"0123456789abcdef").unwrap();
        far.send(b"0123456789xy").unwrap();
        assert_eq!(trace.recv(&mut [0; 64]).unwrap(), Some(12));
        trace.send(b"0123456789no room").unwrap();
        let (recorder, _) = trace.stop(number).unwrap();
        assert_eq!((recorder.written, recorder.dropped, trace.recorders()), (2, 1, 0));
        assert!(trace.stop(number).is_none());
        let blocks = blocks.into_inner();
        assert_eq!(blocks[0].len(), 28 + 20);
        let head = [6, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0x21, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0];
        assert_eq!(blocks[1][..28], head);
        assert_eq!(blocks[1][28..], [b"abcd\x02\0\x04\0\x01\0\0\0\0\0\0\0", &[48, 0, 0, 0][..]].concat());
        assert_eq!(blocks[2][28..40], *b"xy\0\0\x02\0\x04\0\x02\0\0\0");
    }
}
