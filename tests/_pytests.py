"""What tests of the pytest plugin share: pytest in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _proc import strange

if TYPE_CHECKING:
    from collections.abc import Callable

#: With xdist and pytest-timeout as in any project; other plugins where a test names them.
QUIET = ("-p", "no:asyncio", "-p", "no:testinfra", "-p", "no:cacheprovider")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs pytest over the files that were made."""

    def runner(*args: str, plugins: tuple[str, ...] = QUIET) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*plugins, *args)

    return runner


def running(*args: str) -> list[str]:
    """The processes with these arguments."""
    wanted = "\0".join(args).encode() + b"\0"
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted and not strange(pid):
                found.append(pid)
        except OSError:
            continue
    return found
