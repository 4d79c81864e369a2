//! The parsers on the texts of real hosts.

use super::*;

fn names(hierarchy: &Hierarchy) -> String {
    hierarchy.controllers.join(",")
}

fn host(mountinfo: &str, memberships: &str, v2: &str) -> Host {
    let controllers = v2.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    Host { hierarchies: hierarchies(mountinfo.as_bytes(), memberships.as_bytes(), |_| controllers.clone()) }
}

#[test]
fn systemd_pure() {
    let host = host(
        "24 31 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
         35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1a:b.scope\n",
        "cpuset cpu io memory hugetlb pids rdma misc",
    );
    assert_eq!(host.layout(), Layout::Pure);
    let own = host.v2().unwrap().own.clone().unwrap();
    let base = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice";
    assert_eq!(own, Path::new(base).join("run-r1a:b.scope"));
    let ancestry = host.v2().unwrap().ancestry().unwrap();
    assert_eq!((ancestry.len(), ancestry.last().unwrap().as_path()), (6, Path::new("/sys/fs/cgroup")));
    assert_eq!(host.home("pids").unwrap().version, Version::V2);
}

#[test]
fn systemd_hybrid() {
    let host = host(
        "33 24 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
         34 33 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
         35 33 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
         38 33 0:34 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct\n\
         39 33 0:35 / /sys/fs/cgroup/pids rw shared:16 - cgroup cgroup rw,pids\n\
         40 33 0:36 / /sys/fs/cgroup/memory rw shared:17 - cgroup cgroup rw,memory\n",
        "7:cpu,cpuacct:/user.slice\n5:pids:/user.slice/user-1000.slice/session-2.scope\n\
         4:memory:/user.slice\n1:name=systemd:/user.slice/user-1000.slice\n0::/user.slice/user-1000.slice/session-2.scope\n",
        "",
    );
    assert_eq!(host.layout(), Layout::BareHybrid);
    assert_eq!(names(host.v1("cpu").unwrap()), "cpu,cpuacct");
    assert_eq!(host.v1("cpuacct"), host.v1("cpu"));
    assert_eq!(
        host.v1("cpu").unwrap().own.as_deref(),
        Ok(Path::new("/sys/fs/cgroup/cpu,cpuacct/user.slice"))
    );
    assert_eq!(host.hierarchies.len(), 4, "name=systemd is no hierarchy for limits");
    assert_eq!(host.home("memory").unwrap().version, Version::V1);
}

#[test]
fn hybrid_that_shares_controllers_out() {
    let host = host(
        "34 33 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         40 33 0:36 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        "4:memory:/\n0::/\n",
        "cpu pids",
    );
    assert_eq!(host.layout(), Layout::Hybrid);
    assert_eq!(host.home("memory").unwrap().version, Version::V1);
    assert_eq!(host.home("cpu").unwrap().version, Version::V2);
    assert!(host.home("cpuset").is_none());
}

#[test]
fn plain_v1() {
    let host = host(
        "31 24 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
         32 24 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n",
        "2:cpuset:/\n1:cpu:/\n",
        "",
    );
    assert_eq!(host.layout(), Layout::V1);
    // `cpu` must not be taken for a part of the word `cpuset`.
    assert_eq!(host.v1("cpu").unwrap().mount_point, Path::new("/sys/fs/cgroup/cpu"));
}

#[test]
fn docker_v1_shows_a_part_of_the_hierarchy() {
    let id = "/docker/3f8a";
    let host = host(
        &format!("1150 1149 0:36 {id} /sys/fs/cgroup/memory ro,nosuid master:17 - cgroup cgroup rw,memory\n"),
        &format!("4:memory:{id}/inside\n"),
        "",
    );
    let own = host.v1("memory").unwrap().own.clone();
    assert_eq!(own.as_deref(), Ok(Path::new("/sys/fs/cgroup/memory/inside")));
}

#[test]
fn docker_v2_has_a_cgroup_namespace() {
    let host = host(
        "620 619 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        "0::/\n",
        "memory pids",
    );
    assert_eq!(host.v2().unwrap().own.as_deref(), Ok(Path::new("/sys/fs/cgroup")));
}

#[test]
fn mount_from_outside_the_namespace() {
    let mount = |root: &str| Mount {
        version: Version::V2,
        root: PathBuf::from(root),
        point: PathBuf::from("/c"),
        options: vec![],
    };
    assert!(
        locate(&mount("/../.."), Path::new("/"))
            .unwrap_err()
            .contains("above the root of our cgroup namespace")
    );
    assert_eq!(locate(&mount("/../.."), Path::new("/../../a/b")).as_deref(), Ok(Path::new("/c/a/b")));
    assert_eq!(locate(&mount("/../a"), Path::new("/../a/b")).as_deref(), Ok(Path::new("/c/b")));
    assert!(locate(&mount("/"), Path::new("/../x")).unwrap_err().contains("outside of that"));
    // Whole names are compared, not letters.
    assert!(locate(&mount("/ab"), Path::new("/abc")).is_err());
    assert!(locate(&mount("/"), Path::new("/x (deleted)")).unwrap_err().contains("removed"));
}

#[test]
fn escapes_and_hidden_mounts() {
    let text = b"30 24 0:30 /a\\040b /mnt/c\\134d\\040\\012 rw - cgroup2 cgroup2 rw\n\
        31 24 0:31 / /over rw - cgroup2 cgroup2 rw\n\
        32 24 0:32 / /over rw shared:1 master:2 - tmpfs tmpfs rw\nbroken line\n";
    let mounts = parse_mounts(text);
    assert_eq!(mounts.len(), 1);
    assert_eq!(
        (mounts[0].root.as_path(), mounts[0].point.as_path()),
        (Path::new("/a b"), Path::new("/mnt/c\\d \n"))
    );
}

#[test]
fn nothing_mounted() {
    assert_eq!(host("", "0::/\n", "").layout(), Layout::Unmounted);
    assert_eq!(host("", "", "").layout(), Layout::Unmounted);
}

#[test]
fn this_host_places_us_where_we_are() {
    for hierarchy in Host::read().hierarchies {
        let Ok(own) = &hierarchy.own else { continue };
        let pids = files::pids(own);
        assert!(pids.contains(&(std::process::id() as i32)), "{} lacks us: {pids:?}", own.display());
    }
}
