//! What is planned, and that a plan is what happens; children come from `kernel_tests`.
#![allow(clippy::print_stderr, reason = "a skip names its reason")]

use super::kernel_tests::{MIB, Owned, release, unique, waiting};
use super::*;
use crate::error::{Error, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn no_limits_touch_nothing() {
    let empty = plan("x", &Limits::default(), Ids::Single).unwrap();
    assert!(empty.is_empty() && empty.shell().is_empty() && empty.dirs().is_empty());
    let cgroup = empty.create().unwrap();
    cgroup.join(1).unwrap();
    cgroup.remove().unwrap();
    assert_eq!(cgroup.stats(), Stats::default());
    assert!(matches!(cgroup.freeze(), Err(Error::Unsupported { .. })));
    for name in ["", "a/b", "..x/", "a b", "ü"] {
        assert!(matches!(plan(name, &Limits::default(), Ids::Single), Err(Error::Spec { .. })), "{name}");
    }
}

#[test]
fn rlimit_binds_where_no_cgroup_can() {
    let nothing = discover::Host::default();
    let limits = Limits { pids: Some(20), ..Limits::default() };
    let planned = plan::plan_on(&nothing, "x", &limits, Ids::Single);
    if nix::unistd::geteuid().is_root() {
        let error = planned.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("root"), "{error}");
        return;
    }
    let planned = planned.unwrap();
    assert_eq!(planned.bounds, [Bound { resource: Resource::Pids, by: "rlimit NPROC".to_owned() }]);
    assert_eq!(planned.shell(), ["prlimit --pid $$ --nproc=20:20"]);
    assert_eq!(planned.create().unwrap().stats().pids_limit, Some(20));
    if Command::new("unshare").args(["-U", "-r", "true"]).status().map_or(true, |status| !status.success()) {
        eprintln!("skipped: rlimit: no unshare(1) here, or no user namespaces");
        return;
    }
    let mut child = waiting("nproc", &["unshare", "-U", "-r"]);
    release(&mut child);
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains("raised=Err(EPERM)"), "{output}");
    let threads: u64 =
        output.split("threads=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!((10..20).contains(&threads), "{output}");
}

#[test]
fn without_any_cgroup_the_facts_are_told() {
    let nothing = discover::Host::default();
    let try_plan = |limits: &Limits| -> Result<Plan> { plan::plan_on(&nothing, "x", limits, Ids::Single) };
    let error = try_plan(&Limits { memory: Some(MIB), ..Limits::default() }).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(
        error.to_string().contains("memory cannot be limited") && error.to_string().contains("RLIMIT_AS")
    );
    let effort =
        try_plan(&Limits { memory: Some(MIB), cpus: Some(1.0), best_effort: true, ..Limits::default() });
    let effort = effort.unwrap();
    assert_eq!(effort.unbound.len(), 2);
    assert_eq!(effort.shell(), [format!("prlimit --pid $$ --data={MIB}:{MIB}")]);
}

#[test]
fn the_report_agrees_with_what_can_be_done() {
    let report = report();
    assert_eq!(report.controllers.len(), 5);
    for (name, limits) in [
        ("memory", Limits { memory: Some(32 * MIB), ..Limits::default() }),
        ("pids", Limits { pids: Some(5), ..Limits::default() }),
        ("cpu", Limits { cpus: Some(1.0), ..Limits::default() }),
        ("cpuset", Limits { cpuset: Some("0".to_owned()), ..Limits::default() }),
    ] {
        let controller = report.controllers.iter().find(|controller| controller.name == name).unwrap();
        let made =
            plan(&unique(&format!("report-{name}")), &limits, Ids::Host).and_then(|plan| plan.create());
        assert_eq!(made.is_ok(), controller.parent.is_ok(), "{controller:?} {made:?}");
        if let Ok(cgroup) = made {
            drop(Owned(cgroup));
        }
    }
    eprintln!("{report:?}");
}

#[test]
fn the_plan_can_be_typed_in_a_shell() {
    let limits = Limits { memory: Some(64 * MIB), pids: Some(7), ..Limits::default() };
    let Ok(asked) = plan(&unique("shell"), &limits, Ids::Host) else {
        eprintln!("skipped: shell: nothing is writable");
        return;
    };
    let Some(shell) = ["/bin/sh"].iter().find(|path| Path::new(path).exists()) else {
        eprintln!("skipped: shell: no /bin/sh");
        return;
    };
    let script = format!("set -e\n{}\nexec cat /proc/self/cgroup", asked.shell().join("\n"));
    let output = Command::new(shell).args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let left = Owned(Plan { actions: Vec::new(), ..asked }.create().unwrap());
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("r2d2-{}/inner", unique("shell"))), "{text}");
    assert_eq!((left.0.stats().memory_limit, left.0.stats().pids_limit), (Some(64 * MIB), Some(7)));
}

/// A made-up directory of version 2 with what a decision reads from it.
fn directory(path: &Path, kind: Option<&str>, controllers: &str, on: &str, pids: &str) {
    fs::create_dir_all(path).unwrap();
    if let Some(kind) = kind {
        fs::write(path.join("cgroup.type"), kind).unwrap();
    }
    for (file, text) in
        [("cgroup.controllers", controllers), ("cgroup.subtree_control", on), ("cgroup.procs", pids)]
    {
        fs::write(path.join(file), text).unwrap();
    }
}

fn made_up(root: &Path, own: &Path) -> discover::Host {
    let controllers = ["memory", "pids", "cpu"].map(str::to_owned).to_vec();
    let (mount_point, own) = (root.to_path_buf(), Ok(own.to_path_buf()));
    let version = discover::Version::V2;
    discover::Host { hierarchies: vec![discover::Hierarchy { version, controllers, mount_point, own }] }
}

#[test]
fn version_2_finds_the_nearest_cgroup_that_may_have_limited_children() {
    let root = std::env::temp_dir().join(unique("v2"));
    let (slice, own) = (root.join("slice"), root.join("slice/own"));
    directory(&root, None, "memory pids cpu", "memory", "1\n2\n");
    directory(&slice, Some("domain\n"), "memory pids", "memory", "");
    directory(&own, Some("domain\n"), "memory", "", "4242\n");
    let host = made_up(&root, &own);
    let planned = |limits: &Limits| plan::plan_on(&host, "x", limits, Ids::Host);
    let pids = Limits { pids: Some(5), ..Limits::default() };

    let plan = planned(&pids).unwrap();
    let [slice_shown, own_shown] = [&slice, &own].map(|path| path.display());
    assert_eq!(
        plan.shell(),
        [
            format!("echo +pids > {slice_shown}/cgroup.subtree_control"),
            format!("mkdir {slice_shown}/r2d2-x"),
            format!("echo 5 > {slice_shown}/r2d2-x/pids.max"),
            format!("mkdir {slice_shown}/r2d2-x/inner"),
            format!("echo $$ > {slice_shown}/r2d2-x/inner/cgroup.procs"),
        ]
    );
    // On already: nothing to turn on, even where processes are.
    fs::write(own.join("cgroup.subtree_control"), "pids").unwrap();
    assert_eq!(planned(&pids).unwrap().shell()[0], format!("mkdir {own_shown}/r2d2-x"));
    fs::write(own.join("cgroup.subtree_control"), "").unwrap();
    // The real root may hold processes and turn controllers on.
    let cpu = planned(&Limits { cpus: Some(1.5), ..Limits::default() }).unwrap();
    assert_eq!(cpu.shell()[0], format!("echo +cpu > {}/cgroup.subtree_control", root.display()));
    assert_eq!(cpu.shell()[2], format!("echo '150000 100000' > {}/r2d2-x/cpu.max", root.display()));

    // In a cgroup namespace our own cgroup is the top: nothing but the reason is left.
    fs::write(own.join("cgroup.controllers"), "memory pids").unwrap();
    let enclosed = plan::plan_on(&made_up(&own, &own), "x", &pids, Ids::Host).unwrap_err().to_string();
    assert!(
        enclosed.contains("holds 1 process, so") && enclosed.contains("no internal processes"),
        "{enclosed}"
    );
    fs::write(own.join("cgroup.type"), "threaded\n").unwrap();
    let threaded = plan::plan_on(&made_up(&own, &own), "x", &pids, Ids::Host).unwrap_err().to_string();
    assert!(threaded.contains("is of type \"threaded\""), "{threaded}");
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn values_are_compared_as_the_kernel_rounds_them() {
    use live::holds;
    assert!(holds(Check::Page, "33554437", "33554432") && holds(Check::Page, "33554432", "33554432"));
    assert!(!holds(Check::Page, "33554432", "33558528") && !holds(Check::Page, "33554432", "0"));
    assert!(!holds(Check::Page, "33554432", "max"));
    assert!(
        holds(Check::Set, "0,1,2", "0-2") && !holds(Check::Set, "0-3", "0-2") && !holds(Check::Set, "0", "")
    );
    assert!(!holds(Check::Same, "20", "max"));
}
