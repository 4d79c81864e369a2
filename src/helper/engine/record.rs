//! Where captures go: a descriptor that the owner has opened, a regular file or a socket of whole messages.

use crate::slirp::device::Sink;
use crate::sys::{self, Fd, SOL_SOCKET};
use std::io;

const MSG_DONTWAIT_NOSIGNAL: i32 = 0x4040;
const SO_TYPE: i32 = 3;

/// A descriptor to write to; nothing waits for it.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    fd: Fd,
    socket: bool,
}

impl Output {
    /// Takes over the descriptor.
    pub fn new(fd: Fd) -> Self {
        Self { fd, socket: sys::option(fd, SOL_SOCKET, SO_TYPE).is_ok() }
    }

    /// Closes it.
    pub fn close(self) {
        sys::close(self.fd);
    }
}

impl Sink for Output {
    fn put(&mut self, block: &[u8]) -> io::Result<bool> {
        let sent = if self.socket {
            sys::send(self.fd, block, MSG_DONTWAIT_NOSIGNAL, &[])
        } else {
            sys::write(self.fd, block)
        };
        match sent {
            Ok(n) if n == block.len() => Ok(true),
            // A file that is full took a part.
            Ok(_) => Err(io::Error::from_raw_os_error(sys::ENOSPC)),
            Err(sys::EAGAIN | sys::EINTR) => Ok(false),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}
