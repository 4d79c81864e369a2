"""Where this process runs, as far as files tell: read for advice and defaults, never to decide what works."""

from __future__ import annotations

import os
import sys


def read(path: str) -> str | None:
    """The text of a small file, stripped; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def sysctl(name: str) -> str | None:
    """``sysctl("kernel.pid_max")``; None if this kernel does not have it (sysctl(8))."""
    return read("/proc/sys/" + name.replace(".", "/"))


def number(name: str) -> int | None:
    """A sysctl that is a number."""
    text = sysctl(name)
    return int(text) if text is not None and text.isdigit() else None


def release() -> tuple[int, int]:
    """The kernel's version: (6, 12)."""
    parts = os.uname().release.replace("-", ".").split(".")
    first, second = (int(part) if part.isdigit() else 0 for part in (*parts, "0")[:2])
    return first, second


def imitation() -> str | None:
    """``"wsl1"`` or ``"gvisor"``, which speak Linux's system calls without being Linux."""
    kernel = os.uname()
    if kernel.release.endswith("-Microsoft"):
        return "wsl1"
    if "gvisor" in kernel.release.lower() or kernel.version == "#1 SMP Sun Jan 10 15:06:54 PST 2016":
        return "gvisor"
    return None


def engine() -> str | None:
    """What contains this process: ``"docker"``, ``"podman"``, ``"kubernetes"``, ``"lxc"`` …; or None."""
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if os.path.exists("/.dockerenv"):
        return "docker"
    name = read("/run/systemd/container") or os.environ.get("container")  # noqa: SIM112 - systemd's name
    return (name.split("-")[0] or None) if name and name != "r2d2" else None


def status(field: str) -> str | None:
    """A field of ``/proc/self/status`` (proc_pid_status(5))."""
    for line in (read("/proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return value.strip()
    return None


def filtered() -> bool:
    """Whether a seccomp filter applies to this process."""
    return status("Seccomp") == "2"


def privileged(capability: int = 21) -> bool:
    """Whether this process has a capability; 21 is CAP_SYS_ADMIN (capabilities(7))."""
    return bool(int(status("CapEff") or "0", 16) >> capability & 1)


def mounts() -> list[tuple[str, str]]:
    """(mount point, file system type) of ``/proc/self/mountinfo``, in its order."""
    found = []
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        if len(fields) > 4 and tail:
            point = fields[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                point = point.replace(code, char)
            found.append((point, tail.split(" ")[0]))
    return found


def filesystem(path: str) -> str | None:
    """The type of the file system that holds ``path``."""
    path = os.path.realpath(path)
    best: tuple[int, str] | None = None
    for point, kind in mounts():
        within = point in ("/", path) or path.startswith(point + "/")
        if within and (best is None or len(point) >= best[0]):
            best = (len(point), kind)
    return best[1] if best else None


def below(top: str) -> list[str]:
    """The mount points under a directory."""
    return sorted({point for point, _ in mounts() if point.startswith(top + "/")})


def chrooted() -> bool:
    """Whether the root directory is not the root of a mount, which chroot(2) alone brings about."""
    points = mounts()
    return bool(points) and all(point != "/" for point, _ in points)


def unmapped() -> bool:
    """Whether this process's ids have no meaning in its user namespace (user_namespaces(7))."""
    maps = read("/proc/self/uid_map")
    if maps is None:
        return False
    uid = os.geteuid()
    ranges = [line.split() for line in maps.splitlines()]
    return not any(len(row) == 3 and int(row[0]) <= uid < int(row[0]) + int(row[2]) for row in ranges)


def pids_cgroup() -> tuple[str, int] | None:
    """The nearest cgroup of this process that is full of processes: its file and its limit (cgroups(7))."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "pids" not in controllers.split(","):
            continue
        top = "/sys/fs/cgroup" + ("/pids" if controllers else "")
        directory = top + path.rstrip("/")
        while directory.startswith(top):
            limit, current = read(directory + "/pids.max"), read(directory + "/pids.current")
            if limit and current and limit.isdigit() and int(current) + 2 >= int(limit):
                return directory + "/pids.max", int(limit)
            directory = os.path.dirname(directory)
    return None


def apparmor_restricts() -> bool:
    """Whether AppArmor strips user namespaces made by unconfined programs (Ubuntu 23.10 and later)."""
    return sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1" and not privileged()


def selinux_enforces() -> bool:
    """Whether SELinux denies what its policy does not allow."""
    return read("/sys/fs/selinux/enforce") == "1"


def interpreter() -> str:
    """The program that AppArmor would name a profile for."""
    return os.path.realpath(sys.executable or "/proc/self/exe")
