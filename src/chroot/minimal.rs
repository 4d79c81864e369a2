//! `Image.minimal`: root file systems made from the host's programs, kept in a store and made once.
//!
//! The store is a directory of the caller's (mode 0700; refused if it is anybody else's or a symlink). In it:
//!
//! - `image-KEY`: a finished tree. KEY is a hash of the layout's version and of the path and stat(2) of every file
//!   that went in, so a program or library that was upgraded gives another image and old ones stay as they are;
//! - `index-REQUEST`: which image answers a request, with the stat of every path that was consulted when it was made
//!   (and the paths that were looked for in vain). A request whose index still agrees with the disk costs a few
//!   stat(2) and reads no ELF file at all;
//! - `tmp-PID-N`: a tree in the making, locked (flock) by its maker. It gets its name by rename(2) when it is whole;
//!   of two racing makers the second finds the name taken and throws its own away. A directory whose maker is dead
//!   and whose lock is free is removed by the next build.
//!
//! Runs in the calling process, without privilege.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg, OFlag, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::geteuid;

use crate::chroot::collect::{Collection, Collector, Program, open_host};
use crate::chroot::rootfs::{Report, Rootfs, add_busybox, applets};
use crate::chroot::stamp::Stamp;
use crate::error::{Errno, Error, Result};
use crate::sys::path::{create_file_at, openat2_in_root, read_in_root};

/// Goes into every key: raise it when the same files would make another tree.
const LAYOUT: u32 = 1;
const MAX_INDEX: u64 = 64 << 20;

/// What an image is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct MinimalRequest {
    /// The programs.
    pub programs: Vec<Program>,
    /// With busybox and its applets. A program that the host lacks may be one of these then.
    pub busybox: bool,
    /// With the minimal `/etc`.
    pub etc: bool,
    /// Where names are looked up; the caller's `PATH` where `None`.
    pub search_path: Option<OsString>,
}

/// The directory of an image that answers the request, made if it is not in the store yet.
///
/// Errors: as [`Rootfs::install`]; `Step` with `EACCES` for a store that is not safe to use.
pub fn build_minimal(store: &Path, request: &MinimalRequest) -> Result<PathBuf> {
    let mut request = request.clone();
    request.search_path = request.search_path.or_else(|| std::env::var_os("PATH"));
    let store = Store::open(store)?;
    let index = format!("index-{}", hash(&request));
    if let Some(image) = store.cached(&index) {
        return Ok(image);
    }
    let made = Made::collect(&request)?;
    let name = format!("image-{}", made.key(&request));
    if !store.has(&name) {
        store.remove_stale();
        store.build(&name, &request, made.collection, &made.applets)?;
    }
    store.write_index(&index, &name, &made.stamps)?;
    Ok(store.dir.join(name))
}

/// All that is known before the first byte is written.
struct Made {
    collection: Collection,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    applets: Vec<PathBuf>,
}

impl Made {
    fn collect(request: &MinimalRequest) -> Result<Self> {
        let host = open_host()?;
        let mut collector = Collector::new(&host, request.search_path.as_deref());
        let applets = if request.busybox { applets(&add_busybox(&mut collector)?)? } else { Vec::new() };
        let is_applet = |program: &Program| {
            program.destination.is_none()
                && applets.iter().any(|a| a.file_name() == Some(program.source.as_os_str()))
        };
        for program in &request.programs {
            match collector.add(program) {
                Err(Error::Image { errno: Errno::ENOENT, .. }) if is_applet(program) => {}
                result => result?,
            }
        }
        let mut collection = collector.finish();
        let stamps = std::mem::take(&mut collection.stamps);
        Ok(Self { collection, stamps, applets })
    }

    /// Equal for two lists that make the same tree, however they were asked for.
    fn key(&self, request: &MinimalRequest) -> String {
        let items = self.collection.items.iter();
        let items: Vec<_> = items.map(|i| (&i.source, &i.destination, self.stamps.get(&i.source))).collect();
        hash(&(items, &self.applets, request.busybox, request.etc))
    }
}

/// 128 bits of `SipHash`: two runs over the same data with different beginnings. The keys guard against accidents, not
/// against an attacker, who cannot write to the store.
fn hash(data: &impl Hash) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        LAYOUT.hash(&mut hasher);
        data.hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(1), half(2))
}

struct Store {
    dir: PathBuf,
    fd: OwnedFd,
}

impl Store {
    fn open(dir: &Path) -> Result<Self> {
        let step = || format!("open the image store {}", dir.display());
        let dir = std::path::absolute(dir).map_err(|e| Error::io(step(), "getcwd", &e, Some(dir)))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || nix::fcntl::open(&dir, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::ENOENT) => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&dir)
                    .map_err(|e| Error::io(step(), "mkdir", &e, Some(&dir)))?;
                open()
            }
            result => result,
        };
        let refused = |why: String| Error::Step {
            step: step(),
            syscall: "open",
            errno: Errno::EACCES,
            path: Some(dir.clone()),
            detail: Some(format!("{why}; it must be a directory of mode 0700 of your own")),
        };
        let fd = match fd {
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(refused("not a directory, or a symlink".to_owned()));
            }
            result => result.map_err(|errno| Error::step(step(), "open", errno, Some(&dir)))?,
        };
        let data = fstat(&fd).map_err(|errno| Error::step(step(), "fstat", errno, Some(&dir)))?;
        if data.st_uid != geteuid().as_raw() {
            return Err(refused(format!("it belongs to uid {}", data.st_uid)));
        }
        if data.st_mode & 0o077 != 0 {
            return Err(refused(format!("its mode is {:o}", data.st_mode & 0o7777)));
        }
        Ok(Self { dir, fd })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn has(&self, name: &str) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        openat2_in_root(self.fd(), Path::new(name), flags, Mode::empty()).is_ok()
    }

    /// The image that an index names, if every path that it lists is as it was.
    fn cached(&self, index: &str) -> Option<PathBuf> {
        let bytes = read_in_root(self.fd(), Path::new(index), MAX_INDEX).ok()?;
        let mut fields = bytes.split(|&byte| byte == 0).map(OsStr::from_bytes);
        let name =
            fields.next()?.to_str().filter(|name| name.starts_with("image-") && !name.contains('/'))?;
        loop {
            let path = fields.next()?;
            if path == "end" {
                break;
            }
            let (known, now) = (fields.next()?, Stamp::of(Path::new(path)));
            if Stamp::encode(now).as_bytes() != known.as_bytes() {
                return None;
            }
        }
        self.has(name).then(|| self.dir.join(name))
    }

    fn write_index(&self, index: &str, name: &str, stamps: &BTreeMap<PathBuf, Option<Stamp>>) -> Result<()> {
        let mut bytes = name.as_bytes().to_vec();
        for (path, stamp) in stamps {
            bytes.push(0);
            bytes.extend_from_slice(path.as_os_str().as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(Stamp::encode(*stamp).as_bytes());
        }
        bytes.extend_from_slice(b"\0end");
        let refused =
            |syscall, errno| Error::step("write the index of the image store", syscall, errno, Some(index));
        let new = temporary("new");
        let file = create_file_at(self.fd(), &new, Mode::from_bits_truncate(0o600))
            .map_err(|errno| refused("openat2", errno))?;
        std::io::Write::write_all(&mut std::fs::File::from(file), &bytes)
            .map_err(|e| Error::io("write the index of the image store", "write", &e, Some(index)))?;
        renameat(self.fd(), new.as_os_str(), self.fd(), index).map_err(|errno| refused("renameat", errno))
    }

    fn build(
        &self,
        name: &str,
        request: &MinimalRequest,
        list: Collection,
        applets: &[PathBuf],
    ) -> Result<()> {
        let new = temporary("tmp");
        let dir = self.dir.join(&new);
        let step = || format!("build the image {}", dir.display());
        std::fs::create_dir(&dir).map_err(|e| Error::io(step(), "mkdir", &e, Some(&dir)))?;
        let lock = self.lock(&new);
        let fill = || {
            let rootfs = Rootfs::create(&dir)?;
            rootfs.apply(list)?;
            rootfs.link_applets(applets, &mut Report::default())?;
            if request.etc {
                rootfs.minimal_etc()?;
            }
            Ok(())
        };
        let built = fill().and_then(|()| {
            // The root of the image, which everybody in the container must be able to enter.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&dir, mode).map_err(|e| Error::io(step(), "chmod", &e, Some(&dir)))?;
            match renameat(self.fd(), new.as_os_str(), self.fd(), name) {
                Ok(()) => Ok(true),
                // Somebody else was faster and has made the same.
                Err(Errno::EEXIST | Errno::ENOTEMPTY) => Ok(false),
                Err(errno) => Err(Error::step(step(), "renameat", errno, Some(&dir))),
            }
        });
        if !matches!(built, Ok(true)) {
            let _ = std::fs::remove_dir_all(&dir);
        }
        drop(lock);
        built.map(drop)
    }

    /// Marks a tree as being made; `None` where somebody holds it, or the file system has no locks.
    fn lock(&self, name: &OsStr) -> Option<Flock<OwnedFd>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let fd = openat2_in_root(self.fd(), Path::new(name), flags, Mode::empty()).ok()?;
        Flock::lock(fd, FlockArg::LockExclusiveNonblock).ok()
    }

    /// Removes what dead makers left: both the pid and the lock must say so, since a pid may be of another PID
    /// namespace, and a maker takes the lock a moment after it made the directory.
    fn remove_stale(&self) {
        let Ok(listing) = std::fs::read_dir(&self.dir) else { return };
        for name in listing.filter_map(|entry| entry.ok().map(|e| e.file_name())) {
            let Some(pid) = maker(&name) else { continue };
            if Path::new("/proc").join(pid.to_string()).exists() {
                continue;
            }
            let path = self.dir.join(&name);
            if name.as_bytes().starts_with(b"new-") {
                let _ = std::fs::remove_file(path);
            } else if self.lock(&name).is_some() {
                let _ = std::fs::remove_dir_all(path);
            }
        }
    }
}

/// `KIND-PID-N`.
fn temporary(kind: &str) -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{kind}-{}-{count}", std::process::id()).into()
}

/// PID of such a name.
fn maker(name: &OsStr) -> Option<u32> {
    let name = String::from_utf8(name.to_owned().into_vec()).ok()?;
    let rest = name.strip_prefix("tmp-").or_else(|| name.strip_prefix("new-"))?;
    rest.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests;
