//! Spec → list of steps. Pure but for questions to the host that change nothing: which masked paths exist, what kind
//! of thing a bind's source is, where the staging directory can be.
//!
//! The root directory is put together on a tmpfs, the *stage*, mounted over a directory of the host's that nothing of
//! the container comes from; the mount exists in the container's mount namespace alone:
//!
//! | directory | holds |
//! | --- | --- |
//! | `base` | our own top lower layer: mount points and the files of /etc that we provide |
//! | `upper`, `work` | what the container writes |
//! | `dev`, `shm`, `empty` | become /dev, /dev/shm, and the mask of directories |
//! | `root` | the overlay of base and the image's layers: the new root |
//!
//! That mount points come from `base` has two reasons: making them costs no copy-up and leaves no trace in `diff()`;
//! and /proc, /sys and /dev are then directories of ours, whatever symbolic links the image has in their place.
//!
//! | file | plans |
//! | --- | --- |
//! | `stage` | the stage and the order of what happens on it |
//! | `image` | layers, or the machine's own tree |
//! | `frozen` | snapshots above the machine's own tree |
//! | `system` | /proc, /sys, /dev and their masks |
//! | `mounts` | what was asked for beyond |
//! | this one | namespaces before, identity and privileges after |

mod frozen;
mod image;
mod mounts;
mod stage;
mod system;

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::spec::{Root, Spec, Upper};
use super::step::{Op, Place, Setting, Step};
use crate::error::{Errno, Error, Result};
use crate::namespace::{Kind, Namespaces};

pub(super) use image::settings;
pub(super) use system::proc;

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;

/// A list of steps, and what is known about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// The staging directory on the host, where there is one.
    pub stage: Option<PathBuf>,
    /// The directory on disk that has to be removed with the container, if there is one.
    pub disk: Option<PathBuf>,
    /// Files may belong to subordinate ids, for which only a process inside the user namespace can act.
    pub subordinate: bool,
    /// What differs from what might be expected, in words (a directory of the host that cannot be a layer …).
    pub notes: Vec<String>,
}

impl Plan {
    /// Number `i` of the list as errors name it.
    pub fn label(&self, i: usize) -> String {
        let title = self.steps.get(i).map(|step| step.op.title()).unwrap_or_default();
        format!("step {} of {}, {title}", i + 1, self.steps.len())
    }

    /// The error of step `i`, made of what the child reported.
    pub(super) fn failure(
        &self,
        i: usize,
        syscall: &'static str,
        errno: Errno,
        detail: Option<String>,
    ) -> Error {
        let path = self.steps.get(i).and_then(|step| match &step.op {
            Op::Bind { source: Place::Host(path), .. }
            | Op::Mount { at: Place::Host(path) | Place::Root(path), .. }
            | Op::Directory { at: Place::Host(path) | Place::Root(path), .. }
            | Op::File { at: Place::Host(path) | Place::Root(path), .. }
            | Op::Move { to: path, .. }
            | Op::Root { path } => Some(path),
            Op::Program { candidates, .. } => candidates.last(),
            _ => None,
        });
        let path = path.map(|path| PathBuf::from(OsStr::from_bytes(path.as_bytes())));
        let detail = match (self.steps.get(i).map(|step| &step.op), detail) {
            (Some(Op::Mount { settings, .. }), detail) => join(detail, layers(settings)),
            (_, detail) => detail,
        };
        Error::Step { step: self.label(i), syscall, errno, path, detail }
    }

    /// An error of a primitive, as one of step `i`.
    pub(super) fn locate(&self, i: usize, error: Error) -> Error {
        match error {
            Error::Step { syscall, errno, path, detail, .. } => {
                Error::Step { step: self.label(i), syscall, errno, path, detail }
            }
            other => other,
        }
    }
}

/// Collects steps.
struct Builder<'a> {
    spec: &'a Spec,
    stage: PathBuf,
    steps: Vec<Step>,
    notes: Vec<String>,
}

impl Plan {
    /// The steps that start a container with PID 1.
    pub fn container(spec: &Spec) -> Result<Self> {
        Self::build(
            spec,
            Op::Embedded(c"r2d2-init"),
            "it reaps, forwards signals, and carries out every exec",
        )
    }

    /// The steps that start an embedded program on the host, in no new namespaces.
    pub(super) fn helper(name: &'static CStr) -> Self {
        let step = |op, why| Step { op, why, optional: false };
        let namespaces = Namespaces::default();
        Self {
            steps: vec![
                step(Op::Clone { namespaces }, "a process of its own, which never sees the caller's memory"),
                step(Op::Embedded(name), "a small static program"),
            ],
            stage: None,
            disk: None,
            subordinate: false,
            notes: Vec::new(),
        }
    }

    /// The steps that start a program in new namespaces and nothing else (`unshare(1)`).
    /// `inner` are namespaces that it leaves by unshare(2) at last: of a PID namespace that is left so, only its
    /// children are members (the lab's row 4a).
    pub fn program(spec: &Spec, inner: Namespaces, program: Op) -> Result<Self> {
        let mut plan = Self::build(spec, program, "the program itself; in a new PID namespace it is PID 1")?;
        if !inner.is_empty() {
            let at = plan.steps.len() - 1;
            let op = Op::Unshare { namespaces: inner };
            let why = "without --fork: the program stays outside, its first child is PID 1";
            plan.steps.insert(at, Step { op, why, optional: false });
        }
        Ok(plan)
    }

    fn build(spec: &Spec, last: Op, why: &'static str) -> Result<Self> {
        let mut builder =
            Builder { spec, stage: PathBuf::new(), steps: Vec::with_capacity(64), notes: Vec::new() };
        builder.namespaces();
        let staged = builder.root()?;
        builder.identity();
        builder.push(last, why);
        let Builder { stage, steps, notes, .. } = builder;
        let disk = match &spec.upper {
            Upper::Disk(dir) if staged => Some(dir.clone()),
            _ => None,
        };
        let subordinate = spec.idmap.as_ref().is_some_and(|map| map.by_helper);
        Ok(Self { steps, stage: staged.then_some(stage), disk, subordinate, notes })
    }
}

/// The directories that an overlay writes to, for whoever wants to know why it was refused.
fn layers(settings: &[Setting]) -> Option<String> {
    let named: Vec<String> = settings
        .iter()
        .filter_map(|setting| match setting {
            Setting::Text(key, value) | Setting::Directory(key, value)
                if matches!(key.to_bytes(), b"upperdir" | b"workdir") =>
            {
                Some(format!("{}={}", key.to_string_lossy(), value.to_string_lossy()))
            }
            _ => None,
        })
        .collect();
    (!named.is_empty()).then(|| named.join(", "))
}

fn join(first: Option<String>, second: Option<String>) -> Option<String> {
    match (first, second) {
        (Some(first), Some(second)) => Some(format!("{first}; {second}")),
        (first, second) => first.or(second),
    }
}

/// A path as a C string.
fn c(path: impl AsRef<OsStr>) -> Result<CString> {
    let bytes = path.as_ref().as_bytes();
    CString::new(bytes)
        .map_err(|_| Error::spec(format!("{:?} holds a zero byte, which no path can", path.as_ref())))
}

impl Builder<'_> {
    fn push(&mut self, op: Op, why: &'static str) {
        self.steps.push(Step { op, why, optional: false });
    }

    fn push_optional(&mut self, op: Op, why: &'static str) {
        self.steps.push(Step { op, why, optional: true });
    }

    /// Below the stage, as the host sees it.
    fn staged(&self, name: impl AsRef<Path>) -> Result<CString> {
        c(self.stage.join(name))
    }

    /// Where `upper` and `work` are.
    fn writable(&self) -> &Path {
        if let Upper::Disk(dir) = &self.spec.upper { dir } else { &self.stage }
    }

    fn directory(&mut self, at: CString, mode: u32, why: &'static str) {
        self.push(Op::Directory { at: Place::Host(at), mode }, why);
    }

    fn namespaces(&mut self) {
        let all = self.spec.namespaces;
        // A cgroup namespace is rooted where the process is when it is made: after it was put into its cgroups. Time
        // has no bit in clone(2), and its clocks can be set only before the first process is in it.
        let later = [Kind::Cgroup, Kind::Time].map(|kind| (kind, all.has(kind)));
        let first = all.without(Kind::Cgroup).without(Kind::Time);
        self.push(
            Op::Clone { namespaces: first },
            "a child that shares the caller's memory: its start costs the same whatever the caller's size",
        );
        if let Some(map) = &self.spec.idmap {
            self.push(Op::IdMap(map.clone()), "root inside is an ordinary id outside");
        }
        if !self.spec.cgroup.is_empty() {
            self.push(Op::Cgroup(self.spec.cgroup.clone()), "limits bind from its first instruction on");
        }
        for (kind, wanted) in later {
            if wanted {
                let namespaces = [kind].into_iter().collect();
                self.push(Op::Unshare { namespaces }, "its root is the cgroup that the process is in now");
            }
        }
        if let Some((monotonic, boottime)) = self.spec.clock_offsets {
            let text = format!("monotonic {monotonic} 0\nboottime {boottime} 0\n");
            if let Ok(text) = CString::new(text) {
                self.push(Op::TimeOffsets { text }, "only possible before the first process is in it");
            }
        }
    }

    /// `lo`, once: before the first step that needs the network namespace (`child::network`).
    fn network(&mut self) {
        if self.spec.namespaces.has(Kind::Net) && !self.steps.iter().any(|step| step.op == Op::Loopback) {
            self.push(Op::Loopback, "a new network namespace has only lo, and it is down");
        }
    }

    /// Host name, network, keyring, limits and privileges: last, because they take away what the steps before need.
    fn identity(&mut self) {
        let spec = self.spec;
        if let Some(name) = spec.hostname.as_ref().and_then(|name| CString::new(name.clone()).ok())
            && spec.namespaces.has(Kind::Uts)
        {
            self.push(Op::Hostname(name), "the lab's third row");
        }
        // Without a root of its own it is unshare(1), which leaves everything else as it was.
        let bare = matches!(spec.root, Root::Shared | Root::Chroot(_)) && spec.mounts.is_empty();
        if bare {
            return;
        }
        self.network();
        self.push_optional(Op::Keyring, "the caller's session keys stay outside");
        for limit in &spec.cgroup.rlimits {
            let (resource, value) = (limit.resource as u32, limit.value);
            self.push(Op::Rlimit { resource, value }, "no cgroup can be written here");
        }
        for &(resource, value) in &spec.rlimits {
            self.push(Op::Rlimit { resource, value }, "asked for");
        }
        if spec.namespaces.has(Kind::User) || spec.root != Root::Shared {
            self.push(Op::Capabilities { keep: spec.capabilities }, "what nobody inside may ever have");
        }
        if spec.no_new_privs {
            self.push(Op::NoNewPrivileges, "setuid programs and file capabilities give nothing");
        }
    }
}

fn text(key: &std::ffi::CStr, value: &str) -> Result<Setting> {
    Ok(Setting::Text(key.into(), c(value)?))
}
