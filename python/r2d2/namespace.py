"""Namespaces, one by one: what ``ls -l /proc/PID/ns``, ``unshare`` and ``nsenter`` do.

Nothing here changes the calling process: every program starts in a fresh child.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from . import _core
from .container import _capture, _finish
from .errors import SetupError, SpecError, setup_error
from .process import CompletedProcess, Process, arguments, candidates
from .resolve import id_map
from .surroundings import privileged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .spec import StrPath

__all__ = ["KINDS", "Namespaces", "enter", "inspect", "popen", "unshare"]

_CAP_SYS_ADMIN = 21  # capabilities(7); root of most containers lacks it

#: Every kind, by unshare(1)'s names, and what it isolates.
KINDS = {
    "user": "user and group ids, capabilities",
    "mount": "the mount table",
    "pid": "process ids",
    "uts": "host name and domain name",
    "ipc": "System V IPC, POSIX message queues",
    "net": "network devices, addresses, ports",
    "cgroup": "the root of the control groups",
    "time": "the monotonic and the boot-time clock",
}


class Namespaces(dict[str, int]):
    """The namespaces of a process: link name to inode number. Jupyter shows which are the caller's own."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.namespaces(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        del cycle
        printer.text(self._repr_mimebundle_()["text/plain"])


def inspect(pid: int | None = None) -> Namespaces:
    """The namespaces of a process, as ``ls -l /proc/PID/ns`` lists them: link name to inode number.

    Two processes in the same namespace show the same inode (namespaces(7)).

    Args:
        pid: a process; None is the calling thread.

    Raises:
        SetupNotFoundError: there is no such process.
        SetupPermissionError: it belongs to somebody else.
    """
    return Namespaces((name, inode) for name, _, inode in _core.inspect(pid))


class _Direct:
    """A program without a PID 1 of ours, with the methods of ``_core.Process`` that ``Process`` uses."""

    inner_pid: int | None = None

    def __init__(self, spawned: _core.Spawned) -> None:
        self._spawned = spawned
        self.signal = spawned.signal
        self.fileno = spawned.fileno

    def wait_started(self) -> None:
        """Started already: execve(2) succeeded, or ``_core.spawn`` would have raised."""

    def wait(self, timeout: float | None = None) -> tuple[str, int, str, int, int, int] | None:
        code = self._spawned.wait(timeout)
        return None if code is None else ("ended", code, "", 0, 0, 0)

    def pidfd(self) -> int:
        return os.dup(self._spawned.fileno())


def plain_spec(
    kinds: Iterable[str],
    *,
    root: str = "shared",
    layers: Iterable[bytes] = (),
    proc: str = "none",
    idmap: str | None = None,
    mounts: Iterable[Any] = (),
    clock_offsets: tuple[int, int] | None = None,
    name: str = "unshare",
) -> _core.Spec:
    """A plan of namespaces, a root directory and mounts, and nothing else: every capability stays."""
    kinds = list(kinds)
    return _core.Spec(
        name=name,
        namespaces=kinds,
        idmap=(idmap or id_map("auto")) if "user" in kinds else None,
        root=root,
        layers=list(layers),
        upper=None,
        work=None,
        tmpfs_size=None,
        readonly=False,
        proc=proc,
        system=False,
        masked=False,
        hostname=None,
        etc=[],
        mounts=list(mounts),
        rlimits=[],
        cap_add=["ALL"],
        cap_drop=[],
        no_new_privs=False,
        clock_offsets=clock_offsets,
        limits=None,
    )


def _signal(process: _core.Process, signal: int, tree: bool) -> None:
    """Signal the program; with it, if it is PID 1, ends all that it started. Nobody else is known to us."""
    del tree
    process.signal(signal)


def start(
    spec: _core.Spec, args: Any, *, inner: Iterable[str] = (), cwd: StrPath | None = None, **keywords: Any
) -> Process:
    """Starts a program by a plan that ends in it (no PID 1 of ours)."""
    left, started = list(inner), []

    def submit(command: _core.Command, stdio: tuple[int, int, int]) -> _core.Process:
        started.append(_core.spawn(spec, command, stdio, inner=left))
        return cast("_core.Process", _Direct(started[0]))

    process = Process(
        submit,
        _signal,
        args,
        environ=os.environ,
        workdir=None,
        identity=None,
        explain=lambda program: None,
        confirm=False,
        cwd=cwd,
        **keywords,
    )
    process.pid = started[0].pid
    return process


@contextmanager
def explained(root: StrPath | None, args: Any) -> Iterator[None]:
    """Say why a program that is there does not start: a missing loader is ENOENT, too (execve(2))."""
    try:
        yield
    except SetupError as error:
        if root is not None and error.syscall == "execve":
            from .chroot import Rootfs

            for path in candidates(arguments(args)[0], os.environ.get("PATH")):
                if path.startswith(b"/") and (
                    reason := Rootfs(root, create=False).explain(os.fsdecode(path))
                ):
                    error.hint = None
                    error.with_hint(reason)
                    break
        raise


def popen(
    args: Any,
    *,
    user: bool | None = None,
    mount: bool = False,
    pid: bool = False,
    uts: bool = False,
    ipc: bool = False,
    net: bool = False,
    cgroup: bool = False,
    time: bool = False,
    clock_offsets: tuple[int, int] | None = None,
    fork: bool = False,
    mount_proc: bool = False,
    root: StrPath | None = None,
    **keywords: Any,
) -> Process:
    """Starts a program as :func:`unshare` does, and returns its ``Popen`` work-alike."""
    if mount_proc:
        mount = True
    if clock_offsets is not None:
        time = True
    if user is None:
        user = os.geteuid() != 0 or not privileged(_CAP_SYS_ADMIN)
    given = {
        "user": user, "mount": mount, "pid": pid, "uts": uts, "ipc": ipc, "net": net, "cgroup": cgroup,
        "time": time,
    }  # fmt: skip
    kinds = [kind for kind in KINDS if given[kind]]
    inner: list[str] = []
    if pid and not fork:
        kinds.remove("pid")
        inner = ["pid"]
        if mount_proc:
            raise SpecError(
                "mount_proc without fork: the program is not in the new PID namespace, so its /proc is not"
            )
    layers = [] if root is None else [os.fsencode(os.path.abspath(root))]
    proc = "mount" if mount_proc else "none"
    kind = "shared" if root is None else "chroot"
    spec = plain_spec(kinds, root=kind, layers=layers, proc=proc, clock_offsets=clock_offsets)
    with explained(root, args):
        return start(spec, args, inner=inner, **keywords)


def unshare(
    args: Any,
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **keywords: Any,
) -> CompletedProcess:
    r"""Runs a program in new namespaces, as unshare(1) does: the program itself, no PID 1 of ours.

    >>> unshare(["sh", "-c", "hostname r2d2; hostname"], uts=True, capture_output=True, text=True).stdout
    'r2d2\n'

    Args:
        args: the program, looked up in the caller's PATH.
        user: a user namespace in which the caller is root; None: for everybody but root with CAP_SYS_ADMIN.
        mount, pid, uts, ipc, net, cgroup, time: new namespaces of these kinds.
        fork: with ``pid``: the program becomes PID 1. Without it the program stays where it was, its first
            child is PID 1, and once that has ended every further fork fails with ENOMEM (pid_namespaces(7)).
        clock_offsets: (monotonic, boottime), seconds to add to these clocks (implies ``time``).
        mount_proc: mount a procfs over /proc (implies ``mount``).
        root: chroot into this directory first.
        input, capture_output, timeout, check, and others: as ``subprocess.run``.

    Raises:
        SetupError: a namespace could not be made, or the program not be started.
        CommandTimeout, CommandError: as ``subprocess.run``.
    """
    _capture(keywords, input, capture_output)
    return _finish(popen(args, **keywords), args, input, timeout, check)


def enter(
    pid: int,
    args: Any,
    *,
    kinds: Iterable[str] | None = None,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    cwd: StrPath = "/",
    env: Mapping[str, str] | None = None,
    **keywords: Any,
) -> CompletedProcess:
    """Runs a program in the namespaces of another process, as nsenter(1) does.

    Args:
        pid: the process.
        args: the program, looked up in PATH as the process sees it.
        kinds: which namespaces; None: all in which it differs from the caller.
        cwd: working directory there.

    Raises:
        SetupNotFoundError: no such process, or no such program.
        SetupPermissionError: its namespaces may not be joined.
    """
    if isinstance(kinds, str):
        raise SpecError(f"kinds={kinds!r}: a list of kinds, not one string")
    _capture(keywords, input, capture_output)
    # First of all: the number may become another process's, the descriptor may not.
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        number = errno.ESRCH if error.errno == errno.EINVAL else error.errno or 0
        missing = setup_error(errno.ENOENT if number == errno.ESRCH else number, os.strerror(number))
        missing.message = f"enter namespaces: process {pid}: {os.strerror(number)}"
        raise missing from None
    try:
        if kinds is None:
            own, theirs = inspect(), inspect(pid)
            wanted = [kind for kind in KINDS if own.get(_link(kind)) != theirs.get(_link(kind))]
        else:
            wanted = list(kinds)
        if not wanted:
            raise SpecError(f"process {pid} is in no other namespace than the caller")
        process = Process(
            lambda command, stdio: _core.enter(pidfd, wanted, command, stdio),
            _signal,
            args,
            environ=os.environ if env is None else env,
            workdir=os.fspath(cwd),
            identity=None,
            explain=lambda program: None,
            **keywords,
        )
    finally:
        os.close(pidfd)
    return _finish(process, args, input, timeout, check)


def _link(kind: str) -> str:
    return "mnt" if kind == "mount" else kind
