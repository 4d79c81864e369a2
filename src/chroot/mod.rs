//! The root file system of a container: what has to lie in it so that a program starts there.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `elf` | what an ELF file asks for: loader, libraries, search paths |
//! | `ldcache` | `/etc/ld.so.cache`, read and written |
//! | `loader` | the particulars of glibc's and musl's loaders |
//! | `resolve` | the loader's search, on the host or inside a root |
//! | `script` | the `#!` line |
//! | `collect` | the list of files that programs need, each with the reason |
//! | `place` | copying them, symlinks and all, without ever leaving the root |
//! | `rootfs` | the three together: a directory that becomes a root |
//! | `stamp` | whether a file is still the same |
//! | `minimal` | such roots kept in a store, made once |
//! | `explain` | why a program that is there does not start |
//!
//! Everything here runs in the calling process. The host is only read. What is read may be hostile (a program, a
//! library cache, a directory that somebody filled), so parsers are bounded and paths inside a root are resolved by
//! the kernel (`sys::path`).

pub mod collect;
pub mod elf;
pub mod explain;
pub mod ldcache;
pub mod loader;
pub mod minimal;
mod place;
pub mod resolve;
pub mod rootfs;
pub mod script;
pub mod stamp;
#[cfg(test)]
mod testing;
