//! A subreaper between PID 1 and one program, for programs that may have to be killed with all they started
//! (`run(timeout=…)`): whatever the program starts, daemons included, comes back to the subreaper when its parent
//! ends, so killing children until there are none reaches everything, without a cgroup. When the program ends by
//! itself the subreaper ends too, and what the program left running goes to PID 1 as usual.
//! Runs inside the container, as a fork of PID 1.

use crate::kernel::{self, PollFd, Usage};
use crate::protocol::{self as p, Status};
use crate::raw::{call, nr};

const PR_SET_CHILD_SUBREAPER: usize = 36;
const PR_SET_NAME: usize = 15;

/// Becomes a subreaper. Call before forking the program.
pub fn prepare() {
    let _ = kernel::prctl(PR_SET_CHILD_SUBREAPER, 1);
    let _ = kernel::prctl(PR_SET_NAME, c"r2d2-subreaper".as_ptr() as usize);
}

/// Waits for `program`, reports its end on `status`; SIGUSR1 (from PID 1) kills all.
pub fn supervise(program: i32, status: i32) -> ! {
    let Ok(signals) = kernel::signalfd() else { kernel::exit(1) };
    let mut ended = None;
    let mut killing = false;
    loop {
        let mut usage = Usage::default();
        match kernel::reap(&mut usage, 1) {
            Ok((0, _)) if killing => {
                if !kill_children() {
                    // Without a /proc of this PID namespace only the program itself is known.
                    if ended.is_some() {
                        break;
                    }
                    let _ = kernel::kill(program, kernel::SIGKILL);
                }
                let _ = kernel::poll(&mut [], 1);
            }
            Ok((0, _)) => {
                let mut fds = [PollFd { fd: signals as i32, events: kernel::POLLIN, revents: 0 }];
                let _ = kernel::poll(&mut fds, -1);
                while let Some(signal) = kernel::next_signal(signals as i32) {
                    killing |= signal == kernel::SIGUSR1;
                }
            }
            Ok((pid, code)) => {
                if pid == program {
                    ended = Some((code, usage));
                    if !killing {
                        break;
                    }
                }
            }
            Err(_) => break, // ECHILD: all gone
        }
    }
    if let Some((code, usage)) = ended {
        kernel::send(status, &exited(code, &usage), &[]);
    }
    kernel::exit(0)
}

/// The report of an end.
pub fn exited(code: i32, usage: &Usage) -> Status {
    let micros = |t: [u64; 2]| t[0].wrapping_mul(1_000_000).wrapping_add(t[1]);
    Status {
        kind: p::ST_EXITED,
        stage: 0,
        value: code,
        maxrss_kib: usage.maxrss as u32,
        utime_us: micros(usage.utime),
        stime_us: micros(usage.stime),
    }
}

const O_DIRECTORY: usize = 0o200_000;

/// SIGKILL to every direct child, found in the container's /proc by parent pid; false where it has none. That /proc may
/// be the host's (`proc="bind"`), with the pids of another namespace, so neither we nor they go by number: a process's
/// directory there serves as its pidfd (pidfd_send_signal(2)).
fn kill_children() -> bool {
    let Some(me) = own_pid() else { return false };
    // SAFETY: a static string.
    let Ok(dir) = (unsafe {
        call(nr::OPENAT, [p::FD_PROC as usize, c".".as_ptr() as usize, O_DIRECTORY | kernel::CLOEXEC])
    }) else {
        return false;
    };
    let mut buffer = [0u64; 512];
    loop {
        // SAFETY: the buffer has the length that is claimed.
        let read = unsafe { call(nr::GETDENTS64, [dir, buffer.as_mut_ptr() as usize, 4096]) };
        let Ok(len @ 1..) = read else { break };
        // SAFETY: the same memory as bytes.
        let entries = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), len.min(4096)) };
        let mut at = 0;
        while let Some(head) = entries.get(at..at + 19) {
            let size = usize::from(u16::from_ne_bytes([head[16], head[17]]));
            let name = entries.get(at + 19..at + size).unwrap_or(&[]);
            if decimal(name).is_some() && parent_of(name) == Some(me) {
                kill(name);
            }
            if size == 0 {
                break;
            }
            at += size;
        }
    }
    kernel::close(dir as i32);
    true
}

/// Digits up to the first other byte.
fn decimal(text: &[u8]) -> Option<i32> {
    let mut value = None;
    for digit in text.iter().take_while(|b| b.is_ascii_digit()) {
        value = Some(value.unwrap_or(0i32).wrapping_mul(10).wrapping_add(i32::from(digit - b'0')));
    }
    value
}

/// Opens below /proc what belongs to a process: its name is the digits at the start of `name`.
fn open(name: &[u8], rest: &[u8], flags: usize) -> Option<usize> {
    let mut path = [0u8; 32];
    let digits = name.iter().take_while(|b| b.is_ascii_digit()).count().min(16);
    path.get_mut(..digits)?.copy_from_slice(name.get(..digits)?);
    path.get_mut(digits..digits + rest.len())?.copy_from_slice(rest);
    // SAFETY: the path ends with a zero byte: it is shorter than its array.
    unsafe { call(nr::OPENAT, [p::FD_PROC as usize, path.as_ptr() as usize, flags | kernel::CLOEXEC]) }.ok()
}

fn kill(name: &[u8]) {
    if let Some(process) = open(name, b"", O_DIRECTORY) {
        // SAFETY: no siginfo.
        let _ = unsafe { call(nr::PIDFD_SEND_SIGNAL, [process, kernel::SIGKILL as usize, 0, 0]) };
        kernel::close(process as i32);
    }
}

/// What proc_pid_stat(5) says, handed to `read`.
fn stat<T>(name: &[u8], file: &[u8], read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let fd = open(name, file, 0)?;
    let mut text = [0u8; 512];
    // SAFETY: the buffer has the length that is claimed.
    let len = unsafe { call(nr::READ, [fd, text.as_mut_ptr() as usize, text.len()]) };
    kernel::close(fd as i32);
    read(text.get(..len.ok()?)?)
}

/// The fourth field; the second is a name that may hold anything but ends with the last parenthesis.
fn parent_of(name: &[u8]) -> Option<i32> {
    stat(name, b"/stat", |text| {
        let after = text.iter().rposition(|b| *b == b')')?;
        decimal(text.get(after + 4..)?)
    })
}

/// The first field: our pid as that /proc counts.
fn own_pid() -> Option<i32> {
    stat(b"", b"self/stat", decimal)
}
