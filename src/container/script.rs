//! The plan as a script for sh(1): run by hand, with util-linux 2.38 or later, it builds the same container. Pure.
//!
//! Three shells, one inside the other, because a step is done by whoever may do it:
//!
//! | shell | stands | does |
//! | --- | --- | --- |
//! | outer | on the host | control groups, namespaces, id maps |
//! | inner (`INSIDE`) | in the new namespaces; PID 1 | the mounts; then it waits for the command and reaps |
//! | helper (`HELPER`) | beside it, in a mount namespace of its own | `pivot_root` and what follows |
//!
//! The helper is needed because after `pivot_root` the inner shell sees the image alone, which may have none of the
//! programs of the remaining steps (it may have no program at all); the helper still has the host's. What only a
//! process itself can do (limits, capabilities, `no_new_privs`) is done by the command's process, before the pivot
//! takes the host's prlimit(1) and setpriv(1) away from it: it then waits at a FIFO until the helper is done.

use super::plan::Plan;
use super::shell::{Shell, Style, bounding_set, id_map, prlimit, unshare};
use super::step::{Op, Step};
use crate::cgroup;
use crate::namespace::{IdMap, Kind, Namespaces};
use crate::shell::{quote, words};

/// What the script ends in.
#[derive(Debug, Clone, Default)]
pub struct Last {
    /// The command, if the script is given none: program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, `NAME=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// Its working directory.
    pub cwd: Vec<u8>,
    /// Its ids: user, group, supplementary groups. None: root of the container.
    pub user: Option<(u32, u32, Vec<u32>)>,
}

const HEAD: &str = "\
#!/bin/sh
# A container by hand: every step of r2d2's plan, with util-linux (2.38 or later), hostname(1) and ip(8).
# usage: sh SCRIPT [COMMAND [ARGUMENT]...]
";

/// Follows symbolic links in the new root as chroot(2) would: an image may hold any.
const INSIDE: &str = "\
inside() { # sets $at to the path $1 in $root; symbolic links cannot lead out of it
  at=$root rest=$1 links=0
  while [ -n \"$rest\" ]; do
    part=${rest%%/*}
    case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
    case $part in
    '' | .) ;;
    ..) [ \"$at\" = \"$root\" ] || at=${at%/*} ;;
    *)
      if [ -L \"$at/$part\" ]; then
        links=$((links + 1))
        [ $links -le 40 ] || { echo \"$1: too many symbolic links\" >&2; exit 1; }
        link=$(readlink \"$at/$part\" && echo .)
        link=${link%??}
        case $link in /*) at=$root ;; esac
        rest=$link/$rest
      else
        at=$at/$part
      fi ;;
    esac
  done
}
";

/// mount(8) learned to change a whole tree of mounts in 2.39.
const EVERY_MOUNT: &str = "\
every_mount() { # sets the options $2 of the mount $1 and of those below it
  while read -r id parent device within point more; do
    point=$(printf \"$(printf %s \"$point\" | sed 's/%/%%/g')\" && echo .)
    point=${point%.}
    case $point in \"$1\" | \"$1\"/*) mount -o \"remount,bind,$2\" \"$point\" ;; esac
  done < /proc/self/mountinfo
}
";

/// A script being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn line(&mut self, line: impl AsRef<[u8]>) {
        self.0.extend_from_slice(line.as_ref());
        self.0.push(b'\n');
    }

    fn comment(&mut self, text: &str) {
        let shown: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        self.line(format!("# {shown}"));
    }

    fn title(&mut self, plan: &Plan, i: usize) {
        if let Some(step) = plan.steps.get(i) {
            self.comment(&format!("{}. {}", i + 1, step.op.title()));
        }
    }

    /// The commands of a step; an optional one may fail.
    fn commands(&mut self, i: usize, step: &Step) {
        match step.op.commands(Style::Script) {
            Shell::Comment(text) => self.line(text),
            Shell::Commands(lines) if step.optional => {
                let all = lines.join(&b" && "[..]);
                let skipped = format!("|| echo 'step {} is skipped' >&2", i + 1);
                self.line(words([&b"{"[..], &all, b"; }", skipped.as_bytes()]));
            }
            Shell::Commands(lines) => {
                for line in lines {
                    self.line(line);
                }
            }
        }
    }

    /// Text for a shell that reads it from descriptor `fd`.
    fn here(&mut self, start: &[u8], fd: u32, name: &str, text: &[u8]) {
        let mut end = name.to_owned();
        while text.split(|b| *b == b'\n').any(|line| line == end.as_bytes()) {
            end.push('_');
        }
        self.line(words([start, format!("{fd}<<'{end}'").as_bytes()]));
        self.0.extend_from_slice(text);
        self.line(end);
    }
}

impl Plan {
    /// A script which, run by hand as the same user on this machine, builds the same container and runs a command in
    /// it: the script's arguments, or `last`.
    pub fn script(&self, last: &Last) -> Vec<u8> {
        let mut script = Writer::default();
        script.0.extend_from_slice(HEAD.as_bytes());
        for note in &self.notes {
            script.comment(&format!("note: {note}"));
        }
        script.line("set -eu");
        script.line("PATH=$PATH:/usr/sbin:/sbin");
        script.line([&b"[ $# -gt 0 ] || set -- "[..], &words(last.argv.iter().map(quote))].concat());
        self.outer(&mut script, &self.inner(last));
        script.0
    }

    fn outer(&self, script: &mut Writer, inner: &[u8]) {
        let mut namespaces = Namespaces::default();
        let (mut map, mut groups, mut offsets) = (None, None, None);
        for (i, step) in self.steps.iter().enumerate() {
            match &step.op {
                Op::Clone { namespaces: more } | Op::Unshare { namespaces: more } => {
                    namespaces = more.kinds().fold(namespaces, Namespaces::with);
                }
                Op::IdMap(ids) => map = Some(ids),
                Op::Cgroup(plan) => groups = Some(plan),
                Op::TimeOffsets { text } => offsets = Some(text),
                _ => continue,
            }
            script.title(self, i);
        }
        let mut line = unshare(namespaces.without(Kind::User));
        for offset in offsets.iter().flat_map(|text| text.to_str()).flat_map(str::lines) {
            if let [clock, seconds, ..] = offset.split(' ').collect::<Vec<_>>()[..] {
                line.extend(format!(" --{clock} {seconds}").into_bytes());
            }
        }
        let mut start = words([&line, &b"sh -eu /proc/self/fd/9 \"$@\""[..]]);
        if let Some(map) = map {
            start = user(script, map, &start);
        }
        match groups {
            Some(plan) if !plan.places.is_empty() => {
                let start = control_groups(script, plan, &start);
                script.here(&start, 9, "INSIDE", inner);
            }
            _ => script.here(&words([&b"exec"[..], &start]), 9, "INSIDE", inner),
        }
    }

    fn inner(&self, last: &Last) -> Vec<u8> {
        let mut script = Writer::default();
        script.line("exec 9<&-");
        script.line("umask 0");
        if let Some(root) = self.root() {
            script.line([&b"root="[..], &quote(root)].concat());
            script.0.extend_from_slice(INSIDE.as_bytes());
        }
        if self.steps.iter().any(|step| matches!(&step.op, Op::Bind { recursive: true, attributes: 1.., .. }))
        {
            script.0.extend_from_slice(EVERY_MOUNT.as_bytes());
        }
        let pivot = self.steps.iter().position(|step| step.op == Op::PivotRoot);
        let mut prefix = Vec::new();
        let mut options = Vec::new();
        let mut helper = Writer::default();
        for (i, step) in self.steps.iter().enumerate() {
            let after = pivot.is_some_and(|pivot| i > pivot);
            match &step.op {
                Op::Clone { .. }
                | Op::IdMap(_)
                | Op::Cgroup(_)
                | Op::Unshare { .. }
                | Op::TimeOffsets { .. }
                | Op::Program { .. } => {}
                Op::Rlimit { resource, value, .. } => {
                    if prefix.is_empty() {
                        prefix.push("prlimit".to_owned());
                    }
                    prefix.push(prlimit(*resource, *value));
                }
                Op::Capabilities { keep } => options.push(bounding_set(*keep)),
                Op::NoNewPrivileges => options.push("--no-new-privs".to_owned()),
                Op::Chroot => prefix.push("chroot \"$root\"".to_owned()),
                Op::PivotRoot => {
                    helper.title(self, i);
                    helper.line("# the old root lies on the new one then: what enters the namespace is in the old one");
                    helper.line("nsenter --mount=/proc/self/fd/3 pivot_root \"$1\" \"$1\"");
                    helper.line("nsenter --mount=/proc/self/fd/3 umount --lazy /");
                }
                _ => {
                    let to = if after { &mut helper } else { &mut script };
                    to.title(self, i);
                    to.commands(i, step);
                }
            }
        }
        if let Some((user, group, groups)) = &last.user {
            let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
            let groups = if groups.is_empty() {
                "--clear-groups".into()
            } else {
                format!("--groups={}", groups.join(","))
            };
            options.push(format!("--reuid={user} --regid={group} {groups}"));
        }
        if !options.is_empty() {
            prefix.push(format!("setpriv {}", options.join(" ")));
        }
        let own = self.steps.iter().enumerate().filter(|(_, step)| {
            matches!(step.op, Op::Rlimit { .. } | Op::Capabilities { .. } | Op::NoNewPrivileges | Op::Chroot)
        });
        let titles: Vec<usize> = own.map(|(i, _)| i).collect();
        if pivot.is_some() {
            helper.line("echo done >&4");
            helper_beside(&mut script, &helper.0);
        }
        script.line("umask 022");
        for i in titles {
            script.title(self, i);
        }
        if !last.env.is_empty() {
            prefix.push("env -i".to_owned());
        }
        let env = words(last.env.iter().map(quote));
        let prefix = prefix.join(" ");
        let cwd = quote(if last.cwd.is_empty() { b"/" } else { &last.cwd[..] });
        if pivot.is_some() {
            let wait = b"/bin/sh -c '\nread -r done < \"$1\" || exit 125\ncd \"$2\" && shift 2 && unset PWD OLDPWD && exec \"$@\"' sh";
            let fifo = b"\"${root%/*}/go\"";
            script.line(words(
                [prefix.as_bytes(), &env, wait, fifo, &cwd, b"\"$@\""].into_iter().filter(|w| !w.is_empty()),
            ));
        } else {
            script.line(words(
                [&b"exec"[..], prefix.as_bytes(), &env, b"\"$@\""].into_iter().filter(|w| !w.is_empty()),
            ));
        }
        script.0
    }

    /// The new root directory, as the host sees it.
    fn root(&self) -> Option<&[u8]> {
        self.steps.iter().find_map(|step| match &step.op {
            Op::Root { path } => Some(path.to_bytes()),
            _ => None,
        })
    }
}

/// Starts the helper, which begins when somebody waits at the FIFO.
fn helper_beside(script: &mut Writer, helper: &[u8]) {
    script.line("mkfifo -m 0666 \"${root%/*}/go\"");
    script.line("(");
    script.line("exec 3< /proc/self/ns/mnt 4> \"${root%/*}/go\"");
    let start = b"exec unshare --mount sh -eu /proc/self/fd/5 \"$root\"";
    script.here(start, 5, "HELPER", helper);
    script.line(") &");
}

/// How the user namespace gets its id maps: the command to start with.
fn user(script: &mut Writer, map: &IdMap, start: &[u8]) -> Vec<u8> {
    if map.deny_setgroups && !map.by_helper {
        let start = start.strip_prefix(b"unshare").unwrap_or(start);
        return [&b"unshare --user --map-root-user"[..], start].concat();
    }
    script.line(
        "# A map of more than one id is written from outside, so somebody must hold the namespace meanwhile.",
    );
    script.line("holder=$(unshare --user sh -c 'echo $$; exec sleep 60 > /dev/null 2>&1' &)");
    for line in id_map(map, "$holder") {
        script.line(line);
    }
    let enter = b"nsenter --user --target $holder sh -c 'kill $1; shift; exec \"$@\"' sh $holder";
    words([&enter[..], start])
}

/// Makes the control groups and joins them; they are removed when the container has ended.
fn control_groups(script: &mut Writer, plan: &cgroup::Plan, start: &[u8]) -> Vec<u8> {
    let own = |path: &std::path::Path| {
        // The container that this was made of may still run and have its own.
        let text = path.to_string_lossy().into_owned();
        plan.places.iter().fold(text, |text, place| {
            let outer = place.outer.to_string_lossy();
            text.replacen(&*outer, &format!("{outer}-by-hand"), 1)
        })
    };
    for line in plan.actions.iter().map(cgroup::Action::shell) {
        let line = own(std::path::Path::new(&line));
        script.line(if plan.best_effort { format!("{line} || :") } else { line });
    }
    let dirs: Vec<_> = plan.dirs().iter().map(|dir| quote(own(dir))).collect();
    script.line([&b"trap "[..], &quote([&b"rmdir "[..], &words(dirs)].concat()), b" EXIT"].concat());
    let files: Vec<_> = plan.join_files().iter().map(|file| quote(own(file))).collect();
    let join = b"sh -ec 'for file; do case $file in */cgroup.procs) echo $$ > \"$file\"; shift ;; *) break ;; esac; done; exec \"$@\"' sh";
    words([&join[..], &words(files), start])
}
