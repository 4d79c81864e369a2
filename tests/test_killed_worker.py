"""A worker of xdist that is killed in the middle of its tests leaves nothing of its worlds behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _proc import cgroups, mounts, processes, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)

WORLD = """
    import json, os, signal, subprocess
    from pathlib import Path

    import pytest

    #: What is there just before the end, for whoever looks for it afterwards.
    def told(containers, network):
        pids = [each.pid for each in containers]
        programs = [each.popen(["sleep", "1242"]) for each in containers]
        cgroups = {line.rpartition(":")[2].strip() for pid in pids for line in open(f"/proc/{pid}/cgroup")}
        upper = Path(os.environ["R2D2_CACHE"]) / "upper"
        return {
            "pids": [*pids, *(each.pid for each in programs), network.pid],
            "netns": [os.stat(f"/proc/{pid}/ns/net").st_ino for pid in pids],
            "mntns": [os.stat(f"/proc/{pid}/ns/mnt").st_ino for pid in pids],
            "cgroups": sorted(each for each in cgroups if "/r2d2-db-" in each or "/r2d2-web-" in each),
            "files": [str(path) for path in upper.glob("*")] if upper.is_dir() else [],
        }

    @pytest.mark.r2d2(network=True, limits={"pids": 100, "best_effort": True})
    @pytest.mark.parametrize("number", range(4))
    def test_world(network, container_factory, number):
        made = [container_factory(name="db"), container_factory(name="web", storage="disk")]
        made[1].path("/root/large").write_bytes(bytes(1 << 20))
        if number == 1:
            found = json.dumps(told(made, network))
            Path(os.environ["TOLD"]).write_text(found)
            os.kill(os.getpid(), signal.SIGKILL)

    @pytest.mark.isolated
    @pytest.mark.parametrize("number", range(2))
    def test_isolated(number):
        subprocess.run(["true"], check=True)
"""


def namespaces(kind: str) -> set[int]:
    """Namespaces of this kind that any process is in."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(os.stat(f"/proc/{pid}/ns/{kind}").st_ino)
        except OSError:
            continue
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""
    now = processes()
    return [pid for pid in pids if pid in now and now[pid][1] != "Z"]


def test_nothing_is_left_of_a_killed_workers_worlds(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, runtime, note = (pytester.path / name for name in ("cache", "runtime", "told"))
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("R2D2_CACHE", str(cache))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TOLD", str(note))
    before = mounts(), cgroups("r2d2-*"), set(os.listdir("/sys/class/net"))
    pytester.makepyfile(WORLD)
    quiet = ("-p", "no:asyncio", "-p", "no:testinfra", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*quiet, "-n", "2", "--max-worker-restart=2")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines("*worker 'gw?' crashed while running*test_world?1?*")

    found: dict[str, Any] = json.loads(note.read_text())
    assert len(found["pids"]) == 5
    assert len(set(found["netns"])) == len(set(found["mntns"])) == 2  # the control: there were worlds
    assert found["files"], "the one on disk"
    gone: dict[str, Callable[[], object]] = {
        "processes": lambda: not alive(found["pids"]),
        "network namespaces": lambda: not {*found["netns"]} & namespaces("net"),
        "mount namespaces": lambda: not {*found["mntns"]} & namespaces("mnt"),
        "cgroups": lambda: not [c for c in found["cgroups"] if list(Path("/sys/fs/cgroup").glob(f"**{c}"))],
        "files": lambda: not [path for path in found["files"] if Path(path).exists()],
        "runtime files": lambda: not list(runtime.glob("r2d2/*")),
    }
    for what, is_gone in gone.items():
        assert until(is_gone, 20), f"{what} left of {found}"
    assert mounts() == before[0]
    assert cgroups("r2d2-*") <= before[1]
    assert set(os.listdir("/sys/class/net")) <= before[2]
