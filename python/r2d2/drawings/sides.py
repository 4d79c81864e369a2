"""Namespaces of the host and of containers, side by side; ids inside and outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from r2d2 import namespace, surroundings
from r2d2.errors import SpecError

from . import facts
from .canvas import BLUE, GREEN, ORANGE, PURPLE, Canvas, Drawing, shorten

if TYPE_CHECKING:
    from .facts import Subject

_COLORS = (BLUE, ORANGE, GREEN, PURPLE)
_LABEL = 250
_WIDE = 900


def namespaces(targets: tuple[Any, ...]) -> Drawing:
    """See `r2d2.drawings.namespaces`."""
    found = [facts.subject(target) for target in targets]
    if len(found) > 5:
        raise SpecError(f"{len(found)} columns: at most 5 beside this process fit")
    columns = [facts.Subject(os.getpid(), "this process", None)]
    columns += [each for each in found if each.pid != columns[0].pid]
    tables = [namespace.inspect(each.pid) for each in columns]
    kinds = [kind for kind in namespace.KINDS if any(namespace._link(kind) in table for table in tables)]

    step = min((_WIDE - _LABEL) / len(columns), 210)
    cell = step - 18
    canvas = Canvas(_LABEL + step * len(columns), f"Namespaces: {', '.join(each.name for each in columns)}")
    canvas.text(2, 24, "namespace", bold=True)
    canvas.text(2, 42, "what it isolates", size=11.5, faint=True)
    for i, each in enumerate(columns):
        x = _LABEL + i * step
        canvas.text(x + cell / 2, 24, each.name, bold=True, anchor="middle", room=cell)
        canvas.text(x + cell / 2, 42, f"pid {each.pid}", size=11.5, faint=True, anchor="middle", mono=True)
    said = ["namespace  " + "  ".join(f"{shorten(each.name, 14, 1, mono=True):<24}" for each in columns)]
    for row, kind in enumerate(kinds):
        y = 58 + row * 50
        canvas.text(2, y + 18, kind, bold=True, mono=True)
        canvas.text(2, y + 34, namespace.KINDS[kind], size=11, faint=True, room=_LABEL - 14)
        inodes = [table.get(namespace._link(kind)) for table in tables]
        colors = _colors(inodes)
        words = []
        for i, inode in enumerate(inodes):
            x = _LABEL + i * step
            if i and inode == inodes[i - 1] and inode is not None:
                canvas.line(x - 18, y + 21, x, y + 21, color=colors[i], line=3)
            own = colors[i] != "currentColor"
            canvas.rect(x, y, cell, 42, color=colors[i], fill=0.16 if own else 0.05, faint=not own)
            fact = _fact(kind, columns[i]) if inode is not None else "this kernel has none"
            canvas.text(
                x + cell / 2,
                y + (18 if fact else 26),
                inode or "—",
                mono=True,
                anchor="middle",
                room=cell - 8,
            )
            canvas.text(x + cell / 2, y + 34, fact, size=11, faint=True, anchor="middle", room=cell - 10)
            same = "" if i == 0 else " own" if inode not in inodes[:i] else " shared"
            words.append(f"{f'{inode}{same}' + (f' ({fact})' if fact else ''):<24}")
        said.append(f"{kind:<9}  " + "  ".join(words))
    foot = 58 + len(kinds) * 50 + 16
    canvas.text(
        2, foot, "Same inode of /proc/PID/ns/KIND: the same namespace. In colour: one of its own.", size=11.5
    )
    return canvas.drawing("\n".join(said))


def _colors(inodes: list[int | None]) -> list[str]:
    """The host's has the page's colour, each other one its own."""
    known: dict[int | None, str] = {inodes[0]: "currentColor", None: "currentColor"}
    for inode in inodes:
        if inode not in known:
            known[inode] = _COLORS[(len(known) - 2) % len(_COLORS)]
    return [known[inode] for inode in inodes]


def _fact(kind: str, of: Subject) -> str:
    """What one sees in it, where that can be told from outside."""
    look = {"user": _root, "pid": _pid, "net": _devices, "mount": _mounts, "uts": _hostname}.get(kind)
    return "" if look is None else look(of)


def _root(of: Subject) -> str:
    rows = facts.id_map(of.pid, "uid")
    if rows == [(0, 0, 2**32 - 1)]:
        return "every id is itself"
    return next((f"root is uid {outer}" for first, outer, _ in rows if first == 0), "")


def _pid(of: Subject) -> str:
    numbers = facts.status(of.pid).get("NSpid", "").split()
    return f"it is pid {numbers[-1]}" if numbers else ""


def _devices(of: Subject) -> str:
    found = facts.interfaces(of.pid)
    return ", ".join(found[:3]) + (f" +{len(found) - 3}" if len(found) > 3 else "")


def _mounts(of: Subject) -> str:
    try:
        count = len(facts.mount_table(of.pid))
    except OSError:
        return ""
    return "1 mount" if count == 1 else f"{count} mounts"


def _hostname(of: Subject) -> str:
    if of.pid == os.getpid():
        return os.uname().nodename
    return "" if of.container is None else of.container.spec.hostname


def id_maps(target: Any) -> Drawing:
    """See `r2d2.drawings.id_maps`."""
    of = facts.subject(target)
    canvas = Canvas(_WIDE, f"Id maps of {of.name}")
    lines = []
    for panel, (kind, noun) in enumerate((("uid", "user"), ("gid", "group"))):
        left = panel * 460
        rows = facts.id_map(of.pid, kind)
        canvas.text(left, 20, f"{noun} ids", bold=True, size=14)
        source = f"/proc/{of.pid}/{kind}_map"
        canvas.text(left + 432, 20, source, size=11, mono=True, faint=True, anchor="end", room=300)
        canvas.text(left + 76, 46, "inside", anchor="middle", faint=True, size=12)
        canvas.text(left + 346, 46, "outside", anchor="middle", faint=True, size=12)
        lines.append(f"{noun} ids: inside = outside")
        for row, (first, outer, count) in enumerate(rows):
            y = 56 + row * 56
            color = _COLORS[row % len(_COLORS)]
            inside, outside = _ids(first, count), _ids(outer, count)
            # A ribbon: every id of the one side has its own on the other.
            a, b = left + 152, left + 260
            canvas.rect(a, y, b - a, 42, color=color, fill=0.1, line=0, radius=0)
            canvas.arrow(a + 4, y + 21, b - 4, y + 21, color=color, both=True)
            canvas.text(
                (a + b) / 2, y + 15, f"\u00d7{count}", size=11, mono=True, anchor="middle", faint=True
            )
            for x, wide, ids, id_ in ((left, 152, inside, first), (left + 260, 172, outside, outer)):
                canvas.rect(x, y, wide, 42, color=color, fill=0.16)
                name = _name(kind, id_, inside=x == left) if count == 1 or id_ == 0 else ""
                canvas.text(x + wide / 2, y + (18 if name else 26), ids, mono=True, anchor="middle",
                            room=wide - 10)  # fmt: skip
                if name:
                    canvas.text(
                        x + wide / 2, y + 34, name, size=11, faint=True, anchor="middle", room=wide - 10
                    )
            lines.append(f"  {inside} = {outside} (\u00d7{count})")
        if not rows:
            canvas.text(left, 76, "none is written yet: every id is 65534", size=12)
            lines.append("  none: every id is the overflow id")
        y = 56 + max(1, len(rows)) * 56 + 14
        whole = sum(count for _, _, count in rows) >= 2**32 - 1
        rest = (
            "Every id of the host is here."
            if whole
            else f"Any other {noun} of the host is seen as {_overflow(kind)}."
        )
        canvas.text(left, y, rest, size=11.5, faint=True, room=432)
        lines.append(f"  {rest}")
        if kind == "gid" and surroundings.read(f"/proc/{of.pid}/setgroups") == "deny":
            canvas.text(
                left, y + 18, "setgroups(2) is denied: no group can be dropped.", size=11.5, faint=True
            )
            lines.append("  setgroups(2) is denied")
    return canvas.drawing("\n".join(lines))


def _ids(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}\u2013{first + count - 1}"


def _overflow(kind: str) -> str:
    return surroundings.sysctl(f"kernel.overflow{kind}") or "65534"


def _name(kind: str, number: int, *, inside: bool) -> str:
    if inside:
        return "root" if number == 0 else ""
    import grp
    import pwd

    try:
        return pwd.getpwuid(number).pw_name if kind == "uid" else grp.getgrgid(number).gr_name
    except (KeyError, OverflowError):
        return ""
