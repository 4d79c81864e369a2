"""What a test left running: processes, and networks by their names.

pytest loads this module in every run, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2d2 import Network


def children(pid: int | None = None) -> set[int]:
    """Processes that a process has (proc_pid_task(5)); ours by default, but for those of ``ahead``."""
    ahead: Any = sys.modules.get("r2d2.testing.ahead") if pid is None else None
    apart = () if ahead is None else ahead.threads()
    found: set[int] = set()
    with contextlib.suppress(OSError):
        tasks = f"/proc/{pid or 'self'}/task"
        for task in os.listdir(tasks):
            # As pathlib would, in a fraction of the time: each test with a container pays for it.
            if task not in apart:
                with (
                    contextlib.suppress(OSError),
                    open(f"{tasks}/{task}/children", "rb", buffering=0) as file,
                ):
                    found.update(map(int, file.read().split()))
    return found if ahead is None else found - ahead.known()


def _named(pids: Iterable[int]) -> dict[int, str]:
    """Those of them that still run, and what they are called (proc_pid_comm(5))."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


def networks() -> list[Network]:
    """Networks of containers that are open."""
    switch: Any = sys.modules.get("r2d2.switch")
    return [] if switch is None else list(switch.open_networks)


def left(new: set[int], opened: Iterable[Network], owned: set[int]) -> list[str]:
    """Which of these still run and belong to no fixture that lives on.

    Args:
        new: processes that the test started.
        opened: networks that it opened and did not close.
        owned: processes of fixtures that are still there.
    """
    named = {each.pid: f"network {each.name} (pid {each.pid})" for each in opened}
    pool: Any = sys.modules.get("r2d2.pool")
    others = bool(owned) or bool(pool is not None and pool.open_pools)
    own = "".join(_named([os.getpid()]).values())
    deadline = time.monotonic() + 0.2
    while True:
        found = _named(new & children() - owned - named.keys())
        if others:  # what r2d2 itself has beside PID 1s, and containers of pools, are theirs
            found = {pid: name for pid, name in found.items() if not name.startswith("r2d2-")}
        # One that was just forked may have our own name, even when its execve was said to have succeeded.
        named_anew = own not in found.values()
        if not found or (named_anew and not others) or time.monotonic() > deadline:
            return [*named.values(), *(f"{name} (pid {pid})" for pid, name in sorted(found.items()))]
        time.sleep(0.01)
