//! The mounts, made beside the network namespace. **Process:** the child, and a second thread of it, for which the
//! child's rules hold, too.
//!
//! A network namespace costs the kernel as much as half of all mounts, and neither needs the other. So clone(2) leaves
//! it out where a plan brings up `lo`: a thread carries out the steps before that one which concern mounts and files
//! alone (`Beside::run`), and the child makes the namespace by unshare(2), which concerns the calling thread alone, and
//! waits for the thread at the step `Loopback`, planned right before the first step that needs the network (sysfs). The
//! thread has the child's mount namespace, directories and descriptors, and is the one with less to do, so that nobody
//! is woken up. While they run the caller sleeps, so there is a processor for each.
//!
//! The thread uses the caller's memory like the child: the caller waits for the end of both (`Beside::alive`).

use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{Child, Job, O_CLOEXEC, now};
use crate::container::step::{Op, Step};
use crate::sys::clone::futex_wait;
use crate::sys::raw::{self, CloneArgs, nr};

const CLONE_NEWNET: usize = 0x4000_0000;
const EPERM: i32 = 1;

/// What the thread is given, and what it answers.
pub(in crate::container) struct Beside {
    /// Its stack: address and size.
    stack: (usize, usize),
    /// It runs in a new PID namespace, as number 2.
    numbered: bool,
    /// Its steps.
    pub(in crate::container) run: Range<usize>,
    /// When it began (CLOCK_MONOTONIC, ns).
    pub(in crate::container) began: AtomicU64,
    /// From when to when the child made the network namespace.
    pub(in crate::container) network: [AtomicU64; 2],
    /// Its number while it lives: set, cleared and woken by the kernel (`CLONE_PARENT_SETTID`,
    /// `CLONE_CHILD_CLEARTID`), so that a child killed inside clone3(2) cannot leave it wrong.
    alive: AtomicU32,
    /// All of its steps are done.
    done: AtomicU32,
    /// The step that failed, if one did, the system call and its errno.
    step: AtomicU32,
    syscall: AtomicU32,
    errno: AtomicI32,
    /// What its steps left open: see `Child`.
    root: AtomicI32,
    proc: AtomicI32,
    upper: AtomicI32,
}

impl Beside {
    /// For steps that bring up `lo`; `None` where there is nothing to be done beside it. The stack is an address and a
    /// size; the child is PID 1 (`numbered`) or is not.
    pub(in crate::container) fn new(steps: &[Step], stack: (usize, usize), numbered: bool) -> Option<Self> {
        let end = steps.iter().position(|step| step.op == Op::Loopback)?;
        let run = steps[..end].iter().rposition(|step| !files_alone(&step.op)).map_or(0, |i| i + 1)..end;
        (!run.is_empty()).then(|| Self {
            stack,
            numbered,
            run,
            began: AtomicU64::new(0),
            network: [AtomicU64::new(0), AtomicU64::new(0)],
            alive: AtomicU32::new(0),
            done: AtomicU32::new(0),
            step: AtomicU32::new(0),
            syscall: AtomicU32::new(0),
            errno: AtomicI32::new(0),
            root: AtomicI32::new(-1),
            proc: AtomicI32::new(-1),
            upper: AtomicI32::new(-1),
        })
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

/// Whether a step concerns what all threads of a process share: its mounts, its directories, its descriptors. A mount
/// of control groups shows those of the namespace of whoever makes it.
fn files_alone(op: &Op) -> bool {
    match op {
        Op::Mount { fstype, .. } => !fstype.as_bytes().starts_with(b"cgroup"),
        Op::Private
        | Op::Directory { .. }
        | Op::File { .. }
        | Op::Owner { .. }
        | Op::Symlink { .. }
        | Op::Bind { .. }
        | Op::Remount { .. }
        | Op::Upper { .. }
        | Op::Root { .. } => true,
        _ => false,
    }
}

/// The thread. It ends alone: exit(2), not exit_group(2).
extern "C" fn make(argument: usize) -> ! {
    // SAFETY: the caller keeps it until `alive` is cleared.
    let job = unsafe { &*(argument as *const Job<'_>) };
    if let Some(beside) = job.beside {
        let mut child = Child::new(job);
        if child.wait_for_caller() {
            child.carry_out(beside);
        }
    }
    loop {
        // SAFETY: ends this thread.
        let _ = unsafe { raw::call(nr::EXIT, [0]) };
    }
}

impl Child<'_> {
    /// The thread's steps.
    fn carry_out(&mut self, beside: &Beside) {
        beside.began.store(now(), Ordering::Relaxed);
        for i in beside.run.clone() {
            let Some(step) = self.job.steps.get(i) else { return };
            if let Err(errno) = self.timed(i, step) {
                beside.step.store(i as u32, Ordering::Relaxed);
                beside.syscall.store(self.failed as u32, Ordering::Relaxed);
                beside.errno.store(errno, Ordering::Release);
                return;
            }
        }
        beside.root.store(self.root, Ordering::Relaxed);
        beside.proc.store(self.proc, Ordering::Relaxed);
        beside.upper.store(self.upper, Ordering::Relaxed);
        beside.done.store(1, Ordering::Release);
    }

    /// Starts the thread, if the plan has one. Where it cannot be had, the child does everything in its turn.
    pub(super) fn begin_beside(&mut self) -> bool {
        const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000; // CLONE_VM FS FILES SIGHAND THREAD
        const CLONE_PARENT_SETTID: u64 = 0x10_0000;
        const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
        let Some(beside) = self.job.beside else { return false };
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
        // SAFETY: the stack is the caller's, unused, and lives like the job until `alive` is cleared; `make` obeys the
        // rules of the child.
        unsafe { raw::clone_on_stack(&how, make, core::ptr::from_ref(self.job) as usize) }.is_ok()
    }

    /// The network namespace, made while the caller still writes the id maps, which it does not need.
    pub(super) fn network_beside(&mut self, beside: &Beside) -> Result<(), i32> {
        let [from, to] = &beside.network;
        from.store(now(), Ordering::Relaxed);
        let network = self.network();
        to.store(now(), Ordering::Relaxed);
        network
    }

    /// When the thread has carried out its steps, what it has made is the child's. `network` is how that went, with the
    /// system call: an earlier step that failed is the one to be told.
    pub(super) fn join_beside(
        &mut self,
        beside: &Beside,
        network: (Result<(), i32>, usize),
    ) -> Result<(), i32> {
        const FUTEX_WAIT: usize = 0;
        const LOOKS: usize = 32;
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
            self.job.shared.step.store(beside.step.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(errno);
        }
        self.failed = network.1;
        if let Err(errno) = network.0 {
            if self.failed == nr::UNSHARE && errno != EPERM {
                self.job.shared.step.store(0, Ordering::Relaxed); // it stands for a flag of clone(2)
            }
            return Err(errno);
        }
        if beside.done.load(Ordering::Acquire) == 0 {
            super::exit(127); // told to give up
        }
        self.root = beside.root.load(Ordering::Relaxed);
        self.proc = beside.proc.load(Ordering::Relaxed);
        self.upper = beside.upper.load(Ordering::Relaxed);
        Ok(())
    }

    /// The network namespace, which clone(2) left out if there is a `Beside`, with `lo` up.
    pub(super) fn network(&mut self) -> Result<(), i32> {
        if self.job.beside.is_some() {
            self.call(nr::UNSHARE, [CLONE_NEWNET])?;
        }
        self.loopback()
    }

    /// `ip link set lo up`, by ioctl (netdevice(7)).
    fn loopback(&mut self) -> Result<(), i32> {
        const SIOCSIFFLAGS: usize = 0x8914;
        const IFF_UP_RUNNING: u16 = 0x41;
        let socket = self.call(nr::SOCKET, [2, 2 | O_CLOEXEC, 0])?; // AF_INET, SOCK_DGRAM
        let mut request = [0u8; 40]; // struct ifreq
        if let Some(name) = request.first_chunk_mut::<2>() {
            *name = *b"lo";
        }
        if let Some(slot) = request.get_mut(16..18) {
            slot.copy_from_slice(&IFF_UP_RUNNING.to_ne_bytes());
        }
        let up = self.call(nr::IOCTL, [socket, SIOCSIFFLAGS, request.as_mut_ptr() as usize]).map(drop);
        self.close(socket);
        up
    }
}
