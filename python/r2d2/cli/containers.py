"""Verbs for detached containers: ``exec ps port logs stop kill wait rm inspect``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from . import command, complain, options, status
from .foreground import attend, check_terminal, forwarding, standard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from r2d2 import Detached

    from .parser import Parser, Verbs


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    parser = verbs.add(
        "exec", execute_verb, "run a command in a detached container", "[OPTIONS] NAME COMMAND [ARG...]"
    )
    options.add_program(parser)
    parser.add_argument("container", metavar="NAME", help="the container")
    parser.add_argument("words", nargs="...", metavar="COMMAND", help="the command and its arguments")

    parser = verbs.add("ps", ps, "list detached containers", "[-a] [-q] [--json]")
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.add_argument("--json", action="store_true", help="as a JSON array")

    parser = verbs.add("port", port, "list the ports that lead into a detached container", "NAME")
    parser.add_argument("container", metavar="NAME", help="container")

    parser = verbs.add(
        "logs", logs, "show what a detached container's main program wrote", "[-f] [-n N] NAME"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="until it has ended")
    parser.add_argument("-n", "--tail", metavar="N", type=int, help="the last N lines only")
    parser.add_argument("container", metavar="NAME", help="the container")

    parser = _several(verbs, "stop", stop, "end detached containers: SIGTERM, then SIGKILL", "[-t SECONDS]")
    parser.add_argument("-t", "--time", metavar="SECONDS", type=float, default=10.0, help="in between (10)")
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="TERM", help="instead of SIGTERM")

    parser = _several(
        verbs, "kill", kill, "send a signal to the main programs of detached containers", "[-s SIGNAL]"
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="name or number (KILL)")

    _several(verbs, "wait", wait, "wait for the end of detached containers, print their exit status", "")

    parser = _several(verbs, "rm", remove, "remove what is left of detached containers", "[-f]")
    parser.add_argument("-f", "--force", action="store_true", help="end them first; fine if there are none")

    _several(verbs, "inspect", inspect, "show all that is known of detached containers, as JSON", "")


def _several(
    verbs: Verbs, name: str, handler: Callable[[argparse.Namespace], int], summary: str, usage: str
) -> Parser:
    parser = verbs.add(name, handler, summary, f"{usage} NAME...".strip())
    parser.add_argument("containers", metavar="NAME", nargs="+", help="containers")
    return parser


def _each(arguments: argparse.Namespace, work: Callable[[Detached], object]) -> int:
    """Does it for every one; a failure is told and the rest goes on."""
    from r2d2 import Detached, R2d2Error

    code = 0
    for name in arguments.containers:
        try:
            work(Detached.get(name))
        except (R2d2Error, OSError) as error:
            complain(error)
            code = 125
    return code


def execute_verb(arguments: argparse.Namespace) -> int:
    """``r2d2 exec``."""
    from r2d2 import Detached, SpecError

    words = command(arguments.words)
    if not words:
        raise SpecError("exec: no command").with_hint(f"r2d2 shell {arguments.container} opens a shell")
    if not arguments.detach:
        check_terminal(arguments)
    return execute(arguments, Detached.get(arguments.container), words)


def execute(arguments: argparse.Namespace, target: Detached, words: list[str]) -> int:
    """A program in a detached container."""
    import subprocess

    from r2d2.terminal import find_shell

    with forwarding() as forward, target.attach() as container:
        if not words:
            found = find_shell(container)
            words = [found, "sh"] if found.endswith("busybox") else [found]
        keywords = standard(arguments)
        if arguments.detach:
            keywords = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        environment = options.environment(arguments)
        if environment:
            terminal = {"TERM": os.environ.get("TERM", "xterm")} if arguments.tty else {}
            keywords["env"] = {**container._environ(), **terminal, **environment}
        process = container.popen(words, user=arguments.user, cwd=arguments.workdir, **keywords)
        if arguments.detach:
            process.returncode = 0  # nobody waits for it
            return 0
        forward.target = process.send_signal
        with process:
            return attend(process, interactive=arguments.interactive)


def ps(arguments: argparse.Namespace) -> int:
    """``r2d2 ps``."""
    from r2d2 import Detached

    found = Detached.list(all=arguments.all)
    if arguments.quiet:
        for each in found:
            print(each.name)
        return 0
    shown = [each.inspect() for each in found]
    if arguments.json:
        print(_json(shown))
        return 0
    rows = [("NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "PORTS")]
    for facts in shown:
        state = facts["status"]
        if facts["returncode"] is not None:
            state = f"exited ({status(facts['returncode'])})"
        age = f"{_age(facts['created'])} ago"
        pid = str(facts["pid"] or "-")
        ports = ", ".join(map(_port, facts["ports"]))
        rows.append((facts["name"], facts["image"]["name"], _short(facts["args"]), age, state, pid, ports))
    table(rows)
    return 0


def _port(port: dict[str, Any]) -> str:
    """``127.0.0.1:8080->80/tcp``."""
    host = f"[{port['host']}]" if ":" in port["host"] else port["host"]
    return f"{host}:{port['host_port']}->{port['guest_port']}/{port['protocol']}"


def port(arguments: argparse.Namespace) -> int:
    """``r2d2 port``."""
    from dataclasses import asdict

    from r2d2 import Detached

    for each in Detached.get(arguments.container).ports:
        print(_port(asdict(each)))
    return 0


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2)


def table(rows: Sequence[tuple[str, ...]], gap: int = 3) -> None:
    """Columns, each as wide as its widest cell."""
    widths = [max(map(len, column)) + gap for column in zip(*rows, strict=True)]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _short(args: list[str] | None, width: int = 30) -> str:
    """A command in one line, with nothing that could move a terminal's cursor."""
    import shlex

    if args is None:
        return "-"
    text = "".join(c if c.isprintable() else "?" for c in shlex.join(args))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _age(since: float) -> str:
    import time

    seconds = max(0, int(time.time() - since))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return f"{seconds} second{'' if seconds == 1 else 's'}"


def logs(arguments: argparse.Namespace) -> int:
    """``r2d2 logs``."""
    from r2d2 import Detached

    container = Detached.get(arguments.container)
    out = sys.stdout.buffer
    if arguments.tail is None:
        for piece in container.logs(follow=arguments.follow):
            out.write(piece)
            out.flush()
        return 0
    seen = b"".join(container.logs())
    lines = seen.splitlines(keepends=True)
    out.write(b"".join(lines[-arguments.tail :] if arguments.tail > 0 else []))
    out.flush()
    if arguments.follow:
        skip = len(seen)
        for piece in container.logs(follow=True):
            out.write(piece[skip:])
            out.flush()
            skip = max(0, skip - len(piece))
    return 0


def signal_number(text: str) -> int:
    """``9``, ``KILL``, ``SIGKILL``."""
    import signal

    from r2d2 import SpecError

    try:
        if text.isdigit():
            return signal.Signals(int(text)).value
        name = text.upper()
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except (KeyError, ValueError):
        raise SpecError(f"signal {text!r}: there is none of this name").with_hint(
            "kill -l lists them"
        ) from None


def stop(arguments: argparse.Namespace) -> int:
    """``r2d2 stop``."""
    number = signal_number(arguments.signal)

    def work(container: Detached) -> None:
        container.stop(arguments.time, signal=number)
        print(container.name)

    return _each(arguments, work)


def kill(arguments: argparse.Namespace) -> int:
    """``r2d2 kill``."""
    number = signal_number(arguments.signal)

    def work(container: Detached) -> None:
        container.kill(number)
        print(container.name)

    return _each(arguments, work)


def wait(arguments: argparse.Namespace) -> int:
    """``r2d2 wait``."""
    return _each(arguments, lambda container: print(status(container.wait())))


def remove(arguments: argparse.Namespace) -> int:
    """``r2d2 rm``."""
    from r2d2 import Detached, ImageNotFound, R2d2Error, statedir

    code = 0
    for name in arguments.containers:
        try:
            found = Detached.get(name)
            found.remove(force=arguments.force)
            print(found.name)
        except ImageNotFound as error:
            if not arguments.force:
                complain(error)
                code = 125
        except (R2d2Error, OSError) as error:
            # One whose state cannot be read can only be removed as what it is: a directory.
            if arguments.force and type(error) is R2d2Error:
                statedir.remove(name)
                print(name)
                continue
            complain(error)
            code = 125
    return code


def inspect(arguments: argparse.Namespace) -> int:
    """``r2d2 inspect``."""
    found: list[object] = []
    code = _each(arguments, lambda container: found.append(container.inspect()))
    print(_json(found))
    return code
