//! Descriptors that travel with a message (unix(7), SCM_RIGHTS). Runs wherever a message is sent or received: in the
//! engine and in its children.

use crate::sys::{self, Fd, SOL_SOCKET};

const SCM_RIGHTS: i32 = 1;

/// What sendmsg(2) is given to pass them on; nothing for none.
pub fn pass(fds: &[Fd]) -> Vec<u8> {
    let bytes: Vec<u8> = fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    if bytes.is_empty() { bytes } else { sys::control(SOL_SOCKET, SCM_RIGHTS, &bytes) }
}

/// Those that came with a message; `control` is what recvmsg(2) filled.
pub fn passed(control: &[u8]) -> impl Iterator<Item = Fd> {
    sys::controls(control)
        .filter(|(level, kind, _)| (*level, *kind) == (SOL_SOCKET, SCM_RIGHTS))
        .flat_map(|(_, _, payload)| payload.chunks_exact(4))
        .map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
