//! Fuzzing without a fuzzer: each target makes histories from a seed and holds the engine to what must always be
//! true. A failure names its seed, and the seed gives the same history again.
//!
//! Each target runs for `R2D2_FUZZ_SECONDS` (a second unless set), starting at the seed `R2D2_FUZZ_SEED` (zero unless
//! set): to repeat a failure, name its seed; to look for new ones, start at another and give it time.
//!
//! | target | what it does |
//! | --- | --- |
//! | `frame` | frames that a real kernel sent (`corpus.hex`), mutated |
//! | `tcp` | one connection whose guest lies, forgets and repeats, then behaves: everything must arrive |
//! | `reassembly` | packets cut, shuffled, doubled, overlapping |
//! | `dns` | queries and answers, right and wrong, in any order |
//! | `dhcp` | many clients, and damaged messages |
//! | `control` | the real program: descriptions and requests of its owner, damaged, too long, with odd descriptors |

mod control;
mod dhcp;
mod dns;
mod frame;
mod reassembly;
mod tcp;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A number that programs get wrong: near zero, near the ends of types, or any.
    pub(super) fn odd(&mut self) -> u32 {
        let near = self.pick(&[0u32, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, u32::MAX]);
        if self.once_in(4) { self.next() as u32 } else { near.wrapping_add(self.below(5) as u32) }
    }

    /// Damages bytes: bits, whole fields, length, order, repetition.
    pub(super) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                bytes.push(self.next() as u8);
            }
            let at = self.below(bytes.len());
            match self.below(7) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.odd() as u8,
                2 => {
                    let value = (self.odd() as u16).to_be_bytes();
                    bytes.iter_mut().skip(at).zip(value).for_each(|(b, v)| *b = v);
                }
                3 => {
                    let value = self.odd().to_be_bytes();
                    bytes.iter_mut().skip(at).zip(value).for_each(|(b, v)| *b = v);
                }
                4 => bytes.truncate(at),
                5 => {
                    let piece = bytes[at..bytes.len().min(at + 40)].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => bytes.extend(std::iter::repeat_n(self.next() as u8, self.below(40))),
            }
        }
        bytes.truncate(70_000);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[allow(clippy::print_stderr, reason = "libtest shows it if the test fails, or if asked")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// Runs `history` for one seed after the other until the time is up.
fn run(history: impl Fn(u64)) {
    let seconds = setting("R2D2_FUZZ_SECONDS").unwrap_or(1);
    let first = setting("R2D2_FUZZ_SEED").unwrap_or(0);
    let (began, mut count) = (Instant::now(), 0);
    while count == 0 || began.elapsed() < Duration::from_secs(seconds) {
        let seed = first + count;
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| history(seed))) {
            say(&format!("found by R2D2_FUZZ_SEED={seed}"));
            resume_unwind(cause);
        }
        count += 1;
    }
    say(&format!("{count} histories from seed {first} on, no finding"));
}
