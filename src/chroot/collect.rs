//! The list of host files that a set of programs needs, each with the reason, made before anything is copied.
//!
//! For each program: find it (`PATH`, as execvp does), read its head, and follow what it asks for: an ELF file its
//! loader and libraries, a script its interpreter (and the program that env(1) would start), a directory all that
//! lies in it. A thing that is missing is found out here, so that a failed installation has written nothing.
//!
//! Two decisions. *NSS*: glibc before 2.34 loads `libnss_files` and `libnss_dns` at run time without naming them;
//! they are added for such a libc alone (since 2.34 they are built in; musl has none). *Other plug-ins* that a
//! program opens by dlopen(3) are its own affair and named by the caller, as files or directories.
//!
//! Every path that was consulted is kept with its stat(2) (or as absent): a cache of images compares these, see
//! `minimal`. Runs in the calling process; only reads.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::chroot::elf::ReadAt;
use crate::chroot::ldcache;
use crate::chroot::loader::Libc;
use crate::chroot::resolve::{Closure, Found, Missing, Resolver};
use crate::chroot::script::{self, Shebang};
use crate::chroot::stamp::Stamp;
use crate::error::{Errno, Error, Result};
use crate::sys::path::{open_file_in_root, open_root};

/// Where programs are looked for when the caller has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program (or any file or directory) to install.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// A name to be looked up in `PATH`, or a path.
    pub source: PathBuf,
    /// Where it goes in the root, if not to its own path.
    pub destination: Option<PathBuf>,
}

impl<S: Into<PathBuf>> From<S> for Program {
    fn from(source: S) -> Self {
        Self { source: source.into(), destination: None }
    }
}

/// What is to be done with one path of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the path resolve in the root as it does here: every symlink on the way, then the file.
    Mirror,
    /// Copy the file to the destination.
    Copy,
    /// Make the destination a directory with this mode.
    Directory(u32),
    /// Make the destination a symlink with this text.
    Link(PathBuf),
}

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Item {
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the root.
    pub destination: PathBuf,
    /// What to do.
    pub action: Action,
    /// Why, as a clause: `needed by /usr/bin/bash, found in ld.so.cache`.
    pub reason: String,
}

/// The list and what it was made from.
#[derive(Debug, Default)]
pub struct Collection {
    /// In the order of discovery, each destination once.
    pub items: Vec<Item>,
    /// What is missing and not fatal: libraries of files that came with a directory.
    pub warnings: Vec<String>,
    /// Libraries outside the directories that their loader knows by itself.
    pub cache: Vec<(OsString, ldcache::Entry)>,
    /// Every path that was consulted.
    pub stamps: BTreeMap<PathBuf, Option<Stamp>>,
}

/// Makes a [`Collection`].
#[derive(Debug)]
pub struct Collector<'a> {
    resolver: Resolver<'a>,
    host: &'a OwnedFd,
    search_path: OsString,
    seen: HashSet<PathBuf>,
    collection: Collection,
}

/// The host's root, as [`Collector::new`] takes it.
pub fn open_host() -> Result<OwnedFd> {
    open_root(Path::new("/")).map_err(|errno| Error::step("open the host's root", "open", errno, Some("/")))
}

impl<'a> Collector<'a> {
    /// Looks names up in `search_path`, or else in the caller's `PATH`.
    pub fn new(host: &'a OwnedFd, search_path: Option<&OsStr>) -> Self {
        let search_path = search_path.map_or_else(caller_path, OsStr::to_owned);
        let resolver = Resolver::new(host.as_fd());
        Self { resolver, host, search_path, seen: HashSet::new(), collection: Collection::default() }
    }

    /// Adds a program and all it needs.
    ///
    /// Errors: `Image` with `ENOENT` where the program, an interpreter or a library is missing.
    pub fn add(&mut self, program: &Program) -> Result<()> {
        let by_name = !program.source.as_os_str().as_bytes().contains(&b'/');
        let source =
            if by_name { self.find(program.source.as_os_str())? } else { absolute(&program.source)? };
        let destination = match &program.destination {
            Some(destination) => rooted(destination)?,
            None => source.clone(),
        };
        self.add_path(&source, &destination, "asked for".to_owned(), 0)?;
        if by_name && program.destination.is_none() {
            self.link_into_path(program.source.as_os_str(), &source);
        }
        Ok(())
    }

    /// The list.
    pub fn finish(mut self) -> Collection {
        for path in self.resolver.absent() {
            self.collection.stamps.insert(path.clone(), None);
        }
        let cache = Path::new(ldcache::PATH);
        self.collection.stamps.insert(cache.to_owned(), Stamp::of(cache));
        self.collection
    }

    /// A program asked for by name, like execvp(3): the first executable file of that name in the search path.
    pub fn find(&mut self, name: &OsStr) -> Result<PathBuf> {
        let directories = self.search_path.clone();
        let directories =
            directories.as_bytes().split(|&c| c == b':').map(|d| Path::new(OsStr::from_bytes(d)));
        for directory in directories.filter(|directory| directory.is_absolute()) {
            let path = directory.join(name);
            let is_program = path.is_file() && access(&path, AccessFlags::X_OK).is_ok();
            if is_program && !name.is_empty() {
                return Ok(path);
            }
            self.stamp(&path);
        }
        let (name, searched) = (Path::new(name).display(), Path::new(&self.search_path).display());
        Err(missing(format!("program {name} not found in PATH ({searched})")))
    }

    fn stamp(&mut self, path: &Path) {
        self.collection.stamps.insert(path.to_owned(), Stamp::of(path));
    }

    /// A container's `PATH` has the usual directories: a program found elsewhere gets a symlink there.
    fn link_into_path(&mut self, name: &OsStr, source: &Path) {
        let usual = DEFAULT_PATH.split(':').any(|d| source.parent() == Some(Path::new(d)));
        let destination = Path::new("/usr/local/bin").join(name);
        if !usual && self.seen.insert(destination.clone()) {
            let reason =
                format!("{} was asked for by name and lies outside the usual PATH", source.display());
            let (source, action) = (source.to_owned(), Action::Link(source.to_owned()));
            self.collection.items.push(Item { source, destination, action, reason });
        }
    }

    fn add_path(&mut self, source: &Path, destination: &Path, reason: String, depth: usize) -> Result<()> {
        let data = std::fs::metadata(source).map_err(|e| unreadable(source, &e))?;
        if data.is_dir() {
            return self.add_tree(source, destination, &reason);
        }
        let is_new = self.push(source, destination, reason);
        let file = open_file_in_root(self.host.as_fd(), source).map_err(|e| unreadable(source, &e.into()))?;
        let mut head = [0; script::HEAD];
        let count = file.read_some(0, &mut head);
        if let Some(shebang) = Shebang::parse(&head[..count]) {
            // Seen or not: a circle of interpreters must be noticed.
            return self.add_interpreter(source, &shebang, depth);
        }
        if !is_new {
            return Ok(());
        }
        match self.add_libraries(source, destination)?.as_slice() {
            [] => Ok(()),
            problems => Err(missing(problems.join("\n"))),
        }
    }

    /// Puts a file on the list; false where its destination is taken already.
    fn push(&mut self, source: &Path, destination: &Path, reason: String) -> bool {
        self.stamp(source);
        let is_new = self.seen.insert(destination.to_owned());
        if is_new {
            let action = if source == destination { Action::Mirror } else { Action::Copy };
            let (source, destination) = (source.to_owned(), destination.to_owned());
            self.collection.items.push(Item { source, destination, action, reason });
        }
        is_new
    }

    fn add_interpreter(&mut self, script: &Path, shebang: &Shebang, depth: usize) -> Result<()> {
        let interpreter = &shebang.interpreter;
        if depth >= script::MAX_DEPTH {
            let message = format!("{}: more than {} interpreters deep", script.display(), script::MAX_DEPTH);
            return Err(Error::Image { message, errno: Errno::ELOOP });
        }
        if !interpreter.is_absolute() || !interpreter.exists() {
            let name = interpreter.display().to_string().escape_debug().to_string();
            return Err(missing(format!(
                "{} needs the interpreter {name}, which is not there",
                script.display()
            )));
        }
        let reason = format!("the interpreter of {} (#!)", script.display());
        self.add_path(interpreter, interpreter, reason, depth + 1)?;
        if let Some(name) = shebang.env_program() {
            let wanted =
                if name.as_bytes().contains(&b'/') { absolute(name.as_ref()) } else { self.find(&name) };
            let wanted = wanted.map_err(|e| missing(format!("{}: {e}", script.display())))?;
            let reason = format!("the interpreter of {} (#! through env)", script.display());
            self.add_path(&wanted, &wanted, reason, depth + 1)?;
            self.link_into_path(&name, &wanted);
        }
        Ok(())
    }

    /// Puts the loader and the libraries of one ELF file on the list; what is missing is returned.
    fn add_libraries(&mut self, source: &Path, destination: &Path) -> Result<Vec<String>> {
        let Ok(elf) = self.resolver.read(source).map_err(|e| unreadable(source, &e.into()))? else {
            return Ok(Vec::new());
        };
        let canonical = source.canonicalize().map_err(|e| unreadable(source, &e))?;
        // In a mirrored root the program's real path is the one of the host.
        let there = if source == destination { canonical.as_path() } else { destination };
        let closure = self.resolver.closure(source, there, &elf);
        for index in 1..closure.objects.len() {
            self.add_object(&closure, index)?;
        }
        Ok(closure.missing.iter().map(describe).collect())
    }

    fn add_object(&mut self, closure: &Closure, index: usize) -> Result<()> {
        let object = &closure.objects[index];
        let asked_by = object.asked_by.map_or(Path::new("/"), |at| &closure.objects[at].path);
        let reason = format!("needed by {}, {}", asked_by.display(), object.found);
        if let Found::PathFile(file) = &object.found {
            self.push(file, file, format!("lists the directory of {}", object.path.display()));
        }
        if let Found::Cache(flags) = object.found {
            let built_in = closure.loader.directories.iter().any(|d| object.there.parent() == Some(d));
            let name = object.path.file_name();
            if let (false, Some(name)) = (built_in, name) {
                let entry = ldcache::Entry { flags, hwcap: 0, path: object.there.clone() };
                self.collection.cache.push((name.to_owned(), entry));
            }
        }
        if self.push(&object.path, &object.there, reason) && closure.loader.libc == Libc::Glibc {
            self.add_nss(&object.path)?;
        }
        Ok(())
    }

    /// See the decision on NSS above. Every architecture has had the symbol version `GLIBC_2.34` since that release.
    fn add_nss(&mut self, libc: &Path) -> Result<()> {
        if libc.file_name() != Some(OsStr::new("libc.so.6")) {
            return Ok(());
        }
        let file = open_file_in_root(self.host.as_fd(), libc).map_err(|e| unreadable(libc, &e.into()))?;
        let elf = self.resolver.read(libc).map_err(|e| unreadable(libc, &e.into()))?;
        if elf.is_ok_and(|elf| elf.strings_contain(&file, "GLIBC_2.34")) {
            return Ok(());
        }
        for name in ["libnss_files.so.2", "libnss_dns.so.2"] {
            let path = libc.with_file_name(name);
            if path.exists() {
                self.push(&path, &path, format!("{} loads it at run time (NSS)", libc.display()));
                let warnings = self.add_libraries(&path, &path)?;
                self.collection.warnings.extend(warnings);
            }
        }
        Ok(())
    }

    /// A directory with all that is in it; the libraries of its ELF files come along where the host has them.
    fn add_tree(&mut self, source: &Path, destination: &Path, reason: &str) -> Result<()> {
        let data = std::fs::metadata(source).map_err(|e| unreadable(source, &e))?;
        if !self.seen.insert(destination.to_owned()) {
            return Ok(());
        }
        self.stamp(source);
        let action = Action::Directory(data.permissions().mode() & 0o7777);
        let (from, to) = (source.to_owned(), destination.to_owned());
        self.collection.items.push(Item { source: from, destination: to, action, reason: reason.to_owned() });
        let listing = std::fs::read_dir(source).map_err(|e| unreadable(source, &e))?;
        let mut names = listing
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| unreadable(source, &e))?;
        names.sort();
        let reason = format!("in the directory {}", source.display());
        for name in names {
            self.add_entry(&source.join(&name), &destination.join(&name), &reason)?;
        }
        Ok(())
    }

    fn add_entry(&mut self, source: &Path, destination: &Path, reason: &str) -> Result<()> {
        let data = std::fs::symlink_metadata(source).map_err(|e| unreadable(source, &e))?;
        if data.is_dir() {
            return self.add_tree(source, destination, reason);
        }
        if data.is_symlink() {
            if source == destination && source.is_file() {
                self.push(source, destination, reason.to_owned());
            } else if self.seen.insert(destination.to_owned()) {
                let target = std::fs::read_link(source).map_err(|e| unreadable(source, &e))?;
                let (source, destination) = (source.to_owned(), destination.to_owned());
                let (action, reason) = (Action::Link(target), reason.to_owned());
                self.collection.items.push(Item { source, destination, action, reason });
            }
            return Ok(());
        }
        if !data.is_file() {
            self.collection
                .warnings
                .push(format!("{}: neither file nor directory, left out", source.display()));
            return Ok(());
        }
        if self.push(source, destination, reason.to_owned()) {
            let warnings = self.add_libraries(source, destination)?;
            self.collection.warnings.extend(warnings);
        }
        Ok(())
    }
}

fn caller_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| unreadable(path, &e))
}

/// A destination, made absolute; one that climbs is refused although it could not get out.
fn rooted(destination: &Path) -> Result<PathBuf> {
    let path = Path::new("/").join(destination);
    if path.file_name().is_none() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::spec(format!(
            "destination {}: must name a file, without ..",
            destination.display()
        )));
    }
    Ok(path)
}

fn missing(message: String) -> Error {
    Error::Image { message, errno: Errno::ENOENT }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    Error::Image { message: format!("{}: {}", path.display(), errno.desc()), errno }
}

fn describe(missing: &Missing) -> String {
    let kind = if missing.is_interpreter { "loader" } else { "library" };
    let (program, name) = (missing.asked_by.display(), Path::new(&missing.name).display());
    format!(
        "{program} needs the {kind} {name}, which was not found; searched: {}",
        missing.searched.join(", ")
    )
}
