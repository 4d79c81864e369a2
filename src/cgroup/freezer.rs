//! Stopping and resuming a container as a whole.
//!
//! Version 2 freezes through `cgroup.freeze` and tells it in `cgroup.events`, on which poll(2) can wait. Version 1
//! has a freezer hierarchy: a write of `FROZEN` may get stuck at `FREEZING` while a process is being born or
//! traced, so it is repeated. A container without limits has no cgroup: [`super::plan_freezer`] makes one later
//! and [`Cgroup::adopt`] moves its processes into it. An ordinary user who has been delegated nothing can make
//! none, and no other means stops processes so that they cannot see or undo it; that is an `Unsupported` error.
//! Runs in the calling process.

use super::discover::{Hierarchy, Host, Version};
use super::files;
use super::live::{Cgroup, LOOK, PATIENCE};
use super::plan::Place;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Cgroup {
    /// Stops every process of the container and waits until all stand still.
    ///
    /// Errors: `Unsupported` without a freezer; `ETIMEDOUT` if they do not come to a stand within
    /// [`PATIENCE`], and then they run again.
    pub fn freeze(&self) -> Result<()> {
        let stopped = match self.freezer()? {
            place if place.version == Version::V2 => freeze_v2(place, true),
            place => self.freeze_v1(place),
        };
        if stopped.is_err() {
            self.thaw().ok();
        }
        stopped
    }

    /// Lets them go on. Thawing what is not frozen is no error.
    pub fn thaw(&self) -> Result<()> {
        let place = self.freezer()?;
        if place.version == Version::V2 {
            return freeze_v2(place, false);
        }
        files::write("thaw cgroup", &place.outer.join("freezer.state"), "THAWED")
    }

    /// Whether the container stands still.
    pub fn is_frozen(&self) -> Result<bool> {
        let place = self.freezer()?;
        if place.version == Version::V2 {
            return Ok(files::keyed(&place.outer.join("cgroup.events"), "frozen") == Some(1));
        }
        Ok(files::read("read cgroup", &place.outer.join("freezer.state"))? == "FROZEN")
    }

    /// Moves every process of the pid namespace of `init` into our directories, until a look finds no other.
    ///
    /// `init` is the pid of the container's PID 1 as the caller sees it. Returns how many were moved. Only for
    /// cgroups without limits: what a process used before it is moved stays charged where it was. On version 1 a
    /// process of another user (a container with many ids) can be moved by root only (`EACCES`). On an error those
    /// that were moved are given back to the caller's own cgroup, so that `remove()` then ends nobody.
    pub fn adopt(&self, init: i32) -> Result<usize> {
        let moved = self.gather(init);
        if moved.is_err() {
            let host = Host::read();
            self.places.iter().for_each(|place| give_back(&host, place));
        }
        moved
    }

    fn gather(&self, init: i32) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let mut moved = 0;
        loop {
            let members = members(init);
            if !members.contains(&init) {
                return Err(Error::step(
                    "adopt processes",
                    "read",
                    Errno::ESRCH,
                    Some(format!("/proc/{init}")),
                ));
            }
            // Each directory on its own: a child born between two joins is in the first one only.
            let mut strangers = false;
            for place in &self.places {
                let inside = Self::pids_of(place);
                for pid in members.iter().filter(|pid| !inside.contains(pid)) {
                    let file = place.inner.join("cgroup.procs");
                    match files::write("adopt processes", &file, &pid.to_string()) {
                        Ok(()) => moved += 1,
                        Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                        Err(error) => return Err(error),
                    }
                    strangers = true;
                }
            }
            if !strangers {
                return Ok(moved);
            }
            if Instant::now() > deadline {
                return Err(Error::step(
                    "adopt processes",
                    "write",
                    Errno::ETIMEDOUT,
                    Some(format!("/proc/{init}")),
                ));
            }
        }
    }

    fn freezer(&self) -> Result<&Place> {
        let v2 = self.places.iter().find(|place| place.outer.join("cgroup.freeze").exists());
        let found = v2.or_else(|| self.places.iter().find(|place| place.has("freezer")));
        found.ok_or_else(|| Error::Unsupported {
            message: "the container is in no cgroup that can be frozen".to_owned(),
            errno: Errno::EOPNOTSUPP,
        })
    }

    fn freeze_v1(&self, place: &Place) -> Result<()> {
        let file = place.outer.join("freezer.state");
        let deadline = Instant::now() + PATIENCE;
        loop {
            files::write("freeze cgroup", &file, "FROZEN")?;
            if self.is_frozen()? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::step("freeze cgroup", "write", Errno::ETIMEDOUT, Some(file)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Writes the state to a freezer of version 1, if there is one.
    pub(super) fn request_v1(&self, state: &str) {
        if let Some(place) = self.v1_with("freezer") {
            files::write("freeze cgroup", &place.outer.join("freezer.state"), state).ok();
        }
    }
}

/// Moves every process of `place` to where a container without it would be.
fn give_back(host: &Host, place: &Place) {
    let same = |own: &&Hierarchy| {
        own.version == place.version && place.controllers.iter().all(|name| own.controllers.contains(name))
    };
    let own = host.hierarchies.iter().find(same).and_then(|hierarchy| hierarchy.own.clone().ok());
    let homes = [own, place.outer.parent().map(Path::to_path_buf)];
    for pid in Cgroup::pids_of(place) {
        // Our own cgroup may not be writable; then the directory is below one that is.
        let _ = homes.iter().flatten().any(|home| {
            files::write("give processes back", &home.join("cgroup.procs"), &pid.to_string()).is_ok()
        });
    }
}

/// Writes `cgroup.freeze` and waits for the event.
fn freeze_v2(place: &Place, frozen: bool) -> Result<()> {
    let (step, value) = if frozen { ("freeze cgroup", 1) } else { ("thaw cgroup", 0) };
    let path = place.outer.join("cgroup.events");
    let failed = |syscall: &'static str| {
        let path = path.clone();
        move |error: std::io::Error| Error::io(step, syscall, &error, Some(path))
    };
    let mut events = File::open(&path).map_err(failed("open"))?;
    files::write(step, &place.outer.join("cgroup.freeze"), &value.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    let line = format!("frozen {value}");
    loop {
        let mut text = String::new();
        events.rewind().map_err(failed("lseek"))?;
        events.read_to_string(&mut text).map_err(failed("read"))?;
        if text.lines().any(|own| own == line) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::step(step, "poll", Errno::ETIMEDOUT, Some(path)));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::step(step, "poll", errno, Some(path))),
        }
    }
}

/// The pids of the pid namespace of `init` and of those below it: its descendants (whoever loses a parent in
/// there becomes its child), and whoever entered the namespace from outside.
fn members(init: i32) -> Vec<i32> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let home =
        namespace(init).filter(|home| Some(home) != std::fs::read_link("/proc/self/ns/pid").ok().as_ref());
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: HashMap<i32, i32> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let descends = |pid: i32| {
        let mut at = pid;
        // Pids may be used again while we look: a chain is not longer than the table.
        for _ in 0..=parents.len() {
            if at == init {
                return true;
            }
            match parents.get(&at) {
                Some(next) => at = *next,
                None => return false,
            }
        }
        false
    };
    let entered = |pid: i32| home.is_some() && namespace(pid) == home;
    let mut members: Vec<i32> =
        parents.keys().copied().filter(|pid| descends(*pid) || entered(*pid)).collect();
    members.sort_unstable();
    members
}

/// The parent of a process that is not a zombie.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}
