"""``run`` and ``shell``: a program in the foreground, its terminal, and the signals that are meant for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import Ended, options, status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from r2d2 import Container, Process

    from .parser import Verbs

#: Those that mean the program when r2d2 gets them.
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    parser = verbs.add(
        "run",
        run,
        "run a command in a new container",
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        epilog="IMAGE is host (this machine's own tree; writes are private), minimal (busybox), scratch\n"
        "(nothing), or a directory with a root file system. Without COMMAND: the image's shell;\n"
        "with -d none at all: the container waits for r2d2 exec.",
    )
    options.add_program(parser)
    options.add_container(parser)
    parser.add_argument(
        "words", nargs="...", metavar="IMAGE", help="the image, the command and its arguments"
    )
    parser = verbs.add(
        "shell",
        shell,
        "open a shell in a new container, or in a detached one",
        "[OPTIONS] [IMAGE|NAME] [COMMAND] [ARG...]",
        epilog="With the name of a detached container: in that one. IMAGE is host by default.",
    )
    options.add_program(parser)
    options.add_container(parser)
    parser.add_argument(
        "words", nargs="...", metavar="IMAGE", help="image or detached container, and a command"
    )


class Forward:
    """Hands signals on."""

    def __init__(self) -> None:
        self.target: Callable[[int], Any] | None = None

    def __call__(self, number: int, frame: object) -> None:
        """The handler."""
        del frame
        if self.target is None:
            raise Ended(number)
        self.target(number)


@contextmanager
def forwarding() -> Iterator[Forward]:
    """Signals go to ``target``; as long as there is none, they end r2d2."""
    forward = Forward()
    before = {}
    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) stays in force
            before[number] = signal.signal(number, forward)
    try:
        yield forward
    finally:
        forward.target = None
        for number, handler in before.items():
            signal.signal(number, handler)


def check_terminal(arguments: argparse.Namespace) -> None:
    """``-it`` without a terminal is a mistake in a script, as docker says."""
    from r2d2 import SpecError

    if arguments.tty and arguments.interactive and not os.isatty(0):
        raise SpecError("-t: standard input is not a terminal").with_hint("leave -t out")


def attend(process: Process, *, interactive: bool) -> int:
    """Waits for a program, at its terminal if it has one: its exit status."""
    from r2d2.terminal import interact

    sys.stdout.flush()
    if process.tty is not None:
        return status(interact(process, stdin=0 if interactive and os.isatty(0) else None))
    return status(process.wait())


def standard(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of ``popen`` for ``-i`` and ``-t``."""
    if arguments.tty:
        return {"tty": True}
    return {} if arguments.interactive else {"stdin": subprocess.DEVNULL}


def run(arguments: argparse.Namespace) -> int:
    """``r2d2 run``."""
    image, words = options.image_and_command(arguments)
    keywords = options.keywords(arguments)
    if arguments.detach:
        return _detach(arguments, image, words, keywords)
    check_terminal(arguments)
    return _run(arguments, image, words, keywords)


def _run(arguments: argparse.Namespace, image: str, words: list[str], keywords: dict[str, Any]) -> int:
    from r2d2 import Container
    from r2d2.terminal import find_shell

    with forwarding() as forward, Container(image, **keywords) as container:
        if not words:
            words = _shell_of(container, find_shell)
        forward.target = container.kill
        with container._process(words, main=True, **standard(arguments)) as process:
            return attend(process, interactive=arguments.interactive)


def _shell_of(container: Container, find: Callable[[Container], str]) -> list[str]:
    found = find(container)
    return [found, "sh"] if found.endswith("busybox") else [found]


def _detach(arguments: argparse.Namespace, image: str, words: list[str], keywords: dict[str, Any]) -> int:
    from r2d2 import Detached, SpecError

    if arguments.tty or arguments.interactive:
        raise SpecError("-d with -i or -t: nobody would be there").with_hint(
            "start it with -d alone, then: r2d2 exec -it NAME COMMAND…"
        )
    container = Detached.start(words or None, image=image, remove=arguments.rm, **keywords)
    print(container.name)
    return 0


def shell(arguments: argparse.Namespace) -> int:
    """``r2d2 shell``."""
    from r2d2 import Detached, R2d2Error

    from .containers import execute

    arguments.interactive = True
    arguments.tty = os.isatty(0)
    if arguments.image is None:
        arguments.words = arguments.words or ["host"]
        try:
            found = Detached.get(arguments.words[0])
        except (R2d2Error, OSError):
            found = None
        if found is not None and found.name == arguments.words[0]:
            return execute(arguments, found, arguments.words[1:])
    image, words = options.image_and_command(arguments)
    return _run(arguments, image, words, options.keywords(arguments))
