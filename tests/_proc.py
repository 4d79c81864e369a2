"""Looks at processes, mounts and cgroups; waiting with a deadline."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def stat(pid: int | str) -> tuple[str, str, int] | None:
    """Name, state and parent of a process (proc_pid_stat(5)); None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, fields[0], int(fields[1])


_RUN = r"/(r2d2-ci-\w+-\w+)"


def _run(pid: int | str) -> str | None:
    """Which run of the suite a process belongs to: .ci/run has two, each with control groups of its own."""
    try:
        found = re.search(_RUN, Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return found and found[1]


def strange(pid: int | str) -> bool:
    """Whether a process belongs to the run beside this one."""
    return (run := _run(pid)) is not None and run != _run("self")


def ended(pid: int | str) -> bool:
    """Whether it runs no more; the machine's init may take its time to reap it."""
    return (found := stat(pid)) is None or found[1] == "Z"


def processes() -> dict[int, tuple[str, str, int]]:
    """Every process: pid to name, state, parent."""
    return {int(pid): found for pid in os.listdir("/proc") if pid.isdigit() and (found := stat(pid))}


def children(parent: int | None = None) -> dict[int, str]:
    """Children of a process: pid to name and state."""
    parent = os.getpid() if parent is None else parent
    return {pid: f"{name} {state}" for pid, (name, state, of) in processes().items() if of == parent}


def cgroups(pattern: str = "r2d2-*") -> set[str]:
    """Directories of control groups that are ours by name, below our own and the roots."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] in {"cgroup", "cgroup2"}:
            found |= {str(path) for path in Path(fields[4]).glob(pattern)}
            found |= {str(path) for path in Path(fields[4]).glob(f"*/{pattern}")}
            found |= {str(path) for path in Path(fields[4]).glob(f"*/*/{pattern}")}
    run = _run("self")
    return {
        path
        for path in found
        # Delegated by .ci/run, or the affair of the run beside this one.
        if not os.path.basename(path).startswith("r2d2-ci-")
        and not ((other := re.search(_RUN, path)) and other[1] != run)
    }


def mounts(pid: int | str = "self") -> list[str]:
    """Lines of /proc/PID/mountinfo."""
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def until(done: Callable[[], bool], seconds: float = 5.0, step: float = 0.002) -> bool:
    """Whether ``done`` came true in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return done()
        time.sleep(step)
    return True
