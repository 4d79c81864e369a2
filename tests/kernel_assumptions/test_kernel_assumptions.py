"""What the design takes for granted of the kernel. If one of these fails, a comment in the core is wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _needs import needs
from _overlay import CREATE, FSCONFIG, FSOPEN, MODES, configure, in_namespace, libc, mount, syscall, workplace

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("facts.c")
FACTS = [name for name in re.findall(r"FACT\((\w+)\);", SOURCE.read_text()) if name != "block"]
CLONE_NEWNS = 0x20000


# src/sys/clone.rs, src/container/child.rs, launch.rs, src/helper/init.rs


@needs("gcc")
@pytest.mark.parametrize("fact", FACTS)
def test_processes(fact: str, compiled: Callable[[str], str]) -> None:
    done = subprocess.run([compiled(SOURCE.read_text()), fact], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def as_pid_1(script: str) -> str:
    """What a Python script prints as PID 1 of a PID namespace."""
    user = [] if os.geteuid() == 0 else ["-Ur"]
    # The interpreter of a virtual environment finds its modules by its own path.
    command = ["unshare", *user, "--pid", "--fork", "--kill-child", sys.executable, "-S", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@needs("unshare")
def test_a_blocked_signal_to_pid_1_is_kept() -> None:
    """PID 1 reads its signals from a signalfd, although the kernel drops those that it does not handle."""
    script = """
import os, signal
assert os.getpid() == 1
def from_a_child(number):
    if os.fork() == 0:
        os.kill(1, number)
        os._exit(0)
    os.wait()
from_a_child(signal.SIGTERM)              # default action, not blocked: dropped
print("lives", signal.sigpending() == set())
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
from_a_child(signal.SIGTERM)              # the same, blocked: kept
print(signal.sigpending() == {signal.SIGTERM}, signal.sigwait({signal.SIGTERM}) == signal.SIGTERM)
"""
    assert as_pid_1(script) == "lives True\nTrue True\n"


@needs("unshare")
def test_sigkill_from_inside_is_dropped() -> None:
    script = """
import os
if os.fork() == 0:
    os.kill(1, 9)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), "and PID", os.getpid(), "lives")
"""
    assert as_pid_1(script) == "7 and PID 1 lives\n"


@needs("unshare")
def test_with_pid_1_everything_ends() -> None:
    """Ending a container is ending its PID 1: the kernel kills the rest, and wait(2) returns after that."""
    script = """
import os
reading, writing = os.pipe()
for _ in range(5):
    if os.fork() == 0:
        os.close(reading)
        while True:
            os.read(0, 1) or __import__("signal").pause()
os.write(1, b"started")
os._exit(3)
"""
    user = [] if os.geteuid() == 0 else ["-Ur"]
    command = ["unshare", *user, "--pid", "--fork", sys.executable, "-S", "-c", script]
    # The pipe of standard output ends only when the last of the five is gone.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"started")


@needs("unshare")
def test_execve_enters_the_time_namespace() -> None:
    """Linux 6.1: PID 1 itself has the clocks, not only what it starts. unshare -T without --fork shows it."""
    command = ["unshare", "-Ur", "-T", "--boottime", "1000000", "cat", "/proc/uptime"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[0]) > 1_000_000


# src/overlay, src/container/plan.rs


def overlay(lower: str, upper: str, work: str) -> int:
    """Errno of an overlay's creation in a user namespace; 0 if it was made (and is gone again)."""
    context = syscall(FSOPEN, b"overlay", 0)
    try:
        configure(context, "lowerdir", os.fsencode(lower))
        configure(context, "upperdir", os.fsencode(upper))
        configure(context, "workdir", os.fsencode(work))
        configure(context, "userxattr", None)
        syscall(FSCONFIG, context, CREATE, None, None, 0)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(context)
    return 0


def directories(*names: str) -> list[str]:
    for name in names:
        os.makedirs(name)
    return [os.path.abspath(name) for name in names]


def child_lowerdir_root() -> None:
    """Mounts that came along into a user namespace are locked together: none comes without the rest."""
    workplace()
    upper, work, lower = directories("upper", "work", "lower")
    assert overlay("/", upper, work) == errno.EINVAL
    assert overlay(lower, upper, work) == 0


def child_descriptors_from_before() -> None:
    """A layer must be opened in the mount namespace that mounts."""
    workplace()
    lower, upper, work = directories("lower", "upper", "work")
    before = os.open(lower, os.O_PATH | os.O_DIRECTORY)
    assert overlay(f"/proc/self/fd/{before}", upper, work) == 0
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    assert overlay(f"/proc/self/fd/{before}", upper, work) == errno.EINVAL
    after = os.open(lower, os.O_PATH | os.O_DIRECTORY)
    assert overlay(f"/proc/self/fd/{after}", upper, work) == 0


def child_tmpfs_attributes() -> None:
    """Since 6.6: the upper layer of a container may live in memory, where nothing has to be removed."""
    workplace()
    Path("file").touch()
    os.setxattr("file", "user.overlay.test", b"x")
    assert os.listxattr("file") == ["user.overlay.test"]


def child_whiteouts() -> None:
    """A user namespace may make character devices 0,0 and no others (Linux 5.8)."""
    place = workplace()
    os.mknod("whiteout", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    if os.environ["R2D2_MODE"] == "rootless":
        with pytest.raises(PermissionError):
            os.mknod("null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    assert sorted(os.listdir(place)) == ["whiteout"]


def child_two_overlays_on_one_upper() -> None:
    """Without index=on the kernel warns in its log and mounts: to refuse is our affair (r2d2/layers.py)."""
    workplace()
    lower, upper, work, work2, one, two = directories("lower", "upper", "work", "work2", "one", "two")
    for work_directory, target in ((work, one), (work2, two)):
        options = f"lowerdir={lower},upperdir={upper},workdir={work_directory},userxattr"
        mount(b"overlay", target, b"overlay", 0, options.encode())
    Path(one, "new").touch()
    assert stat.S_IMODE(os.stat(f"{work}/work").st_mode) == 0, "what it leaves is mode 000"


def child_upper_on_overlay() -> None:
    workplace()
    lower, upper, work, merged = directories("lower", "upper", "work", "merged")
    mount(
        b"overlay",
        merged,
        b"overlay",
        0,
        f"lowerdir={lower},upperdir={upper},workdir={work},userxattr".encode(),
    )
    on_it, work2 = directories("merged/upper", "merged/work")
    assert overlay("/usr/share", on_it, work2) == errno.EINVAL
    assert overlay(merged, *directories("upper3", "work3")) == 0, "as a lower layer it is fine, once"


@pytest.mark.parametrize(
    ("fact", "modes"),
    [
        (child_lowerdir_root, ["rootless"]),
        (child_descriptors_from_before, MODES),
        (child_tmpfs_attributes, MODES),
        (child_whiteouts, MODES),
        (child_two_overlays_on_one_upper, MODES),
        (child_upper_on_overlay, MODES),
    ],
)
@needs("unshare")
def test_overlays(fact: Callable[[], None], modes: list[str]) -> None:
    for mode in modes:
        in_namespace(fact, mode)


# python/r2d2/mounted.py, container/handle.rs


@needs("unshare")
def test_the_owner_of_a_user_namespace_looks_through_proc_pid_root() -> None:
    """Also where PID 1 is not dumpable: its owner outside has every capability over that namespace."""
    script = "import ctypes; ctypes.CDLL(None).prctl(4, 0); print('ready', flush=True); input()"
    command = ["unshare", "-Urm", sys.executable, "-S", "-c", script]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert os.path.samefile(f"/proc/{process.pid}/root/usr", "/usr")
        process.communicate("\n")


def test_flock_is_released_for_every_copy_of_the_descriptor() -> None:
    """A fork of an overlay's owner keeps the lock's descriptor; unlocking frees the layer all the same."""
    import fcntl

    with tempfile.TemporaryDirectory() as directory:
        held, other = (os.open(directory, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy = os.dup(held)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(held, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for descriptor in (held, other, copy):
            os.close(descriptor)
