//! A container: spec → plan → steps → process.
//!
//! | file | holds |
//! | --- | --- |
//! | `spec` | what was asked for, resolved to plain data |
//! | `plan` | spec → list of steps |
//! | `step` | the steps themselves |
//! | `launch` | the caller's side of a start: clone, id maps, hand-over, failure |
//! | `child` | the interpreter of steps, between clone and execve |
//! | `program` | the embedded static program (`src/helper`) as a sealed memfd |
//! | `request` | what is asked of PID 1: run a program, signal it, hand out the root |
//! | `process` | a program that runs in a container: wait, signal, its end |
//! | `enter` | a program in another process's namespaces |
//! | `explain` | a step in words: its system calls |
//! | `shell` | a step as commands of sh(1) |
//! | `script` | the plan as a script for sh(1) |
//! | `probe` | what this host allows, tried out in children that do nothing else |
//! | `reaper` | the survivor that removes cgroups if the caller is killed |
//! | `handle` | a running container: exec, root, kill, end |
//! | `detached` | one that outlives its starter, and finding it again |
//! | `terminal` | a terminal of the container's |
//! | `parts` | what its root directory was put together from |
//! | `files` | its files from outside: `agent` (who acts), `tree` (single operations), `copy` and `content` (in and out) |
//!
//! Everything here runs in the calling process, except `child`.

mod agent;
mod child;
mod content;
mod copy;
mod detached;
mod enter;
mod explain;
mod files;
mod handle;
mod launch;
mod parts;
mod plan;
pub mod probe;
mod process;
mod program;
#[allow(dead_code, unreachable_pub, reason = "shared with the embedded programs, which use all of it")]
#[path = "../helper/protocol.rs"]
mod protocol;
mod reaper;
mod request;
mod script;
mod shell;
mod spec;
mod step;
mod terminal;
mod tree;

pub use copy::Options as CopyOptions;
pub use detached::{Identity, find};
pub use enter::enter;
pub use files::Files;
pub use handle::{Container, First, Member, Reach, submit};
pub use launch::{Spawned, Trace, spawn};
pub use parts::{Part, PartKind, parts};
pub use plan::Plan;
pub use process::{Exit, Failure, Outcome, Process};
pub use request::Command;
pub use script::Last;
pub use shell::COMMENTS;
pub use spec::{Mount, MountKind, Proc, Root, Spec, Upper};
pub use step::{Actor, Op, Place, Probe, Setting, Step};
pub use terminal::is_program;
pub use tree::{Entry, Tree};

#[cfg(test)]
mod tests;
