"""``course list|open|check|reset``: the notebooks of the course, and how far a student came."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .containers import table
from .parser import Verbs

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from r2d2.shelf import Lesson, Outcome

#: Where copies go, and where they are looked for.
FOLDER = "r2d2-course"
_ACTIONS = {
    "list": "show what there is, with the rows of the lab",
    "open": "copy notebooks into a folder; what is there stays",
    "check": "run copies and say which exercises are right; exit status 1 if one is not",
    "reset": "put fresh copies there; the old ones are kept as NAME.1.ipynb",
}


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "course",
        course,
        "learn how containers work, in notebooks",
        "list|open|check|reset [OPTIONS] [LESSON...]",
        epilog="A LESSON is a number or a name; none means all. r2d2 course ACTION --help tells more.",
    )
    subparsers = parser.add_subparsers(metavar="ACTION", required=True, dest="action", title="actions")
    actions = Verbs(subparsers, "r2d2 course")
    for name, summary in _ACTIONS.items():
        add_option = actions.add(name, course, summary, "[OPTIONS] [LESSON...]").add_argument
        if name != "check":
            add_option(
                "-l", "--language", choices=("en", "zh-TW"), default="en", help="en (the default) or zh-TW"
            )
        if name != "list":
            add_option("--folder", metavar="DIR", default=FOLDER, help=f"where the copies are ({FOLDER})")
        if name in ("open", "reset"):
            add_option("--no-solutions", action="store_true", help="copies without the solution cells")
        if name in ("list", "check"):
            add_option("--json", action="store_true", help="as a JSON array")
        if name == "open":
            add_option("--lab", action="store_true", help="start JupyterLab there")
        what = "such as 4, 04-pids, or the path of a copy" if name == "check" else "such as 4 or 04-pids"
        add_option("lessons", metavar="LESSON", nargs="*", help=what)


def course(arguments: argparse.Namespace) -> int:
    """``r2d2 course``."""
    action = {"list": _list, "open": _open, "check": _check, "reset": _reset}[arguments.action]
    return action(arguments)


def _chosen(arguments: argparse.Namespace) -> list[Lesson]:
    from r2d2 import shelf

    return shelf.choose(arguments.lessons, arguments.language)


def _list(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments)
    if arguments.json:
        import json

        fields = ("name", "title", "rows", "exercises")
        print(json.dumps([{name: getattr(each, name) for name in fields} for each in chosen], indent=2))
        return 0
    # The titles stand last: Chinese ones are twice as wide as they are long.
    lines = [(each.name, " ".join(each.rows), str(len(each.exercises)), each.title) for each in chosen]
    table([("LESSON", "LAB", "EXERCISES", "TITLE"), *lines])
    return 0


def _open(arguments: argparse.Namespace) -> int:
    from r2d2 import shelf

    for path, new in shelf.copy(_chosen(arguments), arguments.folder, solutions=not arguments.no_solutions):
        print(path if new else f"{path} (was there, and stays)")
    sys.stdout.flush()
    if not arguments.lab:
        print(f"hint: jupyter lab {arguments.folder}", file=sys.stderr)
        return 0
    return _lab(arguments.folder)


def _lab(folder: str) -> int:
    from importlib.util import find_spec

    from r2d2.errors import UnsupportedError

    if find_spec("jupyterlab") is None:
        raise UnsupportedError("JupyterLab is not installed for this Python").with_hint(
            "pip install jupyterlab"
        )
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", folder])


def _reset(arguments: argparse.Namespace) -> int:
    from r2d2 import SpecError, shelf

    if not arguments.lessons:
        raise SpecError("reset: which lessons?").with_hint("r2d2 course reset 4, or name several")
    chosen = _chosen(arguments)
    for path, kept in shelf.reset(chosen, arguments.folder, solutions=not arguments.no_solutions):
        print(path if kept is None else f"{path} (the old one is {kept.name})")
    return 0


def _paths(arguments: argparse.Namespace) -> list[Path]:
    """Copies to check: those named, by path or as a lesson of the folder, else all that are there."""
    from pathlib import Path

    from r2d2 import SpecError, shelf

    named = []
    for word in arguments.lessons:
        if word.endswith(".ipynb"):
            named.append(Path(word))
        else:
            named += [Path(arguments.folder, each.path.name) for each in shelf.choose([word])]
    if arguments.lessons:
        return named
    every = [Path(arguments.folder, each.path.name) for each in shelf.lessons()]
    there = [path for path in every if path.exists()]
    if not there:
        raise SpecError(f"check: no notebooks of the course in {arguments.folder}").with_hint(
            "r2d2 course open copies them there"
        )
    return there


def _check(arguments: argparse.Namespace) -> int:
    import dataclasses

    from r2d2 import shelf

    outcomes: list[Outcome] = []
    for path in _paths(arguments):
        if not arguments.json and sys.stderr.isatty():
            print(f"{path} …", file=sys.stderr)
        outcomes += shelf.check(path)
    right = sum(each.status == "right" for each in outcomes)
    failed = any(each.status in ("wrong", "error") for each in outcomes)
    if arguments.json:
        import json

        print(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=2))
        return int(failed)
    lines = [(each.lesson, each.exercise, each.status, each.hint) for each in outcomes]
    table([("LESSON", "EXERCISE", "STATUS", "HINT"), *lines])
    exercises = sum(each.status != "error" for each in outcomes)
    print(f"{right} of {exercises} right")
    return int(failed)
