//! Pausing on the running kernel, with the children of `kernel_tests`.
#![allow(clippy::print_stderr, reason = "a skip names its reason")]

use super::kernel_tests::{Owned, pid, release, ticks, unique, waiting};
use super::*;
use crate::error::Error;
use nix::errno::Errno;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

/// The container as something that can only be paused.
fn pausable(test: &str) -> Option<Owned> {
    let made = plan_freezer(&unique(test)).and_then(|plan| plan.create());
    match made {
        Ok(cgroup) => Some(Owned(cgroup)),
        Err(error @ Error::Unsupported { .. }) => {
            eprintln!("skipped: {test}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn stands_still(child: &Child) -> bool {
    let before = ticks(pid(child));
    std::thread::sleep(Duration::from_millis(100)); // the time over which it must not move
    ticks(pid(child)) == before
}

fn freeze_and_thaw(cgroup: &Cgroup) {
    let mut child = waiting("burn", &[]);
    assert_eq!(cgroup.adopt(pid(&child)).unwrap() % cgroup.places.len(), 0);
    release(&mut child);
    assert!(!stands_still(&child));
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen().unwrap() && stands_still(&child));
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen().unwrap() && !stands_still(&child));
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap(); // frozen processes die, too
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(cgroup.pids().is_empty());
}

#[test]
fn freezes_and_thaws() {
    let Some(owned) = pausable("freeze") else { return };
    freeze_and_thaw(&owned.0);
}

#[test]
fn freezes_and_thaws_with_version_1() {
    let host = discover::Host::read();
    let mut asked = Plan::default();
    if let Err(why) = v1::add_bare(&host, &unique("freeze1"), "freezer", &mut asked) {
        eprintln!("skipped: version 1 freezer: {why}");
        return;
    }
    freeze_and_thaw(&Owned(asked.create().unwrap()).0);
}

#[test]
fn adopting_what_is_gone_is_an_error() {
    let Some(owned) = pausable("adopt") else { return };
    assert_eq!(owned.0.adopt(i32::MAX).unwrap_err().errno(), Some(Errno::ESRCH));
}

#[test]
fn an_adoption_that_fails_ends_nobody() {
    let Some(owned) = pausable("giveback") else { return };
    let mut broken = owned.0.clone();
    let mut nowhere = broken.places[0].clone();
    nowhere.outer = nowhere.outer.join("not-there");
    nowhere.inner = nowhere.outer.join("inner");
    broken.places.push(nowhere);
    let mut child = waiting("idle", &[]);
    assert_eq!(broken.adopt(pid(&child)).unwrap_err().errno(), Some(Errno::ENOENT));
    assert!(owned.0.pids().is_empty());
    drop(owned);
    assert_eq!(child.try_wait().unwrap(), None, "it lives");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A container that forks all the time, in a pid namespace, and its PID 1; none with a printed reason.
fn family() -> Option<(Child, i32)> {
    let root = nix::unistd::geteuid().is_root();
    let through: &[&str] = if root { &["unshare", "-p", "-f"] } else { &["unshare", "-U", "-r", "-p", "-f"] };
    let possible = Command::new("unshare").args(&through[1..]).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: family: no unshare(1) here, or no right to a pid namespace");
        return None;
    }
    let mut outside = waiting("family", through);
    release(&mut outside);
    let children = format!("/proc/{0}/task/{0}/children", pid(&outside));
    loop {
        let text = std::fs::read_to_string(&children).unwrap();
        if let Some(init) = text.split_whitespace().next().and_then(|word| word.parse().ok()) {
            return Some((outside, init));
        }
        std::thread::yield_now();
    }
}

#[test]
fn adopts_a_pid_namespace_that_keeps_forking() {
    let Some(owned) = pausable("family") else { return };
    let Some((mut outside, init)) = family() else { return };
    assert!(owned.0.adopt(init).unwrap() >= 1);
    owned.0.freeze().unwrap();
    let frozen = owned.0.pids();
    assert!(frozen.contains(&init) && !frozen.contains(&pid(&outside)), "{frozen:?}");
    std::thread::sleep(Duration::from_millis(50)); // the time over which it must not fork
    assert_eq!(owned.0.pids(), frozen);
    owned.0.thaw().unwrap();
    owned.0.kill().unwrap();
    outside.wait().unwrap();
}

#[test]
fn version_1_ends_what_keeps_forking() {
    for controller in ["pids", "freezer", "memory"] {
        let mut asked = Plan::default();
        if let Err(why) = v1::add_bare(&discover::Host::read(), &unique("kill1"), controller, &mut asked) {
            eprintln!("skipped: version 1 {controller}: {why}");
            continue;
        }
        let owned = Owned(asked.create().unwrap());
        let Some((mut outside, init)) = family() else { return };
        owned.0.adopt(init).unwrap();
        owned.0.kill().unwrap();
        outside.wait().unwrap();
        let limit = owned.0.places[0].outer.join("pids.max");
        assert!(!limit.exists() || std::fs::read_to_string(limit).unwrap() == "max\n", "as it was before");
    }
}
