//! A step as commands of sh(1), with util-linux 2.38 or later. Pure.
//!
//! Two readers: the table of `explain()`, where one step stands alone and its paths are written out, and the script
//! (`script`), where the new root is the shell's variable `root`, and a path in it is found by the function `inside`,
//! which follows symbolic links as `openat2(RESOLVE_IN_ROOT)` does.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::step::{Op, Place, Probe, Setting, rlimit_name};
use crate::error::Result;
use crate::namespace::{IdMap, Kind, Namespaces, Range};
use crate::overlay::options::Options;
use crate::security::capabilities::{CapabilitySet, NAMES};
use crate::shell::{quote, words};

const RDONLY: u64 = 0x1;

/// The steps that no command of util-linux makes. They are comments, in the table and in the script: nothing else is.
pub const COMMENTS: [&str; 6] = [
    "# a descriptor of the upper layer, which PID 1 keeps for diff(); a script has no use for it",
    "# a descriptor of the new root; a script has its path",
    "# keyctl(1) session would join a new session keyring; it is not part of util-linux",
    "# PID 1 is a small static program in a sealed memfd, all other descriptors closed; in a script sh takes its place",
    "# an embedded static program in a sealed memfd, all other descriptors closed",
    "# more long layers than sh(1) has descriptors to name them by",
];

/// How paths are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style<'a> {
    /// Written out; the new root is this directory of the host.
    Table(&'a Path),
    /// As the script's functions take them.
    Script,
}

/// What a step is in sh(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shell {
    /// Commands, one a line.
    Commands(Vec<Vec<u8>>),
    /// One of [`COMMENTS`].
    Comment(&'static str),
}

impl Op {
    /// The same by hand, on one line; a comment where no command can do it. `root` is the new root directory as the
    /// host sees it.
    pub fn shell(&self, root: &Path) -> Vec<u8> {
        match self.commands(Style::Table(root)) {
            Shell::Comment(text) => text.into(),
            Shell::Commands(lines) => lines.join(&b" && "[..]),
        }
    }

    /// The same for either reader.
    pub(super) fn commands(&self, style: Style<'_>) -> Shell {
        let one = |line: Vec<u8>| Shell::Commands(vec![line]);
        match self {
            Self::Clone { namespaces } | Self::Unshare { namespaces } => one(unshare(*namespaces)),
            Self::IdMap(map) => Shell::Commands(id_map(map, "$pid")),
            Self::Cgroup(plan) => {
                let limits = plan.rlimits.len();
                let mut lines = plan.shell();
                lines.truncate(lines.len() - limits); // they have steps of their own
                Shell::Commands(lines.into_iter().map(String::into_bytes).collect())
            }
            Self::TimeOffsets { text } => {
                one(words([&print(text.to_bytes())[..], b"> /proc/self/timens_offsets"]))
            }
            Self::Private => one(b"mount --make-rprivate /".into()),
            Self::Directory { at, mode } => {
                let mode = format!("mkdir -p -m {mode:04o}");
                style.at(at, |at| vec![words([mode.as_bytes(), at])])
            }
            Self::File { at, mode, text } => style.at(at, |at| {
                let mode = format!("{mode:04o}");
                let there = words([&b"[ -e"[..], at, b"] ||"]);
                let make =
                    words([&b"{"[..], &print(text), b">", at, b"&& chmod", mode.as_bytes(), at, b"; }"]);
                vec![words([there, make])]
            }),
            Self::Owner { at, uid, gid } => {
                style.at(at, |at| vec![words([&b"chown -h"[..], format!("{uid}:{gid}").as_bytes(), at])])
            }
            Self::Symlink { at, target } => {
                style.at(at, |at| vec![words([&b"ln -s"[..], &quote(target.to_bytes()), at])])
            }
            Self::Mount { fstype, source, settings, attributes, at } if fstype.as_bytes() == b"overlay" => {
                let _ = source;
                let mut failed = false;
                let lines = style.at(at, |at| {
                    let line = overlay(settings, *attributes, at);
                    failed = line.is_err();
                    line.into_iter().chain(read_only(*attributes, at)).collect()
                });
                if failed { Shell::Comment(COMMENTS[5]) } else { lines }
            }
            Self::Mount { fstype, source, settings, attributes, at } => style.at(at, |at| {
                let mut options: Vec<Vec<u8>> = flags(attributes & !RDONLY).map(Into::into).collect();
                options.extend(settings.iter().map(setting));
                let (fstype, source) = (quote(fstype.to_bytes()), quote(source.to_bytes()));
                let options = options.join(&b","[..]);
                let line = if options.is_empty() {
                    words([&b"mount -t"[..], &fstype, &source, at])
                } else {
                    words([&b"mount -t"[..], &fstype, b"-o", &quote(options), &source, at])
                };
                [line].into_iter().chain(read_only(*attributes, at)).collect()
            }),
            Self::Bind { source, at, recursive, attributes } => {
                style.bind(source, at, *recursive, *attributes)
            }
            Self::Move { from, to } => {
                one(words([&b"mount --move"[..], &quote(from.to_bytes()), &quote(to.to_bytes())]))
            }
            Self::Remount { at, attributes } => style.at(at, |at| vec![remount(*attributes, at)]),
            Self::Upper { .. } => Shell::Comment(COMMENTS[0]),
            Self::Root { .. } => Shell::Comment(COMMENTS[1]),
            Self::PivotRoot => {
                let root = style.root();
                Shell::Commands(vec![
                    words([&b"cd"[..], &root]),
                    b"pivot_root . .".into(),
                    b"umount --lazy .".into(),
                ])
            }
            Self::Chroot => one(words([&b"chroot"[..], &style.root()])),
            Self::Hostname(name) => one(words([&b"hostname"[..], &quote(name.to_bytes())])),
            Self::Loopback => one(b"ip link set lo up".into()),
            Self::Keyring => Shell::Comment(COMMENTS[2]),
            Self::Rlimit { resource, value } => {
                one(format!("prlimit --pid $$ {}", prlimit(*resource, *value)).into_bytes())
            }
            Self::Capabilities { keep } => one(format!("setpriv {}", bounding_set(*keep)).into_bytes()),
            Self::NoNewPrivileges => one(b"setpriv --no-new-privs".into()),
            Self::Probe(Probe::Enough | Probe::Packet) => Shell::Commands(Vec::new()),
            Self::Probe(Probe::Attribute(path)) => {
                one(words([&b"setfattr -n user.r2d2 -v 1"[..], &quote(path.to_bytes())]))
            }
            Self::Probe(Probe::Veth) => one(b"ip link add type veth".into()),
            Self::Probe(Probe::Tap) => one(b"ip tuntap add mode tap".into()),
            Self::Embedded(name) => {
                Shell::Comment(if *name == c"r2d2-init" { COMMENTS[3] } else { COMMENTS[4] })
            }
            Self::Program { argv, .. } => {
                one(words(std::iter::once(b"exec".to_vec()).chain(argv.iter().map(|a| quote(a.to_bytes())))))
            }
        }
    }
}

impl Style<'_> {
    fn root(self) -> Vec<u8> {
        match self {
            Self::Table(root) => quote(root.as_os_str().as_bytes()),
            Self::Script => b"\"$root\"".into(),
        }
    }

    /// Commands that take a place.
    fn at(self, place: &Place, commands: impl FnOnce(&[u8]) -> Vec<Vec<u8>>) -> Shell {
        Shell::Commands(match (self, place) {
            (_, Place::Host(path)) => commands(&quote(path.to_bytes())),
            (Self::Table(root), Place::Root(path)) => {
                commands(&quote(below(root, path).as_os_str().as_bytes()))
            }
            (Self::Script, Place::Root(path)) => {
                let mut lines = vec![inside(path)];
                lines.extend(commands(b"\"$at\""));
                lines
            }
        })
    }

    fn bind(self, source: &Place, at: &Place, recursive: bool, attributes: u64) -> Shell {
        let bind: &[u8] = if recursive { b"mount --rbind" } else { b"mount --bind" };
        let source_word = match (self, source) {
            (_, Place::Host(path)) => quote(path.to_bytes()),
            (Self::Table(root), Place::Root(path)) => quote(below(root, path).as_os_str().as_bytes()),
            // The only source inside is the place itself.
            (Self::Script, Place::Root(_)) => b"\"$at\"".into(),
        };
        self.at(at, |at| {
            let mut lines = vec![words([bind, &source_word, at])];
            if attributes != 0 && recursive && matches!(self, Self::Script) {
                let flags = flags(attributes).collect::<Vec<_>>().join(",");
                lines.push(words([&b"every_mount"[..], at, flags.as_bytes()]));
            } else if attributes != 0 {
                lines.push(remount(attributes, at));
            }
            lines
        })
    }
}

fn below(root: &Path, path: &CStr) -> PathBuf {
    let path = path.to_bytes();
    root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
}

/// Sets the script's variable `at`.
fn inside(path: &CStr) -> Vec<u8> {
    words([&b"inside"[..], &quote(path.to_bytes())])
}

/// `MOUNT_ATTR_…` as mount(8) calls them.
fn flags(attributes: u64) -> impl Iterator<Item = &'static str> {
    let known = [(0x1, "ro"), (0x2, "nosuid"), (0x4, "nodev"), (0x8, "noexec")];
    known.into_iter().filter(move |(bit, _)| attributes & bit != 0).map(|(_, name)| name)
}

/// Changes one mount and not the file system behind it.
fn remount(attributes: u64, at: &[u8]) -> Vec<u8> {
    let options = ["remount", "bind"].into_iter().chain(flags(attributes)).collect::<Vec<_>>().join(",");
    words([&b"mount -o"[..], options.as_bytes(), at])
}

/// `mount -o ro` would make the file system itself read-only, not just this mount of it.
fn read_only(attributes: u64, at: &[u8]) -> Option<Vec<u8>> {
    (attributes & RDONLY != 0).then(|| remount(RDONLY, at))
}

/// printf(1) of any bytes: text as it is, anything else as octal numbers.
pub(super) fn print(text: &[u8]) -> Vec<u8> {
    if text.is_empty() {
        return b":".into();
    }
    if !text.contains(&0) {
        return words([&b"printf %s"[..], &quote(text)]);
    }
    let octal: String = text.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{octal}'").into_bytes()
}

fn setting(setting: &Setting) -> Vec<u8> {
    match setting {
        Setting::Flag(key) => key.to_bytes().into(),
        Setting::Text(key, value) | Setting::Directory(key, value) => {
            [key.to_bytes(), b"=", value.to_bytes()].concat()
        }
    }
}

/// The line for mount(8), which takes all layers in one string: from the settings back to the options.
fn overlay(settings: &[Setting], attributes: u64, at: &[u8]) -> Result<Vec<u8>> {
    let mut options = Options { user_namespace: true, ..Options::default() };
    for setting in settings {
        let (key, value, escaped) = match setting {
            Setting::Flag(key) => (key, None, false),
            Setting::Text(key, value) => (key, Some(value.to_bytes()), key.as_bytes() != b"lowerdir+"),
            Setting::Directory(key, value) => (key, Some(value.to_bytes()), false),
        };
        let path = |value: &[u8]| PathBuf::from(OsStr::from_bytes(&unescape(value, escaped)));
        match (key.to_bytes(), value) {
            (b"lowerdir+", Some(value)) => options.lowers.push(path(value)),
            (b"lowerdir", Some(value)) => {
                options.lowers.extend(split(value).into_iter().map(path));
            }
            (b"upperdir", Some(value)) => options.upper = Some(path(value)),
            (b"workdir", Some(value)) => options.work = Some(path(value)),
            (b"userxattr", None) => options.userxattr = true,
            (b"volatile", None) => options.volatile = true,
            (b"redirect_dir", Some(value)) => {
                options.user_namespace = false;
                options.redirect = value == b"on";
            }
            _ => {}
        }
    }
    let mut first = flags(attributes & !RDONLY).collect::<Vec<_>>().join(",");
    if !first.is_empty() {
        first.push(',');
    }
    options.mount_command(first.as_bytes(), at)
}

/// Takes the backslashes off.
fn unescape(value: &[u8], escaped: bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        plain.push(if escaped && *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    plain
}

/// At colons that no backslash precedes.
fn split(value: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, byte) in value.iter().enumerate() {
        if *byte == b':' && !escaped {
            parts.extend(value.get(start..i));
            start = i + 1;
        }
        escaped = *byte == b'\\' && !escaped;
    }
    parts.extend(value.get(start..));
    parts
}

/// unshare(1) with these namespaces.
pub(super) fn unshare(namespaces: Namespaces) -> Vec<u8> {
    let mut line = String::from("unshare");
    for kind in namespaces.kinds() {
        line.push_str(" --");
        line.push_str(kind.name());
    }
    if namespaces.has(Kind::Pid) {
        line.push_str(" --fork --kill-child");
    }
    line.into_bytes()
}

/// What a process outside does for process `pid`.
pub(super) fn id_map(map: &IdMap, pid: &str) -> Vec<Vec<u8>> {
    let numbers = |r: &Range| format!("{} {} {}", r.inside, r.outside, r.count);
    let mut lines = Vec::new();
    if map.by_helper {
        for (program, ranges) in [("newuidmap", &map.uids), ("newgidmap", &map.gids)] {
            let ranges: Vec<_> = ranges.iter().map(numbers).collect();
            lines.push(format!("{program} {pid} {}", ranges.join(" ")));
        }
    } else {
        if map.deny_setgroups {
            lines.push(format!("echo deny > /proc/{pid}/setgroups"));
        }
        for (file, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
            let ranges: Vec<_> = ranges.iter().map(|r| format!("'{}'", numbers(r))).collect();
            // One write: the kernel takes a map whole or not at all.
            lines.push(format!("printf '%s\\n' {} > /proc/{pid}/{file}", ranges.join(" ")));
        }
    }
    lines.into_iter().map(String::into_bytes).collect()
}

/// The option of prlimit(1): both limits.
pub(super) fn prlimit(resource: u32, value: u64) -> String {
    let name = rlimit_name(resource);
    let value = if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    format!("--{name}={value}:{value}")
}

/// The option of setpriv(1) that keeps these capabilities in the bounding set.
pub(super) fn bounding_set(keep: u64) -> String {
    let all = (1u64 << NAMES.len()) - 1;
    if keep & all == all {
        return "--bounding-set=+all".into();
    }
    let mut list = String::from("--bounding-set=-all");
    for name in CapabilitySet(keep & all).names() {
        list.push_str(",+");
        list.push_str(&name.trim_start_matches("CAP_").to_ascii_lowercase());
    }
    list
}
