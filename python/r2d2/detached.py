"""Containers that run on when the process that started them ends, without a daemon.

Each has a directory of its own below ``R2D2_RUNTIME``, else ``$XDG_RUNTIME_DIR/r2d2``, else
``/run/user/UID/r2d2``, else ``/tmp/r2d2-UID``:

| file | holds |
| --- | --- |
| ``state.json`` | what it is, and how to tell its PID 1 from a later process with the same pid |
| ``control`` | the socket on which its PID 1 takes requests |
| ``network`` | the socket on which the engine of its network does, if it has one |
| ``log`` | all that its main program writes; nothing limits its size but the file system and ``rlimits`` |
| ``exit`` | the main program's wait status, written by PID 1 |

The directory is the caller's alone (0700), and so are the containers: whoever may connect to the socket may
do in the container whatever its root may. What is read from it is checked as if a stranger had written it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from . import _core, statedir
from .container import Container
from .errors import ContainerClosed, SpecError
from .state import State, boot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from .image import Image
    from .ports import Port
    from .process import CompletedProcess, Process
    from .spec import StrPath

__all__ = ["Detached"]

_Strings = list[str]


class Detached:
    r"""A container that outlives its starter.

    >>> container = Detached.start(["sleep", "1000"], image="host")
    >>> container.run(["hostname"], capture_output=True, text=True).stdout
    'r2d2\n'
    >>> container.stop(timeout=0)
    >>> container.remove()

    It is there until :meth:`remove`, also when it has ended. A process that starts many and never looks at
    them again keeps their PID 1s as zombies until it ends itself, as ``subprocess`` does with programs.

    Attributes:
        name: its name, unique among the user's detached containers.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._code: int | None = None
        self._exit: int | None = None
        self.name = state.name

    def __repr__(self) -> str:
        return f"<r2d2.Detached {self.name} {self.status}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.detached(self)

    def __del__(self) -> None:
        exit_file = getattr(self, "_exit", None)
        if exit_file is not None:
            self._exit = None
            os.close(exit_file)

    # Finding

    @classmethod
    def start(
        cls,
        args: Any = None,
        *,
        image: Image | StrPath = "host",
        name: str | None = None,
        remove: bool = False,
        **keywords: Any,
    ) -> Self:
        """Starts one.

        If this process is killed before it returns, nothing of the container is left.

        Args:
            args: its main program, with which it ends. None: it has none, and runs until it is stopped.
            image: as ``Container``'s.
            name: letters, digits, ``_``, ``.`` and ``-``; made up by default.
            remove: remove everything of it when it ends, its log too.
            keywords: as ``Container``.

        Raises:
            SpecError: the name is taken, or what ``Container`` raises.
            SetupNotFoundError: (a FileNotFoundError) no such program; nothing of the container is left.
            And what ``Container`` and ``Container.popen`` raise.
        """
        from .process import arguments

        argv = None if args is None else [os.fsdecode(arg) for arg in arguments(args)]
        if name is None:
            name = statedir.free_name(str(image) if isinstance(image, str) else "")
        container = Container(image, name=name, **keywords)
        if container._members:
            raise SpecError("network: a network of containers ends with this process")
        options = container.spec.slirp
        with ExitStack() as stack:
            engine = None
            if options is not None:
                from . import rejoined
                from .network import spare

                rejoined.check(container)
                container._resolve()  # what can never work is said before a process is started
                engine = stack.enter_context(spare(options))
            place = stack.enter_context(statedir.create(container.name))
            container._handle = _core.start_detached(
                container._resolve(),
                place.listen,
                place.exit,
                os.fsencode(place.path) if remove else None,
            )
            try:
                if options is not None:
                    rejoined.connect(container, options, place, engine)
                if args is not None:
                    program = container._process(
                        args, main=True, stdin=subprocess.DEVNULL, stdout=place.log, stderr=subprocess.STDOUT
                    )
                    program.returncode = 0  # nobody is going to wait for it by this object
                handle = container._handle
                state = State.of(container.spec, argv, handle.identity(), handle.parts(), remove=remove)
                place.write(state)
                made = cls(state)
                made._exit = os.dup(place.exit)
                if container._network is not None:
                    container._network._network.leave()
                try:
                    container._handle.keep()
                    container._closed = True
                except ContainerClosed:
                    # Its program has ended already.
                    container.stop()
            except BaseException:
                container.stop()
                raise
        return made

    @classmethod
    def list(cls, *, all: bool = False) -> list[Self]:  # noqa: A002 - `ps --all`
        """The user's detached containers, oldest first.

        Args:
            all: also those that have ended and were not removed.
        """
        found = [cls(state) for state in statedir.states()]
        return [each for each in found if all or each.running]

    @classmethod
    def get(cls, name: str) -> Self:
        """The one of this name, or with the only name that begins so.

        Raises:
            ImageNotFound: (a LookupError) there is none.
        """
        return cls(statedir.find(name))

    # State

    def _pidfd(self) -> int | None:
        """A pidfd of its PID 1 and of nobody else, which the caller must close; None if it has ended."""
        state = self._state
        if state.boot != boot():
            return None
        return _core.find(state.pid, state.start_time, state.pid_namespace)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        pidfd = self._pidfd()
        if pidfd is None:
            return False
        os.close(pidfd)
        return True

    @property
    def status(self) -> str:
        """``"running"`` or ``"exited"``."""
        return "running" if self.running else "exited"

    @property
    def pid(self) -> int | None:
        """The pid of its PID 1 on the host while it runs."""
        return self._state.pid if self.running else None

    @property
    def args(self) -> _Strings | None:
        """Its main program."""
        return self._state.args

    @property
    def returncode(self) -> int | None:
        """How its main program ended, as ``subprocess.Popen.returncode``. None while it runs.

        -9 also if the container was killed first.
        """
        if self.running:
            return None
        return self.wait()

    @property
    def ports(self) -> tuple[Port, ...]:
        """The ports that lead inside now."""
        from .rejoined import rejoin

        network = rejoin(self._state) if self.running else None
        if network is None:
            return ()
        with network:
            return network.ports

    def inspect(self) -> dict[str, Any]:
        """All that is known of it, as JSON has it."""
        running = self.running
        from dataclasses import asdict

        ports = [asdict(port) for port in self.ports]
        return {
            **self._state.public(),
            "ports": ports,
            "status": "running" if running else "exited",
            "returncode": None if running else self.returncode,
            "pid": self._state.pid if running else None,
            "directory": statedir.path(self.name),
            "log_bytes": statedir.log_size(self.name),
        }

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end: :attr:`returncode`.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        if self._code is not None:
            return self._code
        # Opened before: with ``remove`` the directory goes with the container.
        with statedir.exit_status(self.name, self._exit) as status:
            pidfd = self._pidfd()
            if pidfd is not None:
                import select

                try:
                    poller = select.poll()
                    poller.register(pidfd, select.POLLIN)
                    if not poller.poll(None if timeout is None else timeout * 1000):
                        raise TimeoutError(f"container {self.name} still runs after {timeout} s")
                finally:
                    os.close(pidfd)
            self._code = status()
            self._pidfd()  # where this process started it, it is reaped now
            return self._code

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        """What its main program wrote, in pieces; with ``follow`` until the container has ended.

        Standard output and error are in one file, in the order in which they were written.
        """
        import select

        fd = statedir.open_log(self.name)
        pidfd = self._pidfd() if follow else None
        try:
            while True:
                # Looked at before the log: what was written before the end is there when the end is seen.
                ended = pidfd is None or bool(select.select([pidfd], [], [], 0)[0])
                if data := os.read(fd, 1 << 16):
                    yield data
                elif ended or pidfd is None:
                    return
                else:
                    select.select([pidfd], [], [], 0.1)
        finally:
            os.close(fd)
            if pidfd is not None:
                os.close(pidfd)

    # Doing

    def attach(self) -> Container:
        """A ``Container`` to run programs in, copy files from, and so on.

        Its end, or ``stop()``, ends nothing but the connection; a program that it started runs on.

        Raises:
            ContainerClosed: it has ended.
        """
        from .attached import Attached

        pidfd = self._pidfd()
        if pidfd is None:
            raise ContainerClosed(f"container {self.name} has ended")
        try:
            return Attached(self._state, pidfd)
        finally:
            os.close(pidfd)

    def popen(self, args: Any, **keywords: Any) -> Process:
        """As ``Container.popen``."""
        return self.attach().popen(args, **keywords)

    def run(self, args: Any, **keywords: Any) -> CompletedProcess:
        """As ``Container.run``."""
        with self.attach() as container:
            return container.run(args, **keywords)

    def shell(self, args: Any = None, **keywords: Any) -> int:
        """As ``Container.shell``."""
        with self.attach() as container:
            return container.shell(args, **keywords)

    def kill(self, signal: int = 9) -> None:
        """Sends a signal to its main program, or to all of its programs if it has none. SIGKILL ends it.

        Raises:
            ContainerClosed: it has ended.
        """
        import signal as signals

        pidfd = self._pidfd()
        if pidfd is None:
            raise ContainerClosed(f"container {self.name} has ended")
        try:
            signals.pidfd_send_signal(pidfd, signal)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def stop(self, timeout: float = 10.0, *, signal: int = 15) -> int:
        """Asks its main program to end, by SIGTERM; after ``timeout`` seconds ends it by force.

        One without a main program is ended by force at once. Fine if it has ended. Returns
        :attr:`returncode`.
        """
        from contextlib import suppress

        from .rejoined import ending

        with ending(self._state), statedir.exit_status(self.name, self._exit) as status:
            with suppress(ContainerClosed):
                if self._state.args is not None and timeout > 0:
                    self.kill(signal)
                    with suppress(TimeoutError):
                        self.wait(timeout)
                self.kill(9)
            self.wait()
            self._code = status()
            return self._code

    def remove(self, *, force: bool = False) -> None:
        """Removes what is left of it.

        Args:
            force: end it first.

        Raises:
            SpecError: it runs.
        """
        if self.running:
            if not force:
                raise SpecError(f"container {self.name} runs").with_hint("stop it first, or use force")
            self.stop(0)
        statedir.remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends and removes it."""
        self.remove(force=True)
