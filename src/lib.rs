//! r2d2-core: Linux containers as a list of steps.
//!
//! This file is the contents page. Imports run downwards only:
//!
//! | floor | rooms | what they know |
//! | --- | --- | --- |
//! | bindings | `bindings` | `PyO3`; converts and delegates, no logic |
//! | container | `container` | spec, plan, the interpreter of steps, exec, life and death |
//! | primitives | `namespace` `overlay` `chroot` `slirp` `bridge` `cgroup` `security` | one mechanism each; none imports another |
//! | sys | `sys` | thin safe wrappers of system calls; the room where `unsafe` lives |
//! | error | `error` `shell` | facts of a failure; words for sh(1) |
//!
//! Beside them stands `src/helper`: the static programs that the extension carries (PID 1 of every container
//! among them), compiled by `src/helper/build.rs` and embedded here.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "`.clippy.toml` lists what the after-clone child may not do; src/container/child.rs alone denies it"
)]

pub mod bridge;
pub mod cgroup;
pub mod chroot;
pub mod container;
pub mod error;
pub mod namespace;
pub mod overlay;
pub mod security;
pub mod shell;
pub mod slirp;
pub mod sys;

#[cfg(feature = "python")]
mod bindings;
