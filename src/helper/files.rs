//! One who touches files for the container's owner, as root of the container: a fork of PID 1 that carries out system
//! calls which come as messages, until their socket closes. The owner calls it only where its own rights end: files
//! that belong to other ids of the container, or whose mode shuts out everybody but root.
//!
//! It runs inside the container, has nothing of the host's but the descriptors of a call, and is as little traceable
//! as PID 1. A call that hangs (a file system in user space may) hangs it alone.

use crate::kernel;
use crate::protocol::{self as p, FileCall, Status};
use crate::raw::{call, nr};

const SOCKET: i32 = p::FD_FREE;
/// Descriptors of one call.
const MOST: usize = 4;

/// Serves; does not return.
pub fn serve(socket: i32, message: &mut [u8]) -> ! {
    const PR_SET_NAME: usize = 15;
    let _ = kernel::prctl(PR_SET_NAME, c"r2d2-files".as_ptr() as usize);
    if socket != SOCKET {
        // SAFETY: no pointer.
        if unsafe { call(nr::DUP3, [socket as usize, SOCKET as usize, kernel::CLOEXEC]) }.is_err() {
            kernel::exit(1);
        }
    }
    // SAFETY: no pointer.
    let _ = unsafe { call(nr::CLOSE_RANGE, [SOCKET as usize + 1, u32::MAX as usize, 0]) };
    // SAFETY: no pointer. Modes come as they are to be.
    let _ = unsafe { call(nr::UMASK, [0]) };
    loop {
        let mut fds = [-1; p::FDS];
        let len = match kernel::receive(SOCKET, message, &mut fds) {
            Ok(0) => kernel::exit(0),
            Ok(len) => len,
            Err(kernel::EINTR) => continue,
            Err(_) => kernel::exit(1),
        };
        let outcome = place(&fds).and_then(|()| carry_out(message.get_mut(..len).unwrap_or(&mut [])));
        let mut answer = Status { kind: p::ST_FILE, ..Status::default() };
        match outcome {
            Ok(Some(fd)) => {
                kernel::send(SOCKET, &answer, &[fd]);
                kernel::close(fd);
            }
            Ok(None) => kernel::send(SOCKET, &answer, &[]),
            Err(errno) => {
                answer.value = errno;
                kernel::send(SOCKET, &answer, &[]);
            }
        }
        fds.into_iter().filter(|fd| (0..SOCKET).contains(fd)).for_each(kernel::close);
        // SAFETY: no pointer.
        let _ = unsafe { call(nr::CLOSE_RANGE, [SOCKET as usize + 1, u32::MAX as usize, 0]) };
    }
}

/// Puts the descriptors where the arguments expect them.
fn place(fds: &[i32; p::FDS]) -> Result<(), i32> {
    for (i, fd) in fds.iter().take(MOST).enumerate().filter(|(_, fd)| **fd >= 0) {
        // SAFETY: no pointer.
        unsafe { call(nr::DUP3, [*fd as usize, p::REMOTE_FD as usize + i, kernel::CLOEXEC]) }?;
    }
    Ok(())
}

/// The descriptor that the call made, if it makes one.
fn carry_out(message: &mut [u8]) -> Result<Option<i32>, i32> {
    const HEAD: usize = size_of::<FileCall>();
    if message.len() < HEAD {
        return Err(kernel::EPROTO);
    }
    // SAFETY: that many bytes were received, and every bit pattern is a FileCall.
    let request = unsafe { message.as_ptr().cast::<FileCall>().read_unaligned() };
    let blob = message.get_mut(HEAD..).unwrap_or(&mut []);
    if request.magic != p::MAGIC || request.blob as usize > blob.len() {
        return Err(kernel::EPROTO);
    }
    let mut args = [0usize; 6];
    for (i, (to, from)) in args.iter_mut().zip(&request.args).enumerate() {
        *to = if request.pointers >> i & 1 == 0 {
            *from as usize
        } else if (*from as usize) < blob.len() {
            blob.as_mut_ptr() as usize + *from as usize
        } else {
            return Err(kernel::EPROTO);
        };
    }
    // SAFETY: the owner made it by one of the constructors of `sys::filecall`; pointers point into the message.
    let value = unsafe { call(request.number as usize, args) }?;
    Ok((request.makes_fd != 0).then_some(value as i32))
}
