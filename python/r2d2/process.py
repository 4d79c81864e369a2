"""Programs in a container, with the keywords and manners of ``subprocess``."""

from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING, Any

from . import _core
from .errors import R2d2Error, SpecError, command_error, setup_error

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

Args = "Sequence[str | bytes | os.PathLike[str]]"

#: The parameters of ``Popen._execute_child`` in this Python: their order has changed before.
_CHILD_PARAMETERS = subprocess.Popen._execute_child.__code__.co_varnames[  # type: ignore[attr-defined]
    1 : subprocess.Popen._execute_child.__code__.co_argcount  # type: ignore[attr-defined]
]

_NOT_HERE = {
    "shell": "pass ['sh', '-c', COMMAND]",
    "preexec_fn": "nothing of this interpreter runs in the container; run a script there",
    "executable": "pass the program's path as args[0]",
}


class CompletedProcess(subprocess.CompletedProcess[Any]):
    """What ``run`` returns: ``subprocess.CompletedProcess`` and what the program used.

    Attributes:
        max_rss: peak resident memory of the program, in bytes (getrusage(2)).
        user_time, system_time: CPU time, in seconds.
    """

    max_rss: int = 0
    user_time: float = 0.0
    system_time: float = 0.0

    def check_returncode(self) -> None:
        """Raises ``CommandError`` if the exit status is not 0."""
        if self.returncode:
            raise command_error(self.returncode, self.args, self.stdout, self.stderr)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.completed(self)


def arguments(args: Any) -> list[bytes]:
    """The argument list as bytes; refuses a bare string, with the reason."""
    if isinstance(args, str | bytes | os.PathLike):
        raise SpecError(
            f"args={args!r}: a list such as ['ls', '-l'] (for a shell command: ['sh', '-c', COMMAND])"
        )
    argv = [os.fsencode(arg) for arg in args]
    if not argv or not argv[0]:
        raise SpecError("args: an empty list has no program to run")
    return argv


def check_program(args: Any, keywords: Mapping[str, Any]) -> None:
    """What can be said of a program's keywords before anything is started.

    Raises:
        SpecError: something that has no meaning in a container.
    """
    for name in keywords.keys() & _NOT_HERE.keys():
        if keywords[name]:
            raise SpecError(f"{name} has no meaning in a container: {_NOT_HERE[name]}")
    if not args or isinstance(args, str | bytes | os.PathLike):
        arguments(args)


@functools.lru_cache(maxsize=64)
def candidates(program: bytes, path: str | None) -> tuple[bytes, ...]:
    """The paths that execvp(3) would try."""
    if b"/" in program:
        return (program,)
    directories = os.fsencode(os.defpath if path is None else path).split(b":")
    return tuple(os.path.join(directory or b".", program) for directory in directories)


class Process(subprocess.Popen[Any]):
    """A ``subprocess.Popen`` whose program runs in a container.

    Same attributes and methods: ``stdin``, ``stdout``, ``stderr``, ``args``, ``returncode`` (negative for a
    signal), ``poll``, ``wait``, ``communicate``, ``send_signal``, ``terminate``, ``kill``, the context
    manager. ``pid`` is the pid on the host, ``inner_pid`` the one inside. ``fileno()`` becomes readable when
    the program has ended, for ``select``, ``asyncio`` and the like. With ``tty=True``, ``tty`` is the other
    end of the program's terminal.
    """

    tty: io.FileIO | None = None

    def __init__(
        self,
        submit: Callable[[_core.Command, tuple[int, int, int]], _core.Process],
        signal: Callable[[_core.Process, int, bool], None],
        args: Any,
        *,
        environ: Mapping[str, str],
        workdir: str | None,
        identity: tuple[int, int, list[int]] | None,
        explain: Callable[[bytes], str | None],
        tty: bool = False,
        main: bool = False,
        tree: bool = False,
        confirm: bool = True,
        pass_fds: Iterable[int] = (),
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        umask: int = -1,
        cancel: Callable[[_core.Command], None] | None = None,
        created: list[Process] | None = None,
        **keywords: Any,
    ) -> None:
        check_program(args, keywords)
        for name in _NOT_HERE:
            keywords.pop(name, None)
        self._submit = submit
        self._signal = signal
        self._explain = explain
        self._program: _core.Process | None = None
        self._usage = (0, 0, 0)
        self._pid: int | None = None
        argv = arguments(args)
        variables = environ if env is None else env
        self._directory = workdir if cwd is None else os.fsdecode(cwd)
        self._command = _core.Command(
            candidates(argv[0], variables.get("PATH")),
            argv,
            [os.fsencode(f"{key}={value}") for key, value in variables.items()],
            cwd=None if self._directory is None else os.fsencode(self._directory),
            user=identity,
            tty=tty,
            main=main,
            tree=tree,
            confirm=confirm,
            umask=0o022 if umask < 0 else umask,
            pass_fds=[(fd, fd) for fd in pass_fds],
        )
        for stream in ("stdin", "stdout", "stderr"):
            if keywords.get(stream) == DEVNULL:
                keywords[stream] = _null()  # Popen opens one each time, and can lose it to a Ctrl-C
        self._confirm = confirm
        self._cancel = cancel
        self.returncode = None
        if created is not None:
            created.append(self)
        try:
            super().__init__(args, **keywords)
        except BaseException:
            self.abandon()
            raise
        if cancel is not None or main:
            # Ctrl-C does not reach a session of its own, so there is nothing to give the program time for.
            self._sigint_wait_secs = 0

    def abandon(self) -> None:
        """Kills what Ctrl-C interrupted the start of, or the wait for; does nothing if it has ended."""
        if self.returncode is None and self._cancel is not None:
            self._cancel(self._command)
            self._child_created = False  # it is being killed, and PID 1 reaps it: nothing to warn of

    def never_ran(self) -> None:
        """Its container did not come to be: nobody will report its end."""
        self._child_created = False
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def _execute_child(self, *values: Any) -> None:
        """Called by ``Popen.__init__`` with the prepared descriptors."""
        given = dict(zip(_CHILD_PARAMETERS, values, strict=True))
        ends = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        try:
            stdio = (
                _standard(ends[0], 0),
                _standard(ends[3], 1),
                _standard(ends[5], 2),
            )
            self._program = self._submit(self._command, stdio)
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)  # type: ignore[attr-defined]
        if self._confirm:
            self._take(self._program.wait_started())

    @property
    def pid(self) -> int:
        """The pid on the host; 0 once it can no longer be known."""
        if self._pid is None and self._program is not None:
            self._pid = _pid_of(self._program.pidfd())
        return self._pid or 0

    @pid.setter
    def pid(self, value: int | None) -> None:
        self._pid = value

    @property
    def inner_pid(self) -> int | None:
        """The pid inside the container."""
        return None if self._program is None else self._program.inner_pid

    def fileno(self) -> int:
        """A descriptor that is readable once the program has ended; it belongs to this object."""
        if self._program is None:
            raise ValueError("the program was not started")
        return self._program.fileno()

    def resize(self, rows: int, columns: int) -> None:
        """Sets the size of its terminal; the programs in its foreground get SIGWINCH.

        Raises:
            ValueError: it was not started with ``tty=True``.
        """
        if self.tty is None:
            raise ValueError("the program has no terminal: start it with tty=True")
        import termios

        termios.tcsetwinsize(self.tty.fileno(), (rows, columns))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for its end and closes what was opened for it."""
        super().__exit__(kind, error, traceback)
        if self.tty is not None:
            self.tty.close()

    def _take(self, ending: tuple[str, int, str, int, int, int] | None) -> None:
        """Notes how it ended, or raises how it failed to start."""
        if ending is None:
            return
        kind, value, stage, *usage = ending
        if kind == "failed":
            self.returncode = 127 if value == 2 else 126
            raise self._failure(value, stage)
        self.returncode = value
        self._usage = (usage[0], usage[1], usage[2])

    def _failure(self, errno: int, stage: str) -> R2d2Error:
        """The error that ``subprocess`` would raise, and why."""
        from .hints import hint_for_program

        program = os.fsdecode(arguments(self.args)[0])
        filename = {"execve": program, "chdir": self._directory}.get(stage)
        error = setup_error(errno, os.strerror(errno), filename)
        error.step = f"run {program}"
        error.syscall = stage
        if stage != "execve":
            what = stage if filename is None else f"{stage}({filename})"
            error.message = f"run {program}: {what}: {os.strerror(errno)}"
        reason = self._explain(os.fsencode(program)) if stage == "execve" else None
        return error.with_hint(reason or hint_for_program(stage, errno, program))

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._program is not None:
            self._take(self._program.wait(0))
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None and self._program is not None:
            ending = self._program.wait(timeout)
            if ending is None and timeout is not None:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._take(ending)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the program; does nothing if it has ended."""
        if self.poll() is None and self._program is not None and not self._program.signal(sig):
            self._signal(self._program, sig, False)

    def kill_tree(self) -> None:
        """Kills the program and, if it was started for that (``run(timeout=…)``), all that it had started."""
        if self.poll() is None and self._program is not None:
            self._signal(self._program, 9, True)


def _standard(end: int, number: int) -> int:
    """A prepared descriptor, or our own; ``/dev/null`` where ours is closed."""
    if end != -1:
        return end
    try:
        # One that is closed may have been taken by a pipe of this very call, which closes at exec.
        return number if os.get_inheritable(number) else _null()
    except OSError:
        return _null()


@functools.cache
def _null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _pid_of(pidfd: int | None) -> int | None:
    """What the kernel says in fdinfo (pidfd_open(2)): -1 once the process was reaped."""
    if pidfd is None:
        return None
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            for line in file:
                if line.startswith("Pid:"):
                    return max(0, int(line[4:])) or None
    finally:
        os.close(pidfd)
    return None
