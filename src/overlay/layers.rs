//! What a stack of lower layers shows under a name: the part of overlayfs' lookup (fs/overlayfs/namei.c) that a
//! reader of layers has to repeat. Runs in the calling process.
//!
//! Rules, the topmost layer first: a whiteout ends the search; the first thing that is no directory is what is
//! seen, unless directories were found above it; directories merge until one is opaque; a redirect on a directory
//! sends the search in the layers below to another name.
//!
//! Layers are somebody else's: every path is resolved with openat2(2) below the layer's root, without symlinks, and
//! an entry is looked at through one `O_PATH` descriptor from then on, so that what was judged is what is read.
//! Directories are named by their path in the layer and opened anew when their turn comes: a tree may be deeper
//! than a process may have files open, and its paths longer than the kernel takes at once.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::sys::xattr;

/// Path bytes handed to the kernel at once; its own limit is 4096.
const CHUNK: usize = 3840;

/// In which attributes the overlay keeps its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Marks {
    /// `trusted.overlay.*` and `user.overlay.*` alike: for layers of unknown origin.
    #[default]
    Either,
    /// `trusted.overlay.*`. What a program in the container wrote to `user.overlay.*` is then its own data.
    Trusted,
    /// `user.overlay.*`, mount option `userxattr`.
    User,
}

impl Marks {
    /// Is `name` the overlay's attribute `what`?
    fn is(self, name: &CStr, what: &[u8]) -> bool {
        self.strip(name) == Some(what)
    }

    /// Does `name` belong to the overlay itself? `trusted.overlay.overlay.x` is the attribute `trusted.overlay.x`
    /// of the file, as an overlay in the container wrote it. `trusted.overlay.*` always does: a snapshot's layer carries
    /// both kinds, and no copy-up by an overlay of the other kind takes it along.
    pub(super) fn owns(self, name: &CStr) -> bool {
        let trusted = name.to_bytes().strip_prefix(b"trusted.overlay.");
        self.strip(name).or(trusted).is_some_and(|what| !what.starts_with(b"overlay."))
    }

    fn strip(self, name: &CStr) -> Option<&[u8]> {
        let name = name.to_bytes();
        let trusted = name.strip_prefix(b"trusted.overlay.").filter(|_| self != Self::User);
        trusted.or_else(|| name.strip_prefix(b"user.overlay.").filter(|_| self != Self::Trusted))
    }
}

/// One file of a layer, held open with `O_PATH`.
pub(super) struct Entry {
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
    pub(super) xattrs: Vec<CString>,
    marks: Marks,
    /// Where the bytes are, if this is a metacopy.
    data: Option<Box<Self>>,
}

impl Entry {
    fn new(fd: OwnedFd, marks: Marks) -> nix::Result<Self> {
        let stat = fstat(&fd)?;
        let xattrs = match xattr::list(fd.as_fd()) {
            // No right to read it: then the kernel, on the caller's behalf, found no marks either.
            Err(Errno::EACCES | Errno::EPERM) => Vec::new(),
            names => names?,
        };
        Ok(Self { fd, stat, xattrs, marks, data: None })
    }

    pub(super) fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.stat.st_mode) & SFlag::S_IFMT
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == SFlag::S_IFDIR
    }

    /// Both kinds: the device 0:0, and the empty file that carries the mark. (readdir(3) hides the second kind
    /// only where the directory is marked `opaque=x`; a lookup of the name hides it everywhere.)
    pub(super) fn is_whiteout(&self) -> bool {
        match self.kind() {
            SFlag::S_IFCHR => self.stat.st_rdev == 0,
            SFlag::S_IFREG => self.stat.st_size == 0 && self.mark(b"whiteout").is_some(),
            _ => false,
        }
    }

    /// Nothing of the layers below shows through. (`x` instead of `y` only announces whiteouts.)
    pub(super) fn is_opaque(&self) -> bool {
        self.is_dir() && self.mark(b"opaque").is_some_and(|value| value == b"y")
    }

    /// Only metadata was copied up, the bytes are the lower file's.
    pub(super) fn is_metacopy(&self) -> bool {
        self.kind() == SFlag::S_IFREG && self.trusted(b"metacopy").is_some()
    }

    /// Where the layers below have it, if not under its own name: a name beside it, or a path from the root.
    pub(super) fn redirect(&self) -> Option<PathBuf> {
        let value = self.trusted(b"redirect")?;
        let name = |value: &[u8]| !value.contains(&b'/') && !matches!(value, b"" | b"." | b"..");
        let valid = value.starts_with(b"/") || name(&value);
        valid.then(|| PathBuf::from(OsString::from_vec(value)))
    }

    /// The kernel follows neither of the two where marks are `user.*`: anybody could have set them.
    fn trusted(&self, what: &[u8]) -> Option<Vec<u8>> {
        if self.marks == Marks::User {
            return None;
        }
        let name = self.xattrs.iter().find(|name| Marks::Trusted.is(name, what))?;
        xattr::get(self.fd.as_fd(), name).ok().flatten()
    }

    fn mark(&self, what: &[u8]) -> Option<Vec<u8>> {
        let name = self.xattrs.iter().find(|name| self.marks.is(name, what))?;
        xattr::get(self.fd.as_fd(), name).ok().flatten()
    }

    /// Opens a regular file, or what holds its bytes, for reading. Never blocks: it is known not to be a FIFO.
    pub(super) fn open(&self) -> nix::Result<OwnedFd> {
        if let Some(data) = &self.data {
            return data.open();
        }
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        open(
            link.as_str(),
            OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    }

    /// The names in a directory, without `.` and `..`, in no order.
    pub(super) fn names(&self) -> nix::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut names = Vec::new();
        for entry in Dir::openat(&self.fd, ".", flags, Mode::empty())?.iter() {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What `name` is in this directory; `None` where it is not, or not any more.
    pub(super) fn child(&self, name: &OsStr) -> nix::Result<Option<Self>> {
        look(self.fd.as_fd(), Path::new(name), self.marks)
    }
}

/// The file at `path` below `root`. `None` where nothing is there, or a symlink or a file is in the way.
pub(super) fn look(root: BorrowedFd<'_>, path: &Path, marks: Marks) -> nix::Result<Option<Entry>> {
    let mut rest = path.as_os_str().as_bytes();
    let mut above: Option<OwnedFd> = None;
    while rest.len() > CHUNK {
        let Some(cut) = rest[..CHUNK].iter().rposition(|b| *b == b'/') else {
            return Err(Errno::ENAMETOOLONG);
        };
        let at = above.as_ref().map_or(root, AsFd::as_fd);
        match open_path(at, &rest[..cut], OFlag::O_DIRECTORY) {
            Ok(fd) => above = Some(fd),
            Err(errno) => return absent(errno),
        }
        rest = &rest[cut + 1..];
    }
    let at = above.as_ref().map_or(root, AsFd::as_fd);
    match open_path(at, if rest.is_empty() { b"." } else { rest }, OFlag::empty()) {
        Ok(fd) => Entry::new(fd, marks).map(Some),
        Err(errno) => absent(errno),
    }
}

/// Somebody may be busy in the layer: what has gone, or turned into something else, is not there. `EXDEV` is what
/// `RESOLVE_BENEATH` says when a directory was moved out while it was walked: overlayfs empties one by moving it to
/// its work directory.
fn absent(errno: Errno) -> nix::Result<Option<Entry>> {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::ESTALE => Ok(None),
        errno => Err(errno),
    }
}

fn open_path(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | flags;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    loop {
        match openat2(root, OsStr::from_bytes(path), how) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// A directory as the lower layers show it: which of them have it, the topmost first, and where. The first one's
/// metadata is what is seen.
pub(super) type Stack = Vec<(usize, PathBuf)>;

/// What the lower layers show under a name.
pub(super) enum Node {
    Absent,
    File(Entry),
    /// The entry is the topmost directory.
    Dir(Entry, Stack),
}

/// The lower layers, the topmost first.
pub(super) struct Lowers<'a> {
    pub(super) roots: &'a [BorrowedFd<'a>],
    pub(super) marks: Marks,
}

impl Lowers<'_> {
    /// The merged root.
    pub(super) fn root(&self) -> nix::Result<Stack> {
        self.merge_from(0, Path::new(""))
    }

    /// The directory `path` of the layers from `first` on, each looked up from its root; empty where it is none.
    fn merge_from(&self, first: usize, path: &Path) -> nix::Result<Stack> {
        let mut stack = Stack::new();
        // The roots merge whatever marks they carry (a layer's root may be opaque in name only).
        for layer in first..self.roots.len() {
            stack.push((layer, PathBuf::new()));
        }
        for name in path.components() {
            let std::path::Component::Normal(name) = name else { continue };
            stack = match self.lookup(&stack, name)? {
                Node::Dir(_, stack) => stack,
                Node::Absent | Node::File(_) => return Ok(Stack::new()),
            };
        }
        Ok(stack)
    }

    /// What `path`, from the root of the layers, is in the merged view.
    pub(super) fn resolve(&self, path: &Path) -> nix::Result<Node> {
        let above = self.merge_from(0, path.parent().unwrap_or(Path::new("")))?;
        path.file_name().map_or(Ok(Node::Absent), |name| self.lookup(&above, name))
    }

    /// What `name` is in the merged directory `dir`.
    pub(super) fn lookup(&self, dir: &[(usize, PathBuf)], name: &OsStr) -> nix::Result<Node> {
        let mut name = name.to_owned();
        let mut seen: Option<(Entry, Stack)> = None;
        for (i, (layer, path)) in dir.iter().enumerate() {
            let path = path.join(&name);
            let Some(mut entry) = look(self.roots[*layer], &path, self.marks)? else { continue };
            if entry.is_whiteout() {
                break;
            }
            if !entry.is_dir() {
                if seen.is_some() {
                    break;
                }
                if entry.is_metacopy() {
                    entry.data = self.data_of(&entry, *layer, &dir[i + 1..], &name)?;
                }
                return Ok(Node::File(entry));
            }
            let (opaque, redirect) = (entry.is_opaque(), entry.redirect());
            match &mut seen {
                Some((_, stack)) => stack.push((*layer, path)),
                None => seen = Some((entry, vec![(*layer, path)])),
            }
            if opaque {
                break;
            }
            match redirect {
                Some(target) if target.is_absolute() => {
                    let below = self.merge_from(layer + 1, &target)?;
                    if let Some((_, stack)) = &mut seen {
                        stack.extend(below);
                    }
                    break;
                }
                Some(target) => name = target.into_os_string(),
                None => {}
            }
        }
        Ok(seen.map_or(Node::Absent, |(entry, stack)| Node::Dir(entry, stack)))
    }

    /// The file that holds the bytes of the metacopy `entry`, found in `layer` as `name`; `below` are the directories
    /// merged under its own. Ends: each step goes to a lower layer.
    fn data_of(
        &self,
        entry: &Entry,
        layer: usize,
        below: &[(usize, PathBuf)],
        name: &OsStr,
    ) -> nix::Result<Option<Box<Entry>>> {
        let node = match entry.redirect() {
            Some(target) if target.is_absolute() => {
                let above = self.merge_from(layer + 1, target.parent().unwrap_or(Path::new("")))?;
                self.lookup(&above, target.file_name().unwrap_or_default())?
            }
            Some(target) => self.lookup(below, target.as_os_str())?,
            None => self.lookup(below, name)?,
        };
        Ok(match node {
            Node::File(entry) if entry.kind() == SFlag::S_IFREG => Some(Box::new(entry)),
            _ => None,
        })
    }

    /// The names that the merged directory `dir` shows, whiteouts taken out, sorted.
    pub(super) fn names(&self, dir: &[(usize, PathBuf)]) -> nix::Result<Vec<OsString>> {
        let mut names = std::collections::BTreeSet::new();
        for (layer, path) in dir {
            if let Some(entry) = look(self.roots[*layer], path, self.marks)? {
                names.extend(entry.names()?);
            }
        }
        let mut shown = Vec::new();
        for name in names {
            if !matches!(self.lookup(dir, &name)?, Node::Absent) {
                shown.push(name);
            }
        }
        Ok(shown)
    }
}
