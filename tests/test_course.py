"""`r2d2 course`: copies to work in, judged; and what a cell says that cannot run here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from r2d2 import course, shelf
from r2d2.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("sealed")

R2D2 = (sys.executable, "-m", "r2d2", "course")


def course_(*words: str | os.PathLike[str], cwd: Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*R2D2, *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **keywords
    )


def edit(path: Path, ident: str, source: str) -> None:
    """Writes into a cell of a student's copy."""
    notebook = json.loads(path.read_text())
    (cell,) = [cell for cell in notebook["cells"] if cell["id"] == ident]
    cell["source"] = source
    path.write_text(json.dumps(notebook))


def answer_all(path: Path) -> None:
    """Writes the solutions into the answers."""
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
        exercise, what = shelf.role(cell)
        if what == "solution":
            edit(path, f"answer-{exercise}", "".join(cell["source"]))


def test_list(tmp_path: Path) -> None:
    lines = course_("list", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 15
    assert lines[4].split() == ["04-pids", "4a", "4b", "4c", "4d", "4e", "2", "Process", "ids"]
    (lesson,) = json.loads(course_("list", "--json", "--language", "zh-TW", "4", cwd=tmp_path).stdout)
    assert lesson["title"] == "行程 ID"
    assert lesson["rows"] == ["4a", "4b", "4c", "4d", "4e"]
    assert [each.rows for each in shelf.lessons("zh-TW")] == [each.rows for each in shelf.lessons()]


def test_open_never_overwrites_and_reset_keeps_the_old(tmp_path: Path) -> None:
    done = course_("open", "2", "04-pids", cwd=tmp_path)
    assert done.stdout.splitlines() == ["r2d2-course/02-namespaces.ipynb", "r2d2-course/04-pids.ipynb"]
    copy = tmp_path / "r2d2-course/02-namespaces.ipynb"
    fresh = copy.read_text()
    cells = json.loads(fresh)["cells"]
    assert not any(cell.get("outputs") for cell in cells), "what comes out is to be seen for oneself"
    assert any(shelf.role(cell)[1] == "solution" for cell in cells)
    copy.write_text("mine")
    assert "02-namespaces.ipynb (was there, and stays)" in course_("open", "2", cwd=tmp_path).stdout
    assert copy.read_text() == "mine"
    assert "the old one is 02-namespaces.1.ipynb" in course_("reset", "2", cwd=tmp_path).stdout
    assert copy.read_text() == fresh
    assert copy.with_name("02-namespaces.1.ipynb").read_text() == "mine"
    course_("reset", "2", cwd=tmp_path)
    assert copy.with_name("02-namespaces.2.ipynb").read_text() == fresh, "nothing is lost the second time"
    refused = course_("reset", cwd=tmp_path)
    assert refused.returncode == 125, "not all at once by mistake"
    assert "which lessons?" in refused.stderr


def test_copies_for_a_class_have_no_solutions(tmp_path: Path) -> None:
    course_("open", "--no-solutions", "--folder", "class", "--language", "zh-TW", cwd=tmp_path)
    copies = sorted((tmp_path / "class").glob("*.ipynb"))
    assert len(copies) == 14
    for copy in copies:
        notebook = json.loads(copy.read_text())
        assert notebook["metadata"]["r2d2"]["language"] == "zh-TW"
        assert not any(shelf.role(cell)[1] == "solution" for cell in notebook["cells"])
        assert "solution" not in str([cell["metadata"].get("tags") for cell in notebook["cells"]])


def test_check_tells_right_from_wrong(tmp_path: Path, sealed: Path) -> None:
    course_("open", "2", "3", cwd=tmp_path)
    folder = tmp_path / "r2d2-course"
    right, wrong = folder / "02-namespaces.ipynb", folder / "03-hostname.ipynb"
    answer_all(right)
    edit(wrong, "answer-names", "def named(names):\n    return []")
    edit(wrong, "check-names", "print('right')")  # an edited check proves nothing
    before = wrong.read_text()
    done = course_("check", "--json", cwd=tmp_path)
    found = {(each["lesson"], each["exercise"]): each for each in json.loads(done.stdout)}
    assert {key: each["status"] for key, each in found.items()} == {
        ("02-namespaces", "parse"): "right",
        ("02-namespaces", "shared"): "right",
        ("03-hostname", "kinds"): "wrong",
        ("03-hostname", "names"): "wrong",
    }
    assert found["03-hostname", "kinds"]["hint"].startswith("sethostname(2) needs CAP_SYS_ADMIN")
    assert "sh(f'hostname" in found["03-hostname", "names"]["hint"]
    assert done.returncode == 1
    assert wrong.read_text() == before, "a copy is only read"
    table = course_("check", "2", cwd=tmp_path)
    assert table.returncode == 0
    assert table.stdout.splitlines()[-1] == "2 of 2 right"
    assert table.stdout.splitlines()[1].split() == ["02-namespaces", "parse", "right"]
    assert not list((sealed / "t").iterdir()), "kernels and their directories are gone"


def test_what_a_copy_can_have_become(tmp_path: Path) -> None:
    """A deleted answer, an endless one, a cell that fails: wrong, told, and over in time."""
    (lesson,) = shelf.choose(["3"])
    shelf.copy([lesson], tmp_path)
    copy = tmp_path / "03-hostname.ipynb"
    notebook = json.loads(copy.read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "answer-kinds"]
    copy.write_text(json.dumps(notebook))
    edit(copy, "answer-names", "while True:\n    pass")
    edit(copy, "prediction", "1 / 0")
    patience, shelf.PATIENCE = shelf.PATIENCE, 5
    try:
        outcomes = {each.exercise: each for each in shelf.check(copy)}
    finally:
        shelf.PATIENCE = patience
    assert outcomes["kinds"].status == "wrong"
    assert "NameError" in outcomes["kinds"].hint
    assert outcomes["names"].status == "wrong"
    assert "longer than" in outcomes["names"].hint
    assert outcomes["prediction"].status == "error"
    assert "ZeroDivisionError" in outcomes["prediction"].hint


def test_mistakes_are_told(tmp_path: Path) -> None:
    nothing = course_("check", cwd=tmp_path)
    assert nothing.returncode == 125
    assert "r2d2 course open" in nothing.stderr
    assert "there is none of this name" in course_("open", "99", cwd=tmp_path).stderr
    (tmp_path / "04-pids.ipynb").write_text("no notebook")
    done = course_("check", "04-pids.ipynb", cwd=tmp_path)
    assert done.returncode == 125
    assert "04-pids.ipynb: no notebook" in done.stderr
    assert "missing.ipynb" not in done.stderr
    absent = course_("check", "./gone/04-pids.ipynb", cwd=tmp_path)
    assert absent.returncode == 125
    assert "gone/04-pids.ipynb" in absent.stderr
    with pytest.raises(SpecError):
        shelf.lessons("zh-CN")


def test_without_its_extra_the_remedy_is_named(tmp_path: Path) -> None:
    course_("open", "2", cwd=tmp_path)
    code = (
        "import sys; sys.modules['nbclient'] = None; from r2d2.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "course", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert "r2d2-containers[course]" in done.stderr


# What the notebooks themselves use


def run_cells(tmp_path: Path, *cells: str, path: str | None = None) -> str:
    """Runs cells in an IPython of their own: what they print."""
    code = textwrap.dedent("""
        import sys
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance(history_length=0, HistoryManager={"enabled": False})
        for cell in sys.argv[1:]:
            if not shell.run_cell(cell).success:
                sys.exit(1)
    """)
    env = {**os.environ, **({} if path is None else {"PATH": path})}
    done = subprocess.run(
        [sys.executable, "-c", code, *cells],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BEGIN = "from r2d2 import course\nwork = course.begin()"


def test_begin_makes_a_place_that_goes_with_the_kernel(tmp_path: Path, sealed: Path) -> None:
    done = run_cells(
        tmp_path,
        BEGIN,
        "import os, sys; first = os.getcwd(); open('file', 'w').close(); print(first == str(work))",
        "os.makedirs('sealed/inner'); os.chmod('sealed', 0)",
        BEGIN,
        "print(os.path.exists(first), os.listdir())",
        # A forked child that ends as a Python does; IPython empties its namespace then.
        "def end(leave=os._exit):\n    import atexit\n    atexit._run_exitfuncs()\n    leave(0)",
        "pid = os.fork()\nend() if pid == 0 else os.waitpid(pid, 0)\nprint(pid > 0)",
        "print(os.path.isdir(work))",
    )
    assert done.split() == ["ready", "True", "ready", "False", "[]", "True", "True"]
    assert not list((sealed / "t").iterdir())


def test_a_cell_that_cannot_run_says_why(tmp_path: Path) -> None:
    """A real machine without busybox: a PATH that does not lead to it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "true", "ps"):
        (programs / name).symlink_to(shutil.which(name) or "")
    busybox = "# needs: busybox\nprint('it ran')"
    both = "# needs: ps, busybox\nprint('it ran')"
    there = "# needs: ps\nprint('ps is there')"
    later = "print('one')\n# needs: busybox"
    printed = run_cells(tmp_path, BEGIN, busybox, both, there, later, path=str(programs)).splitlines()
    assert printed[1] == (
        "left out: busybox cannot be had here: there is no busybox on this machine "
        "(hint: install busybox-static, or busybox)"
    )
    assert printed[2] == printed[1]
    assert printed[3:] == ["ps is there", "one"], "only the first line says what a cell needs"


def test_every_need_of_a_notebook_is_known() -> None:
    used = set()
    for lesson in shelf.lessons():
        for cell in json.loads(lesson.path.read_text())["cells"]:
            if cell["cell_type"] == "code" and (match := course._COMMENT.fullmatch(cell["source"][0])):
                used |= set(match[1].split(", "))
    assert used == set(course.NEEDS) - {"containers"}


def test_what_this_machine_can_do_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    course.missing.cache_clear()
    assert course.missing("containers") is None
    assert course.missing("network") is None
    monkeypatch.setenv("PATH", "/nonexistent")
    course.missing.cache_clear()
    reason = course.missing("ip")
    assert reason is not None
    assert "iproute2" in reason
    course.missing.cache_clear()
