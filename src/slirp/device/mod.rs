//! Devices: where frames come from and go to.
//!
//! A frame is always preceded by the ten bytes of a `virtio_net_hdr`, whether or not the device underneath has
//! one, so that the engine has one path. The kernel's devices (tap, packet socket) are in the engine's program;
//! here are the two ends of a cable in memory, and two devices that wrap another: one that writes what passes to
//! a pcapng file, one that loses, delays, reorders, doubles and damages it.

mod fault;
mod filter;
mod memory;
mod trace;

pub use fault::{Fault, Faults};
pub use filter::Filter;
pub use memory::{Memory, pair};
pub use trace::{Recorder, Sink, Trace};

use super::time::Time;
use std::io;

/// The largest frame with its `virtio_net_hdr` that a device gives or takes.
pub const MAX_FRAME: usize = 10 + 14 + 65535 + 40;

/// What may be left to the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Checksums of frames that we send.
    pub checksum: bool,
    /// Cutting large TCP segments that we send.
    pub tso: bool,
    /// Cutting runs of UDP datagrams that we send.
    pub uso: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { checksum: true, tso: true, uso: true };
}

/// A network interface's other end.
pub trait Device {
    /// What it does for us.
    fn capabilities(&self) -> Capabilities;

    /// Reads the next frame with its header into `buffer`; `None` when there is none at present.
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes a frame with its header. `WouldBlock` means that it was lost for want of room.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Tells the time to devices that have some use for it.
    fn advance(&mut self, _now: Time) {}

    /// Whether somebody wants to see every frame.
    fn recorded(&self) -> bool {
        false
    }

    /// When a frame that is under way in the device will be there.
    fn next_due(&self) -> Option<Time> {
        None
    }
}
