//! Thin, safe wrappers of the system calls that `nix` lacks: the only room of the library, besides the
//! after-clone child and the helper programs, in which `unsafe` is allowed. One system call a block, each with
//! the reason why it is sound. Runs in the calling process unless a wrapper says otherwise.
#![allow(unsafe_code, reason = "this is the room for it")]

pub mod path;

pub mod clone;
pub mod dirents;
pub mod features;
pub mod filecall;
pub mod fork;
pub mod memfd;
pub mod pidfd;
pub mod raw;
pub mod terminal;
pub mod xattr;

/// The bytes of a plain struct of a wire protocol.
///
/// Only for `repr(C)` structs without padding; both protocols of `src/helper/protocol.rs` are laid out so.
pub fn plain_bytes<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: a reference is readable for the size of its type, and there is no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The struct in a buffer, if it is there whole. Any bit pattern must be a valid `T`.
pub fn plain_read<T: Copy + Default>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough; alignment does not matter here; every bit pattern is valid for the protocol's structs.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Takes ownership of a descriptor that the kernel has just made for us (SCM_RIGHTS).
pub fn adopt(fd: i32) -> std::os::fd::OwnedFd {
    // SAFETY: the caller received it a moment ago and hands it over; nobody else knows its number.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

/// A descriptor that somebody else owns, for the length of a call. A wrong number is the kernel's `EBADF`.
pub fn borrow(fd: &i32) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: never closed here; the borrow ends with the caller's variable.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) }
}
