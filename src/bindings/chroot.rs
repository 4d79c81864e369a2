//! `_core.Rootfs` and the functions beside it, for `r2d2.chroot`: convert, release the interpreter, delegate.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::chroot::collect::Program;
use crate::chroot::elf::{Elf, NoElf};
use crate::chroot::explain::explain_exec_failure as explain;
use crate::chroot::minimal::{MinimalRequest, build_minimal as build};
use crate::chroot::resolve::Resolver;
use crate::chroot::rootfs::{InstallOptions, Report, Rootfs as Core};
use crate::error::{Error, Result};
use crate::sys::path::open_root;

/// Path in the root, text of the symlink or None, reason.
type Installed = (OsString, Option<OsString>, String);
/// Path, how it was found, who asked for it.
type Loaded = (OsString, String, Option<OsString>);

/// A directory of the host that becomes a container's root. `r2d2.chroot.Rootfs` is the public face of this class.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Rootfs {
    core: Core,
}

#[pymethods]
impl Rootfs {
    /// Opens `directory`; with `create` it is made if need be and given the tree of a root file system.
    #[new]
    fn new(py: Python<'_>, directory: PathBuf, create: bool) -> PyResult<Self> {
        let core = py.detach(|| if create { Core::create(&directory) } else { Core::open(&directory) });
        Ok(Self { core: core? })
    }

    /// Installs `(source, destination or None)` pairs; returns files as `(path, link or None, reason)`, and warnings.
    fn install(
        &self,
        py: Python<'_>,
        programs: Vec<(PathBuf, Option<PathBuf>)>,
        search_path: Option<OsString>,
    ) -> PyResult<(Vec<Installed>, Vec<String>)> {
        let options = InstallOptions { search_path };
        let report = py.detach(|| self.core.install(&to_programs(programs), &options));
        Ok(to_lists(report?))
    }

    /// Installs busybox and its applets; the same result.
    fn install_busybox(
        &self,
        py: Python<'_>,
        search_path: Option<OsString>,
    ) -> PyResult<(Vec<Installed>, Vec<String>)> {
        let options = InstallOptions { search_path };
        Ok(to_lists(py.detach(|| self.core.install_busybox(&options))?))
    }

    /// Writes passwd, group, hosts and nsswitch.conf where they are missing; the same result.
    fn minimal_etc(&self, py: Python<'_>) -> PyResult<(Vec<Installed>, Vec<String>)> {
        Ok(to_lists(py.detach(|| self.core.minimal_etc())?))
    }

    /// Why execve(2) of `path` inside the root fails, or None.
    fn explain(&self, py: Python<'_>, path: PathBuf) -> Option<String> {
        py.detach(|| explain(self.core.root(), &path))
    }
}

/// The directory of a minimal image in `store`, made if it is not there; see `r2d2.chroot.build_minimal`.
#[pyfunction]
pub(super) fn build_minimal(
    py: Python<'_>,
    store: PathBuf,
    programs: Vec<(PathBuf, Option<PathBuf>)>,
    busybox: bool,
    etc: bool,
    search_path: Option<OsString>,
) -> PyResult<OsString> {
    let request = MinimalRequest { programs: to_programs(programs), busybox, etc, search_path };
    Ok(py.detach(|| build(&store, &request))?.into_os_string())
}

/// What the ELF file `path` asks for, as a dict: `is_64` (bool), `machine` (int, `e_machine`), `interpreter`, `rpath`,
/// `runpath`, `soname` (str or None), `needed` (list of str) and `static` (bool).
///
/// Raises `OSError` if the file cannot be read, `ValueError` if it is no ELF file that is read here. Source: elf(5).
#[pyfunction]
#[pyo3(signature = (path) -> "dict[str, object]")]
pub(super) fn read_elf(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let elf = py.detach(|| std::fs::File::open(&path).map(|file| Elf::read(&file)));
    let elf = elf.map_err(|e| Error::io("read the ELF file", "open", &e, Some(&path)))?;
    let elf = elf.map_err(|why| {
        let why = match why {
            NoElf::NotElf => "not an ELF file",
            NoElf::Foreign => "an ELF file of the other byte order",
            NoElf::Malformed => "a malformed ELF file",
        };
        Error::spec(format!("{}: {why}", path.display()))
    })?;
    let dict = PyDict::new(py);
    dict.set_item("is_64", elf.is_64)?;
    dict.set_item("machine", elf.machine)?;
    dict.set_item("static", elf.is_static())?;
    dict.set_item("interpreter", elf.interpreter)?;
    dict.set_item("needed", elf.needed)?;
    dict.set_item("rpath", elf.rpath)?;
    dict.set_item("runpath", elf.runpath)?;
    dict.set_item("soname", elf.soname)?;
    Ok(dict)
}

/// What the program `path` loads inside `root` (as ldd(1), without running anything): a list of
/// `(path, how it was found, who asked)`, the program first, and a list of the names that are missing.
///
/// Raises `OSError` if it cannot be read, `ValueError` if it is no ELF file. Source: ld.so(8).
#[pyfunction]
pub(super) fn loaded_by(
    py: Python<'_>,
    path: PathBuf,
    root: PathBuf,
) -> PyResult<(Vec<Loaded>, Vec<OsString>)> {
    let step = "read the ELF file";
    let closure = py.detach(|| -> Result<_> {
        let root = open_root(&root).map_err(|errno| Error::step(step, "open", errno, Some(&root)))?;
        let mut resolver = Resolver::new(root.as_fd());
        let elf = resolver.read(&path).map_err(|errno| Error::step(step, "openat2", errno, Some(&path)))?;
        let Ok(elf) = elf else {
            return Err(Error::spec(format!("{}: not an ELF file that is read here", path.display())));
        };
        let closure = resolver.closure(&path, &path, &elf);
        let asked = |by: Option<usize>| by.map(|at| closure.objects[at].path.clone().into_os_string());
        let loaded = closure
            .objects
            .iter()
            .map(|o| (o.path.clone().into_os_string(), o.found.to_string(), asked(o.asked_by)));
        Ok((loaded.collect(), closure.missing.into_iter().map(|m| m.name).collect()))
    });
    Ok(closure?)
}

fn to_programs(pairs: Vec<(PathBuf, Option<PathBuf>)>) -> Vec<Program> {
    pairs.into_iter().map(|(source, destination)| Program { source, destination }).collect()
}

fn to_lists(report: Report) -> (Vec<Installed>, Vec<String>) {
    let text = |path: &Path| path.as_os_str().to_owned();
    let line =
        |i: &crate::chroot::rootfs::Installed| (text(&i.path), i.link.as_deref().map(text), i.reason.clone());
    (report.installed.iter().map(line).collect(), report.warnings)
}
