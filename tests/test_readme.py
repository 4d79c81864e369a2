"""README's examples do what it says they do.

Each ``python`` block runs in an interpreter of its own, each ``sh`` block in sh(1), both in an empty
directory. A ``text`` block right after one of them is its output; ``...`` in it stands for anything,
and on a line of its own for any number of lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


class Block(NamedTuple):
    line: int
    language: str
    text: str
    output: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks, each program with its output."""
    found: list[Block] = []
    end = -2
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        language, body = match.groups()
        if language == "text" and found and not text[end : match.start()].strip():
            found[-1] = found[-1]._replace(output=body)
        else:
            found.append(Block(line, language, body, None))
        end = match.end()
    return found


def pattern(output: str) -> str:
    """A regular expression for what README shows."""
    lines = output.splitlines()
    return "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n" for line in lines
    )


START, *EXAMPLES = [block for block in blocks(README.read_text()) if block.language in ("python", "sh")]


def test_the_start_is_two_commands() -> None:
    """`.ci/run` runs exactly these two, on a copy of the checkout."""
    first, second = START.text.splitlines()
    assert "pip install ." in first
    assert "pytest" in second


@pytest.mark.parametrize("block", [pytest.param(block, id=f"line{block.line}") for block in EXAMPLES])
def test_example(block: Block, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c"] if block.language == "python" else ["sh", "-euc"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, block.text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / ".cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if block.output is not None:
        assert re.fullmatch(pattern(block.output), done.stdout), (
            f"README says\n{block.output}\nbut it printed\n{done.stdout}{done.stderr}"
        )
