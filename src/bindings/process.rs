//! `_core.Process`: a program in a container, as `python/r2d2/process.py` waits for it.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::Signals;
use crate::container::{self as core, Outcome};

pub(super) fn seconds(timeout: Option<f64>) -> Option<Duration> {
    timeout.map(|t| Duration::try_from_secs_f64(t.max(0.0)).unwrap_or(Duration::MAX))
}

/// A program in a container.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Process {
    pub(super) process: core::Process,
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
