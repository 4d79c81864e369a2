//! The steps of a plan: plain data, the one list that run, explain, dry run, errors and tests all read.
//!
//! A step is prepared in the calling process: every string is a `CString` already, every path is resolved as far
//! as it can be, so that the interpreter (`child`) has nothing left to allocate. Which process carries a step out
//! is part of the data ([`Op::actor`]).

use std::ffi::{CStr, CString};

use crate::cgroup;
use crate::namespace::{IdMap, Namespaces};

/// Where a path counts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The host's tree as the new mount namespace sees it; only for paths that the host controls.
    Host(CString),
    /// The container's root directory; resolved with `openat2(RESOLVE_IN_ROOT)`, because an image may hold hostile
    /// symbolic links.
    Root(CString),
}

/// One key of fsconfig(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// `FSCONFIG_SET_FLAG`.
    Flag(CString),
    /// `FSCONFIG_SET_STRING`.
    Text(CString, CString),
    /// A directory that is opened first and named as `/proc/self/fd/N`, because its path is longer than fsconfig(2)
    /// takes (255 bytes).
    Directory(CString, CString),
}

/// The name of `RLIMIT_…`, as prlimit(1) and Python's `resource` have it, in small letters.
pub(super) fn rlimit_name(resource: u32) -> &'static str {
    #[rustfmt::skip]
    const NAMES: [&str; 16] = [
        "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile",
        "memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
    ];
    NAMES.get(resource as usize).copied().unwrap_or("resource")
}

/// What one step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Create the process, in new namespaces.
    Clone {
        /// Those of clone(2); `cgroup` and `time` may follow by [`Op::Unshare`].
        namespaces: Namespaces,
    },
    /// Write `uid_map`, `gid_map` and `setgroups`.
    IdMap(IdMap),
    /// Create the control groups, write the limits, and put the process in.
    Cgroup(cgroup::Plan),
    /// Leave further namespaces from within.
    Unshare {
        /// Which.
        namespaces: Namespaces,
    },
    /// Set the clocks of a new time namespace.
    TimeOffsets {
        /// The text for `/proc/self/timens_offsets`.
        text: CString,
    },
    /// Stop mount events from and to the host.
    Private,
    /// Make a directory; one that exists is fine.
    Directory {
        /// Where.
        at: Place,
        /// Permissions.
        mode: u32,
    },
    /// Make a file; one that exists is left as it is.
    File {
        /// Where.
        at: Place,
        /// Permissions.
        mode: u32,
        /// Content.
        text: Vec<u8>,
    },
    /// Give a file or directory to somebody.
    Owner {
        /// Which.
        at: Place,
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
    },
    /// Make a symbolic link; one that exists is fine.
    Symlink {
        /// Where.
        at: Place,
        /// What it says.
        target: CString,
    },
    /// Mount a new file system.
    Mount {
        /// Its type.
        fstype: CString,
        /// What it is called in mountinfo.
        source: CString,
        /// Its options.
        settings: Vec<Setting>,
        /// `MOUNT_ATTR_…`.
        attributes: u64,
        /// Where.
        at: Place,
    },
    /// Bind a file or directory.
    Bind {
        /// What.
        source: Place,
        /// Where.
        at: Place,
        /// With the mounts below it.
        recursive: bool,
        /// `MOUNT_ATTR_…` to set, on all of them.
        attributes: u64,
    },
    /// Move a mount, with those below it.
    Move {
        /// Its place on the host.
        from: CString,
        /// Its new place there.
        to: CString,
    },
    /// Change what a mount allows.
    Remount {
        /// Which.
        at: Place,
        /// `MOUNT_ATTR_…` to set.
        attributes: u64,
    },
    /// Keep a descriptor of the directory of the upper layers, for `diff()`.
    Upper {
        /// Its path on the host.
        path: CString,
        /// It lies in the container's own tmpfs, out of which `..` does not lead.
        ours: bool,
    },
    /// Take this directory as the container's root from here on.
    Root {
        /// Its path on the host.
        path: CString,
    },
    /// Make it `/` and let go of the host's tree (`pivot_root(2)`).
    PivotRoot,
    /// Make it `/` as `chroot(2)` does: the host's tree stays mounted. For the classroom.
    Chroot,
    /// Set the host name.
    Hostname(CString),
    /// Bring up the loopback interface.
    Loopback,
    /// Join a new session keyring.
    Keyring,
    /// Set a resource limit, soft and hard.
    Rlimit {
        /// `RLIMIT_…`.
        resource: u32,
        /// The value.
        value: u64,
    },
    /// Cut the capability bounding set to these (bit n is capability n).
    Capabilities {
        /// The mask.
        keep: u64,
    },
    /// No program may gain privileges.
    NoNewPrivileges,
    /// Find out whether something can be had, and let go of it again (`doctor()`).
    Probe(Probe),
    // The place of deeper hardening (Landlock, seccomp): after no_new_privs, which both need, and before the
    // program.
    /// Become the embedded program of this name; `r2d2-init` is PID 1.
    Embedded(&'static CStr),
    /// Start a program directly, without a PID 1 of ours (`unshare(1)`).
    Program {
        /// Paths to try.
        candidates: Vec<CString>,
        /// Arguments.
        argv: Vec<CString>,
        /// Environment.
        envp: Vec<CString>,
        /// Working directory.
        cwd: Option<CString>,
        /// Standard input is a terminal that becomes the controlling one.
        tty: bool,
        /// Start a new session.
        session: bool,
    },
}

/// What a step of a probe tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nothing more: what the steps before made was to be had. Ends the process.
    Enough,
    /// An extended attribute `user.…` on this file.
    Attribute(CString),
    /// A pair of virtual Ethernet devices.
    Veth,
    /// A raw packet socket.
    Packet,
    /// A TAP device of /dev/net/tun.
    Tap,
}

/// Who carries a step out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The calling process.
    Caller,
    /// The new process, before it becomes a program.
    Child,
}

/// A step with its place in the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Why, in a few words.
    pub why: &'static str,
    /// A step that may fail without consequence: what is lost is a convenience, and `explain()` shows the errno.
    pub optional: bool,
}

impl Op {
    /// Who does it.
    pub fn actor(&self) -> Actor {
        match self {
            Self::Clone { .. } | Self::IdMap(_) | Self::Cgroup(_) => Actor::Caller,
            _ => Actor::Child,
        }
    }

    /// What it does, as a phrase.
    pub fn title(&self) -> String {
        match self {
            Self::Clone { namespaces } => format!("clone into new namespaces ({namespaces})"),
            Self::IdMap(map) => format!("write the id maps ({map})"),
            Self::Cgroup(_) => "create and join the control groups".into(),
            Self::Unshare { namespaces } => format!("unshare the {namespaces} namespace"),
            Self::TimeOffsets { .. } => "set the clocks of the time namespace".into(),
            Self::Private => "make all mounts private".into(),
            Self::Directory { at, .. } => format!("make directory {at}"),
            Self::File { at, .. } => format!("write {at}"),
            Self::Owner { at, uid, gid } => format!("give {at} to {uid}:{gid}"),
            Self::Symlink { at, target } => format!("link {at} to {}", target.to_string_lossy()),
            Self::Mount { fstype, at, .. } => format!("mount {} on {at}", fstype.to_string_lossy()),
            Self::Bind { source, at, .. } if source == at => format!("bind {at} onto itself"),
            Self::Bind { source, at, .. } => format!("bind {source} on {at}"),
            Self::Move { from, to } => {
                format!("move the mount of {} to {}", from.to_string_lossy(), to.to_string_lossy())
            }
            Self::Remount { at, .. } => format!("remount {at}"),
            Self::Upper { .. } => "keep the upper layer within reach".into(),
            Self::Root { path } => format!("take {} as the new root", path.to_string_lossy()),
            Self::PivotRoot => "pivot_root into the new root".into(),
            Self::Chroot => "chroot into the new root".into(),
            Self::Hostname(name) => format!("set the host name to {}", name.to_string_lossy()),
            Self::Loopback => "bring up lo".into(),
            Self::Keyring => "join a new session keyring".into(),
            Self::Rlimit { resource, value } => format!("limit {} to {value}", rlimit_name(*resource)),
            Self::Capabilities { .. } => "cut the capability bounding set".into(),
            Self::NoNewPrivileges => "set no_new_privs".into(),
            Self::Probe(probe) => probe.title(),
            Self::Embedded(name) if *name == c"r2d2-init" => "start PID 1".into(),
            Self::Embedded(name) => format!("start {}", name.to_string_lossy()),
            Self::Program { argv, .. } => {
                format!("execute {}", argv.first().map_or_else(String::new, |a| a.to_string_lossy().into()))
            }
        }
    }
}

impl Probe {
    fn title(&self) -> String {
        match self {
            Self::Enough => "end".into(),
            Self::Attribute(path) => format!("set a user attribute of {}", path.to_string_lossy()),
            Self::Veth => "make a pair of veth devices".into(),
            Self::Packet => "open a packet socket".into(),
            Self::Tap => "make a TAP device".into(),
        }
    }
}

impl Place {
    /// The name of a file at the top of the container's /proc.
    pub fn in_proc(&self) -> Option<&CStr> {
        let Self::Root(path) = self else { return None };
        let name = CStr::from_bytes_with_nul(path.as_bytes_with_nul().strip_prefix(b"/proc/")?).ok()?;
        let bytes = name.to_bytes();
        (!bytes.is_empty() && bytes[0] != b'.' && !bytes.contains(&b'/')).then_some(name)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(path) => write!(f, "{}", path.to_string_lossy()),
            Self::Root(path) => write!(f, "ROOT{}", path.to_string_lossy()),
        }
    }
}
