//! A segment from the guest: is it acceptable, and what does it acknowledge?

use super::{
    ACK_OWED, AMBIGUOUS, FIN_ACKED, FIN_SENT, Fate, GUEST_FIN, Recovery, SACK, State, TIMED, Tcb, Timer, seq,
};
use super::{FIRST_RTO, MAX_RTO, MIN_RTO, SOON};
use crate::slirp::core::Core;
use crate::slirp::device::Device;
use crate::slirp::flow::Key;
use crate::slirp::host::Host;
use crate::slirp::time::{SEC, Time};
use crate::slirp::wire::tcp::{self as wire, Tcp};

/// A longer round trip than this is an outage, not a path.
const MAX_SAMPLE: u32 = 10 * SEC as u32;
/// How many selectively acknowledged runs are remembered.
const SACKED: usize = 64;

impl Tcb {
    /// Takes in a segment. What it makes necessary is done by `settle` when the batch ends.
    pub fn segment<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        seg: &Tcp,
        data: &[u8],
    ) -> Fate {
        match self.state {
            State::Connecting => {
                let ours = seg.seq == self.rcv_nxt || seg.seq.wrapping_add(1) == self.rcv_nxt;
                if seg.flags & wire::RST != 0 && ours {
                    return self.close(core, true);
                }
                return Fate::Keep;
            }
            State::SynSent => return self.syn_sent(core, key, seg),
            State::TimeWait => {
                if seg.flags & wire::RST == 0 {
                    self.send_ack(core, key);
                }
                return Fate::Keep;
            }
            State::SynReceived | State::Established => {}
        }
        if seg.flags & wire::RST != 0 {
            return self.reset_by_guest(core, key, seg);
        }
        if seg.flags & wire::SYN != 0 {
            let repeated = self.state == State::SynReceived && seg.seq.wrapping_add(1) == self.rcv_nxt;
            if repeated && seg.flags & wire::ACK == 0 {
                self.send_syn(core, key);
                return Fate::Keep;
            }
            if !(repeated && seg.ack == self.snd_nxt) {
                self.challenge(core, key);
                return Fate::Keep;
            }
            // The other half of a simultaneous open.
        }
        if seg.flags & wire::ACK == 0 {
            return Fate::Keep;
        }
        if self.state == State::SynReceived {
            if seg.ack != self.snd_nxt {
                super::reject(core, key, seg, data.len());
                return Fate::Keep;
            }
            self.established_by_guest(core, seg);
            if seg.flags & wire::SYN != 0 {
                self.send_ack(core, key);
                return Fate::Keep;
            }
        }
        // RFC 5961 §5.2: an acknowledgement from the far past or of the future is no acknowledgement.
        let oldest = self.snd_una.wrapping_sub(self.max_wnd);
        if seq::after(seg.ack, self.snd_nxt) || seq::before(seg.ack, oldest) {
            self.challenge(core, key);
            return Fate::Keep;
        }
        let len = data.len() as u32 + u32::from(seg.flags & wire::FIN != 0);
        let end = seg.seq.wrapping_add(len);
        let acceptable = if len == 0 {
            !seq::before(seg.seq, self.rcv_nxt) && !seq::after(seg.seq, self.edge)
        } else {
            seq::after(end, self.rcv_nxt) && seq::before(seg.seq, self.edge)
        };
        if !acceptable {
            // A repeated segment, a probe of our window, or of our being alive.
            if seg.seq.wrapping_add(1) == self.rcv_nxt && data.len() <= 1 && seg.flags & wire::FIN == 0 {
                core.host.keepalive(self.sock);
            }
            if !seq::after(seg.seq, self.rcv_nxt) {
                self.acknowledged(core, key, seg, true);
            }
            self.send_ack(core, key);
            return Fate::Keep;
        }
        self.acknowledged(core, key, seg, len == 0);
        if len > 0 { self.receive(core, key, seg, data) } else { Fate::Keep }
    }

    /// A reset counts if it is exactly the next byte; elsewhere in the window it is asked about (RFC 5961 §3).
    fn reset_by_guest<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, seg: &Tcp) -> Fate {
        if seg.seq == self.rcv_nxt {
            // When both sides have said all, it answers something of ours that came late: a reset of the host's side
            // would throw away what its reader has not fetched yet.
            return self.close(core, !(self.has(GUEST_FIN) && self.has(FIN_SENT)));
        }
        if !seq::before(seg.seq, self.rcv_nxt) && seq::before(seg.seq, self.edge) {
            self.challenge(core, key);
        }
        Fate::Keep
    }

    /// Answers what may be forged by telling where the connection really stands.
    fn challenge<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        if core.may_challenge() {
            core.stats.challenges += 1;
            self.send_ack(core, key);
        }
    }

    /// Acknowledgement, selective acknowledgements and window. `bare`: the segment carries nothing else.
    fn acknowledged<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, seg: &Tcp, bare: bool) {
        let window = u32::from(seg.window) << self.snd_scale;
        let outstanding = self.inflight() > 0;
        let news = self.has(SACK) && self.note_sack(seg);
        // Whoever answers probes is alive, however long its window stays closed.
        match self.timer {
            Timer::Off => self.retries = 0,
            Timer::Persist => self.retries = self.retries.min(10),
            _ => {}
        }
        let advances = seq::after(seg.ack, self.snd_una);
        if advances {
            self.measure(core.now, seg.ack);
            self.snd_una = seg.ack;
            self.dupacks = 0;
            self.retries = 0;
            if self.has(FIN_SENT) && self.snd_una == self.snd_nxt {
                self.flags |= FIN_ACKED;
            }
            if self.inflight() == 0 {
                self.stop_timer();
                self.recovery = None;
            } else {
                self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
            }
        } else if seg.ack == self.snd_una && outstanding && bare && (news || window == self.snd_wnd) {
            self.dupacks = self.dupacks.saturating_add(1);
        }
        // RFC 9293 §3.10.7.4: only newer segments set the window. It counts from what they acknowledge; so one that
        // acknowledges more sets it in any case, or the right edge would move without the guest's leave.
        let newer =
            seq::before(self.wl.0, seg.seq) || (self.wl.0 == seg.seq && !seq::before(seg.ack, self.wl.1));
        if advances || (newer && seg.ack == self.snd_una) {
            if self.snd_wnd == 0 && window > 0 && self.timer == Timer::Persist {
                self.stop_timer();
                self.retries = 0;
            }
            self.snd_wnd = window;
            self.max_wnd = self.max_wnd.max(window);
            self.wl = (seq::later(self.wl.0, seg.seq), seg.ack);
        }
        self.recover(core, key);
    }

    /// Enters, goes on with, or leaves the sending again of what was lost.
    fn recover<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        let sacked: u32 = self.recovery.as_ref().map_or(0, |r| {
            r.sacked.iter().fold(0, |sum, (left, right)| sum.saturating_add(right.wrapping_sub(*left)))
        });
        let lost = self.dupacks >= 3 || sacked > 3 * u32::from(self.mss);
        let una = self.snd_una;
        let nxt = self.snd_nxt;
        if self.inflight() == 0 || (self.recovery.is_none() && !lost) {
            return;
        }
        let recovery = self.recovery.get_or_insert_default();
        match recovery.until {
            Some(until) if !seq::before(una, until) => {
                recovery.until = None;
                if recovery.sacked.is_empty() {
                    self.recovery = None;
                }
                return;
            }
            None if lost => {
                recovery.until = Some(nxt);
                recovery.next = una;
                self.flags &= !(TIMED | AMBIGUOUS);
            }
            None => return,
            Some(_) => {}
        }
        self.send_lost(core, key, core.max_segment(self.mss));
    }

    /// Notes what the guest has behind holes; true if it is news.
    fn note_sack(&mut self, seg: &Tcp) -> bool {
        let (una, nxt) = (seq::later(self.snd_una, seg.ack), self.snd_nxt);
        if let Some(recovery) = &mut self.recovery {
            recovery.sacked.retain(|(_, right)| seq::after(*right, una));
        }
        let mut news = false;
        for (left, right) in seg.sack.as_slice() {
            // Only what is outstanding counts; a duplicate report (RFC 2883) lies below.
            if !seq::before(*left, *right) || seq::before(*left, una) || seq::after(*right, nxt) {
                continue;
            }
            let sacked = &mut self.recovery.get_or_insert_with(Box::<Recovery>::default).sacked;
            news |= join(sacked, (*left, *right));
        }
        news
    }

    /// Takes a round trip's measure if the timed segment is acknowledged (RFC 6298).
    ///
    /// What was sent again because the timer ran out measures nothing (Karn's rule). But if its answer comes at once,
    /// it was lost, and the timer is right: its doubling ends. If the answer takes its time, the path may be longer
    /// than the timer: that stays doubled until something is acknowledged that was sent once.
    pub(super) fn measure(&mut self, now: Time, ack: u32) {
        if !self.has(TIMED) || seq::before(ack, self.timed) {
            return;
        }
        self.clear(TIMED);
        let rtt = (now as u32).wrapping_sub(self.timed_at).clamp(1, MAX_SAMPLE);
        if self.has(AMBIGUOUS) {
            self.clear(AMBIGUOUS);
            if rtt <= SOON.max(self.srtt.saturating_mul(2)) {
                self.end_backoff();
            }
            return;
        }
        if self.srtt == 0 {
            self.srtt = rtt;
            self.rttvar = rtt / 2;
        } else {
            self.rttvar = self.rttvar - self.rttvar / 4 + self.srtt.abs_diff(rtt) / 4;
            self.srtt = self.srtt - self.srtt / 8 + rtt / 8;
        }
        self.end_backoff();
    }

    /// The timer as the measurements have it.
    fn end_backoff(&mut self) {
        let measured = self.srtt.saturating_add(4 * self.rttvar).clamp(MIN_RTO, MAX_RTO);
        self.rto = if self.srtt == 0 { FIRST_RTO } else { measured };
    }

    /// An acknowledgement will be sent when the batch ends.
    pub(super) fn owe_ack(&mut self) {
        self.flags |= ACK_OWED;
    }
}

/// Adds a run to a sorted list of runs, joining those that it touches; true if that changed anything.
fn join(runs: &mut Vec<(u32, u32)>, (mut left, mut right): (u32, u32)) -> bool {
    if runs.iter().any(|(l, r)| !seq::before(left, *l) && !seq::after(right, *r)) {
        return false;
    }
    runs.retain(|(l, r)| {
        let apart = seq::before(*r, left) || seq::after(*l, right);
        if !apart {
            left = if seq::before(*l, left) { *l } else { left };
            right = seq::later(right, *r);
        }
        apart
    });
    if runs.len() < SACKED {
        let at = runs.partition_point(|(l, _)| seq::before(*l, left));
        runs.insert(at, (left, right));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join() {
        let mut runs = Vec::new();
        assert!(join(&mut runs, (10, 20)) && join(&mut runs, (30, 40)) && join(&mut runs, (5, 8)));
        assert!(!join(&mut runs, (12, 15)));
        assert!(join(&mut runs, (20, 30)));
        assert_eq!(runs, [(5, 8), (10, 40)]);
        assert!(join(&mut runs, (u32::MAX - 3, 6)));
        assert_eq!(runs, [(u32::MAX - 3, 8), (10, 40)]);
    }
}
