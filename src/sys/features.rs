//! Questions to the kernel about itself that change nothing. Runs in the calling process.

use nix::errno::Errno;

/// The version of Landlock's interface (landlock_create_ruleset(2)): `ENOSYS` where it is not built in, `EOPNOTSUPP`
/// where it is not turned on.
pub fn landlock() -> nix::Result<u32> {
    const CREATE_RULESET_VERSION: u32 = 1;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel takes no attributes and makes no ruleset.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0usize, CREATE_RULESET_VERSION) };
    Errno::result(version).map(|version| version as u32)
}

/// Whether seccomp(2) filters may return an errno.
pub fn seccomp() -> nix::Result<()> {
    const GET_ACTION_AVAIL: u32 = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one u32, which outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0u32, &raw const action) })
        .map(drop)
}
