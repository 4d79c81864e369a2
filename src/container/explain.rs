//! A step in words: which system calls it makes that change anything. Pure. The trace of a start is held to it
//! (`tests/test_explain.py`).

use super::step::{Op, Place, Probe, Setting};

impl Op {
    /// The system calls that it makes, by their man pages' names.
    pub fn syscalls(&self) -> String {
        match self {
            Self::Clone { .. } => "clone",
            Self::IdMap(_) | Self::Cgroup(_) | Self::TimeOffsets { .. } => "write",
            Self::Unshare { .. } => "unshare",
            Self::Private | Self::Remount { .. } => "mount_setattr",
            Self::Directory { .. } => "mkdirat",
            Self::File { text, .. } if text.is_empty() => "mknodat",
            Self::File { .. } => "openat, write",
            Self::Symlink { .. } => "symlinkat",
            Self::Owner { .. } => "fchownat",
            Self::Mount { settings, .. } if settings.iter().any(|s| matches!(s, Setting::Directory(..))) => {
                "fsopen, fsconfig, openat, fsmount, move_mount"
            }
            Self::Mount { .. } => "fsopen, fsconfig, fsmount, move_mount",
            Self::Bind { source: Place::Host(_), at, recursive: false, attributes: 0 }
                if at.in_proc().is_some() =>
            {
                "fchdir, mount"
            }
            Self::Bind { attributes: 0, .. } => "open_tree, move_mount",
            Self::Bind { .. } => "open_tree, mount_setattr, move_mount",
            Self::Move { .. } => "move_mount",
            Self::Upper { ours: true, .. } | Self::Root { .. } => "openat",
            Self::Upper { .. } => "open_tree",
            Self::PivotRoot => "fchdir, pivot_root, umount2, chdir",
            Self::Chroot => "fchdir, chroot, chdir",
            Self::Hostname(_) => "sethostname",
            Self::Loopback => "unshare, socket, ioctl",
            Self::Keyring => "keyctl",
            Self::Rlimit { .. } => "prlimit",
            Self::Capabilities { .. } | Self::NoNewPrivileges => "prctl",
            Self::Probe(Probe::Enough) => "exit_group",
            Self::Probe(Probe::Attribute(_)) => "setxattr",
            Self::Probe(Probe::Veth | Probe::Packet) => "socket, sendmsg",
            Self::Probe(Probe::Tap) => "openat, ioctl",
            Self::Embedded(_) => "close_range, setsid, prctl, execveat",
            Self::Program { .. } => "close_range, execve",
        }
        .to_owned()
    }
}
