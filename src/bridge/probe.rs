//! Whether a container can be joined to the host's own network: asked of the kernel, without changing anything. Runs
//! in the calling process.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::message::{ERROR, messages};
use super::nft;
use crate::error::{Errno, Error, Result};

/// Whether we may change the firewall, and so interfaces and routes, of the network namespace that we are in.
///
/// `EPERM` means that `CAP_NET_ADMIN` is missing there (a user namespace's root has it only where the network namespace
/// is that user namespace's too), anything else that the kernel has no nf_tables.
pub fn probe() -> Result<()> {
    let lacking = |errno| {
        match errno {
        Errno::EPERM | Errno::EACCES => Error::Unsupported {
            message: "network=\"bridge\" changes the host's interfaces, routes and firewall, and this process may not: it \
                      lacks CAP_NET_ADMIN there"
                .into(),
            errno: Errno::EPERM,
        },
        errno => Error::Unsupported {
            message: format!("network=\"bridge\" needs nf_tables, which this kernel does not offer ({errno:?})"),
            errno,
        },
    }
    };
    let netfilter = SockProtocol::NetlinkNetFilter;
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter).map_err(lacking)?;
    send(netlink.as_raw_fd(), &nft::generation(), MsgFlags::empty()).map_err(lacking)?;
    let mut bytes = [0; 4096];
    let n = recv(netlink.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).map_err(lacking)?;
    let errno = messages(bytes.get(..n).unwrap_or(&[])).find(|m| m.kind == ERROR).map_or(0, |m| m.errno());
    if errno == 0 { Ok(()) } else { Err(lacking(Errno::from_raw(errno))) }
}
