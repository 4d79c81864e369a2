//! The one error type of the core.
//!
//! Errors carry facts and no advice: which step, which system call, which errno, which path, and what the
//! kernel's own log said. `python/r2d2/hints.py` turns those facts into a remedy. `src/bindings/errors.rs` is the
//! only place that turns them into Python exceptions. Built in the calling process; a child reports numbers
//! only (see `container::report`) and the caller words them here.

use std::path::PathBuf;

pub use nix::errno::Errno;

/// What went wrong, as facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument that can never work; found before any process exists.
    #[error("{message}")]
    Spec {
        /// Names the argument, its value and what is allowed.
        message: String,
    },
    /// This host or kernel lacks what was asked for.
    #[error("{message}")]
    Unsupported {
        /// What is missing.
        message: String,
        /// The errno that showed it.
        errno: Errno,
    },
    /// A step of a plan, or of a primitive, was refused by the kernel.
    #[error("{step}: {syscall}{}: {}{}", path.as_ref().map(|p| format!("({})", p.display())).unwrap_or_default(), describe(*errno), detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Step {
        /// Which step, as `explain()` prints it; for example `step 4 of 12, mount overlay on /`.
        step: String,
        /// The system call that failed, by its man page's name.
        syscall: &'static str,
        /// Its errno.
        errno: Errno,
        /// The path it was given, if any.
        path: Option<PathBuf>,
        /// What else is known, such as the message that the kernel left in the mount context's log.
        detail: Option<String>,
    },
    /// An image cannot be used: not there, malformed, or a program of it cannot run.
    #[error("{message}")]
    Image {
        /// What and where.
        message: String,
        /// `ENOENT` where something is missing.
        errno: Errno,
    },
    /// The handle is no longer usable.
    #[error("{message}")]
    Closed {
        /// Whose handle, and since when.
        message: String,
    },
}

/// Shorthand of the core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A refused argument.
    pub fn spec(message: impl Into<String>) -> Self {
        Self::Spec { message: message.into() }
    }

    /// A failed system call of the step `step`, on `path`.
    pub fn step(
        step: impl Into<String>,
        syscall: &'static str,
        errno: Errno,
        path: Option<impl Into<PathBuf>>,
    ) -> Self {
        Self::Step { step: step.into(), syscall, errno, path: path.map(Into::into), detail: None }
    }

    /// The same for an error of the standard library.
    pub fn io(
        step: impl Into<String>,
        syscall: &'static str,
        error: &std::io::Error,
        path: Option<impl Into<PathBuf>>,
    ) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::step(step, syscall, errno, path)
    }

    /// The errno, where the error has one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Unsupported { errno, .. } | Self::Step { errno, .. } | Self::Image { errno, .. } => {
                Some(*errno)
            }
            Self::Spec { .. } | Self::Closed { .. } => None,
        }
    }
}

/// `EPERM: Operation not permitted`.
fn describe(errno: Errno) -> String {
    format!("{errno:?}: {}", errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_step_syscall_errno_and_path() {
        let error = Error::step("step 4 of 12, mount overlay on /", "fsconfig", Errno::EPERM, Some("/a:b"));
        assert_eq!(
            error.to_string(),
            "step 4 of 12, mount overlay on /: fsconfig(/a:b): EPERM: Operation not permitted"
        );
    }
}
