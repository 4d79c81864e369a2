//! Limits on the running kernel. Children are this test program itself in a role: it waits on its standard input
//! until it was moved into the cgroup, then hogs, forks or burns. A part that this user or kernel cannot do is
//! skipped with its reason printed.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a skip names its reason; children answer by printing"
)]

use super::*;
use crate::error::Error;
use nix::errno::Errno;
use std::io::{BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "R2D2_TEST_CGROUP_ROLE";
pub(super) const MIB: u64 = 1 << 20;

/// What a child does; a test only for the harness' sake.
#[test]
#[ignore = "the child of the other tests"]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    match role.as_str() {
        "idle" => {
            std::io::stdin().lock().read_to_end(&mut Vec::new()).unwrap();
        }
        "hog" => {
            let mut kept = Vec::new();
            for _ in 0..256 {
                kept.push(std::hint::black_box(vec![1_u8; MIB as usize]));
            }
            println!("survived with {} MiB", kept.len());
        }
        "bomb" => println!("threads={}", bomb()),
        "nproc" => {
            let limit = RlimitResource::RLIMIT_NPROC;
            nix::sys::resource::setrlimit(limit, 20, 20).unwrap();
            let raised = nix::sys::resource::setrlimit(limit, 1000, 1000);
            println!("raised={raised:?} threads={}", bomb());
        }
        "burn" => {
            for _ in 0..2 {
                std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                });
            }
            std::io::stdin().lock().read_to_end(&mut Vec::new()).unwrap();
        }
        "family" => {
            // Processes that come and go all the time, as long as somebody listens.
            let short = || Command::new("/proc/self/exe").arg("--list").stdout(Stdio::null()).status();
            while short().is_ok() && std::io::stdout().write_all(b".").is_ok() {}
        }
        "cpus" => {
            let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let cpus: Vec<usize> =
                (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect();
            println!("cpus={cpus:?}");
        }
        other => panic!("no role {other}"),
    }
}

/// Starts threads until the kernel refuses; how many it gave.
fn bomb() -> usize {
    let mut threads = Vec::new();
    while threads.len() < 200 {
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(std::thread::park);
        let Ok(thread) = thread else { break };
        threads.push(thread);
    }
    threads.len()
}

/// A child in `role`, still waiting; `through` is a program that runs it.
pub(super) fn waiting(role: &str, through: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match through {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["--exact", "cgroup::kernel_tests::role", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

pub(super) fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

pub(super) fn release(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
}

/// Runs a role in the cgroup to its end: its output and its signal.
fn run_in(cgroup: &Cgroup, role: &str) -> (String, Option<i32>) {
    let mut child = waiting(role, &[]);
    cgroup.join(pid(&child)).unwrap();
    release(&mut child);
    let output = child.wait_with_output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.signal())
}

/// CPU ticks that a process has used (fields 14 and 15 of proc(5) stat).
pub(super) fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub(super) fn unique(test: &str) -> String {
    format!("test-{test}-{}", std::process::id())
}

/// A cgroup that a test owns; removed and checked for leftovers even when the test fails.
pub(super) struct Owned(pub(super) Cgroup);

impl Drop for Owned {
    fn drop(&mut self) {
        let removed = self.0.remove();
        if !std::thread::panicking() {
            removed.unwrap();
            let left: Vec<PathBuf> = self.0.dirs().into_iter().filter(|path| path.exists()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// The cgroup, or a printed reason why this user has none.
fn create(test: &str, limits: &Limits) -> Option<Owned> {
    match plan(&unique(test), limits, Ids::Host).and_then(|plan| plan.create()) {
        Ok(cgroup) => Some(Owned(cgroup)),
        Err(error @ Error::Unsupported { .. }) => {
            eprintln!("skipped: {test}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn memory_binds() {
    let Some(owned) = create("memory", &Limits { memory: Some(32 * MIB + 5), ..Limits::default() }) else {
        return;
    };
    let Owned(cgroup) = &owned;
    // Swap, where the host has some, would let the hog live on.
    let swap = std::fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .any(|line| line.strip_prefix("SwapTotal:").is_some_and(|rest| !rest.trim().starts_with("0 ")));
    let (output, signal) = run_in(cgroup, "hog");
    let stats = cgroup.stats();
    assert_eq!(stats.memory_limit, Some(32 * MIB), "rounded down to a page");
    if !swap {
        assert_eq!(signal, Some(9), "{output}");
        assert!(stats.oom_kills >= Some(1), "{stats:?}");
    }
    if let Some(peak) = stats.memory_peak {
        assert!((16 * MIB..=32 * MIB).contains(&peak), "{stats:?}");
    }
}

#[test]
fn swap_is_limited_with_memory() {
    let limits = Limits { memory: Some(32 * MIB), swap: Some(0), ..Limits::default() };
    let Some(owned) = create("swap", &limits) else { return };
    assert_eq!(run_in(&owned.0, "hog").1, Some(9));
    assert_eq!(owned.0.bounds.len(), 2);
}

#[test]
fn pids_bind() {
    let Some(owned) = create("pids", &Limits { pids: Some(20), ..Limits::default() }) else { return };
    let (output, signal) = run_in(&owned.0, "bomb");
    assert_eq!(signal, None);
    let threads: u64 =
        output.split("threads=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!((10..20).contains(&threads), "{output}");
    let stats = owned.0.stats();
    assert_eq!((stats.pids, stats.pids_limit), (Some(0), Some(20)));
    assert!(stats.pids_peak.is_none_or(|peak| peak == 20), "{stats:?}");
}

#[test]
fn cpus_bind() {
    let limits = Limits { cpus: Some(0.2), cpu_weight: Some(50), ..Limits::default() };
    let Some(owned) = create("cpus", &limits) else { return };
    let mut child = waiting("burn", &[]);
    owned.0.join(pid(&child)).unwrap();
    let (before, begin) = (ticks(pid(&child)), Instant::now());
    release(&mut child);
    // On a busy machine the burner may get too little to be throttled: as long as it takes, within reason.
    let (used, elapsed, after) = loop {
        std::thread::sleep(Duration::from_millis(500));
        let (used, elapsed) = ((ticks(pid(&child)) - before) * 10, begin.elapsed().as_millis());
        let after = owned.0.stats();
        let throttled = after.nr_throttled > Some(0) && after.throttled_ns > Some(0) && used > 0;
        if (throttled && elapsed > 1000) || elapsed > 30_000 {
            break (used, elapsed, after);
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(after.nr_throttled > Some(0) && after.throttled_ns > Some(0), "{after:?}");
    // Two threads would take a whole CPU at the least; the rest is slack for a slow, shared machine.
    assert!(u128::from(used) < elapsed / 2, "{used} ms of {elapsed} ms");
    if let Some(counted) = after.cpu_usage_ns {
        assert!((used / 2..used * 2 + 200).contains(&(counted / 1_000_000)), "{used} ms, {after:?}");
    }
}

#[test]
fn cpuset_binds() {
    let Some(owned) = create("cpuset", &Limits { cpuset: Some("0".to_owned()), ..Limits::default() }) else {
        return;
    };
    assert!(run_in(&owned.0, "cpus").0.contains("cpus=[0]"));
}

#[test]
fn a_limit_that_does_not_bind_is_an_error_and_leaves_nothing() {
    let limits = Limits { cpuset: Some("8190".to_owned()), pids: Some(10), ..Limits::default() };
    let name = unique("refused");
    let Ok(asked) = plan(&name, &limits, Ids::Host) else {
        eprintln!("skipped: refused: no cpuset to write");
        return;
    };
    let error = asked.create().unwrap_err();
    assert!(error.to_string().starts_with("limit cpuset: "), "{error}");
    assert!(asked.dirs().iter().all(|path| !path.exists()));

    let owned =
        Owned(plan(&name, &Limits { best_effort: true, ..limits }, Ids::Host).unwrap().create().unwrap());
    assert_eq!(owned.0.unbound.iter().map(|given| given.resource).collect::<Vec<_>>(), [Resource::Cpuset]);
    assert_eq!(owned.0.bounds.iter().map(|bound| bound.resource).collect::<Vec<_>>(), [Resource::Pids]);
    assert!(run_in(&owned.0, "cpus").0.contains("cpus=["), "processes can join all the same");
}

#[test]
fn a_directory_that_exists_is_not_taken_over() {
    let Some(owned) = create("twice", &Limits { pids: Some(5), ..Limits::default() }) else { return };
    let again =
        plan(&unique("twice"), &Limits { pids: Some(9), ..Limits::default() }, Ids::Host).unwrap().create();
    assert_eq!(again.unwrap_err().errno(), Some(Errno::EEXIST));
    assert_eq!(owned.0.stats().pids_limit, Some(5));
}

#[test]
fn a_failed_join_names_file_and_errno() {
    let Some(owned) = create("join", &Limits { pids: Some(5), ..Limits::default() }) else { return };
    let Err(Error::Step { errno, path, .. }) = owned.0.join(i32::MAX) else { panic!("joined") };
    assert_eq!(errno, Errno::ESRCH);
    assert!(path.unwrap().ends_with("inner/cgroup.procs"));
}

#[test]
fn removal_ends_what_is_left_and_is_idempotent() {
    let Some(owned) = create("remove", &Limits { pids: Some(50), ..Limits::default() }) else {
        return;
    };
    let cgroup = &owned.0;
    let mut child = waiting("idle", &[]);
    cgroup.join(pid(&child)).unwrap();
    // As a container does that was given the file system.
    for place in &cgroup.places {
        std::fs::create_dir_all(place.inner.join("nested/deeper")).unwrap();
    }
    assert_eq!(cgroup.pids(), [pid(&child)]);
    let paths = cgroup.paths();
    assert_eq!(paths.len(), cgroup.places.len() * 2);
    cgroup.remove().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(cgroup.dirs().iter().all(|path| !path.exists()));
    cgroup.remove().unwrap();
    assert_eq!(cgroup.stats().pids, None);
}

/// The container may own the files, yet its cgroup namespace ends below those that limit it.
#[test]
fn a_container_cannot_raise_its_limit() {
    let Some(owned) = create("raise", &Limits { pids: Some(20), ..Limits::default() }) else { return };
    let ids: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["-U", "-r"] };
    let version = owned.0.places.iter().find(|place| place.has("pids")).unwrap().version;
    let mount = if version == discover::Version::V2 { "-t cgroup2" } else { "-t cgroup -o pids" };
    let script = format!(
        "read go; exec unshare {} -C -m sh -c 'mount {mount} none /sys && ls /sys && echo max > /sys/pids.max; \
         cat /proc/self/cgroup; exec \"$0\" \"$@\"' \"$0\" \"$@\"",
        ids.join(" ")
    );
    let mut child = waiting("bomb", &["/bin/sh", "-c", &script]);
    owned.0.join(pid(&child)).unwrap();
    release(&mut child);
    release(&mut child);
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    if !output.contains("pids:/\n") && !output.contains("0::/\n") {
        eprintln!("skipped: raise: no unshare(1) here, or no right to a cgroup namespace");
        return;
    }
    let threads: u64 =
        output.split("threads=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(threads < 20, "{output}");
    assert_eq!(owned.0.stats().pids_limit, Some(20));
}

#[test]
#[ignore = "a measurement"]
fn price() {
    let limits = Limits { memory: Some(64 * MIB), pids: Some(50), cpus: Some(1.0), ..Limits::default() };
    let mut times = [const { Vec::new() }; 5];
    for round in 0..40 {
        let begin = Instant::now();
        let asked = plan(&unique(&format!("price{round}")), &limits, Ids::Host).unwrap();
        times[0].push(begin.elapsed());
        let begin = Instant::now();
        let cgroup = asked.create().unwrap();
        times[1].push(begin.elapsed());
        let mut child = waiting("idle", &[]);
        let begin = Instant::now();
        cgroup.join(pid(&child)).unwrap();
        times[2].push(begin.elapsed());
        let begin = Instant::now();
        std::hint::black_box(cgroup.stats());
        times[3].push(begin.elapsed());
        child.kill().unwrap();
        child.wait().unwrap();
        let begin = Instant::now();
        cgroup.remove().unwrap();
        times[4].push(begin.elapsed());
    }
    for (what, times) in ["plan", "create", "join", "stats", "remove"].iter().zip(&mut times) {
        times.sort();
        eprintln!("{what}: median {:?}, worst {:?}", times[20], times[39]);
    }
}
