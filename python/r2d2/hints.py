"""Advice: from the facts of a failure (step, system call, errno, what else is known) to what to do about it.

Advice is worded here and nowhere else: ``HINTS`` holds the words by id, ``_RULES`` says when each applies.
The first rule that fits wins: what is known for sure stands before what is likely, and the remedy that
touches least before the one that needs an administrator. Sysctls and files are read only after something
failed, and only to choose the words: what works is found by trying.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is said, by id. ``{names}`` are filled in by the rule.
HINTS: dict[str, str] = {
    # The machine
    "platform.wsl1": (
        "this is WSL 1, which imitates Linux and has no namespaces: `wsl --set-version DISTRO 2` makes it "
        "WSL 2, where r2d2 works"
    ),
    "platform.gvisor": (
        "this machine is a gVisor sandbox, which imitates Linux and lacks part of what containers are made "
        "of; nothing inside it changes that: use a machine with a Linux kernel"
    ),
    "kernel.old": (
        "this kernel is {release}; r2d2 needs Linux 5.12 or later (mount_setattr(2) came with it): boot a "
        "newer kernel; distributions of 2021 and later have one"
    ),
    "kernel.missing": "this kernel was built without {what}: use another kernel, or do without it",
    # User namespaces
    "userns.chroot": (
        "this process is in a chroot, where the kernel refuses user namespaces (user_namespaces(7)): start "
        "it outside of the chroot, or enter that tree with pivot_root(2) instead (r2d2 itself does)"
    ),
    "userns.unmapped": (
        "this process runs as an id that its own user namespace does not map, and the kernel refuses it "
        "another one: map the id first (`unshare --map-root-user` instead of `unshare --user`)"
    ),
    "userns.debian": (
        "kernel.unprivileged_userns_clone is 0: this system lets only root make user namespaces; an "
        "administrator can change that: `sysctl kernel.unprivileged_userns_clone=1`"
    ),
    "userns.apparmor": (
        "AppArmor takes every capability from user namespaces made here "
        "(kernel.apparmor_restrict_unprivileged_userns=1; Ubuntu 23.10 and later): an administrator can "
        "allow one program, by a profile for {interpreter} with the rule `userns,`. It covers every script "
        "that this interpreter runs, so give it one of its own: `python3 -m venv --copies DIR`"
    ),
    "userns.selinux": (
        "SELinux is enforcing and may be what refuses this: `ausearch -m avc -ts recent` shows the rule "
        "that is missing"
    ),
    "userns.limit.zero": (
        "user.{sysctl} is 0 here, so no such namespace can be made: an administrator can raise it (`sysctl "
        "user.{sysctl}=10000`); in a namespace of your own you can do it yourself"
    ),
    "userns.limit": (
        "one of the limits user.max_*_namespaces of this user namespace, or of one around it, is used up, "
        "or namespaces are nested more than 32 deep: close containers that are no longer needed (`lsns` "
        "lists them)"
    ),
    "userns.old": "more than 32 user namespaces are nested here: start from a shallower one",
    "userns.root": (
        'userns="host" works only with the capabilities of real root, which this process lacks: leave '
        'userns at "auto"'
    ),
    "userns.restricted": (
        "this process may not make namespaces, and neither a sysctl nor a seccomp filter says why: a "
        "security module of the kernel (`cat /sys/kernel/security/lsm`) may be the reason"
    ),
    # Policies around this process
    "seccomp.docker": (
        "a seccomp filter refuses it; in a Docker container that is the container's own policy, and no "
        "setting of the host changes it: start the outer container with `--security-opt "
        "seccomp=unconfined`, or with a profile that also allows clone, unshare, mount and their kin"
    ),
    "seccomp.podman": (
        "a seccomp filter refuses it; in a Podman container that is the container's own policy: start the "
        "outer container with `--security-opt seccomp=unconfined`"
    ),
    "seccomp.kubernetes": (
        "a seccomp filter refuses it; in a pod that is the pod's own policy: give its securityContext "
        "`seccompProfile: {{type: Unconfined}}`, or a Localhost profile that also allows clone, unshare, "
        "mount and their kin"
    ),
    "seccomp.lxc": (
        "a seccomp filter refuses it; in an LXC container nesting has to be allowed from outside: `lxc "
        "config set NAME security.nesting true`, or `features: nesting=1` in Proxmox"
    ),
    "seccomp.other": (
        "a seccomp filter on this process refuses it. It came with what started this process: a systemd "
        "unit (RestrictNamespaces=, SystemCallFilter=), a sandbox, an editor or a notebook server; start "
        "from elsewhere, or allow it there"
    ),
    "apparmor.profile": (
        "this process runs under the AppArmor profile {profile}, which may refuse it; in a Docker container "
        "`--security-opt apparmor=unconfined` lifts it"
    ),
    # Processes
    "clone.nproc": (
        "the limit of processes of this user is {limit} (RLIMIT_NPROC), and it is used up: end some, or "
        "raise it (`ulimit -u`)"
    ),
    "clone.pids": (
        "the control group of this process may hold {limit} processes and is full ({file}): end some, or "
        "raise the limit where it was set (`--pids-limit` of Docker and Podman, TasksMax= of systemd)"
    ),
    "clone.threads": (
        "no more processes can be made: kernel.threads-max, kernel.pid_max or a limit around this process "
        "is used up"
    ),
    "clone.memory": (
        "the kernel has no memory for it: end something, or raise the memory limit around this process"
    ),
    "clone.dead": (
        "PID 1 of the PID namespace that new processes would be born in has ended (pid_namespaces(7)): run "
        "this in a process that did not call unshare --pid without --fork"
    ),
    "descriptors": (
        "this process may have {soft} open descriptors (RLIMIT_NOFILE) and a container needs some 50 in the "
        "moment of its start: close some, or raise the limit up to {hard}: "
        "`resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard}))`"
    ),
    "descriptors.machine": "the machine has no descriptors left (fs.file-max): end what holds them",
    # Id maps
    "idmap.proc": (
        "the id maps are written through /proc, which is missing or read-only here, or belongs to another "
        "PID namespace: mount one of this namespace on /proc"
    ),
    "idmap.root": (
        'this process is root but may not map all ids (it lacks CAP_SETUID or CAP_SETGID): userns="single" '
        "needs neither"
    ),
    "idmap.single": (
        'the kernel lets a process map its own id and nothing else; leave userns at "auto" or "single"'
    ),
    "idmap.nosuid": (
        "newuidmap cannot do its work as a setuid program here: it lost the bit, lies on a file system "
        'mounted nosuid, or this process set no_new_privs. userns="single" does without it'
    ),
    "idmap.range": (
        "newuidmap refuses ranges that /etc/subuid and /etc/subgid do not give to this user: correct the "
        'lines there, or use userns="single", which needs none'
    ),
    "subuid.program": (
        'userns="single" does without it and is enough for images with one user; for many, install '
        "newuidmap (package uidmap of Debian and Ubuntu, shadow-utils of Fedora)"
    ),
    "subuid.range": (
        'userns="single" does without them and is enough for images with one user; for many, an '
        "administrator delegates ids: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
        "{user}`"
    ),
    # Mounts
    "proc.obstructed": (
        "parts of this /proc are covered ({list}), and the kernel allows no new one that would show them "
        '(mount_namespaces(7)): proc="auto" or "bind" uses this one, read-only{outer}'
    ),
    "proc.hidden": (
        "no whole /proc can be seen in this mount namespace, and the kernel allows no new one that would "
        'show more: proc="bind" uses what is there, proc="none" does without'
    ),
    "proc.outer.docker": "; `--security-opt systempaths=unconfined` on the outer container uncovers it",
    "proc.outer.podman": "; `--security-opt unmask=ALL` on the outer container uncovers it",
    "proc.outer.kubernetes": "; `procMount: Unmasked` in the pod's securityContext uncovers it",
    "sysfs.obstructed": (
        "parts of /sys are covered here, and the kernel allows no new one that would show them; "
        'network="host" binds this one instead'
    ),
    "tun.missing": (
        "this machine has no /dev/net/tun: an administrator can make it (`modprobe tun`); "
        'device="packet" or "any" does without'
    ),
    "tun.denied": (
        "this user may not open /dev/net/tun: an administrator can allow it (`chmod 666 /dev/net/tun`, as "
        'most distributions have it); device="packet" or "any" does without'
    ),
    "tun.taken": "an interface of this name is there already: take another ifname, or end what made it",
    "bridge.slirp": 'network="slirp" can, as any user',
    "bridge.right": (
        'network="slirp" needs no privilege and reaches the same; for "bridge" start this as '
        "real root, or as root of a network namespace of your own (`unshare -Urn`)"
    ),
    "bridge.nft": (
        "an administrator can load it (`modprobe nf_tables nft_chain_nat`; CONFIG_NF_TABLES_INET, "
        'CONFIG_NFT_NAT and CONFIG_NFT_MASQ); network="slirp" needs none of it'
    ),
    "bridge.veth": (
        "an administrator can load what it is made of (`modprobe veth`); "
        'network="slirp" does without where there is a /dev/net/tun'
    ),
    "bridge.sysctl": (
        "in a container, start that with --privileged, or mount a /proc of its own that can be written; "
        'network="slirp" needs none of it'
    ),
    "bridge.forward": (
        "turn it on (`sysctl -w net.ipv4.ip_forward=1`), or say r2d2.Bridge(forward=True), which does that "
        'and leaves it on, as Docker does; network="slirp" needs none'
    ),
    "bridge.subnet": (
        "give it another network, as in r2d2.Bridge(cidr='10.99.0.0/24'); `ip route` shows what is taken"
    ),
    "bridge.addresses": "end some of the containers, or give it a larger network (r2d2.Bridge(cidr=...))",
    "bridge.closed": (
        "the host's firewall drops forwarded packets by default ({chains}), and none of its rules there is "
        "about r2d2's interfaces. No rule of r2d2's can change that; rules there can: `nft insert rule TABLE "
        "CHAIN iifname 'r2d2-*' accept`, and the same with oifname"
    ),
    "overlay.missing": (
        "this kernel has no overlay file system loaded: an administrator can load it (`modprobe overlay`); "
        "a directory used directly needs none (r2d2.Image.directory)"
    ),
    "overlay.old": "overlays in a user namespace came with Linux 5.11",
    "overlay.upper": (
        "{upper} lies on {fstype}, which cannot hold an upper layer: leave out upper and work (writes go to "
        "memory), or take directories on ext4, xfs, btrfs or a tmpfs"
    ),
    "overlay.readonly": (
        "the upper layer lies on a file system mounted read-only: take another directory, or leave out "
        "upper and work (writes go to memory)"
    ),
    "overlay.volatile": (
        "{work} was left behind by an overlay mounted volatile, so the kernel cannot tell whether its upper "
        "layer is whole: start with an empty upper and work directory, or, if a loss does not matter, "
        "remove {marker}"
    ),
    "overlay.busy": (
        "another overlay uses this upper layer or its work directory: give each container its own"
    ),
    "overlay.stale": (
        "this upper layer was made over other lower layers (or they were copied since): use the same ones, "
        "or start with an empty upper and work directory"
    ),
    "overlay.loop": (
        "two of the layers overlap, one lying in another: every layer, upper and work needs a place of its "
        "own, and upper and work share one file system"
    ),
    "overlay.apart": "upper and work must be two directories of one mount, neither inside the other",
    "overlay.clone": (
        "mounts lie below this layer that the kernel does not take apart in a user namespace: use a "
        "directory without mounts in it, or a copy"
    ),
    "overlay.access": (
        "an overlay opens its layers as you: this user must be able to read them and to enter every "
        "directory above"
    ),
    "overlay.features": (
        "the file system of the upper layer lacks what overlayfs needs (d_type, user.* attributes, "
        "RENAME_WHITEOUT): leave out upper and work (writes go to memory), or take ext4, xfs or btrfs"
    ),
    "mount.bind.missing": "the source of a bind mount must exist on the host",
    "mount.bind.kind": (
        "a file can be mounted on a file only, and a directory on a directory: make the target the same "
        "kind as the source"
    ),
    "mount.bind.locked": (
        "mounts below the source may not be taken apart here: recursive=True takes them along"
    ),
    "mount.flags": (
        "a mount from outside keeps its nosuid, nodev, noexec and read-only flags in a user namespace"
    ),
    "mount.many": "fs.mount-max mounts exist in this mount namespace already",
    "target.missing": "the image has no such path, and it could not be made: choose another target",
    "target.kind": "the image has a file where a directory is needed: choose another target",
    "target.readonly": (
        "the file system there is read-only: choose a target that the image has, or do not mount it read-only"
    ),
    "space": (
        "the memory file system that takes the container's writes is full: raise tmpfs_size, or use upper "
        "and work directories on disk"
    ),
    "space.host": "the file system is full: remove something, or raise the quota",
    "pivot_root": (
        "pivot_root(2) refuses a root that is no mount point, or to leave an initramfs (rootfs), as on some "
        "live systems: switch to a real root file system first"
    ),
    "mount.type": "this kernel has no file system of that type, or its module is not loaded",
    # Control groups
    "cgroup.delegate": (
        "no control group may be written here: `systemd-run --user --scope -p Delegate=yes COMMAND` runs a "
        "program in one that may; Limits(best_effort=True) accepts what binds without"
    ),
    "cgroup.container": (
        "the container around this process gives it no control group to write to: limit the outer "
        "container, or Limits(best_effort=True) accepts what binds without"
    ),
    "cgroup.busy": (
        "cgroup v2 allows no processes in a group that has controllers for others, and one is in the way"
    ),
    # PID 1
    "memfd": (
        "executing files from memory is forbidden (vm.memfd_noexec, or a seccomp filter) and no directory "
        "stood in for it: let one of $XDG_RUNTIME_DIR, /tmp, /var/tmp and /dev/shm be writable and mounted "
        "without noexec"
    ),
    "ping": (
        "net.ipv4.ping_group_range does not hold the group of this process ({group}); an administrator can "
        "change that: `sysctl net.ipv4.ping_group_range='0 2147483647'`. Everything but ping works without"
    ),
    "directory": "set {variable} to a directory that this user may write to",
    "keyring": "the kernel's keyrings of this user are full or not to be had",
    # Programs
    "program.missing": (
        "{program} is not there: the first word must be a program in the container's PATH, or a path in the "
        "container"
    ),
    "program.loader": "{program} may be there while the loader or interpreter that it names (#!, ELF) is not",
    "program.denied": (
        "{program} may not be executed: it lacks the x permission for this user, is a directory, or lies on "
        "a mount with noexec"
    ),
    "program.denied.path": (
        "a directory of PATH may not be entered by this user, or what lies there as {program} may not be "
        "executed: name the program by its path"
    ),
    "program.format": (
        "{program} is neither a program for this machine's architecture nor a script with a #! line: run it "
        "with its interpreter, as in ['sh', '{program}']"
    ),
    "program.long": (
        "arguments and environment exceed what execve(2) takes (a quarter of RLIMIT_STACK, 128 KiB a "
        "string): pass the data as input or in a file"
    ),
    "program.busy": "{program} is open for writing: close it first",
    "program.loop": "{program} leads through too many symbolic links, or to itself",
    "program.memory": "there is not enough memory for it: raise the container's memory limit",
    "program.pid1": "no more processes can be made here: PID 1 of this PID namespace has ended",
    "program.fork": "the container may not have more processes: raise limits pids, or RLIMIT_NPROC",
    "program.cwd.missing": (
        "the working directory is not there: choose another cwd or workdir, or make it first"
    ),
    "program.cwd.denied": (
        "the program's user may not enter the working directory: choose another cwd or workdir"
    ),
    "program.user": (
        'the container has no such id. With userns="single" it has one, 0: run as root inside, or use '
        'userns="subuid" for more'
    ),
    "program.groups": (
        'with one mapped id the kernel denies setgroups(2): leave out the groups, or use userns="subuid"'
    ),
    "program.tty": (
        "the terminal belongs to another session already: give it a terminal of its own (tty=True)"
    ),
    "program.setns": (
        "the process that was entered has ended, or its namespaces belong to a more privileged user"
    ),
}


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
