"""What can go wrong, as exceptions that inherit from their relatives in the standard library.

Every one carries ``step`` (which step of which plan, or None), ``hint`` (what to do about it, or None) and,
where the kernel refused something, ``errno`` and ``syscall``. All pickle.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explain import Explanation

__all__ = [
    "CallError",
    "CommandError",
    "CommandTimeout",
    "ContainerClosed",
    "ImageError",
    "ImageNotFound",
    "NetworkError",
    "R2d2Error",
    "RemoteTraceback",
    "SetupError",
    "SetupNotFoundError",
    "SetupPermissionError",
    "SpecError",
    "UnsupportedError",
]


class R2d2Error(Exception):
    """Everything that r2d2 raises by itself.

    Attributes:
        step: the step that failed, as ``explain()`` prints it, or None.
        hint: what to do about it, or None; tracebacks show it as a note.
        syscall: the system call that was refused, by its man page's name, or None.
    """

    step: str | None = None
    hint: str | None = None
    syscall: str | None = None

    def _render_traceback_(self) -> list[str]:
        """For IPython: the caller's own lines, the error, the hint; all of it with ``R2D2_DEBUG``."""
        from .jupyter.reprs import traceback

        return traceback(self)

    def with_hint(self, hint: str | None) -> R2d2Error:
        """Attaches advice; returns the exception itself."""
        if hint and self.hint is None:
            self.hint = hint
            self.add_note(f"hint: {hint}")
        return self


class SpecError(R2d2Error, ValueError):
    """Arguments that can never work; found before any process existed."""


class UnsupportedError(R2d2Error, OSError):
    """This host cannot do what was asked; the hint says what would change that."""

    __str__ = Exception.__str__


class SetupError(R2d2Error, OSError):
    """A step of a plan, or a primitive, was refused by the kernel. Nothing of it is left.

    Attributes:
        steps: of a container that could not be started: all steps of its plan, or None.
    """

    message: str = ""
    steps: Explanation | None = None

    def __str__(self) -> str:
        return self.message or super().__str__()


class SetupPermissionError(SetupError, PermissionError):
    """EPERM or EACCES."""


class SetupNotFoundError(SetupError, FileNotFoundError):
    """ENOENT or ENOTDIR."""


class ImageError(R2d2Error):
    """An image cannot be used: malformed, or a program of it cannot run."""


class ImageNotFound(ImageError, LookupError):
    """There is no such image, or it lacks the program that was asked for."""


class NetworkError(R2d2Error, OSError):
    """The network of a container could not be set up, or was lost."""

    message: str = ""

    def __str__(self) -> str:
        return self.message or super().__str__()


class CommandError(R2d2Error, subprocess.CalledProcessError):
    """``check=True`` and the program did not exit with 0."""

    __str__ = subprocess.CalledProcessError.__str__


class CommandTimeout(R2d2Error, subprocess.TimeoutExpired):
    """The program, and everything that it had started, was killed because its time was over."""

    __str__ = subprocess.TimeoutExpired.__str__


class CallError(R2d2Error, RuntimeError):
    """``Container.call`` got no result.

    The function raised an exception of a class that is not read from a container, ended its interpreter, or
    returned what cannot be sent.

    Attributes:
        remote_class: the exception's class inside, such as ``"mypackage.MyError"``, or None.
        remote_text: its message inside.
        remote_traceback: its traceback inside, as text.
    """

    remote_class: str | None = None
    remote_text: str = ""
    remote_traceback: str = ""

    def __init__(self, message: str, told: dict[str, str] | None = None) -> None:
        super().__init__(message)
        if told is not None:
            self.remote_class = told["class"]
            self.remote_text = told["text"]
            self.remote_traceback = told["traceback"]


class RemoteTraceback(Exception):
    """The cause of an exception that a function raised in a container: its traceback there, as text."""

    def __str__(self) -> str:
        return "in the container\n\n" + "".join(map(str, self.args))


class ContainerClosed(R2d2Error, RuntimeError):
    """The container has ended, was never started, or belongs to another process."""


def setup_error(errno: int, strerror: str, filename: str | None = None) -> SetupError:
    """The ``SetupError`` that also is the ``OSError`` subclass of this errno."""
    import errno as numbers

    if errno in (numbers.EPERM, numbers.EACCES):
        kind: type[SetupError] = SetupPermissionError
    elif errno in (numbers.ENOENT, numbers.ENOTDIR):
        kind = SetupNotFoundError
    else:
        kind = SetupError
    return kind(errno, strerror) if filename is None else kind(errno, strerror, filename)


def unsupported_error(errno: int, message: str) -> UnsupportedError:
    """The ``UnsupportedError`` that says this and has this errno."""
    error = UnsupportedError(errno, message)
    error.args = (message,)
    return error


def network_error(errno: int, step: str, said: str) -> NetworkError:
    """The ``NetworkError`` of this step and errno, with these words after the step's."""
    error = NetworkError(errno, os.strerror(errno))
    error.step = step
    error.message = f"{step}: {said}"
    return error


def from_core(
    kind: str,
    message: str,
    errno: int | None,
    step: str | None,
    syscall: str | None,
    path: bytes | None,
    detail: str | None,
) -> R2d2Error:
    """Turns the facts of a core error into the exception; called by the extension alone."""
    from .hints import hint_for

    error: R2d2Error
    if kind == "spec":
        error = SpecError(message)
    elif kind == "closed":
        error = ContainerClosed(message)
    elif kind == "unsupported":
        error = unsupported_error(errno or 0, message)
    elif kind == "image":
        error = (ImageNotFound if errno == 2 else ImageError)(message)
    else:
        number = errno or 0
        filename = None if path is None else os.fsdecode(path)
        error = setup_error(number, os.strerror(number), filename)
        error.message = message
        error.step = step
        error.syscall = syscall
    name = None if path is None else os.fsdecode(path)
    return error.with_hint(hint_for(kind, step, syscall, errno, detail, name, message))


def command_error(
    code: int, args: Any, stdout: str | bytes | None, stderr: str | bytes | None
) -> CommandError:
    """As ``subprocess.CompletedProcess.check_returncode`` makes it."""
    return CommandError(code, args, stdout, stderr)
