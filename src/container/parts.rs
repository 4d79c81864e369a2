//! What a root directory was put together from, read back from the steps that did it: for `diff()`, which compares
//! each piece with what it was. Pure.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::step::{Op, Place, Setting};

/// One piece of the root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Relative to the root directory; empty: all of it.
    pub path: PathBuf,
    /// What it is.
    pub kind: PartKind,
}

/// What a piece is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartKind {
    /// An overlay.
    Overlay {
        /// Its upper directory, relative to the one that [`Op::Upper`] keeps.
        upper: PathBuf,
        /// Its lower ones on the host, top first; without r2d2's own, which the container's mount namespace alone has.
        lowers: Vec<PathBuf>,
        /// Directories in the upper one that were there before the start, relative to it.
        precreated: Vec<PathBuf>,
    },
    /// A directory of its own, not of an overlay.
    Directory,
    /// A symlink with this text.
    Symlink(Vec<u8>),
    /// A file with this content.
    File(Vec<u8>),
    /// A directory (0755) of r2d2's own lower layer.
    OurDirectory,
    /// A file (0644) of r2d2's own lower layer, with this content.
    OurFile(Vec<u8>),
    /// A mount point made for a mount that was asked for; perhaps it was there before.
    MountPoint,
}

fn path(text: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}

/// The pieces, in the order in which they were made.
pub fn parts(plan: &Plan) -> Vec<Part> {
    let Some(stage) = &plan.stage else { return Vec::new() };
    let (root, base) = (stage.join("root"), stage.join("base"));
    let uppers = plan.disk.as_ref().unwrap_or(stage).join("upper");
    let mut parts: Vec<Part> = Vec::new();
    let mut precreated: Vec<PathBuf> = Vec::new();
    for step in &plan.steps {
        let (at, kind) = match &step.op {
            Op::Directory { at, .. } => {
                if let Place::Host(at) = at
                    && let Ok(below) = path(at).strip_prefix(&uppers)
                {
                    precreated.push(below.to_owned());
                }
                (at, PartKind::Directory)
            }
            Op::Symlink { at, target } => (at, PartKind::Symlink(target.to_bytes().to_owned())),
            Op::File { at, text, .. } => (at, PartKind::File(text.clone())),
            Op::Mount { fstype, settings, at, .. } if fstype.as_bytes() == b"overlay" => {
                (at, overlay(settings, stage, &uppers))
            }
            _ => continue,
        };
        match at {
            Place::Host(at) => {
                if let Ok(below) = path(at).strip_prefix(&root) {
                    parts.push(Part { path: below.to_owned(), kind });
                } else if let Ok(below) = path(at).strip_prefix(&base) {
                    let kind = match kind {
                        PartKind::File(text) => PartKind::OurFile(text),
                        _ => PartKind::OurDirectory,
                    };
                    parts.push(Part { path: below.to_owned(), kind });
                }
            }
            Place::Root(at) if matches!(kind, PartKind::Directory | PartKind::File(_)) => {
                let below = path(at).strip_prefix("/").unwrap_or(path(at)).to_owned();
                parts.push(Part { path: below, kind: PartKind::MountPoint });
            }
            Place::Root(_) => {}
        }
    }
    for part in &mut parts {
        if let PartKind::Overlay { upper, precreated: mine, .. } = &mut part.kind {
            let below = precreated.iter().filter_map(|path| path.strip_prefix(&*upper).ok());
            mine.extend(below.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned));
        }
    }
    // The stage's own `root` and `base`.
    parts.retain(|part| !part.path.as_os_str().is_empty() || matches!(part.kind, PartKind::Overlay { .. }));
    parts
}

fn overlay(settings: &[Setting], stage: &Path, uppers: &Path) -> PartKind {
    let (mut lowers, mut upper) = (Vec::new(), PathBuf::new());
    for setting in settings {
        let (key, value) = match setting {
            Setting::Text(key, value) | Setting::Directory(key, value) => (key.to_bytes(), value),
            Setting::Flag(_) => continue,
        };
        let mut lower = |layer: &Path| {
            if !layer.starts_with(stage) {
                lowers.push(layer.to_owned());
            }
        };
        match key {
            b"lowerdir+" => lower(path(value)),
            b"lowerdir" => split(value.to_bytes()).iter().for_each(|layer| lower(layer)),
            b"upperdir" => {
                upper = path(value).strip_prefix(uppers).map(Path::to_owned).unwrap_or_default();
            }
            _ => {}
        }
    }
    PartKind::Overlay { upper, lowers, precreated: Vec::new() }
}

/// The layers of one string: separated by colons, a backslash before what is none.
fn split(text: &[u8]) -> Vec<PathBuf> {
    let (mut layers, mut layer, mut bytes) = (Vec::new(), Vec::new(), text.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => layer.extend(bytes.next()),
            b':' => layers.push(std::mem::take(&mut layer)),
            other => layer.push(*other),
        }
    }
    layers.push(layer);
    layers.into_iter().map(|layer| PathBuf::from(std::ffi::OsString::from_vec(layer))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_one_string_are_told_apart() {
        let layers = split(br"/a:/b\:c:/d\\e");
        assert_eq!(layers, [Path::new("/a"), Path::new("/b:c"), Path::new(r"/d\e")]);
    }
}
