//! The user-mode network: a network namespace reaches the world through ordinary sockets of its owner.
//!
//! | layer | files | what it does |
//! | --- | --- | --- |
//! | wire | `wire/` | reads and writes headers; no state |
//! | device | `device/` | where frames come from and go to: memory, trace, fault |
//! | host | `host` | the world's sockets, real or simulated |
//! | flows | `flow`, `core`, `policy` | the table of flows; what all protocols share; who may be reached |
//! | protocols | `tcp/`, `udp`, `icmp`, `neighbor`, `dhcp`, `dns`, `fragment`, `forward` | one each |
//! | published ports | `splice` | TCP from kernel to kernel, around the interface |
//! | engine | `engine`, `packet` | frames, events and time in; the right protocol called |
//! | networks | `fabric`, `switch`, `link`, `segment`, `capture` | many namespaces joined: who gets a frame, and in which state; what is written down of it |
//! | files | `pcapng` | what captures look like |
//!
//! ```text
//!   guest's kernel                   engine (a process of its own)                     host's kernel
//!   TCP, UDP, ICMP ── tap ──► device ──► wire ──► flow ──► tcp │ udp │ icmp ──► host ──► sockets ──► world
//! ```
//!
//! `attach` is the other side: the owner's handle of a running engine.
//!
//! Nothing else asks for the time, opens a file, or knows which kernel it runs on: see `engine`. Everything in
//! this room but `attach` uses the standard library alone, for the same files are compiled into the extension (for tests) and
//! into the static program in which the engine runs.

#[cfg(not(r2d2_engine))]
pub mod attach;
pub mod capture;
pub mod config;
pub mod core;
pub mod device;
pub mod dhcp;
pub mod dns;
pub mod engine;
pub mod fabric;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod host;
pub mod icmp;
pub mod link;
pub mod neighbor;
mod packet;
pub mod pcapng;
pub mod policy;
pub mod segment;
pub mod splice;
pub mod stats;
pub mod switch;
pub mod tcp;
pub mod time;
pub mod udp;
pub mod wire;

#[cfg(test)]
mod tests;
