//! The loader's search: which files does a program need before its `main` runs, and where are they?
//!
//! For each object, beginning with the program, breadth first as ld.so loads them: each `DT_NEEDED` that no loaded
//! object answers to (by the name it was asked for, or by its `DT_SONAME`) is looked for in this order (ld.so(8)):
//!
//! 1. a name with a slash is a path;
//! 2. `DT_RPATH` of the object, if it has no `DT_RUNPATH`, then of the object that asked for it, up to the program;
//! 3. (`LD_LIBRARY_PATH` belongs to the moment, not to the program: not used;)
//! 4. `DT_RUNPATH` of the object itself;
//! 5. the cache, `/etc/ld.so.cache`;
//! 6. the loader's default directories.
//!
//! A file of the wrong class or machine is passed over, as ld.so does. musl: `DT_RPATH` and `DT_RUNPATH` mean the
//! same and both are inherited, no cache, `libc` is the loader itself. All paths are paths inside the root that the
//! caller opened, `/` for the host, so the same code answers for a root file system. Variants for one processor
//! (`glibc-hwcaps`) are passed over while a plain one exists. ld.so learns `$ORIGIN` of the program from
//! `/proc/self/exe`: a root without a mounted /proc finds less than this search does. Runs in the calling process; writes nothing.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::chroot::elf::{Elf, NoElf};
use crate::chroot::ldcache::{self, LdCache};
use crate::chroot::loader::{Libc, Loader, Origin};
use crate::sys::path::{open_file_in_root, openat2_in_root, read_in_root};

/// More objects than any program loads.
const MAX_OBJECTS: usize = 4096;

/// More files than any search tries: a hostile file could ask for thousands of names in thousands of directories.
const MAX_TRIES: u32 = 1 << 17;

/// Places that a message names.
const MAX_NOTES: usize = 64;

/// By which of the ways above a file was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is the program itself.
    Program,
    /// `PT_INTERP` names it.
    Interpreter,
    /// `DT_NEEDED` is a path.
    Path,
    /// In a directory of `DT_RPATH`.
    Rpath,
    /// In a directory of `DT_RUNPATH`.
    Runpath,
    /// In `/etc/ld.so.cache`; the entry's flags.
    Cache(u32),
    /// In one of the loader's default directories.
    Default,
    /// In a directory that musl's path file lists.
    PathFile(PathBuf),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => write!(f, "the program"),
            Self::Interpreter => write!(f, "named as the loader (PT_INTERP)"),
            Self::Path => write!(f, "named by its path"),
            Self::Rpath => write!(f, "found in DT_RPATH"),
            Self::Runpath => write!(f, "found in DT_RUNPATH"),
            Self::Cache(_) => write!(f, "found in ld.so.cache"),
            Self::Default => write!(f, "found in the loader's default directories"),
            Self::PathFile(file) => write!(f, "found in a directory of {}", file.display()),
        }
    }
}

/// One file of the process-to-be.
#[derive(Debug, Clone)]
pub struct Object {
    /// The path under which the loader asks for it.
    pub path: PathBuf,
    /// The same in the new root; another one only below an `$ORIGIN` that moves with the program.
    pub there: PathBuf,
    /// Its facts.
    pub elf: Rc<Elf>,
    /// How it was found.
    pub found: Found,
    /// Who asked first: an index of [`Closure::objects`].
    pub asked_by: Option<usize>,
}

/// A name that the search did not find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// `libfoo.so.1`, or the loader's path.
    pub name: OsString,
    /// The file that names it.
    pub asked_by: PathBuf,
    /// True for a loader, false for a library.
    pub is_interpreter: bool,
    /// Where it was looked for.
    pub searched: Vec<String>,
}

/// Everything one program loads.
#[derive(Debug)]
pub struct Closure {
    /// The program first, then the loader, then libraries in load order.
    pub objects: Vec<Object>,
    /// What is not there.
    pub missing: Vec<Missing>,
    /// The loader's facts.
    pub loader: Rc<Loader>,
}

/// Searches inside one root and remembers what it has read.
#[derive(Debug)]
pub struct Resolver<'a> {
    root: BorrowedFd<'a>,
    cache: OnceCell<LdCache>,
    elves: HashMap<PathBuf, Result<Rc<Elf>, NoElf>>,
    loaders: HashMap<Option<PathBuf>, Rc<Loader>>,
    /// Paths that were tried and are not there: should one of them appear, the answer may change.
    absent: BTreeSet<PathBuf>,
    tries: u32,
}

impl<'a> Resolver<'a> {
    /// A search inside `root`.
    pub fn new(root: BorrowedFd<'a>) -> Self {
        let (elves, loaders, absent) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { root, cache: OnceCell::new(), elves, loaders, absent, tries: 0 }
    }

    /// The paths that were looked for in vain so far.
    pub fn absent(&self) -> &BTreeSet<PathBuf> {
        &self.absent
    }

    /// The facts of one file.
    pub fn read(&mut self, path: &Path) -> nix::Result<Result<Rc<Elf>, NoElf>> {
        if let Some(known) = self.elves.get(path) {
            return Ok(known.clone());
        }
        let file = open_file_in_root(self.root, path)?;
        let elf = Elf::read(&file).map(Rc::new);
        self.elves.insert(path.to_owned(), elf.clone());
        Ok(elf)
    }

    /// The root's library cache; empty where it has none.
    pub fn cache(&self) -> &LdCache {
        let read = || read_in_root(self.root, Path::new(ldcache::PATH), ldcache::MAX_SIZE);
        self.cache.get_or_init(|| read().ok().and_then(|b| LdCache::parse(&b)).unwrap_or_default())
    }

    /// Everything that `program` loads, which will lie at `there` in the new root.
    pub fn closure(&mut self, program: &Path, there: &Path, elf: &Rc<Elf>) -> Closure {
        let interpreter = elf.interpreter.clone().map(PathBuf::from);
        let loader = self.loader(interpreter.as_deref(), elf);
        self.tries = 0;
        let mut closure = Closure { objects: Vec::new(), missing: Vec::new(), loader };
        let mut names: HashMap<OsString, usize> = HashMap::new();
        let canonical = self.canonical(program);
        closure.objects.push(Object {
            path: canonical,
            there: there.to_owned(),
            elf: Rc::clone(elf),
            found: Found::Program,
            asked_by: None,
        });
        if let Some(path) = interpreter {
            match self.read(&path) {
                Ok(Ok(facts)) => {
                    names.extend(facts.soname.clone().map(|name| (name, 1)));
                    let there = path.clone();
                    let found = Found::Interpreter;
                    closure.objects.push(Object { path, there, elf: facts, found, asked_by: Some(0) });
                }
                failed => closure.missing.push(Missing {
                    searched: vec![match failed {
                        Err(errno) => format!("{}: {}", path.display(), errno.desc()),
                        Ok(_) => format!("{}: not an ELF file", path.display()),
                    }],
                    name: path.into(),
                    asked_by: program.to_owned(),
                    is_interpreter: true,
                }),
            }
        }
        let mut index = 0;
        while index < closure.objects.len() && closure.objects.len() < MAX_OBJECTS {
            for name in closure.objects[index].elf.needed.clone() {
                if names.contains_key(&name) || closure.loader.is_itself(&name) {
                    continue;
                }
                match self.search(&closure, index, &name) {
                    Ok(object) => {
                        let known = closure.objects.iter().position(|o| o.path == object.path);
                        let at = known.unwrap_or(closure.objects.len());
                        let soname = object.elf.soname.clone();
                        if known.is_none() {
                            closure.objects.push(object);
                        }
                        names.extend(soname.into_iter().chain([name]).map(|name| (name, at)));
                    }
                    Err(searched) => {
                        let asked_by = closure.objects[index].path.clone();
                        names.insert(name.clone(), index);
                        closure.missing.push(Missing { name, asked_by, is_interpreter: false, searched });
                    }
                }
            }
            index += 1;
        }
        closure
    }

    /// The path without symlinks: the kernel knows a running program (and so `$ORIGIN`) by that.
    fn canonical(&self, path: &Path) -> PathBuf {
        let name_of = |fd: BorrowedFd<'_>| {
            nix::fcntl::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()).map(PathBuf::from)
        };
        let resolve = || {
            let file = openat2_in_root(self.root, path, OFlag::O_PATH, Mode::empty())?;
            let (file, root) = (name_of(file.as_fd())?, name_of(self.root)?);
            let inside = file.strip_prefix(&root).map_err(|_| Errno::EXDEV)?;
            nix::Result::Ok(Path::new("/").join(inside))
        };
        // Without /proc the path as given is the best there is.
        resolve().unwrap_or_else(|_| path.to_owned())
    }

    fn loader(&mut self, interpreter: Option<&Path>, elf: &Elf) -> Rc<Loader> {
        let root = self.root;
        let key = interpreter.map(Path::to_owned);
        let read = || Rc::new(Loader::read(root, interpreter, elf));
        Rc::clone(self.loaders.entry(key).or_insert_with(read))
    }

    /// Looks for `name`, which object `index` needs; where it is not found, the places that were tried.
    fn search(&mut self, closure: &Closure, index: usize, name: &OsStr) -> Result<Object, Vec<String>> {
        let loader = &closure.loader;
        let object = &closure.objects[index];
        let like = &closure.objects[0].elf;
        let mut searched = Vec::new();
        if self.tries >= MAX_TRIES {
            return Err(searched);
        }
        let look = |resolver: &mut Self, here: PathBuf, there: PathBuf, found: Found| {
            let elf = resolver.candidate(&here, like)?;
            Some(Object { path: here, there, elf, found, asked_by: Some(index) })
        };
        if name.as_bytes().contains(&b'/') {
            for path in loader.expand(name.as_bytes(), origin(object)) {
                note(&mut searched, || path.here.display().to_string());
                if let Some(object) = look(self, path.here, path.there, Found::Path) {
                    return Ok(object);
                }
            }
            return Err(searched);
        }
        for (text, owner, found) in search_paths(closure, index) {
            for directory in loader.expand_path(text, origin(owner)) {
                if self.tries >= MAX_TRIES {
                    return Err(searched);
                }
                note(&mut searched, || {
                    format!("{} ({found})", directory.here.display()).replace("found in ", "")
                });
                let (here, there) = (directory.here.join(name), directory.there.join(name));
                if let Some(object) = look(self, here, there, found.clone()) {
                    return Ok(object);
                }
            }
        }
        if loader.libc == Libc::Glibc {
            searched.push(ldcache::PATH.to_owned());
            let entries: Vec<_> = self.cache().find(name).cloned().collect();
            for entry in entries {
                let in_default = loader.directories.iter().any(|d| entry.path.parent() == Some(d));
                if object.elf.no_default_libraries && in_default {
                    continue;
                }
                let found = Found::Cache(entry.flags);
                if let Some(object) = look(self, entry.path.clone(), entry.path, found) {
                    return Ok(object);
                }
            }
            if object.elf.no_default_libraries {
                return Err(searched);
            }
        }
        for directory in &loader.directories {
            searched.push(directory.display().to_string());
            let found = loader.path_file.clone().map_or(Found::Default, Found::PathFile);
            let path = directory.join(name);
            if let Some(object) = look(self, path.clone(), path, found) {
                return Ok(object);
            }
        }
        Err(searched)
    }

    /// The facts of `path` if a process of `like`'s kind could load it.
    fn candidate(&mut self, path: &Path, like: &Elf) -> Option<Rc<Elf>> {
        self.tries += 1;
        match self.read(path) {
            Ok(Ok(elf)) => elf.fits(like).then_some(elf),
            Ok(Err(_)) => None,
            Err(_) => {
                self.absent.insert(path.to_owned());
                None
            }
        }
    }
}

/// Remembers a place for the message, which nobody reads to the end.
fn note(searched: &mut Vec<String>, place: impl FnOnce() -> String) {
    match searched.len() {
        0..MAX_NOTES => searched.push(place()),
        MAX_NOTES => searched.push("and more".to_owned()),
        _ => {}
    }
}

fn origin(object: &Object) -> Origin<'_> {
    let root = Path::new("/");
    Origin { here: object.path.parent().unwrap_or(root), there: object.there.parent().unwrap_or(root) }
}

/// The search paths that hold for what object `index` needs, with the object that each belongs to.
fn search_paths(closure: &Closure, index: usize) -> Vec<(&OsStr, &Object, Found)> {
    let mut paths = Vec::new();
    let own = &closure.objects[index];
    let musl = closure.loader.libc == Libc::Musl;
    if musl || own.elf.runpath.is_none() {
        let mut next = Some(index);
        while let Some(object) = next.map(|at| &closure.objects[at]) {
            match (&object.elf.runpath, &object.elf.rpath) {
                (None, Some(rpath)) => paths.push((rpath.as_os_str(), object, Found::Rpath)),
                (Some(runpath), _) if musl => paths.push((runpath.as_os_str(), object, Found::Runpath)),
                _ => {}
            }
            next = object.asked_by;
        }
    }
    if let (false, Some(runpath)) = (musl, &own.elf.runpath) {
        paths.push((runpath.as_os_str(), own, Found::Runpath));
    }
    paths
}

#[cfg(test)]
mod tests;
