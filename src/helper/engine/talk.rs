//! A netlink socket: requests in, answers out. The kernel answers while we send, so nothing here waits.

use crate::bridge::link;
use crate::bridge::message::{self, messages};
use crate::control::Failure;
use crate::sys::{self, Fd};

const AF_NETLINK: i32 = 16;
const SOCK_RAW: i32 = 3;
/// rtnetlink(7).
pub const ROUTE: i32 = 0;
/// nf_tables and its relatives.
pub const NETFILTER: i32 = 12;

/// A netlink socket.
pub struct Netlink(pub Fd);

impl Netlink {
    /// Opens one in the namespace that we are in.
    pub fn open(protocol: i32) -> Result<Self, i32> {
        sys::socket(AF_NETLINK, SOCK_RAW, protocol).map(Self)
    }

    /// Sends requests, of which `last` is acknowledged last, and reads all answers.
    pub fn ask(&self, bytes: &[u8], last: u32, mut each: impl FnMut(u16, &[u8])) -> Result<(), i32> {
        sys::send(self.0, bytes, 0, &[])?;
        let (mut buffer, mut failure) = (vec![0; 64 << 10], None);
        loop {
            let n = match sys::recv(self.0, &mut buffer, 0) {
                Ok(n) => n,
                // Read to the end: a batch that failed has an answer for every request.
                Err(sys::EAGAIN) => return Err(failure.unwrap_or(sys::EAGAIN)),
                Err(sys::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            for message in messages(buffer.get(..n).unwrap_or(&[])) {
                match (message.kind, message.errno()) {
                    (message::DONE, _) => return Ok(()),
                    (message::ERROR, 0) if message.sequence == last && failure.is_none() => return Ok(()),
                    (message::ERROR, 0) => {}
                    (message::ERROR, errno) => failure = failure.or(Some(errno)),
                    (kind, _) => each(kind, message.body),
                }
            }
        }
    }

    /// Sends one request whose answer is an acknowledgement.
    pub fn tell(&self, bytes: &[u8]) -> Result<(), i32> {
        self.ask(bytes, 1, |_, _| {})
    }

    /// The number of an interface.
    pub fn index(&self, name: &str) -> Result<u32, i32> {
        let mut index = 0;
        self.ask(&link::find(name), 1, |_, body| index = link::index(body))?;
        Ok(index)
    }
}

/// Names a step that a request failed in.
pub fn failed(step: &str) -> impl Fn(i32) -> Failure + '_ {
    move |errno| Failure::new(step, "netlink", errno)
}
