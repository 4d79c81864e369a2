"""Verbs that look: ``diff``, ``explain``, ``doctor``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import options

if TYPE_CHECKING:
    import argparse

    from r2d2.overlay import Change

    from .parser import Verbs


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    parser = verbs.add(
        "diff",
        diff,
        "show which files a detached container, or a command, changed",
        "NAME | [OPTIONS] IMAGE COMMAND [ARG...]",
        epilog="A added, C changed, D deleted, R renamed. The command's output goes to standard error, and\n"
        "its exit status is this one's.",
    )
    options.add_program(parser)
    options.add_container(parser)
    parser.add_argument("--json", action="store_true", help="as a JSON array")
    parser.add_argument("words", nargs="...", metavar="NAME", help="a container; or an image and a command")

    parser = verbs.add(
        "explain",
        explain,
        "show the steps that make a container, without making it",
        "[OPTIONS] [IMAGE] [COMMAND] [ARG...]",
        epilog="Takes the options of r2d2 run.",
    )
    options.add_program(parser)
    options.add_container(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--script", action="store_true", help="as a shell script that makes the same container")
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--html", action="store_true", help="as an HTML table")
    parser.add_argument(
        "words", nargs="...", metavar="IMAGE", help="the image (host), and a command for --script"
    )

    parser = verbs.add(
        "doctor", doctor, "find out what this machine allows, and what would change that", "[--json]"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def diff(arguments: argparse.Namespace) -> int:
    """``r2d2 diff``."""
    from r2d2 import Detached, SpecError

    if arguments.image is None and len(arguments.words) == 1:
        with Detached.get(arguments.words[0]).attach() as attached:
            _show(attached.diff(), as_json=arguments.json)
        return 0
    image, words = options.image_and_command(arguments)
    if not words:
        raise SpecError("diff: no command")
    return _of_command(arguments, image, words)


def _of_command(arguments: argparse.Namespace, image: str, words: list[str]) -> int:
    import subprocess

    from r2d2 import Container

    from . import status
    from .foreground import forwarding

    with forwarding() as forward, Container(image, **options.keywords(arguments)) as container:
        stdin = None if arguments.interactive else subprocess.DEVNULL
        with container.popen(words, stdin=stdin, stdout=sys.stderr, stderr=sys.stderr) as process:
            forward.target = process.send_signal
            code = process.wait()
        _show(container.diff(), as_json=arguments.json)
    return status(code)


def _show(changes: list[Change], *, as_json: bool) -> None:
    if as_json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(change) for change in changes], indent=2))
        return
    for change in changes:
        print(change)


def explain(arguments: argparse.Namespace) -> int:
    """``r2d2 explain``."""
    from r2d2 import Container

    if not arguments.words and arguments.image is None:
        arguments.image = "host"
    image, words = options.image_and_command(arguments)
    explanation = Container(image, **options.keywords(arguments)).explain()
    if arguments.script:
        sys.stdout.write(explanation.script(words or None))
    elif arguments.json:
        print(explanation.to_json(indent=2))
    elif arguments.html:
        print(explanation._repr_html_())
    else:
        print(explanation)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``r2d2 doctor``."""
    import r2d2

    report = r2d2.doctor()
    print(report.to_json() if arguments.json else report)
    return int(report.exit_code)
