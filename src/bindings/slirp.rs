//! `_core.Network`, for `r2d2.slirp`: convert, release the interpreter, delegate.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use crate::slirp::attach;
use crate::sys;

/// A running network engine; `r2d2.slirp.Slirp` is the public face.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Network(attach::Network);

fn borrowed(fds: &[RawFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(sys::borrow).collect()
}

/// An engine's process that waits for its network; it ends with this object, if no network was made of it.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct SpareEngine(Mutex<Option<attach::Spare>>);

impl SpareEngine {
    fn take(&self) -> Option<attach::Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl SpareEngine {
    /// Starts the process.
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self(Mutex::new(Some(py.detach(attach::Spare::start)?))))
    }

    /// Ends it and waits for it, unless it became a network's.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

#[pymethods]
impl Network {
    /// Starts an engine for the namespaces that `fds` name, or takes a spare one. The descriptors stay the caller's.
    #[new]
    #[pyo3(signature = (description, fds, spare = None))]
    fn new(
        py: Python<'_>,
        description: &str,
        fds: Vec<RawFd>,
        spare: Option<&SpareEngine>,
    ) -> PyResult<Self> {
        let spare = spare.and_then(SpareEngine::take);
        Ok(Self(py.detach(|| attach::Network::attach(spare, description, &borrowed(&fds)))?))
    }

    /// Makes one interface of a network of containers: what it is, and its descriptor, which is the caller's.
    #[staticmethod]
    fn interface(py: Python<'_>, description: &str, fds: Vec<RawFd>) -> PyResult<(String, RawFd)> {
        let made = py.detach(|| attach::Network::interface(description, &borrowed(&fds)))?;
        Ok((made.0, made.1.into_raw_fd()))
    }

    /// Sends one request; what follows `ok` in the reply.
    #[pyo3(signature = (text, fds = Vec::new()))]
    fn request(&self, py: Python<'_>, text: &str, fds: Vec<RawFd>) -> PyResult<String> {
        Ok(py.detach(|| self.0.request(text, &borrowed(&fds)))?)
    }

    /// The engine's process.
    #[getter]
    fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// `tap`, or `packet` for a veth pair.
    #[getter]
    fn device(&self) -> &str {
        self.0.device()
    }

    /// A descriptor that becomes readable when the engine has ended.
    fn fileno(&self) -> RawFd {
        self.0.pidfd().as_raw_fd()
    }

    /// True while the engine runs.
    fn alive(&self) -> bool {
        self.0.alive()
    }

    /// How the engine ended: an exit code, or a signal's number negated; None while it runs.
    fn outcome(&self) -> Option<i32> {
        self.0.outcome()
    }

    /// Lets it live on without us, as long as the process that it is attached to; this object is closed.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.0.leave())?)
    }

    /// Ends the engine and waits for it.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
