//! System calls without libc: for the child between clone and exec, which shares the caller's memory and thereby
//! its `errno`, and for the embedded programs, which have no libc at all. Shared by both through `#[path]`, so it
//! uses `core` alone. Never allocates, never panics, never touches thread-local storage.

/// Numbers of the system calls used here (x86-64; syscalls(2)).
#[allow(missing_docs, reason = "each is the name of a man page")]
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const SCHED_YIELD: usize = 24;
    pub const SOCKET: usize = 41;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const CHDIR: usize = 80;
    pub const FCHDIR: usize = 81;
    pub const RMDIR: usize = 84;
    pub const CHROOT: usize = 161;
    pub const UMASK: usize = 95;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const CAPGET: usize = 125;
    pub const CAPSET: usize = 126;
    pub const PIVOT_ROOT: usize = 155;
    pub const PRCTL: usize = 157;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const SETHOSTNAME: usize = 170;
    pub const SETXATTR: usize = 188;
    pub const FSTATFS: usize = 138;
    pub const FUTEX: usize = 202;
    pub const SCHED_SETAFFINITY: usize = 203;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const GETDENTS64: usize = 217;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const KEYCTL: usize = 250;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const MKNODAT: usize = 259;
    pub const FCHOWNAT: usize = 260;
    pub const UNLINKAT: usize = 263;
    pub const RENAMEAT: usize = 264;
    pub const SYMLINKAT: usize = 266;
    pub const FCHMODAT: usize = 268;
    pub const FACCESSAT: usize = 269;
    pub const PPOLL: usize = 271;
    pub const UNSHARE: usize = 272;
    pub const ACCEPT4: usize = 288;
    pub const SIGNALFD4: usize = 289;
    pub const DUP3: usize = 292;
    pub const PIPE2: usize = 293;
    pub const PRLIMIT64: usize = 302;
    pub const SETNS: usize = 308;
    pub const GETCPU: usize = 309;
    pub const EXECVEAT: usize = 322;
    pub const STATX: usize = 332;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
    pub const OPEN_TREE: usize = 428;
    pub const MOVE_MOUNT: usize = 429;
    pub const FSOPEN: usize = 430;
    pub const FSCONFIG: usize = 431;
    pub const FSMOUNT: usize = 432;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437;
    pub const MOUNT_SETATTR: usize = 442;
}

/// One system call: the kernel's own result, negative errno on failure.
///
/// # Safety
/// The arguments must be what the system call expects; pointers must be valid for what the kernel does with them.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(n: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the instruction clobbers rcx and r11 only; what the kernel does with memory is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") n as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    result
}

/// struct clone_args, clone(2).
#[allow(missing_docs, reason = "the names are clone(2)'s")]
#[derive(Default)]
#[repr(C)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
}

/// A thread of this process, or a process that has its memory, by clone3(2): `entry(argument)` on a stack of its own,
/// without thread-local storage.
///
/// # Safety
/// `CLONE_VM` must be among the flags. The stack must be writable, unused, end at a multiple of 16, and stay until
/// it has ended or executed a program; so must what `argument` points to. `entry` must use neither libc nor thread-local storage.
#[cfg(target_arch = "x86_64")]
pub unsafe fn clone_on_stack(how: &CloneArgs, entry: extern "C" fn(usize) -> !, argument: usize) -> Outcome {
    let result: isize;
    // SAFETY: the new one goes on behind the instruction on its own stack, calls, and never comes back; the kernel
    // keeps all registers but rax, rcx and r11 in both.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE3 as isize => result,
            in("rdi") core::ptr::from_ref(how), in("rsi") size_of::<CloneArgs>(),
            in("r8") argument, in("r9") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("r2d2 knows the system calls of x86-64 only; add this machine's to src/sys/raw.rs");

/// The result of a system call: its value or its errno.
pub type Outcome = Result<usize, i32>;

/// A system call with up to six arguments; missing ones are zero.
///
/// # Safety
/// As [`syscall`].
#[inline]
pub unsafe fn call<const N: usize>(n: usize, args: [usize; N]) -> Outcome {
    let mut all = [0; 6];
    let mut i = 0;
    while i < N && i < 6 {
        all[i] = args[i];
        i += 1;
    }
    // SAFETY: passed on from the caller.
    let result = unsafe { syscall(n, all) };
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}
