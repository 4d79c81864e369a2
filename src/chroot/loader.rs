//! What is particular to one loader (the program that `PT_INTERP` names): its default directories, and what it
//! makes of `$ORIGIN`, `$LIB` and `$PLATFORM` in a search path.
//!
//! glibc's ld.so has its default directories compiled in, and every distribution compiles in others (Debian
//! `/lib/x86_64-linux-gnu`, Fedora `/lib64`, Arch `/usr/lib`). They stand in its read-only data as a run of strings
//! that begin and end with a slash, and that is where they are taken from; the list of ld.so(8) serves where no such
//! run is found. musl's loader reads `/etc/ld-musl-ARCH.path` and otherwise uses a fixed list. Runs in the calling
//! process; all paths are paths inside the root that the caller opened (`/` for the host).

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::chroot::elf::Elf;
use crate::sys::path::read_in_root;

/// A loader is about 200 KiB (musl's, which is its libc too, 800); what is larger is not read.
const MAX_LOADER: u64 = 16 << 20;
const MAX_PATH_FILE: u64 = 1 << 16;

/// Whose rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    /// ld.so(8), and whatever else is not musl.
    Glibc,
    /// musl's ldso.
    Musl,
}

/// The facts about one loader.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Whose rules hold.
    pub libc: Libc,
    /// The directories that it searches last.
    pub directories: Vec<PathBuf>,
    /// musl's file that lists them, where it exists.
    pub path_file: Option<PathBuf>,
    /// What `$LIB` stands for.
    lib: OsString,
    /// What `$PLATFORM` may stand for: the loader asks the processor, so there can be several.
    platforms: &'static [&'static str],
}

/// A search path's entry, for the object as it lies here and as it will lie in the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// Where to look now.
    pub here: PathBuf,
    /// Where that is for the loader in the new root.
    pub there: PathBuf,
}

/// The directory of an object that `$ORIGIN` stands for, here and in the new root.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Here.
    pub here: &'a Path,
    /// In the new root.
    pub there: &'a Path,
}

impl Loader {
    /// Reads the facts about the loader `path` of a program `elf`. Without a loader (a library, or a static
    /// program with libraries) the list of ld.so(8) holds.
    pub fn read(root: BorrowedFd<'_>, path: Option<&Path>, elf: &Elf) -> Self {
        let musl = path.and_then(musl_architecture).or_else(|| {
            // A library linked with musl names its libc so; with glibc it is libc.so.6.
            let wanted = |name: &OsString| name == "libc.so" || name.as_bytes().starts_with(b"libc.musl-");
            (path.is_none() && elf.needed.iter().any(wanted)).then(|| architecture(elf).into())
        });
        if let Some(architecture) = musl {
            return Self::musl(root, &architecture, elf);
        }
        let built_in = path
            .and_then(|path| read_in_root(root, path, MAX_LOADER).ok())
            .map(|bytes| built_in_directories(&bytes))
            .filter(|directories| !directories.is_empty());
        let directories = built_in.unwrap_or_else(|| documented_directories(elf));
        let lib = directories
            .iter()
            .find(|directory| directory.starts_with("/lib") || is_lib_like(directory))
            .and_then(|directory| directory.strip_prefix("/").ok())
            .map_or_else(|| "lib".into(), OsString::from);
        Self { libc: Libc::Glibc, directories, path_file: None, lib, platforms: platforms(elf) }
    }

    fn musl(root: BorrowedFd<'_>, architecture: &OsStr, elf: &Elf) -> Self {
        let mut name = OsString::from("/etc/ld-musl-");
        name.push(architecture);
        name.push(".path");
        let path_file = PathBuf::from(name);
        let (directories, path_file) = match read_in_root(root, &path_file, MAX_PATH_FILE) {
            Ok(text) => {
                let lines = text.split(|c| matches!(c, b'\n' | b':'));
                let directories = lines.map(OsStr::from_bytes).map(PathBuf::from);
                (directories.filter(|d| d.is_absolute()).collect(), Some(path_file))
            }
            Err(_) => (["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).to_vec(), None),
        };
        Self { libc: Libc::Musl, directories, path_file, lib: OsString::new(), platforms: platforms(elf) }
    }

    /// Whether musl serves this name itself: its libc is one file, and the loader.
    pub fn is_itself(&self, name: &OsStr) -> bool {
        let reserved = ["c", "pthread", "rt", "m", "dl", "util", "xnet"];
        let stem = |name: &[u8]| -> Option<Vec<u8>> {
            Some(name.strip_prefix(b"lib")?.split(|&c| c == b'.').next()?.to_vec())
        };
        let has_dot = name.as_bytes().contains(&b'.');
        self.libc == Libc::Musl
            && has_dot
            && stem(name.as_bytes()).is_some_and(|stem| reserved.iter().any(|r| r.as_bytes() == stem))
    }

    /// The directories of the search path `text` (`DT_RPATH`, `DT_RUNPATH`). Entries that depend on the working
    /// directory (empty or relative) are left out: what they find is nobody's property.
    pub fn expand_path(&self, text: &OsStr, origin: Origin<'_>) -> Vec<Expanded> {
        if self.libc == Libc::Musl && has_foreign_token(text.as_bytes()) {
            return Vec::new();
        }
        text.as_bytes().split(|&c| c == b':').flat_map(|entry| self.expand(entry, origin)).collect()
    }

    /// One entry, or one `DT_NEEDED` with a slash in it. Several where `$PLATFORM` can mean several.
    pub fn expand(&self, entry: &[u8], origin: Origin<'_>) -> Vec<Expanded> {
        let platforms: &[&str] = if has_token(entry, "PLATFORM") { self.platforms } else { &[""] };
        let one = |platform: &&str| {
            let put = |directory: &Path| {
                let entry = replace(entry, "ORIGIN", directory.as_os_str().as_bytes());
                let entry = match self.libc {
                    Libc::Musl => entry,
                    Libc::Glibc => {
                        let entry = replace(&entry, "LIB", self.lib.as_bytes());
                        replace(&entry, "PLATFORM", platform.as_bytes())
                    }
                };
                PathBuf::from(OsString::from_vec(entry))
            };
            Expanded { here: put(origin.here), there: put(origin.there) }
        };
        platforms.iter().map(one).filter(|e| e.here.is_absolute() && e.there.is_absolute()).collect()
    }
}

/// `x86_64` of `/lib/ld-musl-x86_64.so.1`.
fn musl_architecture(loader: &Path) -> Option<OsString> {
    let name = loader.file_name()?.as_bytes().strip_prefix(b"ld-musl-")?;
    let end = name.windows(3).position(|window| window == b".so")?;
    Some(OsString::from_vec(name[..end].to_vec()))
}

fn architecture(elf: &Elf) -> &'static str {
    match (elf.machine, elf.is_64) {
        (62, true) => "x86_64",
        (62, false) => "x32",
        (3, _) => "i386",
        (183, _) => "aarch64",
        (40, _) => "arm",
        (243, true) => "riscv64",
        _ => "unknown",
    }
}

fn platforms(elf: &Elf) -> &'static [&'static str] {
    match (elf.machine, elf.is_64) {
        (62, _) => &["haswell", "xeon_phi", "x86_64"],
        (3, _) => &["i686", "i586"],
        (183, _) => &["aarch64"],
        (40, _) => &["v8l", "v7l", "v6l"],
        (21, true) => &["power10", "power9", "power8"],
        _ => &[],
    }
}

/// ld.so(8), and Debian's multiarch.
fn documented_directories(elf: &Elf) -> Vec<PathBuf> {
    let triplet = match (elf.machine, elf.is_64) {
        (62, true) => "x86_64-linux-gnu",
        (62, false) => "x86_64-linux-gnux32",
        (3, _) => "i386-linux-gnu",
        (183, _) => "aarch64-linux-gnu",
        (40, _) => "arm-linux-gnueabihf",
        (243, true) => "riscv64-linux-gnu",
        (21, true) => "powerpc64le-linux-gnu",
        _ => "",
    };
    let mut directories = Vec::new();
    if !triplet.is_empty() {
        directories.extend(["/lib", "/usr/lib"].map(|d| Path::new(d).join(triplet)));
    }
    if elf.is_64 {
        directories.extend(["/lib64", "/usr/lib64"].map(PathBuf::from));
    }
    directories.extend(["/lib", "/usr/lib"].map(PathBuf::from));
    directories
}

/// The first run of at least two strings such as `/lib/x86_64-linux-gnu/` in a loader's image.
fn built_in_directories(image: &[u8]) -> Vec<PathBuf> {
    let mut run = Vec::new();
    for string in image.split(|&byte| byte == 0) {
        let is_directory = string.len() > 2
            && string.len() < 256
            && string.starts_with(b"/")
            && string.ends_with(b"/")
            && string.windows(4).any(|window| window == b"/lib")
            && string.iter().all(|c| c.is_ascii_alphanumeric() || b"/._+-".contains(c));
        if is_directory {
            run.push(PathBuf::from(OsStr::from_bytes(&string[..string.len() - 1])));
        } else if run.len() >= 2 {
            return run;
        } else {
            run.clear();
        }
    }
    Vec::new()
}

fn is_lib_like(directory: &Path) -> bool {
    directory.file_name().is_some_and(|name| name.as_bytes().starts_with(b"lib"))
}

/// The length of `$NAME` or `${NAME}` at the start of `text`.
fn token_at(text: &[u8], name: &str) -> Option<usize> {
    let rest = text.strip_prefix(b"$")?;
    if let Some(braced) = rest.strip_prefix(b"{") {
        return braced.strip_prefix(name.as_bytes())?.starts_with(b"}").then_some(name.len() + 3);
    }
    let after = rest.strip_prefix(name.as_bytes())?.first();
    let goes_on = after.is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_');
    (!goes_on).then_some(name.len() + 1)
}

fn has_token(text: &[u8], name: &str) -> bool {
    (0..text.len()).any(|at| token_at(&text[at..], name).is_some())
}

/// musl gives up a whole search path in which a `$` begins anything but `$ORIGIN`.
fn has_foreign_token(text: &[u8]) -> bool {
    (0..text.len()).any(|at| text[at] == b'$' && token_at(&text[at..], "ORIGIN").is_none())
}

fn replace(text: &[u8], name: &str, value: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        if let Some(length) = token_at(&text[at..], name) {
            out.extend_from_slice(value);
            at += length;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(libc: Libc) -> Loader {
        let directories = vec!["/lib".into()];
        Loader { libc, directories, path_file: None, lib: "lib64".into(), platforms: &["p1", "p2"] }
    }

    fn expand(libc: Libc, text: &str) -> Vec<String> {
        let origin = Origin { here: Path::new("/o"), there: Path::new("/t") };
        let all = loader(libc).expand_path(text.as_ref(), origin);
        all.iter().map(|e| format!("{}={}", e.here.display(), e.there.display())).collect()
    }

    #[test]
    fn tokens_are_replaced() {
        assert_eq!(expand(Libc::Glibc, "$ORIGIN/../${LIB}:/a"), ["/o/../lib64=/t/../lib64", "/a=/a"]);
        assert_eq!(expand(Libc::Glibc, "/x/$PLATFORM"), ["/x/p1=/x/p1", "/x/p2=/x/p2"]);
        assert_eq!(
            expand(Libc::Glibc, "/x/$ORIGINAL:/$OTHER"),
            ["/x/$ORIGINAL=/x/$ORIGINAL", "/$OTHER=/$OTHER"]
        );
        assert_eq!(expand(Libc::Musl, "${ORIGIN}:/a"), ["/o=/t", "/a=/a"]);
        assert!(expand(Libc::Musl, "/a:/$LIB").is_empty());
    }

    #[test]
    fn the_working_directory_is_never_searched() {
        assert!(expand(Libc::Glibc, ":lib:./x:").is_empty());
    }

    #[test]
    fn musl_serves_libc_itself() {
        let musl = loader(Libc::Musl);
        assert!(musl.is_itself("libc.so".as_ref()) && musl.is_itself("libc.musl-x86_64.so.1".as_ref()));
        assert!(!musl.is_itself("libcrypto.so".as_ref()) && !musl.is_itself("libc".as_ref()));
        assert!(!loader(Libc::Glibc).is_itself("libc.so.6".as_ref()));
        assert_eq!(musl_architecture(Path::new("/lib/ld-musl-x86_64.so.1")), Some("x86_64".into()));
    }

    #[test]
    fn directories_are_read_from_the_loader() {
        let image = b"x\0/proc/self/\0/lib/a/\0/usr/lib/a/\0/lib/\0/etc\0";
        assert_eq!(built_in_directories(image), ["/lib/a", "/usr/lib/a", "/lib"].map(PathBuf::from));
        assert!(built_in_directories(b"/lib/\0x\0").is_empty());
    }
}
