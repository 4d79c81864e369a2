//! What a container is to be, as plain data. Filled in by the bindings from the Python `ContainerSpec`; `plan` turns
//! it into steps. Nothing here has touched the kernel's state yet.

use std::path::PathBuf;

use crate::cgroup;
use crate::namespace::{IdMap, Namespaces};

/// Where the container's root directory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The caller's own tree, as it is: only the namespaces differ.
    Shared,
    /// An overlay of read-only layers, top first.
    Layers(Vec<PathBuf>),
    /// The machine's own tree as the lower layers of many overlays, below these snapshots of it, top first.
    Host(Vec<PathBuf>),
    /// Nothing but an empty tmpfs.
    Empty,
    /// A directory, written to directly.
    Directory(PathBuf),
    /// A directory entered by chroot(2), with all that comes with it: for the classroom.
    Chroot(PathBuf),
}

/// Where writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// A tmpfs inside the container's mount namespace: vanishes with it. Size in bytes, if limited.
    Tmpfs(Option<u64>),
    /// A new directory on disk that vanishes with the container: for much data, or where tmpfs carries no user xattrs
    /// (before Linux 6.6), without which overlayfs cannot replace a directory of the image.
    Disk(PathBuf),
    /// Directories on disk, of the caller's own, that stay.
    Directory {
        /// upperdir of overlayfs.
        upper: PathBuf,
        /// workdir of overlayfs, on the same file system.
        work: PathBuf,
    },
}

/// A mount that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What.
    pub kind: MountKind,
    /// Where, absolute, inside.
    pub target: PathBuf,
    /// `MOUNT_ATTR_RDONLY`, on submounts too.
    pub readonly: bool,
}

/// Its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Its path on the host.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// Its size in bytes.
        size: Option<u64>,
        /// Files and directories below the target that stay to be seen in it; for [`Root::Shared`] alone.
        keep: Vec<PathBuf>,
    },
    /// An overlay (the lab's rows 10 to 12).
    Overlay {
        /// Layers, top first.
        lower: Vec<PathBuf>,
        /// upperdir and workdir; without them the overlay is read-only.
        upper: Option<(PathBuf, PathBuf)>,
        /// Never synced to disk: the upper layer need not outlive the machine's next crash.
        volatile: bool,
    },
}

/// How `/proc` gets into the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proc {
    /// A procfs of the new PID namespace.
    Mount,
    /// The host's, read-only: where a procfs may not be mounted, as inside many containers.
    Bind,
    /// None.
    Absent,
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `r2d2-<name>` is the name of its cgroups.
    pub name: String,
    /// New namespaces.
    pub namespaces: Namespaces,
    /// Id maps; needed with a user namespace.
    pub idmap: Option<IdMap>,
    /// Its root directory.
    pub root: Root,
    /// Where writes go.
    pub upper: Upper,
    /// The root directory is read-only.
    pub readonly: bool,
    /// `/proc`.
    pub proc: Proc,
    /// `/sys`, `/dev`.
    pub system: bool,
    /// The masked and read-only paths of `/proc` and `/sys`.
    pub masked: bool,
    /// Host name, with a uts namespace.
    pub hostname: Option<Vec<u8>>,
    /// Files of `/etc` that r2d2 provides: name and content.
    pub etc: Vec<(String, Vec<u8>)>,
    /// Mounts beyond the usual ones, in order.
    pub mounts: Vec<Mount>,
    /// Limits of the whole container, planned for this host.
    pub cgroup: cgroup::Plan,
    /// Resource limits per process: number, value.
    pub rlimits: Vec<(u32, u64)>,
    /// Capabilities that PID 1 keeps; programs get what their request says.
    pub capabilities: u64,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME in seconds, with a time namespace.
    pub clock_offsets: Option<(i64, i64)>,
}
