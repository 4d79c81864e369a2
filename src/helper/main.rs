//! The static program that the extension carries: no libc, no allocation, a few kilobytes. One file with three
//! names, chosen by `argv[0]`:
//!
//! | name | runs | does |
//! | --- | --- | --- |
//! | `r2d2-init` | as PID 1 of every container | reaps, forwards signals, watches its owner, carries out every exec (`init`) |
//! | `r2d2-enter` | on the host, once | joins another process's namespaces and runs a program there (`enter`) |
//! | `r2d2-reaper` | on the host, beside a container that leaves something on the host (cgroups, an upper layer on disk) | removes it when the owner can no longer do it (`reaper`) |
//!
//! All are executed from a sealed memfd, so neither the container nor anybody else can overwrite them, and none
//! of them shares memory with the interpreter that started it. They start with every signal blocked.
//! `build.rs` compiles this file by itself (not as part of the library).
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::panic::PanicInfo;

mod beside;
mod enter;
mod exec;
mod files;
mod init;
mod kernel;
mod letgo;
mod protocol;
#[allow(dead_code, reason = "the library uses the rest")]
#[path = "../sys/raw.rs"]
mod raw;
mod reaper;
mod remove;
mod tree;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    kernel::exit(134)
}

// The kernel starts us with argc, argv[], NULL, envp[]… on the stack and nothing else.
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {entry}", entry = sym entry);

/// The first argument's last byte tells the programs apart (`r2d2-init`, `r2d2-enter`, `r2d2-reaper`); the second,
/// if any, is a mask of the descriptors that are present, one character each.
extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: the kernel put argc there.
    let argc = unsafe { stack.read() };
    let argument = |i: usize| {
        if i >= argc {
            return &[][..];
        }
        // SAFETY: argv has argc entries after argc.
        let pointer = unsafe { stack.wrapping_add(1 + i).read() } as *const u8;
        // SAFETY: every entry is a string that ends with a zero byte.
        unsafe { kernel::bytes(pointer) }
    };
    match argument(0) {
        b"r2d2-init" => init::main(argument(1)),
        b"r2d2-enter" => enter::main(),
        b"r2d2-reaper" => reaper::main(),
        _ => kernel::exit(125),
    }
}
