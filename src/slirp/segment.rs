//! What a card would do: cutting large frames into those that go over the wire, and finishing checksums.
//!
//! Between two taps a large frame is passed on whole, and no byte of it is looked at. It must be cut where the
//! receiver does not take it, and where the wire is to treat frames one by one: a link that loses, delays or
//! damages frames does so to what a wire would carry.

use super::wire::checksum::Sum;
use super::wire::vnet::{self, VnetHeader};
use super::wire::{ethernet, ip, put};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most pieces that one frame is cut into; more is a lie about the segment's size (Linux sends no less than
/// 48 bytes of data a segment, `TCP_MIN_SND_MSS`).
const PIECES: usize = 2048;
/// TCP flags of the first segment only, and of the last only.
const CWR: u8 = 0x80;
const FIN_PSH: u8 = 0x09;

/// Fills in a checksum that was left to the device, and says that nothing is left any more.
pub fn complete(frame: &mut [u8]) {
    let Some((header, body)) = VnetHeader::parse(frame) else { return };
    if header.flags & vnet::NEEDS_CSUM != 0 && header.fits(body.len()) {
        let start = vnet::LEN + usize::from(header.csum_start);
        let sum = Sum::default().bytes(frame.get(start..).unwrap_or(&[])).finish();
        // In UDP zero means that there is none (RFC 768).
        let sum = if sum == 0 && header.csum_offset == 6 { 0xffff } else { sum };
        put(frame, start + usize::from(header.csum_offset), &sum.to_be_bytes());
    }
    put(frame, 0, &[0]);
}

/// Where the parts of a large frame lie, counted from its start without the `virtio_net_hdr`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    v4: bool,
    tcp: bool,
    /// The transport header.
    transport: usize,
    /// The data.
    data: usize,
    size: usize,
}

impl Layout {
    fn of(header: &VnetHeader, frame: &[u8]) -> Option<Self> {
        let v4 = match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
            ethernet::IPV4 => true,
            ethernet::IPV6 => false,
            _ => return None,
        };
        let tcp = header.gso_type & !vnet::GSO_ECN != vnet::GSO_UDP_L4;
        let transport = usize::from(header.csum_start);
        let least = ethernet::LEN + if v4 { 20 } else { 40 };
        if header.flags & vnet::NEEDS_CSUM == 0 || transport < least {
            return None;
        }
        let len = if tcp { usize::from(frame.get(transport + 12)? >> 4) * 4 } else { 8 };
        let data = transport + len;
        let size = usize::from(header.gso_size);
        let sound = len >= if tcp { 20 } else { 8 } && data <= frame.len() && size > 0;
        sound.then_some(Self { v4, tcp, transport, data, size })
    }
}

/// How many frames this one is on the wire: a large one counts for what it would be cut into.
pub fn count(bytes: &[u8]) -> u64 {
    let Some((header, frame)) = VnetHeader::parse(bytes) else { return 1 };
    if header.gso_type == vnet::GSO_NONE {
        return 1;
    }
    Layout::of(&header, frame).map_or(1, |at| (frame.len() - at.data).div_ceil(at.size).max(1) as u64)
}

/// Gives `each` the frames that this one is on the wire, with finished checksums; false if it cannot be cut.
pub fn cut(bytes: &[u8], mut each: impl FnMut(Vec<u8>)) -> bool {
    let Some((header, frame)) = VnetHeader::parse(bytes) else { return false };
    if header.gso_type == vnet::GSO_NONE {
        let mut whole = bytes.to_vec();
        complete(&mut whole);
        each(whole);
        return true;
    }
    let Some(at) = Layout::of(&header, frame) else { return false };
    let (Some(head), Some(data)) = (frame.get(..at.data), frame.get(at.data..)) else { return false };
    let pieces = data.len().div_ceil(at.size).max(1);
    if pieces > PIECES {
        return false;
    }
    for index in 0..pieces {
        let offset = index * at.size;
        let part = data.get(offset..data.len().min(offset + at.size)).unwrap_or(&[]);
        let mut out = Vec::with_capacity(vnet::LEN + head.len() + part.len());
        out.extend_from_slice(&[0; vnet::LEN]);
        out.extend_from_slice(head);
        out.extend_from_slice(part);
        if let Some(frame) = out.get_mut(vnet::LEN..) {
            patch(frame, at, index, offset, index + 1 == pieces);
        }
        each(out);
    }
    true
}

/// Makes the copied headers those of piece `index`, whose data lies `offset` bytes into the whole.
fn patch(frame: &mut [u8], at: Layout, index: usize, offset: usize, last: bool) {
    let word =
        |frame: &[u8], at: usize| frame.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; 2]);
    let length = frame.len() - ethernet::LEN;
    if at.v4 {
        put(frame, ethernet::LEN + 2, &(length as u16).to_be_bytes());
        let id = u16::from_be_bytes(word(frame, ethernet::LEN + 4)).wrapping_add(index as u16);
        put(frame, ethernet::LEN + 4, &id.to_be_bytes());
        put(frame, ethernet::LEN + 10, &[0, 0]);
        let sum = Sum::default().bytes(frame.get(ethernet::LEN..at.transport).unwrap_or(&[])).finish();
        put(frame, ethernet::LEN + 10, &sum.to_be_bytes());
    } else {
        put(frame, ethernet::LEN + 4, &((length.saturating_sub(40)) as u16).to_be_bytes());
    }
    if at.tcp {
        let sequence = frame.get(at.transport + 4..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; 4]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add(offset as u32);
        put(frame, at.transport + 4, &sequence.to_be_bytes());
        let mut flags = frame.get(at.transport + 13).copied().unwrap_or(0);
        flags &= if index == 0 { 0xff } else { !CWR };
        flags &= if last { 0xff } else { !FIN_PSH };
        put(frame, at.transport + 13, &[flags]);
    } else {
        put(frame, at.transport + 4, &((frame.len() - at.transport) as u16).to_be_bytes());
    }
    let field = at.transport + if at.tcp { 16 } else { 6 };
    put(frame, field, &[0, 0]);
    let body = frame.get(at.transport..).unwrap_or(&[]);
    let proto = if at.tcp { ip::TCP } else { ip::UDP };
    let sum = pseudo(frame, at.v4, proto, body.len()).bytes(body).finish();
    put(frame, field, &if sum == 0 && !at.tcp { 0xffff } else { sum }.to_be_bytes());
}

/// The pseudo-header's sum, with the addresses of the frame.
fn pseudo(frame: &[u8], v4: bool, proto: u8, len: usize) -> Sum {
    let at = |start: usize| frame.get(ethernet::LEN + start..).unwrap_or(&[]);
    let pair: Option<(IpAddr, IpAddr)> = if v4 {
        let read = |start| at(start).first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into());
        read(12).zip(read(16))
    } else {
        let read = |start| at(start).first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into());
        read(8).zip(read(24))
    };
    pair.map_or(Sum::default(), |(src, dst)| Sum::pseudo(src, dst, proto, len))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::slirp::wire::ethernet::{Ethernet, Mac};
    use crate::slirp::wire::ip::Ip;
    use crate::slirp::wire::tcp::{self, Tcp};
    use crate::slirp::wire::udp::{self, Udp};

    /// A large TCP frame as a tap gives it.
    pub(crate) fn large(v4: bool, data: &[u8], mss: u16) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = if v4 {
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
        } else {
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        };
        let ip = Ip::new(src, dst, ip::TCP);
        let flags = tcp::ACK | tcp::FIN | 0x08;
        let header = Tcp { src_port: 1, dst_port: 2, seq: 0xffff_ff00, flags, ..Tcp::default() };
        let (head, head_len) = header.emit(0);
        let mut frame = vec![0; vnet::LEN];
        let eth = Ethernet { dst: Mac([2; 6]), src: Mac([4; 6]), kind: ip.kind() };
        frame.extend_from_slice(&eth.emit());
        let start = frame.len();
        frame.resize(start + ip.header_len(), 0);
        ip.emit_into(&mut frame[start..], head_len + data.len());
        let transport = frame.len();
        frame.extend_from_slice(&head[..head_len]);
        frame.extend_from_slice(data);
        let partial = ip.pseudo(head_len + data.len()).partial();
        put(&mut frame, transport + 16, &partial.to_be_bytes());
        let meta = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: if v4 { vnet::GSO_TCPV4 } else { vnet::GSO_TCPV6 },
            gso_size: mss,
            csum_start: (transport - vnet::LEN) as u16,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        put(&mut frame, 0, &meta.emit());
        frame
    }

    #[test]
    fn pieces_are_what_the_wire_would_carry() {
        let data: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
        for v4 in [true, false] {
            let frame = large(v4, &data, 1448);
            assert_eq!(count(&frame), 4);
            let mut pieces = Vec::new();
            assert!(cut(&frame, |piece| pieces.push(piece)));
            assert_eq!(pieces.len(), 4);
            let mut read = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let (meta, frame) = VnetHeader::parse(piece).unwrap();
                assert_eq!(meta, VnetHeader::default());
                let (eth, packet) = Ethernet::parse(frame).unwrap();
                let (ip, payload) = Ip::parse(eth.kind, packet).unwrap();
                // Neither checksum is taken on trust.
                let (segment, part) = Tcp::parse(&ip, payload, false).unwrap();
                assert_eq!(segment.seq, 0xffff_ff00u32.wrapping_add(read.len() as u32));
                assert_eq!(segment.flags & tcp::FIN != 0, index == 3, "FIN only at the end");
                read.extend_from_slice(part);
            }
            assert_eq!(read, data);
        }
    }

    #[test]
    fn runs_of_datagrams_are_cut() {
        let ip = Ip::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), ip::UDP);
        let data = [7u8; 1000];
        let mut frame = vec![0; vnet::LEN];
        frame.extend_from_slice(&Ethernet { dst: Mac([2; 6]), src: Mac([4; 6]), kind: ip.kind() }.emit());
        let start = frame.len();
        frame.resize(start + ip.header_len(), 0);
        ip.emit_into(&mut frame[start..], udp::LEN + data.len());
        let transport = frame.len();
        let header = Udp { src_port: 5, dst_port: 6 };
        frame.extend_from_slice(&header.emit(data.len(), ip.pseudo(udp::LEN + data.len()).partial()));
        frame.extend_from_slice(&data);
        let meta = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            gso_size: 300,
            csum_start: (transport - vnet::LEN) as u16,
            csum_offset: 6,
            ..VnetHeader::default()
        };
        put(&mut frame, 0, &meta.emit());
        let mut sizes = Vec::new();
        assert!(cut(&frame, |piece| {
            let (eth, packet) = Ethernet::parse(&piece[vnet::LEN..]).unwrap();
            let (ip, payload) = Ip::parse(eth.kind, packet).unwrap();
            let (_, part) = Udp::parse(&ip, payload, false, false).unwrap();
            sizes.push(part.len());
        }));
        assert_eq!(sizes, [300, 300, 300, 100]);
    }

    #[test]
    fn lies_are_not_cut() {
        let frame = large(true, &[0; 3000], 1448);
        let lie = |at: usize, value: u16| {
            let mut frame = frame.clone();
            put(&mut frame, at, &value.to_ne_bytes());
            frame
        };
        for bad in [lie(4, 0), lie(4, 1), lie(6, 0), lie(6, 3050), lie(6, u16::MAX)] {
            assert!(!cut(&bad, |_| {}));
        }
        for len in 0..frame.len() {
            cut(&frame[..len], |_| {});
            complete(&mut frame[..len].to_vec());
        }
    }
}
