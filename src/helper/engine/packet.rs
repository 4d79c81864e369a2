//! The way without `/dev/net/tun`: a veth pair, one end in the namespace to serve, the other in a private one,
//! where a packet socket (packet(7)) with `PACKET_VNET_HDR` sees large and unsummed frames as a tap does.
//!
//! No process is in the private namespace; sockets alone keep it alive. When the engine is killed, they close, the
//! namespace dies when the kernel finds the time, its end of the pair with it, and so the other end vanishes as a tap
//! would. When its owner ends it, it removes the pair first, by a netlink socket of that namespace, so that nothing is
//! left when its owner is told. Frames may arrive out of order when their sender moves between processors, and what
//! does not fit the socket's buffer is lost: the window stays small enough for neither to matter. Runs in the attaching
//! child, and at the engine's end.

use crate::control::Failure;
use crate::netlink::Netlink;
use crate::sys::{self, Fd, SO_RCVBUF, SOL_SOCKET};
use std::sync::atomic::{AtomicI32, Ordering};

/// The largest window offered to a TCP flow on such a device.
const WINDOW: i32 = 1 << 20;
/// The far end's name, in a namespace of its own.
const PEER: &str = "engine";
const CLONE_NEWNET: i32 = 0x4000_0000;
const AF_PACKET: i32 = 17;
const SOCK_RAW: i32 = 3;
const ETH_P_ALL: u16 = 3;
const SOL_PACKET: i32 = 263;
const PACKET_VNET_HDR: i32 = 15;
const PACKET_IGNORE_OUTGOING: i32 = 23;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUFFORCE: i32 = 33;
const SO_SNDBUFFORCE: i32 = 32;
/// Room for what a window of each of many flows may hold.
const BUFFER: i32 = 64 << 20;

/// The pair's far end as the engine has it: a netlink socket in its namespace, by which it can be removed.
static PAIR: AtomicI32 = AtomicI32::new(-1);
/// A pidfd of the process that is served.
static GUEST: AtomicI32 = AtomicI32::new(-1);

/// What [`remove`] is to remove, unless this process has ended.
pub fn remember(netlink: Fd, guest: Option<Fd>) {
    PAIR.store(netlink, Ordering::Relaxed);
    GUEST.store(guest.unwrap_or(-1), Ordering::Relaxed);
}

/// Removes the pair, unless the guest has ended: then its namespace goes, most likely, and nobody is to wait for it.
/// Without success, as of a namespace whose owner we are not, the kernel does it soon.
pub fn remove() {
    let (netlink, guest) = (PAIR.swap(-1, Ordering::Relaxed), GUEST.load(Ordering::Relaxed));
    if netlink >= 0 && (guest < 0 || !sys::readable(guest)) {
        let _ = Netlink::of(netlink).remove(PEER);
    }
}

/// The window to offer: what the socket's buffer surely holds, for what it does not hold is lost. A frame counts
/// for more than its bytes, hence the half.
pub fn window(socket: Fd) -> u32 {
    let buffer = sys::option(socket, SOL_SOCKET, SO_RCVBUF).unwrap_or(0);
    (buffer / 2).clamp(64 << 10, WINDOW) as u32
}

/// Makes the pair with its near end `name` in the network namespace that we are in; the far end's socket, and one of
/// netlink beside it.
pub fn create(name: &str, mtu: u32) -> Result<(Fd, Fd), Failure> {
    let failed = |call: &'static str| move |errno| Failure::new("make the veth pair", call, errno);
    let home =
        sys::open(c"/proc/self/ns/net", sys::Access::Read).map_err(failed("open /proc/self/ns/net"))?;
    sys::unshare(CLONE_NEWNET).map_err(failed("unshare"))?;
    let sockets = far_end(name, mtu, home);
    sys::setns(home, CLONE_NEWNET).map_err(failed("setns"))?;
    sys::close(home);
    sockets
}

/// In the private namespace.
fn far_end(name: &str, mtu: u32, home: Fd) -> Result<(Fd, Fd), Failure> {
    let failed = |call: &'static str| move |errno| Failure::new("make the veth pair", call, errno);
    // The private namespace's kernel is to say nothing of its own on the link.
    if let Ok(fd) = sys::open(c"/proc/sys/net/ipv6/conf/default/disable_ipv6", sys::Access::Write) {
        let _ = sys::write(fd, b"1");
        sys::close(fd);
    }
    let netlink = Netlink::open().map_err(failed("netlink"))?;
    netlink.veth(PEER, name, home).map_err(failed("netlink"))?;
    let index = netlink.index(PEER).map_err(failed("netlink"))?;
    netlink.up(index, None, Some(mtu)).map_err(failed("netlink"))?;
    let socket = sys::socket(AF_PACKET, SOCK_RAW, 0).map_err(failed("socket"))?;
    sys::set_option(socket, SOL_PACKET, PACKET_VNET_HDR, 1).map_err(failed("setsockopt"))?;
    let _ = sys::set_option(socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    for (force, ask) in [(SO_RCVBUFFORCE, SO_RCVBUF), (SO_SNDBUFFORCE, SO_SNDBUF)] {
        // Forcing is for the host's root; others get what rmem_max and wmem_max allow.
        if sys::set_option(socket, SOL_SOCKET, force, BUFFER).is_err() {
            let _ = sys::set_option(socket, SOL_SOCKET, ask, BUFFER);
        }
    }
    // struct sockaddr_ll; before this the socket hears nothing, as it was made with protocol 0.
    let mut address = [0u8; 20];
    address[..2].copy_from_slice(&(AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&ETH_P_ALL.to_be_bytes());
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    sys::bind(socket, &address).map_err(failed("bind"))?;
    Ok((socket, netlink.fd()))
}
