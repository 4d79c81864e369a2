//! Two threads for one start. **Process:** the child, and a second thread of it, for which the child's rules hold, too.
//!
//! A network namespace costs the kernel as much as half of all mounts, and neither needs the other. So clone(2) leaves
//! it out where a plan brings up `lo`: a thread carries out the steps before that one which concern mounts and files
//! alone, and the child makes the namespace by unshare(2), which concerns the calling thread alone. What it can do
//! before the thread is ready it does then; of the last of the thread's steps, which need each other as little, each of
//! both takes the next until none is left. So neither waits for the other for long:
//!
//! | steps | who | when |
//! | --- | --- | --- |
//! | mounts and files (`run` but for its tail) | the thread | from the start |
//! | the network namespace and `lo` | the child | from the start, the id maps need not be written |
//! | what concerns the child alone ([`alone`]) | the child | then |
//! | `after`: sysfs, which needs the network, and its masks | the child | then, once there is a root ([`ROOTED`]) |
//! | `shared`, the tail of `run`: the masks of /proc | both | once all before is mounted ([`OPEN`]) |
//!
//! The thread has the child's mount namespace, directories and descriptors. It uses the caller's memory like the child:
//! the caller waits for the end of both ([`Beside::wait`]).

use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use super::{Child, Job, O_CLOEXEC, now};
use crate::container::step::{Op, Place, Step};
use crate::sys::clone::futex_wait;
use crate::sys::raw::{self, CloneArgs, nr};

const CLONE_NEWNET: usize = 0x4000_0000;
const EPERM: i32 = 1;
const ECANCELED: i32 = 125;

/// How far the thread is: the root directory is there.
const ROOTED: u32 = 1;
/// All is there that the steps of `shared` need.
const OPEN: u32 = 2;
/// It has carried out its steps.
const DONE: u32 = 3;
/// It has not.
const FAILED: u32 = 4;

/// What the thread is given, and what it answers.
pub(in crate::container) struct Beside {
    /// Its stack: address and size.
    stack: (usize, usize),
    /// It runs in a new PID namespace, as number 2.
    numbered: bool,
    /// Its steps; the one behind them is `Loopback`.
    pub(super) run: Range<usize>,
    /// The tail of `run` whose steps are anybody's, in any order.
    shared: Range<usize>,
    /// How many of `shared` are taken.
    taken: AtomicU32,
    /// The steps behind `Loopback` that need it and the root, and nothing more.
    after: Range<usize>,
    /// How far it is. A futex.
    phase: AtomicU32,
    /// Its number while it lives: set, cleared and woken by the kernel (`CLONE_PARENT_SETTID`,
    /// `CLONE_CHILD_CLEARTID`), so that a child killed inside clone3(2) cannot leave it wrong.
    alive: AtomicU32,
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
        let own = steps[run.clone()].iter().rposition(|step| !mask_of_proc(&step.op)).map_or(0, |i| i + 1);
        let shared = run.start + own..end;
        let rooted = steps[run.clone()].iter().any(|step| matches!(step.op, Op::Root { .. }));
        let more = steps[end + 1..].iter().take_while(|step| rooted && system(&step.op)).count();
        (!run.is_empty()).then(|| Self {
            stack,
            numbered,
            run,
            shared,
            taken: AtomicU32::new(0),
            after: end + 1..end + 1 + more,
            phase: AtomicU32::new(0),
            alive: AtomicU32::new(0),
            step: AtomicU32::new(0),
            syscall: AtomicU32::new(0),
            errno: AtomicI32::new(0),
            root: AtomicI32::new(-1),
            proc: AtomicI32::new(-1),
            upper: AtomicI32::new(-1),
        })
    }

    /// The last step of those that [`Child::together`] carries out in a row.
    pub(super) fn last(&self) -> usize {
        self.after.end - 1
    }

    /// Whether it was done there, too, though it stands behind them.
    pub(super) fn was_alone(&self, i: usize, step: &Step) -> bool {
        i >= self.after.end && alone(&step.op)
    }

    /// Waits in the caller for the thread's end.
    pub(in crate::container) fn wait(&self) {
        loop {
            let alive = self.alive.load(Ordering::Acquire);
            if alive == 0 {
                break;
            }
            futex_wait(&self.alive, alive, Duration::from_millis(100));
        }
    }

    /// The next of `shared`.
    fn take(&self) -> Option<usize> {
        let next = self.shared.start + self.taken.fetch_add(1, Ordering::Relaxed) as usize;
        (next < self.shared.end).then_some(next)
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
        | Op::Move { .. }
        | Op::Remount { .. }
        | Op::Upper { .. }
        | Op::Root { .. } => true,
        _ => false,
    }
}

/// Whether a step binds something on a file at the top of /proc: no two of them have to do with each other.
fn mask_of_proc(op: &Op) -> bool {
    matches!(op, Op::Bind { at, .. } if at.in_proc().is_some())
}

/// Whether a step mounts sysfs, or something in it.
fn system(op: &Op) -> bool {
    let (Op::Mount { at: Place::Root(path), .. } | Op::Bind { at: Place::Root(path), .. }) = op else {
        return false;
    };
    path.as_bytes().strip_prefix(b"/sys").is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether a step concerns the thread that carries it out and nothing else, and takes nothing away that the steps after
/// it need: cutting the bounding set leaves the capabilities themselves until execve(2). They stand at the end of the
/// list, and are done while there is time.
fn alone(op: &Op) -> bool {
    matches!(op, Op::Hostname(_) | Op::Keyring | Op::Capabilities { .. } | Op::NoNewPrivileges)
}

/// The thread. It ends alone: exit(2), not exit_group(2).
extern "C" fn make(argument: usize) -> ! {
    // SAFETY: the caller keeps it until `alive` is cleared.
    let job = unsafe { &*(argument as *const Job<'_>) };
    if let Some(beside) = job.beside {
        let mut child = Child::new(job);
        let done = child.wait_for_caller() && child.carry_out(beside);
        child.advance(beside, if done { DONE } else { FAILED });
    }
    loop {
        // SAFETY: ends this thread.
        let _ = unsafe { raw::call(nr::EXIT, [0]) };
    }
}

impl Child<'_> {
    /// The thread's steps; false if one of them has failed.
    fn carry_out(&mut self, beside: &Beside) -> bool {
        self.moment = now();
        let mut i = beside.run.start;
        loop {
            if i == beside.shared.start {
                beside.proc.store(self.proc, Ordering::Relaxed);
                self.advance(beside, OPEN);
            }
            if i >= beside.shared.start {
                let Some(next) = beside.take() else { break };
                i = next;
            }
            let Some(step) = self.job.steps.get(i) else { return false };
            if let Err(errno) = self.timed(i, step) {
                beside.step.store(i as u32, Ordering::Relaxed);
                beside.syscall.store(self.failed as u32, Ordering::Relaxed);
                beside.errno.store(errno, Ordering::Relaxed);
                return false;
            }
            if matches!(step.op, Op::Root { .. }) {
                beside.root.store(self.root, Ordering::Relaxed);
                self.advance(beside, ROOTED);
            }
            i += 1;
        }
        beside.upper.store(self.upper, Ordering::Relaxed);
        true
    }

    /// Tells the child how far the thread is.
    fn advance(&mut self, beside: &Beside, phase: u32) {
        const FUTEX_WAKE: usize = 1;
        beside.phase.store(phase, Ordering::Release);
        let _ = self.call(nr::FUTEX, [beside.phase.as_ptr() as usize, FUTEX_WAKE, 1]);
    }

    /// Waits in the child until the thread is as far as that.
    fn until(&mut self, beside: &Beside, phase: u32) -> Result<(), i32> {
        const FUTEX_WAIT: usize = 0;
        /// Looks before sleeping: a sleep and a wake-up cost as much as some steps.
        const LOOKS: usize = 64;
        let mut looks = 0;
        loop {
            match beside.phase.load(Ordering::Acquire) {
                FAILED => return Err(ECANCELED),
                reached if reached >= phase => break,
                _ if looks < LOOKS => {
                    looks += 1;
                    let _ = self.call(nr::SCHED_YIELD, []);
                }
                other => {
                    let word = beside.phase.as_ptr() as usize;
                    let _ = self.call(nr::FUTEX, [word, FUTEX_WAIT, other as usize, 0]);
                }
            }
        }
        self.moment = now(); // waiting is no step's time
        Ok(())
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
        let thread = unsafe { raw::clone_on_stack(&how, make, core::ptr::from_ref(self.job) as usize) };
        if let Ok(thread) = thread {
            self.elsewhere(thread);
        }
        thread.is_ok()
    }

    /// Lets the thread run on any processor but ours. Left to itself it begins on ours in most starts of a quiet
    /// machine, which means: when we have to wait for the first time, and half of the work is done.
    fn elsewhere(&mut self, thread: usize) {
        let failed = self.failed;
        let mut allowed = [0u64; 16]; // as many as a cpu_set_t of glibc has; a larger machine answers EINVAL
        let mut cpu = 0u32;
        let set = [size_of_val(&allowed), allowed.as_mut_ptr() as usize];
        let known = self.call(nr::SCHED_GETAFFINITY, [0, set[0], set[1]]).is_ok()
            && self.call(nr::GETCPU, [&raw mut cpu as usize, 0, 0]).is_ok();
        if let (true, Some(word)) = (known, allowed.get_mut(cpu as usize / 64)) {
            *word &= !(1 << (cpu % 64));
            if allowed.iter().any(|word| *word != 0) {
                let _ = self.call(nr::SCHED_SETAFFINITY, [thread, set[0], set[1]]);
            }
        }
        self.failed = failed;
    }

    /// The network namespace, made while the caller still writes the id maps, which it does not need.
    pub(super) fn network_beside(&mut self, beside: &Beside) -> Result<(), i32> {
        let from = now();
        let network = self.network();
        self.took(beside.run.end, now().saturating_sub(from));
        network
    }

    /// The steps of both, in the child. `network` is how that went, with the system call: an earlier step that failed
    /// is the one to be told.
    pub(super) fn together(
        &mut self,
        beside: &Beside,
        (network, syscall): (Result<(), i32>, usize),
    ) -> Result<(), i32> {
        self.failed = syscall;
        self.job.shared.step.store(beside.run.end as u32, Ordering::Relaxed);
        let mine = network.and_then(|()| self.while_it_runs(beside));
        let (failed, thread) = (self.failed, self.until(beside, DONE));
        if thread.is_err() {
            let errno = beside.errno.load(Ordering::Relaxed);
            if errno == 0 {
                super::exit(127); // told to give up
            }
            self.failed = beside.syscall.load(Ordering::Relaxed) as usize;
            self.job.shared.step.store(beside.step.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(errno);
        }
        self.failed = failed;
        if let Err(errno) = mine {
            if network.is_err() && failed == nr::UNSHARE && errno != EPERM {
                self.job.shared.step.store(0, Ordering::Relaxed); // it stands for a flag of clone(2)
            }
            return Err(errno);
        }
        self.upper = beside.upper.load(Ordering::Relaxed);
        Ok(())
    }

    /// What the child can do before the thread has carried out its steps, and with it.
    fn while_it_runs(&mut self, beside: &Beside) -> Result<(), i32> {
        for (i, step) in self.job.steps.iter().enumerate().skip(beside.after.end) {
            if alone(&step.op) {
                self.own(i, step)?;
            }
        }
        if !beside.after.is_empty() {
            self.until(beside, ROOTED)?;
            self.root = beside.root.load(Ordering::Relaxed);
            for i in beside.after.clone() {
                let Some(step) = self.job.steps.get(i) else { break };
                self.own(i, step)?;
            }
        }
        self.until(beside, OPEN)?;
        self.root = beside.root.load(Ordering::Relaxed);
        self.proc = beside.proc.load(Ordering::Relaxed);
        while let Some((i, step)) = beside.take().and_then(|i| Some((i, self.job.steps.get(i)?))) {
            self.own(i, step)?;
        }
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
