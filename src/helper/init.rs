//! PID 1 of a container.
//!
//! Runs inside the container with nothing but a few descriptors (protocol.rs, `FD_…`). It
//! - ends when its owner ends (a pidfd; PDEATHSIG only bridged the time until execve), and with it the kernel ends
//!   everything else in the PID namespace; unless the owner asked it to stay (`OP_KEEP`), which makes the container a
//!   detached one: from then on it is reached through its listening socket;
//! - carries out requests: every program in the container is forked here, so that no process which ever shared
//!   memory with the host's interpreter joins a running container;
//! - reaps: its own children, whose end it reports, and orphans;
//! - forwards signals that arrive from outside to the main program, if there is one, else to all.
//!
//! The last step of the start is its own: it lets go of the host's tree (`letgo`), beside the first program if the
//! request for one lies there already, else before anything else.
//!
//! It has every signal blocked and reads them from a signalfd: a blocked signal is never discarded, although the
//! kernel drops unhandled ones for PID 1 (pid_namespaces(7)). It is not dumpable, so nobody in the container may
//! trace it or read its memory.

use crate::beside::Beside;
use crate::exec::{self, Descriptors};
use crate::files;
use crate::kernel::{self, PollFd, Usage};
use crate::letgo::Left;
use crate::protocol::{self as p, Request, Status};
use crate::raw::{Outcome, call, nr};
use crate::tree;

const CHILDREN: usize = 4096;
const CONNECTIONS: usize = 32;

#[derive(Clone, Copy)]
struct Child {
    pid: i32,
    /// -1 when a subreaper reports instead.
    status: i32,
    id: u64,
}

struct Init {
    /// How many entries of `children` may be in use.
    used: usize,
    children: [Child; CHILDREN],
    main: i32,
    detached: bool,
    /// Which of the descriptors `FD_…` there are: bit n is descriptor n.
    present: u32,
    /// Accepted control connections of a detached container.
    connections: [i32; CONNECTIONS],
    message: [u8; size_of::<Request>() + p::INLINE],
    /// The host's tree, until it is let go of.
    left: Option<Left>,
}

/// In .bss: pages cost memory only once they are used.
static mut INIT: Init = Init {
    used: 0,
    children: [Child { pid: 0, status: 0, id: 0 }; CHILDREN],
    main: 0,
    detached: false,
    present: 0,
    connections: [0; CONNECTIONS],
    message: [0; size_of::<Request>() + p::INLINE],
    left: None,
};

static mut BESIDE: Beside = Beside::new();

pub fn main(present: &[u8]) -> ! {
    const PR_SET_DUMPABLE: usize = 4;
    const PR_SET_NAME: usize = 15;
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    let _ = kernel::prctl(PR_SET_DUMPABLE, 0);
    let _ = kernel::prctl(PR_SET_NAME, c"r2d2-init".as_ptr() as usize);
    let Ok(signals) = kernel::signalfd() else { kernel::exit(1) };
    let signals = signals as i32;
    // They had to survive the execve that started us; they must not survive the ones that we do.
    // SAFETY: no pointer.
    let _ = unsafe { call(nr::CLOSE_RANGE, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC]) };
    let has = |fd: i32| present.contains(&(b'0' + fd as u8));
    let pointer = &raw mut INIT;
    // SAFETY: single-threaded, and this is the only reference ever made.
    let init = unsafe { &mut *pointer };
    for fd in p::FD_CONTROL..p::FD_FREE {
        init.present |= u32::from(has(fd)) << fd;
    }

    init.left = Left::of(present);
    match init.left {
        None => kernel::default_signals(),
        // The others can wait. But whoever ignores this one never hears how his children end.
        Some(_) => kernel::default_signal(kernel::SIGCHLD),
    }

    let watch = |fd: i32| PollFd { fd: if has(fd) { fd } else { -1 }, events: kernel::POLLIN, revents: 0 };
    let mut fds = [PollFd { fd: -1, events: kernel::POLLIN, revents: 0 }; 4 + CONNECTIONS];
    fds[0] = PollFd { fd: signals, ..fds[0] };
    fds[1] = watch(p::FD_OWNER);
    fds[2] = watch(p::FD_CONTROL);
    fds[3] = watch(p::FD_LISTEN);
    loop {
        for (slot, fd) in fds.iter_mut().skip(4).zip(&init.connections) {
            slot.fd = if *fd > 0 { *fd } else { -1 };
        }
        match kernel::poll(&mut fds, if init.left.is_some() { 0 } else { -1 }) {
            Err(_) => continue,
            Ok(0) => {
                init.let_go();
                continue;
            }
            Ok(_) => {}
        }
        let polled = fds;
        let ready = |i: usize| polled.get(i).is_some_and(|fd: &PollFd| fd.revents != 0);
        if ready(1) && !init.detached {
            kernel::exit(0); // the owner is gone
        }
        if ready(0) {
            while let Some(signal) = kernel::next_signal(signals) {
                init.signal(signal);
            }
        }
        if ready(2) && !init.serve(p::FD_CONTROL) {
            if init.detached {
                fds[2].fd = -1; // not closed: the number must not become another descriptor's
            } else {
                kernel::exit(0); // the owner closed its end
            }
        }
        if init.detached {
            fds[1].fd = -1;
        }
        if ready(3) {
            init.accept();
        }
        for i in 0..CONNECTIONS {
            if let Some(fd @ 1..) = init.connections.get(i).copied()
                && ready(4 + i)
                && !init.serve(fd)
            {
                kernel::close(fd);
                init.connections[i] = 0;
            }
        }
    }
}

impl Init {
    /// Whether there is such a descriptor of ours. The number of one that is not may be that of one just received.
    fn has(&self, fd: i32) -> bool {
        self.present >> fd & 1 == 1
    }

    /// Nothing is started before, but for a program that waits for it.
    fn let_go(&mut self) {
        if let Some(left) = self.left.take() {
            left.let_go();
            kernel::default_signals();
            self.reap(); // which forgets a SIGCHLD that was pending (sigaction(2))
        }
    }

    fn signal(&mut self, signal: i32) {
        match signal {
            kernel::SIGCHLD => self.reap(),
            // Job control is the affair of the terminal's session.
            19..=22 => {}
            _ => {
                let _ = kernel::kill(if self.main > 0 { self.main } else { -1 }, signal);
            }
        }
    }

    fn reap(&mut self) {
        let mut usage = Usage::default();
        while let Ok((pid @ 1.., code)) = kernel::reap(&mut usage, 1) {
            for i in 0..self.used {
                if self.children[i].pid == pid {
                    let child = self.children[i];
                    self.children[i].pid = 0;
                    self.ended(child, code, &usage);
                    break;
                }
            }
            while self.used > 0 && self.children[self.used - 1].pid == 0 {
                self.used -= 1;
            }
        }
    }

    fn ended(&mut self, child: Child, code: i32, usage: &Usage) {
        if child.status >= 0 {
            kernel::send(child.status, &tree::exited(code, usage), &[]);
            kernel::close(child.status);
        }
        if child.pid == self.main {
            if self.has(p::FD_EXIT) {
                // SAFETY: four bytes on the stack.
                let _ = unsafe { call(nr::WRITE, [p::FD_EXIT as usize, &raw const code as usize, 4]) };
            }
            kernel::exit(if code & 0x7f == 0 { code >> 8 & 0xff } else { 128 + (code & 0x7f) })
        }
    }

    /// Takes a new control connection; SOCK_CLOEXEC.
    fn accept(&mut self) {
        // SAFETY: no address wanted.
        let accepted = unsafe { call(nr::ACCEPT4, [p::FD_LISTEN as usize, 0, 0, kernel::CLOEXEC]) };
        let Ok(fd) = accepted else { return };
        match self.connections.iter_mut().find(|slot| **slot == 0) {
            Some(slot) => *slot = fd as i32,
            None => kernel::close(fd as i32),
        }
    }

    /// One message; false at its end of file.
    fn serve(&mut self, socket: i32) -> bool {
        let mut fds = [-1; p::FDS];
        let len = match kernel::receive(socket, &mut self.message, &mut fds) {
            Ok(0) => return false,
            Ok(len) => len,
            Err(kernel::EINTR | kernel::EAGAIN) => return true,
            Err(_) => return false,
        };
        if len >= size_of::<Request>() {
            // SAFETY: that many bytes were received, and every bit pattern is a Request.
            let request = unsafe { self.message.as_ptr().cast::<Request>().read_unaligned() };
            if request.magic == p::MAGIC {
                if request.op != p::OP_EXEC {
                    self.let_go();
                }
                match request.op {
                    p::OP_EXEC => self.exec(&request, len, &fds),
                    p::OP_ROOT => root(&fds, self.has(p::FD_UPPER)),
                    p::OP_SIGNAL => self.kill(&request),
                    p::OP_KEEP => {
                        self.detached = true;
                        kernel::send(fds[0], &Status { kind: p::ST_KEPT, ..Status::default() }, &[]);
                    }
                    p::OP_FILES => self.files(&fds),
                    _ => {}
                }
            }
        }
        for fd in fds {
            if fd >= 0 {
                kernel::close(fd);
            }
        }
        true
    }

    /// Forks the program. `fds` are closed by the caller; what is kept is duplicated.
    fn exec(&mut self, request: &Request, len: usize, received: &[i32; p::FDS]) {
        let fds = Descriptors::of(request, received);
        let mut pidfd = -1;
        let tree = request.flags & p::F_TREE != 0;
        let slot = self.children.iter().position(|child| child.pid == 0);
        let forked = match slot {
            None => Err(kernel::EAGAIN),
            Some(_) => {
                self.begin(request, len, fds, (request.flags & p::F_STARTED != 0).then_some(&mut pidfd))
            }
        };
        let pid = match forked {
            Ok(0) => self.child(request, len, fds),
            Ok(pid) => pid as i32,
            Err(errno) => {
                let failed =
                    Status { kind: p::ST_FAILED, stage: p::STAGE_FORK, value: errno, ..Status::default() };
                kernel::send(fds.status, &failed, &[]);
                return;
            }
        };
        if pidfd >= 0 {
            let started = Status { kind: p::ST_STARTED, value: pid, ..Status::default() };
            kernel::send(fds.status, &started, &[pidfd]);
            kernel::close(pidfd);
        }
        let status = if tree { -1 } else { duplicate(fds.status) };
        if let Some(slot) = slot {
            self.children[slot] = Child { pid, status, id: request.id };
            self.used = self.used.max(slot + 1);
        }
        if request.flags & p::F_MAIN != 0 {
            self.main = pid;
        }
        self.let_go();
    }

    /// A child for the program; 0 in it, if it is a fork.
    fn begin(&mut self, request: &Request, len: usize, fds: Descriptors, pidfd: Option<&mut i32>) -> Outcome {
        let pointer = &raw mut BESIDE;
        // SAFETY: single-threaded; while a child has it, nothing but `alive` is looked at.
        let beside = unsafe { &mut *pointer };
        if !beside.can(request) {
            self.let_go();
            return kernel::fork(pidfd);
        }
        beside.start(self.message.get(..len).unwrap_or(&[]), fds, self.present, self.left, pidfd)
    }

    /// The strings of the message of `len` bytes.
    fn inline(&mut self, len: usize) -> &mut [u8] {
        self.message.get_mut(size_of::<Request>()..len).unwrap_or(&mut [])
    }

    /// In the forked child. Nothing of PID 1's may stay within the program's reach.
    fn child(&mut self, request: &Request, len: usize, fds: Descriptors) -> ! {
        if request.flags & p::F_TREE == 0 {
            exec::forget(self.present, |_| true);
            exec::become_program(request, self.inline(len), fds, None);
        }
        exec::forget(self.present, |fd| fd != p::FD_PROC); // the subreaper looks for its children there
        tree::prepare();
        match kernel::fork(None) {
            Ok(0) => {
                exec::forget(self.present, |fd| fd == p::FD_PROC);
                exec::become_program(request, self.inline(len), fds, None)
            }
            Ok(program) => {
                for fd in fds.stdio.into_iter().chain(fds.pass).chain([fds.confirm, fds.memfd]) {
                    if fd >= 0 {
                        kernel::close(fd);
                    }
                }
                tree::supervise(program as i32, fds.status)
            }
            Err(errno) => {
                let failed =
                    Status { kind: p::ST_FAILED, stage: p::STAGE_FORK, value: errno, ..Status::default() };
                kernel::send(fds.status, &failed, &[]);
                kernel::exit(127)
            }
        }
    }

    /// Forks the one who touches files for the owner. No entry in the table: it is reaped as an orphan is.
    fn files(&mut self, fds: &[i32; p::FDS]) {
        if fds[0] >= 0 && kernel::fork(None) == Ok(0) {
            exec::forget(self.present, |fd| fd != p::FD_PROC);
            files::serve(fds[0], &mut self.message);
        }
    }

    /// Signals a program that has not been reaped, so the pid is certainly still its own. Id 0: everything but us.
    fn kill(&self, request: &Request) {
        if request.id == 0 {
            let _ = kernel::kill(-1, request.signal);
        }
        for child in self.children.iter().take(self.used) {
            if child.pid > 0 && child.id == request.id {
                let signal = if request.flags & p::F_TREE != 0 && child.status < 0 {
                    kernel::SIGUSR1
                } else {
                    request.signal
                };
                let _ = kernel::kill(child.pid, signal);
            }
        }
    }
}

/// A copy for the table; closes at execve like every other.
fn duplicate(fd: i32) -> i32 {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: no pointer.
    unsafe { call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, p::FD_FREE as usize]) }.map_or(-1, |fd| fd as i32)
}

/// Sends what the owner needs to read the container's files: the root directory and, if there is one, the upper layers'.
/// The answer goes to the socket that came with the request.
fn root(fds: &[i32; p::FDS], has_upper: bool) {
    const O_PATH_DIRECTORY: usize = 0o10_200_000;
    // SAFETY: a static string.
    let opened = unsafe { call(nr::OPENAT, [0, c"/".as_ptr() as usize, O_PATH_DIRECTORY | kernel::CLOEXEC]) };
    let Ok(root) = opened else { return };
    let upper = if has_upper { duplicate(p::FD_UPPER) } else { -1 };
    let all = [root as i32, upper];
    let count = if upper < 0 { 1 } else { 2 };
    let answer = Status { kind: p::ST_ROOT, value: count as i32, ..Status::default() };
    kernel::send(fds[0], &answer, &all[..count]);
    kernel::close(root as i32);
    if upper >= 0 {
        kernel::close(upper);
    }
}
