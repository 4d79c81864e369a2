//! DHCP for `IPv4` (RFC 2131, 2132): requests in, answers out. Nested users ask; our own containers do not.

use super::Reader;
use super::ethernet::Mac;
use std::net::Ipv4Addr;

/// The server's port.
pub const SERVER_PORT: u16 = 67;
/// The client's port.
pub const CLIENT_PORT: u16 = 68;
/// Who offers an address?
pub const DISCOVER: u8 = 1;
/// You may have this.
pub const OFFER: u8 = 2;
/// I take it.
pub const REQUEST: u8 = 3;
/// The address is in use.
pub const DECLINE: u8 = 4;
/// It is yours.
pub const ACK: u8 = 5;
/// It is not.
pub const NAK: u8 = 6;
/// I give it back.
pub const RELEASE: u8 = 7;
/// I have an address; tell me the rest.
pub const INFORM: u8 = 8;

const COOKIE: u32 = 0x6382_5363;

/// A client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`DISCOVER`] to [`INFORM`].
    pub kind: u8,
    /// Transaction.
    pub xid: u32,
    /// The client wants the answer broadcast.
    pub broadcast: bool,
    /// The client's address, if it has one.
    pub client: Ipv4Addr,
    /// The client's hardware address.
    pub mac: Mac,
    /// Option 50.
    pub wanted: Option<Ipv4Addr>,
    /// Option 54: which server is meant.
    pub server: Option<Ipv4Addr>,
}

impl Request {
    /// Reads a request; `None` for replies, other hardware, and options that run past the end.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut r = Reader::new(message);
        if r.array::<3>()? != [1, 1, 6] {
            return None;
        }
        r.u8()?;
        let xid = r.u32()?;
        r.u16()?;
        let broadcast = r.u16()? & 0x8000 != 0;
        let client = r.array::<4>()?.into();
        r.take(12)?;
        let mac = Mac(r.array()?);
        r.take(10 + 64 + 128)?;
        if r.u32()? != COOKIE {
            return None;
        }
        let mut request = Self { kind: 0, xid, broadcast, client, mac, wanted: None, server: None };
        while let Some(code) = r.u8() {
            match code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let len = usize::from(r.u8()?);
            let body = r.take(len)?;
            let mut b = Reader::new(body);
            match (code, body.len()) {
                (53, 1) => request.kind = b.u8()?,
                (50, 4) => request.wanted = b.array::<4>().map(Into::into),
                (54, 4) => request.server = b.array::<4>().map(Into::into),
                (50 | 53 | 54, _) => return None,
                _ => {}
            }
        }
        (DISCOVER..=INFORM).contains(&request.kind).then_some(request)
    }
}

/// What a reply tells besides the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// [`OFFER`], [`ACK`] or [`NAK`].
    pub kind: u8,
    /// The address given; unspecified in a [`NAK`].
    pub address: Ipv4Addr,
    /// Who we are.
    pub server: Ipv4Addr,
    /// The subnet's mask.
    pub mask: Ipv4Addr,
    /// Default route.
    pub router: Ipv4Addr,
    /// Resolver.
    pub dns: Ipv4Addr,
    /// Link MTU.
    pub mtu: u16,
    /// Seconds of lease.
    pub lease: u32,
    /// Search domains.
    pub search: &'a [String],
}

impl Reply<'_> {
    /// The answer to `request`.
    pub fn emit(&self, request: &Request) -> Vec<u8> {
        let mut out = vec![2, 1, 6, 0];
        out.extend_from_slice(&request.xid.to_be_bytes());
        out.extend_from_slice(&[0, 0, if request.broadcast { 0x80 } else { 0 }, 0]);
        out.extend_from_slice(&request.client.octets());
        out.extend_from_slice(&self.address.octets());
        out.extend_from_slice(&self.server.octets());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&request.mac.0);
        out.extend_from_slice(&[0; 10 + 64 + 128]);
        out.extend_from_slice(&COOKIE.to_be_bytes());
        let mut option = |code: u8, body: &[u8]| {
            out.extend_from_slice(&[code, body.len() as u8]);
            out.extend_from_slice(body);
        };
        option(53, &[self.kind]);
        option(54, &self.server.octets());
        if self.kind != NAK {
            option(51, &self.lease.to_be_bytes());
            option(1, &self.mask.octets());
            option(3, &self.router.octets());
            if !self.dns.is_unspecified() {
                option(6, &self.dns.octets());
            }
            option(26, &self.mtu.to_be_bytes());
            let search: Vec<u8> =
                self.search.iter().filter_map(|d| super::dns::encode_name(d)).flatten().collect();
            if (1..=255).contains(&search.len()) {
                option(119, &search);
            }
        }
        out.push(255);
        // RFC 1542 §2.1: some clients want at least the 300 bytes of BOOTP.
        out.resize(out.len().max(300), 0);
        out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn request(options: &[u8]) -> Vec<u8> {
        let mut out = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&[2, 0, 0, 0, 0, 9]);
        out.extend_from_slice(&[0; 10 + 64 + 128]);
        out.extend_from_slice(&COOKIE.to_be_bytes());
        out.extend_from_slice(options);
        out
    }

    #[test]
    fn request_and_bad_lengths() {
        let good = request(&[53, 1, DISCOVER, 0, 50, 4, 10, 0, 2, 15, 255]);
        let read = Request::parse(&good).unwrap();
        assert_eq!((read.kind, read.xid, read.broadcast), (DISCOVER, 0x0102_0304, true));
        assert_eq!((read.mac, read.wanted), (Mac([2, 0, 0, 0, 0, 9]), Some([10, 0, 2, 15].into())));
        for bad in [&[53, 2, 1][..], &[53, 1], &[53], &[53, 1, 9], &[53, 1, 1, 50, 3, 1, 1, 1], &[]] {
            assert_eq!(Request::parse(&request(bad)), None, "{bad:?}");
        }
        for len in 0..good.len() - 8 {
            assert_eq!(Request::parse(&good[..len]), None);
        }
    }

    #[test]
    fn reply_carries_everything() {
        let ask = Request::parse(&request(&[53, 1, REQUEST, 255])).unwrap();
        let reply = Reply {
            kind: ACK,
            address: [10, 0, 2, 15].into(),
            server: [10, 0, 2, 2].into(),
            mask: [255, 255, 255, 0].into(),
            router: [10, 0, 2, 2].into(),
            dns: [10, 0, 2, 3].into(),
            mtu: 1500,
            lease: 86400,
            search: &["example.org".into()],
        };
        let bytes = reply.emit(&ask);
        assert_eq!(&bytes[16..20], &[10, 0, 2, 15]);
        let domain = b"\x07example\x03org\x00";
        assert!(bytes.windows(domain.len()).any(|w| w == domain));
        let dns = [6, 4, 10, 0, 2, 3];
        assert!(bytes.windows(6).any(|w| w == dns));
        let without = Reply { dns: Ipv4Addr::UNSPECIFIED, ..reply }.emit(&ask);
        assert!(!without.windows(2).any(|w| w == [6, 4]), "no resolver");
        assert!(Reply { kind: NAK, ..reply }.emit(&ask).len() >= 300);
    }
}
