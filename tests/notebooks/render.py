"""Runs the notebooks and stores what came out in both languages, for those who only read them.

    python tests/notebooks/render.py [NAME...] [--all]

A stored output stays as it is while it tells the same: figures may differ, words may not. So a second run
changes nothing; ``--all`` replaces them all, for drawings above all, of which only the presence is compared.
Run it as an ordinary user, on a machine that leaves no cell out (a delegated cgroup, busybox, iproute2,
procps), with a host name that may be seen. Answers, checks and solutions have no stored outputs. It also
brings the table in ``notebooks/README.md`` up to date.
"""

from __future__ import annotations

import json
import sys
import tempfile

import nbformat
from _lessons import LESSONS, README, clean, differences, path_of, read, solved, with_table

from r2d2 import shelf


def main(arguments: list[str]) -> int:
    everything = "--all" in arguments
    left_out = 0
    for name in [word for word in arguments if not word.startswith("-")] or LESSONS:
        stored = read(name)
        fresh = solved(stored)
        with tempfile.TemporaryDirectory() as directory:
            execution = shelf.execute(fresh, directory)
        if execution.errors:
            print(f"{name}: {execution.errors}", file=sys.stderr)
            return 1
        changed = {line.partition(":")[0] for line in differences(stored, fresh)}
        now = {cell.id: cell for cell in fresh.cells}
        outputs = {}
        for cell in stored.cells:
            if cell.cell_type != "code" or shelf.role(cell)[0]:
                continue
            if reason := shelf.left_out(now[cell.id]):
                print(f"{name}: {cell.id}: {reason}", file=sys.stderr)
                left_out += 1
            elif everything or cell.id in changed:
                outputs[cell.id] = clean(now[cell.id].outputs)
        for language in shelf.LANGUAGES:
            _store(name, language, outputs)
        print(f"{name}: {len(outputs)} cells changed")
    README.write_text(with_table(README.read_text()))
    return 1 if left_out else 0


def _store(name: str, language: str, outputs: dict[str, list[nbformat.NotebookNode]]) -> None:
    notebook = read(name, language)
    number = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        if shelf.role(cell)[0]:
            cell.outputs = []
            continue
        cell.outputs = outputs.get(cell.id, cell.outputs)
        number += 1
        cell.execution_count = number
    text = nbformat.writes(notebook, version=4)
    # As ruff's formatter writes notebooks, so that the two do not undo each other's work.
    text = json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path_of(name, language).write_text(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
