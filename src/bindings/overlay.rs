//! `_core.overlay_*`, for `r2d2.overlay` and `explain()`: convert, release the interpreter, delegate.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
use crate::overlay::diff::{self, Marks, Meta};
use crate::overlay::layout::{self, Kind};
use crate::overlay::options::{self, Method, Options};
use crate::sys::path::open_root;

/// Type, mode, uid, gid, size, mtime in nanoseconds.
type Side = (&'static str, u32, u32, u32, u64, i128);
/// Path, kind, before, after, opaque, path before the rename.
type Change = (OsString, &'static str, Option<Side>, Option<Side>, bool, Option<OsString>);
/// Path, mode, kind, symlink text, precreated directories with their modes.
type Part = (OsString, u32, &'static str, Option<OsString>, Vec<(OsString, u32)>);
/// Path, why it is not as on the host.
type Note = (OsString, String);
/// Key and value of one fsconfig(2).
type Call<'py> = (String, Option<Bound<'py, PyBytes>>);
/// Path, and the number its descriptor must get.
type Opens = Vec<(OsString, RawFd)>;

/// What the upper layer changed; `r2d2.overlay.diff` is the public face. The descriptors may be `O_PATH`; they are
/// duplicated and stay the caller's. `marks` is `'either'`, `'trusted'` or `'user'`.
#[pyfunction]
#[pyo3(signature = (upper_fd, lower_fds, prefix = None, marks = "either", precreated = Vec::new()))]
pub(super) fn overlay_diff(
    py: Python<'_>,
    upper_fd: RawFd,
    lower_fds: Vec<RawFd>,
    prefix: Option<PathBuf>,
    marks: &str,
    precreated: Vec<PathBuf>,
) -> PyResult<Vec<Change>> {
    let marks = match marks {
        "either" => Marks::Either,
        "trusted" => Marks::Trusted,
        "user" => Marks::User,
        other => {
            return Err(PyValueError::new_err(format!("marks: {other:?} is not either, trusted or user")));
        }
    };
    let precreated = precreated.into_iter().collect();
    let options = diff::Options { prefix: prefix.unwrap_or_default(), marks, precreated };
    let changes = py.detach(|| {
        // A new descriptor of the same directory, however the caller opened it, and without trusting the number.
        let own = |fd: RawFd| {
            let link = format!("/proc/self/fd/{fd}");
            open_root(Path::new(&link))
                .map_err(|errno| Error::step("take a layer", "open", errno, Some(link)))
        };
        let upper = own(upper_fd)?;
        let lowers = lower_fds.into_iter().map(own).collect::<Result<Vec<OwnedFd>, _>>()?;
        let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
        diff::diff_with(upper.as_fd(), &lowers, &options)
    });
    Ok(changes.map_err(to_python)?.into_iter().map(change).collect())
}

fn change(change: diff::Change) -> Change {
    let diff::Change { path, kind, opaque, from, after, before } = change;
    (path.into(), kind.name(), before.map(side), after.map(side), opaque, from.map(Into::into))
}

fn side(meta: Meta) -> Side {
    let mtime = i128::from(meta.mtime.0) * 1_000_000_000 + i128::from(meta.mtime.1);
    (meta.file_type.name(), meta.mode, meta.uid, meta.gid, meta.size, mtime)
}

/// An overlay as the kernel is told: `options` below, for a kernel of `release` (`uname -r`) or by `mount2`.
#[pyclass(frozen, module = "r2d2._core")]
pub(super) struct OverlayOptions {
    options: Options,
}

#[pymethods]
impl OverlayOptions {
    /// Raises `ValueError` for what no kernel takes.
    #[new]
    #[pyo3(signature = (lowers, upper = None, work = None, *, userxattr = false, volatile = false, user_namespace = false, redirect = false))]
    #[allow(
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments, each a mount option of its own name"
    )]
    fn new(
        lowers: Vec<PathBuf>,
        upper: Option<PathBuf>,
        work: Option<PathBuf>,
        userxattr: bool,
        volatile: bool,
        user_namespace: bool,
        redirect: bool,
    ) -> PyResult<Self> {
        let options = Options { lowers, upper, work, userxattr, volatile, user_namespace, redirect };
        options.check().map_err(to_python)?;
        Ok(Self { options })
    }

    /// The calls of fsconfig(2) as `(key, value or None)`, for a kernel of `release`, and the directories to open
    /// first as `(path, descriptor)`, numbered from `first_fd`. No calls before 6.5, where only mount(2) will do.
    fn calls<'py>(
        &self,
        py: Python<'py>,
        release: &str,
        first_fd: RawFd,
    ) -> PyResult<(Vec<Call<'py>>, Opens)> {
        let plan = self.options.plan(Method::of_release(release), first_fd).map_err(to_python)?;
        let call = |call: &options::Call| {
            let value = call.value.as_ref().map(|value| PyBytes::new(py, value.to_bytes()));
            (call.key.to_string_lossy().into_owned(), value)
        };
        Ok((plan.calls.iter().map(call).collect(), opens(&plan)))
    }

    /// The last argument of mount(2), and the directories to open first.
    fn data<'py>(&self, py: Python<'py>, first_fd: RawFd) -> PyResult<(Bound<'py, PyBytes>, Opens)> {
        let plan = self.options.plan(Method::Mount2, first_fd).map_err(to_python)?;
        Ok((PyBytes::new(py, plan.data.to_bytes()), opens(&plan)))
    }

    /// The line for sh(1) that makes the same overlay on `merged`.
    fn line(&self, merged: PathBuf) -> PyResult<OsString> {
        self.options.mount_line(&merged).map_err(to_python)
    }
}

fn opens(plan: &options::Plan) -> Opens {
    plan.opens.iter().map(|open| (OsStr::from_bytes(open.path.to_bytes()).to_owned(), open.fd)).collect()
}

/// How this machine's tree becomes a container's root: `(parts, notes)`. A part is `(path, mode, kind, symlink text,
/// precreated)` with a kind of `dir`, `symlink`, `overlay`, `copy` or `bind`; a note is `(path, why)`.
#[pyfunction]
#[pyo3(signature = (exclude = Vec::new(), user_namespace = true))]
pub(super) fn host_layout(
    py: Python<'_>,
    exclude: Vec<PathBuf>,
    user_namespace: bool,
) -> PyResult<(Vec<Part>, Vec<Note>)> {
    let layout = py.detach(|| layout::host(&exclude, user_namespace)).map_err(to_python)?;
    let notes = layout.notes.into_iter().map(|note| (note.path.into(), note.why)).collect();
    Ok((layout.parts.into_iter().map(part).collect(), notes))
}

fn part(part: layout::Part) -> Part {
    let (kind, target, precreate) = match part.kind {
        Kind::Dir => ("dir", None, Vec::new()),
        Kind::Symlink(target) => ("symlink", Some(target.into()), Vec::new()),
        Kind::Overlay(precreate) => ("overlay", None, precreate),
        Kind::Copy => ("copy", None, Vec::new()),
        Kind::Bind => ("bind", None, Vec::new()),
    };
    let precreate = precreate.into_iter().map(|dir| (dir.path.into(), dir.mode)).collect();
    (part.path.into(), part.mode, kind, target, precreate)
}

/// Until `bindings::errors` words all errors of the core.
fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Spec { .. } => PyValueError::new_err(message),
        Error::Step { errno, path: Some(path), .. } => PyOSError::new_err((errno as i32, message, path)),
        other => PyOSError::new_err((other.errno().unwrap_or(Errno::EIO) as i32, message)),
    }
}
