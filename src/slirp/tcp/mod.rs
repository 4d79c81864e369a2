//! TCP towards the guest: the whole protocol on one side, a host socket on the other.
//!
//! *Guest to host.* Data in order goes from the frame straight to `send`; what the host's socket does not take is
//! pending, and the window closes by as much. Data behind a hole waits in `ooo` and is told of by SACK. One
//! acknowledgement is sent for each flow when a batch of frames ends, or after each megabyte, and it says "the
//! host's kernel has it". A FIN is acknowledged when everything before it is sent and `shutdown` was called. The
//! window starts small and doubles whenever a good part of it is filled within one round trip.
//!
//! *Host to guest.* What the guest has not acknowledged stays in the host socket's own queue: it is looked at
//! (`peek`) to be sent and to be sent again, and thrown away when acknowledged. So a flow needs no buffer, and
//! the host's kernel slows the far sender down. There is no congestion window: the link is a wire in memory, and
//! the receiver's window is all that bounds it. Losses are found by duplicate or selective acknowledgements
//! (RFC 6675's rule, also one run of three segments) and by the timer of RFC 6298.
//!
//! A connection is accepted only when the host's has been; how the host's fails is how the guest's fails
//! (`open`). Segments outside the window, blind resets and blind data follow RFC 5961. Urgent data is delivered
//! in line, as RFC 6093 advises. Timestamps are not offered.
//!
//! | file | holds |
//! | --- | --- |
//! | `open` | SYN to established, both ways; refusals |
//! | `input` | checking of a segment, acknowledgements |
//! | `receive` | the guest's data to the host |
//! | `output` | the host's data to the guest, sending again |
//! | `timer` | retransmission, probes, end of `TIME_WAIT` |
//! | `ooo`, `seq` | the reassembly queue; sequence arithmetic |

mod input;
mod ooo;
mod open;
mod output;
mod receive;
pub mod seq;
mod timer;

use super::core::Core;
use super::device::Device;
use super::flow::Key;
use super::host::{Host, Ready, Sock};
use super::stats::Traffic;
use super::time::{MS, NEVER, SEC, Time};
use super::wire::tcp::{self as wire, Tcp};
use ooo::OutOfOrder;
pub use open::{accept, open, refusal, refuse, refuse_open, reject};
use std::collections::VecDeque;

/// The window scale that we offer: windows up to 8 MiB.
pub const SCALE: u8 = 7;
/// Window offered at first.
const FIRST_WINDOW: u32 = 256 << 10;
/// A round trip is no less than this where the window's growth is concerned: clocks and wake-ups are no finer.
const MIN_TRIP: u32 = 100;
/// An acknowledgement is sent in the midst of a batch after so much data.
const ACK_EVERY: u32 = 1 << 20;
/// Acknowledged bytes are taken out of the host's queue when there are so many, while more are under way.
const DISCARD_AT: u32 = 16 << 10;
/// A path with a longer round trip holds much data.
const LONG_TRIP: u32 = 2 * MS as u32;
/// Retransmission timer before the first measurement (RFC 6298 §2.1).
const FIRST_RTO: u32 = SEC as u32;
/// Least retransmission timer.
const MIN_RTO: u32 = 200 * MS as u32;
/// And greatest.
const MAX_RTO: u32 = 120 * SEC as u32;
/// What is acknowledged so soon after a timeout, or within two round trips, was lost the first time.
const SOON: u32 = 10 * MS as u32;
/// How long a closed connection is remembered. The link is a wire in memory: no segment wanders for minutes.
const TIME_WAIT: Time = SEC;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest's SYN is here, the host's connect is under way.
    Connecting,
    /// The host accepted a connection; our SYN to the guest is not answered.
    SynSent,
    /// Our SYN-ACK to the guest is not acknowledged.
    SynReceived,
    /// Data may flow; either half may be closed already.
    Established,
    /// Closed by us first: late segments are still answered.
    TimeWait,
}

/// Whether the flow is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// Yes.
    Keep,
    /// No: its socket is closed, take it out of the table.
    Gone,
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Off,
    Retransmit,
    Persist,
    Finish,
    Resolver,
}

/// What is known of losses towards the guest.
#[derive(Debug, Default)]
struct Recovery {
    /// What the guest has behind holes, sorted.
    sacked: Vec<(u32, u32)>,
    /// Sending again goes on until this is acknowledged; `None` while nothing counts as lost.
    until: Option<u32>,
    /// What is to be sent again next.
    next: u32,
}

/// Guest data that is held: only flows in some trouble have any.
#[derive(Debug, Default)]
struct Held {
    /// In order, not yet taken by the host's socket.
    pending: VecDeque<u8>,
    /// Behind a hole.
    ooo: OutOfOrder,
}

/// One connection.
#[derive(Debug)]
pub struct Tcb {
    /// The state.
    pub state: State,
    /// The host's socket; meaningless in `TimeWait`.
    pub sock: Sock,
    /// Towards the guest: oldest byte not acknowledged.
    snd_una: u32,
    /// Next byte to be sent.
    snd_nxt: u32,
    /// What the guest takes beyond `snd_una`.
    snd_wnd: u32,
    /// The largest window seen.
    max_wnd: u32,
    /// Sequence and acknowledgement of the segment that last set the window.
    wl: (u32, u32),
    /// First byte in the host's receive queue.
    base: u32,
    /// From the guest: next byte expected.
    rcv_nxt: u32,
    /// The right edge that was advertised. Never moves left.
    edge: u32,
    /// Acknowledgement last sent.
    acked: u32,
    /// The window that we try to offer.
    target: u32,
    /// Where the guest's data stood when the present round trip's count began, and when that was (low bits): see
    /// `widen`.
    counted: (u32, u32),
    /// Smoothed round trip, its deviation, and the timer; µs.
    srtt: u32,
    rttvar: u32,
    rto: u32,
    /// A segment ending here is being timed.
    timed: u32,
    /// It was sent then (low bits), if [`TIMED`].
    timed_at: u32,
    timer: Timer,
    deadline: Time,
    recovery: Option<Box<Recovery>>,
    held: Option<Box<Held>>,
    mss: u16,
    snd_scale: u8,
    rcv_scale: u8,
    dupacks: u8,
    retries: u8,
    /// Which resolver is being tried, plus one; zero for other connections.
    resolver: u8,
    flags: u16,
    /// What this connection has carried.
    pub traffic: Traffic,
}

/// The guest understands SACK.
const SACK: u16 = 1;
/// The guest's FIN has been received and acknowledged, the host's socket shut down.
const GUEST_FIN: u16 = 2;
/// The guest's FIN has been received; pending data goes first.
const FIN_HELD: u16 = 4;
/// We have sent our FIN.
const FIN_SENT: u16 = 8;
/// It is acknowledged.
const FIN_ACKED: u16 = 16;
/// The host's socket may have more to read.
const READABLE: u16 = 32;
/// The host's other side has hung up: read until the end.
const HANGUP: u16 = 64;
/// An acknowledgement is owed.
const ACK_OWED: u16 = 128;
/// In the list of flows to see to when the batch ends.
const DIRTY: u16 = 256;
/// The host's socket has no room.
const FULL: u16 = 512;
/// The connection was opened from the host.
const INBOUND: u16 = 1024;
/// We were first to close.
const CLOSED_FIRST: u16 = 2048;
/// There is more to send to the guest, but others come first.
const TURN_OVER: u16 = 4096;
/// What is being timed was sent again: whether its answer is to the first or the second sending, nobody knows.
const AMBIGUOUS: u16 = 8192;
/// A segment is being timed.
const TIMED: u16 = 16384;

impl Tcb {
    fn new(state: State, sock: Sock, iss: u32) -> Self {
        Self {
            state,
            sock,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            max_wnd: 0,
            wl: (0, 0),
            base: iss.wrapping_add(1),
            rcv_nxt: 0,
            edge: 0,
            acked: 0,
            target: FIRST_WINDOW,
            counted: (0, 0),
            srtt: 0,
            rttvar: 0,
            rto: FIRST_RTO,
            timed: 0,
            timed_at: 0,
            timer: Timer::Off,
            deadline: NEVER,
            recovery: None,
            held: None,
            mss: 536,
            snd_scale: 0,
            rcv_scale: 0,
            dupacks: 0,
            retries: 0,
            resolver: 0,
            flags: 0,
            traffic: Traffic::default(),
        }
    }

    /// The segment that ends at `end` is sent now: its answer measures the round trip.
    fn time(&mut self, end: u32, now: Time) {
        (self.timed, self.timed_at) = (end, now as u32);
        self.set(TIMED);
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// When the timer runs out.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// True the first time since [`Self::settle`]: the flow goes on the list of those to see to.
    pub fn mark(&mut self) -> bool {
        let first = !self.has(DIRTY);
        self.set(DIRTY);
        first
    }

    /// True while the handshake is not finished.
    pub fn half_open(&self) -> bool {
        matches!(self.state, State::Connecting | State::SynReceived | State::SynSent)
    }

    /// Bytes on the way to the guest.
    fn inflight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    fn start_timer(&mut self, timer: Timer, deadline: Time) {
        self.timer = timer;
        self.deadline = deadline;
    }

    fn stop_timer(&mut self) {
        self.timer = Timer::Off;
        self.deadline = NEVER;
    }

    /// The sequence number after the last byte of data that was sent.
    fn data_end(&self) -> u32 {
        if self.has(FIN_SENT) { self.snd_nxt.wrapping_sub(1) } else { self.snd_nxt }
    }

    /// What the guest's next segment may carry, as the header's field; moves the right edge, never left.
    fn window<H: Host, D: Device>(&mut self, core: &Core<H, D>) -> u16 {
        let held = self.held.as_ref().map_or(0, |h| h.pending.len() as u32);
        let pool = core.config.limits.buffered.saturating_sub(core.buffered).min(u32::MAX as usize) as u32;
        let space = self.target.min(core.config.limits.window).min(pool).saturating_sub(held);
        let edge = self.rcv_nxt.wrapping_add(space);
        // Silly window: move the edge by a worthwhile step or not at all (RFC 9293 §3.8.6.2.2).
        let step = (self.target / 2).min(u32::from(self.mss));
        if seq::after(edge, self.edge) && edge.wrapping_sub(self.edge) >= step {
            self.edge = edge;
        }
        let unit = 1u32 << self.rcv_scale;
        let scaled = self.edge.wrapping_sub(self.rcv_nxt).div_ceil(unit).min(65535);
        let told = self.rcv_nxt.wrapping_add(scaled * unit);
        self.edge = seq::later(self.edge, told);
        scaled as u16
    }

    /// Sends a segment with what is known now; its `len` bytes of data lie in the core's buffer.
    fn transmit<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        seq: u32,
        flags: u8,
        len: usize,
    ) {
        let window = self.window(core);
        let sack = match &self.held {
            // Not beside data, which with it would be longer than the link's packets.
            Some(held) if self.has(SACK) && len == 0 => held.ooo.sack(),
            _ => wire::Sack::default(),
        };
        let header = Tcp { seq, ack: self.rcv_nxt, flags: flags | wire::ACK, window, sack, ..Tcp::default() };
        core.send_tcp(key, &header, len, self.mss);
        self.acked = self.rcv_nxt;
        self.clear(ACK_OWED);
    }

    fn send_ack<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        self.transmit(core, key, self.snd_nxt, 0, 0);
    }

    /// Breaks the connection on the guest's side and closes the host's with a reset too.
    pub fn abort<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        // While we are connecting, the guest has seen nothing of us.
        if self.state != State::Connecting {
            let header =
                Tcp { seq: self.snd_nxt, ack: self.rcv_nxt, flags: wire::RST | wire::ACK, ..Tcp::default() };
            core.send_tcp(key, &header, 0, self.mss);
        }
        self.close(core, true)
    }

    /// Closes the host's side and gives back what is held.
    fn close<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, reset: bool) -> Fate {
        if self.state != State::TimeWait {
            core.host.close(self.sock, reset);
        }
        if let Some(held) = self.held.take() {
            core.buffered = core.buffered.saturating_sub(held.pending.len() + held.ooo.len());
        }
        Fate::Gone
    }

    /// What epoll says about the host's socket.
    pub fn host_ready<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, ready: Ready) -> Fate {
        if self.state == State::Connecting {
            return if ready.write || ready.hangup { self.connected(core, key) } else { Fate::Keep };
        }
        if self.state == State::TimeWait {
            return Fate::Keep;
        }
        if ready.hangup {
            self.set(HANGUP);
        }
        if ready.read || ready.hangup {
            self.set(READABLE);
        }
        if (ready.write || ready.hangup) && self.drain(core, key) == Fate::Gone {
            return Fate::Gone;
        }
        self.settle(core, key)
    }

    /// Does what the end of a batch calls for: throws away what was acknowledged, sends what there is, pays the
    /// acknowledgement that is owed, and ends a connection that is closed on both sides.
    pub fn settle<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        self.clear(DIRTY);
        if self.state != State::Established {
            return Fate::Keep;
        }
        // With nothing under way no acknowledgement will come to raise the count. And the rest, however short, may
        // lie in one buffer with all that came before it: the host's kernel joins segments, frees them whole, and
        // would keep its window shut for ever.
        let least = match self.inflight() {
            0 => 1,
            // On a long path what is under way fills the queue, and the kernel makes the queue as large as what is
            // taken out at once calls for, twice that: so a good part at once.
            held if self.srtt > LONG_TRIP => DISCARD_AT.max(held / 2),
            _ => DISCARD_AT,
        };
        if self.discard(core, least).is_err() || self.pump(core, key).is_err() {
            return self.abort(core, key);
        }
        if self.has(ACK_OWED) {
            self.send_ack(core, key);
        }
        if self.has(FIN_ACKED) && self.has(GUEST_FIN) {
            // What was acknowledged must be out of the queue, or closing would look like a reset to the peer.
            let _ = self.discard(core, 1);
            let _ = self.close(core, false);
            if !self.has(CLOSED_FIRST) {
                return Fate::Gone;
            }
            self.state = State::TimeWait;
            self.start_timer(Timer::Finish, core.now + TIME_WAIT);
        }
        Fate::Keep
    }

    /// Takes acknowledged bytes out of the host's queue if there are at least `least`.
    fn discard<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        least: u32,
    ) -> Result<(), std::io::ErrorKind> {
        let mut upto = self.snd_una;
        if self.has(FIN_ACKED) {
            upto = upto.wrapping_sub(1);
        }
        let n = upto.wrapping_sub(self.base);
        // Before the handshake ends, `base` is one ahead of what is acknowledged.
        if n >= least && n <= u32::MAX / 2 {
            core.host.discard(self.sock, n as usize)?;
            self.base = upto;
        }
        Ok(())
    }
}
