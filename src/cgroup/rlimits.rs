//! What an rlimit can bind where no cgroup can be written, by the facts of the kernel and not by likeness.
//!
//! * **pids → `RLIMIT_NPROC`.** Since Linux 5.14 the count is kept for each pair of user namespace and user
//!   (getrlimit(2), `user_namespaces(7)`, `kernel/ucount.c`), so in a user namespace of its own a container is
//!   counted alone: measured, with a limit of 20 PID 1 may have 19 descendants whether its user runs 0 or 40
//!   processes outside, and two containers side by side get 20 each; a nested user namespace is bound, too, and
//!   raising the limit inside fails with `EPERM`. It must be set *after* the namespace was made: set before, the
//!   user's processes outside count. It does not bind where the kernel user is root (fork exempts it by name),
//!   nor where many ids are mapped, since each of them is counted apart.
//! * **memory → none.** `RLIMIT_AS` and `RLIMIT_DATA` hold for each process alone (twice the processes, twice the
//!   memory), `RLIMIT_RSS` does nothing. For best effort `RLIMIT_DATA` is set: measured, it stops a process at
//!   its limit of private memory, while it lets shared and tmpfs memory pass; `RLIMIT_AS` would stop these, but
//!   also every program that only reserves address space (Go, Java, V8).
//! * **swap, cpus, `cpu_weight`, cpuset → none.** `RLIMIT_CPU` is a total, not a rate; niceness and affinity can be
//!   changed from inside.
//!
//! Pure, but for reading the kernel's release and `/proc/self/uid_map`. Planned in the calling process, applied
//! by the launcher in the container's first process.

use super::limits::{Limits, Resource};
pub use nix::sys::resource::Resource as RlimitResource;

/// How the container's user ids relate to the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// A user namespace of its own into which only the caller's id is mapped.
    Single,
    /// A user namespace of its own with several ids.
    Range,
    /// No user namespace of its own.
    Host,
}

/// An rlimit that the launcher sets, soft and hard alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// For `nix::sys::resource::setrlimit`.
    pub resource: RlimitResource,
    /// Soft and hard.
    pub value: u64,
}

impl Rlimit {
    /// `rlimit NPROC`.
    pub fn by(&self) -> String {
        format!("rlimit {}", self.name().to_ascii_uppercase())
    }

    /// The command that does the same in a shell.
    pub fn shell(&self) -> String {
        format!("prlimit --pid $$ --{}={}:{}", self.name(), self.value, self.value)
    }

    fn name(&self) -> &'static str {
        if self.resource == RlimitResource::RLIMIT_NPROC { "nproc" } else { "data" }
    }
}

/// The rlimit that binds `resource` exactly, or why there is none.
pub(super) fn exact(resource: Resource, limits: &Limits, ids: Ids) -> Result<Rlimit, String> {
    let why = match resource {
        Resource::Pids => {
            pids_bind(ids, release(), kernel_root())?;
            let value = limits.pids.unwrap_or_default();
            return Ok(Rlimit { resource: RlimitResource::RLIMIT_NPROC, value });
        }
        Resource::Memory => "RLIMIT_AS and RLIMIT_DATA hold for each process alone, RLIMIT_RSS not at all",
        Resource::Swap => "no rlimit counts swap",
        Resource::Cpus => "RLIMIT_CPU is a total of seconds for each process, not a rate",
        Resource::CpuWeight => "no rlimit weighs CPU time",
        Resource::Cpuset => "CPU affinity can be widened again from inside",
    };
    Err(why.to_owned())
}

/// The rlimit that helps without binding, for best effort.
pub(super) fn weaker(resource: Resource, limits: &Limits) -> Option<Rlimit> {
    let value = limits.memory.filter(|_| resource == Resource::Memory)?;
    Some(Rlimit { resource: RlimitResource::RLIMIT_DATA, value })
}

/// Whether `RLIMIT_NPROC` binds a container as a whole.
fn pids_bind(ids: Ids, release: (u32, u32), kernel_root: bool) -> Result<(), String> {
    let why = match ids {
        _ if kernel_root => "RLIMIT_NPROC does not hold for the kernel's root user".to_owned(),
        Ids::Host => {
            "without a user namespace RLIMIT_NPROC counts the user's other processes, too".to_owned()
        }
        Ids::Range => "RLIMIT_NPROC counts each of the container's user ids apart".to_owned(),
        Ids::Single if release < (5, 14) => format!(
            "before Linux 5.14 (this is {}.{}) RLIMIT_NPROC counts the user's processes outside, too",
            release.0, release.1
        ),
        Ids::Single => return Ok(()),
    };
    Err(why)
}

/// Major and minor version of the running kernel; 0.0 if it cannot be told.
fn release() -> (u32, u32) {
    let Ok(name) = nix::sys::utsname::uname() else { return (0, 0) };
    parse_release(&name.release().to_string_lossy())
}

fn parse_release(text: &str) -> (u32, u32) {
    let mut numbers =
        text.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether our user is uid 0 outside of our user namespace, as far as its map tells.
fn kernel_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    maps_to_root(&map, nix::unistd::geteuid().as_raw())
}

fn maps_to_root(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [inside, outside, length] = numbers[..] else { return false };
        let uid = u64::from(uid);
        uid >= inside && uid < inside + length && uid - inside + outside == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nproc_is_offered_only_where_it_binds() {
        assert_eq!(pids_bind(Ids::Single, (6, 1), false), Ok(()));
        for (ids, release, root, fact) in [
            (Ids::Single, (6, 1), true, "root"),
            (Ids::Host, (6, 1), false, "without a user namespace"),
            (Ids::Range, (6, 1), false, "apart"),
            (Ids::Single, (5, 13), false, "5.13"),
        ] {
            assert!(pids_bind(ids, release, root).unwrap_err().contains(fact));
        }
        assert_eq!(parse_release("6.1.0-56-amd64"), (6, 1));
        assert_eq!(parse_release("x"), (0, 0));
    }

    #[test]
    fn root_is_found_through_the_map() {
        assert!(maps_to_root("         0          0 4294967295\n", 0));
        assert!(!maps_to_root("         0          0 4294967295\n", 65534));
        assert!(!maps_to_root("0 1000 1\n1 100000 65536\n", 0));
        assert!(maps_to_root("0 1000 1\n5 0 1\n", 5));
        assert!(!maps_to_root("", 0));
    }

    #[test]
    fn the_rest_has_its_facts() {
        let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
        for resource in
            [Resource::Memory, Resource::Swap, Resource::Cpus, Resource::CpuWeight, Resource::Cpuset]
        {
            assert!(!exact(resource, &limits, Ids::Single).unwrap_err().is_empty());
        }
        assert_eq!(weaker(Resource::Memory, &limits).unwrap().by(), "rlimit DATA");
        assert!(weaker(Resource::Pids, &limits).is_none());
    }
}
