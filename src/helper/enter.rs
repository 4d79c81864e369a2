//! `nsenter(1)` in small: joins another process's namespaces and runs a program in them.
//!
//! It runs on the host as a program of its own, because setns(2) into a user namespace needs a single-threaded
//! process, and because a process that shares the interpreter's memory must never join a namespace in which
//! somebody could read it. Reads one request from descriptor 3, joins, forks if asked (only children enter a PID
//! namespace), reports and ends.

use crate::exec::{self, Descriptors};
use crate::kernel::{self, Usage};
use crate::protocol::{self as p, Request, Status};
use crate::raw::{call, nr};
use crate::tree;

static mut MESSAGE: [u8; size_of::<Request>() + p::INLINE] = [0; size_of::<Request>() + p::INLINE];

pub fn main() -> ! {
    const PR_SET_PDEATHSIG: usize = 1;
    // It would end us with the thread that started us.
    let _ = kernel::prctl(PR_SET_PDEATHSIG, 0);
    kernel::default_signals();
    let pointer = &raw mut MESSAGE;
    // SAFETY: single-threaded, and this is the only reference ever made.
    let message = unsafe { &mut *pointer };
    let mut received = [-1; p::FDS];
    let Ok(len @ 1..) = kernel::receive(p::FD_CONTROL, message, &mut received) else { kernel::exit(125) };
    if len < size_of::<Request>() {
        kernel::exit(125)
    }
    // SAFETY: that many bytes were received, and every bit pattern is a Request.
    let request = unsafe { message.as_ptr().cast::<Request>().read_unaligned() };
    let fds = Descriptors::of(&request, &received);
    let fail = |stage: u32, errno: i32| {
        kernel::send(
            fds.status,
            &Status { kind: p::ST_FAILED, stage, value: errno, ..Status::default() },
            &[],
        );
        kernel::exit(127)
    };
    if request.magic != p::MAGIC {
        kernel::exit(125)
    }
    // SAFETY: a pidfd and flags (setns(2), since Linux 5.8).
    if let Err(errno) = unsafe { call(nr::SETNS, [fds.target as usize, request.namespaces as usize]) } {
        fail(p::STAGE_SETNS, errno);
    }
    let inline = message.get_mut(size_of::<Request>()..len).unwrap_or(&mut []);
    let mut pidfd = -1;
    match kernel::fork((request.flags & p::F_STARTED != 0).then_some(&mut pidfd)) {
        Ok(0) => exec::become_program(&request, inline, fds, None),
        Ok(pid) => {
            if pidfd >= 0 {
                let started = Status { kind: p::ST_STARTED, value: pid as i32, ..Status::default() };
                kernel::send(fds.status, &started, &[pidfd]);
            }
            for fd in fds.stdio.into_iter().chain(fds.pass).chain([fds.confirm, fds.memfd, fds.target]) {
                if fd >= 0 {
                    kernel::close(fd);
                }
            }
        }
        Err(errno) => fail(p::STAGE_FORK, errno),
    }
    let mut usage = Usage::default();
    loop {
        match kernel::reap(&mut usage, 0) {
            Ok((_, code)) => {
                kernel::send(fds.status, &tree::exited(code, &usage), &[]);
                kernel::exit(0)
            }
            Err(kernel::EINTR) => {}
            Err(_) => kernel::exit(1),
        }
    }
}
