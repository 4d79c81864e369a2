"""Overlay mounts for tests, made in children that have their own namespaces.

A test names a function of its module; `in_namespace` runs it in a fresh interpreter below unshare(1),
so that every mount ends with that process. What mounts here is ctypes and mount(8), never r2d2.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
#: How a test can be privileged: in a user namespace of its own, and (when run by root) without one.
MODES = ["rootless", "root"] if os.geteuid() == 0 else ["rootless"]

libc = ctypes.CDLL(None, use_errno=True)
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, MOUNT_SETATTR = 429, 430, 431, 432, 442
SET_FLAG, SET_STRING, SET_FD, CREATE = 0, 1, 5, 6
MS_RDONLY, MS_BIND, MNT_DETACH = 1, 4096, 2


def in_namespace(function: Callable[..., None], mode: str, *args: str, timeout: float = 100) -> None:
    """Runs `function(*args)` in a child with a mount namespace (and a user namespace if rootless)."""
    flags = "-Urm" if mode == "rootless" else "-m"
    module = function.__module__.removeprefix("tests.")
    command = ["unshare", flags, "--propagation", "private", sys.executable, "-P", __file__]
    command += [module, function.__name__, *args]
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    # A mount point of its own: what is imported later may lie anywhere, also in /tmp.
    with tempfile.TemporaryDirectory() as place:
        env = {**os.environ, "PYTHONPATH": path, "R2D2_MODE": mode, "R2D2_PLACE": place}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rootless() -> bool:
    """In the child: is this a user namespace of its own?"""
    return os.environ["R2D2_MODE"] == "rootless"


def syscall(number: int, *args: Any) -> int:
    result = int(libc.syscall(number, *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"syscall {number}: {errno.errorcode.get(code)}")
    return result


def mount(
    source: bytes,
    target: str | bytes,
    fstype: bytes | None,
    flags: int = 0,
    data: bytes | None = None,
) -> None:
    if libc.mount(source, os.fsencode(target), fstype, flags, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(target))


def umount(target: str) -> None:
    if libc.umount2(os.fsencode(target), MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2", target)


def configure(context: int, key: str, value: bytes | None) -> None:
    command = SET_FLAG if value is None else SET_STRING
    syscall(FSCONFIG, context, command, key.encode(), value, 0)


def mount_calls(
    calls: list[tuple[str, bytes | None]], opens: list[tuple[str, int]], target: str | bytes
) -> None:
    """Carries out what `OverlayOptions.calls` planned."""
    context = syscall(FSOPEN, b"overlay", 0)
    try:
        with_descriptors(opens, lambda: [configure(context, key, value) for key, value in calls])
        syscall(FSCONFIG, context, CREATE, None, None, 0)
        mounted = syscall(FSMOUNT, context, 0, 0)
        try:
            syscall(MOVE_MOUNT, mounted, b"", -100, os.fsencode(target), 4)
        finally:
            os.close(mounted)
    finally:
        os.close(context)


def with_descriptors(opens: list[tuple[str, int]], body: Callable[[], object]) -> None:
    try:
        for path, number in opens:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
        body()
    finally:
        for _, number in opens:
            os.close(number)


def workplace() -> str:
    """A tmpfs of the child's own, which is also its working directory from now on."""
    place = os.environ["R2D2_PLACE"]
    mount(b"tmpfs", place, b"tmpfs", 0, b"mode=755")
    os.chdir(place)
    return place


Node = tuple[Any, ...]


def snapshot(top: str | bytes) -> dict[str, tuple[Node, Node]]:
    """Path -> (content, metadata) of everything below `top`; a directory's mtime and size do not count."""
    found: dict[str, tuple[Node, Node]] = {}
    base = os.fsdecode(top)
    todo = [""]
    while todo:
        relative = todo.pop()
        for entry in os.scandir(os.path.join(base, relative)):
            path = os.path.join(relative, entry.name)
            full = os.path.join(base, path)
            info = os.lstat(full)
            kind = stat.S_IFMT(info.st_mode)
            content: Node = (kind,)
            attributes: Node = ()
            if kind == stat.S_IFREG:
                content += (Path(full).read_bytes(),)
            elif kind == stat.S_IFLNK:
                content += (os.readlink(full),)
            elif kind == stat.S_IFDIR:
                todo.append(path)
            if kind in (stat.S_IFREG, stat.S_IFDIR):
                names = sorted(os.listxattr(full))
                attributes = tuple((name, os.getxattr(full, name)) for name in names)
            times = () if kind == stat.S_IFDIR else (info.st_mtime_ns,)
            found[path] = (
                content,
                (info.st_mode & 0o7777, info.st_uid, info.st_gid, *times, attributes),
            )
    return found


if __name__ == "__main__":
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
