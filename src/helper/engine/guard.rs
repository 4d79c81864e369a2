//! The keeper's shadow: removes the veth pair if the keeper is killed before it could.
//!
//! The firewall's table goes with the keeper, whatever ends it. Without the table the container's packets would be
//! looked at by nobody: they would leave with any address, and reach the host's loopback where `route_localnet` is set.
//! So the wire must go too, and a veth pair does not by itself while the container lives. This process waits for the end
//! of a socket that the keeper alone holds, removes the interface, and ends. It has no file, one capability, and reads
//! nothing that anybody sends.

use crate::bridge::link;
use crate::control::Failure;
use crate::sandbox;
use crate::sys::{self, Fd};
use crate::talk::{self, Netlink};

/// The capability of changing interfaces, and the firewall.
pub const CAP_NET_ADMIN: u32 = 1 << 12;

/// A shadow that was started.
pub struct Guard {
    pid: i32,
    wire: Fd,
}

impl Guard {
    /// Starts it, for an interface of the namespace that we are in.
    pub fn start(index: u32) -> Result<Self, Failure> {
        let failed = |call| move |errno| Failure::new("start the guard", call, errno);
        let (wire, end) = sys::socketpair().map_err(failed("socketpair"))?;
        if let Some(pid) = sys::fork().map_err(failed("fork"))? {
            sys::close(end);
            return Ok(Self { pid, wire });
        }
        sys::name(c"r2d2-guard");
        // What the keeper holds must end with it.
        sys::close_range(0, end as u32 - 1);
        sys::close_range(end as u32 + 1, u32::MAX);
        let route = Netlink::open(talk::ROUTE);
        let sandboxed = sandbox::enter_with(CAP_NET_ADMIN);
        while sys::recv(end, &mut [0; 1], 0) == Err(sys::EINTR) {}
        let removed = route.and_then(|route| route.tell(&link::remove(index)));
        sys::exit(i32::from(sandboxed.is_err() || removed.is_err()));
    }

    /// Ends it, and waits for that.
    pub fn end(self) {
        sys::close(self.wire);
        sys::wait(self.pid);
    }
}
