//! What happens when nothing does: retransmission, window probes, keepalive, the end of `TIME_WAIT`.

use super::{AMBIGUOUS, FIN_SENT, Fate, MAX_RTO, Recovery, State, Tcb, Timer};
use crate::slirp::core::Core;
use crate::slirp::device::Device;
use crate::slirp::flow::Key;
use crate::slirp::host::Host;

/// How often a SYN is sent again: after 1, 3, 7, 15 and 31 s.
const SYN_RETRIES: u8 = 5;
/// How often data is sent again, as Linux's `tcp_retries2`.
const DATA_RETRIES: u8 = 15;
/// How many keepalive probes may stay without answer.
const PROBES: u8 = 9;

impl Tcb {
    /// The deadline has come.
    pub fn expired<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        let timer = self.timer;
        self.stop_timer();
        match timer {
            Timer::Off => Fate::Keep,
            Timer::Finish => Fate::Gone,
            Timer::Retransmit => self.retransmit(core, key),
            Timer::Persist => self.probe_window(core, key),
            Timer::Resolver => {
                if self.state == State::Connecting && !self.next_resolver(core) {
                    return self.close(core, true);
                }
                Fate::Keep
            }
        }
    }

    fn retransmit<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        core.stats.timeouts += 1;
        self.retries = self.retries.saturating_add(1);
        let limit = if self.half_open() { SYN_RETRIES } else { DATA_RETRIES };
        if self.retries > limit {
            return self.abort(core, key);
        }
        self.rto = self.rto.saturating_mul(2).min(MAX_RTO);
        // From here on it is seen how soon the answer comes: see `measure`.
        self.time(self.snd_una.wrapping_add(1), core.now);
        self.set(AMBIGUOUS);
        if self.half_open() {
            core.stats.retransmits += 1;
            self.send_syn(core, key);
            return Fate::Keep;
        }
        if self.inflight() == 0 {
            return Fate::Keep;
        }
        // Start over, trusting no selective acknowledgement (RFC 2018 §8). One segment, and more as answers come.
        let fresh = Recovery { sacked: Vec::new(), until: Some(self.snd_nxt), next: self.snd_una };
        self.recovery = Some(Box::new(fresh));
        self.dupacks = 0;
        self.send_lost(core, key, self.mss.into());
        self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
        Fate::Keep
    }

    /// The guest's window is closed: a segment that it must answer shows whether the opening was lost.
    fn probe_window<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        if self.snd_wnd > 0 {
            // A window that is too small to be worth a segment has stayed so: use it (RFC 9293 §3.8.6.2.1).
            return if self.send_small(core, key).is_err() { self.abort(core, key) } else { Fate::Keep };
        }
        self.retries = self.retries.saturating_add(1);
        // RFC 9293 §3.8.6.1: as long as the guest answers it may keep its window closed.
        if self.retries > DATA_RETRIES {
            return self.abort(core, key);
        }
        self.transmit(core, key, self.snd_una.wrapping_sub(1), 0, 0);
        let backoff = u64::from(self.rto) << self.retries.min(10);
        self.start_timer(Timer::Persist, core.now + backoff.min(MAX_RTO.into()));
        Fate::Keep
    }

    /// Nothing has been heard for long: is the guest still there?
    pub fn probe_life<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        if self.state != State::Established || self.timer != Timer::Off {
            return Fate::Keep;
        }
        self.retries = self.retries.saturating_add(1);
        if self.retries > PROBES {
            return self.abort(core, key);
        }
        self.transmit(core, key, self.snd_una.wrapping_sub(1), 0, 0);
        Fate::Keep
    }

    /// True if a new SYN with this sequence number may take the place of this closed connection
    /// (RFC 9293 §3.6.1, RFC 6191 without timestamps).
    pub fn yields_to(&self, sequence: u32) -> bool {
        self.state == State::TimeWait && super::seq::after(sequence, self.rcv_nxt) && self.has(FIN_SENT)
    }
}
