//! `_core.Root`: the files of a container, for `python/r2d2/files.py` and `users.py`. Paths are bytes.

use std::ffi::{OsStr, OsString};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::Signals;
use crate::chroot::explain::explain_exec_failure;
use crate::container::{self as core, CopyOptions, Files, PartKind, Tree};
use crate::error::Errno;

/// The root directory of a container, or a directory of the host taken as one.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct Root {
    pub(super) files: Files,
}

/// mode, ino, dev, nlink, uid, gid (inside), size, times in ns: atime, mtime, ctime, blocks, rdev.
type Stat = (u32, u64, u64, u64, u32, u32, i64, i128, i128, i128, i64, u64);
/// Path that the source became, what was skipped and why, files, bytes.
type Copied<'py> = (Bound<'py, PyBytes>, Vec<(Bound<'py, PyBytes>, &'static str)>, u64, u64);

/// Kind (`overlay`, `directory`, `symlink`, `file`, `mount`, `our directory`, `our file`), path, upper, lowers,
/// precreated, text of a symlink or file.
pub(super) type Part = (&'static str, OsString, OsString, Vec<OsString>, Vec<OsString>, Vec<u8>);

/// A piece of a root directory, for `diff()`.
pub(super) fn part(part: core::Part) -> Part {
    let plain =
        |kind, path: PathBuf, text| (kind, path.into(), OsString::new(), Vec::new(), Vec::new(), text);
    match part.kind {
        PartKind::Overlay { upper, lowers, precreated } => {
            let lowers = lowers.into_iter().map(Into::into).collect();
            let precreated = precreated.into_iter().map(Into::into).collect();
            ("overlay", part.path.into(), upper.into(), lowers, precreated, Vec::new())
        }
        PartKind::Directory => plain("directory", part.path, Vec::new()),
        PartKind::Symlink(text) => plain("symlink", part.path, text),
        PartKind::File(text) => plain("file", part.path, text),
        PartKind::OurDirectory => plain("our directory", part.path, Vec::new()),
        PartKind::OurFile(text) => plain("our file", part.path, text),
        PartKind::MountPoint => plain("mount", part.path, Vec::new()),
    }
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The exception that the `os` module would raise: OSError picks its subclass by errno.
fn refused(errno: Errno, path: &[u8]) -> PyErr {
    Python::attach(|py| {
        let os = |name: &str| py.import("os").and_then(|os| os.getattr(name));
        let filename = os("fsdecode").and_then(|decode| decode.call1((PyBytes::new(py, path),)));
        let text = os("strerror").and_then(|strerror| strerror.call1((errno as i32,)));
        match (text, filename) {
            (Ok(text), Ok(filename)) => PyOSError::new_err((errno as i32, text.unbind(), filename.unbind())),
            (Err(error), _) | (_, Err(error)) => error,
        }
    })
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

fn timespec(ns: i128) -> (i64, i64) {
    (ns.div_euclid(1_000_000_000) as i64, ns.rem_euclid(1_000_000_000) as i64)
}

impl Root {
    fn stat_of(&self, s: &FileStat) -> Stat {
        (
            s.st_mode,
            s.st_ino,
            s.st_dev,
            s.st_nlink,
            self.files.uid(s.st_uid),
            self.files.gid(s.st_gid),
            s.st_size,
            nanoseconds(s.st_atime, s.st_atime_nsec),
            nanoseconds(s.st_mtime, s.st_mtime_nsec),
            nanoseconds(s.st_ctime, s.st_ctime_nsec),
            s.st_blocks,
            s.st_rdev,
        )
    }

    /// Without the interpreter; a failure names `name`.
    fn work<T: Send>(
        &self,
        py: Python<'_>,
        name: &[u8],
        work: impl Send + FnOnce(Tree<'_>) -> nix::Result<T>,
    ) -> PyResult<T> {
        Signals::run(py, |interrupt| Ok(self.files.with(interrupt, work)))?.map_err(|e| refused(e, name))
    }
}

#[pymethods]
impl Root {
    /// A directory of the host as a root directory.
    #[new]
    fn new(py: Python<'_>, directory: Vec<u8>) -> PyResult<Self> {
        Ok(Self { files: py.detach(|| Files::of_directory(path(&directory)))? })
    }

    /// Lets go of it; later calls raise OSError (EBADF).
    fn close(&self) {
        self.files.close();
    }

    /// A descriptor of a regular file, which the caller must close. `flags`: the access mode and any of O_CREAT,
    /// O_EXCL, O_TRUNC, O_APPEND, O_NOFOLLOW. A FIFO, device or socket is EINVAL.
    #[pyo3(signature = (name, flags, mode = 0o666))]
    fn open(&self, py: Python<'_>, name: Vec<u8>, flags: i32, mode: u32) -> PyResult<i32> {
        let flags = OFlag::from_bits_truncate(flags);
        let fd = self.work(py, &name, |tree| tree.open(path(&name), flags, mode))?;
        Ok(fd.into_raw_fd())
    }

    /// stat(2), or lstat(2); owners as they are inside.
    #[pyo3(signature = (name, follow = true))]
    fn stat(&self, py: Python<'_>, name: Vec<u8>, follow: bool) -> PyResult<Stat> {
        let stat = self.work(py, &name, |tree| tree.stat(path(&name), follow))?;
        Ok(self.stat_of(&stat))
    }

    /// The names in a directory.
    fn listdir<'py>(&self, py: Python<'py>, name: Vec<u8>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let names = self.work(py, &name, |tree| tree.list(path(&name)))?;
        Ok(names.iter().map(|name| PyBytes::new(py, name.as_bytes())).collect())
    }

    /// The entries of a directory as `(name, lstat)`, None for one on another file system.
    fn entries<'py>(
        &self,
        py: Python<'py>,
        name: Vec<u8>,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, Option<Stat>)>> {
        let entries = self.work(py, &name, |tree| tree.entries(path(&name)))?;
        let convert = |entry: &crate::container::Entry| {
            (PyBytes::new(py, entry.name.as_bytes()), entry.stat.as_ref().map(|stat| self.stat_of(stat)))
        };
        Ok(entries.iter().map(convert).collect())
    }

    /// mkdir(2).
    #[pyo3(signature = (name, mode = 0o777))]
    fn mkdir(&self, py: Python<'_>, name: Vec<u8>, mode: u32) -> PyResult<()> {
        self.work(py, &name, |tree| tree.mkdir(path(&name), mode))
    }

    /// unlink(2).
    fn unlink(&self, py: Python<'_>, name: Vec<u8>) -> PyResult<()> {
        self.work(py, &name, |tree| tree.remove(path(&name), false))
    }

    /// rmdir(2).
    fn rmdir(&self, py: Python<'_>, name: Vec<u8>) -> PyResult<()> {
        self.work(py, &name, |tree| tree.remove(path(&name), true))
    }

    /// symlink(2).
    fn symlink(&self, py: Python<'_>, target: Vec<u8>, name: Vec<u8>) -> PyResult<()> {
        self.work(py, &name, |tree| tree.symlink(OsStr::from_bytes(&target), path(&name)))
    }

    /// readlink(2).
    fn readlink<'py>(&self, py: Python<'py>, name: Vec<u8>) -> PyResult<Bound<'py, PyBytes>> {
        let text = self.work(py, &name, |tree| tree.readlink(path(&name)))?;
        Ok(PyBytes::new(py, &text.into_vec()))
    }

    /// rename(2).
    fn rename(&self, py: Python<'_>, name: Vec<u8>, target: Vec<u8>) -> PyResult<()> {
        self.work(py, &name, |tree| tree.rename(path(&name), path(&target)))
    }

    /// chmod(2).
    #[pyo3(signature = (name, mode, follow = true))]
    fn chmod(&self, py: Python<'_>, name: Vec<u8>, mode: u32, follow: bool) -> PyResult<()> {
        self.work(py, &name, |tree| tree.chmod(path(&name), mode, follow))
    }

    /// chown(2), in ids of the container; -1 leaves one as it is.
    #[pyo3(signature = (name, uid, gid, follow = true))]
    fn chown(&self, py: Python<'_>, name: Vec<u8>, uid: i64, gid: i64, follow: bool) -> PyResult<()> {
        self.work(py, &name, |tree| tree.chown(path(&name), uid as u32, gid as u32, follow))
    }

    /// utimensat(2), in nanoseconds.
    #[pyo3(signature = (name, atime_ns, mtime_ns, follow = true))]
    fn utime(
        &self,
        py: Python<'_>,
        name: Vec<u8>,
        atime_ns: i128,
        mtime_ns: i128,
        follow: bool,
    ) -> PyResult<()> {
        let (atime, mtime) = (timespec(atime_ns), timespec(mtime_ns));
        self.work(py, &name, |tree| tree.utime(path(&name), atime, mtime, follow))
    }

    /// truncate(2).
    fn truncate(&self, py: Python<'_>, name: Vec<u8>, size: i64) -> PyResult<()> {
        self.work(py, &name, |tree| tree.truncate(path(&name), size))
    }

    /// Copies from the host into it, or with `out` the other way round: `(path, [(skipped, why)], files, bytes)`.
    #[pyo3(signature = (source, target, *, out, contents, follow, into, special_bits))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keywords of one Python call"
    )]
    fn copy<'py>(
        &self,
        py: Python<'py>,
        source: Vec<u8>,
        target: Vec<u8>,
        out: bool,
        contents: bool,
        follow: bool,
        into: bool,
        special_bits: bool,
    ) -> PyResult<Copied<'py>> {
        let options = CopyOptions { contents, follow, into, special_bits };
        let copied = Signals::run(py, |interrupt| {
            Ok(self.files.copy(path(&source), path(&target), out, options, interrupt))
        })?;
        let report = copied.map_err(|failure| refused(failure.errno, failure.path.as_os_str().as_bytes()))?;
        let bytes = |path: &Path| PyBytes::new(py, path.as_os_str().as_bytes());
        let skipped = report.skipped.iter().map(|(path, why)| (bytes(path), *why)).collect();
        Ok((bytes(&report.path), skipped, report.files, report.bytes))
    }

    /// Why execve of an absolute path fails; None where it is not there, or nothing wrong is found.
    fn explain_exec(&self, py: Python<'_>, program: Vec<u8>) -> PyResult<Option<String>> {
        self.work(py, &program, |tree| Ok(explain_exec_failure(tree.dir, path(&program))))
    }

    /// A descriptor of the directory itself (`O_PATH`), which the caller must close.
    fn dup(&self, py: Python<'_>) -> PyResult<i32> {
        let dup = |tree: Tree<'_>| tree.dir.try_clone_to_owned().map_err(|_| Errno::EMFILE);
        Ok(self.work(py, b"/", dup)?.into_raw_fd())
    }
}
