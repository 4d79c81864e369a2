//! Putting the root directory together on a stage: which directory of the host is covered, what lies in it, and in
//! which order. See `plan` for the picture. Runs in the calling process.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mounts::check_directory;
use super::system::proc;
use super::{Builder, NODEV, NOSUID, RDONLY, c, text};
use crate::container::spec::{MountKind, Proc, Root, Upper};
use crate::container::step::{Op, Place, Step};
use crate::error::{Errno, Error, Result};
use crate::namespace::Kind;

impl Builder<'_> {
    /// The root directory; true if it was staged.
    pub(super) fn root(&mut self) -> Result<bool> {
        let spec = self.spec;
        if let Root::Chroot(path) = &spec.root {
            if spec.namespaces.has(Kind::Mount) {
                self.push(Op::Private, "mounts made here stay here, the host's stay outside");
            }
            check_directory(path, "the new root")?;
            self.push(Op::Root { path: c(path)? }, "what follows is resolved inside it");
            if spec.proc == Proc::Mount {
                let at = Place::Root(c("/proc")?);
                self.push(proc(at), "a procfs shows the PID namespace that it was mounted in");
            }
            self.push(Op::Chroot, "/ is another directory now; the host's tree is still there");
            return Ok(false);
        }
        if !spec.namespaces.has(Kind::Mount) {
            return Ok(false);
        }
        self.push(Op::Private, "mounts made here stay here, the host's stay outside");
        if spec.root == Root::Shared {
            for mount in &spec.mounts {
                self.mount(mount)?;
            }
            if spec.proc == Proc::Mount {
                // What `unshare --mount-proc` does: over the one that is there.
                let at = Place::Host(c("/proc")?);
                self.push(proc(at), "a procfs shows the PID namespace that it was mounted in");
            }
            return Ok(false);
        }
        self.stage = self.choose_stage()?;
        self.stage()?;
        let root = self.stage.join("root");
        match &spec.root {
            Root::Layers(layers) => self.overlay_root(layers)?,
            Root::Host(layers) => self.host_root(layers)?,
            Root::Empty => {
                let at = Place::Host(c(&root)?);
                let op = Op::Bind { source: at.clone(), at, recursive: false, attributes: NODEV };
                self.push(op, "pivot_root wants a mount point");
                self.scaffold("root", true)?;
            }
            Root::Directory(path) => {
                check_directory(path, "the new root")?;
                let (source, at) = (Place::Host(c(path)?), Place::Host(c(&root)?));
                let op = Op::Bind { source, at, recursive: true, attributes: NODEV };
                self.push(op, "the directory itself, without layers");
            }
            Root::Shared | Root::Chroot(_) => {}
        }
        if matches!(spec.root, Root::Layers(_) | Root::Host(_)) {
            let path = match (&spec.root, &spec.upper) {
                (Root::Layers(_), Upper::Directory { upper, .. }) => upper.clone(),
                _ => self.writable().join("upper"),
            };
            let ours = path.starts_with(&self.stage);
            self.push(Op::Upper { path: c(path)?, ours }, "diff() reads it");
        }
        self.push(Op::Root { path: c(&root)? }, "what follows is resolved inside it");
        self.system()?;
        for mount in &spec.mounts {
            self.mount(mount)?;
        }
        if spec.readonly {
            let at = Place::Root(c("/")?);
            self.push(Op::Remount { at, attributes: RDONLY }, "asked for");
            for at in self.parts_below(&root)? {
                self.push(Op::Remount { at, attributes: RDONLY }, "asked for");
            }
        }
        self.push(Op::PivotRoot, "the host's tree is no longer mounted: there is nothing to break out to");
        Ok(true)
    }

    /// The overlays below the root that are parts of it, but for those that a mount of the user's covers.
    fn parts_below(&self, root: &Path) -> Result<Vec<Place>> {
        let part = |step: &Step| match &step.op {
            Op::Mount { fstype, at: Place::Host(at), .. } if fstype.as_bytes() == b"overlay" => {
                let relative = Path::new(OsStr::from_bytes(at.as_bytes())).strip_prefix(root).ok()?;
                Some(Path::new("/").join(relative))
            }
            _ => None,
        };
        let covered = |path: &Path| self.spec.mounts.iter().any(|mount| path.starts_with(&mount.target));
        let parts = self.steps.iter().filter_map(part);
        parts
            .filter(|path| path != Path::new("/") && !covered(path))
            .map(|path| Ok(Place::Root(c(path)?)))
            .collect()
    }

    /// A directory of the host's that can be covered: none that anything of the container comes from, or lies below.
    pub(super) fn choose_stage(&self) -> Result<PathBuf> {
        let spec = self.spec;
        let mut sources: Vec<PathBuf> = match &spec.root {
            Root::Layers(layers) | Root::Host(layers) => layers.clone(),
            Root::Directory(path) | Root::Chroot(path) => vec![path.clone()],
            Root::Empty | Root::Shared => Vec::new(),
        };
        match &spec.upper {
            Upper::Directory { upper, work } => sources.extend([upper.clone(), work.clone()]),
            Upper::Disk(dir) => sources.extend(dir.parent().map(Path::to_owned)),
            Upper::Tmpfs(_) => {}
        }
        for mount in &spec.mounts {
            match &mount.kind {
                MountKind::Bind { source, .. } => sources.push(source.clone()),
                MountKind::Overlay { lower, upper, .. } => {
                    sources.extend(lower.iter().cloned());
                    sources.extend(upper.iter().flat_map(|(upper, work)| [upper.clone(), work.clone()]));
                }
                MountKind::Tmpfs { keep, .. } => sources.extend(keep.iter().cloned()),
            }
        }
        if !spec.namespaces.has(Kind::Net) {
            sources.push("/sys".into()); // bound, since a new one may not be mounted
        }
        let real: Vec<PathBuf> =
            sources.iter().map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
        // The host image has these three fresh, so covering them hides nothing of it.
        let fresh = ["/tmp", "/run", "/sys"];
        let other = ["/mnt", "/media", "/srv", "/opt", "/tmp", "/sys", "/home", "/var/tmp"];
        let candidates = if matches!(spec.root, Root::Host(_)) { &fresh[..] } else { &other[..] };
        candidates
            .iter()
            .map(PathBuf::from)
            .find(|stage| {
                stage.is_dir() && !stage.is_symlink() && real.iter().all(|path| !path.starts_with(stage))
            })
            .ok_or_else(|| Error::Unsupported {
                message:
                    "no directory is free for putting the root together: something of the container lies in \
                          each of /mnt /media /srv /opt /tmp /sys /home /var/tmp"
                        .into(),
                errno: Errno::EBUSY,
            })
    }

    /// The tmpfs and its directories.
    pub(super) fn stage(&mut self) -> Result<()> {
        let mut settings = vec![text(c"mode", "0755")?];
        if let Upper::Tmpfs(Some(size)) = self.spec.upper {
            settings.push(text(c"size", &size.to_string())?);
        }
        self.push(
            Op::Mount {
                fstype: c"tmpfs".into(),
                source: c"r2d2".into(),
                settings,
                attributes: NOSUID | NODEV,
                at: Place::Host(c(&self.stage)?),
            },
            "what the container writes lives in memory and vanishes with its mount namespace",
        );
        let why = "a place for it";
        for name in ["root", "base"] {
            let at = self.staged(name)?;
            self.directory(at, 0o755, why);
        }
        if let Upper::Disk(dir) = &self.spec.upper {
            self.directory(c(dir)?, 0o700, "on disk, removed with the container");
        }
        for name in ["upper", "work"] {
            let at = c(self.writable().join(name))?;
            self.directory(at, 0o755, "what the container writes");
        }
        if self.spec.system {
            for (name, mode) in [("dev", 0o755), ("shm", 0o1777), ("empty", 0o555)] {
                let at = self.staged(name)?;
                self.directory(at, mode, why);
            }
        }
        Ok(())
    }

    /// Mount points and files that are ours, below `base`.
    pub(super) fn scaffold(&mut self, base: &str, etc_is_ours: bool) -> Result<()> {
        let why = "a mount point of ours: whatever the image has in its place does not matter";
        for (name, wanted) in
            [("proc", self.spec.proc != Proc::Absent), ("sys", self.spec.system), ("dev", self.spec.system)]
        {
            if wanted {
                let at = self.staged(Path::new(base).join(name))?;
                self.directory(at, 0o755, why);
            }
        }
        if etc_is_ours && !self.spec.etc.is_empty() {
            let etc = Path::new(base).join("etc");
            let at = self.staged(&etc)?;
            self.directory(at, 0o755, "a layer of files that every container has of its own");
            for (name, content) in &self.spec.etc {
                let at = Place::Host(self.staged(etc.join(name))?);
                self.push(Op::File { at, mode: 0o644, text: content.clone() }, "this container's own");
            }
        }
        Ok(())
    }
}
