//! A child of PID 1 that keeps using PID 1's memory until it executes its program: no page table is copied, and
//! nothing is copied when either of them writes.
//!
//! PID 1 goes on meanwhile, unlike after vfork(2): a child that hangs before execve(2) must not hang PID 1. So all that
//! the child writes to is set aside for it: its stack and its copy of the request, for one child at a time. The kernel
//! clears `alive` when the child executes its program or ends (`CLONE_CHILD_CLEARTID`, set_tid_address(2)); a child
//! that is wanted before that is a fork(2). Both end in the same function (`exec::become_program`).

use core::sync::atomic::{AtomicU32, Ordering};

use crate::exec::{self, Descriptors};
use crate::kernel;
use crate::letgo::Left;
use crate::protocol::{self as p, Request};
use crate::raw::{self, CloneArgs, Outcome};

const STACK: usize = 32 << 10;

/// What one child uses.
#[repr(C, align(16))]
pub struct Beside {
    stack: [u8; STACK],
    /// The request, followed by its strings, whose table is read as words: at a multiple of eight.
    message: [u8; size_of::<Request>() + p::INLINE],
    len: usize,
    alive: AtomicU32,
    /// Descriptors of PID 1's own, as in `Init`.
    present: u32,
    fds: Descriptors,
    left: Option<Left>,
}

impl Beside {
    /// Nobody's yet.
    #[allow(clippy::large_stack_arrays, reason = "for a static: no stack ever holds it")]
    pub const fn new() -> Self {
        Self {
            stack: [0; STACK],
            message: [0; size_of::<Request>() + p::INLINE],
            len: 0,
            alive: AtomicU32::new(0),
            present: 0,
            fds: Descriptors::UNSET,
            left: None,
        }
    }

    /// Whether this request can be carried out so, now. Not one whose strings are mapped (the mapping would stay) or
    /// that has a subreaper in between (it lives on without a program).
    pub fn can(&self, request: &Request) -> bool {
        request.flags & (p::F_MEMFD | p::F_TREE) == 0 && self.alive.load(Ordering::Acquire) == 0
    }

    /// Starts the program of the request that is the beginning of `message`.
    pub fn start(
        &'static mut self,
        message: &[u8],
        fds: Descriptors,
        present: u32,
        left: Option<Left>,
        pidfd: Option<&mut i32>,
    ) -> Outcome {
        const CLONE_VM: u64 = 0x100;
        const CLONE_PIDFD: u64 = 0x1000;
        const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
        let room = self.message.get_mut(..message.len()).ok_or(kernel::EPROTO)?;
        room.copy_from_slice(message);
        (self.len, self.fds, self.present, self.left) = (message.len(), fds, present, left);
        self.alive.store(1, Ordering::Relaxed);
        let how = CloneArgs {
            flags: CLONE_VM | CLONE_CHILD_CLEARTID | if pidfd.is_some() { CLONE_PIDFD } else { 0 },
            pidfd: pidfd.map_or(0, |fd| core::ptr::from_mut(fd) as u64),
            child_tid: self.alive.as_ptr() as u64,
            exit_signal: kernel::SIGCHLD as u64,
            stack: self.stack.as_mut_ptr() as u64,
            stack_size: STACK as u64,
            ..CloneArgs::default()
        };
        let this = &raw mut *self;
        // SAFETY: all that the child uses is in `this`, which is static and not touched while `alive` is set.
        let outcome = unsafe { raw::clone_on_stack(&how, child, this as usize) };
        if outcome.is_err() {
            // SAFETY: no child came to be.
            unsafe { (*this).alive.store(0, Ordering::Relaxed) };
        }
        outcome
    }
}

extern "C" fn child(argument: usize) -> ! {
    // SAFETY: `start` gave it away until `alive` is cleared.
    let this = unsafe { &mut *(argument as *mut Beside) };
    exec::forget(this.present, |_| true);
    // SAFETY: a request was received into it, and every bit pattern is one.
    let request = unsafe { this.message.as_ptr().cast::<Request>().read_unaligned() };
    let inline = this.message.get_mut(size_of::<Request>()..this.len).unwrap_or(&mut []);
    exec::become_program(&request, inline, this.fds, this.left)
}
