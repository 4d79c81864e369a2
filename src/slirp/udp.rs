//! UDP: one host socket for each pair of guest port and remote address.
//!
//! *Guest to host.* Datagrams of one flow and one size that follow each other in a batch of frames leave by one
//! `sendmsg` with `UDP_SEGMENT`; so do those that the guest sent as one large frame, straight from where that was read.
//! *Host to guest.* Datagrams of one flow and one size that are received together, by one `recvmmsg` or joined by
//! `UDP_GRO`, go on as one frame that the guest's kernel cuts. ICMP errors about what was sent come back as the ICMP
//! errors that they are, so that applications see ECONNREFUSED and traceroute works. A flow is forgotten when it has
//! been silent: 30 s if it never had an answer, else 120 s (as Linux's conntrack).

use super::core::{self, Core};
use super::device::Device;
use super::dns::Relay;
use super::flow::{Id, Key};
use super::host::{Datagram, Fault, Host, Inbox, Ready, Sock};
use super::stats::Traffic;
use super::time::{SEC, Time};
use super::wire::ip::{self, Ip};
use super::wire::{icmpv4, icmpv6, put, udp};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// The most datagrams of one send.
const BATCH: usize = 64;
/// The most bytes of one send.
const BATCH_BYTES: usize = 64000;
/// A frame with so many bytes is a send of its own: to copy it costs more than the call that it might save.
pub const LARGE: usize = 8 << 10;
/// How often a socket is read before others get their turn.
pub const TURN: usize = 8;

/// What an association is for.
#[derive(Debug)]
pub enum Kind {
    /// The guest talks to somebody.
    Direct(Sock),
    /// Somebody talks to the guest through a listening socket, which is not ours to close.
    Forward {
        /// The listening socket.
        listener: Sock,
        /// Who talks.
        client: SocketAddr,
    },
    /// The guest asks the resolver.
    Dns(Box<Relay>),
}

/// One association.
#[derive(Debug)]
pub struct Assoc {
    /// What for.
    pub kind: Kind,
    /// There has been an answer.
    pub replied: bool,
    /// Our turn was over before the socket was empty.
    pub more: bool,
    /// What it has carried.
    pub traffic: Traffic,
}

impl Assoc {
    /// Opens a socket to `to`.
    pub fn open<H: Host, D: Device>(core: &mut Core<H, D>, to: SocketAddr) -> Result<Self, ErrorKind> {
        let sock = core.host.open(Datagram::Udp, to)?;
        Ok(Self::new(Kind::Direct(sock)))
    }

    /// An association of some kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, replied: false, more: false, traffic: Traffic::default() }
    }

    /// After how much silence it is forgotten.
    pub fn patience(&self) -> Time {
        match self.kind {
            Kind::Dns(_) => 10 * SEC,
            _ if self.replied => 120 * SEC,
            _ => 30 * SEC,
        }
    }

    /// Sends datagrams of the guest, of `segment` bytes each but the last.
    pub fn send<H: Host, D: Device>(
        &mut self,
        core: &mut Core<H, D>,
        key: &Key,
        data: &[u8],
        (segment, ttl): (usize, u8),
    ) {
        self.traffic.sent += data.len() as u64;
        let failure = match &self.kind {
            Kind::Direct(sock) => core.host.send_datagrams(*sock, None, data, segment, ttl).err(),
            Kind::Forward { listener, client } => {
                self.replied = true;
                core.host.send_datagrams(*listener, Some(*client), data, segment, 0).err()
            }
            Kind::Dns(_) => None,
        };
        // A refusal is told by the error queue. What is known only here are bad routes.
        let code = match failure {
            Some(ErrorKind::NetworkUnreachable) => super::config::Refusal::Net,
            Some(ErrorKind::HostUnreachable) => super::config::Refusal::Host,
            Some(ErrorKind::PermissionDenied) => super::config::Refusal::Prohibited,
            _ => return,
        };
        let (ip, packet) = core::quoted(key);
        core.refuse(&ip, &packet, code);
    }

    /// What epoll says about the socket.
    pub fn host_ready<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, ready: Ready) {
        self.more = false;
        let sock = match &mut self.kind {
            Kind::Direct(sock) => *sock,
            Kind::Dns(relay) => return relay.host_ready(core, key),
            Kind::Forward { .. } => return,
        };
        if ready.error || ready.hangup {
            while let Some(fault) = core.host.fault(sock) {
                report(core, key, &fault);
            }
        }
        let mut inbox = std::mem::take(&mut core.inbox);
        let mut gather = Gather::default();
        self.more = true;
        for _ in 0..TURN {
            match core.host.receive(sock, &mut inbox) {
                Ok(()) => {}
                // Told by the error queue.
                Err(_) => continue,
            }
            for parcel in &inbox.parcels {
                self.replied = true;
                self.traffic.received += parcel.len as u64;
                gather.add(core, key, inbox.data(parcel), parcel.segment);
            }
            if inbox.parcels.len() < Inbox::PARCELS {
                self.more = false;
                break;
            }
        }
        gather.flush(core);
        core.inbox = inbox;
    }

    /// Closes what is ours.
    pub fn close<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        match &mut self.kind {
            Kind::Direct(sock) => core.host.close(*sock, false),
            Kind::Dns(relay) => relay.close(core),
            Kind::Forward { .. } => {}
        }
    }
}

/// Datagrams on their way to the guest: of one flow and one size (the last may be shorter). They lie in the core's
/// buffer, so nothing else may be sent before [`Self::flush`].
#[derive(Debug, Default)]
pub struct Gather {
    key: Option<Key>,
    segment: usize,
    len: usize,
    count: usize,
    ended: bool,
}

impl Gather {
    /// Adds datagrams of `segment` bytes; what does not go with them leaves before.
    pub fn add<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, data: &[u8], segment: usize) {
        let count = data.len().div_ceil(segment.max(1)).max(1);
        let fits = !self.ended
            && !data.is_empty()
            && self.key == Some(*key)
            && (segment == self.segment || (segment < self.segment && count == 1))
            && self.count + count <= BATCH
            && self.len + data.len() <= BATCH_BYTES;
        if !fits {
            self.flush(core);
            // What is cut into packets must be known to pass the link uncut.
            let head = Ip::new(key.remote().ip(), key.guest().ip(), ip::UDP).header_len() + udp::LEN;
            let uncut = core.device.capabilities().uso && head + segment <= usize::from(core.config.mtu);
            *self = Self { key: Some(*key), segment, ended: !uncut || data.is_empty(), ..Self::default() };
        }
        put(core.payload(self.len + data.len()).1, self.len, data);
        self.len += data.len();
        self.count += count;
        self.ended |= data.len() % self.segment.max(1) != 0;
    }

    /// Sends what was gathered: as one frame if the device cuts.
    pub fn flush<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        let Self { key: Some(key), segment, len, count, .. } = std::mem::take(self) else { return };
        if count == 1 || core.device.capabilities().uso {
            core.send_udp(&key, len, segment.max(1));
            return;
        }
        let data = core.payload(len).1.to_vec();
        for datagram in data.chunks(segment.max(1)) {
            core.send_datagram(&key, datagram);
        }
    }
}

/// Passes an ICMP error about a flow on.
pub fn report<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, fault: &Fault) {
    let (ip, packet) = core::quoted(key);
    let v4 = ip.src.is_ipv4();
    let known = if v4 {
        matches!(fault.kind, icmpv4::UNREACHABLE | icmpv4::TIME_EXCEEDED)
    } else {
        matches!(fault.kind, icmpv6::UNREACHABLE | icmpv6::TOO_BIG | icmpv6::TIME_EXCEEDED)
    };
    if !known {
        return;
    }
    // The host's own loopback is known to the guest as the gateway; so is an error without a sender.
    let foreign =
        fault.offender.is_loopback() || fault.offender.is_unspecified() || fault.offender.is_ipv4() != v4;
    let from = if foreign { key.remote().ip() } else { fault.offender };
    let too_big = if v4 { fault.kind == 3 && fault.code == 4 } else { fault.kind == icmpv6::TOO_BIG };
    core.report(&ip, &packet, from, (fault.kind, fault.code), if too_big { fault.info } else { 0 });
}

/// Datagrams of one flow and one size (the last may be shorter) on their way to one send.
#[derive(Debug, Default)]
pub struct Run {
    /// Whose they are.
    pub id: Option<Id>,
    /// All of them.
    pub data: Vec<u8>,
    /// The size of each but the last.
    pub segment: usize,
    /// Their time to live.
    pub ttl: u8,
    count: usize,
    ended: bool,
}

impl Run {
    /// Tries to add datagrams of `segment` bytes; false if they must start a run of their own.
    pub fn push(&mut self, id: Id, data: &[u8], segment: usize, ttl: u8) -> bool {
        let count = data.len().div_ceil(segment.max(1)).max(1);
        if self.id.is_none() {
            self.data.clear();
            *self = Self {
                id: Some(id),
                data: std::mem::take(&mut self.data),
                segment,
                ttl,
                count: 0,
                ended: false,
            };
        } else if self.id != Some(id)
            || self.ended
            || self.ttl != ttl
            || segment > self.segment
            || (segment < self.segment && count > 1)
            || self.count + count > BATCH
            || self.data.len() + data.len() > BATCH_BYTES
        {
            return false;
        }
        self.data.extend_from_slice(data);
        self.count += count;
        // A shorter one ends the run; so does an empty one, which a run cannot hold.
        self.ended = data.len() % self.segment.max(1) != 0 || data.is_empty();
        true
    }

    /// One by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let empty = self.data.is_empty().then_some(&[] as &[u8]);
        self.data.chunks(self.segment.max(1)).chain(empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_hold_equal_sizes_and_one_shorter_at_the_end() {
        let (a, b) = (Id::from_token(1), Id::from_token(2));
        let mut run = Run::default();
        assert!(run.push(a, &[1; 100], 100, 64) && run.push(a, &[2; 100], 100, 64));
        assert!(
            !run.push(b, &[3; 100], 100, 64)
                && !run.push(a, &[3; 101], 101, 64)
                && !run.push(a, &[3; 100], 100, 9)
        );
        assert!(run.push(a, &[3; 50], 50, 64));
        assert!(!run.push(a, &[4; 50], 50, 64), "ended");
        assert_eq!(run.datagrams().map(<[u8]>::len).collect::<Vec<_>>(), [100, 100, 50]);
        run.id = None;
        assert!(run.push(b, &[], 0, 64) && !run.push(b, &[1], 1, 64));
        assert_eq!(run.datagrams().count(), 1);
    }
}
