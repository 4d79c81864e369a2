"""What a test needs of the machine, tried out; a test that cannot have it is skipped, by a listed reason.

``permitted_skips.txt`` says which of these reasons CI may see, and for which user.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

REASONS = {
    "root": "needs real root",
    "user": "needs an ordinary user",
    "cgroup": "needs a cgroup that this process may write to",
    "no-cgroup": "needs a user who may write to no cgroup",
    "gcc": "needs gcc and a static libc",
    "busybox": "needs a static busybox",
    "musl": "needs musl-gcc",
    "unshare": "needs unshare(1) and nsenter(1)",
    "bwrap": "needs bubblewrap",
    "strace": "needs strace",
    "vsock": "needs AF_VSOCK sockets outside, to see that there are none inside",
    "tiocsti": "needs a kernel that still obeys TIOCSTI (dev.tty.legacy_tiocsti)",
    "subuid": "needs newuidmap and a line in /etc/subuid",
    "memory": "needs 8 GB of free memory",
    "slirp4netns": "needs slirp4netns",
    "redis": "needs redis-server and the Python package redis",
    "postgresql": "needs PostgreSQL, unshare(1) and the Python package pg8000",
    "nginx": "needs nginx",
    "coverage": "needs coverage.py",
    "asyncio": "needs pytest-asyncio",
    "testinfra": "needs pytest-testinfra",
    "testcontainers": "needs testcontainers",
    "pasta": "needs pasta",
    "nft": "needs nft(8)",
    "tcpdump": "needs tcpdump",
    "dpkg": "needs dpkg-deb, and packages that dpkg installed",
    "zstd": "needs zstd",
    "tshark": "needs tshark",
    "tun": "needs a /dev/net/tun that this user may open",
}


def _there(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def _cgroup() -> bool:
    from r2d2 import Container, UnsupportedError

    try:
        Container("scratch", limits={"memory": "64m", "pids": 50})._resolve()
    except UnsupportedError:
        return False
    return True


def _static() -> bool:
    if not _there("gcc"):
        return False
    command = ["gcc", "-static", "-x", "c", "-o", "/dev/null", "-"]
    done = subprocess.run(command, input=b"int main(){return 0;}", check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def _vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _tiocsti() -> bool:
    try:
        return Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "1"
    except OSError:
        return True


def _subuid() -> bool:
    import pwd

    names = (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid()))
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return _there("newuidmap", "newgidmap") and any(line.split(":")[0] in names for line in lines)


def _memory() -> bool:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return any(line.startswith("MemAvailable:") and int(line.split()[1]) > 8 << 20 for line in lines)


def _postgresql() -> bool:
    there = any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return there and _there("unshare") and find_spec("pg8000") is not None


_PROBES: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "user": lambda: os.geteuid() != 0,
    "cgroup": _cgroup,
    "no-cgroup": lambda: not has("cgroup"),
    "gcc": _static,
    "busybox": lambda: _there("busybox"),
    "musl": lambda: _there("musl-gcc"),
    "unshare": lambda: _there("unshare", "nsenter"),
    "bwrap": lambda: _there("bwrap"),
    "pasta": lambda: _there("pasta"),
    "nft": lambda: _there("nft"),
    "strace": lambda: _there("strace"),
    "vsock": _vsock,
    "tiocsti": _tiocsti,
    "subuid": _subuid,
    "memory": _memory,
    "slirp4netns": lambda: _there("slirp4netns"),
    "redis": lambda: _there("redis-server") and find_spec("redis") is not None,
    "postgresql": _postgresql,
    "dpkg": lambda: _there("dpkg-deb") and os.path.exists("/var/lib/dpkg/status"),
    "zstd": lambda: _there("zstd"),
    "nginx": lambda: os.path.exists("/usr/sbin/nginx"),
    "coverage": lambda: find_spec("coverage") is not None,
    "asyncio": lambda: find_spec("pytest_asyncio") is not None,
    "testinfra": lambda: find_spec("testinfra") is not None,
    "testcontainers": lambda: find_spec("testcontainers") is not None,
    "tcpdump": lambda: _there("tcpdump"),
    "tshark": lambda: _there("tshark"),
    "tun": lambda: os.access("/dev/net/tun", os.R_OK | os.W_OK),
}


@functools.cache
def has(what: str) -> bool:
    """Whether this machine, and this user, have it."""
    return _PROBES[what]()


def needs(*what: str) -> pytest.MarkDecorator:
    """Skips a test, by a reason of the list, where one of these is missing."""
    lacking = next((each for each in what if not has(each)), None)
    return pytest.mark.skipif(lacking is not None, reason=REASONS[lacking or what[0]])
