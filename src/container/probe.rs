//! What this host allows, found out by trying: short plans that end where a container would start its PID 1, carried
//! out by the interpreter that starts containers, so that a probe and a start fail alike. Sysctls tell what somebody
//! meant to allow; only a try tells what the kernel, its security modules and seccomp filters do allow.
//!
//! Runs in the calling process; each probe in a child of its own, with whose end all that it made is gone.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Uid;

use super::plan::{Plan, proc, settings};
use super::step::{Op, Place, Probe, Setting, Step};
use super::{launch, program};
use crate::bridge;
use crate::error::{Error, Result};
use crate::namespace::{IdMap, Kind, Namespaces};
use crate::overlay::options::{Method, Options};
use crate::sys::{features, memfd, path, pidfd};

/// The names that [`run`] knows.
pub const NAMES: [&str; 31] = [
    "memfd",
    "unlinked",
    "openat2",
    "seccomp",
    "landlock",
    "bridge",
    "user",
    "idmap",
    "subuid",
    "mount",
    "pid",
    "uts",
    "ipc",
    "net",
    "cgroup",
    "time",
    "tmpfs",
    "xattr",
    "overlay",
    "lowerdir+",
    "proc",
    "proc-bind",
    "sysfs",
    "devpts",
    "mqueue",
    "pivot_root",
    "keyring",
    "veth",
    "packet",
    "tap",
    "root",
];

/// Tries one of [`NAMES`].
///
/// # Errors
/// The error that the start of a container would end in; `Spec` for another name.
///
/// Returns a number where there is more to tell than that it works: the version of Landlock's interface.
pub fn run(name: &str) -> Result<Option<u32>> {
    let fail = |step: &str, syscall, errno| Err(Error::step(step, syscall, errno, None::<&str>));
    match name {
        "memfd" => match memfd::sealed(c"r2d2-probe", b"", true) {
            Ok(_) => Ok(None),
            Err(errno) => fail("make an executable file in memory", "memfd_create", errno),
        },
        "unlinked" => program::unlinked().map(|_| None),
        "openat2" => {
            let root = path::open_root(Path::new("/"));
            let open = |root: OwnedFd| {
                path::openat2_in_root(root.as_fd(), Path::new("/"), OFlag::O_PATH, Mode::empty())
            };
            match root.and_then(open) {
                Ok(_) => Ok(None),
                Err(errno) => fail("open / inside itself", "openat2", errno),
            }
        }
        "seccomp" => features::seccomp().map(|()| None).or_else(|e| fail("ask for seccomp", "seccomp", e)),
        "landlock" => {
            features::landlock().map(Some).or_else(|e| fail("ask for Landlock", "landlock_create_ruleset", e))
        }
        "bridge" => bridge::probe::probe().map(|()| None),
        _ => in_child(name).map(|()| None),
    }
}

fn in_child(name: &str) -> Result<()> {
    let mut builder = Builder::default();
    builder.plan(name)?;
    builder.push(Op::Probe(Probe::Enough));
    let plan = Plan { steps: builder.steps, ..Plan::default() };
    let spawned = launch::spawn(&plan, [-1; 3], &pidfd::never)?;
    // It has ended or is about to: exit_group(2) was its last step.
    spawned.wait(Some(Duration::from_secs(5)), &pidfd::never).map(drop)
}

#[derive(Default)]
struct Builder {
    steps: Vec<Step>,
}

impl Builder {
    fn push(&mut self, op: Op) {
        self.steps.push(Step { op, why: "to find out whether it works", optional: false });
    }

    /// New namespaces beside a user namespace, entered as `userns="auto"` does.
    fn enter(&mut self, kinds: &[Kind]) -> Result<()> {
        let map = if Uid::effective().is_root() { IdMap::identity()? } else { IdMap::single() };
        self.enter_with(Some(map), kinds);
        Ok(())
    }

    fn enter_with(&mut self, map: Option<IdMap>, kinds: &[Kind]) {
        let user = map.iter().map(|_| Kind::User);
        let namespaces: Namespaces = user.chain(kinds.iter().copied()).collect();
        self.push(Op::Clone { namespaces });
        if let Some(map) = map {
            self.push(Op::IdMap(map));
        }
        if kinds.contains(&Kind::Mount) {
            self.push(Op::Private);
        }
    }

    fn unshare(&mut self, kind: Kind) -> Result<()> {
        self.enter(&[])?;
        self.push(Op::Unshare { namespaces: [kind].into_iter().collect() });
        Ok(())
    }

    /// A tmpfs that only the probe sees, over any directory.
    fn stage(&mut self) -> Result<PathBuf> {
        let stage = stage()?;
        self.mount(c"tmpfs", Vec::new(), &stage)?;
        Ok(stage)
    }

    fn mount(&mut self, fstype: &CStr, settings: Vec<Setting>, at: &Path) -> Result<()> {
        self.push(Op::Mount {
            fstype: fstype.into(),
            source: fstype.into(),
            settings,
            attributes: 0xE, // no setuid programs, devices, programs
            at: Place::Host(c(at)?),
        });
        Ok(())
    }

    fn overlay(&mut self, method: Method) -> Result<()> {
        self.enter(&[Kind::Mount])?;
        let stage = self.stage()?;
        for name in ["a", "b", "upper", "work", "root"] {
            self.push(Op::Directory { at: Place::Host(c(&stage.join(name))?), mode: 0o755 });
        }
        let options = Options {
            lowers: vec![stage.join("a"), stage.join("b")],
            upper: Some(stage.join("upper")),
            work: Some(stage.join("work")),
            userxattr: true,
            user_namespace: true,
            volatile: true,
            redirect: false,
        };
        let settings = settings(&options.plan(method, 0)?)?;
        self.mount(c"overlay", settings, &stage.join("root"))
    }

    fn plan(&mut self, name: &str) -> Result<()> {
        use Kind::{Ipc, Mount, Net, Pid, Uts};
        match name {
            "user" => self.push(Op::Clone { namespaces: [Kind::User].into_iter().collect() }),
            "idmap" => self.enter(&[])?,
            "subuid" => self.enter_with(Some(IdMap::delegated()?), &[]),
            "root" => self.enter_with(None, &[Mount, Pid, Uts, Ipc, Net]),
            "mount" => self.enter(&[Mount])?,
            "pid" => self.enter(&[Pid])?,
            "ipc" => self.enter(&[Ipc])?,
            "uts" => {
                self.enter(&[Uts])?;
                self.push(Op::Hostname(c"r2d2".into()));
            }
            "net" => {
                self.enter(&[Net])?;
                self.push(Op::Loopback);
            }
            "cgroup" => self.unshare(Kind::Cgroup)?,
            "time" => {
                self.unshare(Kind::Time)?;
                self.push(Op::TimeOffsets { text: c"monotonic 1 0\n".into() });
            }
            "tmpfs" => {
                self.enter(&[Mount])?;
                self.stage()?;
            }
            "xattr" => {
                self.enter(&[Mount])?;
                let file = c(&self.stage()?.join("file"))?;
                self.push(Op::File { at: Place::Host(file.clone()), mode: 0o600, text: Vec::new() });
                self.push(Op::Probe(Probe::Attribute(file)));
            }
            "overlay" => self.overlay(Method::here())?,
            "lowerdir+" => self.overlay(Method::Append)?,
            "proc" => {
                self.enter(&[Mount, Pid])?;
                self.push(proc(Place::Host(c"/proc".into())));
            }
            "proc-bind" => {
                self.enter(&[Mount, Pid])?;
                let at = Place::Host(c(&stage()?)?);
                let source = Place::Host(c"/proc".into());
                self.push(Op::Bind { source, at, recursive: true, attributes: 0xF });
            }
            "sysfs" => {
                self.enter(&[Mount, Net])?;
                self.mount(c"sysfs", Vec::new(), &stage()?)?;
            }
            "devpts" => {
                self.enter(&[Mount])?;
                self.mount(c"devpts", Vec::new(), &stage()?)?;
            }
            "mqueue" => {
                self.enter(&[Mount, Ipc])?;
                self.mount(c"mqueue", Vec::new(), &stage()?)?;
            }
            "pivot_root" => {
                self.enter(&[Mount])?;
                let path = c(&self.stage()?)?;
                self.push(Op::Root { path });
                self.push(Op::PivotRoot);
            }
            "keyring" => {
                self.enter(&[])?;
                self.push(Op::Keyring);
            }
            "veth" | "packet" | "tap" => {
                self.enter(&[Net])?;
                self.push(Op::Probe(match name {
                    "veth" => Probe::Veth,
                    "packet" => Probe::Packet,
                    _ => Probe::Tap,
                }));
            }
            other => {
                let known = NAMES.join(", ");
                return Err(Error::spec(format!("probe {other:?}: not one of {known}")));
            }
        }
        Ok(())
    }
}

/// Any directory of the host's: what is mounted over it is seen by the probe alone.
fn stage() -> Result<PathBuf> {
    ["/tmp", "/run", "/mnt", "/var/tmp", "/usr", "/etc"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_dir() && !path.is_symlink())
        .ok_or_else(|| Error::Unsupported {
            message: "none of /tmp /run /mnt /var/tmp /usr /etc is a directory to mount over".into(),
            errno: crate::error::Errno::ENOENT,
        })
}

fn c(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::spec("a path with a zero byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_plan() {
        for name in NAMES.into_iter().skip_while(|name| *name != "user") {
            let mut builder = Builder::default();
            match builder.plan(name) {
                Ok(()) => assert!(!builder.steps.is_empty(), "{name}"),
                Err(Error::Unsupported { .. }) if name == "subuid" => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert!(matches!(run("teleport"), Err(Error::Spec { .. })));
    }

    #[test]
    fn a_probe_fails_as_a_start_does() {
        run("user").unwrap();
        let mut builder = Builder::default();
        builder.enter(&[Kind::Mount]).unwrap();
        builder.mount(c"nosuchfs", Vec::new(), Path::new("/tmp")).unwrap();
        let plan = Plan { steps: builder.steps, ..Plan::default() };
        let error = launch::spawn(&plan, [-1; 3], &pidfd::never).unwrap_err();
        assert_eq!(error.errno(), Some(crate::error::Errno::ENODEV));
        assert!(error.to_string().starts_with("step 4 of 4, mount nosuchfs on /tmp: fsopen"), "{error}");
    }
}
