//! What cgroups this process lives in and where they are mounted.
//!
//! Two files tell it: `/proc/self/mountinfo` (which hierarchies are mounted, and which part of them a mount
//! shows) and `/proc/self/cgroup` (our own place in each). Both speak relative to the reader's cgroup namespace,
//! so a mount made outside of it has a root such as `/../..`. The parsers are pure functions of the two texts;
//! only [`Host::read`], [`Hierarchy::writable`] and the last section touch the file system. Runs in the calling
//! process.

use super::files;
use nix::unistd::AccessFlags;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The two versions of the interface, cgroups(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// One hierarchy for each controller (or a few of them).
    V1,
    /// The unified hierarchy.
    V2,
}

/// Which of them this host has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only version 2.
    Pure,
    /// Version 1 controllers beside a version 2 that has some of memory, pids, cpu and cpuset.
    Hybrid,
    /// Version 1 controllers beside a version 2 that has none of these four.
    BareHybrid,
    /// Only version 1.
    V1,
    /// No cgroup file system is mounted.
    Unmounted,
}

impl Layout {
    /// The word that `report()` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pure => "v2",
            Self::Hybrid => "hybrid",
            Self::BareHybrid => "bare-hybrid",
            Self::V1 => "v1",
            Self::Unmounted => "none",
        }
    }
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its version.
    pub version: Version,
    /// The controllers bound to it; for version 2 those that the mount's top directory offers.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Our own directory below the mount point, or why it cannot be told.
    pub own: Result<PathBuf, String>,
}

/// A line of `/proc/self/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Empty for version 2.
    pub controllers: Vec<String>,
    /// Relative to the root of our cgroup namespace.
    pub path: PathBuf,
}

/// A cgroup mount of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// By its file system type.
    pub version: Version,
    /// Which directory of the hierarchy is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of the super block, in which version 1 names its controllers.
    pub options: Vec<String>,
}

/// Parses `/proc/self/cgroup`: `ID:controllers:path` a line; the path may hold colons.
pub fn parse_memberships(text: &[u8]) -> Vec<Membership> {
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (_id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let names = String::from_utf8_lossy(controllers);
            Some(Membership {
                controllers: names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
                path: PathBuf::from(OsStr::from_bytes(path)),
            })
        })
        .collect()
}

/// Parses `/proc/self/mountinfo` and keeps the cgroup mounts. A later mount on the same point hides the earlier.
pub fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        // Optional fields end at a lone hyphen, which cannot stand before the seventh field.
        let Some(hyphen) = fields.iter().skip(6).position(|field| *field == b"-").map(|at| at + 6) else {
            continue;
        };
        let (Some(kind), Some(options)) = (fields.get(hyphen + 1), fields.get(hyphen + 3)) else { continue };
        let point = unescape(fields[4]);
        mounts.retain(|mount| mount.point != point);
        let version = match *kind {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => continue,
        };
        let options = String::from_utf8_lossy(options).split(',').map(str::to_owned).collect();
        mounts.push(Mount { version, root: unescape(fields[3]), point, options });
    }
    mounts
}

/// Undoes the octal escapes of proc(5) (`\040` for a space).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |digit: u8| (b'0'..=b'7').contains(&digit).then(|| u32::from(digit - b'0'));
        let escaped = match tail {
            [a, b, c, ..] if *first == b'\\' => {
                octal(*a).zip(octal(*b)).zip(octal(*c)).map(|((a, b), c)| a * 64 + b * 8 + c)
            }
            _ => None,
        };
        if let Some(byte) = escaped.and_then(|value| u8::try_from(value).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// How far above the namespace's root a path starts, and the names from there.
fn split(path: &Path) -> (usize, Vec<&OsStr>) {
    let names: Vec<&OsStr> = path.iter().filter(|name| *name != "/").collect();
    let above = names.iter().take_while(|name| **name == "..").count();
    (above, names[above..].to_vec())
}

/// The directory below `mount` that shows the cgroup `own`; both are relative to our cgroup namespace.
pub fn locate(mount: &Mount, own: &Path) -> Result<PathBuf, String> {
    if own.as_os_str().as_bytes().ends_with(b" (deleted)") {
        return Err(format!("our cgroup {} has been removed", own.display()));
    }
    let ((root_above, root), (own_above, names)) = (split(&mount.root), split(own));
    let seen = format!("{} shows {} of the hierarchy", mount.point.display(), mount.root.display());
    if root_above > own_above {
        // The names between the mount's root and our namespace's root are known to nobody in here.
        return Err(format!("{seen}, which lies above the root of our cgroup namespace"));
    }
    if root_above < own_above || !names.starts_with(&root) {
        return Err(format!("{seen}, and our cgroup {} lies outside of that", own.display()));
    }
    Ok(names[root.len()..].iter().fold(mount.point.clone(), |path, name| path.join(name)))
}

/// Matches memberships and mounts. `controllers_of` reads the controllers of a version 2 mount point.
pub fn hierarchies(
    mountinfo: &[u8],
    memberships: &[u8],
    controllers_of: impl Fn(&Path) -> Vec<String>,
) -> Vec<Hierarchy> {
    let mounts = parse_mounts(mountinfo);
    let mut found = Vec::new();
    for member in parse_memberships(memberships) {
        if member.controllers.iter().any(|name| name.starts_with("name=")) {
            continue; // a hierarchy without controllers, for bookkeeping of the init system
        }
        let version = if member.controllers.is_empty() { Version::V2 } else { Version::V1 };
        let of_it = mounts.iter().filter(|mount| {
            mount.version == version && member.controllers.iter().all(|name| mount.options.contains(name))
        });
        // The same hierarchy may be mounted more than once: prefer a mount that shows our own directory.
        let located: Vec<_> = of_it.map(|mount| (mount, locate(mount, &member.path))).collect();
        let Some((mount, own)) = located.iter().find(|(_, own)| own.is_ok()).or(located.first()) else {
            continue;
        };
        let controllers =
            if version == Version::V2 { controllers_of(&mount.point) } else { member.controllers.clone() };
        found.push(Hierarchy { version, controllers, mount_point: mount.point.clone(), own: own.clone() });
    }
    found
}

/// The four controllers that limits are made of.
pub const LIMITING: [&str; 4] = ["memory", "pids", "cpu", "cpuset"];

/// The cgroup hierarchies of this host as this process sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Version 2 (one at most) and version 1 hierarchies, as `/proc/self/cgroup` lists them.
    pub hierarchies: Vec<Hierarchy>,
}

impl Host {
    /// Reads both files of `/proc`; a host without them has no hierarchies.
    pub fn read() -> Self {
        let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let memberships = std::fs::read("/proc/self/cgroup").unwrap_or_default();
        Self {
            hierarchies: hierarchies(&mountinfo, &memberships, |point| {
                files::words(&point.join("cgroup.controllers"))
            }),
        }
    }

    /// The unified hierarchy, if it is mounted.
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    /// The version 1 hierarchy of `controller`.
    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        let mut v1 = self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
        v1.find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// Where `controller` lives: a controller is in one version only.
    pub fn home(&self, controller: &str) -> Option<&Hierarchy> {
        let v2 = self.v2().filter(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller));
        v2.or_else(|| self.v1(controller))
    }

    /// Pure, hybrid, and so on.
    pub fn layout(&self) -> Layout {
        let v1 = LIMITING.iter().any(|controller| self.v1(controller).is_some());
        let v2_has = |hierarchy: &Hierarchy| {
            LIMITING.iter().any(|name| hierarchy.controllers.iter().any(|own| own == name))
        };
        match (v1, self.v2()) {
            (false, None) => Layout::Unmounted,
            (false, Some(_)) => Layout::Pure,
            (true, None) => Layout::V1,
            (true, Some(v2)) if v2_has(v2) => Layout::Hybrid,
            (true, Some(_)) => Layout::BareHybrid,
        }
    }
}

impl Hierarchy {
    /// Our own directory and those above it, up to the mount point.
    pub fn ancestry(&self) -> Result<Vec<PathBuf>, String> {
        let own = self.own.as_ref().map_err(Clone::clone)?;
        let inside = own.ancestors().take_while(|path| path.starts_with(&self.mount_point));
        Ok(inside.map(Path::to_path_buf).collect())
    }

    /// The nearest directory, from our own upwards, in which this process may make another.
    pub fn writable(&self) -> Result<PathBuf, String> {
        let ancestry = self.ancestry()?;
        let writable = ancestry.iter().find(|path| may_write(path).is_ok());
        writable.cloned().ok_or_else(|| match ancestry.first() {
            Some(own) => refusal(own),
            None => format!("{} shows nothing of ours", self.mount_point.display()),
        })
    }
}

/// Whether a directory can be made in `path`, or a file of it be written, by this process' effective ids.
pub fn may_write(path: &Path) -> Result<(), nix::errno::Errno> {
    nix::unistd::eaccess(path, AccessFlags::W_OK)
}

/// Why [`may_write`] refuses, with the owner.
pub fn refusal(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let errno = may_write(path).err().unwrap_or(nix::errno::Errno::EACCES);
    match std::fs::metadata(path) {
        Ok(metadata) => format!(
            "{} belongs to uid {} and is not writable for uid {} ({errno:?})",
            path.display(),
            metadata.uid(),
            nix::unistd::geteuid()
        ),
        Err(_) => format!("{}: {errno:?}", path.display()),
    }
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
