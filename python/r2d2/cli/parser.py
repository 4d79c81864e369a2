"""The tree of verbs. Built on every call, so nothing heavy is imported here or by the files of the verbs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Parser", "Verbs", "build"]

_EPILOG = """\
r2d2 COMMAND --help tells more. Exit status: the command's own; 125 r2d2 failed, 126 the command cannot be
invoked, 127 it is not there, 128+N signal N ended it; doctor: 0, 1 or 2. R2D2_DEBUG=1 shows tracebacks."""


class Parser(argparse.ArgumentParser):
    """One whose mistakes end with 125, as everything else that is r2d2's fault or yours does."""

    #: Read words as getopt_long(3) does: options anywhere, long ones abbreviated.
    gnu = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does; with ``gnu`` the words are sorted before."""
        return super().parse_known_args(self._sorted(args) if self.gnu else args, namespace)

    def _sorted(self, args: Any) -> list[str]:
        import getopt

        short, long = "", []
        for action in self._actions:
            takes = action.nargs != 0
            for name in action.option_strings:
                if name.startswith("--"):
                    long.append(name[2:] + "=" * takes)
                else:
                    short += name[1:] + ":" * takes
        try:
            found, words = getopt.gnu_getopt(list(args), short, long)
        except getopt.GetoptError as error:
            self.error(str(error))
        options = [f"{name}={value}" if name[:2] == "--" and value else name + value for name, value in found]
        return [*options, "--", *words]

    def error(self, message: str) -> NoReturn:
        """Two lines to standard error."""
        self.exit(125, f"r2d2: {message}\nhint: {self.prog} --help\n")


class Verbs:
    """Collects verbs, of ``r2d2`` or of a verb that has its own."""

    def __init__(self, subparsers: Any, program: str = "r2d2") -> None:
        self._subparsers = subparsers
        self._program = program

    def add(
        self,
        name: str,
        handler: Callable[[argparse.Namespace], int],
        summary: str,
        usage: str,
        *,
        epilog: str | None = None,
    ) -> Parser:
        """One verb. ``-h`` is left to it: docker's means the host name."""
        parser: Parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            usage=f"{self._program} {name} {usage}",
            epilog=epilog,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--help", action="help", help="show this text")
        parser.set_defaults(handler=handler)
        return parser


def build() -> Parser:
    """The whole tree."""
    import r2d2

    from . import (
        completion,
        containers,
        course,
        demo,
        foreground,
        kernel,
        network,
        primitives,
        views,
    )

    parser = Parser(
        prog="r2d2",
        usage="r2d2 COMMAND …",
        description="Linux containers without a daemon, as root or as an ordinary user.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"r2d2 {r2d2.__version__}")
    verbs = Verbs(
        parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser, title="commands")
    )
    groups = (
        demo,
        foreground,
        containers,
        views,
        primitives,
        network,
        kernel,
        course,
        completion,
    )
    for group in groups:
        group.add(verbs)
    return parser
