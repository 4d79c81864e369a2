//! Containers on the real kernel, from Rust alone: what the bindings and Python stand on.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::error::{Errno, Error};
use crate::namespace::{IdMap, Kind, Namespaces};
use crate::security::capabilities::DOCKER_DEFAULT;
use crate::sys::pidfd::never;

/// A directory with a static busybox, removed at the end.
struct Image(PathBuf);

impl Image {
    fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("r2d2-test-{}-{n}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        let busybox = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.exists())
        });
        fs::copy(busybox.expect("busybox in PATH (Debian: busybox-static)"), dir.join("bin/busybox"))
            .unwrap();
        for applet in ["sh", "true", "cat", "echo", "id", "hostname", "sleep", "ls", "ps"] {
            std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
        }
        Self(dir)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn spec(image: &Image) -> Spec {
    let namespaces: Namespaces = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Time).collect();
    let root = nix::unistd::Uid::effective().is_root();
    Spec {
        name: "test".into(),
        namespaces,
        idmap: Some(if root { IdMap::identity().unwrap() } else { IdMap::single() }),
        root: Root::Layers(vec![image.0.clone()]),
        upper: Upper::Tmpfs(None),
        readonly: false,
        proc: Proc::Mount,
        system: true,
        masked: true,
        hostname: Some(b"r2d2".to_vec()),
        etc: vec![("hostname".into(), b"r2d2\n".to_vec())],
        mounts: Vec::new(),
        cgroup: crate::cgroup::Plan::default(),
        rlimits: Vec::new(),
        capabilities: DOCKER_DEFAULT.0,
        no_new_privs: true,
        clock_offsets: None,
    }
}

fn command(script: &str) -> Command {
    let c = |s: &str| CString::new(s).unwrap();
    Command {
        candidates: vec![c("/bin/sh")],
        argv: vec![c("sh"), c("-c"), c(script)],
        envp: vec![c("PATH=/bin")],
        ..Command::default()
    }
}

/// Standard descriptors that write to a pipe.
fn piped() -> (OwnedFd, OwnedFd, File) {
    let (reading, writing) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reading, writing, File::open("/dev/null").unwrap())
}

fn output(container: &Container, script: &str) -> (Outcome, String) {
    let (reading, writing, null) = piped();
    let stdio = [null.as_raw_fd(), writing.as_raw_fd(), writing.as_raw_fd()];
    let process = container.exec(&command(script), stdio).unwrap();
    drop(writing);
    let mut text = String::new();
    File::from(reading).read_to_string(&mut text).unwrap();
    (process.wait(Some(Duration::from_secs(10)), &never).unwrap().expect("it ends"), text)
}

fn ended(code: i32) -> impl Fn(Outcome) -> bool {
    move |outcome| matches!(outcome, Outcome::Ended(exit) if exit.code() == code)
}

#[test]
fn one_shot_runs_and_leaves_nothing() {
    let image = Image::new();
    let (reading, writing, null) = piped();
    let mut first = command("echo $$ $(hostname); exit 3");
    first.main = true;
    let stdio = [null.as_raw_fd(), writing.as_raw_fd(), writing.as_raw_fd()];
    let mut process = None;
    let mut ask = |control: BorrowedFd<'_>| {
        process = Some(submit(control, &first, stdio, 1)?);
        Ok(())
    };
    let plan = Plan::container(&spec(&image)).unwrap();
    let container = Container::start(plan, Some(&mut ask), &never).unwrap();
    drop(writing);
    let mut text = String::new();
    File::from(reading).read_to_string(&mut text).unwrap();
    assert_eq!(text, "2 r2d2\n");
    assert!(ended(3)(process.unwrap().wait(None, &never).unwrap().unwrap()));
    assert_eq!(container.wait(None, &never).unwrap().map(|status| status >> 8), Some(3));
    assert!(!PathBuf::from(format!("/proc/{}", container.pid)).exists());
}

#[test]
fn exec_sees_the_same_container_and_its_end_ends_all() {
    let image = Image::new();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    assert_eq!(output(&container, "echo hi > /tmp-file; echo $0").1, "sh\n");
    assert_eq!(output(&container, "cat /tmp-file; id -u").1, "hi\n0\n");
    let (outcome, _) = output(&container, "kill -9 1; exit 7");
    assert!(ended(7)(outcome), "PID 1 must survive a SIGKILL from inside: {outcome:?}");
    let (outcome, _) = output(&container, "kill -9 $$");
    assert!(ended(-9)(outcome), "{outcome:?}");
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let sleeper = container.exec(&command("sleep 1000"), [null.as_raw_fd(); 3]).unwrap();
    container.stop().unwrap();
    assert_eq!(sleeper.wait(Some(Duration::from_secs(5)), &never).unwrap(), Some(Outcome::Lost));
    assert!(matches!(
        container.exec(&command("true"), [null.as_raw_fd(); 3]),
        Err(crate::error::Error::Closed { .. })
    ));
}

#[test]
fn a_directory_of_the_image_can_be_replaced() {
    let image = Image::new();
    fs::create_dir(image.0.join("data")).unwrap();
    fs::write(image.0.join("data/old"), "old").unwrap();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    let (outcome, said) = output(
        &container,
        "busybox rm -r /data && busybox mkdir /data && ls /data && echo new > /data/new && ls /data",
    );
    assert!(ended(0)(outcome), "{said}");
    assert_eq!(said, "new\n");
    assert!(image.0.join("data/old").exists(), "the layer is not the container's to change");
}

#[test]
fn an_upper_layer_on_disk_vanishes_with_the_container() {
    let image = Image::new();
    let disk = std::env::temp_dir().join(format!("r2d2-disk-{}", std::process::id()));
    let mut on_disk = spec(&image);
    on_disk.upper = Upper::Disk(disk.clone());
    let container = Container::start(Plan::container(&on_disk).unwrap(), None, &never).unwrap();
    let script = "d=/deep; for i in $(busybox seq 300); do d=$d/x; done; busybox mkdir -p $d && echo 1 > $d/f && \
                  busybox mkdir /shut && echo 1 > /shut/f && busybox chmod 0 /shut && busybox rm -r /bin/ps && echo made";
    assert_eq!(output(&container, script).1, "made\n");
    assert!(disk.join("upper/shut").exists(), "it is on disk while the container lives");
    container.stop().unwrap();
    assert!(!disk.exists(), "{:?}", fs::read_dir(&disk).map(Iterator::count));
}

#[test]
fn what_fails_beside_a_start_ends_it() {
    let image = Image::new();
    for panics in [false, true] {
        let mut fail = |_: BorrowedFd<'_>| {
            assert!(!panics, "of the test");
            Err(Error::spec("no such program"))
        };
        let plan = Plan::container(&spec(&image)).unwrap();
        let error = Container::start(plan, Some(&mut fail), &never).unwrap_err();
        assert_eq!(error.to_string().contains("panic"), panics, "{error}");
        assert_eq!(error.to_string().contains("no such program"), !panics, "{error}");
    }
}

#[test]
fn a_failed_step_is_named_and_nothing_is_left() {
    let image = Image::new();
    let mut bad = spec(&image);
    bad.mounts.push(Mount {
        kind: MountKind::Bind { source: "/etc/passwd".into(), recursive: false },
        target: "/bin".into(),
        readonly: true,
    });
    let error = Container::start(Plan::container(&bad).unwrap(), None, &never).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("step ") && text.contains("bind /etc/passwd on ROOT/bin: move_mount"), "{text}");
}

#[test]
fn a_program_that_is_not_there_fails_with_its_errno() {
    let image = Image::new();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let mut missing = command("");
    missing.confirm = true;
    missing.candidates = vec![c"/bin/nothing".into(), c"/usr/bin/nothing".into()];
    let process = container.exec(&missing, [null.as_raw_fd(); 3]).unwrap();
    let outcome = process.wait_started(&never).unwrap();
    assert_eq!(outcome, Some(Outcome::Failed(Failure { stage: "execve", errno: Errno::ENOENT })));
    let mut there = command("exit 0");
    there.confirm = true;
    let process = container.exec(&there, [null.as_raw_fd(); 3]).unwrap();
    // On a busy machine it may have ended by the time we look.
    let outcome = process.wait_started(&never).unwrap();
    assert!(!matches!(outcome, Some(Outcome::Failed(_) | Outcome::Lost)));
    // The pidfd is given back at the end.
    assert!(process.pidfd().is_some() != outcome.is_some() && process.inner_pid().is_some());
    assert!(ended(0)(process.wait(None, &never).unwrap().unwrap()));
}

#[test]
fn a_large_environment_travels_whole() {
    let image = Image::new();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    let (reading, writing, null) = piped();
    let mut large = command("echo ${#BIG}");
    large.envp.push(CString::new(format!("BIG={}", "x".repeat(100_000))).unwrap());
    let process =
        container.exec(&large, [null.as_raw_fd(), writing.as_raw_fd(), writing.as_raw_fd()]).unwrap();
    drop(writing);
    let mut text = String::new();
    File::from(reading).read_to_string(&mut text).unwrap();
    assert_eq!(text, "100000\n");
    assert!(ended(0)(process.wait(None, &never).unwrap().unwrap()));
}

#[test]
fn a_tree_is_killed_with_its_daemons() {
    let image = Image::new();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let mut tree = command("(busybox setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000");
    tree.tree = true;
    let process = container.exec(&tree, [null.as_raw_fd(); 3]).unwrap();
    let count = || {
        output(&container, "ls /proc 2>/dev/null | busybox grep -c '^[0-9]'").1.trim().parse::<i32>().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while count() < 8 {
        assert!(Instant::now() < deadline, "the tree never grew: {}", count());
    }
    container.signal(&process, libc::SIGKILL, true).unwrap();
    assert!(ended(-9)(process.wait(Some(Duration::from_secs(5)), &never).unwrap().expect("it ends")));
    let deadline = Instant::now() + Duration::from_secs(5);
    while count() > 5 {
        assert!(Instant::now() < deadline, "left: {}", output(&container, "ps").1);
    }
}

#[test]
fn the_steps_price() {
    // Not a timed test: prints what each step took, for whoever looks (`cargo test price -- --nocapture`).
    let image = Image::new();
    let container = Container::start(Plan::container(&spec(&image)).unwrap(), None, &never).unwrap();
    let mut out = std::io::stdout();
    for (i, took) in container.trace.took.iter().enumerate() {
        writeln!(out, "{:>8} ns  {} [{}]", took, container.plan.label(i), container.trace.skipped[i])
            .unwrap();
    }
    assert!(container.trace.took.iter().all(|took| *took > 0));
}

/// A plan of nothing that this machine decides.
fn fixed() -> Spec {
    Spec {
        name: "fixed".into(),
        namespaces: Kind::ALL.into_iter().filter(|kind| *kind != Kind::Time).collect(),
        idmap: Some(IdMap {
            uids: vec![crate::namespace::Range { inside: 0, outside: 1000, count: 1 }],
            gids: vec![crate::namespace::Range { inside: 0, outside: 1000, count: 1 }],
            deny_setgroups: true,
            by_helper: false,
        }),
        root: Root::Empty,
        upper: Upper::Tmpfs(Some(4096)),
        readonly: true,
        proc: Proc::Mount,
        system: false,
        masked: false,
        hostname: Some(b"r2d2".to_vec()),
        etc: Vec::new(),
        mounts: vec![Mount {
            kind: MountKind::Tmpfs { size: Some(1 << 20), keep: Vec::new() },
            target: "/a b".into(),
            readonly: true,
        }],
        cgroup: crate::cgroup::Plan::default(),
        rlimits: vec![(7, 64)],
        capabilities: 0b11,
        no_new_privs: true,
        clock_offsets: None,
    }
}

#[test]
fn a_tmpfs_covers_what_it_keeps_only_when_that_is_in_it() {
    let mut spec = fixed();
    spec.namespaces = spec.namespaces.without(Kind::Net);
    spec.root = Root::Shared;
    spec.proc = Proc::Absent;
    let keep = vec!["/usr/bin".into()];
    spec.mounts[0].kind = MountKind::Tmpfs { size: None, keep };
    let keeping = |target: &str| {
        let mut spec = spec.clone();
        spec.mounts[0].target = target.into();
        Plan::container(&spec)
    };
    let titles: Vec<_> = keeping("/usr").unwrap().steps.iter().map(|step| step.op.title()).collect();
    let expected = "\
mount tmpfs on /mnt
make directory /mnt/bin
bind /usr/bin on /mnt/bin
move the mount of /mnt to /usr";
    assert!(titles.join("\n").contains(expected), "{titles:#?}");
    let error = keeping("/etc").unwrap_err().to_string();
    assert!(error.contains("/usr/bin: kept in a tmpfs on /etc, but not below that"), "{error}");
    spec.root = Root::Empty;
    let error = Plan::container(&spec).unwrap_err().to_string();
    assert!(error.contains("mount target /a b: nothing of the image can be kept in a tmpfs"), "{error}");
}

#[test]
fn a_fixed_spec_gives_this_plan() {
    let plan = Plan::container(&fixed()).unwrap();
    let titles: Vec<_> = plan.steps.iter().map(|step| step.op.title()).collect();
    let expected = "\
clone into new namespaces (user mount pid uts ipc net)
write the id maps (uid 0 is 1000 ×1; gid 0 is 1000 ×1)
unshare the cgroup namespace
make all mounts private
mount tmpfs on /mnt
make directory /mnt/root
make directory /mnt/base
make directory /mnt/upper
make directory /mnt/work
bind /mnt/root onto itself
make directory /mnt/root/proc
take /mnt/root as the new root
mount proc on ROOT/proc
make directory ROOT/a b
mount tmpfs on ROOT/a b
remount ROOT/
pivot_root into the new root
set the host name to r2d2
bring up lo
join a new session keyring
limit nofile to 64
cut the capability bounding set
set no_new_privs
start PID 1";
    assert_eq!(titles.join("\n"), expected);
}

#[test]
fn a_fixed_plan_gives_these_commands() {
    let plan = Plan::container(&fixed()).unwrap();
    let shell = plan.steps.iter().map(|step| String::from_utf8(step.op.shell("/mnt/root".as_ref())).unwrap());
    let expected = "\
unshare --user --mount --pid --uts --ipc --net --fork --kill-child
echo deny > /proc/$pid/setgroups && printf '%s\\n' '0 1000 1' > /proc/$pid/uid_map && printf '%s\\n' '0 1000 1' > /proc/$pid/gid_map
unshare --cgroup
mount --make-rprivate /
mount -t tmpfs -o nosuid,nodev,mode=0755,size=4096 r2d2 /mnt
mkdir -p -m 0755 /mnt/root
mkdir -p -m 0755 /mnt/base
mkdir -p -m 0755 /mnt/upper
mkdir -p -m 0755 /mnt/work
mount --bind /mnt/root /mnt/root && mount -o remount,bind,nodev /mnt/root
mkdir -p -m 0755 /mnt/root/proc
# a descriptor of the new root; a script has its path
mount -t proc -o nosuid,nodev,noexec proc /mnt/root/proc
mkdir -p -m 0755 '/mnt/root/a b'
mount -t tmpfs -o nosuid,nodev,mode=1777,size=1048576 tmpfs '/mnt/root/a b' && mount -o remount,bind,ro '/mnt/root/a b'
mount -o remount,bind,ro /mnt/root/
cd /mnt/root && pivot_root . . && umount --lazy .
hostname r2d2
ip link set lo up
# keyctl(1) session would join a new session keyring; it is not part of util-linux
prlimit --pid $$ --nofile=64:64
setpriv --bounding-set=-all,+chown,+dac_override
setpriv --no-new-privs
# PID 1 is a small static program in a sealed memfd, all other descriptors closed; in a script sh takes its place";
    assert_eq!(shell.collect::<Vec<_>>().join("\n"), expected);
}
