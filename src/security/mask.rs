//! Paths of `/proc` and `/sys` that a container does not get to see, or not to write. Pure data; a path that the
//! running kernel does not have is skipped by whoever applies the lists.
//!
//! In a user namespace most of these are guarded by the host's ids already; the lists matter for a container of
//! real root, and keep the machine's particulars (temperatures, timers, keys) from the others.
//!
//! Sources: the OCI runtimes' default specification (moby `daemon/pkg/oci/defaults.go`, containerd `oci/spec.go`,
//! podman `pkg/specgen/generate`), kernel documentation for what came later.

/// Hidden: a file by `/dev/null` bound over it, a directory by an empty read-only tmpfs.
pub const MASKED: &[&str] = &[
    // moby, containerd and podman.
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    // Podman: the policy of the host, and its disks by number.
    "/sys/fs/selinux",
    "/sys/dev/block",
    // Not theirs. Addresses of kernel symbols and loaded modules (proc_modules(5)): a map for exploits.
    "/proc/kallsyms",
    "/proc/modules",
    // Physical memory's layout and every allocation site (Documentation/mm/{page_owner,allocation-profiling}.rst).
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/allocinfo",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    // Keys of other users (proc_key-users(5)), the kernel's log (proc_kmsg(5)), the host's boot parameters.
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/bootconfig",
    // Files of the kernel's debuggers, should the host's /sys be shared.
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
    "/sys/kernel/security",
    "/sys/kernel/vmcoreinfo",
    "/sys/fs/pstore",
    "/sys/fs/bpf",
];

/// Those of the masked paths that sysfs has only as mount points: to be hidden where the host's /sys is shared.
pub const MOUNT_POINTS: &[&str] = &[
    "/sys/fs/selinux",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
    "/sys/kernel/security",
    "/sys/fs/pstore",
    "/sys/fs/bpf",
];

/// `/sys/devices/system/cpu/cpuN/thermal_throttle` for each CPU is hidden too (moby, since 2024: it tells what
/// other tenants do). The first part and the last of such a path.
pub const MASKED_PER_CPU: (&str, &str) = ("/sys/devices/system/cpu/cpu", "/thermal_throttle");

/// Bound onto themselves read-only, with what is mounted below.
pub const READ_ONLY: &[&str] = &[
    // moby, containerd and podman.
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    // Not theirs: registers of memory types (Documentation/arch/x86/mtrr.rst) and pressure triggers of the host.
    "/proc/mtrr",
    "/proc/pressure",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn lists_are_absolute_plain_and_disjoint() {
        let all: Vec<&str> = MASKED.iter().chain(READ_ONLY).copied().collect();
        for path in &all {
            assert!(path.starts_with("/proc/") || path.starts_with("/sys/"), "{path}");
            assert!(!path.ends_with('/') && !path.contains("//") && !path.contains(".."), "{path}");
        }
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn nothing_masked_lies_below_something_masked() {
        for inner in MASKED {
            let outer = MASKED.iter().find(|outer| *outer != inner && Path::new(inner).starts_with(outer));
            assert_eq!(outer, None, "{inner}");
        }
    }

    #[test]
    fn most_of_it_exists_here() {
        let there = MASKED.iter().chain(READ_ONLY).filter(|path| Path::new(path).exists()).count();
        assert!(there >= 8, "only {there}: are the names right?");
    }
}
