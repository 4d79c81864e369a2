//! `_core.Handle`: a running container, and the ways to get one; what `python/r2d2/container.py` stands on.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::errors::Signals;
use super::process::{Process, seconds};
use super::spec::{Command, Spec, StepInfo, User, path, steps};
use crate::container::{self as core, Plan};
use crate::error::Error;

/// A running container.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Handle {
    container: core::Container,
}

/// A container that is being started.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Starting {
    /// Its control socket; -1 once the start is over.
    control: AtomicI32,
}

#[pymethods]
impl Starting {
    /// Asks for the program that starts with it, once.
    fn exec(&self, py: Python<'_>, command: &Command, stdio: (i32, i32, i32)) -> PyResult<Process> {
        let control = self.control.swap(-1, Ordering::Relaxed);
        if control < 0 {
            return Err(Error::Closed { message: "only one program starts with a container".into() }.into());
        }
        let stdio = [stdio.0, stdio.1, stdio.2];
        let process = py.detach(|| core::submit(crate::sys::borrow(&control), &command.command, stdio, 1))?;
        Ok(Process { process })
    }
}

/// Starts a container. Two things are called while it is made, and end the start by what they raise: `first` with a
/// `Starting`, to ask for a program that starts with it; `member` with a pidfd of PID 1, not the callee's to close, to
/// start a child of this process in its namespaces. Those of users, PIDs and mounts exist, but need not have their
/// content yet; others need not exist. It says that child's pid, who is killed and waited for if the start fails
/// afterwards; if it raises, no such child may be left.
#[pyfunction]
#[pyo3(signature = (spec, first=None, member=None))]
pub(super) fn start(
    py: Python<'_>,
    spec: &Spec,
    first: Option<Py<PyAny>>,
    member: Option<Py<PyAny>>,
) -> PyResult<Handle> {
    let raised = Mutex::new(None);
    let give_up = |error| {
        *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        Error::Closed { message: "the start was given up".into() }
    };
    let mut ask = first.map(|first| {
        move |control: BorrowedFd<'_>| {
            Python::attach(|py| {
                let starting = Py::new(py, Starting { control: AtomicI32::new(control.as_raw_fd()) })?;
                let done = first.call1(py, (starting.clone_ref(py),));
                starting.get().control.store(-1, Ordering::Relaxed);
                done.map(drop)
            })
            .map_err(give_up)
        }
    });
    let mut fork = member.map(|member| {
        move |pidfd: BorrowedFd<'_>| {
            Python::attach(|py| member.call1(py, (pidfd.as_raw_fd(),))?.extract(py)).map_err(give_up)
        }
    });
    let result = Signals::run(py, |interrupt| {
        let first = ask.as_mut().map(|ask| ask as core::First<'_>);
        let member = fork.as_mut().map(|fork| fork as core::Member<'_>);
        Ok(core::Container::start_with(Plan::container(&spec.spec)?, first, member, interrupt))
    })?;
    drop((ask, fork));
    match (result, raised.into_inner().unwrap_or_else(PoisonError::into_inner)) {
        (Err(Error::Closed { .. }), Some(error)) => Err(error),
        // That PID 1 has failed, too, may explain an error, but no interrupt.
        (Err(_), Some(error)) if !error.is_instance_of::<PyOSError>(py) => Err(error),
        (result, _) => Ok(Handle { container: result? }),
    }
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
    let container = Signals::run(py, |interrupt| {
        core::Container::start_detached(Plan::container(&spec.spec)?, reach, interrupt)
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

    /// Knows of a child of this process in its PID namespace, who has to be waited for before it ends.
    fn admit(&self, py: Python<'_>, pid: i32) -> PyResult<()> {
        Ok(py.detach(|| self.container.admit(pid))?)
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
