//! The tap: `/dev/net/tun` with `virtio_net_hdr` and offloads (tuntap.rst).
//!
//! With `IFF_VNET_HDR` and `TUNSETOFFLOAD` the namespace's kernel hands over TCP data of up to 64 KiB uncut and
//! unsummed, and takes it so: one system call moves what would be 45 packets.

use crate::slirp::device::{Capabilities, Device, Fault};
use crate::slirp::time::Time;
use crate::sys::{self, EAGAIN, EINTR, EINVAL, Fd};
use std::io;

/// Where a frame starts: behind its `virtio_net_hdr`.
const HEADER: usize = 10;

const TUNSETIFF: usize = 0x4004_54ca;
const TUNSETOFFLOAD: usize = 0x4004_54d0;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// CSUM | TSO4 | TSO6 | `TSO_ECN`.
const TSO: usize = 0x0f;
/// USO4 | USO6, Linux 6.2.
const USO: usize = 0x60;

/// Makes a tap in the network namespace that we are in; the step that failed and its errno otherwise.
pub fn create(name: &str) -> Result<Fd, (&'static str, i32)> {
    let fd = sys::open(c"/dev/net/tun", sys::Access::Both).map_err(|e| ("open /dev/net/tun", e))?;
    let mut request = [0u8; 40];
    crate::slirp::wire::put(&mut request, 0, name.as_bytes());
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    crate::slirp::wire::put(&mut request, 16, &flags.to_ne_bytes());
    sys::ioctl(fd, TUNSETIFF, &mut request).map_err(|e| ("ioctl TUNSETIFF", e))?;
    sys::nonblocking(fd);
    Ok(fd)
}

/// Turns the offloads on; what the device can do then.
pub fn offload(fd: Fd) -> Capabilities {
    if sys::ioctl_value(fd, TUNSETOFFLOAD, TSO | USO).is_ok() {
        Capabilities::ALL
    } else if sys::ioctl_value(fd, TUNSETOFFLOAD, TSO).is_ok() {
        Capabilities { uso: false, ..Capabilities::ALL }
    } else {
        Capabilities { checksum: true, ..Capabilities::default() }
    }
}

/// A tap's descriptor as a device.
pub struct Tap {
    /// The descriptor.
    pub fd: Fd,
    /// What it does for us.
    pub capabilities: Capabilities,
    /// Frames come and go without a header: the other end is no tap of ours, or no tap at all.
    pub plain: bool,
}

/// The interface, or the interface at the end of a bad road.
pub enum Link {
    /// As it is.
    Plain(Tap),
    /// With losses and delays.
    Bad(Box<Fault<Tap>>),
}

impl Device for Link {
    fn capabilities(&self) -> Capabilities {
        match self {
            Self::Plain(tap) => tap.capabilities(),
            Self::Bad(fault) => fault.capabilities(),
        }
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(tap) => tap.recv(buffer),
            Self::Bad(fault) => fault.recv(buffer),
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tap) => tap.send(frame),
            Self::Bad(fault) => fault.send(frame),
        }
    }

    fn advance(&mut self, now: Time) {
        if let Self::Bad(fault) = self {
            fault.advance(now);
        }
    }

    fn next_due(&self) -> Option<Time> {
        match self {
            Self::Plain(_) => None,
            Self::Bad(fault) => fault.next_due(),
        }
    }
}

impl Device for Tap {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let place = if self.plain {
            let (header, rest) = buffer.split_at_mut(HEADER.min(buffer.len()));
            header.fill(0);
            rest
        } else {
            buffer
        };
        match sys::read(self.fd, place) {
            // The other end of a socket has gone.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(Some(n + if self.plain { HEADER } else { 0 })),
            Err(EAGAIN | EINTR) => Ok(None),
            // A frame that virtio_net_hdr has no words for, such as a large one of SCTP: it is gone, the device is not.
            Err(EINVAL) => Ok(Some(0)),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let frame = if self.plain { frame.get(HEADER..).unwrap_or(&[]) } else { frame };
        sys::write(self.fd, frame).map(drop).map_err(io::Error::from_raw_os_error)
    }
}
