//! Programs are started in the built roots by the pytest suite; here the tree, the copies and hostile roots.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::chroot::testing::Scratch;

#[test]
fn the_tree_is_made_once_and_again() {
    let scratch = Scratch::new("tree");
    for _ in 0..2 {
        let rootfs = Rootfs::create(&scratch.path("root")).unwrap();
        for (name, mode) in TREE {
            let data = std::fs::metadata(rootfs.path().join(name)).unwrap();
            assert_eq!(data.permissions().mode() & 0o7777, mode, "{name}");
        }
        assert!(rootfs.path().join("bin").is_dir());
        assert!(!rootfs.path().join("etc/passwd").exists());
    }
}

#[test]
fn a_program_comes_with_its_loader_and_links() {
    let scratch = Scratch::new("install");
    let rootfs = Rootfs::create(&scratch.path("root")).unwrap();
    let report = rootfs.install(&["/bin/sh".into()], &InstallOptions::default()).unwrap();
    for installed in &report.installed {
        let path = rootfs.path().join(installed.path.strip_prefix("/").unwrap());
        let here = std::fs::symlink_metadata(&path).unwrap();
        let host = std::fs::symlink_metadata(&installed.path).unwrap();
        assert_eq!(here.permissions().mode(), host.permissions().mode(), "{}", path.display());
        assert_eq!(std::fs::read_link(&path).ok(), installed.link);
        assert!(!installed.reason.is_empty());
    }
    let again = rootfs.install(&["/bin/sh".into()], &InstallOptions::default()).unwrap();
    assert!(again.installed.len() <= report.installed.len());
}

#[test]
fn missing_programs_are_named_with_the_search_path() {
    let scratch = Scratch::new("missing");
    let rootfs = Rootfs::create(&scratch.path("root")).unwrap();
    let options = InstallOptions { search_path: Some("/bin:/nowhere".into()) };
    let error = rootfs.install(&["no-such-program".into()], &options).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT));
    assert!(error.to_string().contains("no-such-program not found in PATH (/bin:/nowhere)"), "{error}");
    let error = rootfs.install_busybox(&InstallOptions { search_path: Some("/nowhere".into()) }).unwrap_err();
    assert!(error.to_string().contains("busybox-static"), "{error}");
}

#[test]
fn hostile_links_never_lead_out() {
    let scratch = Scratch::new("hostile");
    let outside = scratch.path("outside");
    for (name, target) in [
        ("lib", outside.clone()),
        ("lib64", "../outside".into()),
        ("bin", "../../../../../../../../..".into()),
        ("usr", outside.clone()),
        ("etc", outside.clone()),
        ("tmp", "tmp".into()),
    ] {
        std::fs::create_dir_all(&outside).unwrap();
        let dir = scratch.path(&format!("root-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        symlink(&target, dir.join(name)).unwrap();
        let _ = Rootfs::create(&dir);
        let rootfs = Rootfs::open(&dir).unwrap();
        let _ = rootfs.install(&["/bin/sh".into()], &InstallOptions::default());
        let moved = Program { source: "/bin/sh".into(), destination: Some("/etc/x".into()) };
        let _ = rootfs.install(&[moved], &InstallOptions::default());
        let _ = rootfs.minimal_etc();
        assert!(std::fs::read_dir(&outside).unwrap().next().is_none(), "{name} led out");
    }
    let names = std::fs::read_dir(scratch.dir()).unwrap().count();
    assert_eq!(names, 7, "something appeared beside the roots");
}

#[test]
fn a_real_directory_in_the_place_of_a_merged_one_is_filled() {
    let scratch = Scratch::new("unmerged");
    let dir = scratch.path("root");
    for name in ["bin", "lib", "lib64", "usr/lib"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let rootfs = Rootfs::open(&dir).unwrap();
    rootfs.install(&["/bin/sh".into()], &InstallOptions::default()).unwrap();
    assert!(dir.join("bin").is_dir() && !dir.join("bin").is_symlink());
    assert!(dir.join("bin/sh").exists());
}

#[test]
fn destinations_that_climb_are_refused() {
    let scratch = Scratch::new("climb");
    let rootfs = Rootfs::create(&scratch.path("root")).unwrap();
    for destination in ["/", "..", "/a/../b"] {
        let program = Program { source: "/bin/sh".into(), destination: Some(destination.into()) };
        let error = rootfs.install(&[program], &InstallOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Spec { .. }), "{destination}: {error}");
    }
}
