//! The store: made once, remade when a source changes, shared by racing builders, cleaned of dead ones, refused when
//! it is not safe.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::chroot::testing::Scratch;

/// A request for one script of our own, so that the test can change a source.
fn request(scratch: &Scratch) -> MinimalRequest {
    let script = scratch.path("greet");
    if !script.exists() {
        std::fs::write(&script, "#!/bin/sh\necho hello\n").unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    }
    MinimalRequest { programs: vec![script.into()], etc: true, ..Default::default() }
}

fn names(store: &Path, prefix: &str) -> usize {
    let listing = std::fs::read_dir(store).unwrap();
    listing.filter(|e| e.as_ref().unwrap().file_name().as_bytes().starts_with(prefix.as_bytes())).count()
}

#[test]
fn an_image_is_made_once_and_again_when_a_source_changes() {
    let scratch = Scratch::new("store");
    let store = scratch.path("store");
    let first = build_minimal(&store, &request(&scratch)).unwrap();
    assert!(first.join("etc/passwd").exists() && first.join("bin/sh").exists());
    assert_eq!(build_minimal(&store, &request(&scratch)).unwrap(), first);
    std::fs::write(scratch.path("greet"), "#!/bin/sh\necho good morning\n").unwrap();
    let second = build_minimal(&store, &request(&scratch)).unwrap();
    assert_ne!(first, second);
    assert_eq!((names(&store, "image-"), names(&store, "tmp-"), names(&store, "new-")), (2, 0, 0));
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::metadata(&second).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn an_index_is_believed_only_while_it_agrees() {
    let scratch = Scratch::new("index");
    let store = scratch.path("store");
    let image = build_minimal(&store, &request(&scratch)).unwrap();
    std::fs::remove_dir_all(&image).unwrap();
    assert_eq!(build_minimal(&store, &request(&scratch)).unwrap(), image);
    assert!(image.is_dir());
    let mut index = std::fs::read_dir(&store).unwrap().map(|e| e.unwrap().path());
    let index = index.find(|p| p.file_name().unwrap().as_bytes().starts_with(b"index-")).unwrap();
    let whole = std::fs::read(&index).unwrap();
    for end in 0..whole.len() {
        std::fs::write(&index, &whole[..end]).unwrap();
        let opened = Store::open(&store).unwrap();
        assert_eq!(opened.cached(index.file_name().unwrap().to_str().unwrap()), None, "cut at {end}");
    }
}

#[test]
fn racing_builders_agree() {
    let scratch = Scratch::new("race");
    let (store, request) = (scratch.path("store"), request(&scratch));
    let build = || build_minimal(&store, &request).unwrap();
    let images: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(build)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| image == &images[0] && image.is_dir()));
    assert_eq!((names(&store, "image-"), names(&store, "tmp-"), names(&store, "new-")), (1, 0, 0));
}

#[test]
fn trees_of_dead_makers_are_removed() {
    let scratch = Scratch::new("stale");
    let store = scratch.path("store");
    drop(Store::open(&store).unwrap());
    // Above every pid_max.
    let (dead, alive) = (store.join("tmp-99999999-0"), store.join(format!("tmp-{}-999", std::process::id())));
    let held = store.join("tmp-99999999-1");
    for dir in [&dead, &alive, &held] {
        std::fs::create_dir_all(dir.join("usr")).unwrap();
    }
    let opened = Store::open(&store).unwrap();
    let lock = opened.lock("tmp-99999999-1".as_ref()).unwrap();
    build_minimal(&store, &request(&scratch)).unwrap();
    drop(lock);
    assert_eq!((dead.exists(), alive.exists(), held.exists()), (false, true, true));
}

#[test]
fn unsafe_stores_are_refused() {
    let scratch = Scratch::new("unsafe");
    let refused = |store: &Path| match build_minimal(store, &request(&scratch)) {
        Err(Error::Step { errno, .. }) => assert_eq!(errno, Errno::EACCES),
        other => panic!("{other:?}"),
    };
    let (open, link, file) = (scratch.path("open"), scratch.path("link"), scratch.path("file"));
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o750)).unwrap();
    refused(&open);
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&open, &link).unwrap();
    refused(&link);
    std::fs::write(&file, "").unwrap();
    refused(&file);
    assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0);
}

#[test]
fn a_failed_build_leaves_nothing() {
    let scratch = Scratch::new("failed");
    let store = scratch.path("store");
    let request = MinimalRequest { programs: vec!["no-such-program".into()], ..Default::default() };
    assert!(build_minimal(&store, &request).is_err());
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
}
