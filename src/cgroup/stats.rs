//! What a container uses, as its cgroups count it.
//!
//! Every field is its own `Option`: which files exist depends on version, kernel and on what could be created.
//! Counters include everything that ever ran in the directories; time is in nanoseconds whatever unit the file
//! has (version 1 counts user and system time in clock ticks of 10 ms). Runs in the calling process.

use super::discover::Version;
use super::files;
use super::live::Cgroup;
use super::plan::Place;
use super::rlimits::RlimitResource;
use nix::unistd::{SysconfVar, sysconf};

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    #[default]
    None,
    /// cgroup v1.
    V1,
    /// cgroup v2.
    V2,
    /// An rlimit.
    Rlimit,
}

impl Source {
    /// `none`, `v1`, `v2`, `rlimit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Rlimit => "rlimit",
        }
    }
}

/// Where each group of figures comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    /// `memory_bytes`, `memory_peak`, `memory_limit`, `oom_kills`.
    pub memory: Source,
    /// `pids`, `pids_peak`.
    pub pids: Source,
    /// `pids_limit`.
    pub pids_limit: Source,
    /// `cpu_usage_ns`, `cpu_user_ns`, `cpu_system_ns`.
    pub cpu: Source,
    /// `throttled_ns`, `nr_throttled`.
    pub throttle: Source,
}

/// Figures of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory charged now, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most that was charged, in bytes (version 2: Linux 5.19).
    pub memory_peak: Option<u64>,
    /// The limit in bytes; none if unlimited.
    pub memory_limit: Option<u64>,
    /// Processes ended for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// The most there were (Linux 6.1 or newer).
    pub pids_peak: Option<u64>,
    /// The limit; none if unlimited.
    pub pids_limit: Option<u64>,
    /// CPU time used, in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Of it in user mode.
    pub cpu_user_ns: Option<u64>,
    /// Of it in the kernel.
    pub cpu_system_ns: Option<u64>,
    /// Time spent waiting for the next period of the CPU limit, summed over CPUs.
    pub throttled_ns: Option<u64>,
    /// Periods in which the limit was reached.
    pub nr_throttled: Option<u64>,
    /// Where they come from.
    pub sources: Sources,
}

impl Cgroup {
    /// Reads the figures. A container that is gone has none.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for place in &self.places {
            match place.version {
                Version::V1 => add_v1(&mut stats, place),
                Version::V2 => add_v2(&mut stats, place),
            }
        }
        let nproc = self.rlimits.iter().find(|rlimit| rlimit.resource == RlimitResource::RLIMIT_NPROC);
        if let Some(rlimit) = nproc.filter(|_| stats.pids_limit.is_none()) {
            stats.pids_limit = Some(rlimit.value);
            stats.sources.pids_limit = Source::Rlimit;
        }
        stats
    }
}

fn add_v1(stats: &mut Stats, place: &Place) {
    let number = |file: &str| files::number(&place.outer.join(file));
    if place.has("memory") {
        stats.memory_bytes = number("memory.usage_in_bytes");
        stats.memory_peak = number("memory.max_usage_in_bytes");
        stats.memory_limit = number("memory.limit_in_bytes").filter(|limit| *limit < UNLIMITED_V1);
        // Version 1 counts a kill only where the victim was.
        let kills =
            [&place.outer, &place.inner].map(|at| files::keyed(&at.join("memory.oom_control"), "oom_kill"));
        stats.oom_kills = kills.into_iter().flatten().reduce(|one, other| one + other);
        stats.sources.memory = source(stats.memory_bytes, Source::V1);
    }
    if place.has("pids") {
        add_pids(stats, place, Source::V1);
    }
    if place.has("cpuacct") && stats.sources.cpu == Source::None {
        let tick = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).unsigned_abs();
        let ticks = |key| {
            files::keyed(&place.outer.join("cpuacct.stat"), key).map(|ticks| ticks * 1_000_000_000 / tick)
        };
        stats.cpu_usage_ns = number("cpuacct.usage");
        stats.cpu_user_ns = number("cpuacct.usage_user").or_else(|| ticks("user"));
        stats.cpu_system_ns = number("cpuacct.usage_sys").or_else(|| ticks("system"));
        stats.sources.cpu = source(stats.cpu_usage_ns, Source::V1);
    }
    if place.has("cpu") {
        let file = place.outer.join("cpu.stat");
        stats.throttled_ns = files::keyed(&file, "throttled_time");
        stats.nr_throttled = files::keyed(&file, "nr_throttled");
        stats.sources.throttle = source(stats.nr_throttled, Source::V1);
    }
}

/// Version 1 writes "no limit" as the greatest multiple of a page.
const UNLIMITED_V1: u64 = i64::MAX as u64 - 0xffff;

fn add_v2(stats: &mut Stats, place: &Place) {
    let number = |file: &str| files::number(&place.outer.join(file));
    let nanoseconds = |key| files::keyed(&place.outer.join("cpu.stat"), key).map(|us| us * 1000);
    if place.has("memory") {
        stats.memory_bytes = number("memory.current");
        stats.memory_peak = number("memory.peak");
        stats.memory_limit = number("memory.max");
        stats.oom_kills = files::keyed(&place.outer.join("memory.events"), "oom_kill");
        stats.sources.memory = source(stats.memory_bytes, Source::V2);
    }
    if place.has("pids") {
        add_pids(stats, place, Source::V2);
    }
    // CPU time is counted in every directory of version 2, with or without the controller.
    if let Some(usage) = nanoseconds("usage_usec") {
        stats.cpu_usage_ns = Some(usage);
        stats.cpu_user_ns = nanoseconds("user_usec");
        stats.cpu_system_ns = nanoseconds("system_usec");
        stats.sources.cpu = Source::V2;
    }
    if place.has("cpu") {
        stats.throttled_ns = nanoseconds("throttled_usec");
        stats.nr_throttled = files::keyed(&place.outer.join("cpu.stat"), "nr_throttled");
        stats.sources.throttle = source(stats.nr_throttled, Source::V2);
    }
}

fn add_pids(stats: &mut Stats, place: &Place, from: Source) {
    let number = |file: &str| files::number(&place.outer.join(file));
    stats.pids = number("pids.current");
    stats.pids_peak = number("pids.peak");
    stats.pids_limit = number("pids.max");
    stats.sources.pids = source(stats.pids, from);
    stats.sources.pids_limit = source(stats.pids_limit, from);
}

fn source(value: Option<u64>, from: Source) -> Source {
    if value.is_some() { from } else { Source::None }
}
