//! What the engine gives up before it handles its first packet.
//!
//! No capabilities (a namespace's owner has what it needs there by owning it), not dumpable (nobody attaches a
//! debugger), and only the system calls of moving packets. There is no opening of files among them, no exec, no
//! fork, no ptrace, no memory that can be executed, and only Internet sockets. A forbidden call ends the process:
//! the interface vanishes and the owner is told.

use crate::control::Failure;
use crate::sys::{self, nr};

/// The calls that are allowed whatever their arguments.
const ALLOWED: &[usize] = &[
    nr::READ,
    nr::WRITE,
    nr::CLOSE,
    nr::POLL,
    nr::CONNECT,
    nr::SENDTO,
    nr::RECVFROM,
    nr::SENDMSG,
    nr::RECVMSG,
    nr::RECVMMSG,
    nr::SHUTDOWN,
    nr::BIND,
    nr::SETSOCKOPT,
    nr::GETSOCKOPT,
    nr::ACCEPT4,
    nr::EPOLL_WAIT,
    nr::EPOLL_CTL,
    nr::EPOLL_PWAIT2,
    nr::EXIT_GROUP,
    nr::SPLICE, // published ports: from socket to socket by pipes that came from `within`
    nr::WAIT4,  // of a keeper's guard, and of the child that `within` is about
    11,         // munmap
    12,         // brk
    25,         // mremap
    28,         // madvise
    60,         // exit
    15,         // rt_sigreturn
    228,        // clock_gettime, where the vDSO cannot
    202,        // futex
    318,        // getrandom: the hash keys of tables
];

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
const KILL: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`: number, architecture, low words of the arguments.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARG0: u32 = 16;
const ARG2: u32 = 32;

/// One instruction, as the kernel has it: code, jumps, constant.
fn op(code: u16, yes: u8, no: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(yes) << 16 | u64::from(no) << 24 | u64::from(k) << 32
}

/// The filter.
fn program(more: &[usize]) -> Vec<u64> {
    let mut p =
        vec![op(LOAD, 0, 0, ARCH), op(EQUAL, 1, 0, X86_64), op(RETURN, 0, 0, KILL), op(LOAD, 0, 0, NUMBER)];
    for number in ALLOWED.iter().chain(more) {
        p.push(op(EQUAL, 0, 1, *number as u32));
        p.push(op(RETURN, 0, 0, ALLOW));
    }
    // socket: Internet only.
    p.push(op(EQUAL, 0, 5, nr::SOCKET as u32));
    p.push(op(LOAD, 0, 0, ARG0));
    p.push(op(EQUAL, 1, 0, 2));
    p.push(op(EQUAL, 0, 1, 10));
    p.push(op(RETURN, 0, 0, ALLOW));
    p.push(op(RETURN, 0, 0, KILL));
    // mmap: no memory that can be executed.
    p.push(op(EQUAL, 0, 4, 9));
    p.push(op(LOAD, 0, 0, ARG2));
    p.push(op(ANY_BIT, 1, 0, 4));
    p.push(op(RETURN, 0, 0, ALLOW));
    p.push(op(RETURN, 0, 0, KILL));
    p.push(op(RETURN, 0, 0, KILL));
    p
}

/// Gives everything up.
pub fn enter() -> Result<(), Failure> {
    enter_with(0)
}

/// Gives everything up but these capabilities, a bit each.
pub fn enter_with(capabilities: u32) -> Result<(), Failure> {
    enter_allowing(capabilities, &[])
}

/// The same with these calls besides.
pub fn enter_allowing(capabilities: u32, more: &[usize]) -> Result<(), Failure> {
    let failed = |what| move |errno| Failure::new("enter the sandbox", what, errno);
    sys::keep_capabilities(capabilities);
    sys::prctl(4, 0).map_err(failed("prctl PR_SET_DUMPABLE"))?;
    sys::prctl(38, 1).map_err(failed("prctl PR_SET_NO_NEW_PRIVS"))?;
    match sys::seccomp(&program(more)) {
        // A kernel without seccomp: less protected, but the namespace is no closer to the host's files.
        Ok(_) | Err(38) => Ok(()),
        Err(errno) => Err(failed("seccomp")(errno)),
    }
}
