//! What every container gets from us: /proc, /sys, /dev, and what is hidden of them. Runs in the calling process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use super::{Builder, NODEV, NOEXEC, NOSUID, RDONLY, c, text};
use crate::container::spec::Proc;
use crate::container::step::{Op, Place};
use crate::error::{Error, Result};
use crate::namespace::Kind;
use crate::security::mask;

impl Builder<'_> {
    /// /proc, /sys and /dev.
    pub(super) fn system(&mut self) -> Result<()> {
        let at = |path: &str| Ok::<_, Error>(Place::Root(c(path)?));
        match self.spec.proc {
            Proc::Mount => {
                self.push(proc(at("/proc")?), "a procfs shows the PID namespace that it was mounted in");
            }
            Proc::Bind => {
                let source = Place::Host(c("/proc")?);
                let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
                let op = Op::Bind { source, at: at("/proc")?, recursive: true, attributes };
                self.push(op, "a new procfs may not be mounted here: the host's, read-only");
                self.notes.push(
                    "/proc: the host's, read-only, since a new one was refused or not wanted: it shows the processes \
                     outside"
                        .into(),
                );
            }
            Proc::Absent => {}
        }
        let masked = self.spec.masked && self.spec.proc != Proc::Absent;
        if self.spec.system {
            let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
            let op = if self.spec.namespaces.has(Kind::Net) {
                Op::Mount {
                    fstype: c"sysfs".into(),
                    source: c"sysfs".into(),
                    settings: Vec::new(),
                    attributes,
                    at: at("/sys")?,
                }
            } else {
                Op::Bind { source: Place::Host(c("/sys")?), at: at("/sys")?, recursive: true, attributes }
            };
            self.devices()?;
            if masked {
                self.mask("/proc")?;
            }
            self.network(); // the last moment: a sysfs shows the network namespace that it was mounted in
            self.push_optional(op, "read-only");
            if masked {
                self.mask("/sys")?;
            }
        } else if masked {
            self.mask("/proc")?;
        }
        Ok(())
    }

    pub(super) fn devices(&mut self) -> Result<()> {
        let at = |path: &str| Ok::<_, Error>(Place::Root(c(path)?));
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            let link = Place::Host(self.staged(Path::new("dev").join(name))?);
            self.push(Op::Symlink { at: link, target: c(target)? }, "programs expect it");
        }
        for name in ["pts", "shm"] {
            let dir = self.staged(Path::new("dev").join(name))?;
            self.directory(dir, 0o755, "a mount point");
        }
        let nodes = ["null", "zero", "full", "random", "urandom", "tty"];
        for name in nodes {
            let file = Place::Host(self.staged(Path::new("dev").join(name))?);
            self.push(Op::File { at: file, mode: 0o666, text: Vec::new() }, "a mount point");
        }
        let dev = Place::Host(self.staged("dev")?);
        let op = Op::Bind { source: dev, at: at("/dev")?, recursive: false, attributes: NOSUID | NOEXEC };
        self.push(op, "a /dev of its own, with these devices only");
        for name in nodes {
            let path = format!("/dev/{name}");
            let source = Place::Host(c(&path)?);
            let op = Op::Bind { source, at: at(&path)?, recursive: false, attributes: NOSUID | NOEXEC };
            self.push(op, "the host's device: a user namespace may not make one");
        }
        let shm = Place::Host(self.staged("shm")?);
        let attributes = NOSUID | NODEV | NOEXEC;
        let op = Op::Bind { source: shm, at: at("/dev/shm")?, recursive: false, attributes };
        self.push(op, "shm_open(3)");
        self.push(
            Op::Mount {
                fstype: c"devpts".into(),
                source: c"devpts".into(),
                settings: vec![text(c"ptmxmode", "0666")?, text(c"mode", "0620")?],
                attributes: NOSUID | NOEXEC,
                at: at("/dev/pts")?,
            },
            "terminals of its own",
        );
        Ok(())
    }

    /// Hides, or makes read-only, what a container must not see or change (`security::mask`).
    pub(super) fn mask(&mut self, below: &str) -> Result<()> {
        let map = self.spec.idmap.as_ref();
        // With root outside unmapped, the kernel's own permissions already shut what only root may open.
        let root_is_mapped = map.is_none_or(|map| map.uids.iter().any(|range| range.outside == 0));
        let empty = Place::Host(self.staged("empty")?);
        for entry in mask_entries() {
            if !entry.path.starts_with(below) || entry.guarded && !root_is_mapped {
                continue;
            }
            if entry.mount_point && self.spec.namespaces.has(Kind::Net) {
                continue; // a sysfs of our own: nothing is mounted there
            }
            let at = Place::Root(c(entry.path)?);
            if entry.hide {
                let (source, attributes) = if entry.directory {
                    (empty.clone(), RDONLY | NOSUID | NODEV | NOEXEC)
                } else {
                    (Place::Host(c("/dev/null")?), 0)
                };
                let op = Op::Bind { source, at, recursive: false, attributes };
                self.push_optional(op, "not the container's business");
            } else {
                let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
                let op = Op::Bind { source: at.clone(), at, recursive: true, attributes };
                self.push_optional(op, "readable, not writable");
            }
        }
        Ok(())
    }
}

/// A masked or read-only path that this kernel has.
struct MaskEntry {
    path: &'static str,
    /// Hidden, or only read-only.
    hide: bool,
    directory: bool,
    /// Empty but for what the host has mounted there.
    mount_point: bool,
    /// Only root may open it: a container in which the host's root is not mapped is shut out already.
    guarded: bool,
}

/// What the lists of `security::mask` come to on this kernel; looked up once.
fn mask_entries() -> &'static [MaskEntry] {
    static ENTRIES: OnceLock<Vec<MaskEntry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let hidden = mask::MASKED.iter().map(|path| (*path, true));
        let all = hidden.chain(mask::READ_ONLY.iter().map(|path| (*path, false)));
        all.filter_map(|(path, hide)| {
            let meta = fs::symlink_metadata(path).ok().filter(|meta| !meta.file_type().is_symlink())?;
            let guarded = meta.uid() == 0 && meta.mode() & 0o007 == 0;
            let mount_point = mask::MOUNT_POINTS.contains(&path);
            Some(MaskEntry { path, hide, directory: meta.is_dir(), mount_point, guarded })
        })
        .collect()
    })
}

pub(in crate::container) fn proc(at: Place) -> Op {
    Op::Mount {
        fstype: c"proc".into(),
        source: c"proc".into(),
        settings: Vec::new(),
        attributes: NOSUID | NODEV | NOEXEC,
        at,
    }
}
