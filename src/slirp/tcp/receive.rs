//! The guest's data on its way to the host's socket.

use super::{ACK_EVERY, FIN_HELD, FULL, Fate, GUEST_FIN, MIN_TRIP, SACK, Tcb, seq};
use crate::slirp::core::Core;
use crate::slirp::device::Device;
use crate::slirp::flow::Key;
use crate::slirp::host::Host;
use crate::slirp::wire::tcp::{self as wire, Tcp};

impl Tcb {
    /// Takes in data and FIN of a segment that overlaps the window.
    pub(super) fn receive<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        seg: &Tcp,
        data: &[u8],
    ) -> Fate {
        if self.has(GUEST_FIN | FIN_HELD) {
            // Nothing comes after the end.
            self.owe_ack();
            return Fate::Keep;
        }
        let mut fin = seg.flags & wire::FIN != 0;
        // Cut what lies beyond the window.
        let room = self.edge.wrapping_sub(seg.seq) as usize;
        let data = match data.get(..room) {
            Some(within) if room < data.len() => {
                fin = false;
                within
            }
            _ => data,
        };
        if seq::after(seg.seq, self.rcv_nxt) {
            core.stats.out_of_order += 1;
            self.hold(core, seg.seq, data, fin);
            // With SACK one answer at the batch's end says it all; and often what is missing is in the batch too, for
            // a packet device mixes the frames of two processors. Without it the sender counts duplicates.
            if self.has(SACK) {
                self.owe_ack();
            } else {
                self.send_ack(core, key);
            }
            return Fate::Keep;
        }
        let old = self.rcv_nxt.wrapping_sub(seg.seq) as usize;
        let fresh = data.get(old..).unwrap_or(&[]);
        if self.deliver(core, fresh).is_err() {
            return self.abort(core, key);
        }
        let whole = self.rcv_nxt == seg.seq.wrapping_add(data.len() as u32);
        let filled = self.held.as_ref().is_some_and(|h| !h.ooo.is_empty());
        if filled {
            match self.fill(core) {
                Ok(end) => fin = (fin && whole) || end,
                Err(()) => return self.abort(core, key),
            }
        } else {
            fin &= whole;
        }
        if fin {
            self.finish(core);
        }
        self.owe_ack();
        if filled || self.rcv_nxt.wrapping_sub(self.acked) >= ACK_EVERY {
            self.widen(core);
            self.send_ack(core, key);
        }
        Fate::Keep
    }

    /// Keeps data behind a hole.
    fn hold<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, start: u32, data: &[u8], fin: bool) {
        let ooo = &mut self.held.get_or_insert_default().ooo;
        let before = ooo.len();
        let room = core.config.limits.buffered.saturating_sub(core.buffered) + before;
        ooo.insert(start, data, room);
        if fin {
            ooo.end = Some(start.wrapping_add(data.len() as u32));
        }
        core.buffered += ooo.len() - before;
    }

    /// Delivers what a filled hole sets free; true if the stream's end is reached.
    fn fill<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) -> Result<bool, ()> {
        while let Some(held) = &mut self.held {
            let before = held.ooo.len();
            let taken = held.ooo.take(self.rcv_nxt);
            // Runs that came again in the meantime are dropped on the way.
            core.buffered = core.buffered.saturating_sub(before - held.ooo.len());
            let Some((start, run)) = taken else { break };
            let old = self.rcv_nxt.wrapping_sub(start) as usize;
            self.deliver(core, run.get(old..).unwrap_or(&[]))?;
        }
        let next = self.rcv_nxt;
        let Some(held) = &mut self.held else { return Ok(false) };
        let ended = held.ooo.end == Some(next);
        if ended {
            held.ooo.end = None;
        }
        self.drop_empty();
        Ok(ended)
    }

    fn drop_empty(&mut self) {
        if self.held.as_ref().is_some_and(|h| h.pending.is_empty() && h.ooo.is_empty()) {
            self.held = None;
        }
    }

    /// Gives data in order to the host's socket; what it does not take becomes pending. Fails if the connection
    /// is broken.
    fn deliver<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, data: &[u8]) -> Result<(), ()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut rest = data;
        if !self.has(FULL) {
            let n = core.host.send(self.sock, data).map_err(|_| ())?;
            rest = data.get(n..).unwrap_or(&[]);
            if !rest.is_empty() {
                self.flags |= FULL;
                // A slow reader: no more than this need ever wait for it.
                self.target = self.target.min(1 << 20);
            }
        }
        let room = core.config.limits.buffered.saturating_sub(core.buffered);
        if rest.len() > room {
            core.stats.memory_full += 1;
        }
        let kept = rest.get(..room).unwrap_or(rest);
        if !kept.is_empty() {
            self.held.get_or_insert_default().pending.extend(kept);
            core.buffered += kept.len();
        }
        let taken = data.len() - rest.len() + kept.len();
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken as u32);
        self.traffic.sent += taken as u64;
        Ok(())
    }

    /// The stream is complete: ends the host's side now, or after what is pending.
    fn finish<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        if self.held.as_ref().is_some_and(|h| !h.pending.is_empty()) {
            self.set(FIN_HELD);
            return;
        }
        core.host.shutdown(self.sock);
        self.clear(FIN_HELD);
        self.set(GUEST_FIN);
        self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        self.edge = seq::later(self.edge, self.rcv_nxt);
    }

    /// The host's socket has room again.
    pub(super) fn drain<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        self.clear(FULL);
        let Some(held) = &mut self.held else { return Fate::Keep };
        let before = held.pending.len();
        while !held.pending.is_empty() {
            let (first, _) = held.pending.as_slices();
            match core.host.send(self.sock, first) {
                Ok(0) => {
                    self.flags |= FULL;
                    break;
                }
                Ok(n) => drop(held.pending.drain(..n)),
                Err(_) => return self.abort(core, key),
            }
        }
        let after = held.pending.len();
        core.buffered = core.buffered.saturating_sub(before - after);
        if after == 0 && self.has(FIN_HELD) {
            self.finish(core);
            self.owe_ack();
        }
        self.drop_empty();
        // Tell the guest of the room if it is worth a segment; it may be waiting for just that.
        let open = self.edge.wrapping_sub(self.rcv_nxt);
        let mut next = self.rcv_nxt.wrapping_add(self.target.saturating_sub(after as u32));
        next = seq::later(next, self.edge);
        if next.wrapping_sub(self.edge) >= self.target / 2 || (open < self.mss.into() && next != self.edge) {
            self.owe_ack();
        }
        Fate::Keep
    }

    /// A guest that fills a quarter of its window in one round trip gets twice as much: so it is never the window
    /// that a sender in its slow start waits for, however long the path. On a short one a batch counts as a round trip.
    pub(super) fn widen<H: Host, D: Device>(&mut self, core: &Core<H, D>) {
        let (from, at) = self.counted;
        let (now, trip) = (core.now as u32, self.srtt.max(MIN_TRIP));
        let got = self.rcv_nxt.wrapping_sub(from);
        let filled = got >= self.target / 4;
        if filled && !self.has(FULL) && self.rcv_scale != 0 {
            self.target = (self.target * 2).min(core.config.limits.window);
        }
        if filled || now.wrapping_sub(at) >= trip {
            self.counted = (self.rcv_nxt, now);
        }
    }
}
