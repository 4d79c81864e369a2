use std::time::Instant;

use super::*;

/// Two lines make a mount: where and what.
fn mounts(points: &[(&str, &str)]) -> Vec<Mount> {
    let line = |(i, (point, kind)): (usize, &(&str, &str))| {
        format!("{} 1 0:{i} / {point} rw - {kind} x rw\n", i + 2)
    };
    mountinfo::parse(points.iter().enumerate().map(line).collect::<String>().as_bytes())
}

fn splits(points: &[(&str, &str)], exclude: &[&str]) -> Vec<String> {
    let excluded = PRIVATE.iter().chain(exclude).map(PathBuf::from).collect();
    split_points(&mounts(points), &excluded).iter().map(|path| path.display().to_string()).collect()
}

#[test]
fn a_plain_machine_is_split_at_the_top_alone() {
    let points = [
        ("/", "ext4"),
        ("/proc", "proc"),
        ("/dev/pts", "devpts"),
        ("/run/user/1000", "tmpfs"),
        ("/home", "ext4"),
    ];
    assert_eq!(splits(&points, &[]), ["/"]);
}

#[test]
fn mounts_of_a_desktop_split_what_is_above_them() {
    let points = [
        ("/", "ext4"),
        ("/boot/efi", "vfat"),
        ("/snap/core20/1", "squashfs"),
        ("/snap/core20/2", "squashfs"),
        ("/var/lib/lxcfs", "fuse.lxcfs"),
    ];
    assert_eq!(splits(&points, &[]), ["/", "/boot", "/snap", "/snap/core20", "/var", "/var/lib"]);
}

#[test]
fn files_mounted_by_a_container_engine_split_etc() {
    let points =
        [("/", "overlay"), ("/etc/hosts", "ext4"), ("/etc/resolv.conf", "ext4"), ("/dev/shm", "tmpfs")];
    assert_eq!(splits(&points, &[]), ["/", "/etc"]);
}

#[test]
fn an_exclusion_splits_what_is_above_it_and_hides_what_is_below() {
    let points = [("/", "ext4"), ("/home/me/secret/vault", "fuse.gocryptfs")];
    assert_eq!(splits(&points, &["/home/me/secret"]), ["/", "/home", "/home/me"]);
    assert!(matches!(host(&["etc".into()], true), Err(Error::Spec { .. })));
}

#[test]
fn file_systems_that_are_no_layers_are_known() {
    let why = |kind: &str| unfit(&mounts(&[("/x", kind)])[0]);
    assert!(why("autofs").unwrap().contains("no files"));
    assert!(why("vfat").unwrap().contains("refuses"));
    assert!(why("fuse.sshfs").unwrap().contains("server"));
    assert_eq!((why("ext4"), why("tmpfs"), why("overlay"), why("fusion")), (None, None, None, None));
}

#[test]
fn this_machine_has_a_layout_in_order_of_creation() {
    for user_namespace in [true, false] {
        let layout = host(&[], user_namespace).unwrap();
        let paths: Vec<&Path> = layout.parts.iter().map(|part| part.path.as_path()).collect();
        for (i, part) in layout.parts.iter().enumerate() {
            let above = part.path.parent().unwrap();
            let made = above == Path::new("/")
                || layout.parts[..i].iter().any(|p| p.path == above && p.kind == Kind::Dir);
            assert!(made, "{} comes before what holds it", part.path.display());
        }
        for private in PRIVATE {
            let part = layout.parts.iter().find(|part| part.path == Path::new(private));
            assert!(part.is_none_or(|part| part.kind == Kind::Dir));
        }
        let usr = layout.parts.iter().find(|part| part.path == Path::new("/usr")).unwrap();
        assert!(matches!(usr.kind, Kind::Overlay(_) | Kind::Dir));
        assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len());
    }
}

#[test]
fn planning_is_quick() {
    let best = (0..50)
        .map(|_| {
            let t = Instant::now();
            host(&[], true).unwrap();
            t.elapsed()
        })
        .min()
        .unwrap();
    // Measured 0.19 ms unoptimised; the bound is for slow and busy machines.
    assert!(best.as_micros() < 5000, "{best:?}");
}

#[test]
fn precreated_directories_come_with_their_parents() {
    for part in host(&[], true).unwrap().parts {
        if let Kind::Overlay(precreate) = part.kind {
            for (i, dir) in precreate.iter().enumerate() {
                let above = dir.path.parent().unwrap();
                assert!(above == Path::new("") || precreate[..i].iter().any(|d| d.path == above));
                assert!(part.path.join(&dir.path).symlink_metadata().unwrap().is_dir());
            }
        }
    }
}
