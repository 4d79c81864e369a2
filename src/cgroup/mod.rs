//! Limits, statistics and pausing of a container through cgroup v2, v1 or a mixture of both.
//!
//! [`plan`] decides what will be done and changes nothing; [`Plan::create`] makes the directories below our own
//! cgroup, writes the limits and reads every one back; [`Cgroup::join`] moves the waiting child in; at the end
//! [`Cgroup::remove`] empties and removes what was made. A limit that would not bind is an error unless best effort
//! is asked for. Where no cgroup can be written, `rlimits` offers what the kernel really enforces.
//! Everything here runs in the calling process.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `discover` | which hierarchies there are, our place in them, what is writable |
//! | `limits` | what may be asked for |
//! | `plan`, `v1`, `v2`, `rlimits` | where each limit goes, as data |
//! | `live` | create, join, kill, remove |
//! | `freezer` | freeze, thaw, adopt a running container |
//! | `stats`, `report` | figures; facts for `doctor()` |

pub mod discover;
mod files;
mod freezer;
mod limits;
mod live;
mod plan;
mod report;
mod rlimits;
mod stats;
mod v1;
mod v2;

pub use limits::{Limits, Resource};
pub use live::{Cgroup, PATIENCE};
pub use plan::{Action, Bound, Check, Place, Plan, Unbound, plan, plan_freezer};
pub use report::{Controller, Report, report};
pub use rlimits::{Ids, Rlimit, RlimitResource};
pub use stats::{Source, Sources, Stats};

#[cfg(test)]
mod freezer_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod plan_tests;
