//! `struct virtio_net_hdr`: what a tap or packet device with `IFF_VNET_HDR` puts before each frame.
//!
//! It carries the two offloads that make this engine fast: a frame may be up to 64 KiB with `gso_size` telling
//! how to cut it, and its checksum may be left to whoever finally needs one. The guest's kernel fills it on
//! frames to us, but a process in the guest with a packet socket can put anything there, so every field is
//! checked against the frame ([`VnetHeader::fits`]). Native byte order, 10 bytes (virtio 1.x §5.1.6, tuntap.rst).

/// Length of the header before each frame.
pub const LEN: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo-header's sum only.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: checksums were already verified.
pub const DATA_VALID: u8 = 2;
/// No segmentation.
pub const GSO_NONE: u8 = 0;
/// TCP over `IPv4`.
pub const GSO_TCPV4: u8 = 1;
/// TCP over `IPv6`.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams of one size (`VIRTIO_NET_HDR_GSO_UDP_L4`, Linux 6.2).
pub const GSO_UDP_L4: u8 = 5;
/// Flag on the TCP kinds: congestion window reduced was set.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` kinds.
    pub gso_type: u8,
    /// Length of all headers; a hint that is never trusted.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// From where to sum.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Splits a received buffer into header and frame.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, frame) = bytes.split_first_chunk::<LEN>()?;
        let word = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let header = Self {
            flags: head[0],
            gso_type: head[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
        Some((header, frame))
    }

    /// The ten bytes.
    pub fn emit(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        out[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        out[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        out
    }

    /// True if the header does not lie about a frame of `len` bytes: a known kind, a segment size where one is
    /// needed, and a checksum field inside the frame.
    pub fn fits(&self, len: usize) -> bool {
        let gso = match self.gso_type & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 => self.gso_size > 0,
            _ => false,
        };
        let field = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        gso && (self.flags & NEEDS_CSUM == 0 || field <= len)
    }

    /// True if the transport checksum need not be verified: the kernel vouches for it, or has left it undone.
    pub fn trusted(&self) -> bool {
        self.flags & (NEEDS_CSUM | DATA_VALID) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let mut bytes = header.emit().to_vec();
        bytes.push(7);
        assert_eq!(VnetHeader::parse(&bytes), Some((header, &[7u8][..])));
        assert_eq!(VnetHeader::parse(&bytes[..9]), None);
    }

    #[test]
    fn lies_are_seen() {
        let ok = VnetHeader { gso_type: GSO_UDP_L4, gso_size: 1, ..VnetHeader::default() };
        assert!(ok.fits(60) && VnetHeader::default().fits(0));
        assert!(!VnetHeader { gso_size: 0, ..ok }.fits(60));
        assert!(!VnetHeader { gso_type: 3, ..ok }.fits(60), "UFO is not offered");
        assert!(!VnetHeader { flags: NEEDS_CSUM, csum_start: 59, ..ok }.fits(60));
        assert!(
            !VnetHeader { flags: NEEDS_CSUM, csum_start: u16::MAX, csum_offset: u16::MAX, ..ok }.fits(60)
        );
    }
}
