"""``%%container``, ``%containers`` and ``%r2d2``: registered by ``%load_ext r2d2``.

The options of ``%%container`` are those of ``r2d2 run`` (`r2d2.cli.options`), and those of IPython's
``%%script``: ``--out``, ``--err``, ``--bg``, ``--proc``, ``--no-raise-error``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from r2d2.cli import options
from r2d2.container import Container
from r2d2.detached import Detached
from r2d2.errors import ContainerClosed, ImageNotFound, SpecError

from . import cells
from .reprs import table

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["ContainerMagics", "load", "unload"]

_VERBS = ("doctor", "explain", "diff")


class _Parser(argparse.ArgumentParser):
    """The line of ``%%container``. A mistake in it is a UsageError, which IPython shows in one line."""

    def __init__(self) -> None:
        super().__init__(
            prog="%%container",
            usage="%%%%container [NAME] [OPTIONS]",
            description="Runs the cell in a container: a live one by its NAME (a variable of yours, or the "
            "name of a running container), or one that is made for the cell and gone after it.",
            allow_abbrev=False,
            add_help=False,
        )
        add = self.add_argument
        add("container", metavar="NAME", nargs="?", help="a live container")
        program = self.add_argument_group("the program")
        how = program.add_mutually_exclusive_group()
        how.add_argument("--python", action="store_true", help="the cell is Python (sh)")
        how.add_argument("--interpreter", metavar="COMMAND", help="what the cell is for, such as 'bash -e'")
        options.add_settings(program)
        shown = self.add_argument_group("the cell, as of %%script")
        shown.add_argument("--out", metavar="VAR", help="variable for the output; with --bg for its pipe")
        shown.add_argument("--err", metavar="VAR", help="the same for standard error")
        shown.add_argument("--bg", action="store_true", help="go on at once")
        shown.add_argument("--proc", metavar="VAR", help="with --bg: variable for the Process")
        shown.add_argument(
            "--no-raise-error", action="store_false", dest="raise_error",
            help="an exit status other than 0 is no exception",
        )  # fmt: skip
        own = set(self._option_string_actions)
        options.add_container(self, command=False)
        self.made = sorted(set(self._option_string_actions) - own)
        self.set_defaults(env_file=[])

    def error(self, message: str) -> NoReturn:
        """A mistake."""
        raise UsageError(f"%%container: {message}")

    def options(self) -> list[str]:
        """For completion."""
        return sorted(self._option_string_actions)

    def action(self, name: str) -> argparse.Action | None:
        """The option of this name."""
        found: argparse.Action | None = self._option_string_actions.get(name)
        return found


@magics_class
class ContainerMagics(Magics):
    """The magics.

    Attributes:
        background: the processes that ``--bg`` left, and the containers that were made for them.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._parser = _Parser()
        self.background: list[tuple[Any, Container | None]] = []

    @property
    def _variables(self) -> dict[str, Any]:
        return cast("dict[str, Any]", cast("InteractiveShell", self.shell).user_ns)

    @cell_magic
    def container(self, line: str, cell: str) -> None:
        """Runs a cell in a container."""
        words = shlex.split(line)
        arguments = self._parser.parse_args(words)
        if arguments.proc and not arguments.bg:
            raise UsageError("%%container: --proc needs --bg")
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        if arguments.container is None:
            found = Container(arguments.image or "host", **options.keywords(_without_program(arguments)))
            self._run(found, arguments, line, cell, made=True)
            return
        if wrong := sorted(given & set(self._parser.made)):
            raise UsageError(f"%%container: {', '.join(wrong)}: {arguments.container} runs already")
        live = self._find(arguments.container)
        self._run(live, arguments, line, cell, made=False)

    def _find(self, name: str) -> Container:
        """A live container by a variable's name or its own."""
        value = self._variables.get(name)
        if value is None:
            of_this_name = [each for each in self._live().values() if each.name == name]
            value = of_this_name[0] if of_this_name else None
        if isinstance(value, Detached):
            return value.attach()
        if value is None:
            try:
                return Detached.get(name).attach()
            except (ImageNotFound, SpecError):
                raise UsageError(
                    f"%%container: {name}: neither a variable nor a container; for a new one leave it out"
                ) from None
        if not isinstance(value, Container):
            raise UsageError(f"%%container: {name} is a {type(value).__name__}, not a Container")
        if not value.running:
            raise ContainerClosed(f"container {value.name} does not run").with_hint(f"{name}.start()")
        return value

    def _live(self) -> dict[str, Container]:
        """Containers among the user's variables."""
        found: dict[int, tuple[str, Container]] = {}
        for name, value in list(self._variables.items()):
            if isinstance(value, Container) and (id(value) not in found or not name.startswith("_")):
                found[id(value)] = (name, value)
        return dict(found.values())

    def _run(
        self, container: Container, arguments: argparse.Namespace, line: str, cell: str, *, made: bool
    ) -> None:
        try:
            if made:
                container.start()
            process = self._start(container, arguments, cell)
            if arguments.bg:
                self._leave(process, arguments, container if made else None)
                made = False
                return
            self._show(process, arguments, line)
        finally:
            if made:
                container.stop()

    def _start(self, container: Container, arguments: argparse.Namespace, cell: str) -> Any:
        interpreters = [["sh"]]
        if arguments.python:
            interpreters = cells.pythons(container)
        elif arguments.interpreter:
            interpreters = [shlex.split(arguments.interpreter)]
        keywords: dict[str, Any] = {"cwd": arguments.workdir, "user": arguments.user}
        keywords = {key: value for key, value in keywords.items() if value is not None}
        variables = options.environment(arguments)
        if variables:
            keywords["env"] = {**container._environ(), **variables}
        return cells.start_first(container, interpreters, cell, **keywords)

    def _show(self, process: Any, arguments: argparse.Namespace, line: str) -> None:
        caught: dict[str, list[str]] = {}

        def show(stream: str) -> Any:
            variable = {"stdout": arguments.out, "stderr": arguments.err}[stream]
            if variable:
                return caught.setdefault(variable, []).append
            file = getattr(sys, stream)

            def write(text: str) -> None:
                file.write(text)
                file.flush()

            return write

        try:
            code = cells.finish(process, {stream: show(stream) for stream in ("stdout", "stderr")})
        except KeyboardInterrupt:
            sys.stderr.write("Process was killed.\n")
            if arguments.raise_error:
                raise cells.failed(process.returncode, line) from None
            return
        finally:
            self._variables.update({name: "".join(pieces) for name, pieces in caught.items()})
        if code and arguments.raise_error:
            raise cells.failed(code, line)

    def _leave(self, process: Any, arguments: argparse.Namespace, container: Container | None) -> None:
        keep = {name for name, asked in (("stdout", arguments.out), ("stderr", arguments.err)) if asked}
        entry = (process, container)
        self.background.append(entry)

        def afterwards() -> None:
            if container is not None:
                container.stop()
            if entry in self.background:
                self.background.remove(entry)

        cells.in_background(process, keep, afterwards)
        names = ((arguments.out, process.stdout), (arguments.err, process.stderr), (arguments.proc, process))
        self._variables.update({name: value for name, value in names if name})

    def stop_background(self) -> None:
        """Ends what ``--bg`` left running."""
        for process, container in list(self.background):
            process.kill_tree()
            process.wait()
            if container is not None:
                container.stop()
        self.background.clear()

    @line_magic
    def containers(self, line: str) -> Containers:
        """Lists the containers among your variables, those of cells in the background, and detached ones."""
        if line.strip():
            raise UsageError("%containers takes nothing")
        rows = [_row(name, each) for name, each in self._live().items()]
        rows += [_row("(--bg)", each) for _, each in self.background if each is not None]
        for each in Detached.list(all=True):
            image = each.inspect()["image"]["name"]
            rows.append((f"({each.name})", each.name, image, each.status, str(each.pid or "")))
        return Containers(rows)

    @line_magic
    def r2d2(self, line: str) -> Any:
        """``%r2d2 doctor``, ``%r2d2 explain [NAME|IMAGE]`` or ``%r2d2 diff NAME``."""
        words = shlex.split(line)
        verb, names = (words[0], words[1:]) if words else ("", [])
        if verb == "doctor" and not names:
            from r2d2.diagnosis import doctor

            return doctor()
        if verb == "explain" and len(names) < 2:
            return self._explain(names[0] if names else "host")
        if verb == "diff" and len(names) == 1:
            return self._find(names[0]).diff()
        raise UsageError("%r2d2 doctor | explain [NAME|IMAGE] | diff NAME")

    def _explain(self, name: str) -> Any:
        value = self._variables.get(name)
        if isinstance(value, Container):
            return value.explain()
        return Container(name).explain()

    # Completion

    def complete_container(self, shell: Any, event: Any) -> list[str]:
        """What may stand next in the line of ``%%container``."""
        del shell
        words = event.text_until_cursor.split()
        last = words[-1] if event.text_until_cursor.endswith(" ") else words[-2] if len(words) > 1 else ""
        if event.symbol.startswith("-"):
            return self._parser.options()
        action = self._parser.action(last)
        if action is not None and action.nargs != 0:
            if action.choices is not None:
                return [str(choice) for choice in action.choices]
            return ["host", "minimal", "scratch"] if last == "--image" else []
        names = [*self._live(), *(each.name for each in Detached.list())]
        return [name for name in names if not name.startswith("_")]

    def complete_r2d2(self, shell: Any, event: Any) -> list[str]:
        """The verbs, and names after them."""
        del shell
        words = event.text_until_cursor.split()
        if len(words) + event.text_until_cursor.endswith(" ") <= 2:
            return list(_VERBS)
        return [name for name in self._live() if not name.startswith("_")]


def _without_program(arguments: argparse.Namespace) -> argparse.Namespace:
    """For the container itself: what is the program's is given to the program."""
    return argparse.Namespace(**{**vars(arguments), "workdir": None, "user": None, "env": [], "env_file": []})


def _row(variable: str, container: Container) -> tuple[str, str, str, str, str]:
    state = container._state
    pid = str(container.pid) if state == "running" else ""
    return variable, container.name, container.image.name, state, pid


class Containers(list[tuple[str, str, str, str, str]]):
    """Rows of ``%containers``: variable, name, image, state, pid."""

    _HEADS = ("variable", "name", "image", "state", "pid")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """A table."""
        del include, exclude
        rows = [self._HEADS, *self]
        wide = [max(len(row[i]) for row in rows) for i in range(len(self._HEADS))]
        lines = ["  ".join(f"{text:<{wide[i]}}" for i, text in enumerate(row)).rstrip() for row in rows]
        html = table(f"{len(self)} container{'s' * (len(self) != 1)}", self._HEADS, self)
        return {"text/plain": "\n".join(lines), "text/html": html}

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        del cycle
        printer.text(self._repr_mimebundle_()["text/plain"])


def load(shell: InteractiveShell) -> None:
    """Registers the magics and their completion."""
    magics = ContainerMagics(shell)
    ContainerMagics.container.__doc__ = magics._parser.format_help()
    shell.register_magics(magics)
    hook: Any = shell.set_hook
    hook("complete_command", magics.complete_container, str_key="%%container")
    hook("complete_command", magics.complete_r2d2, str_key="%r2d2")
    import atexit

    atexit.register(magics.stop_background)


def unload(shell: InteractiveShell) -> None:
    """``%unload_ext r2d2``: ends what runs in the background. IPython has no way to forget a magic."""
    magics = shell.magics_manager.registry.get("ContainerMagics")
    if isinstance(magics, ContainerMagics):
        magics.stop_background()
        for kind, name in (("cell", "container"), ("line", "containers"), ("line", "r2d2")):
            shell.magics_manager.magics[kind].pop(name, None)
