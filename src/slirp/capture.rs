//! What passes a network of containers, written in pcapng form for tcpdump, Wireshark and our own reader: an interface
//! a node, and for each frame whether the node sent or received it.
//!
//! Each block is one write, so that a file can be read while it grows. Large frames are written whole, as a capture on
//! a machine with offloads has them, and with the checksum that was left to the card. A file that cannot be written
//! any more, or has reached its limit, ends its capture; the traffic goes on.

use super::device::Filter;
use super::fabric::Node;
use super::time::Time;
use super::wire::vnet;
use super::{pcapng, segment};
use std::io::{self, Write};

/// Which frames are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Points {
    /// Frames as their nodes sent them.
    pub sent: bool,
    /// Frames as their nodes received them.
    pub received: bool,
    /// At these nodes only, if there are any.
    pub nodes: Vec<Node>,
    /// Of these the wanted ones.
    pub filter: Filter,
}

/// A capture.
#[derive(Debug)]
pub struct Capture<W> {
    out: Option<W>,
    points: Points,
    /// At most so many bytes of a frame are kept.
    snap: usize,
    /// The file's largest size.
    limit: u64,
    written: u64,
    /// Nodes that have an interface in the file, in its order.
    interfaces: Vec<Node>,
    /// Frames written.
    pub frames: u64,
    /// Frames that there was no room for.
    pub dropped: u64,
}

impl<W: Write> Capture<W> {
    /// Writes the file's head: a section of no known length.
    pub fn new(out: W, points: Points, snap: usize, limit: u64) -> io::Result<Self> {
        let mut capture = Self {
            out: Some(out),
            points,
            snap,
            limit,
            written: 0,
            interfaces: Vec::new(),
            frames: 0,
            dropped: 0,
        };
        let mut head = Vec::new();
        pcapng::section(&mut head);
        capture.write(&head)?;
        Ok(capture)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written + bytes.len() as u64 > self.limit {
            self.out = None;
        }
        let Some(out) = &mut self.out else { return Err(io::ErrorKind::StorageFull.into()) };
        let result = out.write_all(bytes);
        self.written += bytes.len() as u64;
        if result.is_err() {
            self.out = None;
        }
        result
    }

    /// The number of a node's interface, which is described when it is first needed.
    fn interface(&mut self, node: Node, name: &str) -> io::Result<usize> {
        if let Some(at) = self.interfaces.iter().position(|known| *known == node) {
            return Ok(at);
        }
        let mut block = Vec::new();
        pcapng::interface(&mut block, self.snap, Some(name));
        self.write(&block)?;
        self.interfaces.push(node);
        Ok(self.interfaces.len() - 1)
    }

    /// A frame with its `virtio_net_hdr` was sent or received by `node` at `time`, in microseconds since 1970.
    pub fn frame(&mut self, time: Time, node: Node, name: &str, received: bool, bytes: &[u8]) {
        let Points { nodes, filter, .. } = &self.points;
        let point = if received { self.points.received } else { self.points.sent };
        let here = nodes.is_empty() || nodes.contains(&node);
        let Some(frame) = bytes.get(vnet::LEN..) else { return };
        if !point || !here || !filter.wants(frame) {
            return;
        }
        if self.out.is_none() || self.enhanced(time, node, name, received, bytes).is_err() {
            self.dropped += 1;
        } else {
            self.frames += 1;
        }
    }

    fn enhanced(
        &mut self,
        time: Time,
        node: Node,
        name: &str,
        received: bool,
        bytes: &[u8],
    ) -> io::Result<()> {
        let interface = self.interface(node, name)?;
        let mut whole = bytes.to_vec();
        segment::complete(&mut whole);
        let frame = whole.get(vnet::LEN..).unwrap_or(&[]);
        let mut block = Vec::with_capacity(frame.len().min(self.snap) + 48);
        pcapng::packet(&mut block, interface, time, received, frame, self.snap);
        self.write(&block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::segment::tests::large;

    fn both() -> Points {
        Points { sent: true, received: true, ..Points::default() }
    }

    fn only(words: &str) -> Points {
        Points { filter: Filter::parse(words.split(' ')).unwrap(), ..both() }
    }

    /// Kinds of the blocks in a file; both lengths of each must agree.
    fn kinds(mut file: &[u8]) -> Vec<u32> {
        let word = |b: &[u8], at: usize| u32::from_le_bytes(*b[at..].first_chunk().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            let len = word(file, 4) as usize;
            assert_eq!((len % 4, word(file, len - 4) as usize), (0, len));
            found.push(word(file, 0));
            file = &file[len..];
        }
        found
    }

    #[test]
    fn blocks_follow_each_other() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, both(), 100, u64::MAX).unwrap();
        let frame = large(true, &[7; 333], 1448);
        capture.frame(5, 1, "db", false, &frame);
        capture.frame(6, 2, "web", true, &frame);
        capture.frame(7, 1, "db", true, &frame);
        assert_eq!((capture.frames, capture.dropped), (3, 0));
        assert_eq!(kinds(&file), [0x0a0d_0d0a, 1, 6, 1, 6, 6]);
    }

    #[test]
    fn filters() {
        let passes = |points: Points, received| {
            let mut file = Vec::new();
            let mut capture = Capture::new(&mut file, points, 100, u64::MAX).unwrap();
            capture.frame(5, 1, "db", received, &large(true, &[7; 33], 1448));
            capture.frames == 1
        };
        assert!(passes(both(), true) && passes(both(), false));
        assert!(!passes(Points { received: false, ..both() }, true));
        assert!(passes(Points { nodes: vec![1, 5], ..both() }, true));
        assert!(!passes(Points { nodes: vec![2], ..both() }, true));
        assert!(passes(only("udp tcp or"), true));
        assert!(!passes(only("udp"), true));
        assert!(passes(only("port=2-2"), true) && !passes(only("port=3-3"), true));
        assert!(passes(only("net=10.0.0.2/32"), true) && !passes(only("net=10.0.0.3/32"), true));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, both(), 65535, 600).unwrap();
        for _ in 0..5 {
            capture.frame(5, 1, "db", false, &large(true, &[7; 100], 1448));
        }
        assert!(capture.frames > 0 && capture.frames + capture.dropped == 5);
        assert!(file.len() <= 600);
        for len in 0..120 {
            let frame = large(false, &[7; 33], 1448);
            let mut capture = Capture::new(Vec::new(), only("port=2-2"), 10, 1 << 20).unwrap();
            capture.frame(5, 1, "db", false, frame.get(..len).unwrap_or(&frame));
        }
    }
}
