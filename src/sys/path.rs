//! Paths inside a directory that somebody else may have filled: every lookup goes through openat2(2) with
//! `RESOLVE_IN_ROOT`, so that an absolute symlink, a `..` or a race between two lookups ends inside the root and
//! never on the host.
//!
//! The rule of this file: the kernel resolves the *parent* of a name inside the root and hands back a descriptor;
//! the last component is then created, replaced or removed relative to that descriptor by calls that never follow
//! it (`O_EXCL`, mkdirat, symlinkat, unlinkat). No function looks at a path, decides, and opens it again.
//! Runs in the calling process; no `unsafe`, since nix has all it takes. Every descriptor is `O_CLOEXEC`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

/// How often a lookup is repeated when the kernel answers `EAGAIN`: it does so when anything on the machine was
/// renamed while it walked a `..` of ours (openat2(2)), so a busy host needs more than one try.
const RACE_RETRIES: u32 = 128;

/// Opens the directory that later calls take as their root. Symlinks in `dir` itself are followed: it is the
/// caller's own path.
pub fn open_root(dir: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// openat2(2) with `RESOLVE_IN_ROOT`: `path`, absolute or relative, is looked up as if `root` were `/`.
/// `mode` counts only with `O_CREAT`. Magic links (`/proc/self/fd/3`) are refused, since they jump out of the root.
pub fn openat2_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    openat2_in_root_with(root, path, flags, mode, ResolveFlag::empty())
}

/// The same with further restrictions, such as `RESOLVE_NO_SYMLINKS` or `RESOLVE_NO_XDEV`.
pub fn openat2_in_root_with(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    mode: Mode,
    extra: ResolveFlag,
) -> nix::Result<OwnedFd> {
    // The kernel refuses a mode without O_CREAT, and an empty path: "/" of a root is the root.
    let mode = if flags.intersects(OFlag::O_CREAT) { mode } else { Mode::empty() };
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | extra);
    let mut tries = 0;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) if tries < RACE_RETRIES => tries += 1,
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Makes `path` and whatever directories above it are missing, each with `mode` (not cut by the umask), and
/// returns a descriptor (`O_PATH`) of the last one. Symlinks on the way are followed inside the root.
///
/// Errors: `EEXIST` for a symlink that leads nowhere (its target is never created), `ENOTDIR` where a file is in
/// the way.
pub fn mkdir_all_in_root(root: BorrowedFd<'_>, path: &Path, mode: Mode) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match openat2_in_root(root, path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {}
        result => return result,
    }
    let mut parent = openat2_in_root(root, Path::new("/"), flags, Mode::empty())?;
    let mut prefix = PathBuf::new();
    for component in path.components() {
        if matches!(component, Component::RootDir | Component::CurDir | Component::Prefix(_)) {
            continue;
        }
        prefix.push(component);
        parent = match openat2_in_root(root, &prefix, flags, Mode::empty()) {
            Err(Errno::ENOENT) => mkdir_at(parent.as_fd(), component.as_os_str(), mode)?,
            result => result?,
        };
    }
    Ok(parent)
}

/// Makes one directory below `parent` and opens it; another maker who was faster is fine, a symlink is not.
fn mkdir_at(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> nix::Result<OwnedFd> {
    let made = match mkdirat(parent, name, mode) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(errno),
    };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = openat2_in_root(parent, Path::new(name), OFlag::O_PATH | flags, Mode::empty());
    let directory = match opened {
        // The last component is a symlink: it leads nowhere, or the caller's lookup would have succeeded.
        Err(Errno::ELOOP | Errno::ENOTDIR) if !made => return Err(Errno::EEXIST),
        result => result?,
    };
    if made && mkdir_mode_was_cut(directory.as_fd(), mode)? {
        // fchmod(2) refuses O_PATH. This one is ours and new, hence readable unless `mode` says otherwise.
        let readable = openat2_in_root(parent, Path::new(name), OFlag::O_RDONLY | flags, Mode::empty())?;
        fchmod(&readable, mode)?;
    }
    Ok(directory)
}

fn mkdir_mode_was_cut(directory: BorrowedFd<'_>, mode: Mode) -> nix::Result<bool> {
    Ok(fstat(directory)?.st_mode & 0o7777 != mode.bits())
}

/// The directory that holds `path`, opened inside the root, and the last component of `path`.
///
/// Errors: `EINVAL` where `path` has no last component of its own (`/`, `..`).
pub fn parent_in_root(root: BorrowedFd<'_>, path: &Path) -> nix::Result<(OwnedFd, OsString)> {
    let (parent, name) = split(path)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    Ok((openat2_in_root(root, parent, flags, Mode::empty())?, name.to_owned()))
}

fn split(path: &Path) -> nix::Result<(&Path, &OsStr)> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Ok((path.parent().unwrap_or(Path::new("")), name)),
        _ => Err(Errno::EINVAL),
    }
}

/// Creates the regular file `path`, which must not exist (not even as a symlink), and opens it for writing.
/// The directory above it must exist. `mode` is not cut by the umask.
pub fn create_file_in_root(root: BorrowedFd<'_>, path: &Path, mode: Mode) -> nix::Result<OwnedFd> {
    let (parent, name) = parent_in_root(root, path)?;
    create_file_at(parent.as_fd(), &name, mode)
}

/// The same below an open directory.
pub fn create_file_at(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let file = openat2_in_root(parent, Path::new(name), flags, mode)?;
    fchmod(&file, mode)?;
    Ok(file)
}

/// Makes the symlink `path` with the text `target`, which is not looked at. `EEXIST` where anything is there.
pub fn symlink_in_root(root: BorrowedFd<'_>, target: &Path, path: &Path) -> nix::Result<()> {
    let (parent, name) = parent_in_root(root, path)?;
    symlinkat(target, &parent, name.as_os_str())
}

/// Removes the file or symlink `path` itself, never what it points at; nothing there is fine.
pub fn unlink_in_root(root: BorrowedFd<'_>, path: &Path) -> nix::Result<()> {
    let (parent, name) = match parent_in_root(root, path) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result?,
    };
    match unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// The text of the symlink `path`; `EINVAL` where it is something else.
pub fn readlink_in_root(root: BorrowedFd<'_>, path: &Path) -> nix::Result<PathBuf> {
    let (parent, name) = parent_in_root(root, path)?;
    readlinkat(&parent, name.as_os_str()).map(PathBuf::from)
}

/// Opens the regular file `path` for reading. A FIFO, device or socket is refused with `EINVAL` before it is
/// opened for real, so a hostile root can neither block the caller nor wake a device.
pub fn open_file_in_root(root: BorrowedFd<'_>, path: &Path) -> nix::Result<File> {
    let look = openat2_in_root(root, path, OFlag::O_PATH, Mode::empty())?;
    require_regular(look.as_fd())?;
    let file = openat2_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
    // Looked up twice: a swap in between is harmless (O_NONBLOCK), and is caught here.
    require_regular(file.as_fd())?;
    Ok(File::from(file))
}

/// The bytes of the regular file `path`, at most `limit` of them; `EFBIG` when there are more.
pub fn read_in_root(root: BorrowedFd<'_>, path: &Path, limit: u64) -> nix::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open_file_in_root(root, path)?;
    let error = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > limit { Err(Errno::EFBIG) } else { Ok(bytes) }
}

fn require_regular(file: BorrowedFd<'_>) -> nix::Result<()> {
    let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
    match kind {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory `root` beside a directory `outside` that nothing may ever touch; gone when dropped.
    struct Playground {
        dir: PathBuf,
        root: OwnedFd,
    }

    impl Playground {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("r2d2-path-{}-{name}", std::process::id()));
            fs::create_dir_all(dir.join("root")).unwrap();
            fs::create_dir_all(dir.join("outside")).unwrap();
            let root = open_root(&dir.join("root")).unwrap();
            Self { dir, root }
        }

        fn outside_is_empty(&self) -> bool {
            fs::read_dir(self.dir.join("outside")).unwrap().next().is_none()
        }
    }

    impl Drop for Playground {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn symlinks_and_dot_dot_end_inside_the_root() {
        let p = Playground::new("inside");
        symlink("../../outside", p.dir.join("root/up")).unwrap();
        symlink(p.dir.join("outside"), p.dir.join("root/abs")).unwrap();
        for path in ["up", "abs", "/up/x", "../outside", "/../../outside"] {
            let got = openat2_in_root(p.root.as_fd(), Path::new(path), OFlag::O_PATH, Mode::empty());
            assert_eq!(got.unwrap_err(), Errno::ENOENT, "{path}");
        }
        let mode = Mode::from_bits_truncate(0o755);
        assert_eq!(mkdir_all_in_root(p.root.as_fd(), Path::new("up/a"), mode).unwrap_err(), Errno::EEXIST);
        assert_eq!(create_file_in_root(p.root.as_fd(), Path::new("abs"), mode).unwrap_err(), Errno::EEXIST);
        assert!(p.outside_is_empty());
    }

    #[test]
    fn directories_are_made_through_symlinks_of_the_root() {
        let p = Playground::new("mkdir");
        fs::create_dir_all(p.dir.join("root/usr/lib")).unwrap();
        symlink("/usr/lib", p.dir.join("root/lib")).unwrap();
        let mode = Mode::from_bits_truncate(0o1777);
        mkdir_all_in_root(p.root.as_fd(), Path::new("/lib/a/../b/c"), mode).unwrap();
        let made = fs::metadata(p.dir.join("root/usr/lib/b/c")).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o1777);
        assert!(p.dir.join("root/usr/lib/a").is_dir());
    }

    #[test]
    fn files_are_created_once_and_read_back() {
        let p = Playground::new("file");
        let (root, path) = (p.root.as_fd(), Path::new("/f"));
        let fd = create_file_in_root(root, path, Mode::from_bits_truncate(0o666)).unwrap();
        File::from(fd).write_all(b"hello").unwrap();
        assert_eq!(fs::metadata(p.dir.join("root/f")).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(read_in_root(root, path, 5).unwrap(), b"hello");
        assert_eq!(read_in_root(root, path, 4).unwrap_err(), Errno::EFBIG);
        let again = create_file_in_root(root, path, Mode::from_bits_truncate(0o600));
        assert_eq!(again.unwrap_err(), Errno::EEXIST);
        unlink_in_root(root, path).unwrap();
        unlink_in_root(root, path).unwrap();
        symlink_in_root(root, Path::new("/f"), Path::new("g")).unwrap();
        assert_eq!(readlink_in_root(root, Path::new("/g")).unwrap(), Path::new("/f"));
    }

    #[test]
    fn a_fifo_neither_blocks_nor_opens() {
        let p = Playground::new("fifo");
        nix::unistd::mkfifo(&p.dir.join("root/pipe"), Mode::S_IRWXU).unwrap();
        let read = read_in_root(p.root.as_fd(), Path::new("pipe"), 10);
        assert_eq!(read.unwrap_err(), Errno::EINVAL);
        assert_eq!(open_file_in_root(p.root.as_fd(), Path::new("/")).unwrap_err(), Errno::EISDIR);
    }

    #[test]
    fn a_name_is_needed_to_create() {
        let p = Playground::new("name");
        for path in ["/", "", "..", "a/.."] {
            assert_eq!(parent_in_root(p.root.as_fd(), Path::new(path)).unwrap_err(), Errno::EINVAL, "{path}");
        }
    }
}
