//! `_core.probe`: what `doctor()` stands on.

use pyo3::prelude::*;

/// Tries, in a child, what a container needs; nothing of it is left.
///
/// Args: the name of a probe (`src/container/probe.rs` lists them). Returns a number where there is one to tell
/// (`landlock`: the version of its interface), else None. Raises what the start of a container would raise.
#[pyfunction]
pub(super) fn probe(py: Python<'_>, name: &str) -> PyResult<Option<u32>> {
    Ok(py.detach(|| crate::container::probe::run(name))?)
}
