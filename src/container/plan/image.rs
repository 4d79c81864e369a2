//! The image as the root: an overlay of its layers, or one overlay for each part of the machine's own tree. Runs in
//! the calling process.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::mounts::{check_directory, check_writable};
use super::{Builder, NODEV, RDONLY, c};
use crate::container::spec::Upper;
use crate::container::step::{Op, Place, Setting};
use crate::error::{Errno, Error, Result};
use crate::namespace::Kind;
use crate::overlay::{frozen::Frozen, layout, options};

impl Builder<'_> {
    /// The settings of one overlay, for fsconfig(2).
    pub(super) fn overlay(
        &self,
        lowers: Vec<PathBuf>,
        upper: Option<(PathBuf, PathBuf)>,
        volatile: bool,
    ) -> Result<Vec<Setting>> {
        let user = self.spec.namespaces.has(Kind::User);
        let (upper, work) = upper.unzip();
        let options = options::Options {
            lowers,
            upper,
            work,
            userxattr: user,
            user_namespace: user,
            volatile,
            redirect: false,
        };
        options.check()?;
        settings(&options.plan(options::Method::here(), 0)?)
    }

    /// What vanishes with the container is never synced to disk. A tmpfs is on none, and there the mark that `volatile`
    /// leaves in the work directory costs a sixth of the mount and more at its end.
    fn volatile(&self) -> bool {
        matches!(self.spec.upper, Upper::Disk(_))
    }

    pub(super) fn overlay_root(&mut self, layers: &[PathBuf]) -> Result<()> {
        for layer in layers {
            check_directory(layer, "a layer of the image")?;
        }
        // Our /etc would hide what the image's symbolic link leads to.
        let etc = layers.iter().find_map(|layer| fs::symlink_metadata(layer.join("etc")).ok());
        self.scaffold("base", etc.is_none_or(|meta| meta.is_dir()))?;
        let mut lowers = vec![self.stage.join("base")];
        lowers.extend(layers.iter().cloned());
        let upper = match &self.spec.upper {
            Upper::Tmpfs(_) | Upper::Disk(_) => (self.writable().join("upper"), self.writable().join("work")),
            Upper::Directory { upper, work } => {
                check_writable(upper, "the upper layer")?;
                check_writable(work, "the work directory")?;
                (upper.clone(), work.clone())
            }
        };
        let settings = self.overlay(lowers, Some(upper), self.volatile())?;
        let at = Place::Host(self.staged("root")?);
        self.push(
            Op::Mount {
                fstype: c"overlay".into(),
                source: c"overlay".into(),
                settings,
                attributes: NODEV,
                at,
            },
            "the image's layers below, a private one above: two slides laid on each other",
        );
        Ok(())
    }

    /// The machine's own tree, one overlay for each directory that can be one (`overlay::layout`), below snapshots of it.
    pub(super) fn host_root(&mut self, snapshots: &[PathBuf]) -> Result<()> {
        for layer in snapshots {
            check_directory(layer, "a layer of the image")?;
        }
        let frozen = Frozen::open(snapshots)?;
        let root = self.stage.join("root");
        let at = Place::Host(c(&root)?);
        let bind = Op::Bind { source: at.clone(), at, recursive: false, attributes: NODEV };
        self.push(bind, "pivot_root wants a mount point");
        self.scaffold("root", false)?;
        let layout = layout::host(std::slice::from_ref(&self.stage), self.spec.namespaces.has(Kind::User))?;
        self.notes.extend(layout.notes.iter().map(|note| format!("{}: {}", note.path.display(), note.why)));
        let mut covered = Vec::new();
        for part in &layout.parts {
            let relative = part.path.strip_prefix("/").unwrap_or(&part.path).to_owned();
            if !snapshots.is_empty() && self.frozen_part(&frozen, part, &layout.parts, &mut covered)? {
                continue;
            }
            let at = c(root.join(&relative))?;
            let why = "as on the host";
            match &part.kind {
                layout::Kind::Dir => self.directory(at, part.mode, why),
                layout::Kind::Symlink(target) => {
                    self.push(Op::Symlink { at: Place::Host(at), target: c(target)? }, why);
                }
                layout::Kind::Copy => {
                    let text = fs::read(&part.path)
                        .map_err(|e| Error::io("read a file of the host", "open", &e, Some(&part.path)))?;
                    self.push(
                        Op::File { at: Place::Host(at), mode: part.mode, text },
                        "small enough to copy",
                    );
                }
                layout::Kind::Bind => self.bound(&part.path, at)?,
                layout::Kind::Overlay(precreate) => {
                    self.host_part(vec![part.path.clone()], &relative, part.mode, precreate, None)?;
                }
            }
        }
        if !snapshots.is_empty() {
            self.frozen_children(&frozen, Path::new(""), &layout.parts)?;
        }
        for (name, mode) in [("tmp", 0o1777), ("run", 0o755)] {
            let at = c(root.join(name))?;
            self.directory(at, mode, "the host's holds sockets and temporary files: a private one");
        }
        Ok(())
    }

    /// A file of the host, read-only.
    pub(super) fn bound(&mut self, source: &Path, at: CString) -> Result<()> {
        let file = Op::File { at: Place::Host(at.clone()), mode: 0o644, text: Vec::new() };
        self.push(file, "a mount point");
        let source = Place::Host(c(source)?);
        let op = Op::Bind { source, at: Place::Host(at), recursive: false, attributes: RDONLY };
        self.push(op, "too large to copy");
        Ok(())
    }

    pub(super) fn host_part(
        &mut self,
        mut lowers: Vec<PathBuf>,
        relative: &Path,
        mode: u32,
        precreate: &[layout::Precreate],
        owner: Option<(u32, u32)>,
    ) -> Result<()> {
        let flat: Vec<u8> =
            relative.as_os_str().as_bytes().iter().map(|b| if *b == b'/' { b'%' } else { *b }).collect();
        let upper = self.writable().join("upper").join(relative);
        let flat = std::ffi::OsString::from_vec(flat);
        let work = self.writable().join("work").join(&flat);
        let mut parent = self.writable().join("upper");
        for part in relative.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            let at = c(&parent)?;
            self.directory(at, 0o755, "the way to it");
        }
        let at = c(&upper)?;
        self.directory(at.clone(), mode, "what the container writes there");
        if let Some((uid, gid)) = owner {
            let op = Op::Owner { at: Place::Host(at), uid, gid };
            self.push_optional(op, "as in the snapshot: the upper layer's owner is what is seen");
        }
        for directory in precreate {
            let at = c(upper.join(&directory.path))?;
            self.directory(at, directory.mode, "the host's belongs to an id that does not exist inside");
        }
        self.directory(c(&work)?, 0o755, "overlayfs needs one");
        let root = self.stage.join("root").join(relative);
        self.directory(c(&root)?, mode, "a mount point");
        self.set_apart(&mut lowers, Path::new(&flat))?;
        if relative == Path::new("etc") && !self.spec.etc.is_empty() {
            let base = self.stage.join("base/etc");
            self.directory(c(&base)?, 0o755, "a layer of files that every container has of its own");
            for (name, content) in &self.spec.etc {
                let at = Place::Host(c(base.join(name))?);
                self.push(Op::File { at, mode: 0o644, text: content.clone() }, "this container's own");
            }
            lowers.insert(0, base);
        }
        let settings = self.overlay(lowers, Some((upper, work)), self.volatile())?;
        let at = Place::Host(c(root)?);
        self.push(
            Op::Mount {
                fstype: c"overlay".into(),
                source: c"overlay".into(),
                settings,
                attributes: NODEV,
                at,
            },
            "the host's directory below, a private one above",
        );
        Ok(())
    }

    /// Overlayfs refuses a layer that lies in another (ELOOP), as snapshots in `~/.cache` lie in the host's home
    /// directory. Seen through an overlay of its own, the outer one is another file system's.
    fn set_apart(&mut self, lowers: &mut [PathBuf], name: &Path) -> Result<()> {
        if lowers.len() < 2 {
            return Ok(());
        }
        let real: Vec<_> =
            lowers.iter().map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
        let holds_another =
            |outer: &PathBuf| real.iter().any(|inner| inner != outer && inner.starts_with(outer));
        let Some(outer) = real.iter().position(holds_another).and_then(|i| lowers.get_mut(i)) else {
            return Ok(());
        };
        let parent = self.stage.join("apart");
        let at = parent.join(name);
        for directory in [&parent, &at] {
            self.directory(c(directory)?, 0o755, "a snapshot lies below the host's directory");
        }
        // Without an upper layer overlayfs wants two: the other one is the mount point, which is empty.
        let settings = self.overlay(vec![std::mem::replace(outer, at.clone()), at.clone()], None, false)?;
        let mount = Op::Mount {
            fstype: c"overlay".into(),
            source: c"overlay".into(),
            settings,
            attributes: NODEV | RDONLY,
            at: Place::Host(c(at)?),
        };
        self.push(mount, "overlayfs refuses layers of which one lies in another");
        Ok(())
    }
}

/// `overlay::options` speaks of descriptor numbers; the interpreter opens such a directory at the call that needs it.
pub(in crate::container) fn settings(plan: &options::Plan) -> Result<Vec<Setting>> {
    if plan.method == options::Method::Mount2 {
        return Err(Error::Unsupported {
            message: "this kernel takes overlay layers in one string only, and these paths do not fit: use fewer or \
                      shorter ones (Linux 6.5 lifts this)"
                .into(),
            errno: Errno::E2BIG,
        });
    }
    let mut opens = plan.opens.iter();
    plan.calls
        .iter()
        .filter(|call| call.key != c"source")
        .map(|call| {
            Ok(match (&call.value, call.by_fd) {
                (_, true) if plan.method == options::Method::Append || call.key != c"lowerdir" => {
                    let open = opens.next().ok_or_else(|| Error::spec("overlay: a layer without a path"))?;
                    Setting::Directory(call.key.into(), open.path.clone())
                }
                (Some(value), _) => Setting::Text(call.key.into(), value.clone()),
                (None, _) => Setting::Flag(call.key.into()),
            })
        })
        .collect()
}
