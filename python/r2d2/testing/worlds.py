"""The namespaces of an isolated test: made by a process that holds them, which the test's fork joins.

A world is a PID 1 of ours, as a container has: it reaps what is orphaned to it, and ends when this process
does, however that ends; then everything in its PID namespace is killed. The namespaces and mounts are taken
apart when it ends, not when the test does.

The fork is made beside it: it begins as soon as the user and PID namespaces exist, of which it is a member,
and joins the others when they are ready (``fork``, ``join``). While an isolated test runs, its parent has
nothing to do: it makes the world of the next one, if that is isolated, too. While a test is reported it waits
neither for the end of its world, in which nothing runs any more, nor for the kernel to free the memory of its
fork; before one that is not isolated it does (``settle``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2 import _core, namespace
from r2d2.resolve import core_mount
from r2d2.spec import Mount

from .leaks import children

if TYPE_CHECKING:
    from collections.abc import Callable

_SHM = "/dev/shm"  # noqa: S108 - mounted over, not written to
_TMP = "/tmp"  # noqa: S108 - likewise


class Wanted(NamedTuple):
    """What a test wants of its world: to be root, a network, a /tmp of its own, and what that one shows."""

    root: bool
    net: bool
    tmp: bool
    kept: tuple[str, ...] = ()


class World:
    """Namespaces, and the process that holds them.

    Args:
        begin: called with PID 1's pidfd while it is made, to ``fork``; says the child's pid.

    Raises:
        OSError: this host cannot have them.
    """

    def __init__(self, wanted: Wanted, begin: Callable[[int], int] | None = None) -> None:
        self.wanted = wanted
        self.ended = False
        self._seen = None if begin else _surroundings()
        self._handle = _core.start(_spec(wanted, os.geteuid(), os.getegid()), member=begin)
        self.pid = self._handle.pid
        #: For a ``fork``.
        self.pidfd = self._handle.fileno()

    def fits(self, wanted: Wanted) -> bool:
        """Whether it is what a new one would be."""
        return self.wanted == wanted and not self.gone() and self._seen == _surroundings()

    def descendants(self, fork: int) -> list[str]:
        """What runs beside PID 1 and the test itself: name, and PID inside (proc_pid_status(5)).

        What is orphaned moves from the one to the other, so PID 1 is asked last.
        """
        own = [fork, self.pid]
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
            if not self.gone():
                self._handle.kill(signal.SIGKILL)
            self.ended = True
        if wait:
            self._handle.wait()
        else:
            _ending.append(self)


#: The one that waits for the next test; those that were killed; forks that only have to end.
_prepared: list[World] = []
_ending: list[World] = []
_forks: list[int] = []


def take(wanted: Wanted, begin: Callable[[int], int]) -> World:
    """A world that nobody was in; the caller's to end. ``begin`` gets its PID 1's pidfd, to ``fork``.

    Raises:
        OSError: this host cannot have it. What ``begin`` has forked has ended, or is for it to end.
    """
    world = _prepared.pop() if _prepared else None
    _reap(os.WNOHANG)
    if world is not None:
        if world.fits(wanted):
            try:
                world._handle.admit(begin(world.pidfd))
            except BaseException:
                world.end(wait=False)
                raise
            return world
        world.end()
    return World(wanted, begin)


def prepare(wanted: Wanted) -> None:
    """Makes one that ``take`` will return; what is wrong will be said there."""
    with contextlib.suppress(OSError):
        if not _prepared:
            _prepared.append(World(wanted))


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


@functools.lru_cache(maxsize=16)
def _spec(wanted: Wanted, uid: int, gid: int) -> _core.Spec:
    """What the core makes a world of, for this user."""
    del uid, gid  # the id map has them
    mounts = []
    if wanted.tmp:
        kept = [os.fsencode(path) for path in wanted.kept]
        mounts.append(core_mount(Mount(None, _TMP, type="tmpfs"))._replace(keep=kept))
    if os.path.isdir(_SHM):
        mounts.append(core_mount(Mount(None, _SHM, type="tmpfs")))
    return namespace.plain_spec(
        [*_first(), *_then(wanted)],
        proc="mount",
        idmap="single" if wanted.root else "caller",
        mounts=mounts,
        name="isolated",
    )


def _first() -> list[str]:
    """The namespaces that a fork is born in: children alone may be in them, or processes without threads."""
    return ["user", "pid"] if os.geteuid() != 0 else ["pid"]


def _then(wanted: Wanted) -> list[str]:
    """Those that it joins."""
    return ["mount", "uts", "ipc", *(["net"] if wanted.net else [])]


def fork(pidfd: int, forked: list[int]) -> None:
    """fork(2): the child is in the user and PID namespaces of this PID 1; the others may not be ready yet.

    Its result is appended to ``forked``, whatever a signal that comes meanwhile raises.
    """
    _core.fork_into(pidfd, _first(), os.fork, forked)


def join(pidfd: int, wanted: Wanted) -> None:
    """In a ``fork`` of a world that is ready: enters the other namespaces that it has.

    Raises:
        OSError: refused.
    """
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    _core.setns(pidfd, _then(wanted))
    try:
        os.chdir(
            os.readlink(f"/proc/self/fd/{here}")
        )  # the same directory, in the mounts of the new namespace
    except OSError:
        os.fchdir(here)
    os.close(here)


def _surroundings() -> tuple[Any, ...]:
    """What a world copies when it is made."""
    with open("/proc/self/mountinfo", "rb") as file:
        return os.uname(), file.read(), os.geteuid(), os.getegid()
