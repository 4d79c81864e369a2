"""Advice: from the facts of a failure (step, system call, errno, what else is known) to what to do about it.

``hint_words`` holds the words by id, ``_RULES`` says when each applies. The first rule that fits wins: what
is known for sure stands before what is likely, and the remedy that touches least before the one that needs
an administrator. Sysctls and files are read only after something failed, and only to choose the words: what
works is found by trying.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from .hint_words import HINTS

if TYPE_CHECKING:
    from collections.abc import Callable


class Failure(NamedTuple):
    """The facts of a failure."""

    kind: str
    op: str
    syscall: str
    errno: str
    detail: str
    path: str
    message: str


Answer = bool | str | dict[str, object] | None


def hint_for(
    kind: str,
    step: str | None,
    syscall: str | None,
    errno: int | None,
    detail: str | None,
    path: str | None = None,
    message: str = "",
) -> str | None:
    """The remedy for a failed step, or None where none is known."""
    failure = Failure(
        kind=kind,
        op=re.sub(r"^step \d+ of \d+, ", "", step or ""),
        syscall=syscall or "",
        errno=_errno.errorcode.get(errno or 0, "").replace("ENOTSUP", "EOPNOTSUPP"),
        detail=detail or "",
        path=path or "",
        message=message,
    )
    if failure.op.startswith("execute "):
        return hint_for_program(failure.syscall, errno or 0, failure.op.removeprefix("execute "))
    return _look_up(failure, _RULES)


def hint_for_program(stage: str, errno: int, program: str) -> str | None:
    """The remedy for a program that could not be started."""
    number = _errno.errorcode.get(errno, "")
    return _look_up(Failure("program", stage, stage, number, "", program, ""), _PROGRAM_RULES)


def _look_up(failure: Failure, rules: tuple[Rule, ...]) -> str | None:
    for op, numbers, hint, applies in rules:
        if numbers and failure.errno not in numbers.split():
            continue
        if not re.match(op, failure.op):
            continue
        try:
            answer = applies(failure) if applies else True
        except (OSError, ValueError):
            continue  # a fact that cannot be read chooses no words
        if answer is None or answer is False:
            continue
        words = answer if isinstance(answer, str) else hint
        fields = answer if isinstance(answer, dict) else {}
        return HINTS[words].format(**{"program": failure.path, **fields})
    return None


# Conditions. Each says whether its rule applies: True, the id of a more exact hint, or what fills its words.


def _imitation(failure: Failure) -> Answer:
    from .surroundings import imitation

    kind = imitation() if failure.kind in ("step", "unsupported") else None
    return f"platform.{kind}" if kind else None


def _old(_: Failure) -> Answer:
    from .surroundings import release

    return {"release": os.uname().release} if release() < (5, 12) else None


def _chrooted(failure: Failure) -> Answer:
    from .surroundings import chrooted

    return "user" in failure.op and chrooted()


def _unmapped(failure: Failure) -> Answer:
    from .surroundings import unmapped

    return "user" in failure.op and unmapped()


def _debian(_: Failure) -> Answer:
    from .surroundings import privileged, sysctl

    return sysctl("kernel.unprivileged_userns_clone") == "0" and not privileged()


def _seccomp(_: Failure) -> Answer:
    from .surroundings import engine, filtered

    if not filtered():
        return None
    hint = f"seccomp.{engine()}"
    return hint if hint in HINTS else "seccomp.other"


def _seccomp_memfd(failure: Failure) -> Answer:
    return _seccomp(failure) if failure.syscall in ("memfd_create", "execveat") else None


def _apparmor(_: Failure) -> Answer:
    from .surroundings import apparmor_restricts, interpreter

    return {"interpreter": interpreter()} if apparmor_restricts() else None


def _profile(_: Failure) -> Answer:
    from .surroundings import read

    profile = read("/proc/self/attr/apparmor/current") or read("/proc/self/attr/current") or ""
    return {"profile": profile.rsplit(" ", 1)[0]} if profile.endswith("(enforce)") else None


def _selinux(_: Failure) -> Answer:
    from .surroundings import selinux_enforces

    return selinux_enforces()


def _no_user_namespace(failure: Failure) -> Answer:
    # What a plan with a user namespace clones or unshares names it.
    return failure.op.startswith("clone") and "user" not in failure.op and "()" not in failure.op


_COUNTS = {
    "user": "user", "mount": "mnt", "pid": "pid", "uts": "uts", "ipc": "ipc", "net": "net",
    "cgroup": "cgroup", "time": "time",
}  # fmt: skip


def _zero(failure: Failure) -> Answer:
    from .surroundings import number

    for kind, short in _COUNTS.items():
        sysctl = f"max_{short}_namespaces"
        if kind in failure.op and number(f"user.{sysctl}") == 0:
            return {"sysctl": sysctl}
    return None


def _missing_kind(failure: Failure) -> Answer:
    for kind in _COUNTS:
        link = "mnt" if kind == "mount" else kind
        if (
            kind in failure.op
            and not os.path.exists(f"/proc/self/ns/{link}")
            and os.path.exists("/proc/self/ns")
        ):
            return {"what": f"{kind} namespaces"}
    return None


def _nproc(_: Failure) -> Answer:
    import resource

    soft, _hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY:
        return None
    uid, tasks = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    tasks += len(os.listdir(entry.path + "/task"))
            except OSError:
                continue  # ended meanwhile
    return {"limit": soft} if tasks + 1 >= soft else None


def _pids(_: Failure) -> Answer:
    from .surroundings import pids_cgroup

    full = pids_cgroup()
    return {"file": full[0], "limit": full[1]} if full else None


def _dead_pid1(_: Failure) -> Answer:
    try:
        own, children = os.stat("/proc/self/ns/pid").st_ino, os.stat("/proc/self/ns/pid_for_children").st_ino
    except FileNotFoundError:
        return True  # pid_for_children cannot be followed once that namespace is dead
    return own != children


def _descriptors(_: Failure) -> Answer:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": "RLIM_INFINITY" if hard == resource.RLIM_INFINITY else hard}


def _few_descriptors(failure: Failure) -> Answer:
    # fcntl(F_DUPFD) says EINVAL where the limit is below the number it was asked to start from.
    return _descriptors(failure) if failure.syscall in ("fcntl", "dup3") else None


def _no_proc(failure: Failure) -> Answer:
    if failure.errno in ("EROFS", "ENOENT"):
        return True
    return not os.access("/proc/self/uid_map", os.R_OK)


def _root(_: Failure) -> Answer:
    from .surroundings import privileged

    return os.geteuid() == 0 and not (privileged(7) and privileged(6))


def _newuidmap(failure: Failure) -> Answer:
    if failure.syscall != "newuidmap":
        return None
    return "idmap.range" if "not allowed" in failure.detail else True


def _obstructed(_: Failure) -> Answer:
    from .surroundings import below, engine

    covered = below("/proc")
    if not covered:
        return "proc.hidden"
    shown = ", ".join(covered[:3]) + (" …" if len(covered) > 3 else "")
    return {"list": shown, "outer": HINTS.get(f"proc.outer.{engine()}", "")}


def _sys_obstructed(_: Failure) -> Answer:
    from .surroundings import below

    return bool(below("/sys"))


def _said(*words: str) -> Callable[[Failure], Answer]:
    return lambda failure: any(word in failure.detail for word in words)


def _layer(failure: Failure, key: str) -> str:
    match = re.search(rf"{key}=(/[^,;]*)", failure.detail)
    return match[1] if match else ""


def _volatile(failure: Failure) -> Answer:
    work = _layer(failure, "workdir")
    marker = os.path.join(work, "work", "incompat", "volatile")
    if not work or not (os.path.isdir(marker) or "incompat" in failure.detail):
        return None
    return {"work": work, "marker": os.path.dirname(marker)}


def _bad_upper(failure: Failure) -> Answer:
    from .surroundings import filesystem

    upper = _layer(failure, "upperdir")
    kind = filesystem(upper) if upper and os.path.exists(upper) else None
    if kind in (
        "overlay",
        "nfs",
        "nfs4",
        "cifs",
        "9p",
        "vfat",
        "exfat",
        "fuse",
        "virtiofs",
        "ecryptfs",
        "aufs",
    ):
        return {"upper": upper, "fstype": kind}
    return None


def _apart(failure: Failure) -> Answer:
    if "same mount" in failure.detail or "separate subtrees" in failure.detail:
        return True
    upper, work = (os.path.realpath(_layer(failure, key)) for key in ("upperdir", "workdir"))
    if not (_layer(failure, "upperdir") and _layer(failure, "workdir")):
        return None
    inside = f"{upper}/".startswith(f"{work}/") or f"{work}/".startswith(f"{upper}/")
    return inside or os.stat(upper).st_dev != os.stat(work).st_dev


def _overlay_old(_: Failure) -> Answer:
    from .surroundings import release

    return release() < (5, 11)


def _below_root(failure: Failure) -> Answer:
    return "ROOT" in failure.op


def _syscall(*names: str) -> Callable[[Failure], Answer]:
    return lambda failure: failure.syscall in names


def _says(*words: str) -> Callable[[Failure], Answer]:
    return lambda failure: any(word in failure.message for word in words)


def _subuid(failure: Failure) -> Answer:
    if "delegates no ids" not in failure.message:
        return None
    import pwd

    try:
        return {"user": pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        return {"user": str(os.geteuid())}


def _cgroup(failure: Failure) -> Answer:
    from .surroundings import engine

    if failure.kind not in ("step", "unsupported"):
        return None
    if failure.kind == "unsupported" and "cgroup" not in failure.message:
        return None
    return "cgroup.container" if engine() else True


def _bridge(failure: Failure) -> Answer:
    if failure.kind != "unsupported" or 'network="bridge"' not in failure.message:
        return None
    return "bridge.nft" if "nf_tables" in failure.message else "bridge.right"


#: (step, errnos, hint, condition): the step's words as a regular expression, no errnos for any of them.
Rule = tuple[str, str, str, "Callable[[Failure], Answer] | None"]

_MOUNTING = (
    r"(mount|bind|remount|make all mounts|pivot_root|take|unshare|bring up|set the host name|make a pair)"
)
_DENIED = "EPERM EACCES"

_RULES: tuple[Rule, ...] = (
    ("", "", "bridge.right", _bridge),
    ("", "", "", _imitation),
    ("", "ENOSYS", "kernel.old", _old),
    # Arguments and hosts: no step
    ("$", "", "subuid.program", _says("newuidmap is not in PATH", "newgidmap is not in PATH")),
    ("$", "", "subuid.range", _subuid),
    ("$", "EROFS", "overlay.readonly", _says("cannot be written")),
    ("$", "EOPNOTSUPP EACCES EPERM EROFS", "cgroup.delegate", _cgroup),
    # Namespaces
    ("clone", "EPERM", "userns.chroot", _chrooted),
    ("clone", "EPERM", "userns.unmapped", _unmapped),
    ("clone", "EPERM", "userns.debian", _debian),
    ("(clone|unshare)", "EPERM EACCES ENOSYS", "", _seccomp),
    ("clone", _DENIED, "userns.root", _no_user_namespace),
    ("clone", _DENIED, "userns.apparmor", _apparmor),
    ("clone", _DENIED, "userns.selinux", _selinux),
    ("clone", _DENIED, "userns.restricted", None),
    ("(clone|unshare)", "ENOSPC", "userns.limit.zero", _zero),
    ("(clone|unshare)", "ENOSPC", "userns.limit", None),
    ("(clone|unshare)", "EUSERS", "userns.old", None),
    ("(clone|unshare)", "EINVAL", "kernel.missing", _missing_kind),
    ("clone", "EAGAIN", "clone.nproc", _nproc),
    ("clone", "EAGAIN", "clone.pids", _pids),
    ("clone", "EAGAIN", "clone.threads", None),
    ("clone", "ENOMEM", "clone.dead", _dead_pid1),
    ("clone", "ENOMEM", "clone.memory", None),
    # Descriptors, anywhere
    ("", "EMFILE", "descriptors", _descriptors),
    ("", "ENFILE", "descriptors.machine", None),
    ("", "EINVAL EBADF", "descriptors", _few_descriptors),
    # Id maps
    ("write the id maps", "", "idmap.nosuid", _newuidmap),
    ("(write the id maps|read our own id map)", "EROFS ENOENT EACCES", "idmap.proc", _no_proc),
    ("write the id maps", _DENIED, "idmap.root", _root),
    ("write the id maps", _DENIED, "userns.apparmor", _apparmor),
    ("write the id maps", _DENIED, "userns.selinux", _selinux),
    ("write the id maps", _DENIED, "idmap.single", None),
    # Control groups
    ("create and join", "EACCES EPERM EROFS ENOENT", "cgroup.delegate", _cgroup),
    ("create and join", "EBUSY", "cgroup.busy", None),
    # /proc and /sys: first what everything else about mounts would also explain
    ("(mount|bind|remount|make all|pivot_root)", "EPERM ENOSYS", "", _seccomp),
    ("mount (proc|sysfs|overlay|tmpfs|devpts|mqueue)", _DENIED, "userns.apparmor", _apparmor),
    ("mount proc", "EPERM", "proc.obstructed", _obstructed),
    ("mount sysfs", "EPERM", "sysfs.obstructed", _sys_obstructed),
    # Overlays
    ("mount overlay", "ENODEV", "overlay.missing", None),
    ("mount overlay", "EPERM", "overlay.old", _overlay_old),
    ("mount overlay", "EINVAL ESTALE EBUSY EEXIST", "overlay.volatile", _volatile),
    ("mount overlay", "ESTALE", "overlay.stale", None),
    ("mount overlay", "EBUSY", "overlay.busy", None),
    ("mount overlay", "ELOOP", "overlay.loop", None),
    ("mount overlay", "EROFS", "overlay.readonly", None),
    ("mount overlay", "EINVAL", "overlay.readonly", _said("upper fs is r/o", "is read-only")),
    ("mount overlay", "EINVAL EPERM", "overlay.apart", _apart),
    ("mount overlay", "EINVAL EPERM", "overlay.clone", _said("failed to clone")),
    ("mount overlay", "EINVAL EPERM EOPNOTSUPP", "overlay.upper", _bad_upper),
    ("mount overlay", "EINVAL EPERM EOPNOTSUPP", "overlay.features", _said("upperdir=")),
    ("mount overlay", "EACCES", "overlay.access", None),
    # Mounts
    ("(mount|bind)", "ENOSPC", "mount.many", _syscall("move_mount", "open_tree")),
    ("bind", "ENOENT", "mount.bind.missing", _syscall("open_tree")),
    ("mount on", "ENOENT", "mount.bind.missing", None),
    ("bind", "ENOTDIR EISDIR EINVAL", "mount.bind.kind", _syscall("move_mount")),
    ("bind", "EINVAL", "mount.bind.locked", _syscall("open_tree")),
    ("(bind|remount)", "EPERM", "mount.flags", _syscall("mount_setattr")),
    ("mount", "ENODEV", "mount.type", None),
    (_MOUNTING, _DENIED, "userns.apparmor", _apparmor),
    (_MOUNTING, _DENIED, "apparmor.profile", _profile),
    (_MOUNTING, _DENIED, "userns.selinux", _selinux),
    ("pivot_root", "EINVAL", "pivot_root", None),
    # What is put into the root
    ("(make directory|write|link|mount|bind)", "EROFS", "target.readonly", None),
    ("(make directory|write|link|mount|bind)", "ENOSPC ENOMEM", "space", None),
    ("", "ENOSPC EDQUOT", "space.host", None),
    ("(make directory|write|link) ROOT", "ENOTDIR EISDIR", "target.kind", None),
    ("(mount|bind)", "ENOTDIR EISDIR", "target.kind", _below_root),
    ("(make directory|write|link|mount|bind)", "ENOENT ELOOP EACCES", "target.missing", _below_root),
    # PID 1
    ("(prepare PID 1|make an executable)", _DENIED, "memfd", None),
    ("prepare PID 1", "ENOENT EROFS EOPNOTSUPP ENOTDIR EISDIR", "memfd", None),
    ("start ", _DENIED, "", _seccomp_memfd),
    ("start ", _DENIED, "memfd", None),
    ("make the tap", "ENOENT ENODEV ENXIO", "tun.missing", None),
    ("make the tap", _DENIED, "tun.denied", None),
    ("make the ", "EBUSY EEXIST", "tun.taken", None),
    ("make the veth pair", "EOPNOTSUPP", "bridge.veth", None),
    ("choose a subnet", "EADDRINUSE", "bridge.subnet", None),
    ("choose an address", "EADDRNOTAVAIL", "bridge.addresses", None),
    ("make the firewall's table", "ENOENT EOPNOTSUPP EPROTONOSUPPORT", "bridge.nft", None),
    ("join a new session keyring", "EDQUOT ENOSYS EACCES", "keyring", None),
)  # fmt: skip

_PROGRAM_RULES: tuple[Rule, ...] = (
    ("execve", "ENOENT ENOTDIR", "program.loader", lambda failure: "/" in failure.path),
    ("execve", "ENOENT ENOTDIR", "program.missing", None),
    ("execve", "EACCES EPERM", "program.denied.path", lambda failure: "/" not in failure.path),
    ("execve", "EACCES EPERM", "program.denied", None),
    ("execve", "ENOEXEC", "program.format", None),
    ("execve", "E2BIG", "program.long", None),
    ("execve", "ETXTBSY", "program.busy", None),
    ("execve", "ELOOP", "program.loop", None),
    ("execve", "ENOMEM", "program.memory", None),
    ("fork", "ENOMEM", "program.pid1", None),
    ("fork", "EAGAIN", "program.fork", None),
    ("chdir", "ENOENT ENOTDIR ELOOP", "program.cwd.missing", None),
    ("chdir", "EACCES", "program.cwd.denied", None),
    ("setgroups", "", "program.groups", None),
    ("setresuid", "EPERM", "program.groups", None),
    ("setres[ug]id", "EINVAL", "program.user", None),
    ("ioctl", "EPERM", "program.tty", None),
    ("dup", "EMFILE EINVAL", "descriptors", _descriptors),
    ("setns", "EPERM ESRCH EINVAL", "program.setns", None),
)
