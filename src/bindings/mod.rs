//! The rooms that know `PyO3`. They convert arguments and results and delegate; no logic lives here.

mod cgroup;
mod chroot;
mod container;
mod errors;
mod namespace;
mod overlay;
mod probe;
mod process;
mod root;
mod slirp;
mod spec;

/// The extension module `r2d2._core`.
#[pyo3::pymodule]
mod _core {
    /// How it was built: the profile's optimisation decides whether a figure means anything.
    #[pymodule_export]
    const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
    #[pymodule_export]
    use super::cgroup::cgroup_report;
    #[pymodule_export]
    use super::chroot::{Rootfs, build_minimal, loaded_by, read_elf};
    #[pymodule_export]
    use super::container::{Handle, Starting, attach, find, is_program, start, start_detached};
    #[pymodule_export]
    use super::namespace::{Spawned, enter, fork_into, inspect, setns, spawn};
    #[pymodule_export]
    use super::overlay::{OverlayOptions, host_layout, overlay_diff};
    #[pymodule_export]
    use super::probe::probe;
    #[pymodule_export]
    use super::process::Process;
    #[pymodule_export]
    use super::root::Root;
    #[pymodule_export]
    use super::slirp::{Network, SpareEngine};
    #[pymodule_export]
    use super::spec::{Command, Spec, StepInfo};
}
