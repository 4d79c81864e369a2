//! Just enough DNS (RFC 1035): the question of a query, to answer static names and to judge names by policy; the
//! aliases and addresses of an answer, to know what a name stands for. Everything else is relayed as it came.
//!
//! A name is text here: lower case, labels joined by dots, without the last one. A dot within a label becomes `\\046`,
//! for it separates nothing.

use super::Reader;
use std::net::IpAddr;

/// Length of the header.
pub const HEADER: usize = 12;
/// The longest way from a name to its addresses; resolvers give up before.
const ALIASES: usize = 16;
/// The most labels and pointers of a name: there are 127 labels in the longest.
const STEPS: usize = 256;
/// Address record.
pub const A: u16 = 1;
/// Alias.
const CNAME: u16 = 5;
/// `IPv6` address record.
pub const AAAA: u16 = 28;
/// No error.
pub const NO_ERROR: u8 = 0;
/// The server failed.
pub const SERVER_FAILURE: u8 = 2;
/// No such name.
pub const NO_NAME: u8 = 3;
/// The server will not say.
pub const REFUSED: u8 = 5;

/// A query's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// Identification.
    pub id: u16,
    /// The name, lower case, labels joined by dots, without the last dot.
    pub name: String,
    /// Record type.
    pub kind: u16,
    /// Header and question, to be sent back.
    head: &'a [u8],
}

impl<'a> Query<'a> {
    /// Reads a query with one question; compressed names do not occur there and are refused.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(message);
        let (id, flags, questions) = (r.u16()?, r.u16()?, r.u16()?);
        r.take(6)?;
        // A query, opcode 0, one question.
        if flags & 0xf800 != 0 || questions != 1 {
            return None;
        }
        let mut name = String::new();
        loop {
            match label(&mut r)? {
                [] => break,
                label => add(&mut name, label)?,
            }
        }
        let (kind, _class) = (r.u16()?, r.u16()?);
        let head = message.get(..message.len() - r.rest().len())?;
        Some(Self { id, name, kind, head })
    }

    /// An answer with `code` and those of `addresses` that the question's type asks for.
    pub fn answer(&self, code: u8, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let mut out = self.head.to_vec();
        let wanted = addresses.iter().filter(|a| self.kind == if a.is_ipv4() { A } else { AAAA });
        let mut count = 0u16;
        for address in wanted {
            count += 1;
            out.extend_from_slice(&[0xc0, HEADER as u8]);
            out.extend_from_slice(&self.kind.to_be_bytes());
            out.extend_from_slice(&[0, 1]);
            out.extend_from_slice(&ttl.to_be_bytes());
            match address {
                IpAddr::V4(a) => out.extend_from_slice(&[&[0, 4], &a.octets()[..]].concat()),
                IpAddr::V6(a) => out.extend_from_slice(&[&[0, 16], &a.octets()[..]].concat()),
            }
        }
        // Response, recursion desired as asked, recursion available.
        let desired = out.get(2).copied().unwrap_or(0) & 1;
        super::put(&mut out, 2, &[0x80 | desired, 0x80 | (code & 15)]);
        super::put(&mut out, 6, &count.to_be_bytes());
        super::put(&mut out, 8, &[0; 4]);
        out
    }
}

/// The next label, empty at a name's end; `None` if it is none, or a pointer.
fn label<'a>(r: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = usize::from(r.u8()?);
    if len <= 63 { r.take(len) } else { None }
}

/// Puts a label at the end of a name, unless that becomes too long.
fn add(name: &mut String, label: &[u8]) -> Option<()> {
    if name.len() + label.len() > 254 {
        return None;
    }
    if !name.is_empty() {
        name.push('.');
    }
    for byte in label {
        match byte {
            b'.' => name.push_str("\\046"),
            byte => name.push(char::from(byte.to_ascii_lowercase())),
        }
    }
    Some(())
}

/// The name at `at`, which may point to what stands before it; and where it ends.
fn name_at(message: &[u8], at: usize) -> Option<(String, usize)> {
    let (mut name, mut start, mut end) = (String::new(), at, None);
    let mut r = Reader::new(message.get(at..)?);
    for _ in 0..STEPS {
        let here = message.len() - r.rest().len();
        let byte = *message.get(here)?;
        if byte & 0xc0 == 0xc0 {
            end = end.or(Some(here + 2));
            let to = usize::from(r.u16()? & 0x3fff);
            // Only backwards, so that there is an end.
            if to >= start {
                return None;
            }
            start = to;
            r = Reader::new(message.get(to..)?);
            continue;
        }
        match label(&mut r)? {
            [] => return Some((name, end.unwrap_or(here + 1))),
            label => add(&mut name, label)?,
        }
    }
    None
}

/// What an answer says about its question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for.
    pub name: String,
    /// Record type that was asked for.
    pub kind: u16,
    /// The names that it is an alias of, one after the other.
    pub aliases: Vec<String>,
    /// The addresses at the end, with their time to live in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
}

impl Answer {
    /// Reads an answer to one question. What is not on the way from its name to the addresses is passed over.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut r = Reader::new(message);
        let (_id, flags, questions, records) = (r.u16()?, r.u16()?, r.u16()?, r.u16()?);
        if flags & 0xf800 != 0x8000 || questions != 1 {
            return None;
        }
        let (name, mut at) = name_at(message, HEADER)?;
        let mut r = Reader::new(message.get(at..)?);
        let (kind, _class) = (r.u16()?, r.u16()?);
        at += 4;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..records {
            let (owner, end) = name_at(message, at)?;
            let mut r = Reader::new(message.get(end..)?);
            let (kind, class, ttl, len) = (r.u16()?, r.u16()?, r.u32()?, usize::from(r.u16()?));
            at = end + 10 + len;
            match (kind, r.take(len)?) {
                _ if class != 1 => {}
                (A, data) => addresses.push((owner, IpAddr::from(<[u8; 4]>::try_from(data).ok()?), ttl)),
                (AAAA, data) => addresses.push((owner, IpAddr::from(<[u8; 16]>::try_from(data).ok()?), ttl)),
                (CNAME, _) => names.push((owner, name_at(message, end + 10)?.0)),
                _ => {}
            }
        }
        let mut aliases: Vec<String> = Vec::new();
        loop {
            let last = aliases.last().unwrap_or(&name);
            let Some((_, next)) = names.iter().find(|(owner, _)| owner == last) else { break };
            if aliases.len() >= ALIASES {
                return None;
            }
            aliases.push(next.clone());
        }
        let last = aliases.last().unwrap_or(&name);
        let of_last = addresses.iter().filter(|(owner, ..)| owner == last);
        let addresses = of_last.map(|(_, address, ttl)| (*address, *ttl)).collect();
        Some(Self { name, kind, aliases, addresses })
    }
}

/// A name as labels on the wire; `None` if it cannot be one.
pub fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        out.extend(encode_name(name).unwrap());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out
    }

    /// An answer's record: its owner, and an alias or an address.
    pub(crate) type Record<'a> = (&'a str, Result<IpAddr, &'a str>, u32);

    /// An answer to a query, with records in this order.
    pub(crate) fn answer(query: &[u8], records: &[Record<'_>]) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2] = 0x81;
        out[3] = 0x80;
        out[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        for (owner, data, ttl) in records {
            out.extend(encode_name(owner).unwrap());
            let (kind, data) = match data {
                Ok(IpAddr::V4(a)) => (A, a.octets().to_vec()),
                Ok(IpAddr::V6(a)) => (AAAA, a.octets().to_vec()),
                Err(alias) => (CNAME, encode_name(alias).unwrap()),
            };
            out.extend_from_slice(&[&kind.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes()].concat());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    #[test]
    fn aliases_lead_to_addresses_in_any_order() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let records = [
            ("Edge.Example", Ok(v4), 30),
            ("other.example", Ok("192.0.2.9".parse().unwrap()), 30),
            ("cdn.example", Err("EDGE.example"), 60),
            ("www.example", Err("cdn.example"), 60),
            ("edge.example", Ok(v6), 40),
        ];
        let read = Answer::parse(&answer(&query("WWW.example", A), &records)).unwrap();
        assert_eq!((read.name.as_str(), read.kind), ("www.example", A));
        assert_eq!(read.aliases, ["cdn.example", "edge.example"]);
        assert_eq!(read.addresses, [(v4, 30), (v6, 40)], "and nobody else's");
        let around = [("a.b", Err("b.b"), 1), ("b.b", Err("a.b"), 1)];
        assert_eq!(Answer::parse(&answer(&query("a.b", A), &around)), None, "it has no end");
        let none = Answer::parse(&answer(&query("a.b", 15), &[])).unwrap();
        assert!(none.addresses.is_empty() && none.aliases.is_empty());
    }

    #[test]
    fn pointers_go_back_and_end() {
        let mut good = query("www.example", A);
        good[2] = 0x81;
        good[7] = 1;
        let record =
            |owner: &[u8]| [&good[..], owner, &[0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]].concat();
        let here = good.len() as u8;
        for (owner, name) in [
            (&[0xc0, 12][..], Some(1)),
            // "www" and then a pointer to "example".
            (&[3, b'w', b'w', b'w', 0xc0, 16], Some(1)),
            (&[0xc0, 16], Some(0)),
            (&[0xc0, here], None),
            (&[1, b'a', 0xc0, here], None),
            (&[0xc0, here + 2, 0], None),
            (&[0xff, 0xff], None),
            (&[0x80], None),
        ] {
            let found = Answer::parse(&record(owner)).map(|answer| answer.addresses.len());
            assert_eq!(found, name, "{owner:02x?}");
        }
        let whole = record(&[0xc0, 12]);
        for len in 0..whole.len() {
            assert_eq!(Answer::parse(&whole[..len]), None, "{len}");
        }
        // A name of many pointers, each to the one before, and one that becomes too long by them.
        let mut chain = query("a", A);
        chain[2] = 0x81;
        let label = [&[63][..], &[b'x'; 63]].concat();
        let mut last = 12u16;
        for _ in 0..5 {
            let at = chain.len() as u16;
            chain.extend([&label[..], &(0xc000 | last).to_be_bytes()].concat());
            last = at;
        }
        assert_eq!(name_at(&chain, usize::from(last)), None, "254 bytes are the most");
        let mut idle = query("a", A);
        for n in 0..1000u16 {
            let to = if n == 0 { 12 } else { 19 + 2 * (n - 1) };
            idle.extend((0xc000 | to).to_be_bytes());
        }
        assert_eq!(name_at(&idle, 19 + 2 * 200), Some(("a".into(), 19 + 2 * 201)));
        assert_eq!(name_at(&idle, 19 + 2 * 999), None, "nobody follows a thousand pointers");
    }

    #[test]
    fn a_dot_within_a_label_separates_nothing() {
        let mut bytes = query("a-evil.example", A);
        bytes[14] = b'.';
        assert_eq!(Query::parse(&bytes).unwrap().name, "a\\046evil.example");
    }

    #[test]
    fn question_and_answer() {
        let bytes = query("Db.Internal", A);
        let read = Query::parse(&bytes).unwrap();
        assert_eq!((read.id, read.name.as_str(), read.kind), (0x1234, "db.internal", A));
        let answer = read.answer(NO_ERROR, &["10.0.2.7".parse().unwrap(), "fd00::7".parse().unwrap()], 5);
        assert_eq!(&answer[..12], &[0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&answer[answer.len() - 6..], &[0, 4, 10, 0, 2, 7]);
    }

    #[test]
    fn malformed() {
        let good = query("a.b", AAAA);
        for len in 0..good.len() {
            assert_eq!(Query::parse(&good[..len]), None, "{len}");
        }
        let mut bad = good.clone();
        bad[12] = 0xc0;
        assert_eq!(Query::parse(&bad), None, "compressed");
        bad = good;
        bad[2] = 0x80;
        assert_eq!(Query::parse(&bad), None, "a response");
        assert_eq!(encode_name("a..b"), None);
        assert_eq!(encode_name(&"x".repeat(64)), None);
        assert_eq!(encode_name(&["x".repeat(60).as_str(); 5].join(".")), None);
    }
}
