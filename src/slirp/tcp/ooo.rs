//! Data that arrived behind a hole: kept, bounded, and told of by SACK (RFC 2018).
//!
//! Runs are sorted, do not overlap and do not touch. Where new data overlaps what is there, what came first
//! stays. On a tap nothing is ever out of order; on a packet device and under loss it is.

use super::seq;
use crate::slirp::wire::tcp::Sack;

/// The most runs that are kept.
const RUNS: usize = 64;
/// The most bytes that are kept for one flow.
const BYTES: usize = 1 << 20;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct OutOfOrder {
    runs: Vec<(u32, Vec<u8>)>,
    bytes: usize,
    /// The first byte of what came last: its run is told first.
    latest: u32,
    /// Where the stream ends, if a FIN came with data behind a hole.
    pub(super) end: Option<u32>,
}

impl OutOfOrder {
    /// True if nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.end.is_none()
    }

    /// How many bytes are kept.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Keeps `data` that starts at `start`, as far as it is new and there is room (also under `room`, that of
    /// all flows together).
    pub(super) fn insert(&mut self, start: u32, data: &[u8], room: usize) {
        self.latest = start;
        let (mut at, mut rest) = (start, data);
        while !rest.is_empty() {
            let next = self.runs.partition_point(|(s, _)| !seq::after(*s, at));
            if let Some((s, run)) = next.checked_sub(1).and_then(|i| self.runs.get(i)) {
                let end = s.wrapping_add(run.len() as u32);
                if seq::before(at, end) {
                    let skip = (end.wrapping_sub(at) as usize).min(rest.len());
                    at = at.wrapping_add(skip as u32);
                    rest = rest.get(skip..).unwrap_or(&[]);
                    continue;
                }
            }
            let gap = self.runs.get(next).map_or(rest.len(), |(s, _)| s.wrapping_sub(at) as usize);
            let (fits, more) = rest.split_at(gap.min(rest.len()));
            if self.bytes + fits.len() > BYTES.min(room) {
                return;
            }
            self.place(next, at, fits);
            at = at.wrapping_add(fits.len() as u32);
            rest = more;
        }
    }

    /// Puts `data` before the run `next`, joining neighbours that it touches.
    fn place(&mut self, next: usize, at: u32, data: &[u8]) {
        let end = at.wrapping_add(data.len() as u32);
        let touches_next = self.runs.get(next).is_some_and(|(s, _)| *s == end);
        let before = next
            .checked_sub(1)
            .filter(|i| self.runs.get(*i).is_some_and(|(s, run)| s.wrapping_add(run.len() as u32) == at));
        let joined = match before {
            Some(index) => index,
            None if self.runs.len() >= RUNS && !touches_next => return,
            None => {
                self.runs.insert(next, (at, Vec::new()));
                next
            }
        };
        let tail = if touches_next { self.runs.remove(joined + 1).1 } else { Vec::new() };
        if let Some((_, run)) = self.runs.get_mut(joined) {
            run.extend_from_slice(data);
            run.extend_from_slice(&tail);
            self.bytes += data.len();
        }
    }

    /// Takes out the run that continues the stream at `next`, if there is one; it may start before `next`.
    pub(super) fn take(&mut self, next: u32) -> Option<(u32, Vec<u8>)> {
        let (start, run) = self.runs.first()?;
        if seq::after(*start, next) {
            return None;
        }
        self.bytes -= run.len();
        Some(self.runs.remove(0))
            .filter(|(s, run)| seq::after(s.wrapping_add(run.len() as u32), next))
            .or_else(|| self.take(next))
    }

    /// What to tell the sender: the run that grew last, then the others from the first.
    pub(super) fn sack(&self) -> Sack {
        let mut sack = Sack::default();
        let range = |(start, run): &(u32, Vec<u8>)| (*start, start.wrapping_add(run.len() as u32));
        let latest = self
            .runs
            .iter()
            .map(range)
            .find(|(l, r)| !seq::after(*l, self.latest) && seq::before(self.latest, *r));
        if let Some(latest) = latest {
            sack.push(latest);
        }
        for other in self.runs.iter().map(range).filter(|r| Some(*r) != latest) {
            sack.push(other);
        }
        sack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(q: &OutOfOrder) -> Vec<(u32, u32)> {
        q.runs.iter().map(|(s, r)| (*s, s.wrapping_add(r.len() as u32))).collect()
    }

    #[test]
    fn overlaps_left_right_inside_and_around() {
        let mut q = OutOfOrder::default();
        q.insert(100, b"cdef", 1 << 20);
        q.insert(98, b"abXX", 1 << 20);
        assert_eq!(q.runs, [(98, b"abcdef".to_vec())], "what came first stays");
        q.insert(100, b"YY", 1 << 20);
        q.insert(102, b"ZZgh", 1 << 20);
        assert_eq!(q.runs, [(98, b"abcdefgh".to_vec())]);
        q.insert(110, b"mn", 1 << 20);
        q.insert(96, b"--########ij##op", 1 << 20);
        assert_eq!(
            q.runs,
            [(96, b"--abcdefghij##mn".to_vec())].map(|(s, mut r)| {
                r[12..14].copy_from_slice(b"##");
                (s, r)
            })
        );
        assert_eq!(q.len(), 16);
    }

    #[test]
    fn across_the_wrap_of_the_sequence() {
        let mut q = OutOfOrder::default();
        q.insert(u32::MAX - 1, b"abcd", 1 << 20);
        q.insert(10, b"x", 1 << 20);
        assert_eq!(ranges(&q), [(u32::MAX - 1, 2), (10, 11)]);
        assert_eq!(q.take(u32::MAX - 2), None);
        assert_eq!(q.take(0), Some((u32::MAX - 1, b"abcd".to_vec())));
        assert_eq!((q.take(2), q.len()), (None, 1));
    }

    #[test]
    fn latest_run_is_told_first() {
        let mut q = OutOfOrder::default();
        for start in [10, 30, 50, 70, 90] {
            q.insert(start, b"12345", 1 << 20);
        }
        q.insert(35, b"6", 1 << 20);
        assert_eq!(q.sack().as_slice(), [(30, 36), (10, 15), (50, 55), (70, 75)]);
    }

    #[test]
    fn bounded_in_runs_and_bytes() {
        let mut q = OutOfOrder::default();
        for i in 0..1000 {
            q.insert(i * 10, b"12345", 1 << 20);
        }
        assert_eq!(q.runs.len(), RUNS);
        q.insert(1_000_000, &vec![0; BYTES], usize::MAX);
        assert_eq!(q.len(), RUNS * 5);
        q.insert(5, b"12345", 10);
        assert_eq!(q.len(), RUNS * 5, "no room in the pool");
        q.insert(5, b"12345", 1 << 20);
        assert_eq!(q.runs.len(), RUNS - 1, "a filled hole joins its neighbours");
    }
}
