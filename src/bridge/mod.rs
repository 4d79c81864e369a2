//! A container's network by the kernel itself: for root, who may change the host's interfaces, routes and firewall.
//!
//! ```text
//!   container                           host
//!   eth0 10.210.7.9 ──── veth ──── r2d2-0ad20709 10.210.0.1 ──► routes ──► nft: masquerade, DNAT ──► world
//! ```
//!
//! Everything is made so that the kernel removes it by itself, whoever is killed:
//!
//! - The veth pair ends with the container's network namespace, and with it its addresses, its sysctls (also
//!   `route_localnet`) and its routes.
//! - The firewall's table belongs to a netlink socket of the keeper (`NFT_TABLE_F_OWNER`, Linux 5.12), a process of the
//!   container's own (`src/helper/engine/bridging.rs`): it is gone when that ends, and nobody else's `flush ruleset`
//!   touches it before. The keeper has a shadow (`guard`) that cuts the wire if somebody kills it.
//!
//! There is no bridge device. Whoever was last would have to remove it, and nobody would when he is killed. Instead
//! each container is routed: one address (`/32`), one route to it by its own veth pair, the same router for all. So
//! containers reach each other by address through the host's routing, where their table can look: what they send must
//! bear their own address, and none can answer ARP in another's name or send it router advertisements (CVE-2020-10749,
//! CVE-2020-13401). What is lost is broadcast and multicast between containers.
//!
//! A table for each container has a price: what is forwarded passes the chains of all of them, one comparison each
//! (measured: fifty more containers make a round trip of 37 µs between two of them one of 63 µs).
//!
//! Addresses are handed out by the kernel's own refusal: the interface is named after the address, and the route to it
//! is made with `NLM_F_EXCL`; who gets `EEXIST` tries the next. No file, no lock, no daemon, and nothing to give back.
//!
//! | file | what it does |
//! | --- | --- |
//! | `message` | netlink messages: written, read |
//! | `link` | rtnetlink(7): interfaces, addresses, routes |
//! | `nft` | nf_tables: tables, chains, rules and their expressions |
//! | `rules` | what the table of one container holds |
//! | `conntrack` | flows of UDP that are to be forgotten |
//! | `addresses` | subnets that collide with nothing, and the addresses in them |
//! | `probe` | whether it can be had at all; in the calling process |
//!
//! All but `probe` makes no system call and uses the standard library alone: the same files are compiled into the
//! extension (for tests) and into the keeper's program.

pub mod addresses;
pub mod conntrack;
pub mod link;
pub mod message;
pub mod nft;
#[cfg(not(r2d2_engine))]
pub mod probe;
pub mod rules;
