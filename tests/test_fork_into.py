"""``_core.fork_into``: a fork of this process, whatever threads it has, in namespaces it cannot enter."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from r2d2 import _core, namespace
from r2d2.resolve import core_mount
from r2d2.spec import Mount
from r2d2.testing.leaks import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ["user", "pid"]
PR_GET_CHILD_SUBREAPER = 37


@pytest.fixture
def world() -> Iterator[_core.Handle]:
    """PID 1 of new namespaces."""
    handle = _core.start(namespace.plain_spec([*KINDS, "mount"], proc="mount", idmap="caller"))
    yield handle
    handle.kill(signal.SIGKILL)
    handle.wait()


@pytest.fixture
def thread() -> Iterator[threading.Thread]:
    """A second thread, because of which this process cannot join a user namespace."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield thread
    done.set()
    thread.join()


def forked(pidfd: int, fork: Callable[[], int] = os.fork) -> int:
    """``os.fork()`` into a world."""
    result: list[int] = []
    _core.fork_into(pidfd, KINDS, fork, result)
    return result[0]


def told(pidfd: int, what: Callable[[], object], fork: Callable[[], int] = os.fork) -> str:
    """What a fork says of itself."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as file, os.fdopen(writing, "w") as answer:
        if (pid := forked(pidfd, fork)) == 0:
            try:
                print(repr(what()), end="", file=answer, flush=True)
            finally:
                os._exit(7)
        answer.close()
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    return text


def subreaper() -> int:
    value = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0) == 0
    return value.value


def test_it_is_a_child_of_this_process_and_a_member(world: _core.Handle, thread: threading.Thread) -> None:
    link = os.readlink("/proc/self/ns/pid")
    memory = ["as it was"]
    seen = told(
        world.fileno(),
        lambda: (os.getpid(), os.getppid(), os.getuid(), threading.active_count(), memory),
    )
    assert seen == repr((2, 0, os.getuid(), 1, memory))
    assert told(world.fileno(), lambda: os.stat("/proc/thread-self/ns/user").st_ino) != repr(
        os.stat("/proc/self/ns/user").st_ino
    )
    assert os.readlink("/proc/self/ns/pid") == link
    assert os.readlink("/proc/self/ns/pid_for_children") == link
    assert thread.is_alive()
    # The control: it cannot go there itself.
    with pytest.raises(OSError, match="EINVAL"):
        _core.setns(world.fileno(), ["user"])


def test_signals_are_this_process_s(world: _core.Handle) -> None:
    """One that comes meanwhile is neither lost nor the fork's; its mask is what it was."""
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: caught.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    here = os.getpid()

    def fork() -> int:
        os.kill(here, signal.SIGUSR1)
        return os.fork()

    try:
        seen = told(world.fileno(), lambda: (caught, signal.pthread_sigmask(signal.SIG_BLOCK, [])), fork)
        assert seen == repr(([], {*mask, signal.SIGUSR2}))
        assert caught == [signal.SIGUSR1]
        assert signal.pthread_sigmask(signal.SIG_SETMASK, mask) == {*mask, signal.SIGUSR2}
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_the_fork_knows_its_cpu(world: _core.Handle) -> None:
    """sched_getcpu(3) reads what rseq(2) keeps up to date: in a fork, too."""

    def cpus() -> list[int]:
        found = []
        for cpu in sorted(os.sched_getaffinity(0)):
            os.sched_setaffinity(0, [cpu])
            found.append(ctypes.CDLL(None).sched_getcpu())
        return found

    assert told(world.fileno(), cpus) == repr(sorted(os.sched_getaffinity(0)))


def test_what_goes_wrong_leaves_nothing(world: _core.Handle) -> None:
    ours = os.pidfd_open(os.getpid())
    reaper = subreaper()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        with pytest.raises(OSError, match=r"fork into namespaces \(user, pid\): setns: EINVAL") as refused:
            told(ours, os.getpid)  # one's own user namespace cannot be joined
        assert refused.value.errno == errno.EINVAL

        def fork() -> int:
            raise BlockingIOError(errno.EAGAIN, "no more")

        with pytest.raises(BlockingIOError, match="no more"):
            told(world.fileno(), os.getpid, fork)
    finally:
        os.close(ours)
    assert subreaper() == reaper
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert children(os.getpid()) == {world.pid}


def test_a_start_that_fails_takes_its_member_along() -> None:
    pids: list[int] = []

    def member(pidfd: int) -> int:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        if (pid := forked(pidfd)) == 0:
            signal.pause()
        pids.append(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        return pid

    many = [core_mount(Mount(None, "/dev/shm", type="tmpfs"))] * 300  # so that it is stopped before the end
    missing = core_mount(Mount(None, "/not/there", type="tmpfs"))
    spec = namespace.plain_spec([*KINDS, "mount"], proc="mount", idmap="caller", mounts=[*many, missing])
    with pytest.raises(OSError, match="mount tmpfs on /not/there"):
        _core.start(spec, member=member)
    assert len(pids) == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)


def test_a_member_does_not_keep_its_world() -> None:
    """PID 1 ends when all whom it takes along have been waited for: one whose number was lost, too."""
    pids: list[int] = []

    def member(pidfd: int) -> int:
        if (pid := forked(pidfd)) == 0:
            signal.pause()
        pids.append(pid)
        return pid

    handle = _core.start(namespace.plain_spec([*KINDS, "mount"], proc="mount", idmap="caller"), member=member)
    del handle
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)
    assert children(os.getpid()) == set()


def test_one_at_a_time(world: _core.Handle) -> None:
    """It is said, not waited for: who is at it may need the interpreter."""
    refused: list[OSError] = []

    def fork() -> int:
        try:
            forked(world.fileno())
        except OSError as error:
            refused.append(error)
        return os.fork()

    assert told(world.fileno(), os.getpid, fork) == "2"
    assert [error.errno for error in refused] == [errno.EBUSY]
    assert told(world.fileno(), os.getpid) == "3"


def test_a_world_that_is_dropped_waits_for_whom_it_admitted() -> None:
    handle = _core.start(namespace.plain_spec([*KINDS, "mount"], proc="mount", idmap="caller"))
    if (pid := forked(handle.fileno())) == 0:
        signal.pause()
    handle.admit(pid)
    del handle
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
