//! What passes a network of containers, written in pcapng form (IETF draft-ietf-opsawg-pcapng) for tcpdump, Wireshark
//! and our own reader: an interface a node, and for each frame whether the node sent or received it.
//!
//! Each block is one write, so that a file can be read while it grows. Large frames are written whole, as a capture on
//! a machine with offloads has them, and with the checksum that was left to the card. A file that cannot be written
//! any more, or has reached its limit, ends its capture; the traffic goes on.

use super::fabric::Node;
use super::segment;
use super::time::Time;
use super::wire::ethernet::{self, Ethernet};
use super::wire::ip::{self, Ip};
use super::wire::vnet;
use std::io::{self, Write};
use std::net::IpAddr;

/// What is written of all that passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Frames as their nodes sent them.
    pub sent: bool,
    /// Frames as their nodes received them.
    pub received: bool,
    /// At these nodes only, if there are any.
    pub nodes: Vec<Node>,
    /// Of these protocols only: `arp`, `icmp`, `tcp`, `udp`.
    pub protocols: Vec<String>,
    /// From or to these ports only.
    pub ports: Vec<u16>,
    /// From or to these addresses only.
    pub hosts: Vec<IpAddr>,
}

impl Filter {
    /// Whether a frame without `virtio_net_hdr` is wanted.
    fn matches(&self, frame: &[u8]) -> bool {
        if self.protocols.is_empty() && self.ports.is_empty() && self.hosts.is_empty() {
            return true;
        }
        let Some((eth, packet)) = Ethernet::parse(frame) else { return false };
        if eth.kind == ethernet::ARP {
            return self.protocol("arp") && self.ports.is_empty() && self.hosts.is_empty();
        }
        if !matches!(eth.kind, ethernet::IPV4 | ethernet::IPV6) {
            return false;
        }
        let Some((header, payload)) = Ip::parse(eth.kind, packet) else { return false };
        let name = match header.proto {
            ip::TCP => "tcp",
            ip::UDP => "udp",
            ip::ICMP | ip::ICMPV6 => "icmp",
            _ => "",
        };
        let port =
            |at: usize| payload.get(at..).and_then(<[u8]>::first_chunk).map(|b| u16::from_be_bytes(*b));
        let ported =
            matches!(header.proto, ip::TCP | ip::UDP) && header.part.is_none_or(|part| part.offset == 0);
        let either = [port(0), port(2)];
        self.protocol(name)
            && (self.hosts.is_empty() || [header.src, header.dst].iter().any(|a| self.hosts.contains(a)))
            && (self.ports.is_empty() || (ported && either.iter().flatten().any(|p| self.ports.contains(p))))
    }

    fn protocol(&self, name: &str) -> bool {
        self.protocols.is_empty() || self.protocols.iter().any(|p| p == name)
    }
}

/// A capture.
#[derive(Debug)]
pub struct Capture<W> {
    out: Option<W>,
    filter: Filter,
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

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let len = (padded + 12) as u32;
    let mut out = Vec::with_capacity(padded + 12);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(body);
    out.resize(8 + padded, 0);
    out.extend_from_slice(&len.to_le_bytes());
    out
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

impl<W: Write> Capture<W> {
    /// Writes the file's head: a section of no known length.
    pub fn new(out: W, filter: Filter, snap: usize, limit: u64) -> io::Result<Self> {
        let mut capture = Self {
            out: Some(out),
            filter,
            snap,
            limit,
            written: 0,
            interfaces: Vec::new(),
            frames: 0,
            dropped: 0,
        };
        let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        body.extend_from_slice(&[1, 0, 0, 0]);
        body.extend_from_slice(&[0xff; 8]);
        capture.write(&block(0x0a0d_0d0a, &body))?;
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
        let mut body = vec![1, 0, 0, 0]; // LINKTYPE_ETHERNET
        body.extend_from_slice(&(self.snap as u32).to_le_bytes());
        option(&mut body, 2, name.as_bytes()); // if_name; times are in microseconds if nothing is said
        option(&mut body, 0, &[]);
        self.write(&block(1, &body))?;
        self.interfaces.push(node);
        Ok(self.interfaces.len() - 1)
    }

    /// A frame with its `virtio_net_hdr` was sent or received by `node` at `time`, in microseconds since 1970.
    pub fn frame(&mut self, time: Time, node: Node, name: &str, received: bool, bytes: &[u8]) {
        let point = if received { self.filter.received } else { self.filter.sent };
        let here = self.filter.nodes.is_empty() || self.filter.nodes.contains(&node);
        let Some(frame) = bytes.get(vnet::LEN..) else { return };
        if !point || !here || !self.filter.matches(frame) {
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
        let kept = frame.get(..self.snap).unwrap_or(frame);
        let mut body = Vec::with_capacity(kept.len() + 40);
        for word in [interface as u64, time >> 32, time, kept.len() as u64, frame.len() as u64] {
            body.extend_from_slice(&(word as u32).to_le_bytes());
        }
        body.extend_from_slice(kept);
        body.resize(body.len().next_multiple_of(4), 0);
        option(&mut body, 2, &(if received { 1u32 } else { 2 }).to_le_bytes()); // epb_flags: in, out
        option(&mut body, 0, &[]);
        self.write(&block(6, &body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::segment::tests::large;

    fn both() -> Filter {
        Filter { sent: true, received: true, ..Filter::default() }
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
        let passes = |filter: Filter, received| {
            let mut file = Vec::new();
            let mut capture = Capture::new(&mut file, filter, 100, u64::MAX).unwrap();
            capture.frame(5, 1, "db", received, &large(true, &[7; 33], 1448));
            capture.frames == 1
        };
        assert!(passes(both(), true) && passes(both(), false));
        assert!(!passes(Filter { received: false, ..both() }, true));
        assert!(passes(Filter { nodes: vec![1, 5], ..both() }, true));
        assert!(!passes(Filter { nodes: vec![2], ..both() }, true));
        assert!(passes(Filter { protocols: vec!["udp".into(), "tcp".into()], ..both() }, true));
        assert!(!passes(Filter { protocols: vec!["udp".into()], ..both() }, true));
        assert!(
            passes(Filter { ports: vec![2], ..both() }, true)
                && !passes(Filter { ports: vec![3], ..both() }, true)
        );
        let host = |text: &str| Filter { hosts: vec![text.parse().unwrap()], ..both() };
        assert!(passes(host("10.0.0.2"), true) && !passes(host("10.0.0.3"), true));
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
            let filter = Filter { ports: vec![2], ..both() };
            let mut capture = Capture::new(Vec::new(), filter, 10, 1 << 20).unwrap();
            capture.frame(5, 1, "db", false, frame.get(..len).unwrap_or(&frame));
        }
    }
}
