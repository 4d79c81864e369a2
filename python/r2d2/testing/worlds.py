"""The namespaces of an isolated test: made by a process that holds them, which the test's fork joins.

A world is a PID 1 of ours, as a container has: it reaps what is orphaned to it, and ends when this process
does, however that ends; then everything in its PID namespace is killed. The namespaces and mounts are taken
apart when it ends, not when the test does.

While an isolated test runs, its parent has nothing to do: it makes the world of the next one, if that is
isolated, too. While a test is reported it waits neither for the end of its world, in which nothing runs any
more, nor for the kernel to free the memory of its fork; before one that is not isolated it does (``settle``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from .leaks import children
from .libc import libc, os_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2d2 import _core

_NS = {
    "mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000,
}  # fmt: skip
_PR_SET_PDEATHSIG = 1
_SHM = "/dev/shm"  # noqa: S108 - mounted over, not written to


class World:
    """Namespaces, and the process that holds them.

    Raises:
        OSError: this host cannot have them.
    """

    def __init__(self, options: dict[str, bool]) -> None:
        self.options = options
        self.ended = False
        #: Only root of this user namespace may start a process in the new PID namespace from outside.
        self.user = os.geteuid() != 0
        kinds = ["mount", "uts", "ipc", "pid", *(["net"] if options["net"] else [])]
        self._kinds = ["user", *kinds] if self.user else kinds
        self._seen = _surroundings()
        self._handle = self._hold()
        self.pid = self._handle.pid

    def _hold(self) -> _core.Handle:
        from r2d2 import _core, namespace
        from r2d2.resolve import core_mount
        from r2d2.spec import Mount

        spec = namespace.plain_spec(
            self._kinds,
            proc="mount",
            idmap="single" if self.options["root"] else "caller",
            mounts=[core_mount(Mount(None, _SHM, type="tmpfs"))] if os.path.isdir(_SHM) else [],
            name="isolated",
        )
        return _core.start(spec)

    def fits(self, options: dict[str, bool]) -> bool:
        """Whether it is what a new one would be."""
        return self.options == options and not self.gone() and self._seen == _surroundings()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Children that this thread starts are in its PID namespace; later ones in their own again.

        By setns(2); for root. Others join in a fork.
        """
        with open("/proc/self/ns/pid", "rb", buffering=0) as own:
            self._join(["pid"])
            try:
                yield
            finally:
                if libc().setns(own.fileno(), _NS["pid"]) != 0:
                    raise os_error("setns(pid)")

    def join(self) -> None:
        """In a fork, which has one thread: enters all that it has.

        Of the PID namespace only children become members; where it was lent, this process is one already.
        """
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{here}")
        self._join(self._kinds if self.user else [kind for kind in self._kinds if kind != "pid"])
        try:
            os.chdir(path)  # the same directory, in the mounts of the new namespace
        except OSError:
            os.fchdir(here)
        os.close(here)

    def _join(self, kinds: list[str]) -> None:
        if libc().setns(self._handle.fileno(), sum(_NS[kind] for kind in kinds)) != 0:
            raise os_error(f"setns({', '.join(kinds)})")

    def descendants(self, fork: int) -> list[str]:
        """What runs beside PID 1 and the test itself: name, and PID inside (proc_pid_status(5)).

        What is orphaned moves from the one to the other, so PID 1 is asked last.
        """
        own = [*sorted(children(fork) if self.user else {fork}), self.pid]
        found: dict[int, str] = {}
        waiting = [child for pid in own for child in children(pid)]
        while waiting:
            pid = waiting.pop()
            waiting += children(pid)
            with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
                fields = dict(line.split(":", 1) for line in file)
                inside = int(fields["NSpid"].split()[-1])
                found[inside] = f"{fields['Name'].strip()} (pid {inside} inside)"
        return [found[pid] for pid in sorted(found)]

    def gone(self) -> bool:
        """Whether nothing of it is left."""
        return self._handle.wait(0) is not None

    def end(self, *, wait: bool = True) -> None:
        """Kills all that is in it, and waits for that; if nothing is, ``settle`` may do the waiting."""
        if not self.ended:
            self.ended = True
            if not self.gone():
                self._handle.kill(signal.SIGKILL)
        if wait:
            self._handle.wait()
        else:
            _ending.append(self)


#: The one that waits for the next test; those that were killed; forks that only have to end.
_prepared: list[World] = []
_ending: list[World] = []
_forks: list[int] = []


def take(options: dict[str, bool]) -> World:
    """A world that nobody was in; the caller's to end.

    Raises:
        OSError: this host cannot have it.
    """
    world = _prepared.pop() if _prepared else None
    _reap(os.WNOHANG)
    if world is not None:
        if world.fits(options):
            return world
        world.end()
    return World(options)


def prepare(options: dict[str, bool]) -> None:
    """Makes one that ``take`` will return; what is wrong will be said there."""
    with contextlib.suppress(OSError):
        if not _prepared:
            _prepared.append(World(options))


def leave(fork: int) -> None:
    """A fork to be waited for by ``settle``."""
    _forks.append(fork)


def settle() -> None:
    """Waits until nothing is left of any, one that was prepared in vain included."""
    _reap(0)  # first of all: PID 1 cannot end before those whom this process has to wait for
    while _prepared:
        _prepared.pop().end()
    while _ending:
        _ending.pop().end()


def _reap(options: int) -> None:
    for fork in list(_forks):
        with contextlib.suppress(ChildProcessError):  # somebody waits for all children
            if os.waitpid(fork, options)[0] == 0:
                continue
        _forks.remove(fork)
    for world in list(_ending):
        if world.gone():
            _ending.remove(world)


def forget() -> None:
    """In a fork: all of them are the parent's."""
    _prepared.clear()
    _ending.clear()
    _forks.clear()


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent ends (prctl(2)); if it is not ``parent`` any more, that was already."""
    libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _surroundings() -> tuple[Any, ...]:
    """What a world copies when it is made."""
    with open("/proc/self/mountinfo", "rb") as file:
        return os.uname(), file.read(), os.geteuid(), os.getegid()
