//! Starting a program in a container: the part of a request that runs in the forked child, from fork(2) to
//! execve(2). Runs inside the container, in memory that never held anything of the host's.
//!
//! Order: descriptors, session and terminal, umask, capabilities, groups and ids, working directory, signals,
//! execve. The bounding set is cut before the ids change, because cutting it needs CAP_SETPCAP; the working
//! directory is entered as the user, because a directory that the user may not enter must be refused.

use crate::kernel;
use crate::letgo::Left;
use crate::protocol::{self as p, Request, Status};
use crate::raw::{Outcome, call, nr};

const ETXTBSY: i32 = 26;
const AT_FDCWD: usize = -100isize as usize;

/// What came with a request, by meaning.
#[derive(Clone, Copy)]
pub struct Descriptors {
    pub stdio: [i32; 3],
    pub status: i32,
    pub confirm: i32,
    pub memfd: i32,
    pub target: i32,
    pub pass: [i32; p::PASS],
}

impl Descriptors {
    /// Nobody's yet: all zeros, so that a static of it costs no memory.
    pub const UNSET: Self =
        Self { stdio: [0; 3], status: 0, confirm: 0, memfd: 0, target: 0, pass: [0; p::PASS] };

    /// Reads the order: stdio, status, confirm?, memfd?, target? (enter), passed ones.
    pub fn of(request: &Request, fds: &[i32; p::FDS]) -> Self {
        let mut rest = fds.iter().copied().skip(4);
        let mut next = |wanted: bool| if wanted { rest.next().unwrap_or(-1) } else { -1 };
        let confirm = next(request.flags & p::F_CONFIRM != 0);
        let memfd = next(request.flags & p::F_MEMFD != 0);
        let target = next(request.namespaces != 0);
        let mut pass = [-1; p::PASS];
        for slot in pass.iter_mut().take(request.npass as usize) {
            *slot = next(true);
        }
        Self { stdio: [fds[0], fds[1], fds[2]], status: fds[3], confirm, memfd, target, pass }
    }
}

/// Tells why, and ends.
fn fail(status: i32, stage: u32, errno: i32) -> ! {
    kernel::send(status, &Status { kind: p::ST_FAILED, stage, value: errno, ..Status::default() }, &[]);
    kernel::exit(127)
}

/// Closes PID 1's own descriptors (bit n of `present` is descriptor n), in a child. They would close at execve; but
/// before that the child resolves a working directory and a program, and an image may have put `/proc/self/fd/N/..`
/// there.
pub fn forget(present: u32, which: impl Fn(i32) -> bool) {
    for fd in (p::FD_CONTROL..p::FD_FREE).filter(|fd| present >> fd & 1 == 1 && which(*fd)) {
        kernel::close(fd);
    }
}

/// Becomes the requested program. Runs in the forked child; does not return.
pub fn become_program(request: &Request, inline: &mut [u8], fds: Descriptors, left: Option<Left>) -> ! {
    let mut status = fds.status;
    let flags = request.flags;
    let or_fail = |outcome: Outcome, status: i32, stage: u32| match outcome {
        Ok(value) => value,
        Err(errno) => fail(status, stage, errno),
    };

    let len = request.blob as usize;
    let base = if flags & p::F_MEMFD != 0 {
        // SAFETY: a private mapping of the blob's length; 3 = read and write, 2 = MAP_PRIVATE.
        or_fail(unsafe { call(nr::MMAP, [0, len, 3, 2, fds.memfd as usize, 0]) }, status, p::STAGE_PROTOCOL)
    } else if len <= inline.len() {
        inline.as_mut_ptr() as usize
    } else {
        fail(status, p::STAGE_PROTOCOL, kernel::EPROTO)
    };
    // SAFETY: mapped above, or the buffer that the caller lent us for good.
    let blob = unsafe { core::slice::from_raw_parts_mut(base as *mut u8, len) };
    let (Some(candidates), Some(argv), Some(envp)) = (
        relocate(blob, request.candidates, base),
        relocate(blob, request.argv, base),
        relocate(blob, request.envp, base),
    ) else {
        fail(status, p::STAGE_PROTOCOL, kernel::EPROTO)
    };

    arrange(request, &fds, &mut status);
    if flags & p::F_SESSION == 0 {
        // SAFETY: a new session has no controlling terminal. Fails only for a group leader, which we are not.
        let _ = unsafe { call(nr::SETSID, []) };
    }
    if flags & p::F_TTY != 0 {
        const TIOCSCTTY: usize = 0x540E;
        // SAFETY: no pointer.
        or_fail(unsafe { call(nr::IOCTL, [0, TIOCSCTTY, 0]) }, status, p::STAGE_TTY);
    }
    if flags & p::F_UMASK != 0 {
        // SAFETY: no pointer.
        let _ = unsafe { call(nr::UMASK, [request.umask as usize]) };
    }
    if flags & p::F_CAPS != 0 {
        bound(request.capabilities, status);
    }
    if flags & p::F_USER != 0 {
        let groups = request.groups.as_ptr() as usize;
        // Zero groups with setgroups denied (a single mapped id) is refused by the kernel and is what we have anyway.
        // SAFETY: the list has GROUPS entries.
        let set = unsafe { call(nr::SETGROUPS, [(request.ngroups as usize).min(p::GROUPS), groups]) };
        if request.ngroups != 0 {
            or_fail(set, status, p::STAGE_USER);
        }
        let gid = request.gid as usize;
        // SAFETY: no pointer.
        or_fail(unsafe { call(nr::SETRESGID, [gid, gid, gid]) }, status, p::STAGE_USER);
        let uid = request.uid as usize;
        // SAFETY: no pointer.
        or_fail(unsafe { call(nr::SETRESUID, [uid, uid, uid]) }, status, p::STAGE_USER);
    }
    if let Some(left) = left {
        left.wait(); // no path is looked up before
    }
    if request.cwd != 0 {
        let Some(cwd) = base.checked_add(request.cwd as usize).filter(|_| (request.cwd as usize) < len)
        else {
            fail(status, p::STAGE_PROTOCOL, kernel::EPROTO)
        };
        // SAFETY: a string in the blob.
        or_fail(unsafe { call(nr::CHDIR, [cwd]) }, status, p::STAGE_CWD);
    }
    kernel::unblock_signals();

    // As execvp(3): a candidate that is not there is passed over, one that may not be run is remembered.
    let (mut errno, mut denied) = (2, false);
    let mut i = 0;
    // SAFETY: the table ends with zero and was checked by relocate.
    let candidate = |i: usize| unsafe { (candidates as *const usize).wrapping_add(i).read() };
    while let path @ 1.. = candidate(i) {
        // To ask for a file that is not there is much cheaper than to execute it.
        if candidate(i + 1) != 0 {
            // SAFETY: a string in the blob.
            let there = unsafe { call(nr::FACCESSAT, [AT_FDCWD, path, 0]) };
            if matches!(there, Err(2 | 20)) {
                i += 1;
                continue;
            }
        }
        // A program that was written a moment ago may still be open in a child of the caller's that another thread has
        // just forked and that has not executed anything yet: a matter of milliseconds.
        for _ in 0..200 {
            // SAFETY: strings and tables in the blob, each ending with zero.
            errno = unsafe { call(nr::EXECVE, [path, argv, envp]) }.err().unwrap_or(errno);
            if errno != ETXTBSY {
                break;
            }
            let _ = kernel::poll(&mut [], 1);
        }
        match errno {
            2 | 20 => {}
            13 => denied = true,
            _ => break,
        }
        i += 1;
    }
    fail(status, p::STAGE_EXEC, if denied && matches!(errno, 2 | 20) { 13 } else { errno })
}

/// Turns a table of offsets into a table of addresses, in place; its address, or nothing if it is malformed.
fn relocate(blob: &mut [u8], table: u32, base: usize) -> Option<usize> {
    let start = table as usize;
    if start % 8 != 0 || base % 8 != 0 {
        return None;
    }
    let mut at = start;
    loop {
        let slot = blob.get_mut(at..at.checked_add(8)?)?;
        let offset = usize::from_ne_bytes(slot.try_into().ok()?);
        if offset == 0 {
            return Some(base + start);
        }
        slot.copy_from_slice(&base.checked_add(offset)?.to_ne_bytes());
        at += 8;
    }
}

/// Puts every descriptor at its number. First all of them move above any number that will be used, so that no
/// move overwrites another's source.
fn arrange(request: &Request, fds: &Descriptors, status: &mut i32) {
    let count = (request.npass as usize).min(p::PASS);
    let mut above = 3;
    for number in request.pass.iter().take(count) {
        above = above.max(*number as usize + 1);
    }
    let high = |fd: i32| {
        const F_DUPFD_CLOEXEC: usize = 1030;
        // SAFETY: no pointer.
        unsafe { call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, above]) }
    };
    match high(*status) {
        Ok(fd) => *status = fd as i32,
        Err(errno) => fail(*status, p::STAGE_FDS, errno),
    }
    // The confirming descriptor must survive the moves: it closes by itself at execve.
    if fds.confirm >= 0 && (fds.confirm as usize) < above {
        let _ = high(fds.confirm);
    }
    let place = |from: i32, to: usize| {
        // SAFETY: no pointer.
        if let Err(errno) = unsafe { call(nr::DUP3, [from as usize, to, 0]) } {
            fail(*status, p::STAGE_FDS, errno);
        }
    };
    let mut moved = [-1i32; 3 + p::PASS];
    for (to, from) in moved.iter_mut().zip(fds.stdio.iter().chain(fds.pass.iter().take(count))) {
        match high(*from) {
            Ok(fd) => *to = fd as i32,
            Err(errno) => fail(*status, p::STAGE_FDS, errno),
        }
    }
    for (to, from) in moved.iter().take(3).enumerate() {
        place(*from, to);
    }
    for (number, from) in request.pass.iter().take(count).zip(moved.iter().skip(3)) {
        place(*from, *number as usize);
    }
}

/// Cuts the bounding set (capabilities(7)) to `keep` and clears the inheritable set; execve(2) computes the rest.
fn bound(keep: u64, status: i32) {
    const EINVAL: i32 = 22;
    const PR_CAPBSET_DROP: usize = 24;
    for capability in (0..64usize).filter(|capability| keep >> capability & 1 == 0) {
        match kernel::prctl(PR_CAPBSET_DROP, capability) {
            Ok(_) => {}
            Err(EINVAL) => break, // past the last one that this kernel knows
            Err(errno) => fail(status, p::STAGE_CAPS, errno),
        }
    }
}
