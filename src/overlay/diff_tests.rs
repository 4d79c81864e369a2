//! Layers made by hand, marks and all; real overlays are in `tests/test_overlay_diff.py`.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknod};

use super::*;
use crate::sys::xattr;

/// An upper directory and lower ones, gone when dropped.
struct Layers(PathBuf);

impl Layers {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("r2d2-diff-{}-{name}", std::process::id()));
        for layer in ["upper", "0", "1"] {
            fs::create_dir_all(dir.join(layer)).unwrap();
        }
        Self(dir)
    }

    /// Writes a file, or makes a directory where the path ends in `/`, with one mtime for all.
    fn put(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return fs::create_dir_all(path).unwrap();
        }
        let file = fs::File::create(path).unwrap();
        std::io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }

    fn whiteout(&self, path: &str) {
        mknod(&self.0.join(path), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    }

    fn mark(&self, path: &str, name: &CStr, value: &[u8]) {
        let file = open(&self.0.join(path), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        xattr::set(file.as_fd(), name, value).unwrap();
    }

    fn open(&self, layer: &str) -> OwnedFd {
        open(&self.0.join(layer), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
    }

    fn changes(&self, options: &Options) -> Vec<Change> {
        let (upper, top, bottom) = (self.open("upper"), self.open("0"), self.open("1"));
        diff_with(upper.as_fd(), &[top.as_fd(), bottom.as_fd()], options).unwrap()
    }

    /// `path: kind`, with `!` where opaque.
    fn diff(&self) -> Vec<String> {
        let show = |c: &Change| {
            format!("{}: {}{}", c.path.display(), c.kind.name(), if c.opaque { "!" } else { "" })
        };
        self.changes(&Options::default()).iter().map(show).collect()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn bytes_decide_not_times() {
    let l = Layers::new("bytes");
    for (name, before, after) in [("same", "abc", "abc"), ("other", "abc", "abd"), ("longer", "abc", "abcd")]
    {
        l.put(&format!("1/{name}"), before);
        l.put(&format!("upper/{name}"), after);
    }
    l.put("upper/new/deep/file", "");
    assert_eq!(
        l.diff(),
        ["longer: modified", "new: added", "new/deep: added", "new/deep/file: added", "other: modified"]
    );
}

#[test]
fn metadata_alone_is_told_apart() {
    let l = Layers::new("metadata");
    for layer in ["1", "upper"] {
        for name in ["mode", "time", "xattr", "mark"] {
            l.put(&format!("{layer}/{name}"), "x");
        }
        l.put(&format!("{layer}/dir/"), "");
        l.put(&format!("{layer}/touched/"), "");
    }
    fs::set_permissions(l.0.join("upper/mode"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(l.0.join("upper/dir"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::File::open(l.0.join("upper/time")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    l.mark("upper/xattr", c"user.note", b"hello");
    l.mark("upper/mark", c"user.overlay.origin", b"x");
    assert_eq!(l.diff(), ["dir: metadata", "mode: metadata", "time: metadata", "xattr: metadata"]);
    let options = Options { marks: Marks::Trusted, ..Options::default() };
    assert_eq!(l.changes(&options)[1].path, Path::new("mark"), "then it is data of the container");
    let change = &l.changes(&Options::default())[1];
    assert_eq!((change.before.unwrap().mode, change.after.unwrap().mode), (0o644, 0o4711));
}

#[test]
fn whiteouts_of_both_kinds_delete_what_is_there() {
    let l = Layers::new("whiteout");
    for name in ["1/device", "0/attribute", "1/tree/leaf", "1/masked"] {
        l.put(name, "x");
    }
    l.whiteout("0/masked");
    for name in ["device", "tree", "masked", "never"] {
        l.whiteout(&format!("upper/{name}"));
    }
    l.put("upper/attribute", "");
    l.mark("upper/attribute", c"user.overlay.whiteout", b"y");
    assert_eq!(l.diff(), ["attribute: deleted", "device: deleted", "tree: deleted"]);
    let tree = &l.changes(&Options::default())[2];
    assert_eq!((tree.before.unwrap().file_type, tree.after), (FileType::Dir, None));
}

#[test]
fn an_opaque_directory_deletes_what_did_not_come_back() {
    let l = Layers::new("opaque");
    for name in ["1/d/gone", "1/d/same", "0/d/changed", "1/d/sub/gone", "1/d/sub/same", "1/d/hidden"] {
        l.put(name, "x");
    }
    l.whiteout("0/d/hidden");
    l.put("upper/d/same", "x");
    l.put("upper/d/changed", "y");
    l.put("upper/d/sub/same", "x");
    l.mark("upper/d", c"user.overlay.opaque", b"y");
    assert_eq!(l.diff(), ["d: modified!", "d/changed: modified", "d/gone: deleted", "d/sub/gone: deleted"]);
    l.mark("upper/d", c"user.overlay.opaque", b"x");
    assert_eq!(l.diff(), ["d/changed: modified"], "x announces whiteouts, no more");
}

#[test]
fn lower_layers_merge_until_one_is_opaque() {
    let l = Layers::new("merge");
    l.put("1/d/below", "x");
    l.put("0/d/above", "x");
    l.mark("0/d", c"user.overlay.opaque", b"y");
    l.put("upper/d/below", "x");
    l.put("upper/d/above", "x");
    assert_eq!(l.diff(), ["d/below: added"]);
}

#[test]
fn a_change_of_type_is_a_modification() {
    let l = Layers::new("type");
    l.put("1/file-dir", "x");
    l.put("upper/file-dir/child", "x");
    l.put("1/dir-file/child", "x");
    l.put("upper/dir-file", "x");
    symlink("old", l.0.join("1/link")).unwrap();
    symlink("new", l.0.join("upper/link")).unwrap();
    assert_eq!(
        l.diff(),
        ["dir-file: modified", "file-dir: modified", "file-dir/child: added", "link: modified"]
    );
}

#[test]
fn redirects_are_renames_and_only_trusted_ones() {
    let l = Layers::new("redirect");
    l.put("1/old/kept", "x");
    l.put("1/old/changed", "x");
    l.put("upper/new/changed", "y");
    l.whiteout("upper/old");
    l.mark("upper/new", c"user.overlay.redirect", b"/old");
    assert_eq!(l.diff(), ["new: added", "new/changed: added", "old: deleted"]);
    let upper = l.open("upper/new");
    if xattr::set(upper.as_fd(), c"trusted.overlay.redirect", b"/old").is_err() {
        return; // real root alone may set it; tests/test_overlay_diff.py renames for real
    }
    assert_eq!(l.diff(), ["new: renamed", "new/changed: modified"]);
    assert_eq!(l.changes(&Options::default())[0].from.as_deref(), Some(Path::new("old")));
}

#[test]
fn hostile_names_symlinks_and_depth_do_no_harm() {
    let l = Layers::new("hostile");
    symlink("/etc", l.0.join("1/etc")).unwrap();
    l.put("upper/etc/passwd", "x");
    nix::unistd::mkfifo(&l.0.join("upper/fifo"), Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&l.0.join("1/fifo"), Mode::S_IRWXU).unwrap();
    l.put("upper/\n; rm -rf $HOME `x`", "");
    assert_eq!(l.diff(), ["\n; rm -rf $HOME `x`: added", "etc: modified", "etc/passwd: added"]);
    // A tree far deeper than a path may be long, and than descriptors last.
    let name = "d".repeat(200);
    let mut at = l.open("upper");
    for _ in 0..1500 {
        mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
        at = nix::fcntl::openat(&at, name.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    }
    let changes = l.changes(&Options::default());
    let deepest = changes.iter().map(|c| c.path.as_os_str().len()).max().unwrap();
    assert!(deepest > MAX_PATH && deepest <= MAX_PATH + 201, "{deepest}");
    drop(at);
    assert!(std::process::Command::new("rm").arg("-rf").arg(l.0.join("upper")).status().unwrap().success());
}

#[test]
fn a_prefix_and_precreated_directories() {
    let l = Layers::new("prefix");
    l.put("1/opt/", "");
    l.put("upper/opt/tool", "x");
    let precreated = BTreeSet::from([PathBuf::from("opt")]);
    let options = Options { prefix: "usr/local".into(), precreated, ..Options::default() };
    let paths: Vec<PathBuf> = l.changes(&options).into_iter().map(|c| c.path).collect();
    assert_eq!(paths, [Path::new("usr/local/opt/tool")]);
}
