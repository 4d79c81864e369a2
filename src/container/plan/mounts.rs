//! Mounts that were asked for. Runs in the calling process.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::{Builder, NODEV, NOSUID, RDONLY, c, text};
use crate::container::spec::{Mount, MountKind, Root};
use crate::container::step::{Op, Place};
use crate::error::{Errno, Error, Result};

impl Builder<'_> {
    /// A mount that was asked for.
    pub(super) fn mount(&mut self, mount: &Mount) -> Result<()> {
        let shared = self.spec.root == Root::Shared;
        let attributes = if mount.readonly { RDONLY } else { 0 };
        let place =
            |path: &Path| Ok::<_, Error>(if shared { Place::Host(c(path)?) } else { Place::Root(c(path)?) });
        let target = normal(&mount.target)?;
        let mut file = false;
        if let MountKind::Bind { source, .. } = &mount.kind {
            c(source)?;
            let meta = fs::metadata(source)
                .map_err(|e| Error::io(format!("mount on {}", target.display()), "stat", &e, Some(source)))?;
            file = !meta.is_dir();
            if meta.file_type().is_block_device() {
                return Err(Error::spec(format!(
                    "{}: a block device is no source of a bind mount",
                    source.display()
                )));
            }
        }
        if !shared {
            self.mount_point(Path::new("/"), target.strip_prefix("/").unwrap_or(&target), file, place)?;
        }
        let at = place(&target)?;
        let op = match &mount.kind {
            MountKind::Bind { source, recursive } => Op::Bind {
                source: Place::Host(c(source)?),
                at,
                recursive: *recursive,
                attributes: attributes | NOSUID | NODEV,
            },
            MountKind::Tmpfs { size, keep } if keep.is_empty() => tmpfs(*size, attributes, at)?,
            MountKind::Tmpfs { size, keep } if shared => {
                return self.tmpfs_with(keep, &target, |at| tmpfs(*size, attributes, at));
            }
            MountKind::Tmpfs { .. } => {
                return Err(Error::spec(format!(
                    "mount target {}: nothing of the image can be kept in a tmpfs",
                    target.display()
                )));
            }
            MountKind::Overlay { lower, upper, volatile } => {
                for layer in lower {
                    check_directory(layer, "a lower layer")?;
                }
                // The work directory may be made at the last moment.
                if let Some((upper, _)) = upper {
                    check_writable(upper, "the upper layer")?;
                }
                let settings = self.overlay(lower.clone(), upper.clone(), *volatile)?;
                let fstype = c"overlay".into();
                Op::Mount { fstype, source: c"overlay".into(), settings, attributes: attributes | NODEV, at }
            }
        };
        self.push(op, "asked for");
        Ok(())
    }

    /// The directories below `base` that lead to a mount point, and that itself, unless they are there.
    fn mount_point(
        &mut self,
        base: &Path,
        below: &Path,
        file: bool,
        place: impl Fn(&Path) -> Result<Place>,
    ) -> Result<()> {
        let (mut so_far, count) = (base.to_owned(), below.components().count());
        for (i, part) in below.components().enumerate() {
            so_far.push(part);
            let at = place(&so_far)?;
            let op = if file && i + 1 == count {
                Op::File { at, mode: 0o644, text: Vec::new() }
            } else {
                Op::Directory { at, mode: 0o755 }
            };
            self.push(op, "the mount point, if it is not there");
        }
        Ok(())
    }

    /// A tmpfs in which some of what it covers is bound. It covers that only when it is complete: until then it lies
    /// on a directory of which nothing is needed.
    fn tmpfs_with(
        &mut self,
        keep: &[PathBuf],
        target: &Path,
        tmpfs: impl Fn(Place) -> Result<Op>,
    ) -> Result<()> {
        let stage = self.choose_stage()?;
        let place = |path: &Path| c(path).map(Place::Host);
        self.push(tmpfs(place(&stage)?)?, "not on its place yet, which has what shall be kept");
        for kept in keep {
            let Ok(below) = kept.strip_prefix(target) else {
                let (kept, target) = (kept.display(), target.display());
                return Err(Error::spec(format!("{kept}: kept in a tmpfs on {target}, but not below that")));
            };
            let file = fs::metadata(kept)
                .map_err(|e| Error::io(format!("keep {}", kept.display()), "stat", &e, Some(kept)))
                .map(|meta| !meta.is_dir())?;
            self.mount_point(&stage, below, file, place)?;
            let (source, at) = (place(kept)?, place(&stage.join(below))?);
            self.push(Op::Bind { source, at, recursive: true, attributes: 0 }, "kept");
        }
        self.push(Op::Move { from: c(&stage)?, to: c(target)? }, "asked for");
        Ok(())
    }
}

fn tmpfs(size: Option<u64>, attributes: u64, at: Place) -> Result<Op> {
    let mut settings = vec![text(c"mode", "1777")?];
    if let Some(size) = size {
        settings.push(text(c"size", &size.to_string())?);
    }
    let attributes = attributes | NOSUID | NODEV;
    Ok(Op::Mount { fstype: c"tmpfs".into(), source: c"tmpfs".into(), settings, attributes, at })
}

/// An absolute path without `.` and `..`.
fn normal(target: &Path) -> Result<PathBuf> {
    if !target.is_absolute() {
        return Err(Error::spec(format!("mount target {}: not an absolute path", target.display())));
    }
    let mut path = PathBuf::from("/");
    for part in target.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::spec(format!(
                    "mount target {}: .. is not allowed in it",
                    target.display()
                )));
            }
        }
    }
    if path == Path::new("/") {
        return Err(Error::spec("mount target /: the root directory comes from the image"));
    }
    Ok(path)
}

/// overlayfs answers a work directory that it may not write by mounting read-only, without a word.
pub(super) fn check_writable(path: &Path, what: &str) -> Result<()> {
    use nix::unistd::{AccessFlags, Uid, eaccess};

    check_directory(path, what)?;
    match eaccess(path, AccessFlags::W_OK | AccessFlags::X_OK) {
        // The modes of the caller's own directories do not bind root of its user namespace.
        Err(Errno::EACCES)
            if fs::metadata(path).is_ok_and(|meta| meta.uid() == Uid::effective().as_raw()) =>
        {
            Ok(())
        }
        Err(errno) => {
            let message = format!("{}: {what} cannot be written: {}", path.display(), errno.desc());
            Err(Error::Image { message, errno })
        }
        Ok(()) => Ok(()),
    }
}

pub(super) fn check_directory(path: &Path, what: &str) -> Result<()> {
    let fail = |errno, message: String| Err(Error::Image { message, errno });
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => fail(Errno::ENOTDIR, format!("{}: {what} must be a directory", path.display())),
        Err(e) => {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            fail(errno, format!("{}: {what} cannot be read: {}", path.display(), errno.desc()))
        }
    }
}
