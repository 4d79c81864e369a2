"""What drawings read of a process: ``/proc/PID`` (proc(5)), as the caller may see it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2.errors import ContainerClosed, SpecError, setup_error

if TYPE_CHECKING:
    from r2d2.container import Container

__all__ = ["Subject", "id_map", "interfaces", "mount_table", "status", "subject"]


class Subject(NamedTuple):
    """What is drawn.

    Attributes:
        pid: a process of it, on the host.
        name: for people.
        container: the ``Container``, if it is one.
    """

    pid: int
    name: str
    container: Container | None


def subject(target: Any) -> Subject:
    """A container, an overlay, a process or a pid.

    Raises:
        SpecError: it is nothing of the kind.
        SetupNotFoundError: there is no such process.
        ContainerClosed: it does not run.
    """
    from r2d2.container import Container

    if isinstance(target, Container):
        return Subject(target.pid, target.name, target)
    if isinstance(target, int) and not isinstance(target, bool):
        found = status(target)
        if not found:
            raise setup_error(2, os.strerror(2), f"/proc/{target}")
        return Subject(target, found.get("Name", ""), None)
    pid = getattr(target, "pid", None)
    if isinstance(pid, int) and pid > 0:
        name = getattr(target, "name", None)
        return Subject(pid, name if isinstance(name, str) else status(pid).get("Name", ""), None)
    if hasattr(type(target), "pid"):
        raise ContainerClosed(f"{target!r} does not run")
    raise SpecError(f"{target!r}: not a container, an overlay, a process or a pid")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except OSError:
        return ""


def status(pid: int) -> dict[str, str]:
    """``/proc/PID/status`` (proc_pid_status(5)); empty if there is no such process."""
    pairs = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {key: value.strip() for key, _, value in pairs}


def command(pid: int) -> str:
    """Its command line, or its name in brackets, as ps(1) shows them."""
    words = _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ")
    return words or f"[{status(pid).get('Name', '?')}]"


def id_map(pid: int, kind: str) -> list[tuple[int, int, int]]:
    """``/proc/PID/uid_map`` or ``gid_map``: (inside, outside, count), user_namespaces(7)."""
    rows = []
    for line in _read(f"/proc/{pid}/{kind}_map").splitlines():
        first, outer, count = (int(word) for word in line.split())
        rows.append((first, outer, count))
    return rows


def interfaces(pid: int) -> list[str]:
    """Its network interfaces (proc_pid_net(5))."""
    lines = _read(f"/proc/{pid}/net/dev").splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


class MountRow(NamedTuple):
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    number: int
    parent: int
    root: str
    point: str
    options: list[str]
    fstype: str
    source: str
    super_options: list[str]

    @property
    def readonly(self) -> bool:
        """Whether writes through this mount are refused."""
        return "ro" in self.options or "ro" in self.super_options


def mount_table(pid: int) -> list[MountRow]:
    """``/proc/PID/mountinfo``, in its order.

    Raises:
        SetupPermissionError: it may not be read.
    """
    from r2d2.layers import _unescaped

    table = []
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise setup_error(error.errno or 0, error.strerror or "", f"/proc/{pid}/mountinfo") from None
    for line in lines:
        head, _, tail = line.partition(b" - ")
        fields, rest = head.split(b" "), tail.split(b" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        root, point, source = (os.fsdecode(_unescaped(text)) for text in (fields[3], fields[4], rest[1]))
        table.append(
            MountRow(
                int(fields[0]), int(fields[1]), root, point, os.fsdecode(fields[5]).split(","),
                os.fsdecode(rest[0]), source, os.fsdecode(rest[2]).split(","),
            )
        )  # fmt: skip
    return table
