"""A container that remembers what ran in it, for the report of a test that fails."""

from __future__ import annotations

import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from r2d2.container import Container

from .seen import tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from r2d2.process import CompletedProcess, Process

#: Programs and lines of output that a report shows.
PROGRAMS, LINES = 8, 20


class Program:
    """One program: its arguments, its process, and the output that went through ``run``."""

    def __init__(self, args: Any, process: Process) -> None:
        self.args = args
        self.process = process
        self.output: list[tuple[str, str]] = []

    def keep(self, stdout: Any, stderr: Any) -> None:
        """The ends of what it wrote."""
        for name, data in (("stdout", stdout), ("stderr", stderr)):
            if data:
                self.output.append((name, tail(data, LINES)))

    def __str__(self) -> str:
        command = " ".join(map(str, self.args)) if isinstance(self.args, list | tuple) else str(self.args)
        code = self.process.poll()
        state = "still running" if code is None else f"exit status {code}"
        if code is not None and code < 0:
            state = f"killed by signal {-code}"
        lines = [f"$ {command}  [{state}]"]
        for name, text in self.output:
            lines += [f"  {name}: {line}" for line in text.split("\n")]
        return "\n".join(lines)


class Recorded(Container):
    """A ``Container`` with a memory of its programs."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.programs: list[Program] = []
        self._mine = threading.local()

    def _process(self, args: Any, **keywords: Any) -> Process:
        process = super()._process(args, **keywords)
        entry = Program(args, process)
        self._mine.last = entry
        self.programs.append(entry)
        del self.programs[: -4 * PROGRAMS]
        return process

    def _run(
        self, args: Any, input: Any, timeout: float | None, check: bool, **keywords: Any
    ) -> CompletedProcess:
        self._mine.last = None
        try:
            done = super()._run(args, input, timeout, check, **keywords)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            if self._mine.last is not None:
                self._mine.last.keep(error.stdout, error.stderr)
            raise
        if self._mine.last is not None:
            self._mine.last.keep(done.stdout, done.stderr)
        return done

    def leave(self) -> Callable[[], None]:
        """Kills it; what is returned waits until nothing is left, as ``stop`` does, in any thread."""
        handle = self._running()
        handle.kill(signal.SIGKILL)
        self._closed = True
        self.stop()  # the rest of it
        return handle.stop

    def sections(self, *, verbose: bool = False) -> list[tuple[str, str]]:
        """For a test's report: state and programs; the steps of the start if it failed, or ``verbose``."""
        state = "running" if self.running else "ended" if self._handle is not None else "not started"
        lines = [f"image {self.image.name}, {state}"]
        if len(self.programs) > PROGRAMS:
            lines.append(f"... {len(self.programs) - PROGRAMS} programs before")
        lines += map(str, self.programs[-PROGRAMS:])
        found = [(f"r2d2 container {self.name}", "\n".join(lines))]
        if verbose or self._handle is None:
            try:
                found.append((f"r2d2 explain {self.name}", str(self.explain())))
            except Exception as error:  # noqa: BLE001 - a report must not fail
                found.append((f"r2d2 explain {self.name}", f"{type(error).__name__}: {error}"))
        return found
