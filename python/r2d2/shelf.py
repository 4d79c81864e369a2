"""The notebooks of the course as files: what there is, copies to work in, and how far a student came.

The notebooks lie in the package, in ``notebooks`` (English) and ``notebooks/zh-TW``. An exercise is three
cells with the same name in their metadata (``r2d2.exercise``): the ``answer`` that a student writes, the
``check`` (plain assertions, whose messages are hints), and the ``solution``. Checking a copy takes the checks
from the package, so that an edited check proves nothing.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SpecError, unsupported_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

__all__ = ["LANGUAGES", "Lesson", "Outcome", "check", "copy", "execute", "lessons", "reset"]

#: Language tags (BCP 47) and the directory of each.
LANGUAGES = {"en": "", "zh-TW": "zh-TW"}
#: What a cell of a student's copy may take, in seconds.
PATIENCE = 60
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One notebook of the package.

    Attributes:
        name: of the file, without ``.ipynb``.
        title: its subject.
        rows: rows of the lab that it covers, such as ``("4a", "4b")``.
        exercises: names of its exercises, in order.
        path: the file in the package.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    exercises: tuple[str, ...]
    path: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one exercise, or of a cell that should have run.

    Attributes:
        lesson: name of the notebook.
        exercise: name of the exercise; of another cell that failed, its id.
        status: ``right``, ``wrong``, ``left out`` (this machine cannot do it) or ``error`` (a cell that is no
            exercise failed).
        hint: why, in a line.
    """

    lesson: str
    exercise: str
    status: str
    hint: str = ""


@dataclass(slots=True)
class Execution:
    """A notebook after its run.

    Attributes:
        notebook: with the outputs.
        errors: cell id to the last line of its error.
    """

    notebook: Any
    errors: dict[str, str] = field(default_factory=dict)


def _directory(language: str) -> Path:
    if language not in LANGUAGES:
        raise SpecError(f"language {language!r}: one of {', '.join(LANGUAGES)}")
    return Path(__file__).parent / "notebooks" / LANGUAGES[language]


def role(cell: Any) -> tuple[str | None, str | None]:
    """Of a cell: its exercise and what it is there (``answer``, ``check``, ``solution``), or None, None."""
    mark = cell["metadata"].get("r2d2", {})
    return mark.get("exercise"), mark.get("role")


def lessons(language: str = "en") -> list[Lesson]:
    """The notebooks of the package, in order.

    Raises:
        SpecError: there is no such language.
    """
    found = []
    for path in sorted(_directory(language).glob("*.ipynb")):
        data = json.loads(path.read_text(encoding="utf-8"))
        rows: dict[str, None] = {}
        for cell in data["cells"]:
            rows |= dict.fromkeys(cell["metadata"].get("r2d2", {}).get("lab_rows", ()))
        exercises = tuple(name for name, what in map(role, data["cells"]) if what == "check" and name)
        found.append(Lesson(path.stem, data["metadata"]["r2d2"]["title"], tuple(rows), exercises, path))
    return found


def choose(names: Iterable[str], language: str = "en") -> list[Lesson]:
    """Lessons by name or number (``4``, ``04``, ``04-pids``); all if none is named.

    Raises:
        SpecError: there is no such lesson.
    """
    known, chosen = lessons(language), []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        number = wanted.zfill(2) if wanted.isdigit() else None
        match = [each for each in known if each.name == wanted or each.name.split("-")[0] == number]
        if not match:
            raise SpecError(f"lesson {name!r}: there is none of this name").with_hint("r2d2 course list")
        chosen += match
    return chosen or known


def _text(lesson: Lesson, *, solutions: bool) -> str:
    """A student's copy: without the outputs, which are to be seen for oneself."""
    data = json.loads(lesson.path.read_text(encoding="utf-8"))
    cells = data["cells"]
    if not solutions:
        cells = [cell for cell in cells if "solution" not in cell["metadata"].get("tags", ())]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    data["cells"] = cells
    return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def copy(
    chosen: Iterable[Lesson], directory: str | os.PathLike[str], *, solutions: bool = True
) -> list[tuple[Path, bool]]:
    """Copies notebooks into a working directory, without their outputs. What is there stays as it is.

    Args:
        chosen: the lessons.
        directory: made if it is not there.
        solutions: with the solution cells; a teacher may hand out copies without.

    Returns:
        Each file, and whether it is new.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    result = []
    for lesson in chosen:
        path = Path(directory, f"{lesson.name}.ipynb")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_text(lesson, solutions=solutions))
            result.append((path, True))
        except FileExistsError:
            result.append((path, False))
    return result


def reset(
    chosen: Iterable[Lesson], directory: str | os.PathLike[str], *, solutions: bool = True
) -> list[tuple[Path, Path | None]]:
    """Puts fresh copies in place of a student's, which are kept under another name.

    Returns:
        Each file, and where the old one is now (``NAME.1.ipynb``, ``NAME.2.ipynb``, …), or None.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    result = []
    for lesson in chosen:
        path = Path(directory, f"{lesson.name}.ipynb")
        kept = None
        if path.exists():
            number = 1
            while (old := path.with_suffix(f".{number}.ipynb")).exists():
                number += 1
            kept = path.rename(old)
        path.write_text(_text(lesson, solutions=solutions), encoding="utf-8")
        result.append((path, kept))
    return result


def _clients() -> Any:
    try:
        import ipykernel  # noqa: F401 - the kernel is another process
        import nbclient
        import nbformat
    except ImportError as error:
        import errno

        raise unsupported_error(errno.ENOPKG, f"running notebooks needs {error.name}").with_hint(
            "pip install 'r2d2-containers[course]'"
        ) from None
    return nbclient, nbformat


def execute(
    notebook: Any,
    directory: str | os.PathLike[str],
    *,
    then: Callable[[Any, Execution], Awaitable[None]] | None = None,
) -> Execution:
    """Runs every code cell of a notebook in a kernel of its own; an error does not stop it.

    Not for a thread whose event loop runs, such as a notebook's own.

    Args:
        notebook: of nbformat 4; the outputs go into it.
        directory: the kernel's working directory.
        then: called with nbclient's client and the execution while the kernel still runs.

    Raises:
        UnsupportedError: nbclient, nbformat or ipykernel is not installed.
    """
    import asyncio

    return asyncio.run(_execute(notebook, directory, then))


async def _execute(notebook: Any, directory: str | os.PathLike[str], then: Any) -> Execution:
    import tempfile

    nbclient, _ = _clients()
    execution = Execution(notebook)
    # Unix sockets that nobody else may open, instead of ports of the machine; a path has 107 bytes (unix(7)).
    usual = tempfile.gettempdir()
    place = usual if len(usual) < 60 else "/tmp"  # noqa: S108 - a directory of ours is made in it
    with tempfile.TemporaryDirectory(prefix="r2d2-kernel-", dir=place) as sockets:
        client = nbclient.NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=PATIENCE,
            resources={"metadata": {"path": os.fspath(directory)}},
            shutdown_kernel="graceful",
        )
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        manager.connection_file = f"{sockets}/kernel.json"
        async with client.async_setup_kernel():
            for index, cell in enumerate(list(notebook.cells)):
                if cell.cell_type == "code" and (reason := await run_cell(client, cell, index)) is not None:
                    execution.errors[cell.id] = reason
            if then is not None:
                await then(client, execution)
    return execution


async def run_cell(client: Any, cell: Any, index: int) -> str | None:
    """Runs one cell: None, or the last line of what went wrong."""
    nbclient, _ = _clients()
    try:
        await client.async_execute_cell(cell, index)
    except nbclient.exceptions.CellExecutionError as error:
        said = _ANSI.sub("", f"{error.ename}: {error.evalue}").strip()
        return said.splitlines()[0]
    except nbclient.exceptions.CellTimeoutError:
        await client.km.interrupt_kernel()
        return f"it took longer than {PATIENCE} s"
    except nbclient.exceptions.DeadKernelError:
        return "the kernel died"
    return None


def left_out(cell: Any) -> str | None:
    """The line in which a cell that cannot run on this machine says why; None for all others."""
    for output in cell.outputs:
        if output.output_type == "stream" and (text := str(output.text)).startswith("left out: "):
            return text.strip()
    return None


def _judge(lesson: Lesson, execution: Execution) -> Iterator[Outcome]:
    cells = {cell.id: cell for cell in execution.notebook.cells if cell.cell_type == "code"}
    for ident, cell in cells.items():
        exercise, what = role(cell)
        reason = execution.errors.get(ident)
        if exercise is None:
            if reason is not None:
                yield Outcome(lesson.name, ident, "error", reason)
        elif what == "check":
            answer = execution.errors.get(f"answer-{exercise}")
            if (text := left_out(cell)) is not None:
                yield Outcome(lesson.name, exercise, "left out", text.removeprefix("left out: "))
            elif reason is None and answer is None:
                yield Outcome(lesson.name, exercise, "right")
            else:
                hint = answer or reason or ""
                yield Outcome(lesson.name, exercise, "wrong", hint.partition("hint: ")[2] or hint)


def check(path: str | os.PathLike[str]) -> list[Outcome]:
    """Runs a student's copy of a notebook, in a kernel and a directory of its own, and judges the exercises.

    The solutions are left out, the checks are the package's. The file itself is only read.

    Args:
        path: the copy; its name says which lesson it is.

    Returns:
        One for each exercise, in order; and one for each other cell that failed.

    Raises:
        SpecError: it is no lesson, or no notebook.
        FileNotFoundError: there is no such file.
        UnsupportedError: nbclient, nbformat or ipykernel is not installed.
    """
    import tempfile

    _, nbformat = _clients()
    (lesson,) = choose([os.fspath(path)])
    text = Path(path).read_text(encoding="utf-8")
    try:
        theirs = nbformat.reads(text, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise SpecError(f"{os.fspath(path)}: no notebook: {error}") from None
    ours = nbformat.reads(lesson.path.read_text(encoding="utf-8"), as_version=4)
    checks = {role(cell)[0]: cell for cell in ours.cells if role(cell)[1] == "check"}
    cells = []
    for cell in theirs.cells:
        exercise, what = role(cell)
        if what == "check":
            continue
        if what != "solution":
            cells.append(cell)
        if what == "answer" and exercise in checks:
            cells.append(checks.pop(exercise))
    cells += checks.values()  # whose answers are gone: wrong, not forgotten
    theirs.cells = cells
    with tempfile.TemporaryDirectory(prefix="r2d2-check-") as directory:
        return list(_judge(lesson, execute(theirs, directory)))
