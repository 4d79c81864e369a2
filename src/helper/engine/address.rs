//! Socket addresses as the kernel has them: `struct sockaddr_in` and `sockaddr_in6`.

use std::net::{IpAddr, SocketAddr};

/// `AF_INET`.
pub const INET: i32 = 2;
/// `AF_INET6`.
pub const INET6: i32 = 10;

/// An encoded address.
pub struct Encoded {
    bytes: [u8; 28],
    len: usize,
}

impl Encoded {
    /// The bytes that count.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// The family of an address.
pub fn family(address: &SocketAddr) -> i32 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// Encodes.
pub fn encode(address: &SocketAddr) -> Encoded {
    let mut bytes = [0; 28];
    bytes[..2].copy_from_slice(&(family(address) as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    let len = match address.ip() {
        IpAddr::V4(a) => {
            bytes[4..8].copy_from_slice(&a.octets());
            16
        }
        IpAddr::V6(a) => {
            bytes[8..24].copy_from_slice(&a.octets());
            28
        }
    };
    Encoded { bytes, len }
}

/// Decodes; `None` for other families.
pub fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
    let ip: IpAddr = match i32::from(family) {
        INET => (*bytes.get(4..)?.first_chunk::<4>()?).into(),
        INET6 => (*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}
