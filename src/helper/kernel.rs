//! The few system calls of the embedded programs, as safe functions where they can be, and the memory functions
//! that the compiler expects from a libc.

use crate::protocol::{FDS, Status};
use crate::raw::{Outcome, call, nr};

pub const EINTR: i32 = 4;
pub const EAGAIN: i32 = 11;
pub const EPROTO: i32 = 71;
pub const SIGKILL: i32 = 9;
pub const SIGUSR1: i32 = 10;
pub const SIGCHLD: i32 = 17;
pub const POLLIN: i16 = 1;
pub const CLOEXEC: usize = 0o2_000_000;

/// struct pollfd, poll(2).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

#[repr(C)]
struct IoVec {
    base: usize,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: usize,
    namelen: u32,
    iov: usize,
    iovlen: usize,
    control: usize,
    controllen: usize,
    flags: i32,
}

/// One SCM_RIGHTS control message with room for every descriptor of a request (cmsg(3)).
#[repr(C, align(8))]
struct Rights {
    len: usize,
    level: i32,
    kind: i32,
    fds: [i32; FDS + 1],
}
const RIGHTS_HEAD: usize = 16;

/// struct rusage, as far as it is read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub utime: [u64; 2],
    pub stime: [u64; 2],
    pub maxrss: u64,
    pub rest: [u64; 13],
}

pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        let _ = unsafe { call(nr::EXIT_GROUP, [code as usize]) };
    }
}

/// The bytes of a C string.
///
/// # Safety
/// `pointer` must point to a string that ends with a zero byte and lives as long as the program.
pub unsafe fn bytes(pointer: *const u8) -> &'static [u8] {
    let mut len = 0;
    loop {
        // Volatile, or the compiler makes this strlen(3), which we do not have.
        // SAFETY: not past the zero byte.
        if unsafe { pointer.wrapping_add(len).read_volatile() } == 0 {
            break;
        }
        len += 1;
    }
    // SAFETY: those bytes were just read.
    unsafe { core::slice::from_raw_parts(pointer, len) }
}

pub fn close(fd: i32) {
    // SAFETY: closes a descriptor; numbers are tracked by the caller.
    let _ = unsafe { call(nr::CLOSE, [fd as usize]) };
}

pub fn poll(fds: &mut [PollFd], timeout_ms: i64) -> Outcome {
    let time = [timeout_ms / 1000, timeout_ms % 1000 * 1_000_000];
    let time = if timeout_ms < 0 { 0 } else { &raw const time as usize };
    // SAFETY: the array and the timespec live across the call.
    unsafe { call(nr::PPOLL, [fds.as_mut_ptr() as usize, fds.len(), time, 0, 8]) }
}

pub fn kill(pid: i32, signal: i32) -> Outcome {
    // SAFETY: no memory involved.
    unsafe { call(nr::KILL, [pid as usize, signal as usize]) }
}

pub fn prctl(option: usize, a: usize) -> Outcome {
    // SAFETY: only options without pointers, or with pointers to static strings, are used.
    unsafe { call(nr::PRCTL, [option, a, 0, 0, 0]) }
}

/// The id of the mount that a path leads to (statx(2)); 0 if there is none to be told.
pub fn mount_id(path: &core::ffi::CStr) -> u64 {
    const AT_FDCWD: usize = -100isize as usize;
    const STATX_MNT_ID: usize = 0x1000;
    let mut statx = [0u64; 32];
    let words = statx.as_mut_ptr() as usize;
    // SAFETY: 256 bytes are what statx(2) writes.
    let _ = unsafe { call(nr::STATX, [AT_FDCWD, path.as_ptr() as usize, 0, STATX_MNT_ID, words]) };
    statx[18] // stx_mnt_id
}

/// No program that is executed from here on has it (capabilities(7), the bounding set).
pub fn bound_without(capability: usize) -> Outcome {
    const PR_CAPBSET_DROP: usize = 24;
    prctl(PR_CAPBSET_DROP, capability)
}

/// Nor has this process.
pub fn give_up(capability: usize) -> Outcome {
    const VERSION_3: u32 = 0x2008_0522;
    bound_without(capability)?;
    let header = [VERSION_3, 0];
    let mut sets = [[0u32; 3]; 2]; // effective, permitted, inheritable: of the first 32 capabilities, and of the others
    let sets_at = sets.as_mut_ptr() as usize;
    // SAFETY: a header and two structs of three words, capget(2).
    unsafe { call(nr::CAPGET, [header.as_ptr() as usize, sets_at]) }?;
    for set in &mut sets[capability / 32] {
        *set &= !(1 << (capability % 32));
    }
    // SAFETY: likewise.
    unsafe { call(nr::CAPSET, [header.as_ptr() as usize, sets_at]) }
}

/// A signalfd for every signal; all of them are blocked already.
pub fn signalfd() -> Outcome {
    let mask = u64::MAX;
    // SAFETY: the mask lives across the call.
    unsafe { call(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, CLOEXEC | 0o4000]) }
}

/// The number of the next signal in a signalfd.
pub fn next_signal(fd: i32) -> Option<i32> {
    let mut info = [0u32; 32];
    // SAFETY: 128 bytes are what signalfd(2) writes.
    let read = unsafe { call(nr::READ, [fd as usize, &raw mut info as usize, 128]) };
    (read == Ok(128)).then_some(info[0] as i32)
}

/// Unblocks all signals and gives each its default action, as a new program expects: Python ignores SIGPIPE,
/// nohup(1) SIGHUP, and an ignored signal stays ignored across execve(2).
pub fn default_signals() {
    for signal in 1..=64 {
        default_signal(signal); // SIGKILL and SIGSTOP are refused, which is fine
    }
}

/// Gives one signal its default action.
pub fn default_signal(signal: i32) {
    let action = [0usize; 4];
    // SAFETY: a zeroed sigaction is SIG_DFL.
    let _ = unsafe { call(nr::RT_SIGACTION, [signal as usize, &raw const action as usize, 0, 8]) };
}

pub fn unblock_signals() {
    let none = 0u64;
    // SAFETY: SIG_SETMASK with an empty set.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [2, &raw const none as usize, 0, 8]) };
}

/// fork(2), optionally with a pidfd of the child.
pub fn fork(pidfd: Option<&mut i32>) -> Outcome {
    const CLONE_PIDFD: usize = 0x1000;
    let (flags, pointer) = pidfd.map_or((0, 0), |fd| (CLONE_PIDFD, core::ptr::from_mut(fd) as usize));
    // SAFETY: without CLONE_VM the child has a copy of everything; the pointer is where the pidfd is stored.
    unsafe { call(nr::CLONE, [flags | SIGCHLD as usize, 0, pointer, 0, 0]) }
}

/// wait4(2) for any child, without waiting.
pub fn reap(usage: &mut Usage, flags: usize) -> Result<(i32, i32), i32> {
    let mut status = 0i32;
    let usage = core::ptr::from_mut(usage) as usize;
    // SAFETY: both outputs live across the call.
    let pid = unsafe { call(nr::WAIT4, [usize::MAX, &raw mut status as usize, flags, usage]) }?;
    Ok((pid as i32, status))
}

/// recvmsg(2): the length of the message; descriptors land in `fds`, the rest of `fds` stays -1.
pub fn receive(socket: i32, buffer: &mut [u8], fds: &mut [i32; FDS]) -> Outcome {
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; FDS + 1] };
    let iov = IoVec { base: buffer.as_mut_ptr() as usize, len: buffer.len() };
    let mut message = MsgHdr {
        name: 0,
        namelen: 0,
        iov: &raw const iov as usize,
        iovlen: 1,
        control: &raw mut rights as usize,
        controllen: RIGHTS_HEAD + FDS * 4,
        flags: 0,
    };
    // SAFETY: header, vector and buffers live across the call and have the lengths they claim.
    let len = unsafe { call(nr::RECVMSG, [socket as usize, &raw mut message as usize, MSG_CMSG_CLOEXEC]) }?;
    fds.fill(-1);
    if message.controllen >= RIGHTS_HEAD && rights.level == 1 && rights.kind == 1 {
        let count = (rights.len.saturating_sub(RIGHTS_HEAD) / 4).min(FDS);
        for (to, from) in fds.iter_mut().zip(&rights.fds).take(count) {
            *to = *from;
        }
    }
    Ok(len)
}

/// Sends a status, with descriptors. Never blocks, never raises SIGPIPE: a peer that has gone is not our trouble.
pub fn send(socket: i32, status: &Status, fds: &[i32]) {
    const MSG_NOSIGNAL_DONTWAIT: usize = 0x4040;
    let mut rights = Rights { len: 0, level: 1, kind: 1, fds: [-1; FDS + 1] };
    let count = fds.len().min(FDS);
    for (to, from) in rights.fds.iter_mut().zip(fds).take(count) {
        *to = *from;
    }
    rights.len = RIGHTS_HEAD + count * 4;
    let iov = IoVec { base: core::ptr::from_ref(status) as usize, len: size_of::<Status>() };
    let message = MsgHdr {
        name: 0,
        namelen: 0,
        iov: &raw const iov as usize,
        iovlen: 1,
        control: if count == 0 { 0 } else { &raw const rights as usize },
        controllen: if count == 0 { 0 } else { RIGHTS_HEAD + (count * 4).next_multiple_of(8) },
        flags: 0,
    };
    // SAFETY: all of it lives across the call.
    let _ =
        unsafe { call(nr::SENDMSG, [socket as usize, &raw const message as usize, MSG_NOSIGNAL_DONTWAIT]) };
}

/// The compiler calls these by name.
mod memory {
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the contract of memcpy(3); a string instruction, so that the compiler cannot turn it into itself.
        unsafe {
            core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        // SAFETY: the contract of memset(3).
        unsafe {
            core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        let mut i = 0;
        while i < len {
            // SAFETY: the contract of memcmp(3).
            let left = unsafe { a.wrapping_add(i).read_volatile() };
            // SAFETY: likewise.
            let right = unsafe { b.wrapping_add(i).read_volatile() };
            if left != right {
                return i32::from(left) - i32::from(right);
            }
            i += 1;
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the same contract.
        unsafe { memcmp(a, b, len) }
    }
}
