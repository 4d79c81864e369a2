//! `_core.Spec`, `_core.Handle`, `_core.Process` and their relatives: what `python/r2d2/container.py` and
//! `process.py` stand on.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::Signals;
use crate::cgroup;
use crate::container::{self as core, Mount, MountKind, Op, Outcome, Plan, Proc, Root, Upper};
use crate::error::{Error, Result};
use crate::namespace::{IdMap, Kind, Namespaces};
use crate::security::capabilities::{CapabilitySet, DOCKER_DEFAULT};

fn c(bytes: &[u8], what: &str) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::spec(format!("{what}: embedded null byte")))
}

fn all(strings: &[Vec<u8>], what: &str) -> Result<Vec<CString>> {
    strings.iter().map(|s| c(s, what)).collect()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn seconds(timeout: Option<f64>) -> Option<Duration> {
    timeout.map(|t| Duration::try_from_secs_f64(t.max(0.0)).unwrap_or(Duration::MAX))
}

/// A set of namespaces from names.
fn namespaces(names: &[String]) -> Result<Namespaces> {
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
    spec: core::Spec,
}

/// `(inside, outside, count)`.
type Ids = (u32, u32, u32);
/// A resource and what is known about its limit.
type Fact = (String, String);

/// User, group, supplementary groups.
type User = (u32, u32, Vec<u32>);

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
        let idmap = py.detach(|| match idmap.as_deref() {
            None => Ok(None),
            Some("identity") => IdMap::identity().map(Some),
            Some("single") => Ok(Some(IdMap::single())),
            Some("subuid") => IdMap::delegated().map(Some),
            Some(other) => {
                Err(Error::spec(format!("userns {other:?}: not one of auto, identity, single, subuid, host")))
            }
        })?;
        let ids = match &idmap {
            None => cgroup::Ids::Host,
            Some(map) if map.uids.len() == 1 && map.uids[0].count == 1 => cgroup::Ids::Single,
            Some(_) => cgroup::Ids::Range,
        };
        let limits = limits.map(LimitsIn::limits).unwrap_or_default();
        let cgroup = py.detach(|| cgroup::plan(&name, &limits, ids))?;
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
        Ok(Self { spec })
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

fn steps(plan: &Plan) -> Vec<StepInfo> {
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
    lower: Vec<Vec<u8>>,
    upper: Option<Vec<u8>>,
    work: Option<Vec<u8>>,
    volatile: bool,
}

impl MountIn {
    fn mount(self) -> Result<Mount> {
        let kind = match (self.kind.as_str(), self.source) {
            ("bind", Some(source)) => MountKind::Bind { source: path(&source), recursive: self.recursive },
            ("tmpfs", _) => MountKind::Tmpfs { size: self.size },
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
    command: core::Command,
    /// The number of its request once it was sent: all that is known of the program if Ctrl-C comes just then.
    sent: AtomicU64,
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

/// A running container.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Handle {
    container: core::Container,
}

/// A program in a container.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Process {
    process: core::Process,
}

/// Starts a container; with `first` also a program in it, whose standard descriptors are `stdio`.
#[pyfunction]
#[pyo3(signature = (spec, first=None, stdio=(-1, -1, -1)))]
pub(super) fn start(
    py: Python<'_>,
    spec: &Spec,
    first: Option<&Command>,
    stdio: (i32, i32, i32),
) -> PyResult<(Handle, Option<Process>)> {
    let stdio = [stdio.0, stdio.1, stdio.2];
    let (container, process) = Signals::run(py, |interrupt| {
        let plan = Plan::container(&spec.spec)?;
        let first = first.map(|first| core::First { command: &first.command, stdio });
        core::Container::start(plan, first.as_ref(), interrupt)
    })?;
    Ok((Handle { container }, process.map(|process| Process { process })))
}

/// Starts a container that can be kept beyond this process's end (`Handle.keep`): `listen` is a listening socket
/// (SOCK_SEQPACKET) by which it will be reached, `exit` a file to which the main program's wait status goes, `remove`
/// a directory that is removed, with all that is in it, when the container has ended.
#[pyfunction]
#[pyo3(signature = (spec, listen, exit, remove=None))]
pub(super) fn start_detached(
    py: Python<'_>,
    spec: &Spec,
    listen: i32,
    exit: i32,
    remove: Option<Vec<u8>>,
) -> PyResult<Handle> {
    let remove = remove.as_deref().map(path);
    let reach = core::Reach { listen, exit, remove: remove.as_deref() };
    let (container, _) = Signals::run(py, |interrupt| {
        core::Container::start_detached(Plan::container(&spec.spec)?, None, reach, interrupt)
    })?;
    Ok(Handle { container })
}

/// A pidfd of the process with this pid, start time (proc_pid_stat(5), ticks) and PID namespace (inode, 0: unknown),
/// or None if there is no such process any more. The caller must close it.
#[pyfunction]
pub(super) fn find(py: Python<'_>, pid: i32, start_time: u64, pid_namespace: u64) -> PyResult<Option<i32>> {
    let who = core::Identity { pid, start_time, pid_namespace };
    Ok(py.detach(|| core::find(&who))?.map(IntoRawFd::into_raw_fd))
}

/// Whether this is a file inside the directory behind `root` that somebody may execute.
#[pyfunction]
pub(super) fn is_program(root: i32, program: Vec<u8>) -> bool {
    core::is_program(crate::sys::borrow(&root), &path(&program))
}

/// A handle of a detached container: `pidfd` from `find`, `control` a socket connected to where it listens. Both stay
/// the caller's.
#[pyfunction]
pub(super) fn attach(pid: i32, pidfd: i32, control: i32) -> PyResult<Handle> {
    let (pidfd, control) = (crate::sys::borrow(&pidfd), crate::sys::borrow(&control));
    Ok(Handle { container: core::Container::attach(pid, pidfd, control)? })
}

#[pymethods]
impl Handle {
    /// Lets it run when this process ends, and this handle with it.
    fn keep(&self, py: Python<'_>) -> PyResult<()> {
        Signals::run(py, |interrupt| self.container.keep(interrupt))
    }

    /// What tells it from a later process with the same pid: `(pid, start time, PID namespace)`, as `find` takes it.
    fn identity(&self, py: Python<'_>) -> PyResult<(i32, u64, u64)> {
        let who = py.detach(|| self.container.identity())?;
        Ok((who.pid, who.start_time, who.pid_namespace))
    }

    /// A terminal of its own devpts: master and slave, which the caller must close.
    fn terminal(&self, py: Python<'_>) -> PyResult<(i32, i32)> {
        let (master, slave) = Signals::run(py, |interrupt| self.container.terminal(interrupt))?;
        Ok((master.into_raw_fd(), slave.into_raw_fd()))
    }

    /// PID 1's pid on the host.
    #[getter]
    fn pid(&self) -> i32 {
        self.container.pid
    }

    /// A pidfd of PID 1, owned by the handle: readable when the container has ended.
    fn fileno(&self) -> i32 {
        self.container.pidfd().as_raw_fd()
    }

    /// Whether this process made it; false in a fork.
    fn is_ours(&self) -> bool {
        self.container.is_ours()
    }

    /// Starts a program in it.
    fn exec(&self, py: Python<'_>, command: &Command, stdio: (i32, i32, i32)) -> PyResult<Process> {
        let stdio = [stdio.0, stdio.1, stdio.2];
        let process = py.detach(|| self.container.exec(&command.command, stdio))?;
        command.sent.store(process.id, Ordering::Relaxed);
        Ok(Process { process })
    }

    /// Signals a program of it; with `tree`, kills it and all that it started.
    #[pyo3(signature = (process, signal, *, tree=false))]
    fn signal(&self, py: Python<'_>, process: &Process, signal: i32, tree: bool) -> PyResult<()> {
        Ok(py.detach(|| self.container.signal(&process.process, signal, tree))?)
    }

    /// Kills the program that was started by `command`, if it was.
    fn abandon(&self, py: Python<'_>, command: &Command) -> PyResult<()> {
        match command.sent.load(Ordering::Relaxed) {
            0 => Ok(()),
            id => Ok(py.detach(|| self.container.signal_request(id, libc::SIGKILL, command.command.tree))?),
        }
    }

    /// Descriptors of its root directory (`O_PATH`) and of its upper layers' directory, which the caller must close.
    fn root(&self, py: Python<'_>) -> PyResult<(i32, Option<i32>)> {
        let (root, upper) = Signals::run(py, |interrupt| self.container.root(interrupt))?;
        Ok((root.into_raw_fd(), upper.map(IntoRawFd::into_raw_fd)))
    }

    /// What its root directory was put together from: `(kind, path, upper, lowers, precreated, text)`; nothing for one
    /// that was found again, whose steps are not known.
    fn parts(&self) -> Vec<super::root::Part> {
        core::parts(&self.container.plan).into_iter().map(super::root::part).collect()
    }

    /// Its files.
    fn files(&self, py: Python<'_>, spec: &Spec) -> PyResult<super::root::Root> {
        let map = spec.spec.idmap.clone();
        let files = Signals::run(py, |interrupt| self.container.files(map, interrupt))?;
        Ok(super::root::Root { files })
    }

    /// Sends a signal to PID 1, which forwards it to the main program or to all.
    fn kill(&self, py: Python<'_>, signal: i32) -> PyResult<()> {
        Ok(py.detach(|| self.container.kill(signal))?)
    }

    /// PID 1's wait status, or None if the container still runs after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        Signals::run(py, |interrupt| self.container.wait(seconds(timeout), interrupt))
    }

    /// Ends it and waits until nothing of it is left.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.container.stop())?)
    }

    /// Stops every process in it.
    fn pause(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        Ok(py.detach(|| self.container.pause(name))?)
    }

    /// Lets them go on.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.container.resume())?)
    }

    /// Figures of its cgroup, each None where there is none to ask.
    fn stats(&self, py: Python<'_>) -> PyResult<std::collections::HashMap<&'static str, Option<u64>>> {
        let s = py.detach(|| self.container.stats())?;
        Ok([
            ("memory_bytes", s.memory_bytes),
            ("memory_peak", s.memory_peak),
            ("memory_limit", s.memory_limit),
            ("oom_kills", s.oom_kills),
            ("pids", s.pids),
            ("pids_peak", s.pids_peak),
            ("pids_limit", s.pids_limit),
            ("cpu_usage_ns", s.cpu_usage_ns),
            ("cpu_user_ns", s.cpu_user_ns),
            ("cpu_system_ns", s.cpu_system_ns),
            ("throttled_ns", s.throttled_ns),
            ("nr_throttled", s.nr_throttled),
        ]
        .into())
    }

    /// The steps that started it.
    fn steps(&self) -> Vec<StepInfo> {
        steps(&self.container.plan)
    }

    /// Notes on what differs from what might be expected.
    fn notes(&self) -> Vec<String> {
        self.container.plan.notes.clone()
    }

    /// A script for sh(1) that builds the same container; see `Spec.script`.
    #[pyo3(signature = (argv, env, cwd, user=None))]
    fn script(
        &self,
        argv: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Vec<u8>,
        user: Option<User>,
    ) -> Cow<'static, [u8]> {
        self.container.plan.script(&core::Last { argv, env, cwd, user }).into()
    }

    /// Nanoseconds of each step, and the errno of each optional step that failed (0: none).
    fn trace(&self) -> (Vec<u64>, Vec<i32>) {
        (self.container.trace.took.clone(), self.container.trace.skipped.clone())
    }
}

/// `('ended', code, wait status, maxrss KiB, user µs, system µs)`, `('failed', errno, stage, 0, 0, 0)` or `('lost', …)`.
type Ending = (&'static str, i32, String, u32, u64, u64);

fn ending(outcome: Outcome) -> Ending {
    match outcome {
        Outcome::Ended(exit) => {
            ("ended", exit.code(), String::new(), exit.maxrss_kib, exit.utime_us, exit.stime_us)
        }
        Outcome::Failed(failure) => ("failed", failure.errno as i32, failure.stage.to_owned(), 0, 0, 0),
        Outcome::Lost => ("lost", -libc::SIGKILL, String::new(), 0, 0, 0),
    }
}

#[pymethods]
impl Process {
    /// Readable when it has ended; owned by the process object.
    fn fileno(&self) -> i32 {
        self.process.as_fd().as_raw_fd()
    }

    /// Its pid inside the container, once its start was confirmed.
    #[getter]
    fn inner_pid(&self) -> Option<i32> {
        self.process.inner_pid()
    }

    /// A duplicate of its pidfd, once its start was confirmed; the caller must close it.
    fn pidfd(&self) -> Option<i32> {
        self.process.pidfd().map(IntoRawFd::into_raw_fd)
    }

    /// Waits until execve succeeded: None, or how it failed.
    fn wait_started(&self, py: Python<'_>) -> PyResult<Option<Ending>> {
        Ok(Signals::run(py, |interrupt| self.process.wait_started(interrupt))?.map(ending))
    }

    /// How it ended, or None if it still runs after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Ending>> {
        Ok(Signals::run(py, |interrupt| self.process.wait(seconds(timeout), interrupt))?.map(ending))
    }

    /// Sends a signal by pidfd: false if it was not confirmed or has ended.
    fn signal(&self, signal: i32) -> bool {
        matches!(self.process.signal(signal), Some(Ok(())))
    }
}

/// A program that was started directly in new namespaces.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Spawned {
    spawned: core::Spawned,
}

/// Starts a program in new namespaces, as unshare(1) does: no PID 1 of ours. `inner` are namespaces that it leaves
/// without a fork.
#[pyfunction]
#[pyo3(signature = (spec, command, stdio, *, inner=Vec::new()))]
pub(super) fn spawn(
    py: Python<'_>,
    spec: &Spec,
    command: &Command,
    stdio: (i32, i32, i32),
    inner: Vec<String>,
) -> PyResult<Spawned> {
    let program = &command.command;
    let program = Op::Program {
        candidates: program.candidates.clone(),
        argv: program.argv.clone(),
        envp: program.envp.clone(),
        cwd: program.cwd.clone(),
        tty: program.tty,
        session: program.tty,
    };
    let inner = namespaces(&inner)?;
    let spawned = Signals::run(py, |interrupt| {
        let plan = Plan::program(&spec.spec, inner, program)?;
        core::spawn(&plan, [stdio.0, stdio.1, stdio.2], interrupt)
    })?;
    Ok(Spawned { spawned })
}

#[pymethods]
impl Spawned {
    /// Its pid on the host.
    #[getter]
    fn pid(&self) -> i32 {
        self.spawned.pid
    }

    /// Its pidfd, owned by the object.
    fn fileno(&self) -> i32 {
        self.spawned.pidfd().as_raw_fd()
    }

    /// Its return code as subprocess gives it, or None if it still runs after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let status = Signals::run(py, |interrupt| self.spawned.wait(seconds(timeout), interrupt))?;
        Ok(status.map(|status| if status & 0x7f == 0 { status >> 8 & 0xff } else { -(status & 0x7f) }))
    }

    /// Sends a signal: false if it has ended.
    fn signal(&self, signal: i32) -> bool {
        self.spawned.signal(signal).is_ok()
    }
}

/// Starts a program in namespaces of the process behind `pidfd`, as nsenter(1) does.
#[pyfunction]
pub(super) fn enter(
    py: Python<'_>,
    pidfd: i32,
    namespaces: Vec<String>,
    command: &Command,
    stdio: (i32, i32, i32),
) -> PyResult<Process> {
    let namespaces = self::namespaces(&namespaces)?;
    let process = Signals::run(py, |interrupt| {
        let target = crate::sys::borrow(&pidfd);
        core::enter(target, namespaces, &command.command, [stdio.0, stdio.1, stdio.2], interrupt)
    })?;
    Ok(Process { process })
}

/// The namespaces of a process: `[(link, kind, inode)]`, in the order of `ls -l /proc/PID/ns`.
#[pyfunction]
#[pyo3(signature = (pid=None))]
pub(super) fn inspect(py: Python<'_>, pid: Option<i32>) -> PyResult<Vec<(String, String, u64)>> {
    let links = py.detach(|| crate::namespace::inspect(pid))?;
    Ok(links.into_iter().map(|link| (link.name, link.kind, link.inode)).collect())
}
