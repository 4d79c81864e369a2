//! The wire: every header that the engine reads or writes, one protocol a file.
//!
//! A header is a plain struct. `parse` takes bytes from a hostile guest and gives the header and what follows
//! it, or `None`: why a frame is bad never matters to the caller, who counts it and drops it. `emit` gives
//! bytes. If a header can be constructed it can be emitted and parsed again. All reading goes through the
//! bounds-checked [`Reader`]; nothing here can panic on any input, nothing allocates on the hot path, and
//! nothing is `unsafe`. Runs in the engine's process, on frames that the guest fully controls.

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod dns;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod tcp;
pub mod udp;
pub mod vnet;

#[cfg(test)]
mod differential;

/// A cursor over received bytes: every read is checked, none panics.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|b| b[0])
    }

    /// The next two bytes, big-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes, big-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Everything not yet read.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Copies `from` over the start of `into` as far as both reach.
///
/// For writing fixed headers into buffers whose size the caller has already settled: a mistake shows as a bad
/// frame in a test, never as a panic in the engine.
pub fn put(into: &mut [u8], at: usize, from: &[u8]) {
    if let Some(target) = into.get_mut(at..at.saturating_add(from.len())) {
        target.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_never_reads_past_the_end() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u16(), Some(0x0102));
        assert_eq!(r.u16(), None);
        assert_eq!(r.u8(), Some(3));
        assert_eq!(r.take(1), None);
        assert_eq!(r.rest(), &[] as &[u8]);
    }

    #[test]
    fn put_ignores_what_does_not_fit() {
        let mut b = [0u8; 4];
        put(&mut b, 2, &[1, 2]);
        put(&mut b, 3, &[9, 9]);
        put(&mut b, usize::MAX, &[9]);
        assert_eq!(b, [0, 0, 1, 2]);
    }
}
