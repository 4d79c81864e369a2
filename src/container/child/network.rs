//! The network namespace, made beside the mounts. **Process:** a second thread of the child; the child's rules hold
//! for it, too.
//!
//! A network namespace costs the kernel as much as half of all mounts, and neither needs the other. So clone(2) leaves
//! it out where a plan brings up `lo`: a thread makes it with unshare(2), which concerns the calling thread alone,
//! brings up `lo` and takes a descriptor of the namespace (`SIOCGSKNS`: no procfs needed); the step `Loopback`, planned
//! right before the first step that needs the network (sysfs), waits for the thread's end and joins by setns(2).
//! While it runs the caller sleeps, so there is a processor for it.
//!
//! The thread uses the caller's memory like the child: the caller waits for the end of both (`Beside::alive`).

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use super::{Child, O_CLOEXEC};
use crate::sys::clone::futex_wait;
use crate::sys::raw::{self, CloneArgs, nr};

const CLONE_NEWNET: usize = 0x4000_0000;

/// What the thread is given, and what it answers.
pub(in crate::container) struct Beside {
    /// Its stack: address and size.
    stack: (usize, usize),
    /// It runs in a new PID namespace, as number 2.
    numbered: bool,
    /// Its number while it lives: set, cleared and woken by the kernel (`CLONE_PARENT_SETTID`,
    /// `CLONE_CHILD_CLEARTID`), so that a child killed inside clone3(2) cannot leave it wrong.
    alive: AtomicU32,
    /// The namespace, once it is made.
    namespace: AtomicI32,
    /// What failed, if something did.
    syscall: AtomicU32,
    errno: AtomicI32,
}

impl Beside {
    /// For a stack (address and size), and a child that is PID 1 or is not.
    pub(in crate::container) const fn new(stack: (usize, usize), numbered: bool) -> Self {
        Self {
            stack,
            numbered,
            alive: AtomicU32::new(0),
            namespace: AtomicI32::new(-1),
            syscall: AtomicU32::new(0),
            errno: AtomicI32::new(0),
        }
    }

    /// Waits in the caller for its end.
    pub(in crate::container) fn wait(&self) {
        loop {
            let alive = self.alive.load(Ordering::Acquire);
            if alive == 0 {
                break;
            }
            futex_wait(&self.alive, alive, Duration::from_millis(100));
        }
    }
}

/// The thread. It ends alone: exit(2), not exit_group(2).
extern "C" fn make(argument: usize) -> ! {
    // SAFETY: the caller keeps it until `alive` is cleared.
    let beside = unsafe { &*(argument as *const Beside) };
    let mut failed = nr::UNSHARE;
    let outcome = namespace(&mut |n, args| {
        failed = n;
        // SAFETY: descriptors, flags, and locals that outlive the call.
        unsafe { raw::call(n, args) }
    });
    match outcome {
        Ok(fd) => beside.namespace.store(fd as i32, Ordering::Release),
        Err(errno) => {
            beside.syscall.store(failed as u32, Ordering::Relaxed);
            beside.errno.store(errno, Ordering::Release);
        }
    }
    loop {
        // SAFETY: ends this thread.
        let _ = unsafe { raw::call(nr::EXIT, [0]) };
    }
}

/// A descriptor of a new network namespace whose `lo` is up. The socket that comes with it ends at execve(2).
fn namespace(call: &mut impl FnMut(usize, [usize; 3]) -> raw::Outcome) -> raw::Outcome {
    const SIOCGSKNS: usize = 0x894c;
    call(nr::UNSHARE, [CLONE_NEWNET, 0, 0])?;
    let socket = loopback(call)?;
    call(nr::IOCTL, [socket, SIOCGSKNS, 0])
}

/// `ip link set lo up`, by ioctl (netdevice(7)): the socket that it was done with.
fn loopback(call: &mut impl FnMut(usize, [usize; 3]) -> raw::Outcome) -> raw::Outcome {
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP_RUNNING: u16 = 0x41;
    let socket = call(nr::SOCKET, [2, 2 | O_CLOEXEC, 0])?; // AF_INET, SOCK_DGRAM
    let mut request = [0u8; 40]; // struct ifreq
    if let Some(name) = request.first_chunk_mut::<2>() {
        *name = *b"lo";
    }
    if let Some(slot) = request.get_mut(16..18) {
        slot.copy_from_slice(&IFF_UP_RUNNING.to_ne_bytes());
    }
    call(nr::IOCTL, [socket, SIOCSIFFLAGS, request.as_mut_ptr() as usize]).map(|_| socket)
}

impl Child<'_> {
    /// Starts the thread, if the plan has one. Where it cannot be had, [`Child::network`] does its work.
    pub(super) fn begin_network(&mut self) {
        const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000; // CLONE_VM FS FILES SIGHAND THREAD
        const CLONE_PARENT_SETTID: u64 = 0x10_0000;
        const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
        let Some(beside) = self.job.beside else { return };
        let (stack, size) = beside.stack;
        // A number that is asked for is not counted: the first program of the container will have it again.
        let number = [2u32];
        let how = CloneArgs {
            flags: THREAD | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID,
            parent_tid: beside.alive.as_ptr() as u64,
            child_tid: beside.alive.as_ptr() as u64,
            stack: stack as u64,
            stack_size: size as u64,
            set_tid: if beside.numbered { number.as_ptr() as u64 } else { 0 },
            set_tid_size: beside.numbered.into(),
            ..CloneArgs::default()
        };
        // SAFETY: the stack is the caller's, unused, and lives like `beside` until `alive` is cleared; `make` obeys the
        // rules of the child.
        let _ = unsafe { raw::clone_on_stack(&how, make, core::ptr::from_ref(beside) as usize) };
    }

    /// The step: joins the namespace that the thread has made, or brings up `lo` in the one there is.
    pub(super) fn network(&mut self) -> Result<(), i32> {
        const FUTEX_WAIT: usize = 0;
        const LOOKS: usize = 32;
        let Some(beside) = self.job.beside else { return self.loopback() };
        let mut looks = 0;
        loop {
            let alive = beside.alive.load(Ordering::Acquire);
            if alive == 0 {
                break;
            }
            if looks < LOOKS {
                looks += 1;
                let _ = self.call(nr::SCHED_YIELD, []);
            } else {
                let word = beside.alive.as_ptr() as usize;
                let _ = self.call(nr::FUTEX, [word, FUTEX_WAIT, alive as usize, 0]);
            }
        }
        let errno = beside.errno.load(Ordering::Acquire);
        if errno != 0 {
            self.failed = beside.syscall.load(Ordering::Relaxed) as usize;
            if self.failed == nr::UNSHARE && errno != libc::EPERM {
                self.job.shared.step.store(0, Ordering::Relaxed); // it stands for a flag of clone(2)
            }
            return Err(errno);
        }
        let namespace = beside.namespace.load(Ordering::Acquire);
        if namespace < 0 {
            // No thread was to be had.
            self.call(nr::UNSHARE, [CLONE_NEWNET])?;
            return self.loopback();
        }
        let joined = self.call(nr::SETNS, [namespace as usize, CLONE_NEWNET]);
        self.close(namespace as usize);
        joined.map(drop)
    }

    fn loopback(&mut self) -> Result<(), i32> {
        let socket = loopback(&mut |n, args| self.call(n, args))?;
        self.close(socket);
        Ok(())
    }
}
