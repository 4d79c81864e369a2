//! A device that writes what passes through it to a pcap file (nanosecond form, Ethernet), for tcpdump and
//! Wireshark. Frames appear as the engine sees them: large ones uncut, without the `virtio_net_hdr`, and with
//! checksums that may be left undone (Wireshark calls that "checksum offload").

use super::{Capabilities, Device};
use crate::slirp::time::Time;
use crate::slirp::wire::vnet;
use std::io::{self, Write};

/// Writes frames in pcap form.
#[derive(Debug)]
pub struct Pcap<W> {
    out: W,
    snap: usize,
}

impl<W: Write> Pcap<W> {
    /// Writes the file's header. At most `snap` bytes of each frame are kept.
    pub fn new(mut out: W, snap: usize) -> io::Result<Self> {
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
        head.extend_from_slice(&[2, 0, 4, 0]);
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&(snap as u32).to_le_bytes());
        head.extend_from_slice(&1u32.to_le_bytes());
        out.write_all(&head)?;
        Ok(Self { out, snap })
    }

    /// Writes one frame (without `virtio_net_hdr`) that passed at `time`.
    pub fn frame(&mut self, time: Time, frame: &[u8]) -> io::Result<()> {
        let kept = frame.get(..self.snap).unwrap_or(frame);
        let mut head = Vec::with_capacity(16);
        for word in [time / 1_000_000, time % 1_000_000 * 1000, kept.len() as u64, frame.len() as u64] {
            head.extend_from_slice(&(word as u32).to_le_bytes());
        }
        self.out.write_all(&head)?;
        self.out.write_all(kept)
    }
}

/// A device whose traffic is recorded. A recorder that fails is dropped; the traffic goes on.
#[derive(Debug)]
pub struct Trace<D, W> {
    device: D,
    pcap: Option<Pcap<W>>,
    epoch: Time,
    now: Time,
}

impl<D: Device, W: Write> Trace<D, W> {
    /// Wraps `device`; `epoch` is the time since 1970 at which the engine's clock stood at zero.
    pub fn new(device: D, pcap: Pcap<W>, epoch: Time) -> Self {
        Self { device, pcap: Some(pcap), epoch, now: 0 }
    }

    fn note(&mut self, frame: &[u8]) {
        if let (Some(pcap), Some(frame)) = (&mut self.pcap, frame.get(vnet::LEN..)) {
            if pcap.frame(self.epoch + self.now, frame).is_err() {
                self.pcap = None;
            }
        }
    }
}

impl<D: Device, W: Write> Device for Trace<D, W> {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let got = self.device.recv(buffer)?;
        if let Some(frame) = got.and_then(|len| buffer.get(..len)) {
            self.note(frame);
        }
        Ok(got)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.note(frame);
        self.device.send(frame)
    }

    fn advance(&mut self, now: Time) {
        self.now = now;
        self.device.advance(now);
    }

    fn next_due(&self) -> Option<Time> {
        self.device.next_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slirp::device::pair;

    #[test]
    fn both_directions_are_written() {
        let (near, mut far) = pair(Capabilities::ALL, 8);
        let mut file = Vec::new();
        {
            let mut trace = Trace::new(near, Pcap::new(&mut file, 4).unwrap(), 7_000_000);
            trace.advance(2_000_001);
            trace.send(b"0123456789abcdef").unwrap();
            far.send(b"0123456789xy").unwrap();
            assert_eq!(trace.recv(&mut [0; 64]).unwrap(), Some(12));
        }
        assert_eq!(file.len(), 24 + 16 + 4 + 16 + 2);
        assert_eq!(&file[24..40], &[9, 0, 0, 0, 0xe8, 3, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(&file[40..44], b"abcd");
        assert_eq!(&file[60..], b"xy");
    }
}
