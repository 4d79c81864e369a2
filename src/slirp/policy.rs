//! Who may be reached: rules by network, port and name.
//!
//! The first rule that speaks of a destination decides. A packet carries no name, so a rule by name speaks of the
//! addresses that the name stood for in answers of our resolvers, for as long as the answer says: [`Learnt`] has them,
//! and forgets those soonest whose time is over first. An address that nobody asked for is an address without a name.
//! An allowed name is the one that was asked for; a denied one may also be an alias on the way to the addresses. Where
//! several names share an address, the order of the rules decides: whoever writes the list puts what is allowed first.
//! What a connection says of its peer's name later (TLS, HTTP) is not looked at. Runs in the engine's process; what is
//! learnt comes from outside, and is bounded for each rule, so that one name's answers cannot push out another's.

use super::config::{Config, in_network};
use super::time::{SEC, Time};
use super::wire::dns::Answer;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// How many addresses are remembered of one rule's names.
const EACH: usize = 1024;
/// How many in all.
const TOTAL: usize = 16384;
/// For how long at least: some names are given for no time at all, and who asks must have time to connect.
const LEAST: u32 = 60;
/// And at most, in seconds.
const MOST: u32 = 86400;

/// Names: one, those below it, or both; lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    name: String,
    itself: bool,
    below: bool,
}

impl Domain {
    /// `example.org` is that name alone, `*.example.org` all below it, `*` all names.
    pub fn of(text: &str) -> Self {
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        match name.strip_prefix('*') {
            Some("") => Self { name: String::new(), itself: true, below: true },
            Some(rest) if rest.starts_with('.') => {
                Self { name: rest.trim_start_matches('.').to_owned(), itself: false, below: true }
            }
            _ => Self { name, itself: true, below: false },
        }
    }

    /// The same, but `example.org` with all below it.
    pub fn whole(text: &str) -> Self {
        Self { below: true, ..Self::of(text) }
    }

    /// True for `*`.
    pub fn is_all(&self) -> bool {
        self.name.is_empty()
    }

    /// True if `name` is one of them.
    pub fn covers(&self, name: &str) -> bool {
        match name.strip_suffix(self.name.as_str()) {
            Some("") => self.itself,
            Some(rest) => self.below && (self.is_all() || rest.ends_with('.')),
            None => false,
        }
    }
}

/// Whom a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Everybody.
    All,
    /// A network: address and length of its prefix.
    Net(IpAddr, u8),
    /// Those that names stand for.
    Names(Domain),
}

/// A rule about what may be reached; the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// Whom.
    pub whom: Whom,
    /// The ports.
    pub ports: RangeInclusive<u16>,
}

impl Rule {
    /// Its names, if it has some.
    fn names(&self) -> Option<&Domain> {
        match &self.whom {
            Whom::Names(domain) => Some(domain),
            _ => None,
        }
    }

    /// True if it says that nobody is reached whom no rule before it names.
    fn is_last(&self) -> bool {
        !self.allow && self.whom == Whom::All && self.ports == (0..=u16::MAX)
    }
}

/// What the rules say of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opinion {
    /// It may be reached.
    Allowed,
    /// It may not.
    Denied,
    /// It is not among those that may.
    Unlisted,
}

/// Whose names an address was learnt for: a rule's, or the denied names', by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Rule(usize),
    Denied(usize),
}

/// Which addresses the names of rules stand for, and until when.
#[derive(Debug, Default)]
pub struct Learnt {
    of: BTreeMap<Whose, HashMap<IpAddr, Time>>,
    total: usize,
    /// When those whose time is over were last looked for.
    swept: Time,
}

impl Learnt {
    /// How many addresses are remembered.
    pub fn held(&self) -> usize {
        self.total
    }

    fn has(&self, whose: Whose, address: IpAddr, now: Time) -> bool {
        self.of.get(&whose).and_then(|known| known.get(&address)).is_some_and(|until| *until > now)
    }

    fn is_denied(&self, address: IpAddr, now: Time) -> bool {
        let denied = self.of.range(Whose::Denied(0)..);
        denied.into_iter().any(|(_, known)| known.get(&address).is_some_and(|until| *until > now))
    }

    fn learn(&mut self, whose: Whose, addresses: &[(IpAddr, u32)], now: Time) {
        if self.total >= TOTAL && now >= self.swept + SEC {
            self.forget_old(now);
        }
        for (address, ttl) in addresses {
            // The highest bit means nothing (RFC 2181 section 8).
            let ttl = if ttl >> 31 == 0 { *ttl } else { 0 };
            let until = now + Time::from(ttl.clamp(LEAST, MOST)) * SEC;
            let known = self.of.entry(whose).or_default();
            if let Some(old) = known.get_mut(address) {
                *old = until.max(*old);
                continue;
            }
            if known.len() >= EACH || self.total >= TOTAL {
                // Room is made among one's own.
                let Some(first) = known.iter().min_by_key(|(a, t)| (**t, **a)).map(|(a, _)| *a) else {
                    continue;
                };
                known.remove(&first);
                self.total -= 1;
            }
            known.insert(*address, until);
            self.total += 1;
        }
    }

    fn forget_old(&mut self, now: Time) {
        self.swept = now;
        for known in self.of.values_mut() {
            known.retain(|_, until| *until > now);
        }
        self.of.retain(|_, known| !known.is_empty());
        self.total = self.of.values().map(HashMap::len).sum();
    }
}

impl Config {
    /// True if something depends on names: then no answer passes unread.
    pub fn judges_names(&self) -> bool {
        !self.denied_names.is_empty() || self.rules.iter().any(|rule| rule.names().is_some())
    }

    /// True if a rule allows what has this name.
    fn allows_name(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.allow && rule.names().is_some_and(|domain| domain.covers(name)))
    }

    /// True if this name is not to be resolved, because it is named.
    pub fn denies_name(&self, name: &str) -> bool {
        let denied = |domain: &Domain| !domain.is_all() && domain.covers(name);
        self.denied_names.iter().any(denied) && !self.allows_name(name)
    }

    /// True if this name is not to be resolved, because no name is but those that are allowed.
    pub fn omits_name(&self, name: &str) -> bool {
        self.denied_names.iter().any(Domain::is_all) && !self.allows_name(name)
    }

    /// What the rules say of a destination.
    pub(super) fn opinion(&self, learnt: &Learnt, now: Time, to: IpAddr, port: u16) -> Opinion {
        let fixed = |domain: &Domain| {
            self.names.iter().any(|(name, addresses)| domain.covers(name) && addresses.contains(&to))
        };
        let speaks = |(index, rule): &(usize, &Rule)| {
            rule.ports.contains(&port)
                && match &rule.whom {
                    Whom::All => true,
                    Whom::Net(network, len) => in_network(to, *network, *len),
                    Whom::Names(domain) => learnt.has(Whose::Rule(*index), to, now) || fixed(domain),
                }
        };
        match self.rules.iter().enumerate().find(speaks) {
            Some((_, rule)) if rule.allow => Opinion::Allowed,
            Some((_, rule)) if rule.is_last() && !learnt.is_denied(to, now) => Opinion::Unlisted,
            Some(_) => Opinion::Denied,
            None if learnt.is_denied(to, now) => Opinion::Denied,
            None => Opinion::Allowed,
        }
    }

    /// Takes in what an answer says; false if it leads to a name that is not to be resolved.
    pub(super) fn learn(&self, learnt: &mut Learnt, now: Time, answer: &Answer) -> bool {
        for (index, rule) in self.rules.iter().enumerate() {
            let Some(domain) = rule.names() else { continue };
            let alias = !rule.allow && answer.aliases.iter().any(|name| domain.covers(name));
            if alias || domain.covers(&answer.name) {
                learnt.learn(Whose::Rule(index), &answer.addresses, now);
            }
        }
        if self.allows_name(&answer.name) {
            return true;
        }
        let mut may = true;
        for (index, domain) in self.denied_names.iter().enumerate() {
            if !domain.is_all() && answer.aliases.iter().any(|name| domain.covers(name)) {
                learnt.learn(Whose::Denied(index), &answer.addresses, now);
                may = false;
            }
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into()
    }

    #[test]
    fn names_and_what_is_below_them() {
        for (domain, name, covered) in [
            (Domain::of("Example.ORG."), "example.org", true),
            (Domain::of("example.org"), "a.example.org", false),
            (Domain::of("example.org"), "xexample.org", false),
            (Domain::of("*.example.org"), "example.org", false),
            (Domain::of("*.example.org"), "a.b.example.org", true),
            (Domain::of("*.example.org"), "xexample.org", false),
            (Domain::whole("example.org"), "example.org", true),
            (Domain::whole("example.org"), "a.example.org", true),
            (Domain::whole("*.example.org"), "example.org", false),
            (Domain::whole("example.org"), "xexample.org", false),
            (Domain::of("*"), "anything", true),
            (Domain::of("*"), "", true),
            (Domain::of("*x"), "*x", true),
        ] {
            assert_eq!(domain.covers(name), covered, "{domain:?} {name}");
        }
    }

    #[test]
    fn what_is_learnt_ends_and_is_bounded_for_each_rule() {
        let mut learnt = Learnt::default();
        learnt.learn(Whose::Rule(0), &[(address(1), 0), (address(2), 100), (address(3), 0xffff_ffff)], 0);
        learnt.learn(Whose::Denied(0), &[(address(1), 100)], 0);
        let minute = Time::from(LEAST) * SEC;
        for (n, until) in [(1, minute), (2, 100 * SEC), (3, minute)] {
            assert!(learnt.has(Whose::Rule(0), address(n), until - 1), "{n}");
            assert!(!learnt.has(Whose::Rule(0), address(n), until), "{n}");
        }
        assert!(learnt.is_denied(address(1), 99 * SEC) && !learnt.is_denied(address(2), 0));
        // Somebody's thousands of addresses push out none but their own.
        for n in 0..3 * EACH as u32 {
            learnt.learn(Whose::Rule(1), &[(address(100 + n), MOST)], Time::from(n));
        }
        assert_eq!(learnt.of[&Whose::Rule(1)].len(), EACH);
        assert!(learnt.has(Whose::Rule(0), address(2), SEC) && learnt.is_denied(address(1), SEC));
        assert!(learnt.has(Whose::Rule(1), address(99 + 3 * EACH as u32), SEC), "the newest stays");
        for rule in 2..40 {
            for n in 0..EACH as u32 {
                learnt.learn(Whose::Rule(rule), &[(address(n), 100)], 0);
            }
        }
        assert_eq!(learnt.held(), TOTAL);
        assert_eq!(learnt.held(), learnt.of.values().map(HashMap::len).sum::<usize>());
        learnt.learn(Whose::Rule(39), &[(address(7), 100)], 2 * 86400 * SEC);
        assert_eq!(learnt.held(), 1, "the rest has had its time");
    }
}
