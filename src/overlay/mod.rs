//! Layers: what `mount -t overlay` needs to be told, which parts of a machine can be a lower layer, and what an
//! upper layer says has changed.
//!
//! Nothing in this room mounts: the interpreter of steps does. These modules plan (pure data out) and read.
//!
//! | module | question it answers |
//! | --- | --- |
//! | `options` | which fsconfig(2) calls, or which mount(8) line, make this overlay |
//! | `mount_line` | how the same is written for sh(1) |
//! | `mountinfo` | what is mounted where (a parser) |
//! | `layout` | how the machine's own tree becomes a container's root |
//! | `filesystems` | what cannot be a layer of it |
//! | `layers` | what a stack of lower layers shows under a name |
//! | `compare` | do two files differ, and in what |
//! | `diff` | what an upper layer changed |
//! | `frozen` | what snapshots show above the host image |

mod compare;
pub mod diff;
mod filesystems;
pub mod frozen;
mod layers;
pub mod layout;
mod mount_line;
pub mod mountinfo;
pub mod options;
