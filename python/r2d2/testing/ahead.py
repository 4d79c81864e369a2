"""The container of the next test, started while this one runs, where ``r2d2_ahead = true`` asks for that.

A thread starts it, and lives as long as that takes: none of ours is there while nothing is to do, nor across
a fork(2) of the process. The next test gets it if a new one would be the same: its specification, and of the
host and this process what a start copies (``surroundings``, the mount table). If not it is thrown away, as
is one that could not be started: whoever wants it starts it again, and hears why. Only containers are
prepared that have nothing to do with the host but to be stacked upon it: no network but ``none``, no mounts,
no limits, no directories of the caller's.

A container of that kind in which nothing runs any more has only to be taken apart by the kernel: its test
does not wait for that if one more of them is wanted (``leave``).

All of this is done by one thread at a time: the one that runs the tests, or, between ``prepare`` and the end
of its work, the other.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import threading
from typing import TYPE_CHECKING, Any

from r2d2.cache import cache_dir

from .leaks import children

if TYPE_CHECKING:
    from collections.abc import Callable

    from r2d2.spec import ContainerSpec

    from .recorded import Recorded

#: Top-level directories that no container shares with the host.
_FRESH = {"dev", "proc", "run", "sys", "tmp"}
#: What makes a container one that may be prepared: its other words are about itself.
_APART = {
    "network": "none", "mounts": (), "upper": None, "work": None, "slirp": None, "ports": (), "resolvers": (),
    "clock_offsets": None,
}  # fmt: skip
_VARIABLES = ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "R2D2_CACHE", "R2D2_RUNTIME")
_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]


def apart(spec: ContainerSpec) -> bool:
    """Whether a container has nothing to do with the host but its files, read only."""
    if spec.limits != type(spec.limits)() or spec.storage == "disk":
        return False
    # The cache's layers never change; a directory of the caller's may, until its container is to start.
    if spec.image.layers and not all(each.startswith(cache_dir() + "/") for each in spec.image.layers):
        return False
    return all(getattr(spec, name) == value for name, value in _APART.items())


class _Start:
    """A container that a thread starts."""

    def __init__(self, container: Recorded, around: tuple[Any, ...]) -> None:
        self.container = container
        self.started = False
        self._mounts = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115 - it is asked later
        self._around = around
        self._thread = threading.Thread(target=self._run, name="r2d2-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # whoever wants it hears of it
            self.container.start()
            _pids.add(self.container.pid)
            self.started = True
        _reap()

    @property
    def thread(self) -> int | None:
        """Its kernel id, while it may have children."""
        return self._thread.native_id if self._thread.is_alive() else None

    def wait(self) -> None:
        """Until the thread has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def fits(self, wanted: Recorded, around: tuple[Any, ...]) -> bool:
        """Whether it is what ``wanted`` would be, if that was started now, in these surroundings."""
        mine = self.container.spec._replace(name=wanted.spec.name)
        same = self.started and mine == wanted.spec and self._around == around
        # Readable as an error once the table has changed (proc_pid_mountinfo(5)).
        waiting = select.poll()
        waiting.register(self._mounts, select.POLLPRI)
        return same and not waiting.poll(0) and self.container.running

    def close(self) -> None:
        """Ends what nobody wants; the container stays whose it is."""
        self._mounts.close()


_next: _Start | None = None
#: Those that were killed: the name of their test, the pid, and what waits for the end.
_ending: list[tuple[str, int, Callable[[], None]]] = []
#: PID 1s of the one that is ready, and of those that end.
_pids: set[int] = set()
#: What could not be reaped, to be told where a test is told of.
_failed: list[tuple[str, BaseException]] = []


def take(wanted: Recorded, around: tuple[Any, ...]) -> Recorded | None:
    """The one that was started ahead, if it is what ``wanted`` would be; the caller's to end."""
    global _next  # noqa: PLW0603
    ready = _next
    if ready is None:
        return None
    ready.wait()
    _next = None
    fits = ready.fits(wanted, around)
    ready.close()
    if ready.started:
        _pids.discard(ready.container.pid)
        if fits:
            return ready.container
        ready.container.stop()
    return None


def prepare(make: Callable[[], Recorded] | None, around: tuple[Any, ...]) -> None:
    """Begins to start another one, if one is wanted and of the kind that may be."""
    global _next  # noqa: PLW0603
    if _next is None and make is not None:
        with contextlib.suppress(Exception):  # the next test's own to be told
            container = make()
            if apart(container.spec):
                _next = _Start(container, around)
    if _next is None:
        _reap()


def leave(nodeid: str, container: Recorded) -> bool:
    """Ends a container, if nothing runs in it, without waiting for the kernel; whether it did."""
    if _next is None or not container.running or not apart(container.spec):
        return False
    if any(program.process.poll() is None for program in container.programs) or children(container.pid):
        return False
    pid = container.pid
    _pids.add(pid)
    _ending.append((nodeid, pid, container.leave()))
    return True


def _reap() -> None:
    while _ending:
        nodeid, pid, wait = _ending.pop()
        try:
            wait()
        except Exception as error:  # noqa: BLE001 - told by ``settle``
            _failed.append((nodeid, error))
        _pids.discard(pid)


def known() -> set[int]:
    """Processes that no test has left: of the one that is ready, and of those that end."""
    return _pids


def threads() -> set[str]:
    """Threads whose children are nobody else's."""
    thread = None if _next is None else _next.thread
    return set() if thread is None else {str(thread)}


def settle() -> None:
    """Nothing is left: neither one that was prepared in vain, nor one that ends.

    Raises:
        OSError: one could not be ended; the note says of which test.
    """
    global _next  # noqa: PLW0603
    ready = _next
    if ready is not None:
        ready.wait()
        _next = None
        ready.close()
        if ready.started:
            ready.container.stop()
    _reap()
    if _failed:
        nodeid, error = _failed.pop()
        error.add_note(f"when the container of {nodeid} was taken apart")
        raise error


def surroundings() -> tuple[Any, ...]:
    """What a start copies of this process, and of the host's top-level directory."""
    with os.scandir("/") as entries:
        top = {
            entry.name: (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
            for entry in entries
            if entry.name not in _FRESH and (found := entry.stat(follow_symlinks=False))
        }
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        umask = file.read(64).split(b"\n")[1]
    return (
        top,
        umask,
        os.getresuid(),
        os.getresgid(),
        os.getgroups(),
        os.sched_getaffinity(0),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(each) for each in _LIMITS],
        [os.environ.get(name) for name in _VARIABLES],
    )


def _before_fork() -> None:
    if _next is not None:
        _next.wait()


def _in_child() -> None:
    """They are the parent's; their objects do nothing in a fork."""
    global _next  # noqa: PLW0603
    if _next is not None:
        _next.close()
    _next = None
    _ending.clear()
    _pids.clear()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
