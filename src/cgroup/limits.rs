//! What a caller may ask for, checked before anything exists.
//!
//! Pure data and pure functions; runs in the calling process.

use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// The period of the CPU bandwidth limit in microseconds: the kernel's default and docker's.
pub(super) const CPU_PERIOD_US: u32 = 100_000;
/// The least memory limit: below it not even a static program gets through exec.
pub(super) const MEMORY_MIN: u64 = 512 * 1024;
/// The greatest: beyond it the kernel stores "no limit".
const MEMORY_MAX: u64 = i64::MAX as u64 - 0xffff;
/// `PID_MAX_LIMIT` of the kernel.
const PIDS_MAX: u64 = 4_194_304;
/// The greatest `NR_CPUS` a kernel is built with.
const CPUS_MAX: u32 = 8192;

/// Resource limits of one container. `None` leaves a resource alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Memory in bytes: anonymous, page cache, tmpfs and kernel memory together.
    pub memory: Option<u64>,
    /// Swap in bytes, in addition to `memory`; 0 forbids swapping.
    pub swap: Option<u64>,
    /// Processes and threads at one time, PID 1 of the container included.
    pub pids: Option<u64>,
    /// CPUs' worth of running time: 1.5 is 150 ms in each 100 ms.
    pub cpus: Option<f64>,
    /// Share of the CPU under contention, 1 to 10000, where 100 is everybody's default (version 2's scale).
    pub cpu_weight: Option<u32>,
    /// CPUs it may run on, in the kernel's list format: `0-3,6`.
    pub cpuset: Option<String>,
    /// Go on where a limit cannot be made to bind, and say so in `unbound`.
    pub best_effort: bool,
}

/// A limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `Limits::memory`.
    Memory,
    /// `Limits::swap`.
    Swap,
    /// `Limits::pids`.
    Pids,
    /// `Limits::cpus`.
    Cpus,
    /// `Limits::cpu_weight`.
    CpuWeight,
    /// `Limits::cpuset`.
    Cpuset,
}

impl Resource {
    /// The argument's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Swap => "swap",
            Self::Pids => "pids",
            Self::Cpus => "cpus",
            Self::CpuWeight => "cpu_weight",
            Self::Cpuset => "cpuset",
        }
    }

    /// The controller that it takes.
    pub fn controller(self) -> &'static str {
        match self {
            Self::Memory | Self::Swap => "memory",
            Self::Pids => "pids",
            Self::Cpus | Self::CpuWeight => "cpu",
            Self::Cpuset => "cpuset",
        }
    }
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.resources().is_empty()
    }

    /// The resources that are limited.
    pub fn resources(&self) -> Vec<Resource> {
        let asked = [
            (Resource::Memory, self.memory.is_some()),
            (Resource::Swap, self.swap.is_some()),
            (Resource::Pids, self.pids.is_some()),
            (Resource::Cpus, self.cpus.is_some()),
            (Resource::CpuWeight, self.cpu_weight.is_some()),
            (Resource::Cpuset, self.cpuset.is_some()),
        ];
        asked.into_iter().filter_map(|(resource, is)| is.then_some(resource)).collect()
    }

    /// The CPU quota of a period of [`CPU_PERIOD_US`], in microseconds.
    pub fn quota_us(&self) -> Option<u64> {
        self.cpus.map(|cpus| (cpus * f64::from(CPU_PERIOD_US)).round() as u64)
    }

    /// Refuses values that can never work.
    pub fn validate(&self) -> Result<()> {
        if let Some(memory) = self.memory.filter(|memory| !(MEMORY_MIN..=MEMORY_MAX).contains(memory)) {
            return Err(Error::spec(format!(
                "memory={memory}: a memory limit is between {MEMORY_MIN} bytes (512 KiB) and {MEMORY_MAX} bytes"
            )));
        }
        if let Some(swap) = self.swap.filter(|swap| *swap > MEMORY_MAX - self.memory.unwrap_or(0)) {
            return Err(Error::spec(format!(
                "swap={swap}: memory and swap together are {MEMORY_MAX} bytes at most"
            )));
        }
        if let Some(pids) = self.pids.filter(|pids| !(1..=PIDS_MAX).contains(pids)) {
            return Err(Error::spec(format!(
                "pids={pids}: a pids limit is between 1 (PID 1 alone) and {PIDS_MAX}"
            )));
        }
        // Written so that NaN, too, fails.
        if let Some(cpus) = self.cpus.filter(|cpus| !(*cpus >= 0.01 && *cpus <= f64::from(CPUS_MAX))) {
            return Err(Error::spec(format!(
                "cpus={cpus}: a CPU limit is between 0.01 (1 ms in each 100 ms) and {CPUS_MAX}"
            )));
        }
        if let Some(weight) = self.cpu_weight.filter(|weight| !(1..=10_000).contains(weight)) {
            return Err(Error::spec(format!("cpu_weight={weight}: a weight is between 1 and 10000")));
        }
        if let Some(list) = &self.cpuset {
            parse_cpus(list)
                .map_err(|why| Error::spec(format!("cpuset={list:?}: {why}; write CPUs as in 0-3,6")))?;
        }
        Ok(())
    }
}

/// Parses the kernel's list format (cpuset(7)), without its rarely used strides.
pub(super) fn parse_cpus(list: &str) -> Result<BTreeSet<u32>, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value: Option<u32> = if digits { text.parse().ok() } else { None };
        value.filter(|cpu| *cpu < CPUS_MAX).ok_or_else(|| format!("{text:?} is not the number of a CPU"))
    };
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{part:?} runs backwards"));
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// A weight on version 2's scale as version 1's `cpu.shares`: the kernel itself takes 100 for 1024.
pub(super) fn shares(weight: u32) -> u64 {
    ((u64::from(weight) * 1024 + 50) / 100).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(limits: &Limits) -> String {
        limits.validate().unwrap_err().to_string()
    }

    #[test]
    fn refuses_what_can_never_work() {
        for memory in [0, 1, MEMORY_MIN - 1, u64::MAX] {
            assert!(message(&Limits { memory: Some(memory), ..Limits::default() }).starts_with("memory="));
        }
        for pids in [0, PIDS_MAX + 1] {
            assert!(message(&Limits { pids: Some(pids), ..Limits::default() }).starts_with("pids="));
        }
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.001, 1e9] {
            assert!(message(&Limits { cpus: Some(cpus), ..Limits::default() }).starts_with("cpus="));
        }
        for weight in [0, 10_001] {
            assert!(
                message(&Limits { cpu_weight: Some(weight), ..Limits::default() }).starts_with("cpu_weight=")
            );
        }
        for list in ["", "a", "3-1", "0,", "-1", "0-", "99999", "0\n1", "+1"] {
            let limits = Limits { cpuset: Some(list.to_owned()), ..Limits::default() };
            assert!(message(&limits).starts_with("cpuset="), "{list}");
        }
        assert!(message(&Limits { swap: Some(u64::MAX), ..Limits::default() }).starts_with("swap="));
    }

    #[test]
    fn accepts_and_converts() {
        let limits = Limits {
            memory: Some(MEMORY_MIN),
            swap: Some(0),
            pids: Some(1),
            cpus: Some(1.5),
            cpu_weight: Some(100),
            cpuset: Some("0-1,3".to_owned()),
            best_effort: false,
        };
        limits.validate().unwrap();
        assert_eq!(limits.quota_us(), Some(150_000));
        assert_eq!(limits.resources().len(), 6);
        assert_eq!(parse_cpus("0-1,3").unwrap(), BTreeSet::from([0, 1, 3]));
        assert_eq!([shares(100), shares(1), shares(10_000)], [1024, 10, 102_400]);
        assert!(Limits { best_effort: true, ..Limits::default() }.is_empty());
    }
}
