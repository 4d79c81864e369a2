//! Options of an overlay mount, as plain data ready to hand to the kernel. Pure but for [`Method::here`], a uname(2),
//! so it runs in the calling process and its strings are finished before any child exists.
//!
//! Three ways lead into the kernel, each with its own escaping and its own limit (all tried on 6.18 by
//! `tests/test_overlay_options.py`, the older ones from fs/overlayfs/params.c and super.c):
//!
//! | way | lower layers | escaped there | longest value |
//! | --- | --- | --- | --- |
//! | [`Method::Append`], fsconfig(2), Linux 6.5 | one `lowerdir+` each | nothing, the bytes as they are | 255 |
//! | [`Method::Join`], fsconfig(2) before 6.5 | `lowerdir=a:b` | `\` and `:`; a comma cannot pass at all | 255 |
//! | [`Method::Mount2`], mount(2) | `lowerdir=a:b` | `\`, `:` and `,` | all options: a page less its NUL, 4095 |
//!
//! `upperdir` and `workdir` are unescaped by the kernel on every way (`\` must be doubled) while `lowerdir+` is not.
//! A path too long for its way is opened (`O_PATH|O_DIRECTORY`) and passed as `/proc/self/fd/N`: the plan lists
//! such paths in [`Plan::opens`] with the number that the descriptor must get. They must be opened *in the mount
//! namespace that mounts*: a descriptor from before the unshare is refused with `EINVAL`.
//!
//! What may be said in a user namespace: `redirect_dir=on|off` and `metacopy=on` are refused there (`EPERM`), and
//! beside `userxattr` everywhere (`EINVAL`), so nothing is said about them then: the kernel turns both off by
//! itself. For real root both are turned off aloud, since a module parameter may have turned them on.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::mountinfo::{self, Mount};
use crate::error::{Errno, Error, Result};

/// `OVL_MAX_STACK`: lower layers that one overlay takes.
pub const MAX_LOWERS: usize = 500;
/// `FILESYSTEM_MAX_STACK_DEPTH`: an overlay may be the layer of an overlay, but not of one more.
pub const MAX_DEPTH: usize = 2;
/// The longest value of one fsconfig(2) `FSCONFIG_SET_STRING`.
pub const MAX_VALUE: usize = 255;
/// The longest option string of mount(2): a page, less the NUL.
pub const MAX_DATA: usize = 4095;
/// `PATH_MAX` less its NUL: a longer path cannot even be opened.
const MAX_PATH: usize = 4095;
/// An overlay mount as the user means it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a mount option of its own name")]
pub struct Options {
    /// Lower layers, the topmost first.
    pub lowers: Vec<PathBuf>,
    /// Where writes go; without it the overlay is read-only and needs two lower layers.
    pub upper: Option<PathBuf>,
    /// Empty directory on the upper's file system; wanted exactly when `upper` is.
    pub work: Option<PathBuf>,
    /// Keep the overlay's marks in `user.overlay.*` instead of `trusted.overlay.*` (Linux 5.11); an ordinary
    /// user's overlay needs it.
    pub userxattr: bool,
    /// Never sync the upper (Linux 5.10): for a layer that need not outlive the machine's next crash.
    pub volatile: bool,
    /// The mount happens in a user namespace other than the first.
    pub user_namespace: bool,
    /// `redirect_dir=on`: rename(2) works on directories that have a lower part. Real root only.
    pub redirect: bool,
}

/// By which door the options go into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// fsconfig(2), one `lowerdir+` a layer.
    Append,
    /// fsconfig(2), all layers in one `lowerdir`.
    Join,
    /// mount(2), everything in one string.
    Mount2,
}

impl Method {
    /// What the running kernel understands.
    pub fn here() -> Self {
        static HERE: OnceLock<Method> = OnceLock::new();
        *HERE.get_or_init(|| {
            let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
            Self::of_release(&release.unwrap_or_default())
        })
    }

    /// What the kernel of this `uname -r` understands: `6.18.44-fc` is [`Method::Append`].
    pub fn of_release(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= (6, 5) { Self::Append } else { Self::Join }
    }
}

/// One fsconfig(2) call: `FSCONFIG_SET_STRING`, or `FSCONFIG_SET_FLAG` where there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The option's name.
    pub key: &'static CStr,
    /// Its value, escaped as this way wants it.
    pub value: Option<CString>,
    /// The value names a descriptor of [`Plan::opens`] in place of the path.
    pub by_fd: bool,
}

/// A directory to open before the calls, in the mount namespace that mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// What to open, with `O_PATH|O_DIRECTORY|O_CLOEXEC`.
    pub path: CString,
    /// The number the descriptor must have (dup3(2)).
    pub fd: RawFd,
}

/// The mount, ready to be carried out without allocating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The way taken; may be [`Method::Mount2`] where [`Method::Join`] was asked for and cannot carry it.
    pub method: Method,
    /// Descriptors wanted first.
    pub opens: Vec<Open>,
    /// For the two fsconfig ways: the calls in order, `source` first.
    pub calls: Vec<Call>,
    /// For [`Method::Mount2`]: the data argument.
    pub data: CString,
}

/// The layers that a path of the options can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Lower,
    Upper,
    Work,
}

impl Options {
    /// Errors: [`Error::Spec`] for what no kernel would take, naming the argument.
    pub fn check(&self) -> Result<()> {
        if self.lowers.is_empty() {
            return Err(Error::spec("lower: an overlay needs at least one lower layer"));
        }
        if self.lowers.len() > MAX_LOWERS {
            let n = self.lowers.len();
            return Err(Error::spec(format!("lower: {n} layers; the kernel's limit is {MAX_LOWERS}")));
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => return Err(Error::spec("work: an upper layer needs a work directory")),
            (None, Some(_)) => return Err(Error::spec("upper: a work directory is of no use without it")),
            (None, None) if self.lowers.len() == 1 => {
                let message = "lower: a read-only overlay needs two lower layers; one alone is a bind mount";
                return Err(Error::spec(message));
            }
            _ => {}
        }
        if self.redirect && (self.userxattr || self.user_namespace) {
            return Err(Error::spec(
                "redirect: the kernel allows it neither with userxattr nor in a user namespace",
            ));
        }
        for (role, path) in self.layers() {
            let bytes = path.as_os_str().as_bytes();
            let name = role.option();
            if bytes.is_empty() || bytes.contains(&0) {
                return Err(Error::spec(format!("{name}: '{}' is no path", path.display())));
            }
            if bytes.len() > MAX_PATH {
                let n = bytes.len();
                return Err(Error::spec(format!("{name}: a path of {n} bytes; the kernel opens {MAX_PATH}")));
            }
        }
        let mut seen = BTreeSet::new();
        for (role, path) in self.layers() {
            if !seen.insert(path) {
                let name = role.option();
                return Err(Error::spec(format!("{name}: {} is named twice (ELOOP)", path.display())));
            }
        }
        Ok(())
    }

    /// Errors: [`Error::Unsupported`] where a layer is known to lie on so many overlays that the kernel will refuse
    /// one more.
    pub fn check_depth(&self, mounts: &[Mount]) -> Result<()> {
        for (role, path) in self.layers().filter(|(role, _)| *role != Role::Work) {
            let depth = mountinfo::overlay_depth(mounts, path);
            if depth >= MAX_DEPTH {
                let message = format!("{}: {} is an overlay of an overlay", role.option(), path.display());
                return Err(Error::Unsupported { message, errno: Errno::EINVAL });
            }
        }
        Ok(())
    }

    /// Plans the mount for a kernel that understands `method`; descriptors, where needed, are numbered from
    /// `first_fd` on.
    ///
    /// Errors: [`Error::Spec`] as [`Options::check`], or where the layers do not fit into a page before Linux 6.5.
    pub fn plan(&self, method: Method, first_fd: RawFd) -> Result<Plan> {
        self.check()?;
        match method {
            Method::Append => self.plan_fsconfig(true, first_fd),
            Method::Join => {
                let plan = self.plan_fsconfig(false, first_fd)?;
                if plan.calls.iter().all(Call::passes_legacy) { Ok(plan) } else { self.plan_mount2(first_fd) }
            }
            Method::Mount2 => self.plan_mount2(first_fd),
        }
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = (Role, &Path)> {
        let lowers = self.lowers.iter().map(|path| (Role::Lower, path.as_path()));
        let upper = self.upper.iter().map(|path| (Role::Upper, path.as_path()));
        lowers.chain(upper).chain(self.work.iter().map(|path| (Role::Work, path.as_path())))
    }

    /// Options that are no layers: name and, unless a flag, value.
    fn flags(&self) -> Vec<(&'static CStr, Option<&'static CStr>)> {
        let mut flags = Vec::new();
        if self.userxattr {
            flags.push((c"userxattr", None));
        }
        if self.upper.is_none() {
            return flags;
        }
        if self.volatile {
            flags.push((c"volatile", None));
        }
        // An index would tie the upper to these very lowers and to file handles that tmpfs and others lack.
        flags.push((c"index", Some(c"off")));
        if !self.userxattr && !self.user_namespace {
            flags.push((c"metacopy", Some(c"off")));
            flags.push((c"redirect_dir", Some(if self.redirect { c"on" } else { c"off" })));
        }
        flags
    }

    fn plan_fsconfig(&self, append: bool, first_fd: RawFd) -> Result<Plan> {
        let mut plan = Plan {
            method: if append { Method::Append } else { Method::Join },
            opens: Vec::new(),
            calls: vec![Call { key: c"source", value: Some(c"overlay".into()), by_fd: false }],
            data: CString::default(),
        };
        let mut joined = Vec::new();
        let mut joined_by_fd = false;
        for (role, path) in self.layers() {
            let raw = path.as_os_str().as_bytes();
            let mut value = if append && role == Role::Lower { raw.to_vec() } else { escape(raw, b"\\:") };
            let by_fd = value.len() > MAX_VALUE;
            if by_fd {
                value = open(&mut plan.opens, raw, first_fd)?;
            }
            if role == Role::Lower && !append {
                if !joined.is_empty() {
                    joined.push(b':');
                }
                joined.extend(value);
                joined_by_fd |= by_fd;
                continue;
            }
            let key = match role {
                Role::Lower => c"lowerdir+",
                Role::Upper => c"upperdir",
                Role::Work => c"workdir",
            };
            plan.calls.push(Call { key, value: Some(c_string(value)?), by_fd });
        }
        if !append {
            let call = Call { key: c"lowerdir", value: Some(c_string(joined)?), by_fd: joined_by_fd };
            plan.calls.insert(1, call);
        }
        let flags = self.flags().into_iter();
        plan.calls.extend(flags.map(|(key, value)| Call { key, value: value.map(Into::into), by_fd: false }));
        Ok(plan)
    }

    fn plan_mount2(&self, first_fd: RawFd) -> Result<Plan> {
        let (data, opens) = self.fit_data(vec![false; self.layers().count()], first_fd)?;
        Ok(Plan { method: Method::Mount2, opens, calls: Vec::new(), data: c_string(data)? })
    }

    /// The option string with as few descriptors as fit it into a page, the longest paths first. `by_fd` marks
    /// those that go by descriptor in any case.
    pub(super) fn fit_data(&self, mut by_fd: Vec<bool>, first_fd: RawFd) -> Result<(Vec<u8>, Vec<Open>)> {
        let layers: Vec<(Role, &Path)> = self.layers().collect();
        let mut longest: Vec<usize> = (0..layers.len()).collect();
        longest.sort_by_key(|i| std::cmp::Reverse(layers[*i].1.as_os_str().len()));
        let mut next = longest.into_iter();
        loop {
            let (data, opens) = self.data(&layers, &by_fd, first_fd)?;
            if data.len() <= MAX_DATA {
                return Ok((data, opens));
            }
            let Some(i) = next.next() else {
                let n = layers.len();
                return Err(Error::spec(format!(
                    "lower: {n} layers do not fit into mount(2)'s page; Linux 6.5 and later has no such limit"
                )));
            };
            by_fd[i] = true;
        }
    }

    fn data(&self, layers: &[(Role, &Path)], by_fd: &[bool], first: RawFd) -> Result<(Vec<u8>, Vec<Open>)> {
        let (mut data, mut opens, mut previous) = (Vec::new(), Vec::new(), None);
        for ((role, path), by_fd) in layers.iter().zip(by_fd) {
            match previous {
                Some(Role::Lower) if *role == Role::Lower => data.push(b':'),
                None => data.extend(role.option().bytes().chain(*b"=")),
                Some(_) => data.extend(b",".iter().copied().chain(role.option().bytes()).chain(*b"=")),
            }
            let raw = path.as_os_str().as_bytes();
            if *by_fd {
                data.extend(open(&mut opens, raw, first)?);
            } else {
                data.extend(escape(raw, b"\\:,"));
            }
            previous = Some(*role);
        }
        for (key, value) in self.flags() {
            data.push(b',');
            data.extend_from_slice(key.to_bytes());
            if let Some(value) = value {
                data.push(b'=');
                data.extend_from_slice(value.to_bytes());
            }
        }
        Ok((data, opens))
    }
}

impl Role {
    fn option(self) -> &'static str {
        match self {
            Self::Lower => "lowerdir",
            Self::Upper => "upperdir",
            Self::Work => "workdir",
        }
    }
}

impl Call {
    /// Before 6.5 overlayfs knew no fsconfig(2): the kernel glued the calls into one option string and refused
    /// commas in it.
    fn passes_legacy(&self) -> bool {
        self.value.as_ref().is_none_or(|value| {
            let bytes = value.to_bytes();
            bytes.len() <= MAX_VALUE && !bytes.contains(&b',')
        })
    }
}

/// Lists `path` among the directories to open and returns what stands for it.
fn open(opens: &mut Vec<Open>, path: &[u8], first_fd: RawFd) -> Result<Vec<u8>> {
    let fd = first_fd + opens.len() as RawFd;
    opens.push(Open { path: c_string(path.to_vec())?, fd });
    Ok(format!("/proc/self/fd/{fd}").into_bytes())
}

/// Puts a backslash before each byte of `special`.
fn escape(path: &[u8], special: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        if special.contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::spec("lower: a path holds a NUL byte"))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
