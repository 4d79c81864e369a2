"""Limits bind, by whatever can bind them, or are refused; they are gone with their container."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import r2d2
from _needs import has, needs
from _proc import cgroups, ended, stat, until

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
#: Allocates and touches memory, until it has as many MiB as it was told.
HOG = "awk 'BEGIN{ s = sprintf(\"%1048576s\", \"x\"); for (i = 0; i < '$0'; i++) a[i] = s i; print i }'"
BOMB = "i=0; while [ $i -lt 300 ]; do sleep 100 >/dev/null & i=$((i+1)); done 2>/dev/null; echo all"


def _shell(container: r2d2.Container, script: str, *args: str, **keywords: Any) -> r2d2.CompletedProcess:
    return container.run(["sh", "-c", script, *args], capture_output=True, text=True, **keywords)


@needs("cgroup")
def test_29_memory_binds(image: r2d2.Image) -> None:
    with r2d2.Container(image, limits={"memory": "64m"}) as container:
        assert _shell(container, HOG, "20").stdout == "20\n", "what fits, fits"
        hog = _shell(container, HOG, "200")
        assert hog.returncode in {-9, 137}, hog
        stats = container.stats()
        assert stats["memory_limit"] == 64 << 20
        peak, kills = stats["memory_peak"], stats["oom_kills"]
        assert peak is not None
        assert 32 << 20 < peak <= 64 << 20
        assert kills is None or kills >= 1
        assert container.run(["true"], **QUIET).returncode == 0, "the container lives on"
    with r2d2.Container(image) as container:
        assert _shell(container, HOG, "100").stdout == "100\n", "and without a limit it fits"


@needs("cgroup")
def test_29_a_fork_bomb_is_bound(image: r2d2.Image) -> None:
    with r2d2.Container(image, limits={"pids": 40}) as container:
        bomb = container.popen(["sh", "-c", BOMB], **QUIET)
        assert until(lambda: (container.stats()["pids"] or 0) >= 39)
        assert (container.stats()["pids"] or 0) <= 40
        more: list[r2d2.Process] = []
        with pytest.raises(OSError, match=r"fork|unavailable") as failed:
            while len(more) < 10:
                more.append(container.popen(["sleep", "100"], **QUIET))
        assert isinstance(failed.value, r2d2.SetupError), "and what asks for more is told so"
        container.kill()
        assert [program.wait(5) for program in more] == [-9] * len(more)
        bomb.wait()
    with r2d2.Container(image) as container:
        assert _shell(container, BOMB).stdout == "all\n"


@needs("cgroup")
def test_29_processor_time_is_bound(image: r2d2.Image) -> None:
    spin = "i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done"
    with r2d2.Container(image, limits={"cpus": 0.2}) as container:
        program = container.popen(["sh", "-c", spin], **QUIET)
        before, began = container.stats()["cpu_usage_ns"], time.monotonic()
        time.sleep(1)  # it is time that is measured
        after, took = container.stats()["cpu_usage_ns"], time.monotonic() - began
        assert before is not None
        assert after is not None
        share = (after - before) / 1e9 / took
        assert 0.02 < share < 0.3, share
        assert (container.stats()["nr_throttled"] or 0) > 0
        program.kill()
        program.wait()


@needs("cgroup")
def test_29_every_limit_is_read_back(image: r2d2.Image) -> None:
    limits = {"memory": "80m", "pids": 77, "cpus": 0.5, "cpu_weight": 50, "cpuset": "0"}
    with r2d2.Container(image, limits=limits) as container:
        bound, unbound = container._resolve().limits()
        assert {resource for resource, _ in bound} >= {"memory", "pids"}
        assert unbound == []
        assert container.run(["nproc"], capture_output=True, text=True).stdout == "1\n"
        stats = container.stats()
        assert (stats["memory_limit"], stats["pids_limit"]) == (80 << 20, 77)


@needs("no-cgroup")
def test_29_what_nothing_binds_is_refused(image: r2d2.Image) -> None:
    for limits in ({"memory": "64m"}, {"cpus": 0.5}, {"cpu_weight": 10}, {"cpuset": "0"}):
        with pytest.raises(r2d2.UnsupportedError, match="cannot be limited"):
            r2d2.Container(image, limits=limits).start()
        with r2d2.Container(image, limits={**limits, "best_effort": True}) as container:
            assert container.run(["true"], **QUIET).returncode == 0
            assert container._resolve().limits()[1], "it says what does not bind"


@needs("no-cgroup")
def test_29_processes_are_bound_by_an_rlimit_or_refused(image: r2d2.Image) -> None:
    # RLIMIT_NPROC counts the processes of a user: those of the container only with ids of its own.
    container = r2d2.Container(image, limits={"pids": 40})
    try:
        container.start()
    except r2d2.UnsupportedError:
        assert not container.running
    else:
        assert _shell(container, BOMB, timeout=20).stdout != "all\n"
        container.stop()


def test_rlimits_hold_inside(image: r2d2.Image) -> None:
    with r2d2.Container(image, limits={"rlimits": {"nofile": 60, "core": 0, "fsize": 4096}}) as container:
        assert _shell(container, "ulimit -n; ulimit -c").stdout == "60\n0\n"
        written = _shell(container, "head -c 100000 /dev/zero > /tmp/file")
        assert written.returncode != 0
        assert _shell(container, "wc -c < /tmp/file").stdout == "4096\n"


def test_the_upper_layer_is_bound_by_its_size(image: r2d2.Image) -> None:
    with r2d2.Container(image, tmpfs_size="2m") as container:
        full = _shell(container, "dd if=/dev/zero of=/tmp/file bs=64k count=100")
        assert full.returncode != 0
        assert "No space" in full.stderr


@pytest.mark.parametrize("limits", [pytest.param({"memory": "64m"}, marks=needs("cgroup")), None])
def test_pause_stops_everything_and_resume_lets_it_go_on(
    image: r2d2.Image, limits: dict[str, Any] | None
) -> None:
    with r2d2.Container(image, limits=limits) as container:
        count = "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; done"
        programs = [container.popen(["sh", "-c", count], **QUIET) for _ in range(3)]

        def used() -> int:
            times = [
                Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                for program in programs
            ]
            return sum(int(a) + int(b) for a, b in times)

        assert until(lambda: used() > 5)
        container.pause()
        if not limits and not has("cgroup"):
            assert until(
                lambda: all((found := stat(p.pid)) is not None and found[1] == "T" for p in programs)
            )
        before = used()
        time.sleep(0.2)  # time in which nothing happens
        assert used() == before
        container.resume()
        assert until(lambda: used() > before)
        container.pause()
        container.stop()
        assert [program.wait(5) for program in programs] == [-9] * 3


@pytest.mark.parametrize("limits", [pytest.param({"memory": "64m"}, marks=needs("cgroup")), None])
def test_an_owner_killed_while_paused(image: r2d2.Image, limits: dict[str, Any] | None) -> None:
    name = f"paused-{os.getpid()}"
    script = f"""
import os, signal, sys, r2d2
container = r2d2.Container(sys.argv[1], name={name!r}, limits={limits!r}).start()
program = container.popen(["sleep", "900"])
container.pause()
print(container.pid, program.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, image.layers[0]], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pids = re.findall(r"\d+", done.stdout.decode())
    assert len(pids) == 2
    assert until(lambda: all(ended(pid) for pid in pids) and not cgroups(f"r2d2-{name}-*"), 1)


@needs("cgroup")
def test_containers_of_one_name_have_their_own_limits(image: r2d2.Image) -> None:
    name = f"twice-{os.getpid()}"
    with (
        r2d2.Container(image, name=name, limits={"pids": 40}) as one,
        r2d2.Container(image, name=name, limits={"pids": 50}) as two,
        r2d2.Container(image, name=name) as three,
    ):
        assert one.name == two.name == name
        assert len({os.path.basename(path) for path in cgroups(f"r2d2-{name}-*")}) == 2
        for container in (one, two, three):
            container.pause()
            container.resume()
            container.run(["true"], check=True)
        assert len({Path(f"/proc/{each.pid}/cgroup").read_text() for each in (one, two, three)}) == 3
    assert not cgroups(f"r2d2-{name}-*")


@needs("cgroup")
def test_cgroups_made_inside_go_too(image: r2d2.Image) -> None:
    script = (
        "mkdir /tmp/g && mount -t cgroup -o pids none /tmp/g && mkdir -p /tmp/g/a/b /tmp/g/c"
        " && echo $$ > /tmp/g/a/b/cgroup.procs"
    )
    name = f"nested-{os.getpid()}"
    with r2d2.Container(image, name=name, limits={"pids": 40}, cap_add=["SYS_ADMIN"]) as container:
        made = _shell(container, script)
        assert made.returncode == 0 or "mount" in made.stderr, made.stderr
        assert cgroups(f"r2d2-{name}-*")
    assert not cgroups(f"r2d2-{name}-*")
    owner = f"""
import os, signal, sys, r2d2
container = r2d2.Container(sys.argv[1], name={name!r}, limits={{"pids": 40}}, cap_add=["SYS_ADMIN"]).start()
container.run(["sh", "-c", {script!r}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", owner, image.layers[0]], check=False, **QUIET)
    assert until(lambda: not cgroups(f"r2d2-{name}-*"), 1), cgroups(f"r2d2-{name}-*")


@needs("cgroup")
def test_12_limits_cannot_be_raised_from_inside() -> None:
    attack = """
mkdir -p /tmp/m && mount -t cgroup -o memory none /tmp/m || exit 9
find /tmp/m -name memory.limit_in_bytes -exec sh -c 'echo 9000000000 > {}' \\; 2>/dev/null
find /tmp/m -name release_agent -writable 2>/dev/null
python3 -c 'x = bytearray(200 << 20); print(len(x))'
"""
    for keywords in ({}, {"cap_add": ["ALL"]}):
        with r2d2.Container("host", limits={"memory": "64m"}, **keywords) as container:
            for command in (["sh", "-c", attack], ["unshare", "-UrmC", "sh", "-c", attack]):
                done = container.run(command, capture_output=True, text=True)
                assert "209715200" not in done.stdout, done
                assert "release_agent" not in done.stdout
                limit = container.stats()["memory_limit"]
                assert limit == 64 << 20
