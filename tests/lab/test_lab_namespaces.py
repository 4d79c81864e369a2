"""Rows 1 to 4e: namespaces, one by one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

import r2d2
from _proc import mounts
from r2d2 import namespace

#: For everybody but root a user namespace comes with every other one.
ALONE = set() if os.geteuid() == 0 else {"user"}
#: A shell that tells in which namespaces it is.
LINKS = "for link in /proc/self/ns/*; do echo ${link##*/}=$(readlink $link); done"


def links_of(text: str) -> dict[str, int]:
    """`uts=uts:[4026531838]` lines as a mapping."""
    return {name: int(inode) for name, inode in re.findall(r"^(\w+)=\w+:\[(\d+)\]$", text, re.MULTILINE)}


def proc_mounts(lines: list[str]) -> int:
    """How often something is mounted on /proc."""
    return sum(line.split()[4] == "/proc" for line in lines)


def test_row_01_core_technologies() -> None:
    kernel = {name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")}
    kinds = {"mnt" if kind == "mount" else kind for kind in namespace.KINDS}
    assert kinds == kernel, "every kind of namespace that this kernel has"
    page = r2d2.__doc__
    assert page is not None
    for kind, isolates in namespace.KINDS.items():
        assert re.search(rf"^ +{kind} +{re.escape(isolates)}$", page, re.MULTILINE), f"{kind} is on the page"
    for technology in ("namespace", "chroot", "overlay", "slirp"):
        assert f"``r2d2.{technology}``" in page
        assert technology in r2d2.__all__
        assert getattr(r2d2, technology).__doc__


def test_row_02_view_the_namespaces() -> None:
    seen = namespace.inspect()
    assert list(seen) == [
        "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts",
    ]  # fmt: skip
    listing = subprocess.run(
        ["ls", "-l", "/proc/self/ns/"], capture_output=True, text=True, check=True
    ).stdout
    printed = re.findall(r" (\w+) -> (\w+):\[(\d+)\]$", listing, re.MULTILINE)
    assert {name: int(inode) for name, _, inode in printed} == seen, (
        "ls, another process, shows the same inodes"
    )
    assert [kind for _, kind, _ in printed] == [name.removesuffix("_for_children") for name in seen]
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        assert namespace.inspect(other.pid) == seen
        other.kill()
        other.communicate()


def test_row_03_hostname() -> None:
    outside, before = namespace.inspect(), socket.gethostname()
    assert before != "r2d2"
    done = namespace.unshare(
        ["sh", "-c", f"hostname r2d2; hostname; {LINKS}"],
        uts=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "r2d2"
    inside = links_of(done.stdout)
    assert inside.keys() == outside.keys()
    assert {name for name in inside if inside[name] != outside[name]} == {"uts"} | ALONE
    assert socket.gethostname() == before


@pytest.mark.parametrize(
    ("shell", "complaint"), [("dash", "Cannot fork"), ("bash", "Cannot allocate memory")]
)
def test_row_04a_without_fork(shell: str, complaint: str) -> None:
    outside = namespace.inspect()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, "LC_ALL": "C"}
    with namespace.popen([shell], pid=True, text=True, bufsize=1, env=env, **pipes) as process:
        process.stdin.write("echo $$\n")
        assert int(process.stdout.readline()) == process.pid, "the shell itself is where it was"
        assert namespace.inspect(process.pid)["pid"] == outside["pid"]
        process.stdin.write("sh -c 'echo $$; exit 7'; echo $?\n")
        assert process.stdout.readline() == "1\n", "its first child is PID 1 ..."
        assert process.stdout.readline() == "7\n", "... and has ended"
        assert namespace.inspect(process.pid)["pid_for_children"] != outside["pid"]
        # /proc/self/... by a builtin alone: nothing may fork here.
        stdout, stderr = process.communicate("/bin/true; echo $?\n/bin/echo never\n")
        assert complaint in stderr
        assert "never" not in stdout
        assert process.returncode != 0


def test_row_04b_with_fork() -> None:
    done = namespace.unshare(
        ["sh", "-c", "echo $$; ps -e -o pid="],
        pid=True,
        fork=True,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *listed = done.stdout.split()
    assert first == "1", "the shell is PID 1 ..."
    assert str(os.getpid()) in listed, "... and yet /proc is the host's"


def test_row_04c_with_mount_proc() -> None:
    script = "ps -e -o pid=,comm=; echo; cat /proc/self/mountinfo"
    done = namespace.unshare(
        ["sh", "-c", script], pid=True, fork=True, mount_proc=True, capture_output=True, text=True, check=True
    )
    processes, _, table = done.stdout.partition("\n\n")
    (one, shell), (_, ps) = [line.split() for line in processes.splitlines()]
    assert (one, shell, ps) == ("1", "sh", "ps"), "nobody else"
    assert proc_mounts(table.splitlines()) == 2, "the new one over the old one"
    assert proc_mounts(mounts()) == 1


def test_row_04d_kill_9_1() -> None:
    script = "kill -9 1; echo status $?; echo alive as $$; read wait"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with namespace.popen(
        ["sh", "-c", script], pid=True, fork=True, mount_proc=True, text=True, **pipes
    ) as process:
        assert process.stdout.readline() == "status 0\n", "no error ..."
        assert process.stdout.readline() == "alive as 1\n", "... and no effect: the kernel drops it"
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL, "the same signal from the parent namespace"


def test_row_04e_leaving_cleans_up() -> None:
    before = mounts()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with namespace.popen(
        ["sh"], pid=True, fork=True, mount_proc=True, text=True, bufsize=1, **pipes
    ) as process:
        process.stdin.write("echo ready\n")
        assert process.stdout.readline() == "ready\n"
        inside = namespace.inspect(process.pid)["mnt"]
        assert proc_mounts(mounts(process.pid)) == 2
        assert mounts() == before
        process.communicate("exit\n")
        assert process.returncode == 0
    assert mounts() == before
    left = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            left.append(os.readlink(f"/proc/{pid}/ns/mnt"))
        except OSError:
            continue
    assert f"mnt:[{inside}]" not in left, "its mount namespace ended with it: nothing to unmount by hand"
    assert Path("/proc/self/status").exists()
