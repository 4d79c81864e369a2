//! nf_tables by netlink: batches of requests for a table, its chains and rules, and the expressions of a rule, each
//! named as nft(8) writes it. Made and read here, sent by the keeper.

use std::net::IpAddr;

use super::message::{ACKNOWLEDGED, APPEND, Attributes, CREATE, DUMP, ECHO, attribute, request, text};

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of every type.
const NFTABLES: u16 = 10 << 8;
const NEWTABLE: u16 = NFTABLES;
const NEWCHAIN: u16 = NFTABLES | 3;
const GETCHAIN: u16 = NFTABLES | 4;
const NEWRULE: u16 = NFTABLES | 6;
const GETRULE: u16 = NFTABLES | 7;
const DELRULE: u16 = NFTABLES | 8;
const GETGEN: u16 = NFTABLES | 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFPROTO_INET`: a table for IPv4 and IPv6.
const INET: u8 = 1;
/// `NFT_TABLE_F_OWNER`: the table is its socket's alone, and ends with it.
const OWNER: u32 = 2;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Which of a container's chains; where it hooks in, when, and what kind of rules it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Before anything else is done with what comes in.
    Guard,
    /// What goes on to another interface.
    Forward,
    /// Destinations of what comes in from elsewhere.
    Prerouting,
    /// Destinations of what this machine sends itself.
    Output,
    /// Sources of what goes out.
    Postrouting,
}

impl Chain {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Guard, Self::Forward, Self::Prerouting, Self::Output, Self::Postrouting];

    /// Its name, its hook, its priority, its type.
    fn is(self) -> (&'static str, u32, i32, &'static str) {
        match self {
            Self::Guard => ("guard", 0, -300, "filter"),
            Self::Forward => ("forward", 2, 0, "filter"),
            Self::Prerouting => ("prerouting", 0, -100, "nat"),
            Self::Output => ("output", 3, -100, "nat"),
            Self::Postrouting => ("postrouting", 4, 100, "nat"),
        }
    }
}

/// Requests that the kernel carries out together, or not at all.
#[derive(Debug)]
pub struct Batch<'a> {
    bytes: Vec<u8>,
    table: &'a str,
    sequence: u32,
}

impl<'a> Batch<'a> {
    /// For the table of this name.
    pub fn new(table: &'a str) -> Self {
        let bytes = request(BATCH_BEGIN, 1, 0, &generic(0, 10), &Attributes::new());
        Self { bytes, table, sequence: 0 }
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: &Attributes) {
        self.sequence += 1;
        let message = request(kind, flags | ACKNOWLEDGED, self.sequence, &generic(INET, 0), attributes);
        self.bytes.extend_from_slice(&message);
    }

    /// Makes the table and its chains. `EEXIST`: somebody has one of this name.
    pub fn table(&mut self) {
        let table = Attributes::new().text(1, self.table).be32(2, OWNER);
        self.push(NEWTABLE, CREATE | super::message::EXCLUSIVE, &table);
        for chain in Chain::ALL {
            let (name, hook, priority, kind) = chain.is();
            let hook = Attributes::new().be32(1, hook).be32(2, priority as u32);
            let chain = Attributes::new()
                .text(1, self.table)
                .text(3, name)
                .nest(4, &hook)
                .be32(5, ACCEPT) // the policy: of what is not a container's we say nothing
                .text(7, kind);
            self.push(NEWCHAIN, CREATE, &chain);
        }
    }

    /// Appends a rule. Its [`handle`] is told.
    pub fn rule(&mut self, chain: Chain, rule: &Rule) {
        let attributes = Attributes::new().text(1, self.table).text(2, chain.is().0).nest(4, &rule.0);
        self.push(NEWRULE, CREATE | APPEND | ECHO, &attributes);
    }

    /// Removes a rule.
    pub fn remove(&mut self, chain: Chain, handle: u64) {
        let attributes =
            Attributes::new().text(1, self.table).text(2, chain.is().0).bytes(3, &handle.to_be_bytes());
        self.push(DELRULE, 0, &attributes);
    }

    /// The whole, and the number of the last request in it, whose acknowledgement comes last.
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        let end = request(BATCH_END, 1, self.sequence + 1, &generic(0, 10), &Attributes::new());
        self.bytes.extend_from_slice(&end);
        (self.bytes, self.sequence)
    }
}

/// `struct nfgenmsg`: family, version, resource.
fn generic(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Asks for the generation: answered to whoever may change the firewall, `EPERM` to others, and something else where
/// there are no nf_tables.
pub fn generation() -> Vec<u8> {
    request(GETGEN, ACKNOWLEDGED, 1, &generic(0, 0), &Attributes::new())
}

/// Asks for all chains of all tables.
pub fn chains() -> Vec<u8> {
    request(GETCHAIN, 1 | DUMP, 1, &generic(0, 0), &Attributes::new())
}

/// Asks for all rules of a chain.
pub fn rules(family: u8, table: &str, chain: &str) -> Vec<u8> {
    let which = Attributes::new().text(1, table).text(2, chain);
    request(GETRULE, 1 | DUMP, 1, &generic(family, 0), &which)
}

/// The handle of a rule that was made.
pub fn handle(kind: u16, body: &[u8]) -> Option<u64> {
    if kind != NEWRULE {
        return None;
    }
    attribute(body.get(4..)?, 3)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A chain that drops what is forwarded unless a rule of its own lets it pass: family, table, chain. No other chain
/// can let pass what such a one drops.
pub fn closed(body: &[u8]) -> Option<(u8, String, String)> {
    let (family, rest) = (*body.first()?, body.get(4..)?);
    let be = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let hook = be(attribute(attribute(rest, 4)?, 1)?)?;
    let policy = be(attribute(rest, 5)?)?;
    // NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6.
    let ours = matches!(family, 1 | 2 | 10) && hook == 2 && policy == DROP;
    ours.then_some((family, text(attribute(rest, 1)?), text(attribute(rest, 3)?)))
}

/// One rule: expressions, each of which goes on to the next or ends it.
#[derive(Debug, Default, Clone)]
#[must_use]
pub struct Rule(Attributes);

/// A field of the network header: its offset for IPv4 and for IPv6.
#[derive(Debug, Clone, Copy)]
pub enum Field {
    /// `saddr`.
    Source,
    /// `daddr`.
    Destination,
}

/// Which way an interface is seen.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// `iifname`.
    In,
    /// `oifname`.
    Out,
}

impl Rule {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nest(2, data);
        Self(self.0.nest(1, &expression))
    }

    /// Goes on if the first register is `value`, or with `not` if it is not.
    fn compare(self, not: bool, value: &[u8]) -> Self {
        let data =
            Attributes::new().be32(1, 1).be32(2, not.into()).nest(3, &Attributes::new().bytes(1, value));
        self.expression("cmp", &data)
    }

    /// Leaves of the first register the bits of `mask`.
    fn masked(self, mask: &[u8]) -> Self {
        let data = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
        let zero = vec![0; mask.len()];
        let attributes = Attributes::new()
            .be32(1, 1)
            .be32(2, 1)
            .be32(3, mask.len() as u32)
            .nest(4, &data(mask))
            .nest(5, &data(&zero));
        self.expression("bitwise", &attributes)
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", &Attributes::new().be32(1, 1).be32(2, key))
    }

    fn payload(self, base: u32, offset: u32, len: usize) -> Self {
        let data = Attributes::new().be32(1, 1).be32(2, base).be32(3, offset).be32(4, len as u32);
        self.expression("payload", &data)
    }

    fn load(self, register: u32, value: &[u8]) -> Self {
        self.expression(
            "immediate",
            &Attributes::new().be32(1, register).nest(2, &Attributes::new().bytes(1, value)),
        )
    }

    fn verdict(self, code: u32) -> Self {
        let verdict = Attributes::new().nest(2, &Attributes::new().be32(1, code));
        self.expression("immediate", &Attributes::new().be32(1, 0).nest(2, &verdict))
    }

    /// `iifname NAME`, or `oifname != NAME`.
    pub fn interface(self, way: Way, not: bool, name: &str) -> Self {
        let mut whole = name.as_bytes().to_vec();
        whole.resize(16, 0);
        self.meta(way.key()).compare(not, &whole)
    }

    /// The same of all whose names begin so: `iifname "NAME*"`.
    pub fn interfaces(self, way: Way, not: bool, prefix: &str) -> Self {
        self.meta(way.key()).compare(not, prefix.as_bytes())
    }

    /// `meta nfproto ipv4`, or `ipv6`.
    pub fn family(self, like: IpAddr) -> Self {
        self.meta(15).compare(false, &[if like.is_ipv4() { 2 } else { 10 }])
    }

    /// `ip saddr A`, `ip6 daddr != A`, and so on; of the right family already.
    pub fn is(self, field: Field, not: bool, address: IpAddr) -> Self {
        self.field(field, address).compare(not, &octets(address))
    }

    /// `ip saddr A/BITS`, `ip6 saddr != A/BITS`.
    pub fn within(self, field: Field, not: bool, network: IpAddr, bits: u8) -> Self {
        let len = octets(network).len();
        let whole = u128::MAX << (128 - u32::from(bits).clamp(1, 128));
        let mask = whole.to_be_bytes();
        self.field(field, network).masked(mask.get(..len).unwrap_or(&mask)).compare(not, &octets(network))
    }

    fn field(self, field: Field, like: IpAddr) -> Self {
        let offset = match (field, like) {
            (Field::Source, IpAddr::V4(_)) => 12,
            (Field::Destination, IpAddr::V4(_)) => 16,
            (Field::Source, IpAddr::V6(_)) => 8,
            (Field::Destination, IpAddr::V6(_)) => 24,
        };
        self.payload(1, offset, octets(like).len())
    }

    /// `fib daddr type local`: an address of this machine.
    pub fn to_this_machine(self) -> Self {
        const DESTINATION: u32 = 2;
        const ADDRTYPE: u32 = 3;
        const LOCAL: u32 = 2;
        let data = Attributes::new().be32(1, 1).be32(2, ADDRTYPE).be32(3, DESTINATION);
        self.expression("fib", &data).compare(false, &LOCAL.to_ne_bytes())
    }

    /// `tcp dport N`, or `udp`.
    pub fn port(self, tcp: bool, port: u16) -> Self {
        self.meta(16)
            .compare(false, &[if tcp { 6 } else { 17 }])
            .payload(2, 2, 2)
            .compare(false, &port.to_be_bytes())
    }

    /// `ct state established,related`.
    pub fn answers(self) -> Self {
        self.connection(0, 2 | 4)
    }

    /// `ct status dnat`: its destination was changed.
    pub fn redirected(self) -> Self {
        self.connection(2, 32)
    }

    fn connection(self, key: u32, any: u32) -> Self {
        self.expression("ct", &Attributes::new().be32(1, 1).be32(2, key))
            .masked(&any.to_ne_bytes())
            .compare(true, &[0; 4])
    }

    /// `accept`: by this chain, not by those of others.
    pub fn accept(self) -> Self {
        self.verdict(ACCEPT)
    }

    /// `drop`.
    pub fn drop(self) -> Self {
        self.verdict(DROP)
    }

    /// `masquerade`: with the address of the interface it goes out by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::new())
    }

    /// `dnat to A:PORT`.
    pub fn dnat(self, to: IpAddr, port: u16) -> Self {
        let family = if to.is_ipv4() { 2 } else { 10 };
        let data = Attributes::new().be32(1, 1).be32(2, family).be32(3, 1).be32(5, 2);
        self.load(1, &octets(to)).load(2, &port.to_be_bytes()).expression("nat", &data)
    }
}

impl Way {
    fn key(self) -> u32 {
        match self {
            Self::In => 6,
            Self::Out => 7,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
