"""The namespaces of an isolated test: entered by a fork that has one thread (``isolated`` says how)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import signal
import socket
import struct
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

_NS = {
    "mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000,
}  # fmt: skip
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1000, 0x4000, 0x40000, 2, 4, 8
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
ADVICE = "see r2d2.doctor()"


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def can_lend() -> bool:
    """Whether this process may change, and change back, the PID namespace of its children (setns(2))."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/ns/pid", "rb") as own:
        return bool(_libc().setns(own.fileno(), _NS["pid"]) == 0)


@contextlib.contextmanager
def lent_pid_namespace() -> Iterator[None]:
    """Children that this thread starts are in a new PID namespace; later ones in its own again."""
    with open("/proc/self/ns/pid", "rb") as own:
        if _libc().unshare(_NS["pid"]) != 0:
            raise _error("unshare(pid)")
        try:
            yield
        finally:
            if _libc().setns(own.fileno(), _NS["pid"]) != 0:
                raise _error("setns(pid)")


def enter(options: dict[str, bool], *, pid: bool = True) -> str | None:
    """Unshares; why not, if it is refused."""
    uid, gid = os.geteuid(), os.getegid()
    kinds = ["mount", "uts", "ipc"]
    if pid:
        kinds.append("pid")
    if options["net"]:
        kinds.append("net")
    if uid != 0:
        kinds.append("user")
    if _libc().unshare(sum(_NS[kind] for kind in kinds)) != 0:
        number = ctypes.get_errno()
        return f"isolated: unshare({', '.join(kinds)}): {os.strerror(number)}; {ADVICE}"
    if uid != 0:
        inside = (0, 0) if options["root"] else (uid, gid)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{inside[0]} {uid} 1"),
            ("gid_map", f"{inside[1]} {gid} 1"),
        ):
            try:
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            except OSError as error:
                return f"isolated: {name}: {error.strerror}; {ADVICE}"
    if options["net"]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    return None


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent ends (prctl(2)); if it is not ``parent`` any more, that was already."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class First:
    """PID 1 of a PID namespace; everything in there ends with it (pid_namespaces(7))."""

    def __init__(self, pid: int, lifeline: int) -> None:
        self._pid = pid
        self._lifeline = lifeline

    def disown(self) -> None:
        """In a fork: it lives no longer for this process's sake."""
        os.close(self._lifeline)

    def descendants(self) -> list[str]:
        """What runs beside it: name, and PID inside (proc_pid_status(5))."""
        found: dict[int, str] = {}
        # Where the test has mounted the procfs of its namespace over ours, we are not in it.
        first = self._pid if os.path.exists("/proc/self") else 1
        waiting = [first]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                        waiting += map(int, file.read().split())
                if pid != first:
                    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                        fields = dict(line.split(":", 1) for line in file)
                    inside = int(fields["NSpid"].split()[-1])
                    found[inside] = f"{fields['Name'].strip()} (pid {inside} inside)"
        return [found[pid] for pid in sorted(found)]

    def end(self) -> None:
        """Kills it and all else, and waits for that."""
        os.close(self._lifeline)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


@contextlib.contextmanager
def first_process() -> Iterator[First]:
    """PID 1 of the new PID namespace, to which the kernel hands what others orphan.

    It is not a fork, which would cost as much as this process is large, but a cat(1) that waits for the end
    of its input: when whoever has the other end closes it, or is killed, everything in the namespace is. It
    ignores SIGCHLD, so that the kernel reaps its children; a shell sees to that, since here it would lose
    the exit statuses of others.
    """
    reading, writing = os.pipe()
    try:
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        actions = [(os.POSIX_SPAWN_DUP2, reading, 0), *null]
        command = ["sh", "-c", "trap '' CHLD; exec cat"]
        first = First(os.posix_spawnp("sh", command, os.environ, file_actions=actions), writing)
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        yield first
    finally:
        first.end()


def mounts(options: dict[str, bool], kept: list[str]) -> None:
    """A procfs, an empty /dev/shm, and with ``tmp`` an empty /tmp but for what is in ``kept``."""
    _mount(None, "/", None, _MS_PRIVATE | _MS_REC)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("proc", "/proc", "proc", flags)
    if os.path.isdir("/dev/shm"):  # noqa: S108 - mounted over, not written to
        _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")  # noqa: S108
    if options["tmp"]:
        _private_tmp(kept)


def _private_tmp(kept: list[str]) -> None:
    """An empty /tmp, into which what is needed of the old one is bound."""
    temporary = tempfile.gettempdir()
    mode = os.stat(temporary).st_mode & 0o7777
    here = os.getcwd()
    descriptors = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")  # noqa: S108
    if _below_tmp(temporary):
        os.makedirs(temporary)
        os.chmod(temporary, mode)
    for path, descriptor in descriptors:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a", encoding="ascii"):
                pass
        _mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.chdir(here)  # the same directory, where it is now


def kept(item: pytest.Item) -> list[str]:
    """What pytest, the project and this interpreter have below /tmp, outermost only."""
    config = item.config
    paths = [str(config.rootpath), str(config.invocation_params.dir), os.getcwd(), str(item.path.parent)]
    paths += [sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    paths += [os.environ[name] for name in _DIRECTORIES if os.environ.get(name)]
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith("pytest-of-"):
                paths.append(entry.path)
    factory: Any = getattr(config, "_tmp_path_factory", None)
    if getattr(factory, "_basetemp", None) is not None:
        paths.append(str(factory.getbasetemp()))
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths if _below_tmp(os.path.abspath(path))}):
        shared = path == os.path.abspath(tempfile.gettempdir())
        if os.path.exists(path) and not shared and not any(path.startswith(each + "/") for each in found):
            found.append(path)
    return found


#: Variables that name directories which programs of the test may need.
_DIRECTORIES = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "R2D2_CACHE", "R2D2_RUNTIME")


def _below_tmp(path: str) -> bool:
    return path.startswith("/tmp/")  # noqa: S108 - a comparison


def _mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    arguments = (encoded(source), encoded(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data))
    if _libc().mount(*arguments) != 0:
        raise _error(f"mount {target}")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
