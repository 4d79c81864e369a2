//! The host's data on its way to the guest.

use super::{
    CLOSED_FIRST, FIN_ACKED, FIN_HELD, FIN_SENT, GUEST_FIN, HANGUP, READABLE, TIMED, TURN_OVER, Tcb, Timer,
    seq,
};
use crate::slirp::core::Core;
use crate::slirp::device::Device;
use crate::slirp::flow::Key;
use crate::slirp::host::{Host, Peek};
use crate::slirp::wire::tcp as wire;
use std::io::ErrorKind;

/// Frames that one flow may send before others get their turn.
const TURN: usize = 32;

impl Tcb {
    /// True if [`Self::pump`] stopped only because its turn was over.
    pub fn wants_turn(&self) -> bool {
        self.has(TURN_OVER)
    }

    /// Sends what the host's socket holds, as far as the guest's window allows.
    pub(super) fn pump<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
    ) -> Result<(), ErrorKind> {
        self.widen(core);
        self.clear(TURN_OVER);
        if !self.has(READABLE) || self.has(FIN_SENT) {
            return Ok(());
        }
        let largest = core.max_segment(self.mss) as u32;
        for _ in 0..TURN {
            let inflight = self.inflight();
            let room = self.snd_wnd.min(core.config.limits.inflight).saturating_sub(inflight);
            let worthwhile = u32::from(self.mss).min(self.max_wnd / 2).max(1);
            if room < worthwhile && (room == 0 || self.exceeds(core, room)?) {
                // Better wait for room than send crumbs; but not for ever.
                if inflight == 0 && self.timer != Timer::Persist {
                    self.start_timer(Timer::Persist, core.now + u64::from(self.rto));
                }
                return Ok(());
            }
            // Whole segments, unless the window is smaller than one.
            let whole = if room > u32::from(self.mss) { room - room % u32::from(self.mss) } else { room };
            let want = whole.min(largest);
            match self.send_at(core, key, self.snd_nxt, want)? {
                Some(0) => {
                    self.send_fin(core, key);
                    return Ok(());
                }
                Some(n) => {
                    self.snd_nxt = self.snd_nxt.wrapping_add(n);
                    self.traffic.received += u64::from(n);
                    // While a hole is being filled, acknowledgements wait for that.
                    if !self.has(TIMED) && self.recovery.as_ref().is_none_or(|r| r.until.is_none()) {
                        self.time(self.snd_nxt, core.now);
                    }
                    if self.timer != Timer::Retransmit {
                        self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
                    }
                    if n < want && !self.has(HANGUP) {
                        // A short read has emptied the queue: the next data is a new edge.
                        self.clear(READABLE);
                        return Ok(());
                    }
                }
                None => {
                    self.clear(READABLE);
                    return Ok(());
                }
            }
        }
        self.set(TURN_OVER);
        Ok(())
    }

    /// True if the host's socket holds more than `room` bytes that were not sent.
    fn exceeds<H: Host, D: Device>(&self, core: &mut Core<H, D>, room: u32) -> Result<bool, ErrorKind> {
        let offset = self.snd_nxt.wrapping_sub(self.base) as usize;
        let sock = self.sock;
        let (host, place) = core.payload(room as usize + 1);
        Ok(matches!(host.peek(sock, offset, place)?, Peek::Data(n) if n > room as usize))
    }

    /// Fills a small window.
    pub(super) fn send_small<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
    ) -> Result<(), ErrorKind> {
        let room = self.snd_wnd.saturating_sub(self.inflight()).min(self.mss.into());
        if let Some(n @ 1..) = self.send_at(core, key, self.snd_nxt, room)? {
            self.snd_nxt = self.snd_nxt.wrapping_add(n);
            self.traffic.received += u64::from(n);
            self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
        }
        Ok(())
    }

    /// Sends up to `want` bytes from `seq` on, as they lie in the host's queue: how many there were, 0 at the
    /// stream's end, `None` if there are none now.
    fn send_at<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        seq: u32,
        want: u32,
    ) -> Result<Option<u32>, ErrorKind> {
        let offset = seq.wrapping_sub(self.base) as usize;
        let sock = self.sock;
        let (host, place) = core.payload(want as usize);
        match host.peek(sock, offset, place)? {
            Peek::Data(n) => {
                self.transmit(core, key, seq, wire::PSH, n);
                Ok(Some(n as u32))
            }
            Peek::Blocked => Ok(None),
            Peek::End => Ok(Some(0)),
        }
    }

    /// Everything is sent, and the host's side has ended.
    fn send_fin<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        if !self.has(GUEST_FIN | FIN_HELD) {
            self.set(CLOSED_FIRST);
        }
        self.set(FIN_SENT);
        self.clear(READABLE);
        self.transmit(core, key, self.snd_nxt, wire::FIN, 0);
        self.snd_nxt = self.snd_nxt.wrapping_add(1);
        if self.timer != Timer::Retransmit {
            self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
        }
    }

    /// Sends again what counts as lost, from where that stopped, up to `budget` bytes.
    pub(super) fn send_lost<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, budget: usize) {
        let mut left = budget as u32;
        while left > 0 {
            let Some((start, end)) = self.next_hole() else { return };
            let data_end = self.data_end();
            if !seq::before(start, data_end) {
                if self.has(FIN_SENT) && !self.has(FIN_ACKED) {
                    core.stats.retransmits += 1;
                    self.traffic.resent = self.traffic.resent.saturating_add(1);
                    self.transmit(core, key, data_end, wire::FIN, 0);
                    self.resent_to(data_end.wrapping_add(1));
                }
                return;
            }
            let end = if seq::after(end, data_end) { data_end } else { end };
            let want = end.wrapping_sub(start).min(left).min(core.max_segment(self.mss) as u32);
            // What was sent is still in the queue: nothing else can come back, but a broken socket. That shows
            // again when new data is looked at.
            let Ok(Some(n @ 1..)) = self.send_at(core, key, start, want) else { return };
            core.stats.retransmits += 1;
            self.traffic.resent = self.traffic.resent.saturating_add(1);
            self.resent_to(start.wrapping_add(n));
            left -= n.min(left);
        }
    }

    fn resent_to(&mut self, next: u32) {
        if let Some(recovery) = &mut self.recovery {
            recovery.next = next;
        }
    }

    /// The next range that is neither acknowledged nor sent again; only what lies before something that has
    /// arrived counts as lost, if anything has.
    fn next_hole(&mut self) -> Option<(u32, u32)> {
        let una = self.snd_una;
        let recovery = self.recovery.as_mut()?;
        let until = recovery.until?;
        let mut at = seq::later(una, recovery.next);
        for (left, right) in &recovery.sacked {
            if seq::before(at, *left) {
                return Some((at, *left));
            }
            at = seq::later(at, *right);
        }
        let beyond = recovery.sacked.is_empty() && seq::before(at, until);
        beyond.then_some((at, until))
    }
}
