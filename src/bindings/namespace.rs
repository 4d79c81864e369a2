//! Programs in namespaces without a container: `_core.spawn` (unshare(1)), `_core.enter` (nsenter(1)) and
//! `_core.inspect`, for `python/r2d2/namespace.py` and `chroot.py`.

use std::os::fd::AsRawFd;

use pyo3::prelude::*;

use super::errors::Signals;
use super::process::{Process, seconds};
use super::spec::{Command, Spec, namespaces as set_of};
use crate::container::{self as core, Op, Plan};
use crate::error::Error;

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
    let inner = set_of(&inner)?;
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
    let namespaces = set_of(&namespaces)?;
    let process = Signals::run(py, |interrupt| {
        let target = crate::sys::borrow(&pidfd);
        core::enter(target, namespaces, &command.command, [stdio.0, stdio.1, stdio.2], interrupt)
    })?;
    Ok(Process { process })
}

/// fork(2) whose child is in these namespaces of the process behind `pidfd`, of which one may be a user namespace
/// whatever threads the caller has. `fork` is `os.fork`; what it returns, 0 in the child, is appended to the list
/// `forked` before a handler of a signal that came meanwhile can raise anything.
#[pyfunction]
pub(super) fn fork_into(
    py: Python<'_>,
    pidfd: i32,
    namespaces: Vec<String>,
    fork: Py<PyAny>,
    forked: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let flags = set_of(&namespaces)?.flags();
    let mut raised = None;
    let mut call = || {
        let pid = fork.call0(py).and_then(|pid| pid.extract::<i32>(py));
        let noted = pid.and_then(|pid| forked.call_method1("append", (pid,)).map(|_| pid));
        noted.map_err(|error| raised = Some(error)).ok()
    };
    let done = crate::sys::fork::fork_into(crate::sys::borrow(&pidfd), flags, &mut call);
    match (raised, done) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(()),
        (None, Err((call, errno))) => {
            let step = format!("fork into namespaces ({})", namespaces.join(", "));
            Err(Error::step(step, call, errno, None::<&str>).into())
        }
    }
}

/// Moves this thread, which must be its process's only one if one of them is a user namespace, into these namespaces of
/// the process behind `pidfd`: setns(2).
#[pyfunction]
pub(super) fn setns(pidfd: i32, namespaces: Vec<String>) -> PyResult<()> {
    let flags = nix::sched::CloneFlags::from_bits_retain(set_of(&namespaces)?.flags() as i32);
    nix::sched::setns(crate::sys::borrow(&pidfd), flags).map_err(|errno| {
        let step = format!("join namespaces ({})", namespaces.join(", "));
        Error::step(step, "setns", errno, None::<&str>).into()
    })
}

/// The namespaces of a process: `[(link, kind, inode)]`, in the order of `ls -l /proc/PID/ns`.
#[pyfunction]
#[pyo3(signature = (pid=None))]
pub(super) fn inspect(py: Python<'_>, pid: Option<i32>) -> PyResult<Vec<(String, String, u64)>> {
    let links = py.detach(|| crate::namespace::inspect(pid))?;
    Ok(links.into_iter().map(|link| (link.name, link.kind, link.inode)).collect())
}
