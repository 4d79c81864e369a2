//! TCP headers and options (RFC 9293, 7323, 2018).

use super::Reader;
use super::ip::Ip;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Length of the longest header.
pub const MAX_LEN: usize = 60;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Start of a connection.
pub const SYN: u8 = 0x02;
/// Abort.
pub const RST: u8 = 0x04;
/// Deliver at once.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const URG: u8 = 0x20;

/// Ranges that have arrived behind a hole: up to four, `[left, right)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sack {
    /// The ranges; only the first `len` count.
    pub ranges: [(u32, u32); 4],
    /// How many.
    pub len: u8,
}

impl Sack {
    /// The ranges that count.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        self.ranges.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// Adds a range if there is room.
    pub fn push(&mut self, range: (u32, u32)) {
        if let Some(slot) = self.ranges.get_mut(usize::from(self.len)) {
            *slot = range;
            self.len += 1;
        }
    }
}

/// A segment's header with the options that the engine understands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Next byte expected from the other side.
    pub ack: u32,
    /// The `SYN` to `URG` bits.
    pub flags: u8,
    /// Window as on the wire, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Maximum segment size; on SYN only.
    pub mss: Option<u16>,
    /// Window scale; on SYN only.
    pub window_scale: Option<u8>,
    /// Selective acknowledgements are understood; on SYN only.
    pub sack_permitted: bool,
    /// Selective acknowledgements.
    pub sack: Sack,
}

impl Tcp {
    /// Splits a segment into header and data; `trusted` as for UDP.
    pub fn parse<'a>(ip: &Ip, segment: &'a [u8], trusted: bool) -> Option<(Self, &'a [u8])> {
        let mut r = Reader::new(segment);
        let mut header =
            Self { src_port: r.u16()?, dst_port: r.u16()?, seq: r.u32()?, ack: r.u32()?, ..Self::default() };
        let header_len = usize::from(r.u8()? >> 4) * 4;
        header.flags = r.u8()? & 0x3f;
        header.window = r.u16()?;
        r.u16()?;
        header.urgent = r.u16()?;
        let options = r.take(header_len.checked_sub(LEN)?)?;
        if !trusted && !ip.pseudo(segment.len()).bytes(segment).verifies() {
            return None;
        }
        header.read_options(options)?;
        Some((header, r.rest()))
    }

    /// Reads the option list; a length that runs out of it makes the segment malformed.
    fn read_options(&mut self, options: &[u8]) -> Option<()> {
        let mut r = Reader::new(options);
        while let Some(kind) = r.u8() {
            match kind {
                0 => break,
                1 => continue,
                _ => {}
            }
            let len = usize::from(r.u8()?);
            let body = r.take(len.checked_sub(2)?)?;
            let mut b = Reader::new(body);
            let syn = self.flags & SYN != 0;
            match (kind, body.len()) {
                (2, 2) if syn => self.mss = b.u16(),
                (3, 1) if syn => self.window_scale = b.u8(),
                (4, 0) if syn => self.sack_permitted = true,
                (5, 8 | 16 | 24 | 32) => {
                    while let (Some(left), Some(right)) = (b.u32(), b.u32()) {
                        self.sack.push((left, right));
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// The header's bytes with `checksum` in its field, and how many of them count.
    ///
    /// Options beyond 40 bytes are left out: the SACK ranges of a SYN.
    pub fn emit(&self, checksum: u16) -> ([u8; MAX_LEN], usize) {
        let mut out = [0u8; MAX_LEN];
        out[..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.to_be_bytes());
        out[13] = self.flags;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..18].copy_from_slice(&checksum.to_be_bytes());
        out[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        let mut len = LEN;
        let mut add = |bytes: &[u8]| {
            super::put(&mut out, len, bytes);
            len += bytes.len();
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            add(&[2, 4, high, low]);
        }
        if self.sack_permitted {
            add(&[1, 1, 4, 2]);
        }
        if let Some(scale) = self.window_scale {
            add(&[1, 3, 3, scale]);
        }
        let ranges = self.sack.as_slice();
        if !ranges.is_empty() && self.flags & SYN == 0 {
            add(&[1, 1, 5, 2 + 8 * ranges.len() as u8]);
            for (left, right) in ranges {
                add(&left.to_be_bytes());
                add(&right.to_be_bytes());
            }
        }
        out[12] = (len as u8 / 4) << 4;
        (out, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::wire::{ip, put};

    fn ip() -> Ip {
        Ip::new([10, 0, 2, 100].into(), [192, 0, 2, 1].into(), ip::TCP)
    }

    fn bytes(tcp: &Tcp, data: &[u8]) -> Vec<u8> {
        let (head, len) = tcp.emit(0);
        let mut out = [&head[..len], data].concat();
        let sum = ip().pseudo(out.len()).bytes(&out).finish();
        put(&mut out, 16, &sum.to_be_bytes());
        out
    }

    #[test]
    fn syn_options_round_trip() {
        let syn = Tcp {
            src_port: 1,
            dst_port: 2,
            seq: u32::MAX,
            flags: SYN,
            window: 65535,
            mss: Some(1460),
            window_scale: Some(14),
            sack_permitted: true,
            ..Tcp::default()
        };
        assert_eq!(Tcp::parse(&ip(), &bytes(&syn, b""), false), Some((syn, &b""[..])));
    }

    #[test]
    fn four_sack_ranges_round_trip() {
        let mut sack = Sack::default();
        for i in 0..5 {
            sack.push((i * 10, i * 10 + 5));
        }
        let tcp = Tcp { flags: ACK, sack, ..Tcp::default() };
        assert_eq!(sack.len, 4);
        assert_eq!(Tcp::parse(&ip(), &bytes(&tcp, b"data"), false), Some((tcp, &b"data"[..])));
    }

    #[test]
    fn truncation_and_lying_lengths() {
        let tcp = Tcp { flags: SYN, mss: Some(1460), ..Tcp::default() };
        let good = bytes(&tcp, b"");
        for len in 0..good.len() {
            assert_eq!(Tcp::parse(&ip(), &good[..len], true), None, "{len}");
        }
        for (at, value) in [(12, 0x40), (12, 0xf0), (21, 0), (21, 1), (21, 5)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Tcp::parse(&ip(), &bad, true), None, "{at}={value}");
        }
        let mut bad = good;
        bad[4] ^= 1;
        assert_eq!(Tcp::parse(&ip(), &bad, false), None, "checksum");
    }
}
