//! `_core.cgroup_report`: what this user can do with cgroups, for `doctor()`.

use crate::cgroup::discover::Version;
use crate::cgroup::{self, Controller};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Which cgroup versions are mounted and which controllers this process can use; nothing is created.
///
/// Returns a dict: `layout` (`'v2'`, `'hybrid'`, `'bare-hybrid'`, `'v1'` or `'none'`); `controllers`, a dict from
/// `memory`, `pids`, `cpu`, `cpuset` and `freezer` to a dict of `version` (1, 2 or None), `usable` (bool), `parent`
/// (the directory below which a container's would be made, or None) and `why` (str or None); and `rlimit_pids`,
/// None if `RLIMIT_NPROC` can stand in for `pids` in a single-id user namespace, else the reason. Source: cgroups(7).
#[pyfunction]
#[pyo3(signature = () -> "dict[str, object]")]
pub(super) fn cgroup_report(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let report = py.detach(cgroup::report);
    let controllers = PyDict::new(py);
    for controller in &report.controllers {
        controllers.set_item(controller.name, describe(py, controller)?)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("layout", report.layout.name())?;
    dict.set_item("controllers", controllers)?;
    dict.set_item("rlimit_pids", report.rlimit_pids)?;
    Ok(dict)
}

fn describe<'py>(py: Python<'py>, controller: &Controller) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let version = controller.version.map(|version| if version == Version::V1 { 1 } else { 2 });
    dict.set_item("version", version)?;
    dict.set_item("usable", controller.parent.is_ok())?;
    // An os.fspath-able str with surrogateescape, as the os module gives paths.
    dict.set_item("parent", controller.parent.as_ref().ok().map(|path| path.as_os_str()))?;
    dict.set_item("why", controller.parent.as_ref().err())?;
    Ok(dict)
}
