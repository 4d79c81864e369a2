"""Trees: processes as both sides see them, and mounts."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from r2d2.errors import setup_error

from . import facts
from .canvas import BLUE, GREEN, ORANGE, PURPLE, Canvas, Drawing

if TYPE_CHECKING:
    from .facts import MountRow

_WIDE = 900
_ROW = 30
#: Rows of a picture; the text has them all.
_MOST = 60


def processes(target: Any) -> Drawing:
    """See `r2d2.drawings.processes`."""
    of = facts.subject(target)
    every = {int(name): facts.status(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    every = {pid: status for pid, status in every.items() if status.get("NSpid")}
    if of.pid not in every:
        raise setup_error(errno.ENOENT, os.strerror(errno.ENOENT), f"/proc/{of.pid}")
    rows = _rows(of.pid, every)
    depth = len(every[of.pid]["NSpid"].split())
    separate = depth > len(every[os.getpid()]["NSpid"].split())
    first = next(i for i, (_, _, within) in enumerate(rows) if within)

    canvas = Canvas(_WIDE, f"Processes of {of.name}, from both sides")
    canvas.text(14, 20, "seen from the host", bold=True, size=14)
    canvas.text(514, 20, f"seen from inside {of.name}", bold=True, size=14, room=370)
    top = 36 + first * _ROW + 12
    high = (min(len(rows), _MOST) - first) * _ROW + 8
    canvas.rect(2, top - 6, 436, high, color=BLUE, fill=0.07, dashed=True)
    canvas.rect(502, top - 6, 396, high, color=BLUE, fill=0.07)
    lines = ["  host pid   pid inside   command"]
    left: dict[int, float] = {}
    right: dict[int, float] = {}
    for i, (pid, indent, within) in enumerate(rows):
        y = 36 + i * _ROW + (12 if i >= first else 0)
        words = facts.command(pid)
        numbers = every[pid]["NSpid"].split()
        own = numbers[depth - 1] if (within or not separate) and len(numbers) >= depth else None
        lines.append(f"  {pid:>8}   {own or '-':>10}   {'  ' * indent}{words}")
        if i >= _MOST:
            continue
        _node(canvas, 14, y, indent, str(pid), words, left, 424)
        if own is None:
            canvas.text(514, y + 17, "not to be seen: no pid in this namespace", size=12, faint=True)
            continue
        canvas.line(444, y + 13, 496, y + 13, color=BLUE, dashed=True)
        _node(canvas, 514, y, max(0, indent - (first if separate else 0)), own, words, right, 890)
    words = (
        "One process, two pids: each PID namespace counts its own, from 1 (pid_namespaces(7))."
        if separate
        else "It is in the PID namespace of this process: the same pids on both sides."
    )
    more = f" {len(rows) - _MOST} more are not drawn." if len(rows) > _MOST else ""
    canvas.text(2, canvas.high + 22, words + more, size=11.5, faint=True)
    return canvas.drawing("\n".join(lines))


def _rows(pid: int, every: dict[int, dict[str, str]]) -> list[tuple[int, int, bool]]:
    """Its parent, it, and its descendants: pid, indentation, whether it belongs to what is drawn."""
    children: dict[int, list[int]] = {}
    for each, status in sorted(every.items()):
        children.setdefault(int(status["PPid"]), []).append(each)
    parent = int(every[pid]["PPid"])
    rows = [(parent, 0, False)] if parent in every else []
    todo = [(pid, len(rows))]
    seen = {parent}
    while todo:
        each, indent = todo.pop()
        if each not in seen:
            seen.add(each)
            rows.append((each, indent, True))
            todo += [(child, indent + 1) for child in reversed(children.get(each, []))]
    # Those that joined by setns(2) have their parents outside.
    return rows + [(each, 0, True) for each in sorted(_inside(pid, every) - seen)]


def _inside(pid: int, every: dict[int, dict[str, str]]) -> set[int]:
    """The processes of its PID namespace, as far as the caller may look."""
    found: set[int] = set()
    try:
        wanted = os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return found
    if wanted == os.readlink("/proc/self/ns/pid"):
        return found
    for each in every:
        try:
            if os.readlink(f"/proc/{each}/ns/pid") == wanted:
                found.add(each)
        except OSError:
            continue
    return found


def _node(
    canvas: Canvas,
    left: float,
    y: float,
    indent: int,
    number: str,
    words: str,
    stems: dict[int, float],
    right: float,
) -> None:
    """One row of a tree: its branch, the pid in a box, the command."""
    x = left + min(indent, 6) * 22
    _branch(canvas, x, y + 13, indent, stems, y + 24)
    wide = 14 + 8 * len(number)
    canvas.rect(x, y + 2, wide, 22, fill=0.06, radius=5, faint=True)
    canvas.text(x + wide / 2, y + 17.5, number, mono=True, size=12.5, anchor="middle", bold=number == "1")
    canvas.text(x + wide + 8, y + 17.5, words, mono=True, size=12.5, room=right - x - wide - 8)


def _branch(canvas: Canvas, x: float, y: float, indent: int, stems: dict[int, float], foot: float) -> None:
    """The line from a parent, or from its last child, to a row; ``stems``: where the next one begins."""
    if indent and indent <= 6 and indent - 1 in stems:
        canvas.path(f"M{x - 12:g} {stems[indent - 1]:g}V{y:g}H{x - 1:g}", faint=True)
        stems[indent - 1] = y
    stems[indent] = foot


_KINDS = {
    "overlay": BLUE, "tmpfs": GREEN, "ramfs": GREEN, "proc": PURPLE, "sysfs": PURPLE, "cgroup2": PURPLE,
    "cgroup": PURPLE, "devpts": ORANGE, "devtmpfs": ORANGE, "mqueue": PURPLE,
}  # fmt: skip


def mounts(target: Any) -> Drawing:
    """See `r2d2.drawings.mounts`."""
    of = facts.subject(target)
    table = facts.mount_table(of.pid)
    known = {row.number for row in table}
    children: dict[int, list[MountRow]] = {}
    tops = []
    for row in table:
        if row.parent in known and row.parent != row.number:
            children.setdefault(row.parent, []).append(row)
        else:
            tops.append(row)
    rows: list[tuple[int, list[MountRow]]] = []
    todo = [(0, [row]) for row in reversed(tops)]
    while todo:
        indent, group = todo.pop()
        rows.append((indent, group))
        if len(group) == 1:
            todo += [
                (indent + 1, each) for each in reversed(_groups(children.get(group[0].number, []), children))
            ]

    canvas = Canvas(_WIDE, f"Mounts of {of.name}")
    canvas.text(2, 20, "mount point", bold=True)
    canvas.text(440, 20, "type", bold=True)
    canvas.text(534, 20, "writes", bold=True)
    canvas.text(604, 20, "what is seen there", bold=True)
    canvas.line(0, 29, _WIDE, 29, faint=True)
    above: dict[int, float] = {}
    for i, (indent, group) in enumerate(rows):
        row = group[0]
        y = 34 + i * 27
        x = 2 + min(indent, 6) * 22
        _branch(canvas, x - 1, y + 13, indent, above, y + 22)
        color = _KINDS.get(row.fstype, "currentColor")
        points = ", ".join(each.point for each in group)
        shown = points if len(group) == 1 else f"{row.point} and {len(group) - 1} more"
        canvas.text(
            x, y + 17.5, shown, mono=True, size=12.5, room=430 - x, full=points if len(group) > 1 else None
        )
        canvas.rect(440, y + 3, 80, 20, color=color, fill=0.16, radius=5)
        canvas.text(480, y + 17, row.fstype, size=11.5, mono=True, anchor="middle", room=76)
        canvas.text(534, y + 17.5, "refused" if row.readonly else "yes", size=12, faint=row.readonly)
        canvas.text(604, y + 17.5, _seen(row, group), size=12, mono=True, faint=True, room=_WIDE - 604)
    canvas.text(
        2,
        canvas.high + 20,
        f"{len(table)} mounts in this mount namespace; a row may stand for several of one kind.",
        size=11.5,
        faint=True,
    )
    indents: dict[int, int] = {}
    lines = []
    for row in table:
        indents[row.number] = indents.get(row.parent, -1) + 1
        flags = "ro" if row.readonly else "rw"
        lines.append(
            f"{'  ' * indents[row.number]}{row.point}  {row.fstype} {flags} {_seen(row, [row])}".rstrip()
        )
    return canvas.drawing("\n".join(lines))


def _groups(rows: list[MountRow], children: dict[int, list[MountRow]]) -> list[list[MountRow]]:
    """Neighbours in the tree that are alike, three or more, as one; nothing is mounted on those."""
    alike: dict[object, list[MountRow]] = {}
    for row in rows:
        lone = row.number in children or row.fstype == "overlay"
        key = row.number if lone else (row.fstype, row.readonly, row.source)
        alike.setdefault(key, []).append(row)
    found: list[list[MountRow]] = []
    for group in alike.values():
        found += [group] if len(group) > 2 else [[row] for row in group]
    return sorted(found, key=lambda group: group[0].number)


def _seen(row: MountRow, group: list[MountRow]) -> str:
    if row.fstype == "overlay":
        options = [option.partition("=") for option in row.super_options]
        lowers = [value for key, _, value in options if key in {"lowerdir", "lowerdir+"}]
        uppers = [value for key, _, value in options if key == "upperdir"]
        return f"{uppers[0] if uppers else 'nothing'} over {', '.join(lowers)}"
    if len(group) > 1 and any(each.root != row.root for each in group):
        return f"{len(group)} of {row.source}"
    return row.source if row.root == "/" else f"{row.root} of {row.source}"
