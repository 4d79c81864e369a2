"""What tests with r2d2 cost, beside tests without.

    python tests/bench/testing.py [--quick] [--json]

Needs an installed release build, pytest-xdist, and PostgreSQL for two of the figures; a machine that is
otherwise quiet, or ``chrt -r 1`` before it. What is compared takes
turns (a bare test, one with a container, an isolated one, and again), so that whatever else happens on the
machine happens to all; figures are medians, in milliseconds. unshare(1) takes part in each turn: machines are
compared by the ratio to it. A test that forks, and waits for the end of that, is what an isolated one cannot
be cheaper than. What a test leaves for the background to do is paid by those that come next: so there
are figures of the same kind in a row, too. Targets have a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from r2d2 import Image, snapshot
from r2d2.testing import PostgreSQL

if TYPE_CHECKING:
    from collections.abc import Callable

CONFTEST = """
import json, time, pytest
taken = {}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    start = time.perf_counter()
    result = yield
    taken.setdefault(item.originalname, []).append((time.perf_counter() - start) * 1e3)
    return result

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.callspec.params["number"])

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        with open("taken.json", "w") as file:
            json.dump(taken, file)
"""
TURNS = """
import os, subprocess, pytest

@pytest.mark.parametrize("number", range({rounds}))
class TestTurns:
    def test_bare(self, number): pass
    def test_container(self, number, container): pass
    @pytest.mark.r2d2(image="minimal")
    def test_minimal(self, number, container): pass
    @pytest.mark.isolated
    def test_isolated(self, number): pass
    def test_fork(self, number):
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    def test_unshare(self, number):
        assert subprocess.call(["unshare", "-Urmpfnui", "true"]) == 0
"""
#: What is to be reached, at most.
TARGETS = {
    "container, over a bare test": 3.0,
    "container ahead, over a bare test": 3.0,
    "isolated, over a bare test": 5.0,
    "PostgreSQL, ratio": 0.25,
    "containers left": 0.0,
}
MANY = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_one(container, number):
    assert container.run(["true"]).returncode == 0
"""


def pytest_run(directory: str, *args: str) -> str:
    """The output of a run that passed."""
    command = [sys.executable, "-mpytest", "-q", "-p", "no:cacheprovider", *args]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-4000:])
    return done.stdout


def taken(kinds: str, rounds: int, *options: str) -> dict[str, list[float]]:
    """What tests of these kinds, which take turns, took; without the first."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "conftest.py").write_text(CONFTEST)
        Path(directory, "test_turns.py").write_text(TURNS.format(rounds=rounds))
        pytest_run(directory, "-k", kinds, *options)
        found = json.loads(Path(directory, "taken.json").read_text())
    return {name.removeprefix("test_"): times[rounds // 10 + 1 :] for name, times in found.items()}


def turns(rounds: int) -> dict[str, float]:
    """One test's set-up, call and tear-down, over that of a bare one right before it.

    Each kind in a run of its own: the kernel takes namespaces apart after the process that had them ended, at
    the expense of whatever comes next.
    """
    figures: dict[str, float] = {}
    reference = " or unshare" if shutil.which("unshare") else ""
    row = statistics.fmean(taken("bare", rounds)["bare"])
    alone = taken("bare or fork", rounds)
    figures["fork and exit, over a bare test"] = statistics.median(
        [time - base for time, base in zip(alone["fork"], alone["bare"], strict=True)]
    )
    for kind, word, options in (
        ("container", "container", ()),
        ("container", "container ahead", ("-o", "r2d2_ahead=true")),
        ("minimal", "minimal", ()),
        ("isolated", "isolated", ()),
    ):
        times = taken(f"bare or test_{kind}{reference}", rounds, *options)
        over = {
            name: [time - base for time, base in zip(these, times["bare"], strict=True)]
            for name, these in times.items()
        }
        figures["bare test"] = statistics.median(times["bare"])
        figures[f"{word}, over a bare test"] = statistics.median(over[kind])
        figures[f"{word}, over a bare test, best tenth"] = statistics.quantiles(over[kind], n=10)[0]
        if reference:
            figures["unshare(1), over a bare test"] = statistics.median(over["unshare"])
            ratios = [one / other for one, other in zip(over[kind], over["unshare"], strict=True)]
            figures[f"{word}, over unshare(1)"] = statistics.median(ratios)
        in_a_row = taken(f"test_{kind}", rounds, *options)[kind]
        figures[f"{word} in a row, over bare in a row, mean"] = statistics.fmean(in_a_row) - row
    return figures


class FromNothing(PostgreSQL):
    """initdb, then the server, in one container."""

    def _serve(self) -> None:
        self.make_cluster(self.container)
        super()._serve()


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def postgresql(rounds: int) -> dict[str, float]:
    """A fresh PostgreSQL until it has answered a query."""

    def answered(server: PostgreSQL) -> None:
        with server:
            assert server.execute("select 1") == "1\n"

    def from_nothing() -> None:
        answered(FromNothing(Image.host(), network="none"))

    image = PostgreSQL.prepare()
    taken: dict[str, list[float]] = {"initdb and start": [], "from a snapshot": []}
    for number in range(rounds + 1):
        slow = milliseconds(from_nothing)
        fast = milliseconds(lambda: answered(PostgreSQL(image, network="none")))
        if number:  # the first one warms up
            taken["initdb and start"].append(slow)
            taken["from a snapshot"].append(fast)
    figures = {f"PostgreSQL, {name}": statistics.median(times) for name, times in taken.items()}
    ratios = [fast / slow for slow, fast in zip(*taken.values(), strict=True)]
    return {**figures, "PostgreSQL, ratio": statistics.median(ratios)}


def many(count: int) -> dict[str, float]:
    """Container tests with two workers, and what they leave."""

    def orphans() -> int:
        found = subprocess.run(
            ["pgrep", "-cx", "-P", "1", "r2d2-init"], capture_output=True, text=True, check=False
        )
        return int(found.stdout or 0)

    output: list[str] = []
    before = orphans()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_many.py").write_text(MANY.format(count=count))
        took = milliseconds(lambda: output.append(pytest_run(directory, "-n", "2")))
        passed = re.search(r"(\d+) passed", output[0])
    assert passed is not None
    assert int(passed.group(1)) == count
    return {
        f"{count} container tests with -n 2, tests/s": count / took * 1e3,
        "containers left": max(0, orphans() - before),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["R2D2_CACHE"] = cache
        figures = turns(20 if given.quick else 200)
        if any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
            figures |= postgresql(2 if given.quick else 9)
        figures |= many(50 if given.quick else 1000)
        for layer in snapshot.stored():
            Image("layers", [layer]).remove()
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        verdict = ""
        if name in TARGETS:
            verdict = f"  <= {TARGETS[name]:g}: {'yes' if value <= TARGETS[name] else 'MISSED'}"
        print(f"{name:<52} {value:10.2f}{verdict}")


if __name__ == "__main__":
    main()
