//! Names of capabilities (capabilities(7), include/uapi/linux/capability.h), the set that containers get, and the
//! lists `cap_add` and `cap_drop`. Pure; runs in the calling process.

use std::fmt;

use crate::error::{Error, Result};

/// Names by number: `NAMES[21]` is `CAP_SYS_ADMIN`. Numbers are the kernel's and never change.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The highest capability known here: `CAP_CHECKPOINT_RESTORE` (Linux 5.9), still the last in 6.18.
pub const LAST: u8 = NAMES.len() as u8 - 1;

/// A set of capabilities, as the kernel's bit mask (`CapBnd` of `/proc/PID/status` shows the same number).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(pub u64);

/// What Docker and Podman give a container (moby `oci/caps/defaults.go`), documented under `docker run --cap-add`.
pub const DOCKER_DEFAULT: CapabilitySet =
    CapabilitySet::of(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// All that have a name here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The set of these numbers.
    pub const fn of(numbers: &[u8]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < numbers.len() {
            bits |= 1 << numbers[i];
            i += 1;
        }
        Self(bits)
    }

    /// Is the capability of this number in the set?
    pub const fn contains(self, number: u8) -> bool {
        number < 64 && self.0 >> number & 1 == 1
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the other.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The numbers in the set, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |number| self.contains(*number))
    }

    /// The names in the set; a number that has none here is left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.numbers().filter_map(name)
    }

    /// What a container keeps: `base` with `add` and without `drop`. `ALL` in one list replaces the base by
    /// everything or nothing, and the other list names the exceptions, as with Docker and Podman.
    ///
    /// Errors: [`Error::Spec`] for an unknown name, with the nearest known one, and for a name (or `ALL`) that is
    /// in both lists: Docker adds it and others drop it, so it is a mistake worth telling.
    pub fn adjusted<S: AsRef<str>>(base: Self, add: &[S], drop: &[S]) -> Result<Self> {
        let (add_all, add) = parse_list("cap_add", add)?;
        let (drop_all, drop) = parse_list("cap_drop", drop)?;
        let both = Self(add.0 & drop.0);
        if let Some(name) = both.names().next().or((add_all && drop_all).then_some("ALL")) {
            return Err(Error::spec(format!("cap_drop: {name} is also in cap_add")));
        }
        let base = match (add_all, drop_all) {
            (true, _) => Self::ALL,
            (_, true) => Self::EMPTY,
            _ => base,
        };
        Ok(base.union(add).difference(drop))
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ", self.0)?;
        f.debug_set().entries(self.names()).finish()
    }
}

/// The name of a number: `CAP_KILL` for 5.
pub fn name(number: u8) -> Option<&'static str> {
    NAMES.get(usize::from(number)).copied()
}

/// The number of a name, in any case, with or without `CAP_`.
///
/// Errors: [`Error::Spec`] naming `argument`, and the nearest known name.
pub fn number(argument: &str, text: &str) -> Result<u8> {
    let wanted = full_name(text);
    if let Some(number) = NAMES.iter().position(|name| *name == wanted) {
        return Ok(number as u8);
    }
    let nearest = NAMES.iter().map(|name| (distance(name, &wanted), name)).min();
    // Further away than that it is no misspelling.
    let hint = match nearest {
        Some((distance, name)) if distance <= 4 => format!("; did you mean {name}?"),
        _ => String::new(),
    };
    Err(Error::spec(format!("{argument}: no capability is called {text:?}{hint}")))
}

/// `(ALL is in the list, the set of the other names)`.
fn parse_list<S: AsRef<str>>(argument: &str, names: &[S]) -> Result<(bool, CapabilitySet)> {
    let (mut all, mut set) = (false, CapabilitySet::EMPTY);
    for text in names {
        if full_name(text.as_ref()) == "CAP_ALL" {
            all = true;
        } else {
            set = set.union(CapabilitySet::of(&[number(argument, text.as_ref())?]));
        }
    }
    Ok((all, set))
}

fn full_name(text: &str) -> String {
    let upper = text.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

/// How many letters must be put in, taken out or changed to make one word the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        CapabilitySet::adjusted(DOCKER_DEFAULT, add, drop).unwrap().names().collect()
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, number) in [("CHOWN", 0), ("KILL", 5), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("BPF", 39)] {
            assert_eq!(super::number("cap_add", name).unwrap(), number);
        }
        assert_eq!((LAST, name(LAST), name(LAST + 1)), (40, Some("CAP_CHECKPOINT_RESTORE"), None));
    }

    #[test]
    fn the_running_kernel_knows_no_more() {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert!(last.trim().parse::<u8>().unwrap() <= LAST, "name the kernel's new capabilities: {last}");
    }

    #[test]
    fn the_default_is_dockers_fourteen() {
        // The number that /proc/1/status shows in any Docker container.
        assert_eq!(DOCKER_DEFAULT.0, 0xa804_25fb);
        assert_eq!(DOCKER_DEFAULT.names().count(), 14);
    }

    #[test]
    fn lists_take_any_case_the_prefix_or_not_and_all() {
        assert_eq!(adjusted(&["net_admin"], &["CAP_KILL"]).len(), 14);
        assert!(adjusted(&["Cap_Net_Admin"], &[]).contains(&"CAP_NET_ADMIN"));
        assert_eq!(adjusted(&[], &["ALL"]), [""; 0]);
        assert_eq!(adjusted(&["CHOWN"], &["all"]), ["CAP_CHOWN"]);
        assert_eq!(adjusted(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        for (add, drop) in [(["ALL"], ["cap_all"]), (["KILL"], ["CAP_KILL"])] {
            let error = CapabilitySet::adjusted(DOCKER_DEFAULT, &add, &drop).unwrap_err();
            assert!(error.to_string().ends_with("is also in cap_add"), "{error}");
        }
    }

    #[test]
    fn an_unknown_name_brings_the_nearest() {
        let error = |text: &str| number("cap_drop", text).unwrap_err().to_string();
        assert_eq!(
            error("NET_ADMN"),
            "cap_drop: no capability is called \"NET_ADMN\"; did you mean CAP_NET_ADMIN?"
        );
        assert!(error("sysadmin").ends_with("did you mean CAP_SYS_ADMIN?"));
        assert_eq!(error("become root at once"), "cap_drop: no capability is called \"become root at once\"");
        assert!(error("").starts_with("cap_drop: no capability is called \"\""));
    }

    #[test]
    fn a_set_prints_its_mask_and_names() {
        assert_eq!(format!("{:?}", CapabilitySet::of(&[0, 5])), "0x21 {\"CAP_CHOWN\", \"CAP_KILL\"}");
    }
}
