//! Version 2: one hierarchy, and a controller must be on in the parent's `cgroup.subtree_control`.
//!
//! A cgroup other than the root must not both hold processes and have controllers on for its children ("no
//! internal processes", cgroups(7)), and our own cgroup holds at least this process. So a container with limits
//! becomes a sibling of our cgroup, or of the nearest cgroup above it that this process may write and that allows
//! it; only in the hierarchy's real root it is a child. No process other than the container's is ever moved. A
//! cgroup without limits (to freeze, kill and count CPU time) can be our child. Planning only; runs in the
//! calling process.

use super::discover::{Hierarchy, Host, LIMITING, Version, may_write, refusal};
use super::files;
use super::limits::{CPU_PERIOD_US, Limits, Resource};
use super::plan::{Action, Bound, Check, Place, Plan};
use std::path::{Path, PathBuf};

/// A directory below which the container can be put, and what it can enable there.
struct Candidate {
    parent: PathBuf,
    /// Of the wanted controllers: off yet, but this process may turn them on.
    enable: Vec<&'static str>,
    /// Of the wanted controllers: on, or can be turned on.
    usable: Vec<&'static str>,
    /// Why the rest is not.
    why: String,
}

/// Adds every limit whose controller lives in version 2 and returns those that cannot be, with the reason.
pub(super) fn add(host: &Host, name: &str, limits: &Limits, plan: &mut Plan) -> Vec<(Resource, String)> {
    let mut refused = Vec::new();
    let mut wanted: Vec<(Resource, &'static str)> = Vec::new();
    for resource in limits.resources() {
        match host.home(resource.controller()) {
            Some(home) if home.version == Version::V1 => {}
            Some(_) => wanted.push((resource, resource.controller())),
            None => refused.push((
                resource,
                format!("no {} cgroup controller is to be had here", resource.controller()),
            )),
        }
    }
    let controllers: Vec<&'static str> =
        LIMITING.into_iter().filter(|name| wanted.iter().any(|(_, own)| own == name)).collect();
    let Some(hierarchy) = host.v2().filter(|_| !wanted.is_empty()) else { return refused };
    let candidate = match best(hierarchy, &controllers) {
        Ok(candidate) => candidate,
        Err(why) => {
            refused.extend(wanted.into_iter().map(|(resource, _)| (resource, why.clone())));
            return refused;
        }
    };
    let (bindable, not): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(_, controller)| candidate.usable.contains(controller));
    refused.extend(not.into_iter().map(|(resource, _)| (resource, candidate.why.clone())));
    if bindable.is_empty() {
        return refused;
    }
    let resources: Vec<Resource> = bindable.into_iter().map(|(resource, _)| resource).collect();
    for controller in candidate.enable {
        let needs = resources.iter().copied().filter(|resource| resource.controller() == controller);
        let file = candidate.parent.join("cgroup.subtree_control");
        plan.actions.push(Action::Enable { file, controller, resources: needs.collect() });
    }
    let usable = candidate.usable.iter().map(|name| (*name).to_owned()).collect();
    let place = Place::new(Version::V2, usable, &candidate.parent, name);
    plan.actions.push(Action::MakeDirectory { path: place.outer.clone() });
    for resource in resources {
        plan.actions.push(write(&place.outer, resource, limits));
        plan.bounds.push(Bound { resource, by: format!("cgroup v2 {}", resource.controller()) });
    }
    plan.actions.push(Action::MakeDirectory { path: place.inner.clone() });
    plan.places.push(place);
    refused
}

fn write(outer: &Path, resource: Resource, limits: &Limits) -> Action {
    let (file, value, check) = match resource {
        Resource::Memory => ("memory.max", limits.memory.unwrap_or_default().to_string(), Check::Page),
        Resource::Swap => ("memory.swap.max", limits.swap.unwrap_or_default().to_string(), Check::Page),
        Resource::Pids => ("pids.max", limits.pids.unwrap_or_default().to_string(), Check::Same),
        Resource::Cpus => {
            let quota = limits.quota_us().unwrap_or_default();
            ("cpu.max", format!("{quota} {CPU_PERIOD_US}"), Check::Same)
        }
        Resource::CpuWeight => ("cpu.weight", limits.cpu_weight.unwrap_or_default().to_string(), Check::Same),
        Resource::Cpuset => ("cpuset.cpus", limits.cpuset.clone().unwrap_or_default(), Check::Set),
    };
    Action::Write { file: outer.join(file), value, check, resource: Some(resource) }
}

/// Adds a directory without limits below our own (or the nearest writable) one.
pub(super) fn add_bare(host: &Host, name: &str, plan: &mut Plan) -> Result<(), String> {
    let hierarchy = host.v2().ok_or("no cgroup v2 is mounted")?;
    let place = Place::new(Version::V2, Vec::new(), &bare_parent(hierarchy)?, name);
    plan.actions.push(Action::MakeDirectory { path: place.outer.clone() });
    plan.actions.push(Action::MakeDirectory { path: place.inner.clone() });
    plan.places.push(place);
    Ok(())
}

/// Where a directory without limits can be made.
pub(super) fn bare_parent(hierarchy: &Hierarchy) -> Result<PathBuf, String> {
    best(hierarchy, &[]).map(|candidate| candidate.parent)
}

/// Where a directory with `controller` can be made. For `report()`.
pub(super) fn usable(hierarchy: &Hierarchy, controller: &'static str) -> Result<PathBuf, String> {
    let candidate = best(hierarchy, &[controller])?;
    if candidate.usable.is_empty() { Err(candidate.why) } else { Ok(candidate.parent) }
}

/// The nearest directory with the most of `wanted`.
fn best(hierarchy: &Hierarchy, wanted: &[&'static str]) -> Result<Candidate, String> {
    let mut best: Option<Candidate> = None;
    let mut reasons = Vec::new();
    for directory in hierarchy.ancestry()? {
        match candidate(&directory, wanted) {
            Ok(found) => {
                if !found.why.is_empty() {
                    reasons.push(found.why.clone());
                }
                if best.as_ref().is_none_or(|best| found.usable.len() > best.usable.len()) {
                    best = Some(found);
                }
            }
            Err(why) => reasons.push(why),
        }
        if best.as_ref().is_some_and(|best| best.usable.len() == wanted.len()) {
            break;
        }
    }
    let why = reasons.join("; ");
    best.map(|best| Candidate { why: why.clone(), ..best }).ok_or(why)
}

fn candidate(directory: &Path, wanted: &[&'static str]) -> Result<Candidate, String> {
    let kind = files::words(&directory.join("cgroup.type"));
    // The real root has no type; it alone may hold processes beside children with controllers.
    let root = !directory.join("cgroup.type").exists();
    if kind.first().is_some_and(|word| word == "threaded") || kind.iter().any(|word| word == "invalid") {
        return Err(format!("{} is of type {:?}", directory.display(), kind.join(" ")));
    }
    may_write(directory).map_err(|_| refusal(directory))?;
    // Moving a process takes the right to write the common ancestor's list, too.
    let list = directory.join("cgroup.procs");
    may_write(&list).map_err(|_| refusal(&list))?;
    let control = directory.join("cgroup.subtree_control");
    let (on, offered) = (files::words(&control), files::words(&directory.join("cgroup.controllers")));
    let has = |list: &[String], name: &str| list.iter().any(|own| own == name);
    let (mut enable, mut usable, mut why) = (Vec::new(), Vec::new(), Vec::new());
    let residents = if root { 0 } else { files::pids(directory).len() };
    let processes = if residents == 1 { "process" } else { "processes" };
    for controller in wanted.iter().copied() {
        if has(&on, controller) {
            usable.push(controller);
        } else if !has(&offered, controller) {
            why.push(format!("{} is not offered {controller} by the cgroup above it", directory.display()));
        } else if residents > 0 {
            why.push(format!(
                "{} holds {residents} {processes}, so the kernel turns {controller} on for no cgroup below it (no internal processes, cgroups(7))",
                directory.display()
            ));
        } else if may_write(&control).is_err() {
            why.push(refusal(&control));
        } else {
            usable.push(controller);
            enable.push(controller);
        }
    }
    Ok(Candidate { parent: directory.to_path_buf(), enable, usable, why: why.join("; ") })
}
