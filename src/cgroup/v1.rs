//! Version 1: one hierarchy for each controller, and our own directory in each.
//!
//! `memory.memsw` counts memory and swap together, so it is written after (and never below) `memory.limit`.
//! A new cpuset has neither CPUs nor memory nodes and takes no process before it was given both: it gets its
//! parent's, then the asked ones, and `cgroup.clone_children` hands them down to the inner directory.
//! Planning only; runs in the calling process.

use super::discover::{Hierarchy, Host, LIMITING, Version};
use super::limits::{CPU_PERIOD_US, Limits, Resource, shares};
use super::plan::{Action, Bound, Check, Place, Plan, inherited};
use std::path::Path;

/// Adds every limit whose controller lives in version 1 and returns those that cannot be, with the reason.
pub(super) fn add(host: &Host, name: &str, limits: &Limits, plan: &mut Plan) -> Vec<(Resource, String)> {
    let mut refused = Vec::new();
    let resources = limits.resources();
    for controller in LIMITING {
        let wanted: Vec<Resource> =
            resources.iter().copied().filter(|resource| resource.controller() == controller).collect();
        let Some(hierarchy) = host.home(controller).filter(|home| home.version == Version::V1) else {
            continue;
        };
        if wanted.is_empty()
            || plan.places.iter().any(|place| place.version == Version::V1 && place.has(controller))
        {
            continue;
        }
        // Controllers that are mounted together share one directory.
        let here: Vec<Resource> = resources
            .iter()
            .copied()
            .filter(|resource| hierarchy.controllers.iter().any(|own| own == resource.controller()))
            .collect();
        match hierarchy.writable() {
            Ok(parent) => refused.extend(add_place(hierarchy, &parent, name, limits, &here, plan)),
            Err(why) => refused.extend(here.into_iter().map(|resource| (resource, why.clone()))),
        }
    }
    refused
}

/// Adds a directory in the hierarchy of `controller` with no limit in it, for its freezer or its statistics.
pub(super) fn add_bare(host: &Host, name: &str, controller: &str, plan: &mut Plan) -> Result<(), String> {
    let hierarchy = host.v1(controller).ok_or_else(|| format!("no cgroup v1 {controller} is mounted"))?;
    if plan.places.iter().any(|place| place.version == Version::V1 && place.has(controller)) {
        return Ok(());
    }
    let parent = hierarchy.writable()?;
    add_place(hierarchy, &parent, name, &Limits::default(), &[], plan);
    Ok(())
}

fn add_place(
    hierarchy: &Hierarchy,
    parent: &Path,
    name: &str,
    limits: &Limits,
    wanted: &[Resource],
    plan: &mut Plan,
) -> Vec<(Resource, String)> {
    let mut refused = Vec::new();
    let place = Place::new(Version::V1, hierarchy.controllers.clone(), parent, name);
    let outer = &place.outer;
    let write = |file: &str, value: String, check: Check, resource: Option<Resource>| Action::Write {
        file: outer.join(file),
        value,
        check,
        resource,
    };
    plan.actions.push(Action::MakeDirectory { path: outer.clone() });
    if place.has("memory") && inherited(parent, ["memory.use_hierarchy"; 2]) == "0" {
        // Before 5.11 a limit did not hold for directories below unless told to.
        plan.actions.push(write("memory.use_hierarchy", "1".to_owned(), Check::Same, None));
    }
    for resource in wanted {
        let writes = match resource {
            Resource::Memory => {
                let bytes = limits.memory.unwrap_or_default();
                vec![write("memory.limit_in_bytes", bytes.to_string(), Check::Page, Some(*resource))]
            }
            Resource::Swap => match (limits.memory, limits.swap) {
                _ if !parent.join("memory.memsw.limit_in_bytes").exists() => {
                    refused.push((*resource, "this kernel accounts no swap (no memory.memsw.*)".to_owned()));
                    continue;
                }
                (Some(memory), Some(swap)) => {
                    let both = (memory + swap).to_string();
                    vec![write("memory.memsw.limit_in_bytes", both, Check::Page, Some(*resource))]
                }
                _ => {
                    let why = "cgroup v1 limits swap only together with memory (memory.memsw.limit_in_bytes)";
                    refused.push((*resource, why.to_owned()));
                    continue;
                }
            },
            Resource::Pids => {
                let pids = limits.pids.unwrap_or_default();
                vec![write("pids.max", pids.to_string(), Check::Same, Some(*resource))]
            }
            Resource::Cpus => {
                let quota = limits.quota_us().unwrap_or_default();
                vec![
                    write("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), Check::Same, Some(*resource)),
                    write("cpu.cfs_quota_us", quota.to_string(), Check::Same, Some(*resource)),
                ]
            }
            Resource::CpuWeight => {
                let shares = shares(limits.cpu_weight.unwrap_or_default()).to_string();
                vec![write("cpu.shares", shares, Check::Same, Some(*resource))]
            }
            Resource::Cpuset => Vec::new(), // below: any directory of its hierarchy needs it
        };
        plan.actions.extend(writes);
        plan.bounds.push(Bound { resource: *resource, by: format!("cgroup v1 {}", resource.controller()) });
    }
    if place.has("cpuset") {
        let cpus = inherited(parent, ["cpuset.effective_cpus", "cpuset.cpus"]);
        let mems = inherited(parent, ["cpuset.effective_mems", "cpuset.mems"]);
        plan.actions.push(write("cpuset.cpus", cpus, Check::Set, None));
        plan.actions.push(write("cpuset.mems", mems, Check::Set, None));
        if let Some(cpus) = &limits.cpuset {
            plan.actions.push(write("cpuset.cpus", cpus.clone(), Check::Set, Some(Resource::Cpuset)));
        }
        plan.actions.push(write("cgroup.clone_children", "1".to_owned(), Check::Same, None));
    }
    plan.actions.push(Action::MakeDirectory { path: place.inner.clone() });
    plan.places.push(place);
    refused
}
