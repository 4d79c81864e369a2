"""The notebooks as tests see them: solved, run, and compared with the outputs that are stored in them."""

from __future__ import annotations

import ast
import copy
import os
import re
from pathlib import Path
from typing import Any

import nbformat

from r2d2 import shelf

TOP = Path(__file__).resolve().parents[2]
NOTEBOOKS = TOP / "notebooks"
README = NOTEBOOKS / "README.md"
BEGIN = "<!-- from the cells' metadata: python tests/notebooks/render.py -->"
END = "<!-- end -->"
LESSONS = [lesson.name for lesson in shelf.lessons()]

#: What differs from run to run and from machine to machine, and what is stored in its place.
_PLACES = (
    (re.compile(r"/[\w./-]*/r2d2-course-\w+"), "/tmp/r2d2-course"),
    (re.compile(r"/[\w./-]*/r2d2-kernel-\w+"), "/tmp/r2d2-kernel"),
    (re.compile(r"/[\w./-]*/bin/python[\d.]*"), "python"),
    (re.compile(r"…[\w-]*-\w{8}(?=/)"), "…"),
)


def path_of(name: str, language: str) -> Path:
    """The notebook's source."""
    return NOTEBOOKS / shelf.LANGUAGES[language] / f"{name}.ipynb"


def read(name: str, language: str = "en") -> Any:
    return nbformat.read(path_of(name, language), as_version=4)


def solved(notebook: Any) -> Any:
    """A copy in which each answer is the solution, and nothing has been run."""
    result = copy.deepcopy(notebook)
    solutions = {shelf.role(c)[0]: c.source for c in result.cells if shelf.role(c)[1] == "solution"}
    result.cells = [cell for cell in result.cells if shelf.role(cell)[1] != "solution"]
    for cell in result.cells:
        exercise, what = shelf.role(cell)
        if what == "answer":
            cell.source = solutions.pop(exercise)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert not solutions, "a solution without an exercise"
    return result


def clean(outputs: list[Any]) -> list[Any]:
    """Outputs as they are stored: streams whole, without the names of this machine and its directories."""
    result: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            if result and result[-1].get("name") == output.name:
                result[-1].text += _placed(output.text)
                continue
            result.append(nbformat.v4.new_output("stream", name=output.name, text=_placed(output.text)))
        else:
            data = {kind: _placed(text) for kind, text in output.data.items()}
            result.append(nbformat.v4.new_output("display_data", data=data))
    return result


def _placed(text: str) -> str:
    for pattern, place in _PLACES:
        text = pattern.sub(place, text)
    # The sheet's machine is called ctn.
    return re.sub(rf"(?<![\w/.-]){re.escape(os.uname().nodename)}(?![\w/.-])", "ctn", text)


def shape(output: Any) -> tuple[str, str]:
    """What must be the same on every machine: the kind, and the words, but no figure and no spacing."""
    if output.output_type != "stream":
        return output.output_type, " ".join(sorted(output.data))
    words = re.sub(r"\b[0-9a-f]{8,}\b|\d+", "0", output.text)
    return output.name, " ".join(words.split())


def differences(stored: Any, fresh: Any) -> list[str]:
    """Cells whose stored outputs tell something else than what came out now.

    A cell tagged ``host`` prints what depends on the machine: that it prints is all that is compared.
    """
    found = []
    now = {cell.id: cell for cell in fresh.cells}
    for cell in stored.cells:
        if cell.cell_type != "code" or shelf.role(cell)[0] or shelf.left_out(now[cell.id]):
            continue
        ours, theirs = (list(map(shape, clean(each.outputs))) for each in (cell, now[cell.id]))
        if "host" in cell.metadata.get("tags", ()):
            ours, theirs = ([kind for kind, _ in each] for each in (ours, theirs))
        if ours != theirs:
            found.append(f"{cell.id}: stored {ours}, now {theirs}")
    return found


def rows() -> dict[str, tuple[str, str]]:
    """The table of ``tests/lab/test_lab_rows.py``: row to what is done, and the test."""
    for node in ast.parse((TOP / "tests/lab/test_lab_rows.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS":
            found: dict[str, tuple[str, str]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("no ROWS")


def cells_of_rows() -> dict[str, list[tuple[str, str]]]:
    """Row of the lab to the notebooks' cells that cover it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in LESSONS:
        for cell in read(name).cells:
            for row in cell.metadata.get("r2d2", {}).get("lab_rows", ()):
                found.setdefault(row, []).append((name, cell.id))
    return found


def table() -> str:
    """Row of the lab, cells, test: as it stands in the README of the notebooks."""
    covered = cells_of_rows()
    lines = ["| row | what is done | notebook: cells | test |", "| --- | --- | --- | --- |"]
    for row, (what, test) in rows().items():
        notebooks: dict[str, list[str]] = {}
        for name, ident in covered.get(row, ()):
            notebooks.setdefault(name, []).append(f"`{ident}`")
        cells = "; ".join(f"[{name}]({name}.ipynb): {', '.join(ids)}" for name, ids in notebooks.items())
        module, function = test.split(".")
        lines.append(f"| {row} | {what} | {cells} | [`{function}`](../tests/lab/{module}.py) |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The README with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
