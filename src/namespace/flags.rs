//! The eight kinds of namespaces (namespaces(7)) and sets of them.

use std::fmt;

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// user_namespaces(7).
    User,
    /// mount_namespaces(7).
    Mount,
    /// pid_namespaces(7).
    Pid,
    /// uts_namespaces(7).
    Uts,
    /// ipc_namespaces(7).
    Ipc,
    /// network_namespaces(7).
    Net,
    /// cgroup_namespaces(7).
    Cgroup,
    /// time_namespaces(7).
    Time,
}

impl Kind {
    /// All, in the order in which they are listed everywhere.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Mount, Self::Pid, Self::Uts, Self::Ipc, Self::Net, Self::Cgroup, Self::Time];

    /// The name that unshare(1) uses for its long option.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Net => "net",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The name of its link in `/proc/PID/ns`.
    pub fn link(self) -> &'static str {
        if self == Self::Mount { "mnt" } else { self.name() }
    }

    /// `CLONE_NEW…`.
    pub fn flag(self) -> u64 {
        match self {
            Self::User => 0x1000_0000,
            Self::Mount => 0x0002_0000,
            Self::Pid => 0x2000_0000,
            Self::Uts => 0x0400_0000,
            Self::Ipc => 0x0800_0000,
            Self::Net => 0x4000_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => 0x0000_0080,
        }
    }

    /// By either name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name || kind.link() == name)
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(u64);

impl Namespaces {
    /// The set as `CLONE_NEW…` flags.
    pub fn flags(self) -> u64 {
        self.0
    }

    /// Whether it has `kind`.
    pub fn has(self, kind: Kind) -> bool {
        self.0 & kind.flag() != 0
    }

    /// With `kind`.
    #[must_use]
    pub fn with(self, kind: Kind) -> Self {
        Self(self.0 | kind.flag())
    }

    /// Without `kind`.
    #[must_use]
    pub fn without(self, kind: Kind) -> Self {
        Self(self.0 & !kind.flag())
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds in it.
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl FromIterator<Kind> for Namespaces {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        kinds.into_iter().fold(Self::default(), Self::with)
    }
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kinds().map(Kind::name).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_flags_agree_with_the_headers() {
        assert_eq!(Kind::ALL.map(Kind::flag).into_iter().fold(0, |a, b| a | b), 0x7e02_0080);
        assert_eq!(Kind::parse("mnt"), Some(Kind::Mount));
        assert_eq!(Kind::parse("mount"), Some(Kind::Mount));
        assert_eq!(Kind::parse("disk"), None);
        let set: Namespaces = [Kind::Net, Kind::User].into_iter().collect();
        assert_eq!(set.to_string(), "user net");
        assert!(set.without(Kind::Net).has(Kind::User));
    }
}
