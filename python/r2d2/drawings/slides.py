"""An overlay as slides laid on each other: what is seen from above, and in which layer it lies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2.errors import SpecError

from .canvas import BLUE, GREEN, ORANGE, RED, Canvas, Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r2d2.overlay import Change

_LABEL = 172
_SLIDE = 74
_GAP = 26
_MOST = 6
_MARKS = {
    "added": "new here",
    "modified": "copied up and changed",
    "metadata": "copied up, metadata changed",
    "deleted": "whiteout: hides the one below",
    "renamed": "renamed",
}


class _Stack(NamedTuple):
    """What is drawn: the layers' names and directories, and the changes."""

    name: str
    upper: str | None
    lowers: list[tuple[str, str | None]]
    changes: list[Change]


class _Column(NamedTuple):
    """One file. ``level``: the lower layer that has it, the topmost one; None if none has."""

    path: str
    kind: str
    level: int | None
    note: str


def overlay(target: Any) -> Drawing:
    """See `r2d2.drawings.overlay`."""
    stack = _stack(target)
    columns = _columns(stack)
    left_out = len(stack.changes) - sum(column.kind != "same" for column in columns)
    lowers = stack.lowers[:4]
    canvas = Canvas(
        _LABEL + 30 + max(3, len(columns)) * 112 + 12, f"Overlay {stack.name}: {len(stack.changes)} changes"
    )
    labels = [("merged", "what programs see")]
    if stack.upper is not None:
        labels.append(("upper", stack.upper))
    labels += [(f"lower {i + 1}" if len(lowers) > 1 else "lower", name) for i, (name, _) in enumerate(lowers)]
    tops = [34 + i * (_SLIDE + _GAP) for i in range(len(labels))]
    for i, ((label, name), y) in enumerate(zip(labels, tops, strict=True)):
        color = BLUE if i == 0 else GREEN if label == "upper" else "currentColor"
        _slide(canvas, y, color, dashed=i == 0)
        canvas.text(2, y + 32, label, bold=True, size=14)
        canvas.text(2, y + 51, name, size=11.5, faint=True, room=_LABEL - 22, mono=name.startswith("/"))
    first = 1 if stack.upper is None else 2
    for i, column in enumerate(columns):
        x = _LABEL + 28 + i * 112
        canvas.text(x + 46, 20, f"/{column.path}", size=11.5, mono=True, anchor="middle", room=108)
        _column(canvas, x, tops, first, column, stack.upper is not None)
    y = tops[-1] + _SLIDE + 22
    words = []
    if any(column.kind in {"modified", "metadata"} for column in columns):
        words.append("↑ copy-up: the first write copies the file into the upper layer.")
    if any(column.kind in {"deleted", "renamed"} for column in columns):
        words.append("✕ whiteout: a mark in the upper layer that hides what is below.")
    if stack.upper is not None:
        words.append("The lower layers never change.")
    if len(stack.lowers) > len(lowers):
        words.append(f"{len(stack.lowers) - len(lowers)} more lower layers are not drawn.")
    if left_out:
        words.append(f"{left_out} more {'change is' if left_out == 1 else 'changes are'} not drawn.")
    for i, each in enumerate(words):
        canvas.text(2, y + i * 18, each, size=11.5, faint=True)
    return canvas.drawing(_words(stack))


def _stack(target: Any) -> _Stack:
    from r2d2.container import Container
    from r2d2.overlay import Overlay

    if isinstance(target, Overlay):
        upper = None if target.upper is None else str(target.upper)
        lowers: list[tuple[str, str | None]] = [(str(path), str(path)) for path in target.lower]
        return _Stack(os.path.basename(upper) if upper else "read-only", upper, lowers, target.diff())
    if isinstance(target, Container):
        image = target.image
        upper = target.spec.upper or f"of {target.name} alone"
        lowers = [(layer, layer) for layer in image.layers]
        if image.kind == "host":
            lowers = [("this machine's own tree", "/")]
        elif not lowers:
            lowers = [("nothing", None)]
        return _Stack(target.name, upper, lowers, target.diff())
    raise SpecError(f"{target!r}: a Container or an Overlay")


def _columns(stack: _Stack) -> list[_Column]:
    """Some changes, of each kind first, and what they leave alone beside them."""
    chosen: list[Change] = []
    files = [change for change in stack.changes if "dir" not in _types(change)]
    for kind in ("added", "modified", "deleted", "renamed", "metadata"):
        chosen += [change for change in [*files, *stack.changes] if change.kind == kind][:1]
    most = _MOST - 1
    for change in [*files, *stack.changes]:
        if change not in chosen and len(chosen) < most:
            chosen.append(change)
    chosen = sorted(chosen[:most], key=lambda change: os.fsencode(change.path))
    columns = []
    for change in chosen:
        at = change.renamed_from or change.path
        below = None if change.kind == "added" else _level(stack, at)
        if change.kind in {"modified", "metadata"} and below is None:
            below = 0  # a file of r2d2's own in the lower layer, such as /etc/hosts
        note = (
            f"was {change.renamed_from}"
            if change.renamed_from
            else "hides all below"
            if change.opaque
            else ""
        )
        kind = "opaque" if change.opaque else change.kind
        columns.append(_Column(change.path, kind, below, note))
    columns += [
        _Column(path, "same", _level(stack, path), "") for path in _untouched(stack)[: _MOST - len(columns)]
    ]
    return columns


def _types(change: Change) -> set[str]:
    """What it was and is: ``dir``, ``file`` and so on."""
    return {info.type for info in (change.before, change.after) if info is not None}


def _level(stack: _Stack, path: str) -> int | None:
    for i, (_, directory) in enumerate(stack.lowers):
        if directory is not None and os.path.lexists(os.path.join(directory, path)):
            return i
    return None


def _untouched(stack: _Stack) -> list[str]:
    """Up to two files beside the changed ones, or at the top, which only a lower layer has."""
    changed = {change.path for change in stack.changes} | {change.renamed_from for change in stack.changes}
    places = [os.path.dirname(path) for path in sorted(filter(None, changed))] + [""]
    found: list[str] = []
    for place in dict.fromkeys(places):
        for _, directory in stack.lowers:
            try:
                entries = sorted(
                    os.scandir(os.path.join(directory or "/nonexistent", place)),
                    key=lambda each: (each.name.startswith("."), each.name),
                )
            except OSError:
                continue
            for entry in entries:
                path = os.path.join(place, entry.name)
                if entry.is_file(follow_symlinks=False) and path not in changed and path not in found:
                    found.append(path)
                    if len(found) == 2:
                        return found
    return found


def _slide(canvas: Canvas, y: float, color: str, *, dashed: bool) -> None:
    """A sheet in perspective."""
    left, right = _LABEL, canvas.wide - 2
    canvas.polygon(
        [(left + 20, y), (right, y), (right - 20, y + _SLIDE), (left, y + _SLIDE)],
        color=color, fill=0.08, dashed=dashed,
    )  # fmt: skip


def _column(
    canvas: Canvas, x: float, tops: Sequence[float], first: int, column: _Column, upper: bool
) -> None:
    """One file in all layers, from the lowest up, and the line of sight to it."""
    middle = x + 46
    level = None if column.level is None else min(column.level, len(tops) - first - 1)
    changed = column.kind != "same"
    hidden = changed and column.kind != "added"
    if level is not None:
        y = tops[first + level]
        _file(canvas, x, y, "old content" if column.kind == "modified" else "as it is", faint=hidden)
        if not changed:
            canvas.line(middle, tops[0] + 52, middle, y + 22, faint=True, dashed=True)
    if upper and changed:
        y = tops[1]
        if column.kind == "deleted":
            canvas.text(middle, y + 44, "✕", size=24, anchor="middle", color=RED, bold=True)
            canvas.text(middle, y + 62, "whiteout", size=11, anchor="middle", faint=True)
        else:
            words = {
                "added": "new",
                "modified": "new content",
                "metadata": "metadata",
                "renamed": "renamed",
                "opaque": "replaced",
            }
            _file(canvas, x, y, words.get(column.kind, column.kind), color=ORANGE, note=column.note)
            canvas.line(middle, tops[0] + 52, middle, y + 22, faint=True, dashed=True)
        if level is not None and column.kind in {"modified", "metadata", "renamed"}:
            canvas.arrow(
                middle, tops[first + level] + 20, middle, y + (72 if column.note else 56), color=ORANGE
            )
            canvas.text(middle + 7, y + _SLIDE + 16, "copy-up", size=11, faint=True, room=60)
    y = tops[0]
    if column.kind == "deleted":
        canvas.rect(x + 4, y + 22, 84, 30, dashed=True, faint=True)
        canvas.text(middle, y + 41, "gone", size=11.5, anchor="middle", faint=True)
    else:
        color = ORANGE if changed else "currentColor"
        words = {"same": "as below", "opaque": "replaced"}
        _file(canvas, x, y, words.get(column.kind, column.kind), color=color)


def _file(
    canvas: Canvas,
    x: float,
    y: float,
    words: str,
    *,
    color: str = "currentColor",
    faint: bool = False,
    note: str = "",
) -> None:
    canvas.rect(x + 4, y + 22, 84, 30, color=color, fill=0.05 if faint else 0.16, faint=faint)
    canvas.text(x + 46, y + 41, words, size=11.5, anchor="middle", faint=faint, room=82)
    if note:
        canvas.text(x + 46, y + 64, note, size=10.5, anchor="middle", faint=True, room=100)


def _words(stack: _Stack) -> str:
    lines = ["merged: what programs see"]
    if stack.upper is not None:
        lines.append(f"upper: {stack.upper}")
        for change in stack.changes:
            origin = f" from /{change.renamed_from}" if change.renamed_from else ""
            lines.append(f"  /{change.path}  {_MARKS[change.kind]}{origin}")
        if not stack.changes:
            lines.append("  nothing: no change yet")
    for i, (name, _) in enumerate(stack.lowers):
        lines.append(f"lower {i + 1}: {name}")
    return "\n".join(lines)
