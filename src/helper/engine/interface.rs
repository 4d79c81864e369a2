//! Making one interface and handing its descriptor to the owner: what a network of containers needs for each of its
//! members.
//!
//! The network's own process is sandboxed and can join no namespace any more. So this is a process for itself: it
//! joins the member's namespaces, makes and configures the interface as `attach` does, sends the descriptor back on
//! the control socket and ends. The owner passes it on to the network's process (`switching`) and forgets it.

use crate::control::{Failure, Setup};
use crate::slirp::device::Capabilities;
use crate::sys::{self, Fd};
use crate::{attach, rights, tap};

const CONTROL: Fd = 0;

/// Makes the interface that `text` describes in the namespaces of `fds`, and replies with its descriptor: its kind,
/// and whether it takes undone checksums, large TCP segments and runs of datagrams.
pub fn serve(text: &str, fds: Vec<Fd>) -> Result<(), Failure> {
    let setup = Setup::parse(text, fds)?;
    let made = attach::inside(&setup)?;
    let (kind, takes) =
        if made.packet { ("packet", Capabilities::ALL) } else { ("tap", tap::offload(made.fd)) };
    let flags = [takes.checksum, takes.tso, takes.uso].map(u8::from);
    let reply = format!("ok {kind} {} {} {}", flags[0], flags[1], flags[2]);
    sys::sendmsg(CONTROL, reply.as_bytes(), &rights::pass(&[made.fd]), 0)
        .map(drop)
        .map_err(|e| Failure::new("hand the interface over", "sendmsg", e))
}
