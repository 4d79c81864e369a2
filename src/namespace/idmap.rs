//! Id maps of a user namespace (user_namespaces(7)): which ids inside stand for which outside. Prepared and written
//! by the calling process, because only a process outside may map more than its own id.
//!
//! Three kinds, one shape:
//! - real root maps every id that it has onto itself;
//! - an ordinary user maps root inside onto itself, and nothing else: needs nothing, but there is one user only, and
//!   the kernel demands that setgroups(2) be denied;
//! - an ordinary user with ranges in /etc/subuid and /etc/subgid maps those too; the setuid programs newuidmap(1) and
//!   newgidmap(1) write the maps.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Mutex;

use nix::unistd::{Gid, Uid, User};

use crate::error::{Errno, Error, Result};

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The maps of one user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// For `uid_map`.
    pub uids: Vec<Range>,
    /// For `gid_map`.
    pub gids: Vec<Range>,
    /// Write `deny` to `setgroups` first.
    pub deny_setgroups: bool,
    /// Through newuidmap(1) and newgidmap(1).
    pub by_helper: bool,
}

impl IdMap {
    /// Root inside is the calling user outside; nobody else exists.
    pub fn single() -> Self {
        let one = |outside| vec![Range { inside: 0, outside, count: 1 }];
        Self {
            uids: one(Uid::effective().as_raw()),
            gids: one(Gid::effective().as_raw()),
            deny_setgroups: true,
            by_helper: false,
        }
    }

    /// The calling user, who stays who it is; nobody else exists.
    pub fn caller() -> Self {
        let single = Self::single();
        let same =
            |ranges: Vec<Range>| ranges.into_iter().map(|r| Range { inside: r.outside, ..r }).collect();
        Self { uids: same(single.uids), gids: same(single.gids), ..single }
    }

    /// Every id that the calling process knows, onto itself. For real root.
    pub fn identity() -> Result<Self> {
        /// With the namespace. Its maps are written once: what was read stays true for as long as we are in it.
        static KNOWN: Mutex<Option<(u64, IdMap)>> = Mutex::new(None);
        let own = |file: &str| {
            let text = fs::read_to_string(file)
                .map_err(|e| Error::io("read our own id map", "open", &e, Some(file)))?;
            Ok::<_, Error>(
                parse(&text).into_iter().map(|r| Range { outside: r.inside, ..r }).collect::<Vec<_>>(),
            )
        };
        let here = fs::metadata("/proc/self/ns/user").ok().map(|meta| meta.ino());
        let mut known = KNOWN.try_lock().ok(); // never waited for: in a fork it may stay locked for good
        if let Some(Some((there, map))) = known.as_deref()
            && Some(*there) == here
        {
            return Ok(map.clone());
        }
        let map = Self {
            uids: own("/proc/self/uid_map")?,
            gids: own("/proc/self/gid_map")?,
            deny_setgroups: false,
            by_helper: false,
        };
        if let (Some(known), Some(here)) = (known.as_deref_mut(), here)
            && !map.uids.is_empty()
            && !map.gids.is_empty()
        {
            *known = Some((here, map.clone()));
        }
        Ok(map)
    }

    /// The calling user as root inside, and the ids delegated to it from 1 on.
    ///
    /// # Errors
    /// `Unsupported` where no range is delegated or newuidmap(1) is not installed.
    pub fn delegated() -> Result<Self> {
        let unsupported = |message: String, errno| Error::Unsupported { message, errno };
        for program in ["newuidmap", "newgidmap"] {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
            if !found {
                return Err(unsupported(
                    format!("{program} is not in PATH: it writes maps of delegated ids"),
                    Errno::ENOENT,
                ));
            }
        }
        let uid = Uid::effective();
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let read = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let ranges = subordinate(&text, name.as_deref(), uid.as_raw());
            if ranges.is_empty() {
                return Err(unsupported(
                    format!("{file} delegates no ids to {}", name.as_deref().unwrap_or("this user")),
                    Errno::EPERM,
                ));
            }
            Ok(ranges)
        };
        let map = |own: u32, ranges: Vec<(u32, u32)>| {
            let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
            let mut next = 1u32;
            for (outside, count) in ranges {
                map.push(Range { inside: next, outside, count });
                next = next.saturating_add(count);
            }
            map
        };
        Ok(Self {
            uids: map(uid.as_raw(), read("/etc/subuid")?),
            gids: map(Gid::effective().as_raw(), read("/etc/subgid")?),
            deny_setgroups: false,
            by_helper: true,
        })
    }

    /// Whether `uid` exists inside.
    pub fn has_uid(&self, uid: u32) -> bool {
        self.uids.iter().any(|r| uid >= r.inside && uid - r.inside < r.count)
    }

    /// Whether `gid` exists inside.
    pub fn has_gid(&self, gid: u32) -> bool {
        self.gids.iter().any(|r| gid >= r.inside && gid - r.inside < r.count)
    }

    /// Writes the maps of the process `pid`, which must be in a new user namespace and wait.
    pub fn write(&self, pid: i32) -> Result<()> {
        let step = "write the id maps";
        let write = |file: &str, text: &str| {
            let path = format!("/proc/{pid}/{file}");
            // One write(2) call: the kernel takes a map whole or not at all.
            fs::write(&path, text).map_err(|e| Error::io(step, "write", &e, Some(path)))
        };
        if self.deny_setgroups {
            write("setgroups", "deny")?;
        }
        if self.by_helper {
            for (program, ranges) in [("newuidmap", &self.uids), ("newgidmap", &self.gids)] {
                let mut command = Command::new(program);
                command.arg(pid.to_string());
                for r in ranges {
                    command.args([r.inside, r.outside, r.count].map(|n| n.to_string()));
                }
                let output = command.output().map_err(|e| Error::io(step, "execve", &e, Some(program)))?;
                if !output.status.success() {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    return Err(Error::Step {
                        step: step.into(),
                        syscall: "newuidmap",
                        errno: Errno::EPERM,
                        path: Some(program.into()),
                        detail: Some(said),
                    });
                }
            }
            return Ok(());
        }
        write("uid_map", &text(&self.uids))?;
        write("gid_map", &text(&self.gids))
    }
}

fn text(ranges: &[Range]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect()
}

fn parse(text: &str) -> Vec<Range> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        })
        .collect()
}

/// The (first, count) pairs that a subuid(5) file delegates to a user, by name or number.
pub fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let mine = Some(owner) == name || owner.parse() == Ok(uid);
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (mine && count > 0 && fields.next().is_none()).then_some((first, count))
        })
        .collect()
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |r: &Range| format!("{} is {} ×{}", r.inside, r.outside, r.count);
        let all = |ranges: &[Range]| ranges.iter().map(one).collect::<Vec<_>>().join(", ");
        write!(f, "uid {}; gid {}", all(&self.uids), all(&self.gids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subuid_lines_by_name_and_number() {
        let file = "# comment\nana:100000:65536\n1000:300000:10\nbob:1:1\nana:broken\nana:7:0\n";
        assert_eq!(subordinate(file, Some("ana"), 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate(file, None, 5), []);
    }

    #[test]
    fn single_id_denies_setgroups_and_knows_root_only() {
        let map = IdMap::single();
        assert!(map.deny_setgroups && map.has_uid(0) && !map.has_uid(1));
        assert_eq!(parse("         0          0 4294967295\n")[0].count, u32::MAX);
        let own = Uid::effective().as_raw();
        assert!(IdMap::caller().deny_setgroups && IdMap::caller().has_uid(own));
    }
}
