//! What will be done, as data: directories, files with their values, rlimits. `explain()` prints it, and
//! [`Plan::create`](super::Cgroup) carries it out.
//!
//! Making a plan reads `/proc` and the cgroup file system and changes nothing. Each limit goes where its
//! controller lives: version 2 if it is there, else the controller's own version 1 hierarchy, else, for what an
//! rlimit can bind, an rlimit. Every container has two directories in a hierarchy, `r2d2-NAME/inner`: limits are
//! written to the outer one and processes live in the inner one, so that a container which is entered before its
//! cgroup namespace is made cannot reach the files that limit it, though it may own them. Runs in the calling
//! process.

use super::discover::{Host, Version};
use super::limits::{Limits, Resource};
use super::rlimits::{self, Ids, Rlimit};
use super::{files, v1, v2};
use crate::error::{Error, Result};
use crate::shell;
use nix::errno::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How the value that is read back is compared with the one that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The same words.
    Same,
    /// The same bytes but for rounding down to a page.
    Page,
    /// The same set of CPUs or nodes.
    Set,
}

/// One change of the cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// mkdir(2).
    MakeDirectory {
        /// It must not exist yet.
        path: PathBuf,
    },
    /// Turns a controller on for the children of a version 2 directory. Stays on: others may use it by then.
    Enable {
        /// A `cgroup.subtree_control`.
        file: PathBuf,
        /// The controller's name.
        controller: &'static str,
        /// The resources that need it.
        resources: Vec<Resource>,
    },
    /// Writes a value and reads it back.
    Write {
        /// The interface file.
        file: PathBuf,
        /// As it is written.
        value: String,
        /// How it must read afterwards.
        check: Check,
        /// The limit it stands for; none for what only prepares a directory.
        resource: Option<Resource>,
    },
}

impl Action {
    /// The command that does the same in a shell.
    pub fn shell(&self) -> String {
        match self {
            Self::MakeDirectory { path } => format!("mkdir {}", quote(path)),
            Self::Enable { file, controller, .. } => format!("echo +{controller} > {}", quote(file)),
            Self::Write { file, value, .. } => {
                format!("echo {} > {}", quote(Path::new(value)), quote(file))
            }
        }
    }
}

/// A word for sh(1).
fn quote(path: &Path) -> String {
    String::from_utf8_lossy(&shell::quote(path.as_os_str().as_bytes())).into_owned()
}

/// The two directories of a container in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The hierarchy's version.
    pub version: Version,
    /// The controllers whose files `outer` has.
    pub controllers: Vec<String>,
    /// Holds the limits.
    pub outer: PathBuf,
    /// Holds the processes.
    pub inner: PathBuf,
}

impl Place {
    pub(super) fn new(version: Version, controllers: Vec<String>, parent: &Path, name: &str) -> Self {
        let outer = parent.join(format!("r2d2-{name}"));
        Self { version, controllers, inner: outer.join("inner"), outer }
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// A limit and what enforces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Which.
    pub resource: Resource,
    /// `cgroup v1 memory`, `cgroup v2 pids`, `rlimit NPROC`.
    pub by: String,
}

/// A limit that does not bind, or not as asked; only with `best_effort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound {
    /// Which.
    pub resource: Resource,
    /// The facts.
    pub why: String,
}

/// What will be done for one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In the order in which they are carried out.
    pub actions: Vec<Action>,
    /// For the launcher to set in the container's first process, after its user namespace was made.
    pub rlimits: Vec<Rlimit>,
    /// The limits that bind, and by what.
    pub bounds: Vec<Bound>,
    /// The limits that were given up.
    pub unbound: Vec<Unbound>,
    /// The directories, one pair a hierarchy.
    pub places: Vec<Place>,
    /// Whether a refused write gives its limit up instead of failing.
    pub best_effort: bool,
}

impl Plan {
    /// Whether there is nothing to do at all.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.rlimits.is_empty()
    }

    /// The plan as shell commands, up to the first process in it (`$$`).
    pub fn shell(&self) -> Vec<String> {
        let actions = self.actions.iter().map(Action::shell);
        let joins = self.join_files().into_iter().map(|file| format!("echo $$ > {}", quote(&file)));
        actions.chain(joins).chain(self.rlimits.iter().map(Rlimit::shell)).collect()
    }

    /// The files to which a process that joins is written.
    pub fn join_files(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| place.inner.join("cgroup.procs")).collect()
    }

    /// What a survivor writes before it removes the directories: (file, text) pairs that end or thaw what is in them.
    pub fn release(&self) -> Vec<(PathBuf, &'static str)> {
        let file = |place: &Place| match place.version {
            Version::V2 => Some((place.outer.join("cgroup.kill"), "1")),
            Version::V1 => place.has("freezer").then(|| (place.outer.join("freezer.state"), "THAWED")),
        };
        self.places.iter().filter_map(file).collect()
    }

    /// Every directory, in the order in which rmdir(2) can remove them.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.places.iter().flat_map(|place| [place.inner.clone(), place.outer.clone()]).collect()
    }
}

/// Plans `limits` for the container `name`, whose ids are mapped as `ids` says.
///
/// With no limits the plan is empty. Errors: `Spec` for a value that can never work, `Unsupported` for a limit
/// that would not bind here (unless `best_effort`).
pub fn plan(name: &str, limits: &Limits, ids: Ids) -> Result<Plan> {
    if limits.is_empty() {
        check_name(name)?;
        return Ok(Plan { best_effort: limits.best_effort, ..Plan::default() });
    }
    plan_on(&Host::read(), name, limits, ids)
}

/// [`plan`] on a given host.
pub(super) fn plan_on(host: &Host, name: &str, limits: &Limits, ids: Ids) -> Result<Plan> {
    check_name(name)?;
    limits.validate()?;
    let mut plan = Plan { best_effort: limits.best_effort, ..Plan::default() };
    if limits.is_empty() {
        return Ok(plan);
    }
    let mut refused = v2::add(host, name, limits, &mut plan);
    refused.extend(v1::add(host, name, limits, &mut plan));
    for resource in limits.resources() {
        let Some(why) = refused.iter().find_map(|(other, why)| (*other == resource).then_some(why)) else {
            continue;
        };
        fall_back(resource, why, limits, ids, &mut plan)?;
    }
    if !plan.places.is_empty() {
        add_freezer(host, name, &mut plan).ok();
        // Version 2 counts CPU time in every directory; each more that is joined costs a start some 0.3 ms.
        if !plan.places.iter().any(|place| place.version == Version::V2) {
            v1::add_bare(host, name, "cpuacct", &mut plan).ok();
        }
    }
    Ok(plan)
}

/// Plans a cgroup without any limit, for `pause()`: version 2 if it can be written, else the freezer of version 1.
pub fn plan_freezer(name: &str) -> Result<Plan> {
    check_name(name)?;
    let mut plan = Plan::default();
    add_freezer(&Host::read(), name, &mut plan).map_err(|why| Error::Unsupported {
        message: format!(
            "pausing needs a cgroup of the container's own, and this process may make none: {why}"
        ),
        errno: Errno::EACCES,
    })?;
    Ok(plan)
}

fn add_freezer(host: &Host, name: &str, plan: &mut Plan) -> Result<(), String> {
    if plan.places.iter().any(|place| place.version == Version::V2) {
        return Ok(());
    }
    let why_v2 = match v2::add_bare(host, name, plan) {
        Ok(()) => return Ok(()),
        Err(why) => why,
    };
    v1::add_bare(host, name, "freezer", plan).map_err(|why_v1| format!("{why_v2}; {why_v1}"))
}

/// Where no cgroup binds `resource`: an rlimit if one binds it, an error if none does.
fn fall_back(resource: Resource, why: &str, limits: &Limits, ids: Ids, plan: &mut Plan) -> Result<()> {
    let why = match rlimits::exact(resource, limits, ids) {
        Ok(rlimit) => {
            plan.bounds.push(Bound { resource, by: rlimit.by() });
            plan.rlimits.push(rlimit);
            return Ok(());
        }
        Err(facts) => format!("{} cannot be limited: {why}; {facts}", resource.name()),
    };
    if !limits.best_effort {
        return Err(Error::Unsupported { message: why, errno: Errno::EOPNOTSUPP });
    }
    plan.rlimits.extend(rlimits::weaker(resource, limits));
    plan.unbound.push(Unbound { resource, why });
    Ok(())
}

/// A name becomes a part of a directory's name, and may be shown to other users.
fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 200 || !name.bytes().all(plain) {
        return Err(Error::spec(format!(
            "name={name:?}: the name of a cgroup is 1 to 200 letters, digits, '.', '_' and '-'"
        )));
    }
    Ok(())
}

/// A parent's value that a new cpuset of version 1, which starts empty, must be given.
pub(super) fn inherited(parent: &Path, files: [&str; 2]) -> String {
    let read = files.iter().filter_map(|file| files::read("read cpuset", &parent.join(file)).ok());
    read.map(|value| value.trim().to_owned()).find(|value| !value.is_empty()).unwrap_or_default()
}
