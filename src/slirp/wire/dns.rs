//! Just enough DNS (RFC 1035): the question of a query, to answer static names and to judge names by policy.
//! Everything else is relayed as it came.

use super::Reader;
use std::net::IpAddr;

/// Length of the header.
pub const HEADER: usize = 12;
/// Address record.
pub const A: u16 = 1;
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
            let len = usize::from(r.u8()?);
            if len == 0 {
                break;
            }
            if len > 63 || name.len() + len > 254 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(r.take(len)?.iter().map(|b| char::from(b.to_ascii_lowercase())));
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
