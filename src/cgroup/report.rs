//! The facts for `doctor()`: which cgroups this host has and what this user can do with them.
//!
//! Nothing is created to find out. Runs in the calling process.

use super::discover::{Host, LIMITING, Layout, Version};
use super::limits::{Limits, Resource};
use super::rlimits::{self, Ids};
use super::v2;
use std::path::PathBuf;

/// What this process can do with cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which versions are mounted.
    pub layout: Layout,
    /// memory, pids, cpu, cpuset, and `freezer` for `pause()`.
    pub controllers: Vec<Controller>,
    /// Why `RLIMIT_NPROC` cannot stand in for the pids controller in a single-id user namespace; none if it can.
    pub rlimit_pids: Option<String>,
}

/// One controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its name; `freezer` is a controller in version 1 only, version 2 has it built in.
    pub name: &'static str,
    /// Where it lives.
    pub version: Option<Version>,
    /// The directory below which the container's would be made, or why there is none.
    pub parent: Result<PathBuf, String>,
}

/// Finds out.
pub fn report() -> Report {
    let host = Host::read();
    let mut controllers: Vec<Controller> = LIMITING.into_iter().map(|name| controller(&host, name)).collect();
    controllers.push(freezer(&host));
    let pids = Limits { pids: Some(1), ..Limits::default() };
    let rlimit_pids = rlimits::exact(Resource::Pids, &pids, Ids::Single).err();
    Report { layout: host.layout(), controllers, rlimit_pids }
}

fn controller(host: &Host, name: &'static str) -> Controller {
    let home = host.home(name);
    let parent = match home {
        None => Err(format!("no {name} cgroup controller is to be had here")),
        Some(home) if home.version == Version::V2 => v2::usable(home, name),
        Some(home) => home.writable(),
    };
    Controller { name, version: home.map(|home| home.version), parent }
}

fn freezer(host: &Host) -> Controller {
    let name = "freezer";
    let v2 = host.v2().ok_or_else(|| "no cgroup v2 is mounted".to_owned()).and_then(v2::bare_parent);
    let why = match v2 {
        Ok(parent) => return Controller { name, version: Some(Version::V2), parent: Ok(parent) },
        Err(why) => why,
    };
    let v1 = host.v1(name).ok_or_else(|| "no cgroup v1 freezer is mounted".to_owned());
    let parent = v1.and_then(super::discover::Hierarchy::writable).map_err(|other| format!("{why}; {other}"));
    Controller { name, version: parent.is_ok().then_some(Version::V1), parent }
}
