//! The survivor: removes what a container leaves on the host (its cgroups, an upper layer on disk) after the process
//! that made them was killed.
//!
//! Runs on the host, in a session of its own, from before the first of these things is made until they are gone. It
//! receives one message on descriptor 3: what to do, and the owner's pidfd to watch. It closes everything else and waits. When the watched process has ended, or when the owner says so
//! (`OP_REMOVE`), it does what the message says: first the writes (thaw what is paused, so that PID 1 can see that
//! its owner has gone), then the removals, which may take a moment because a cgroup is empty only when the last process
//! in it is gone. Files of subordinate ids can be removed only from within the container's user namespace: the owner
//! sends it (`OP_JOIN`) as soon as it exists. When the container becomes a detached one, the owner sends the pidfd of
//! PID 1 to be watched instead of its own (`OP_KEEP`).
//!
//! The message's strings: `W` path NUL text NUL for a write, `D` path NUL for a directory of directories (children
//! before parents), `T` path NUL for a directory with all that is in it.

use crate::kernel::{self, PollFd};
use crate::protocol::{self as p, Request};
use crate::raw::{call, nr};
use crate::remove;

static mut MESSAGE: [u8; size_of::<Request>() + p::INLINE] = [0; size_of::<Request>() + p::INLINE];
/// Ten seconds, in steps of five milliseconds.
const TRIES: usize = 2000;

pub fn main() -> ! {
    const PR_SET_NAME: usize = 15;
    let _ = kernel::prctl(PR_SET_NAME, c"r2d2-reaper".as_ptr() as usize);
    let pointer = &raw mut MESSAGE;
    // SAFETY: single-threaded, and this is the only reference ever made.
    let message = unsafe { &mut *pointer };
    let mut fds = [-1; p::FDS];
    let Ok(len @ 1..) = kernel::receive(p::FD_CONTROL, message, &mut fds) else { kernel::exit(125) };
    let Some(list) = message.get(size_of::<Request>()..len) else { kernel::exit(125) };
    wait(fds[0]);
    for _ in 0..TRIES {
        if !remove(list) {
            break;
        }
        let _ = kernel::poll(&mut [], 5);
    }
    kernel::exit(0)
}

/// Until the watched process has ended, or the owner says so.
fn wait(watch: i32) {
    const CLONE_NEWUSER: usize = 0x1000_0000;
    let poll = |fd: i32| PollFd { fd, events: kernel::POLLIN, revents: 0 };
    let mut polled = [poll(watch), poll(p::FD_CONTROL)];
    let mut buffer = [0u8; size_of::<Request>()];
    loop {
        if kernel::poll(&mut polled, -1).is_err() {
            continue;
        }
        // What the owner said before its end lies in the socket by now, and counts.
        if polled[1].revents == 0 {
            return settle(&mut polled[1]);
        }
        let mut fds = [-1; p::FDS];
        match kernel::receive(p::FD_CONTROL, &mut buffer, &mut fds) {
            Ok(len) if len == buffer.len() => {
                // SAFETY: that many bytes were received, and every bit pattern is a Request.
                let request = unsafe { buffer.as_ptr().cast::<Request>().read_unaligned() };
                if request.op == p::OP_REMOVE {
                    return;
                }
                if request.op == p::OP_KEEP {
                    kernel::close(polled[0].fd);
                    polled[0].fd = fds[0];
                    continue;
                }
                // SAFETY: a descriptor of a user namespace, as the owner promised.
                let _ = unsafe { call(nr::SETNS, [fds[0] as usize, CLONE_NEWUSER]) };
                kernel::close(fds[0]);
            }
            Err(kernel::EINTR | kernel::EAGAIN) => {}
            // The owner let go of its end, which tells nothing: the watched process decides.
            _ => polled[1].fd = -1,
        }
    }
}

/// The owner was killed, perhaps in the middle of a start: the child that carries the steps out is being killed too, but
/// may yet finish one. It has a copy of the owner's end of the control socket, so the end of the last copy is its end.
/// Others may have copies that they keep (forked workers of the owner's), hence a limit.
fn settle(control: &mut PollFd) {
    const POLLHUP: i16 = 16;
    const ROUNDS: usize = 40;
    control.events = 0;
    for _ in 0..ROUNDS {
        if control.fd < 0
            || (kernel::poll(core::slice::from_mut(control), 5).is_ok() && control.revents & POLLHUP != 0)
        {
            return;
        }
    }
}

/// One round; true if something is left.
fn remove(list: &[u8]) -> bool {
    let mut left = false;
    let mut rest = list;
    while let Some((path, next)) = string(rest) {
        rest = next;
        let name = path.as_ptr() as usize + 1;
        match path.first() {
            Some(b'W') => {
                let Some((content, next)) = string(rest) else { break };
                rest = next;
                write(path, content);
            }
            Some(b'T') => left |= !remove::tree(name),
            _ => left |= !remove::directories(name),
        }
    }
    left
}

/// The next string, without its zero byte, and what follows it.
fn string(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = list.iter().position(|b| *b == 0)?;
    Some((list.get(..end)?, list.get(end + 1..)?))
}

/// Writes to a file of the cgroup file system; one that is gone is fine.
fn write(path: &[u8], content: &[u8]) {
    const O_WRONLY: usize = 1;
    // SAFETY: the path ends with a zero byte inside the message; its first byte is the letter.
    let Ok(fd) = (unsafe { call(nr::OPENAT, [0, path.as_ptr() as usize + 1, O_WRONLY | kernel::CLOEXEC]) })
    else {
        return;
    };
    // SAFETY: the content lies in the message.
    let _ = unsafe { call(nr::WRITE, [fd, content.as_ptr() as usize, content.len()]) };
    kernel::close(fd as i32);
}
