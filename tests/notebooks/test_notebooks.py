"""Every notebook, in both languages, run from top to bottom with right and with wrong answers.

The Chinese notebooks have the code cells of the English ones, byte for byte; they are run all the same, since
a run takes a second or two and what is handed out is what should have been run.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from _lessons import (
    LESSONS,
    README,
    TOP,
    cells_of_rows,
    differences,
    path_of,
    read,
    rows,
    shape,
    solved,
    with_table,
)
from broken import BROKEN

import r2d2
from r2d2 import shelf

EACH = pytest.mark.parametrize("name", LESSONS)
BOTH = pytest.mark.parametrize("language", shelf.LANGUAGES)


def terms(kind: str) -> list[str]:
    """A section of terms.txt."""
    sections = re.split(r"^\[(.*)\]$", Path(__file__).with_name("terms.txt").read_text(), flags=re.MULTILINE)
    return sections[sections.index(kind) + 1].split()


async def attempt(client: Any, answer: str, check: Any) -> str | None:
    """Gives an answer and runs its check in a kernel that still runs: what is said, or None."""
    for source in (answer, check.source):
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        reason = await shelf.run_cell(client, cell, len(client.nb.cells) - 1)
    return reason


@EACH
@BOTH
def test_runs_and_checks(name: str, language: str, sealed: Path) -> None:
    stored = read(name, language)
    answers = {shelf.role(c)[0]: c.source for c in stored.cells if shelf.role(c)[1] == "answer"}
    checks: dict[str, Any] = {}
    said: dict[str, str | None] = {}

    async def wrong(client: Any, execution: shelf.Execution) -> None:
        cells = execution.notebook.cells
        checks.update((shelf.role(c)[0], c) for c in cells if shelf.role(c)[1] == "check")
        for exercise, check in checks.items():
            if shelf.left_out(check) is None:
                said[f"{exercise}, not answered"] = await attempt(client, answers[exercise], check)
        exercise, answer, _ = BROKEN[name]
        if shelf.left_out(checks[exercise]) is None:
            said[exercise] = await attempt(client, answer, checks[exercise])

    execution = shelf.execute(solved(stored), sealed, then=wrong)
    assert not execution.errors
    ran = execution.notebook
    assert len(checks) == len(answers)
    for exercise, check in checks.items():
        told = "".join(output.text for output in check.outputs)
        assert shelf.left_out(check) or told == "right\n", exercise
    assert said, "no exercise of this notebook can be tried on this machine"
    for exercise, hint in said.items():
        assert hint, f"{exercise}: a wrong answer passes"
        assert hint.startswith("AssertionError: hint: "), f"{exercise}: {hint}"
    exercise, _, part = BROKEN[name]
    assert exercise not in said or part in said[exercise], said[exercise]
    assert not differences(stored, ran), "stale: python tests/notebooks/render.py"
    assert not list((sealed / "t").iterdir()), "a kernel's directory is left"


def test_staleness_is_seen() -> None:
    """The comparison behind the freshness of every notebook: figures may differ, words and cells may not."""
    stored = read(LESSONS[1])
    other = copy.deepcopy(stored)
    assert not differences(stored, other)
    cell = next(cell for cell in other.cells if cell.id == "container")
    text = cell.outputs[0].text
    cell.outputs[0].text = re.sub(r"\d{10}", "4026539999", text).replace("   ", "  ")
    assert not differences(stored, other), "other inodes, other spacing"
    cell.outputs[0].text = text.replace("shared", "own")
    assert len(differences(stored, other)) == 1
    cell.outputs = []
    assert len(differences(stored, other)) == 1
    drawing = next(cell for cell in stored.cells if cell.id == "drawing").outputs[0]
    assert "image/svg+xml" in shape(drawing)[1]


@EACH
@BOTH
def test_stored_outputs_are_whole(name: str, language: str) -> None:
    """Made where nothing is left out, and without the names of that machine."""
    notebook = read(name, language)
    nbformat.validate(notebook)
    printing = [cell for cell in notebook.cells if cell.cell_type == "code" and "print(" in cell.source]
    for cell in printing:
        if shelf.role(cell)[0]:
            assert not cell.outputs, "answers, checks and solutions are for the reader to run"
        else:
            assert cell.outputs, f"{cell.id} has no outputs: python tests/notebooks/render.py"
            assert shelf.left_out(cell) is None, cell.id
    told = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert not re.search(r"/home/|(?<!/tmp)(?<!/mnt)/root/|r2d2-course-|r2d2-kernel-|venv", told)


def tabled(text: str) -> int:
    """How many rows its tables have."""
    return len(re.findall(r"^\|", text, re.MULTILINE))


@EACH
def test_the_languages_are_one_notebook(name: str) -> None:
    english, chinese = (read(name, language).cells for language in shelf.LANGUAGES)
    assert [cell.id for cell in english] == [cell.id for cell in chinese]
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours.cell_type == theirs.cell_type
        assert ours.metadata == theirs.metadata
        if ours.cell_type == "code":
            assert ours.source == theirs.source, ours.id
            assert ours.outputs == theirs.outputs, ours.id
        else:
            assert re.search(r"[\u4e00-\u9fff]", theirs.source), f"{ours.id} is not translated"
            assert not re.search(r"[\u4e00-\u9fff]", ours.source), ours.id
            assert ours.source.count("\n#") == theirs.source.count("\n#"), "headings"
            assert tabled(ours.source) == tabled(theirs.source), "rows of tables"


@EACH
@BOTH
def test_what_each_notebook_has(name: str, language: str) -> None:
    notebook = read(name, language)
    lesson = next(each for each in shelf.lessons(language) if each.name == name)
    prose = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    code = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    assert prose["intro"].startswith(f"# {int(name[:2])}. "), "its number and title"
    assert re.search(r"^\| --- \| --- \|$", prose["intro"], re.MULTILINE), "shell beside Python"
    order = list(code)
    assert order[0] == "begin", "a place of its own to work in"
    assert order.index("prediction") < order.index("explain")
    assert ".explain()" in code["explain"], "what the kernel did"
    assert any("drawings." in source for source in code.values()), "a drawing"
    assert 1 <= len(lesson.exercises) <= 3
    roles = {(exercise, what) for exercise, what in map(shelf.role, notebook.cells) if exercise}
    assert roles == {(e, what) for e in lesson.exercises for what in ("answer", "check", "solution")}
    last = "".join(prose.values())
    assert "Docker" in last, "what would Docker do"
    assert re.search(r"`\w[\w-]*\([1-8]\)`", last), "man pages"
    for cell in notebook.cells:
        what = shelf.role(cell)[1]
        assert (what == "solution" or cell.id == "solutions") == ("solution" in cell.metadata.get("tags", ()))
        if what == "solution":
            assert order.index(cell.id) > max(map(order.index, (f"check-{e}" for e in lesson.exercises)))
        if what == "check":
            assert "assert " in cell.source
            assert all("hint: " in part for part in cell.source.split("\nassert ")[1:]), cell.id


@EACH
def test_nbgrader_can_read_it(name: str) -> None:
    """Its schema, version 3: an answer is a solution cell, a check is a locked cell with points."""
    seen = set()
    for cell in read(name).cells:
        what = shelf.role(cell)[1]
        mark = cell.metadata.get("nbgrader")
        assert (mark is not None) == (what in ("answer", "check"))
        if mark is None:
            continue
        assert set(mark) - {"points"} == {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
        assert mark["schema_version"] == 3
        assert (mark["grade"], mark["solution"], mark["task"]) == (what == "check", what == "answer", False)
        assert ("points" in mark) == mark["grade"] == mark["locked"]
        assert re.fullmatch(r"[A-Za-z0-9_-]+", mark["grade_id"])
        assert mark["grade_id"] not in seen
        seen.add(mark["grade_id"])


def test_the_terms_are_taiwans() -> None:
    prose = {
        name: "\n".join(cell.source for cell in read(name, "zh-TW").cells if cell.cell_type == "markdown")
        for name in LESSONS
    }
    refused = terms("refused: other regions' terms")
    simplified = set("".join(terms("refused: characters of simplified Chinese")))
    assert len(simplified) > 500
    for name, text in prose.items():
        assert not [term for term in refused if term in text], name
        assert not set(text) & simplified, name
    together = "".join(prose.values())
    assert not [term for term in terms("used") if term not in together]


def test_every_row_of_the_lab_has_a_cell_and_a_test() -> None:
    assert set(cells_of_rows()) == set(rows())


def test_the_table_is_fresh() -> None:
    text = README.read_text()
    assert with_table(text) == text, "stale: python tests/notebooks/render.py"
    for row, (_, test) in rows().items():
        assert re.search(rf"^\| {row} \|.*ipynb\): `.*{test.split('.')[1]}", text, re.MULTILINE), row


def test_the_package_has_the_notebooks() -> None:
    """Whatever is tested here is what `r2d2 course open` copies."""
    for language in shelf.LANGUAGES:
        names = {path.name for path in path_of("x", language).parent.glob("*.ipynb")}
        assert {lesson.path.name for lesson in shelf.lessons(language)} == names
        for lesson in shelf.lessons(language):
            assert lesson.path.read_bytes() == path_of(lesson.name, language).read_bytes()
    assert len(LESSONS) == 14


INSIDE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from _lessons import read, solved
from r2d2 import shelf
done = shelf.execute(solved(read(sys.argv[2])), "/tmp")
cells = [cell for cell in done.notebook.cells if cell.cell_type == "code"]
print(json.dumps([done.errors, {c.id: reason for c in cells if (reason := shelf.left_out(c))}]))
"""


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        (
            "04-pids",
            {"mount-proc": "a /proc of a container's own", "check-alone": "a /proc of a container's own"},
        ),
        ("06-network", {}),
        ("11-cgroups", {"memory": "limits by a cgroup", "check-pids": "limits by a cgroup"}),
    ],
)
def test_where_less_is_allowed_cells_are_left_out(name: str, reasons: dict[str, str]) -> None:
    """A real such place: inside a container, whose root has few capabilities, and whose /proc has masks."""
    here = Path(__file__).resolve().parent
    shown = sorted({sys.prefix, str(TOP), str(Path(r2d2.__file__).parent)})
    with r2d2.Container("host", mounts=[f"{path}:{path}:ro" for path in shown], env={"HOME": "/tmp"}) as box:
        done = box.run([sys.executable, "-c", INSIDE, here, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors, left_out = json.loads(done.stdout.splitlines()[-1])
    assert not errors
    for cell, reason in reasons.items():
        assert left_out[cell].startswith(f"left out: {reason} cannot be had here: "), left_out
    assert set(left_out) != {cell.id for cell in read(name).cells}, "the rest goes on"
    assert bool(left_out) == bool(reasons), left_out
