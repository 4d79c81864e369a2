"""The steps of a start on the axis of time; what control groups count."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2.errors import SpecError
from r2d2.explain import _time

from .canvas import BLUE, ORANGE, Canvas, Drawing

if TYPE_CHECKING:
    from r2d2.explain import ExplainedStep, Explanation

_WIDE = 900
_ROW = 24
#: A longer list is drawn with its file system calls put together.
_LONG = 30
_FILES = frozenset({
    "mkdirat", "symlinkat", "openat", "write", "open_tree", "mount_setattr", "move_mount", "fsopen",
    "fsconfig", "fsmount",
})  # fmt: skip


class _Bar(NamedTuple):
    """One row: steps ``first`` to ``last``."""

    first: int
    last: int
    title: str
    calls: str
    who: str
    took: int | None
    skipped: bool
    why: str


def steps(target: Any) -> Drawing:
    """See `r2d2.drawings.steps`."""
    from r2d2.explain import Explanation

    if isinstance(target, Explanation):
        explanation = target
    elif callable(getattr(target, "explain", None)):
        explanation = target.explain()
    else:
        raise SpecError(f"{target!r}: a Container, an Overlay or an Explanation")
    bars = _bars(explanation)
    total = explanation.total
    timed = total is not None
    said = f"{len(explanation)} steps" + (f" in {_time(total)}" if total is not None else ", none taken yet")
    canvas = Canvas(_WIDE, f"Start of {explanation.name}: {said}")
    chart = 600 if timed else _WIDE
    room = chart - 72 - (16 if timed else 330)
    canvas.text(48, 20, f"{explanation.name}: {said}", bold=True, size=14, room=540)
    if timed:
        canvas.text(chart, 20, "0", size=11.5, faint=True)
        canvas.text(_WIDE - 66, 20, _time(total or 0), size=11.5, faint=True, anchor="end")
    canvas.line(0, 30, _WIDE, 30, faint=True)
    began = 0
    scale = (_WIDE - 66 - chart) / max(total or 1, 1)
    for i, bar in enumerate(bars):
        y = 34 + i * _ROW
        number = str(bar.first) if bar.first == bar.last else f"{bar.first}\u2013{bar.last}"
        canvas.text(58, y + 17, number, size=11, mono=True, faint=True, anchor="end")
        color = BLUE if bar.who == "caller" else ORANGE
        canvas.rect(64, y + 8, 8, 8, color=color, fill=0.7, radius=4)
        canvas.text(80, y + 17, bar.title, size=12.5, room=room - 10, full=f"{bar.title}: {bar.why}")
        if not timed:
            canvas.text(_WIDE, y + 17, bar.calls, size=11, mono=True, faint=True, anchor="end", room=330)
            continue
        took = bar.took or 0
        canvas.rect(
            chart + began * scale, y + 6, max(2.0, took * scale), 13, color=color, fill=0.55, radius=2
        )
        words = "skipped" if bar.skipped else _time(took)
        canvas.text(_WIDE, y + 17, words, size=11, mono=True, anchor="end", faint=took * 50 < (total or 0))
        began += took
    y = 34 + len(bars) * _ROW + 20
    canvas.rect(64, y - 9, 8, 8, color=BLUE, fill=0.7, radius=4)
    canvas.text(80, y, "the calling process", size=11.5, faint=True)
    canvas.rect(204, y - 9, 8, 8, color=ORANGE, fill=0.7, radius=4)
    canvas.text(220, y, "the child that becomes PID 1", size=11.5, faint=True)
    return canvas.drawing(str(explanation))


def _bars(explanation: Explanation) -> list[_Bar]:
    groups: list[list[ExplainedStep]] = []
    last = None
    for step in explanation:
        purpose = _purpose(step) if len(explanation) > _LONG else None
        if purpose is None or purpose != last:
            groups.append([])
        groups[-1].append(step)
        last = purpose
    return [_bar(group) for group in groups]


def _purpose(step: ExplainedStep) -> str | None:
    """What a step that only handles files and mounts is for; None for every other."""
    if step.who != "child" or not set(step.syscalls.split(", ")) <= _FILES or " all mounts " in step.title:
        return None
    if " new root" in step.title or "within reach" in step.title:
        return None
    if re.search(r"ROOT/(proc|sys)\b", step.title):
        return "mount and mask /proc and /sys"
    in_dev = re.search(r"ROOT/dev\b|^(link|write|make directory) \S*/dev/", step.title)
    return "devices in /dev" if in_dev else "build the root directory"


def _bar(group: list[ExplainedStep]) -> _Bar:
    step = group[0]
    took = [each.took for each in group if each.took is not None]
    title, why = step.title, step.why
    if len(group) > 1:
        title = f"{_purpose(step)}: {_count(group)}"
        why = "; ".join(each.title for each in group[:12]) + ("; …" if len(group) > 12 else "")
    calls = list(dict.fromkeys(call for each in group for call in each.syscalls.split(", ")))
    return _Bar(
        step.number, group[-1].number, title, ", ".join(calls), step.who, sum(took) if took else None,
        len(group) == 1 and step.errno is not None, why,
    )  # fmt: skip


def _count(group: list[ExplainedStep]) -> str:
    nouns = {
        "make directory": "directories",
        "link": "links",
        "write": "files",
        "bind": "binds",
        "mount": "mounts",
    }
    counts: dict[str, int] = {}
    for step in group:
        noun = next((noun for verb, noun in nouns.items() if step.title.startswith(verb)), "others")
        counts[noun] = counts.get(noun, 0) + 1
    single = {"directories": "directory"}
    return ", ".join(
        f"{count} {noun if count > 1 else single.get(noun, noun.removesuffix('s'))}"
        for noun, count in counts.items()
    )
