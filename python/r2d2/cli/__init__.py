"""The command line: ``r2d2 VERB …``, with docker's names and flags where docker has them.

| file | holds |
| --- | --- |
| ``parser`` | the tree of verbs |
| ``options`` | the flags of a container, and what they mean to ``Container`` |
| ``foreground`` | ``run``, ``shell``; signals and terminals |
| ``containers`` | ``exec``, ``ps``, ``port``, ``logs``, ``stop``, ``kill``, ``wait``, ``rm``, ``inspect`` |
| ``slirp4netns`` | ``slirp4netns`` |
| ``views`` | ``diff``, ``explain``, ``doctor`` |
| ``primitives`` | ``unshare``, ``overlay``, ``rootfs`` |
| ``network`` | ``slirp`` |
| ``kernel`` | ``kernel`` |
| ``demo`` | ``demo`` |
| ``course`` | ``course`` |
| ``completion`` | ``completion`` |

Standard output is data, standard error is talk. The exit status is the command's own; 125 if r2d2 failed, 126
if the command cannot be invoked, 127 if it is not there, 128 and a signal's number if a signal ended it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

FAILED = 125
CANNOT_INVOKE = 126
NOT_FOUND = 127
SIGNALLED = 128


class Ended(BaseException):
    """A signal ended r2d2 itself, before there was a program to hand it to."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line: its exit status. Prints errors, with a traceback if ``R2D2_DEBUG`` is set."""
    from .parser import build

    try:
        parser = build()
        arguments = parser.parse_args(_words() if argv is None else argv)
        code: int = arguments.handler(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # argparse: --help, or a mistake
        return end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:
        return SIGNALLED + 2
    except Ended as ended:
        return SIGNALLED + ended.signal
    except BrokenPipeError:
        # `r2d2 logs x | head`: nobody reads any more. Python would complain once more when it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return SIGNALLED + 13
    except Exception as error:
        if os.environ.get("R2D2_DEBUG"):
            raise
        complain(error)
        return failure(error)
    return code


def _words() -> list[str]:
    """The command line. Called by the name of a program that a verb stands in for, it is that verb's."""
    name = os.path.basename(sys.argv[0])
    return [name, *sys.argv[1:]] if name == "slirp4netns" else sys.argv[1:]


def complain(error: BaseException) -> None:
    """An error as people want to read it."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and message.startswith("[Errno") and error.filename is not None:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    print(f"r2d2: {message}", file=sys.stderr)
    if hint := getattr(error, "hint", None):
        print(f"hint: {hint}", file=sys.stderr)


def failure(error: BaseException) -> int:
    """The exit status of an error, as docker-container-exec(1) has it."""
    syscall = getattr(error, "syscall", None)
    if syscall == "execve":
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_INVOKE
    if (getattr(error, "step", None) or "").startswith("run "):
        return CANNOT_INVOKE
    return FAILED


def status(code: int) -> int:
    """The exit status of a return code of ``subprocess``' kind."""
    return code if code >= 0 else SIGNALLED - code


def command(words: Sequence[str]) -> list[str]:
    """What follows the options; a first ``--`` is no part of it."""
    return list(words[1:] if words[:1] == ["--"] else words)
