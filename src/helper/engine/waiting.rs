//! Waiting for events, as both loops do it.
//!
//! After activity it looks again without sleeping for some microseconds: a request and its answer are often that
//! close, and waking up costs more. It does so only as long as it pays, and never with one processor.

use crate::sys::{self, Event, Fd};
use std::time::{Duration, Instant};

/// How long to look without sleeping.
const SPIN: Duration = Duration::from_micros(80);

/// Whether there is more than one processor. To be asked before the sandbox, which does not tell.
pub fn several() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

/// An epoll instance, and what was learnt about it.
pub struct Waiting {
    /// The instance.
    pub epoll: Fd,
    /// There is more than one processor.
    spin: bool,
    /// Rises when looking again found something, falls when it did not.
    credit: i32,
}

impl Waiting {
    /// Begins with some trust in looking again, if there are several processors (`spin`).
    pub fn new(epoll: Fd, spin: bool) -> Self {
        Self { epoll, spin, credit: 8 }
    }

    /// How many events there are, at `due` at the latest, which is never if `None`: looks first, then sleeps.
    pub fn wait(&mut self, events: &mut [Event], due: Option<Instant>) -> usize {
        let begin = Instant::now();
        let left = due.map(|due| due.saturating_duration_since(begin));
        if self.spin && self.credit > 0 && left != Some(Duration::ZERO) {
            let limit = SPIN.min(left.unwrap_or(SPIN));
            while begin.elapsed() <= limit {
                match sys::epoll_wait(self.epoll, events, 0) {
                    Ok(0) | Err(_) => std::hint::spin_loop(),
                    Ok(n) => {
                        self.credit = (self.credit + 1).min(64);
                        return n;
                    }
                }
            }
            self.credit -= 8;
        } else {
            // Try again now and then.
            self.credit += 1;
        }
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        sys::epoll_wait_for(self.epoll, events, left).unwrap_or(0)
    }
}
