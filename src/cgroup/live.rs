//! The container's cgroups once they exist: made, joined, emptied, removed.
//!
//! A [`Cgroup`] is only a list of directories: dropping it removes nothing, and whoever knows the list (a
//! process that survives the owner, say) can remove them with rmdir(2) once they are empty. Nothing outside of
//! the directories that [`Plan::create`] made is ever written to, emptied or removed, except for controllers that
//! it turned on in a version 2 parent. Runs in the calling process; no threads.

use super::discover::Version;
use super::files;
use super::limits::{Resource, parse_cpus};
use super::plan::{Action, Bound, Check, Place, Plan, Unbound};
use super::rlimits::Rlimit;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to end the processes of a cgroup, to freeze it, or to let go of its directory.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks where the kernel offers nothing to wait on (version 1).
pub(super) const LOOK: Duration = Duration::from_millis(1);

/// The cgroups of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// One pair of directories a hierarchy.
    pub places: Vec<Place>,
    /// For the launcher to set.
    pub rlimits: Vec<Rlimit>,
    /// The limits that bind, and by what.
    pub bounds: Vec<Bound>,
    /// The limits that were given up, with `best_effort`.
    pub unbound: Vec<Unbound>,
}

impl Plan {
    /// Carries the plan out and reads every value back.
    ///
    /// Errors: the first change that is refused, or value that reads back otherwise (unless `best_effort`); what
    /// was made until then is removed again. A directory that exists already is an error (`EEXIST`), never used.
    pub fn create(&self) -> Result<Cgroup> {
        let mut cgroup = Cgroup {
            places: self.places.clone(),
            rlimits: self.rlimits.clone(),
            bounds: self.bounds.clone(),
            unbound: self.unbound.clone(),
        };
        let mut made = Vec::new();
        for action in &self.actions {
            if let Err(error) = carry_out(action) {
                let resources = limited(action);
                if self.best_effort && !resources.is_empty() {
                    cgroup.give_up(&resources, &error);
                    continue;
                }
                for directory in made.iter().rev() {
                    std::fs::remove_dir(directory).ok();
                }
                return Err(error);
            }
            if let Action::MakeDirectory { path } = action {
                made.push(path.clone());
            }
        }
        Ok(cgroup)
    }
}

/// The limits that fail with `action`.
fn limited(action: &Action) -> Vec<Resource> {
    match action {
        Action::MakeDirectory { .. } => Vec::new(),
        Action::Enable { resources, .. } => resources.clone(),
        Action::Write { resource, .. } => resource.iter().copied().collect(),
    }
}

fn carry_out(action: &Action) -> Result<()> {
    match action {
        Action::MakeDirectory { path } => {
            std::fs::create_dir(path).map_err(|error| Error::io("make cgroup", "mkdir", &error, Some(path)))
        }
        Action::Enable { file, controller, .. } => {
            files::write("enable cgroup controller", file, &format!("+{controller}"))
        }
        Action::Write { file, value, check, resource } => {
            let step =
                resource.map_or_else(|| "prepare cgroup".to_owned(), |own| format!("limit {}", own.name()));
            files::write(&step, file, value)?;
            let read = files::read(&step, file)?;
            if !holds(*check, value, &read) {
                return Err(differs(step, file, format!("wrote {value:?}, reads {read:?}")));
            }
            effective(&step, file, value)
        }
    }
}

/// A set may be stored and yet not be what holds: version 2 keeps the result in a file of its own.
fn effective(step: &str, file: &Path, value: &str) -> Result<()> {
    let result = file.with_file_name("cpuset.cpus.effective");
    if file.file_name().is_none_or(|name| name != "cpuset.cpus") || !result.exists() {
        return Ok(());
    }
    let read = files::read(step, &result)?;
    let within = parse_cpus(&read)
        .ok()
        .zip(parse_cpus(value).ok())
        .is_some_and(|(real, asked)| real.is_subset(&asked));
    if within {
        Ok(())
    } else {
        Err(differs(step.to_owned(), &result, format!("wrote {value:?}, effective {read:?}")))
    }
}

fn differs(step: String, file: &Path, detail: String) -> Error {
    Error::Step {
        step,
        syscall: "read",
        errno: Errno::ERANGE,
        path: Some(file.to_path_buf()),
        detail: Some(detail),
    }
}

/// Whether `read` is what `written` must read back as.
pub(super) fn holds(check: Check, written: &str, read: &str) -> bool {
    match check {
        Check::Same => written == read,
        Check::Set => {
            written == read
                || parse_cpus(written).is_ok_and(|set| parse_cpus(read).is_ok_and(|other| other == set))
        }
        Check::Page => {
            let page =
                nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
            let (Ok(written), Ok(read)) = (written.parse::<u64>(), read.parse::<u64>()) else { return false };
            read <= written && written - read < page.unsigned_abs()
        }
    }
}

impl Cgroup {
    /// Moves a process (its whole thread group) into every directory.
    ///
    /// Must be called by the parent while the child waits, before the child makes its cgroup namespace: the
    /// namespace's root is where the process is at that moment. The error names the file and its errno.
    pub fn join(&self, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        self.places
            .iter()
            .try_for_each(|place| files::write("join cgroup", &place.inner.join("cgroup.procs"), &pid))
    }

    /// Every directory as an absolute path, in the order in which rmdir(2) can remove them.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.places.iter().flat_map(|place| [place.inner.clone(), place.outer.clone()]).collect()
    }

    /// The same as (parent, name), for rmdir through a descriptor of the parent.
    pub fn paths(&self) -> Vec<(PathBuf, std::ffi::OsString)> {
        let split = |path: PathBuf| Some((path.parent()?.to_path_buf(), path.file_name()?.to_owned()));
        self.dirs().into_iter().filter_map(split).collect()
    }

    /// The pids in our directories, those of directories that were made in the container included.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.tree().iter().flat_map(|directory| files::pids(directory)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The pids in one hierarchy.
    pub(super) fn pids_of(place: &Place) -> Vec<i32> {
        let mut tree = Vec::new();
        collect(&place.outer, &mut tree);
        tree.iter().flat_map(|directory| files::pids(directory)).collect()
    }

    /// Every directory of ours and below, deepest first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut tree = Vec::new();
        for place in &self.places {
            collect(&place.outer, &mut tree);
        }
        tree
    }

    pub(super) fn v1_with(&self, controller: &str) -> Option<&Place> {
        self.places.iter().find(|place| place.version == Version::V1 && place.has(controller))
    }

    fn version2(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.version == Version::V2)
    }

    /// Ends every process in our directories and waits until there is none.
    ///
    /// Version 2 does it in one step, which no fork escapes (`cgroup.kill`, Linux 5.14). Version 1 forbids forks
    /// meanwhile, or freezes, where it has the controller, and signals until nobody is left. Error: `ETIMEDOUT`
    /// when the kernel has not ended them within [`PATIENCE`].
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let fork_limit = self.v1_with("pids").map(|place| place.outer.join("pids.max"));
        let limit = fork_limit.as_ref().and_then(|file| files::read("kill cgroup", file).ok());
        let outcome = loop {
            if let Some(place) = self.version2() {
                files::write("kill cgroup", &place.outer.join("cgroup.kill"), "1").ok();
            }
            if self.pids().is_empty() {
                break Ok(());
            }
            if let Some(file) = &fork_limit {
                files::write("kill cgroup", file, "0").ok();
            }
            self.request_v1("FROZEN");
            for pid in self.pids() {
                // A pid read from our own directory a moment ago; gone already is as good as killed.
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            self.request_v1("THAWED"); // a process that version 1 has frozen dies only when thawed
            if Instant::now() > deadline {
                let path = self.places.first().map(|place| place.inner.join("cgroup.procs"));
                break Err(Error::step("kill cgroup", "kill", Errno::ETIMEDOUT, path));
            }
            std::thread::sleep(LOOK);
        };
        if let Some((file, limit)) = fork_limit.zip(limit) {
            files::write("kill cgroup", &file, &limit).ok();
        }
        outcome
    }

    /// Ends what is left in our directories and removes them. Nothing to do is success.
    ///
    /// Error: the directory that could not be removed; the others are gone.
    pub fn remove(&self) -> Result<()> {
        if self.tree().is_empty() {
            return Ok(());
        }
        let mut outcome = self.kill();
        let deadline = Instant::now() + PATIENCE;
        for directory in self.tree() {
            while let Err(error) = std::fs::remove_dir(&directory) {
                match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::ENOENT => break,
                    // The last process is gone from the list a moment before the directory is free.
                    Errno::EBUSY if Instant::now() < deadline => std::thread::sleep(LOOK),
                    _ => {
                        let error = Error::io("remove cgroup", "rmdir", &error, Some(&directory));
                        outcome = outcome.and(Err(error));
                        break;
                    }
                }
            }
        }
        outcome
    }

    fn give_up(&mut self, resources: &[Resource], error: &Error) {
        self.bounds.retain(|bound| !resources.contains(&bound.resource));
        for resource in resources {
            if !self.unbound.iter().any(|other| other.resource == *resource) {
                self.unbound.push(Unbound { resource: *resource, why: error.to_string() });
            }
        }
    }
}

/// `directory` and all below it, deepest first; nothing if it is gone.
fn collect(directory: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), into);
        }
    }
    into.push(directory.to_path_buf());
}
