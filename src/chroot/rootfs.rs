//! [`Rootfs`]: a directory of the host that is to be some container's root.
//!
//! `create` makes the tree (steps 6 and 7 of the classic chroot exercise), merged under `/usr` where the host is, so
//! that a loader named `/lib64/ld-linux-x86-64.so.2` is found by that name. `install` copies programs with exactly
//! the loader and libraries that their ELF files ask for, at the paths where the loader asks for them, and says of
//! every file why it is there. Programs alone do not make users: `/etc/passwd` and its like come with
//! [`Rootfs::minimal_etc`].
//!
//! Nothing is written before the whole list is known. A library outside the directories built into its loader gets
//! an entry in the root's own `/etc/ld.so.cache`, since there is no ldconfig in there. Runs in the calling process;
//! needs no privilege; writes nowhere but in the directory, whatever symlinks it holds.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chroot::collect::{Action, Collection, Collector, Program, open_host};
use crate::chroot::ldcache::{self, LdCache};
use crate::chroot::place::{Placed, Placer};
use crate::error::{Errno, Error, Result};
use crate::sys::path::{open_root, openat2_in_root, read_in_root};

/// Directories of the tree and their modes, besides those that a distribution merges under `/usr`.
const TREE: [(&str, u32); 11] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("var", 0o755),
];

/// Merged under `/usr` by most distributions; made in the root as the host has them.
const MERGED: [&str; 5] = ["bin", "sbin", "lib", "lib64", "lib32"];

/// The least that name lookups need. `nsswitch.conf` is glibc's; musl reads the files without being told.
const ETC: [(&str, &str); 4] = [
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
];

/// How [`Rootfs::install`] looks for programs.
#[derive(Debug, Clone, Default)]
pub struct InstallOptions {
    /// Directories, separated by colons, in which names are looked up; the caller's `PATH` where `None`.
    pub search_path: Option<OsString>,
}

/// A file or symlink that came into the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its path in the root.
    pub path: PathBuf,
    /// The text of the symlink, if it is one.
    pub link: Option<PathBuf>,
    /// Why it is there.
    pub reason: String,
}

/// What an installation did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of discovery: each program, then what it needs.
    pub installed: Vec<Installed>,
    /// What is missing without harm to the programs that were asked for.
    pub warnings: Vec<String>,
}

/// A directory that becomes a root.
#[derive(Debug)]
pub struct Rootfs {
    dir: PathBuf,
    root: OwnedFd,
    host: OwnedFd,
}

impl Rootfs {
    /// Makes the tree in `dir`, which is made too if it is not there. What is there already stays.
    pub fn create(dir: &Path) -> Result<Self> {
        let step = || format!("make the root file system {}", dir.display());
        std::fs::create_dir_all(dir).map_err(|e| Error::io(step(), "mkdir", &e, Some(dir)))?;
        let rootfs = Self::open(dir)?;
        let placer = rootfs.placer();
        for (name, mode) in TREE {
            if name.contains('/') {
                placer.directory(&Path::new("/").join(name), mode)?;
            } else {
                placer.top(name, mode)?;
            }
        }
        for name in MERGED {
            match std::fs::read_link(Path::new("/").join(name)) {
                Ok(target) if target.starts_with("usr") => placer.merged(Path::new(name), &target)?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                _ => placer.top(name, 0o755)?,
            }
        }
        Ok(rootfs)
    }

    /// Takes the directory as it is.
    pub fn open(dir: &Path) -> Result<Self> {
        let step = || format!("open the root file system {}", dir.display());
        let root = open_root(dir).map_err(|errno| Error::step(step(), "open", errno, Some(dir)))?;
        let dir = std::path::absolute(dir).map_err(|e| Error::io(step(), "getcwd", &e, Some(dir)))?;
        Ok(Self { dir, root, host: open_host()? })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The directory, opened (`O_PATH`).
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn placer(&self) -> Placer<'_> {
        Placer { root: self.root.as_fd(), host: self.host.as_fd() }
    }

    /// Installs programs (or any files and directories of the host) with all they need.
    ///
    /// Errors: `Image` with `ENOENT` for what is missing, and nothing has been written then; `Step` where the root
    /// cannot be written.
    pub fn install(&self, programs: &[Program], options: &InstallOptions) -> Result<Report> {
        let mut collector = Collector::new(&self.host, options.search_path.as_deref());
        for program in programs {
            collector.add(program)?;
        }
        self.apply(collector.finish())
    }

    /// Carries out a list.
    pub(super) fn apply(&self, collection: Collection) -> Result<Report> {
        let placer = self.placer();
        let mut report = Report { installed: Vec::new(), warnings: collection.warnings };
        let mut seen = HashSet::new();
        for item in collection.items {
            let placed = match item.action {
                Action::Mirror => placer.mirror(&item.source)?,
                Action::Copy => {
                    placer.copy(&item.source, &item.destination)?;
                    vec![Placed::File(item.destination)]
                }
                Action::Link(target) => {
                    placer.link(&item.destination, &target)?;
                    vec![Placed::Link(item.destination, target)]
                }
                Action::Directory(mode) => {
                    // Its owner must be able to fill it, and to remove it later.
                    placer.directory(&item.destination, mode & 0o1777 | 0o700)?;
                    Vec::new()
                }
            };
            for placed in placed {
                let (path, link) = match placed {
                    Placed::File(path) => (path, None),
                    Placed::Link(path, target) => (path, Some(target)),
                };
                let reason = match &link {
                    Some(_) if path != item.source => format!("on the way to {}", item.source.display()),
                    _ => item.reason.clone(),
                };
                if seen.insert(path.clone()) {
                    report.installed.push(Installed { path, link, reason });
                }
            }
        }
        self.extend_cache(collection.cache, &mut report)?;
        Ok(report)
    }

    fn extend_cache(&self, entries: Vec<(OsString, ldcache::Entry)>, report: &mut Report) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let path = Path::new(ldcache::PATH);
        let old = read_in_root(self.root(), path, ldcache::MAX_SIZE).ok();
        let mut cache = old.and_then(|bytes| LdCache::parse(&bytes)).unwrap_or_default();
        let libraries: Vec<_> = entries.iter().map(|(_, entry)| entry.path.display().to_string()).collect();
        for (name, entry) in entries {
            cache.insert(name, entry);
        }
        self.placer().write(path, 0o644, &cache.to_bytes())?;
        let reason = format!("tells the loader where to find {}", libraries.join(", "));
        report.installed.push(Installed { path: path.to_owned(), link: None, reason });
        Ok(())
    }

    /// Copies busybox to `/bin/busybox` and makes a symlink for each applet where nothing is yet.
    ///
    /// Errors: `Image` with `ENOENT` when the host has no busybox.
    pub fn install_busybox(&self, options: &InstallOptions) -> Result<Report> {
        let mut collector = Collector::new(&self.host, options.search_path.as_deref());
        let busybox = add_busybox(&mut collector)?;
        let mut report = self.apply(collector.finish())?;
        self.link_applets(&applets(&busybox)?, &mut report)?;
        Ok(report)
    }

    pub(super) fn link_applets(&self, applets: &[PathBuf], report: &mut Report) -> Result<()> {
        let target = Path::new("/bin/busybox");
        for applet in applets {
            let path = Path::new("/").join(applet);
            if path != target && self.placer().link_if_free(&path, target)? {
                let (link, reason) = (Some(target.to_owned()), "an applet of busybox".to_owned());
                report.installed.push(Installed { path, link, reason });
            }
        }
        Ok(())
    }

    /// Writes `/etc/passwd`, `group`, `hosts` and `nsswitch.conf` where they are missing.
    pub fn minimal_etc(&self) -> Result<Report> {
        let mut report = Report::default();
        for (path, text) in ETC {
            let path = Path::new(path);
            let look = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW;
            let found = openat2_in_root(self.root(), path, look, nix::sys::stat::Mode::empty());
            if matches!(found, Err(Errno::ENOENT)) {
                self.placer().write(path, 0o644, text.as_bytes())?;
                let (path, reason) =
                    (path.to_owned(), "one of the least files that name lookups need".to_owned());
                report.installed.push(Installed { path, link: None, reason });
            }
        }
        Ok(report)
    }
}

/// Puts the host's busybox on the list; its path on the host.
pub(super) fn add_busybox(collector: &mut Collector<'_>) -> Result<PathBuf> {
    let source = collector.find("busybox".as_ref()).map_err(|_| Error::Image {
        message: "no busybox in PATH; install the host's package busybox-static (or busybox), or name the programs \
                  that the root needs"
            .to_owned(),
        errno: Errno::ENOENT,
    })?;
    let destination = Some(PathBuf::from("/bin/busybox"));
    collector.add(&Program { source: source.clone(), destination })?;
    Ok(source)
}

/// The applets that a busybox knows, as paths without the leading slash. A busybox without the installer knows only
/// names; they go to `bin`.
pub(super) fn applets(busybox: &Path) -> Result<Vec<PathBuf>> {
    for (option, prefix) in [("--list-full", ""), ("--list", "bin")] {
        let output = Command::new(busybox)
            .arg(option)
            .output()
            .map_err(|e| Error::io("list the applets of busybox", "execve", &e, Some(busybox)))?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let is_plain = |path: &&str| !path.is_empty() && !path.split('/').any(|part| part == "..");
            let place = |path: &str| Path::new(prefix).join(path.trim_start_matches('/'));
            return Ok(text.lines().filter(is_plain).map(place).collect());
        }
    }
    let message = format!("{} --list fails: is it a busybox?", busybox.display());
    Err(Error::Image { message, errno: Errno::ENOEXEC })
}

#[cfg(test)]
mod tests;
