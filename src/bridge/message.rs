//! Netlink messages (netlink(7)): written attribute by attribute, and read. No system call is made here; the
//! keeper's process sends them.

/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const ACKNOWLEDGED: u16 = 0x5;
/// Make it if it is not there.
pub const CREATE: u16 = 0x400;
/// And fail with `EEXIST` if it is.
pub const EXCLUSIVE: u16 = 0x200;
/// Tell us what was made, with its handle.
pub const ECHO: u16 = 0x8;
/// `NLM_F_APPEND`: behind those that are there.
pub const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`: tell all.
pub const DUMP: u16 = 0x300;
/// `NLMSG_ERROR`: an errno, or 0 as an acknowledgement.
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Attributes, one behind the other.
#[derive(Debug, Default, Clone)]
#[must_use]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A name, with its end.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// A number in network byte order, as nf_tables wants them.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A number in the machine's byte order, as rtnetlink wants them.
    pub fn ne32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Attributes in an attribute.
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message: its type, its flags, the struct that follows the header, its attributes.
pub fn request(kind: u16, flags: u16, sequence: u32, body: &[u8], attributes: &Attributes) -> Vec<u8> {
    let len = HEADER + body.len() + attributes.0.len();
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&(len as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out.extend_from_slice(attributes.as_bytes());
    out
}

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Whose answer it is.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The errno of an `NLMSG_ERROR`; 0 acknowledges.
    pub fn errno(&self) -> i32 {
        (number(self.body) as i32).wrapping_neg()
    }
}

/// The number at the beginning, in the machine's byte order; 0 if there is none.
pub fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The messages in what was received; what is cut is left out.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = number(bytes) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let sequence = number(bytes.get(8..)?);
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message { kind, sequence, body })
    })
}

/// The attributes in `bytes`: type, without its flags, and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & 0x3fff, value))
    })
}

/// The value of one attribute.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(each, _)| *each == kind).map(|(_, value)| value)
}

/// A name without its end.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let inner = Attributes::new().text(3, "eth0").ne32(4, 1500);
        let bytes = request(16, ACKNOWLEDGED, 7, &[0; 16], &Attributes::new().nest(18, &inner));
        let two = [bytes.clone(), bytes].concat();
        let found: Vec<_> = messages(&two).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].kind, found[1].sequence), (16, 7));
        let nested = attribute(&found[1].body[16..], 18).unwrap();
        assert_eq!(attribute(nested, 3).map(text).as_deref(), Some("eth0"));
        assert_eq!(attribute(nested, 4).map(number), Some(1500));
    }

    #[test]
    fn what_is_cut_or_nonsense_ends_the_reading() {
        let whole = request(16, 0, 1, &[1, 2, 3, 4], &Attributes::new().text(1, "a name"));
        for len in 0..whole.len() {
            assert_eq!(messages(&whole[..len]).count(), 0, "{len}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of 0");
        assert_eq!(attributes(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0, "shorter than its own header");
        assert_eq!(attributes(&[255, 255, 1, 0, 9]).count(), 0);
    }
}
