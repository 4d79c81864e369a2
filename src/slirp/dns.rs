//! The resolver that the guest sees: static names are answered here, everything else is relayed as it came.
//!
//! A query goes to the resolver that answered last. If it has not answered within a second, or refuses, the query
//! goes to the next, and so on twice around; then the guest is told SERVFAIL, so that nobody hangs. The list of
//! resolvers is given from outside and may change at any time; the engine opens no files.
//!
//! Where the rules (`policy`) judge by name, answers are read: what a name stands for is remembered before the guest
//! learns it, and an answer that leads to a denied name is not passed on. A query or an answer that cannot be read is
//! not relayed then, for the guest's own resolver might understand it.

use super::core::Core;
use super::device::Device;
use super::flow::Key;
use super::host::{Datagram, Host, Sock};
use super::time::{NEVER, SEC, Time};
use super::wire::dns::{self, Answer, Query};
use std::net::IpAddr;

/// How many queries of one guest port may wait at once.
const WAITING: usize = 64;
/// How long a resolver may take.
const PATIENCE: Time = SEC;
/// Time to live of our own answers, in seconds.
const TTL: u32 = 10;

/// A query without an answer.
#[derive(Debug)]
struct Waiting {
    id: u16,
    message: Vec<u8>,
    /// How many resolvers were asked.
    tried: usize,
    /// Index of the first that was asked.
    first: usize,
    deadline: Time,
}

/// The queries of one guest port.
#[derive(Debug, Default)]
pub struct Relay {
    waiting: Vec<Waiting>,
    /// One socket for each resolver, as far as needed.
    socks: Vec<Option<Sock>>,
    /// Sockets that must be watched.
    pub fresh: Vec<Sock>,
    /// Bytes of answers.
    pub received: u64,
}

/// What we answer ourselves, if anything.
pub fn local<H: Host, D: Device>(core: &Core<H, D>, asker: IpAddr, message: &[u8]) -> Option<Vec<u8>> {
    let query = Query::parse(message)?;
    let config = &core.config;
    if config.denies_name(&query.name) {
        return Some(query.answer(dns::REFUSED, &[], 0));
    }
    if let Some((_, addresses)) = config.names.iter().find(|(name, _)| *name == query.name) {
        return Some(query.answer(dns::NO_ERROR, addresses, TTL));
    }
    let own = config.views.iter().find(|(who, name, _)| *who == asker && *name == query.name);
    if let Some((.., addresses)) = own {
        return Some(query.answer(dns::NO_ERROR, addresses, TTL));
    }
    if config.omits_name(&query.name) {
        return Some(query.answer(dns::REFUSED, &[], 0));
    }
    let unknown = if config.closed { dns::NO_NAME } else { dns::SERVER_FAILURE };
    (config.closed || config.resolvers.is_empty()).then(|| query.answer(unknown, &[], 0))
}

impl Relay {
    /// A query of the guest.
    pub fn ask<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, message: &[u8]) {
        if let Some(answer) = local(core, key.guest().ip(), message) {
            self.received += answer.len() as u64;
            core.send_datagram(key, &answer);
            return;
        }
        let Some(id) = message.first_chunk::<2>().map(|b| u16::from_be_bytes(*b)) else {
            core.stats.malformed += 1;
            return;
        };
        if core.config.judges_names() && Query::parse(message).is_none() {
            core.stats.malformed += 1;
            return;
        }
        // A query that is repeated starts over.
        self.waiting.retain(|w| w.id != id);
        if self.waiting.len() >= WAITING {
            self.waiting.remove(0);
        }
        let mut query =
            Waiting { id, message: message.to_vec(), tried: 0, first: core.resolver, deadline: 0 };
        if self.try_next(core, &mut query) {
            self.waiting.push(query);
        } else {
            give_up(core, key, &query.message);
        }
    }

    /// Sends a query to the next resolver that can be asked; false if all were, twice.
    fn try_next<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, query: &mut Waiting) -> bool {
        let count = core.config.resolvers.len();
        while count > 0 && query.tried < 2 * count {
            let index = (query.first + query.tried) % count;
            query.tried += 1;
            core.stats.dns_failover += u64::from(query.tried > 1);
            if let Some(sock) = self.sock(core, index) {
                if core.host.send_datagrams(sock, None, &query.message, query.message.len(), 64).is_ok() {
                    query.deadline = core.now + PATIENCE;
                    return true;
                }
            }
        }
        false
    }

    /// The socket to a resolver.
    fn sock<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, index: usize) -> Option<Sock> {
        if self.socks.len() <= index {
            self.socks.resize(index + 1, None);
        }
        let place = self.socks.get_mut(index)?;
        if place.is_none() {
            let sock = core.host.open(Datagram::Udp, *core.config.resolvers.get(index)?).ok()?;
            *place = Some(sock);
            self.fresh.push(sock);
        }
        *place
    }

    /// Answers, or refusals, have come on one of the sockets.
    pub fn host_ready<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        for index in 0..self.socks.len() {
            let Some(sock) = self.socks.get(index).copied().flatten() else { continue };
            let mut refused = false;
            while core.host.fault(sock).is_some() {
                refused = true;
            }
            loop {
                let (host, place) = core.payload(65507);
                match host.recv_datagrams(sock, place) {
                    Ok(Some((len, _))) => self.answer(core, key, index, len),
                    Ok(None) => break,
                    Err(_) => {
                        refused = true;
                        break;
                    }
                }
            }
            if refused {
                self.refused(core, key, index);
            }
        }
    }

    /// Passes the answer in the core's buffer on, if it was waited for.
    fn answer<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, index: usize, len: usize) {
        let id = core.payload(len).1.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
        let Some(at) = self.waiting.iter().position(|w| Some(w.id) == id) else { return };
        let judged = core.config.judges_names();
        let reading = if judged { read(core, self.waiting.get(at), len) } else { Reading::Passed };
        if matches!(reading, Reading::Ignored) {
            return;
        }
        self.waiting.swap_remove(at);
        core.resolver = index;
        if let Reading::Instead(answer) = reading {
            self.received += answer.len() as u64;
            core.send_datagram(key, &answer);
        } else {
            self.received += len as u64;
            core.send_udp(key, len, 65535);
        }
    }

    /// A resolver's port is closed: its queries move on at once.
    fn refused<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key, index: usize) {
        let count = core.config.resolvers.len().max(1);
        for mut query in std::mem::take(&mut self.waiting) {
            let asked = (query.first + query.tried - 1) % count;
            if asked != index || self.try_next(core, &mut query) {
                self.waiting.push(query);
            } else {
                give_up(core, key, &query.message);
            }
        }
    }

    /// The deadline has come: queries without an answer move on.
    pub fn expired<H: Host, D: Device>(&mut self, core: &mut Core<H, D>, key: &Key) {
        for mut query in std::mem::take(&mut self.waiting) {
            if query.deadline > core.now || self.try_next(core, &mut query) {
                self.waiting.push(query);
            } else {
                give_up(core, key, &query.message);
            }
        }
    }

    /// When the next query moves on.
    pub fn deadline(&self) -> Time {
        self.waiting.iter().map(|w| w.deadline).min().unwrap_or(NEVER)
    }

    /// Closes the sockets.
    pub fn close<H: Host, D: Device>(&mut self, core: &mut Core<H, D>) {
        for sock in self.socks.drain(..).flatten() {
            core.host.close(sock, false);
        }
    }
}

/// What becomes of an answer that was read.
enum Reading {
    /// It goes on.
    Passed,
    /// The guest is told this instead.
    Instead(Vec<u8>),
    /// It answers something else.
    Ignored,
}

/// Reads the answer in the core's buffer, and remembers what it says.
fn read<H: Host, D: Device>(core: &mut Core<H, D>, query: Option<&Waiting>, len: usize) -> Reading {
    let Some(query) = query.and_then(|w| Query::parse(&w.message)) else { return Reading::Ignored };
    let Some(answer) = Answer::parse(core.payload(len).1) else {
        core.stats.malformed += 1;
        return Reading::Instead(query.answer(dns::SERVER_FAILURE, &[], 0));
    };
    if (&answer.name, answer.kind) != (&query.name, query.kind) {
        return Reading::Ignored;
    }
    if core.config.learn(&mut core.learnt, core.now, &answer) {
        Reading::Passed
    } else {
        Reading::Instead(query.answer(dns::REFUSED, &[], 0))
    }
}

/// Tells the guest that no resolver answers.
fn give_up<H: Host, D: Device>(core: &mut Core<H, D>, key: &Key, message: &[u8]) {
    if let Some(query) = Query::parse(message) {
        core.send_datagram(key, &query.answer(dns::SERVER_FAILURE, &[], 0));
    }
}
