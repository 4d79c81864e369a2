//! From SYN to established, in both directions.
//!
//! *Out.* The guest's SYN starts a nonblocking connect. Only when that has succeeded is the guest answered; how
//! it fails decides what the guest sees: refused gives a reset, no route gives ICMP, a timeout gives silence.
//!
//! *In.* A connection that the host accepted is offered to the guest by a SYN from the client's own address
//! (clients on the host's loopback, which is nobody's address inside, appear as the gateway). A guest that
//! refuses resets the client. Both sides opening at once (RFC 9293 §3.5) is understood.

use super::{Fate, INBOUND, READABLE, SACK, SCALE, State, Tcb, Timer, seq};
use crate::slirp::config::Refusal;
use crate::slirp::core::{self, Core};
use crate::slirp::device::Device;
use crate::slirp::flow::Key;
use crate::slirp::host::{Host, Sock};
use crate::slirp::time::SEC;
use crate::slirp::wire::put;
use crate::slirp::wire::tcp::{self as wire, Tcp};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// What the guest must see of a host's failure.
pub fn refusal(kind: ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Refusal::Port,
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Refusal::Net,
        ErrorKind::HostUnreachable => Refusal::Host,
        ErrorKind::PermissionDenied => Refusal::Prohibited,
        // The guest's own timers decide, as they would against a host that does not answer.
        _ => Refusal::Silent,
    }
}

/// Opens a connection that the guest asks for. `resolver` says that it is one to the resolver.
///
/// An error is for the caller to show to the guest, by [`refuse`], or, for want of descriptors, to make room.
pub fn open<H: Host, D: Device>(
    core: &mut Core<H, D>,
    key: &Key,
    to: SocketAddr,
    syn: &Tcp,
    resolver: bool,
) -> Result<Tcb, ErrorKind> {
    let (sock, done) = core.host.connect(to)?;
    let mut tcb = Tcb::new(State::Connecting, sock, core.initial_sequence(key));
    tcb.learn_syn(core, key, syn);
    if resolver {
        tcb.resolver = core.resolver as u8 + 1;
        tcb.start_timer(Timer::Resolver, core.now + SEC);
    }
    if done {
        tcb.established_by_host(core, key);
    }
    core.stats.tcp_out += 1;
    Ok(tcb)
}

/// Shows the guest that its SYN led nowhere.
pub fn refuse<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, syn: &Tcp, why: Refusal) {
    if why == Refusal::Port {
        core.stats.refused += 1;
        reject(core, key, syn, 0);
        return;
    }
    let (ip, mut packet) = core::quoted(key);
    put(&mut packet, ip.header_len() + 4, &syn.seq.to_be_bytes());
    core.refuse(&ip, &packet, why);
}

/// Offers a connection that the host accepted to the guest.
pub fn accept<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, sock: Sock) -> Tcb {
    let mut tcb = Tcb::new(State::SynSent, sock, core.initial_sequence(key));
    tcb.set(INBOUND | READABLE);
    tcb.mss = core.config.mss(key.guest().ip());
    tcb.rcv_scale = SCALE;
    tcb.snd_nxt = tcb.snd_una.wrapping_add(1);
    tcb.send_syn(core, key);
    core.stats.tcp_in += 1;
    tcb
}

impl Tcb {
    /// Takes over what the guest's SYN says.
    fn learn_syn<H: Host, D: Device>(&mut self, core: &Core<H, D>, key: &Key, syn: &Tcp) {
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.edge = self.rcv_nxt;
        self.acked = self.rcv_nxt;
        self.counted = (self.rcv_nxt, core.now as u32);
        self.snd_wnd = syn.window.into();
        self.max_wnd = self.snd_wnd;
        self.wl = (syn.seq, syn.ack);
        self.mss = syn.mss.unwrap_or(536).max(88).min(core.config.mss(key.guest().ip()));
        if let Some(scale) = syn.window_scale {
            self.snd_scale = scale.min(14);
            self.rcv_scale = SCALE;
        } else {
            self.rcv_scale = 0;
        }
        if syn.sack_permitted {
            self.set(SACK);
        }
    }

    /// The host's connect has come to an end.
    pub(super) fn connected<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) -> Fate {
        match core.host.connected(self.sock) {
            Ok(()) => {
                if self.resolver != 0 {
                    core.resolver = usize::from(self.resolver) - 1;
                }
                self.established_by_host(core, key);
                Fate::Keep
            }
            Err(_) if self.resolver != 0 && self.next_resolver(core) => Fate::Keep,
            Err(kind) => {
                let syn = Tcp { seq: self.rcv_nxt.wrapping_sub(1), flags: wire::SYN, ..Tcp::default() };
                refuse(core, key, &syn, refusal(kind));
                self.close(core, true)
            }
        }
    }

    /// Starts over with the next resolver; false if all were tried. The caller watches the new socket.
    pub(super) fn next_resolver<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) -> bool {
        let count = core.config.resolvers.len();
        for _ in 0..count {
            let next = usize::from(self.resolver) % count.max(1);
            let Some(to) = core.config.resolvers.get(next).copied() else { return false };
            self.resolver = next as u8 + 1;
            self.retries += 1;
            if usize::from(self.retries) >= count {
                return false;
            }
            if let Ok((sock, _)) = core.host.connect(to) {
                core.host.close(self.sock, true);
                core.stats.dns_failover += 1;
                self.sock = sock;
                self.start_timer(Timer::Resolver, core.now + SEC);
                return true;
            }
        }
        false
    }

    fn established_by_host<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        self.state = State::SynReceived;
        self.retries = 0;
        self.set(READABLE);
        self.snd_nxt = self.snd_una.wrapping_add(1);
        self.send_syn(core, key);
    }

    /// Sends our SYN, with an acknowledgement if there is something to acknowledge, and starts its timer.
    pub(super) fn send_syn<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        let answer = self.state == State::SynReceived;
        let first = self.target.min(core.config.limits.window).min(65535);
        if answer {
            self.edge = seq::later(self.edge, self.rcv_nxt.wrapping_add(first));
        }
        let header = Tcp {
            seq: self.snd_una,
            ack: if answer { self.rcv_nxt } else { 0 },
            flags: wire::SYN | if answer { wire::ACK } else { 0 },
            // The window of a SYN is never scaled.
            window: first as u16,
            mss: Some(core.config.mss(key.guest().ip())),
            window_scale: (self.rcv_scale != 0).then_some(SCALE),
            sack_permitted: !answer || self.has(SACK),
            ..Tcp::default()
        };
        core.send_tcp(key, &header, 0, self.mss);
        if self.retries == 0 {
            self.time(self.snd_nxt, core.now);
        }
        self.start_timer(Timer::Retransmit, core.now + u64::from(self.rto));
    }

    /// A segment while our SYN to the guest is not answered.
    pub(super) fn syn_sent<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        seg: &Tcp,
    ) -> Fate {
        let acks_us = seg.flags & wire::ACK != 0 && seg.ack == self.snd_nxt;
        if seg.flags & wire::ACK != 0 && !acks_us {
            reject(core, key, seg, 0);
            return Fate::Keep;
        }
        if seg.flags & wire::RST != 0 {
            // Refused: the client sees a reset.
            return if acks_us { self.close(core, true) } else { Fate::Keep };
        }
        if seg.flags & wire::SYN == 0 {
            return Fate::Keep;
        }
        self.learn_syn(core, key, seg);
        if acks_us {
            self.established_by_guest(core, seg);
            self.send_ack(core, key);
        } else {
            self.state = State::SynReceived;
            self.send_syn(core, key);
        }
        Fate::Keep
    }

    /// The guest has acknowledged our SYN.
    pub(super) fn established_by_guest<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, seg: &Tcp) {
        self.measure(core.now, seg.ack);
        self.snd_una = seg.ack;
        self.retries = 0;
        self.stop_timer();
        self.state = State::Established;
        // RFC 7323: the window of a SYN is not scaled, any other is.
        let scale = if seg.flags & wire::SYN == 0 { self.snd_scale } else { 0 };
        self.snd_wnd = u32::from(seg.window) << scale;
        self.max_wnd = self.max_wnd.max(self.snd_wnd);
        self.wl = (seg.seq, seg.ack);
    }
}

/// The refusal for a connect that failed at once.
pub fn refuse_open<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, syn: &Tcp, kind: ErrorKind) {
    refuse(core, key, syn, refusal(kind));
}

/// What to do with a segment of no connection (RFC 9293 §3.10.7.1): a reset, unless it is one.
pub fn reject<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, segment: &Tcp, len: usize) {
    if segment.flags & wire::RST != 0 {
        return;
    }
    let syn_fin = u32::from(segment.flags & wire::SYN != 0) + u32::from(segment.flags & wire::FIN != 0);
    let header = if segment.flags & wire::ACK != 0 {
        Tcp { seq: segment.ack, flags: wire::RST, ..Tcp::default() }
    } else {
        let ack = segment.seq.wrapping_add(len as u32).wrapping_add(syn_fin);
        Tcp { ack, flags: wire::RST | wire::ACK, ..Tcp::default() }
    };
    core.send_tcp(key, &header, 0, 536);
}
