//! `_core.Spec`, `_core.Command` and `_core.StepInfo`: what is to be started, read from Python's values and resolved
//! against this host, and the plan that comes of it.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use pyo3::prelude::*;

use crate::cgroup;
use crate::container::{self as core, Mount, MountKind, Plan, Proc, Root, Upper};
use crate::error::{Error, Result};
use crate::namespace::{IdMap, Kind, Namespaces};
use crate::security::capabilities::{CapabilitySet, DOCKER_DEFAULT};

pub(super) fn c(bytes: &[u8], what: &str) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::spec(format!("{what}: embedded null byte")))
}

pub(super) fn all(strings: &[Vec<u8>], what: &str) -> Result<Vec<CString>> {
    strings.iter().map(|s| c(s, what)).collect()
}

pub(super) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// A set of namespaces from names.
pub(super) fn namespaces(names: &[String]) -> Result<Namespaces> {
    names
        .iter()
        .map(|name| {
            Kind::parse(name).ok_or_else(|| {
                let known = Kind::ALL.map(Kind::name).join(", ");
                Error::spec(format!("namespace {name:?}: not one of {known}"))
            })
        })
        .collect()
}

/// What a container is to be. Resolved against this host: making one may raise `UnsupportedError`.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Spec {
    pub(super) spec: core::Spec,
    /// What the id map was made from.
    userns: Option<String>,
}

fn id_map(userns: Option<&str>, root: &Root) -> Result<Option<IdMap>> {
    match userns {
        None => Ok(None),
        Some("identity") => IdMap::identity().map(Some),
        Some("single") => Ok(Some(IdMap::single())),
        Some("subuid") => IdMap::delegated().map(Some),
        // Who is not root inside cannot be the owner of a root file system: for programs alone.
        Some("caller") if *root == Root::Shared => Ok(Some(IdMap::caller())),
        Some(other) => {
            Err(Error::spec(format!("userns {other:?}: not one of auto, identity, single, subuid, host")))
        }
    }
}

fn ids(idmap: Option<&IdMap>) -> cgroup::Ids {
    match idmap {
        None => cgroup::Ids::Host,
        Some(map) if map.uids.len() == 1 && map.uids[0].count == 1 => cgroup::Ids::Single,
        Some(_) => cgroup::Ids::Range,
    }
}

/// `(inside, outside, count)`.
type Ids = (u32, u32, u32);
/// A resource and what is known about its limit.
type Fact = (String, String);

/// User, group, supplementary groups.
pub(super) type User = (u32, u32, Vec<u32>);

/// One step of a plan.
#[pyclass(frozen, get_all, module = "r2d2._core")]
pub(super) struct StepInfo {
    /// Its number, from 1.
    number: usize,
    /// What it does.
    title: String,
    /// Why.
    why: String,
    /// Who does it: `'caller'` or `'child'`.
    actor: String,
    /// The system calls it makes, as man page names.
    syscalls: String,
    /// The same by hand, or a comment.
    shell: OsString,
    /// Whether it may fail without consequence.
    optional: bool,
}

#[pymethods]
impl Spec {
    #[new]
    #[pyo3(signature = (*, name, namespaces, idmap, root, layers, upper, work, tmpfs_size, readonly, proc, system,
        masked, hostname, etc, mounts, rlimits, cap_add, cap_drop, no_new_privs, clock_offsets, limits))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keywords of one Python call"
    )]
    fn new(
        py: Python<'_>,
        name: String,
        namespaces: Vec<String>,
        idmap: Option<String>,
        root: &str,
        layers: Vec<Vec<u8>>,
        upper: Option<Vec<u8>>,
        work: Option<Vec<u8>>,
        tmpfs_size: Option<u64>,
        readonly: bool,
        proc: &str,
        system: bool,
        masked: bool,
        hostname: Option<Vec<u8>>,
        etc: Vec<(String, Vec<u8>)>,
        mounts: Vec<MountIn>,
        rlimits: Vec<(u32, u64)>,
        cap_add: Vec<String>,
        cap_drop: Vec<String>,
        no_new_privs: bool,
        clock_offsets: Option<(i64, i64)>,
        limits: Option<LimitsIn>,
    ) -> PyResult<Self> {
        let namespaces = self::namespaces(&namespaces)?;
        let layers: Vec<PathBuf> = layers.iter().map(|layer| path(layer)).collect();
        let root = match root {
            "shared" => Root::Shared,
            "layers" => Root::Layers(layers),
            "host" => Root::Host(layers),
            "empty" => Root::Empty,
            "directory" => Root::Directory(layers.into_iter().next().unwrap_or_default()),
            "chroot" => Root::Chroot(layers.into_iter().next().unwrap_or_default()),
            other => return Err(Error::spec(format!("root {other:?}")).into()),
        };
        let userns = idmap;
        let idmap = py.detach(|| id_map(userns.as_deref(), &root))?;
        let limits = limits.map(LimitsIn::limits).unwrap_or_default();
        let cgroup = py.detach(|| cgroup::plan(&name, &limits, ids(idmap.as_ref())))?;
        let upper = match (upper, work) {
            (Some(upper), Some(work)) => Upper::Directory { upper: path(&upper), work: path(&work) },
            (Some(upper), None) => Upper::Disk(path(&upper)),
            (None, _) => Upper::Tmpfs(tmpfs_size),
        };
        let proc = match proc {
            "mount" => Proc::Mount,
            "bind" => Proc::Bind,
            "none" => Proc::Absent,
            other => {
                return Err(Error::spec(format!("proc {other:?}: not one of mount, bind, none")).into());
            }
        };
        let capabilities = CapabilitySet::adjusted(DOCKER_DEFAULT, &cap_add, &cap_drop)?;
        let spec = core::Spec {
            name,
            namespaces,
            idmap,
            root,
            upper,
            readonly,
            proc,
            system,
            masked,
            hostname,
            etc,
            mounts: mounts.into_iter().map(MountIn::mount).collect::<Result<_>>()?,
            cgroup,
            rlimits,
            capabilities: capabilities.0,
            no_new_privs,
            clock_offsets,
        };
        Ok(Self { spec, userns })
    }

    /// The same, without limits, under another name; what it takes from the calling process (its ids) is read anew.
    fn named(&self, py: Python<'_>, name: String) -> PyResult<Self> {
        let idmap = py.detach(|| id_map(self.userns.as_deref(), &self.spec.root))?;
        let cgroup = cgroup::plan(&name, &cgroup::Limits::default(), ids(idmap.as_ref()))?;
        let spec = core::Spec { name, idmap, cgroup, ..self.spec.clone() };
        Ok(Self { spec, userns: self.userns.clone() })
    }

    /// The steps that starting it takes, as data; nothing is carried out.
    fn steps(&self, py: Python<'_>) -> PyResult<Vec<StepInfo>> {
        Ok(steps(&py.detach(|| Plan::container(&self.spec))?))
    }

    /// Notes on what differs from what might be expected.
    fn notes(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(py.detach(|| Plan::container(&self.spec))?.notes)
    }

    /// A script for sh(1) that builds the same container by hand and runs a command in it: its arguments, or `argv`.
    #[pyo3(signature = (argv, env, cwd, user=None))]
    fn script(
        &self,
        py: Python<'_>,
        argv: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Vec<u8>,
        user: Option<User>,
    ) -> PyResult<Cow<'static, [u8]>> {
        let plan = py.detach(|| Plan::container(&self.spec))?;
        Ok(plan.script(&core::Last { argv, env, cwd, user }).into())
    }

    /// The capabilities that programs may have, as a mask: bit n is capability n.
    #[getter]
    fn capabilities(&self) -> u64 {
        self.spec.capabilities
    }

    /// Whether a user id exists inside.
    fn has_uid(&self, uid: u32) -> bool {
        self.spec.idmap.as_ref().is_none_or(|map| map.has_uid(uid))
    }

    /// Whether a group id exists inside.
    fn has_gid(&self, gid: u32) -> bool {
        self.spec.idmap.as_ref().is_none_or(|map| map.has_gid(gid))
    }

    /// The id maps as `(inside, outside, count)`: users and groups.
    fn idmap(&self) -> (Vec<Ids>, Vec<Ids>) {
        let list = |ranges: &[crate::namespace::Range]| {
            ranges.iter().map(|r| (r.inside, r.outside, r.count)).collect::<Vec<_>>()
        };
        self.spec.idmap.as_ref().map(|map| (list(&map.uids), list(&map.gids))).unwrap_or_default()
    }

    /// Which limit is bound by what: `[(resource, by)]`, and what is not: `[(resource, why)]`.
    fn limits(&self) -> (Vec<Fact>, Vec<Fact>) {
        let plan = &self.spec.cgroup;
        (
            plan.bounds.iter().map(|b| (b.resource.name().to_owned(), b.by.clone())).collect(),
            plan.unbound.iter().map(|u| (u.resource.name().to_owned(), u.why.clone())).collect(),
        )
    }
}

pub(super) fn steps(plan: &Plan) -> Vec<StepInfo> {
    let root = plan.stage.as_ref().map_or_else(|| PathBuf::from("/"), |stage| stage.join("root"));
    plan.steps
        .iter()
        .enumerate()
        .map(|(i, step)| StepInfo {
            number: i + 1,
            title: step.op.title(),
            why: step.why.to_owned(),
            actor: match step.op.actor() {
                core::Actor::Caller => "caller".to_owned(),
                core::Actor::Child => "child".to_owned(),
            },
            syscalls: step.op.syscalls(),
            shell: OsString::from_vec(step.op.shell(&root)),
            optional: step.optional,
        })
        .collect()
}

/// A mount, read from the attributes of a Python object.
#[derive(FromPyObject)]
pub(super) struct MountIn {
    kind: String,
    source: Option<Vec<u8>>,
    target: Vec<u8>,
    readonly: bool,
    recursive: bool,
    size: Option<u64>,
    keep: Vec<Vec<u8>>,
    lower: Vec<Vec<u8>>,
    upper: Option<Vec<u8>>,
    work: Option<Vec<u8>>,
    volatile: bool,
}

impl MountIn {
    fn mount(self) -> Result<Mount> {
        let kind = match (self.kind.as_str(), self.source) {
            ("bind", Some(source)) => MountKind::Bind { source: path(&source), recursive: self.recursive },
            ("tmpfs", _) => {
                MountKind::Tmpfs { size: self.size, keep: self.keep.iter().map(|kept| path(kept)).collect() }
            }
            ("overlay", _) => MountKind::Overlay {
                lower: self.lower.iter().map(|layer| path(layer)).collect(),
                upper: self.upper.zip(self.work).map(|(upper, work)| (path(&upper), path(&work))),
                volatile: self.volatile,
            },
            (other, _) => {
                return Err(Error::spec(format!("mount of type {other:?}: not bind, tmpfs or overlay")));
            }
        };
        Ok(Mount { kind, target: path(&self.target), readonly: self.readonly })
    }
}

/// Limits, read from the attributes of a Python object.
#[derive(FromPyObject)]
pub(super) struct LimitsIn {
    memory: Option<u64>,
    swap: Option<u64>,
    pids: Option<u64>,
    cpus: Option<f64>,
    cpu_weight: Option<u32>,
    cpuset: Option<String>,
    best_effort: bool,
}

impl LimitsIn {
    fn limits(self) -> cgroup::Limits {
        cgroup::Limits {
            memory: self.memory,
            swap: self.swap,
            pids: self.pids,
            cpus: self.cpus,
            cpu_weight: self.cpu_weight,
            cpuset: self.cpuset,
            best_effort: self.best_effort,
        }
    }
}

/// A program to run in a container, resolved to bytes.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Command {
    pub(super) command: core::Command,
    /// The number of its request once it was sent: all that is known of the program if Ctrl-C comes just then.
    pub(super) sent: AtomicU64,
}

#[pymethods]
impl Command {
    #[new]
    #[pyo3(signature = (candidates, argv, env, *, cwd=None, user=None, capabilities=None, tty=false, main=false,
        tree=false, confirm=false, umask=None, pass_fds=Vec::new()))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keywords of one Python call"
    )]
    fn new(
        candidates: Vec<Vec<u8>>,
        argv: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Option<Vec<u8>>,
        user: Option<(u32, u32, Vec<u32>)>,
        capabilities: Option<u64>,
        tty: bool,
        main: bool,
        tree: bool,
        confirm: bool,
        umask: Option<u32>,
        pass_fds: Vec<(i32, i32)>,
    ) -> PyResult<Self> {
        let command = core::Command {
            candidates: all(&candidates, "args")?,
            argv: all(&argv, "args")?,
            envp: all(&env, "env")?,
            cwd: cwd.map(|cwd| c(&cwd, "cwd")).transpose()?,
            user,
            capabilities,
            tty,
            main,
            tree,
            confirm,
            umask,
            pass: pass_fds,
        };
        Ok(Self { command, sent: AtomicU64::new(0) })
    }
}
