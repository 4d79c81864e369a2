"""Namespaces one by one: `unshare`, `enter` and `inspect`, held to unshare(1), nsenter(1) and /proc."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from _needs import needs
from r2d2 import Container, namespace
from r2d2.errors import (
    CommandError,
    CommandTimeout,
    SetupError,
    SetupNotFoundError,
    SetupPermissionError,
    SpecError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT = os.geteuid() == 0
KINDS = tuple(namespace.KINDS)
#: For everybody but root a user namespace comes with every other one.
ALONE = set() if ROOT else {"user"}
LINKS = "for link in /proc/self/ns/*; do echo ${link##*/}=$(readlink $link); done"
TEXT: dict[str, Any] = {"capture_output": True, "text": True}


def links_of(text: str) -> dict[str, int]:
    return {name: int(inode) for name, inode in re.findall(r"^(\w+)=\w+:\[(\d+)\]$", text, re.MULTILINE)}


def link(kind: str) -> str:
    return "mnt" if kind == "mount" else kind


def changed(inside: dict[str, int]) -> set[str]:
    """In which namespaces `inside` differs from us."""
    outside = namespace.inspect()
    return {name for name in inside if inside[name] != outside[name]}


@pytest.fixture(autouse=True)
def _where_we_were() -> Iterator[None]:
    before = namespace.inspect()
    yield
    assert namespace.inspect() == before


@contextlib.contextmanager
def by_unshare(*options: str) -> Iterator[int]:
    """The pid of a shell that the real unshare(1) started."""
    script = "read -r pid rest < /proc/self/stat; echo $pid; read -r wait"
    command = ["unshare", *([] if ROOT else ["-Ur"]), *options, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.communicate("\n")


# unshare


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(kind: str) -> None:
    done = namespace.unshare(["sh", "-c", LINKS], **{kind: True}, fork=True, check=True, **TEXT)
    both = {link(kind), f"{kind}_for_children"} if kind in {"pid", "time"} else {link(kind)}
    assert changed(links_of(done.stdout)) == both | ALONE


def test_every_combination_of_kinds() -> None:
    for count in range(len(KINDS) + 1):
        for kinds in itertools.combinations(KINDS, count):
            if not ROOT and kinds and "user" not in kinds:
                continue
            keywords: dict[str, Any] = {kind: kind in kinds for kind in KINDS}
            with namespace.popen(["cat"], fork=True, stdin=subprocess.PIPE, **keywords) as process:
                found = changed(namespace.inspect(process.pid))
                expected = {link(kind) for kind in kinds}
                expected |= {f"{kind}_for_children" for kind in kinds if kind in {"pid", "time"}}
                assert found == expected
                process.communicate()
                assert process.returncode == 0


@needs("unshare")
def test_the_same_as_the_real_unshare() -> None:
    script = "echo $$; hostname r2d2; hostname; id -u; cat /proc/self/uid_map; cat /proc/self/setgroups"
    own = namespace.unshare(
        ["sh", "-c", script], user=True, uts=True, pid=True, fork=True, check=True, **TEXT
    )
    real = subprocess.run(["unshare", "-Urupf", "sh", "-c", script], check=True, **TEXT)
    lines, expected = own.stdout.splitlines(), real.stdout.splitlines()
    if ROOT:
        lines[3:] = expected[3:] = []  # root maps every id, unshare -r one
    assert lines == expected


def test_the_program_is_what_was_asked_for(tmp_path: Path) -> None:
    script = "echo $VALUE; pwd; cat; echo err >&2; exit 7"
    done = namespace.unshare(
        ["sh", "-c", script], uts=True, input="in\n", env={"VALUE": "v", **os.environ}, cwd=tmp_path, **TEXT
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, f"v\n{tmp_path}\nin\n", "err\n")


def test_exit_codes_and_signals() -> None:
    with pytest.raises(CommandError) as failed:
        namespace.unshare(["sh", "-c", "exit 3"], uts=True, check=True)
    assert failed.value.returncode == 3
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
        done = namespace.unshare(["sh", "-c", f"kill -{int(number)} $$"], uts=True)
        assert done.returncode == -number
    with namespace.popen(["sleep", "1000"], uts=True) as process:
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
        process.send_signal(signal.SIGTERM)  # as subprocess: nobody is there any more


@pytest.mark.parametrize("kinds", [{"uts": True}, {"pid": True, "fork": True}, {"pid": True}])
def test_a_timeout_ends_it(kinds: dict[str, Any]) -> None:
    started = time.monotonic()
    with pytest.raises(CommandTimeout) as expired:
        namespace.unshare(["sh", "-c", "echo before; exec sleep 1000"], timeout=0.3, **kinds, **TEXT)
    assert time.monotonic() - started < 20
    assert expired.value.stdout in {"before\n", b"before\n"}


def test_a_timeout_of_pid_1_ends_all_of_it() -> None:
    with pytest.raises(CommandTimeout):
        # The pipe's end comes only when the last holder is gone.
        namespace.unshare(["sh", "-c", "sleep 1000 & sleep 1000"], pid=True, fork=True, timeout=0.3, **TEXT)


def test_what_cannot_start() -> None:
    with pytest.raises(SetupNotFoundError) as missing:
        namespace.unshare(["/no/such/program"], uts=True)
    assert isinstance(missing.value, FileNotFoundError)
    assert missing.value.syscall == "execve"
    with pytest.raises(SetupPermissionError):
        namespace.unshare(["/etc/passwd"], uts=True)
    with pytest.raises(SetupNotFoundError):
        namespace.unshare(["true"], uts=True, cwd="/no/such/directory")
    for bad in ([], "true", [""]):
        with pytest.raises(SpecError):
            namespace.unshare(bad, uts=True)
    with pytest.raises(SpecError, match="fork"):
        namespace.unshare(["true"], pid=True, mount_proc=True)


def test_without_a_user_namespace_root_alone_may() -> None:
    if ROOT:
        done = namespace.unshare(["sh", "-c", LINKS], uts=True, user=False, check=True, **TEXT)
        assert changed(links_of(done.stdout)) == {"uts"}
        return
    with pytest.raises(SetupPermissionError) as refused:
        namespace.unshare(["true"], uts=True, user=False)
    assert refused.value.syscall == "clone"
    assert "clone into new namespaces (uts)" in str(refused.value)


def test_somebody_reaps_our_child_first() -> None:
    """After execve a child of ours is like any other: `waitpid(-1)` sees it, and we must live with that."""
    with namespace.popen(["true"], uts=True) as process:
        pid, status = os.waitpid(-1, 0)
        assert (pid, status) == (process.pid, 0)
        assert process.wait(10) == 0, "as subprocess has it"


def test_from_many_threads() -> None:
    results: list[str] = []

    def work(number: int) -> None:
        for i in range(5):
            name = f"host{number}x{i}"
            done = namespace.unshare(["sh", "-c", f"hostname {name}; hostname"], uts=True, check=True, **TEXT)
            results.append(done.stdout.strip())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(f"host{number}x{i}" for number in range(8) for i in range(5))


# Clocks


def clocks(done: subprocess.CompletedProcess[Any]) -> float:
    return float(done.stdout.split()[0])


@pytest.mark.parametrize("offset", [100_000, -30])
def test_clocks_of_unshare(offset: int) -> None:
    """The program itself is in the new time namespace: execve enters it (Linux 6.1 and later)."""
    outside = clocks(subprocess.run(["cat", "/proc/uptime"], check=True, **TEXT))
    inside = clocks(namespace.unshare(["cat", "/proc/uptime"], clock_offsets=(0, offset), check=True, **TEXT))
    assert -1 < inside - outside - offset < 30


def test_clocks_of_a_container() -> None:
    script = "from time import *; print(clock_gettime(CLOCK_MONOTONIC), clock_gettime(CLOCK_BOOTTIME))"
    # The interpreter's own may lie where an ordinary user's container cannot look (root's home).
    python = "/usr/bin/python3"
    with Container(clock_offsets=(1000, 500_000)) as container:
        before = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
        done = container.run([python, "-c", script], check=True, **TEXT)
        monotonic, boottime = map(float, done.stdout.split())
        assert 0 <= monotonic - before[0] - 1000 < 30
        assert 0 <= boottime - before[1] - 500_000 < 30
        uptime = clocks(container.run(["cat", "/proc/uptime"], check=True, **TEXT))
        assert -1 < uptime - boottime < 30  # hundredths
        assert changed(container.namespaces) >= {"time", "time_for_children"}
        entered = clocks(namespace.enter(container.pid, ["cat", "/proc/uptime"], check=True, **TEXT))
        assert -1 < entered - uptime < 30, "a program that comes in by setns(2) has the same clock"
    assert changed(namespace.inspect()) == set()


def test_one_offset_is_for_both_clocks_and_never_for_the_wall_clock() -> None:
    script = "from time import *; print(monotonic(), clock_gettime(CLOCK_BOOTTIME), time())"
    python = "/usr/bin/python3"
    with Container(clock_offsets=3600) as ahead, Container() as plain:
        for container, offset in ((ahead, 3600), (plain, 0)):
            before = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
            done = container.run([python, "-c", script], check=True, **TEXT)
            monotonic, boottime, wall = map(float, done.stdout.split())
            assert 0 <= monotonic - before[0] - offset < 30
            assert 0 <= boottime - before[1] - offset < 30
            assert -1 < wall - before[2] < 30
            uptime = clocks(container.run(["cat", "/proc/uptime"], check=True, **TEXT))
            assert -1 < uptime - before[1] - offset < 30


@pytest.mark.parametrize("offsets", [(1,), (1, 2, 3), 1.5, (0, 0.5), "10", True, (2**63, 0)])
def test_clock_offsets_that_are_none(offsets: Any) -> None:
    with pytest.raises(SpecError, match="clock_offsets"):
        Container(clock_offsets=offsets)


def test_clock_offsets_that_no_kernel_takes() -> None:
    with pytest.raises(SetupError) as refused:
        namespace.unshare(["true"], clock_offsets=(-(10**9), 0))
    assert "clocks of the time namespace" in str(refused.value)


# enter


@pytest.mark.parametrize(
    "option", ["-Ur" if ROOT else "-r", "-u", "-m", "-n", "-i", "-C", "-T", "-pf", "-umniCpf"]
)
def test_enter_what_the_real_unshare_made(option: str) -> None:
    with by_unshare(option) as pid:
        theirs = namespace.inspect(pid)
        done = namespace.enter(pid, ["sh", "-c", LINKS], check=True, **TEXT)
        inside = links_of(done.stdout)
        for name in ("mnt", "net", "uts", "ipc", "cgroup", "user", "time", "pid"):
            # unshare -T without --fork: only its children are in the new time namespace.
            assert inside[name] == theirs[name], name


@needs("unshare")
def test_enter_is_nsenter() -> None:
    script = f"{LINKS}; hostname; id -u; id -g; ls /proc/1/exe >/dev/null 2>&1; echo $?"
    with Container("host", hostname="target") as container:
        own = namespace.enter(container.pid, ["sh", "-c", script], check=True, **TEXT)
        command = [
            "nsenter",
            "-t",
            str(container.pid),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-U",
            "--preserve-credentials",
        ]
        real = subprocess.run([*command, "sh", "-c", script], check=True, **TEXT)
        assert own.stdout == real.stdout
        assert "target" in own.stdout.split()
        expected = {
            name: inode for name, inode in container.namespaces.items() if name != "time_for_children"
        }
        assert links_of(own.stdout).items() >= expected.items()


def test_enter_some_kinds_only() -> None:
    with Container("host", hostname="target") as container:
        kinds = ["user", "uts"]
        done = namespace.enter(
            container.pid, ["sh", "-c", f"{LINKS}; hostname"], kinds=kinds, check=True, **TEXT
        )
        assert changed(links_of(done.stdout)) == set(kinds)
        assert done.stdout.splitlines()[-1] == "target"


def test_enter_carries_everything_of_subprocess() -> None:
    with Container("host") as container:
        script = "cat; echo $VALUE; pwd; echo err >&2; exit 5"
        done = namespace.enter(
            container.pid, ["sh", "-c", script], input="in\n", env={"VALUE": "v"}, cwd="/usr", **TEXT
        )
        assert (done.returncode, done.stdout, done.stderr) == (5, "in\nv\n/usr\n", "err\n")
        with pytest.raises(CommandError):
            namespace.enter(container.pid, ["false"], check=True)
        done = namespace.enter(container.pid, ["sh", "-c", "kill -9 $$"])
        assert done.returncode == -signal.SIGKILL
        with pytest.raises(CommandTimeout):
            namespace.enter(container.pid, ["sleep", "1000"], timeout=0.3)
        with pytest.raises(SetupNotFoundError):
            namespace.enter(container.pid, ["/no/such/program"])
        with pytest.raises(SpecError):
            namespace.enter(container.pid, ["true"], kinds=["disk"])
        with pytest.raises(SpecError):
            namespace.enter(container.pid, ["true"], kinds="uts")


def test_enter_nobody() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for kinds in (None, ["uts"]):
        for pid in (ended.pid, 0, -1, 2**30):
            with pytest.raises(SetupNotFoundError) as missing:
                namespace.enter(pid, ["true"], kinds=kinds)
            assert str(pid) in str(missing.value)


def test_enter_ourselves() -> None:
    with pytest.raises(SpecError, match="no other namespace"):
        namespace.enter(os.getpid(), ["true"])


def test_enter_somebody_elses_process() -> None:
    if ROOT:
        script = "read -r pid rest < /proc/self/stat; echo $pid; read -r wait"
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "unshare",
            "-Uru",
            "sh",
            "-c",
            script,
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            pid = int(process.stdout.readline())
            done = namespace.enter(pid, ["sh", "-c", LINKS], check=True, **TEXT)
            assert changed(links_of(done.stdout)) == {"user", "uts"}
            process.communicate("\n")
        return
    for kinds in (None, ["uts"], ["mount", "uts"]):
        with pytest.raises(SetupPermissionError) as refused:
            namespace.enter(1, ["true"], kinds=kinds)
        assert isinstance(refused.value, PermissionError)
    with pytest.raises(SetupPermissionError):
        namespace.inspect(1)
