//! The one bridge from the core's errors to Python's exceptions. Their classes, and the hints they carry, live in
//! `python/r2d2/errors.py` and `hints.py`: an exception class of an abi3 extension cannot inherit from OSError.

use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| exception(py, &error).unwrap_or_else(|failed| failed))
    }
}

/// `r2d2.errors.from_core(kind, message, errno, step, syscall, path, detail)` makes the exception.
fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let errno = error.errno().map(|errno| errno as i32);
    let (kind, step, syscall, path, detail) = match error {
        Error::Spec { .. } => ("spec", None, None, None, None),
        Error::Unsupported { .. } => ("unsupported", None, None, None, None),
        Error::Image { .. } => ("image", None, None, None, None),
        Error::Closed { .. } => ("closed", None, None, None, None),
        Error::Step { step, syscall, path, detail, .. } => {
            ("step", Some(step), Some(*syscall), path.as_ref(), detail.as_ref())
        }
    };
    let path = path.map(|path| PyBytes::new(py, path.as_os_str().as_bytes()));
    let message = error.to_string().into_py_any(py)?;
    let value = py
        .import("r2d2.errors")?
        .getattr("from_core")?
        .call1((kind, message, errno, step, syscall, path, detail))?;
    Ok(PyErr::from_value(value))
}

/// Lets Python's signal handlers run while a call of the core waits, and keeps what they raise.
#[derive(Default)]
pub(super) struct Signals(Mutex<Option<PyErr>>);

impl Signals {
    /// For the core: true if a handler raised.
    pub(super) fn raised(&self) -> bool {
        Python::attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(error) => {
                if let Ok(mut slot) = self.0.lock() {
                    *slot = Some(error);
                }
                true
            }
        })
    }

    /// Runs `wait` without the GIL. What a handler raised takes precedence over its result.
    pub(super) fn run<T: Send>(
        py: Python<'_>,
        wait: impl Send + FnOnce(&dyn Fn() -> bool) -> Result<T, Error>,
    ) -> PyResult<T> {
        let signals = Self::default();
        let result = py.detach(|| wait(&|| signals.raised()));
        if let Some(error) = signals.0.into_inner().ok().flatten() {
            return Err(error);
        }
        Ok(result?)
    }
}
