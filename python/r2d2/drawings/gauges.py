"""What control groups count of a container, and where its limits are."""

from __future__ import annotations

from typing import Any

from r2d2.errors import SpecError

from .canvas import BLUE, GREEN, ORANGE, RED, Canvas, Drawing

_WIDE = 760
_LEFT = 150
_BAR = 420


def cgroup(target: Any) -> Drawing:
    """See `r2d2.drawings.cgroup`."""
    from r2d2.container import Container

    if not isinstance(target, Container):
        raise SpecError(f"{target!r}: a Container")
    stats = target.stats()
    canvas = Canvas(_WIDE, f"Control groups of {target.name}")
    canvas.text(2, 20, f"{target.name}: what control groups count", bold=True, size=14)
    lines: list[str] = []
    y = 40.0
    gauges = (
        ("memory", stats.get("memory_bytes"), stats.get("memory_peak"), stats.get("memory_limit"), _bytes),
        ("processes", stats.get("pids"), stats.get("pids_peak"), stats.get("pids_limit"), str),
    )
    for name, used, peak, limit, show in gauges:
        canvas.text(2, y + 21, name, bold=True)
        if used is None:
            lines.append(_uncounted(canvas, y, name))
        else:
            top = limit or max(peak or 0, used, 1)
            full = limit is not None and used * 10 >= limit * 9
            canvas.rect(_LEFT, y + 6, _BAR, 22, faint=True, fill=0.04, dashed=limit is None)
            share = min(1.0, used / top)
            canvas.rect(_LEFT, y + 6, max(3.0, _BAR * share), 22, color=RED if full else GREEN, fill=0.45)
            if peak is not None and peak > used:
                x = _LEFT + _BAR * min(1.0, peak / top)
                canvas.line(x, y + 2, x, y + 32, color=ORANGE, line=2)
            most = "no limit" if limit is None else f"limit {show(limit)}"
            words = most + (f", peak {show(peak)}" if peak is not None else "")
            _beside(canvas, y, f"{show(used)} now", words)
            lines.append(f"{name}: {show(used)} now, {words}")
        y += 48
    y = _cpu(canvas, y, stats, lines)
    y = _bound(canvas, y, target, lines)
    kills = stats.get("oom_kills")
    if kills is not None:
        canvas.text(
            2, y + 18, f"killed for want of memory: {kills}", size=12, color=RED if kills else "currentColor"
        )
        lines.append(f"killed for want of memory: {kills}")
    return canvas.drawing("\n".join(lines))


def _cpu(canvas: Canvas, y: float, stats: dict[str, int | None], lines: list[str]) -> float:
    total, user, system = (stats.get(f"cpu_{what}_ns") for what in ("usage", "user", "system"))
    canvas.text(2, y + 21, "CPU time", bold=True)
    if total is None:
        lines.append(_uncounted(canvas, y, "CPU time"))
        return y + 48
    canvas.rect(_LEFT, y + 6, _BAR, 22, faint=True, fill=0.04, dashed=True)
    split = _BAR * (user or 0) / max((user or 0) + (system or 0), 1)
    canvas.rect(_LEFT, y + 6, split, 22, color=BLUE, fill=0.45)
    canvas.rect(_LEFT + split, y + 6, _BAR - split, 22, color=ORANGE, fill=0.45)
    for x, wide, who in ((_LEFT, split, "programs"), (_LEFT + split, _BAR - split, "kernel")):
        if wide > 70:
            canvas.text(x + wide / 2, y + 21.5, who, size=11.5, anchor="middle")
    words = f"user {_seconds(user or 0)}, kernel {_seconds(system or 0)}"
    throttled = stats.get("throttled_ns")
    if throttled:
        words += f", throttled {_seconds(throttled)}"
    _beside(canvas, y, f"{_seconds(total)} used", words)
    lines.append(f"CPU time: {_seconds(total)}: {words}")
    return y + 48


def _uncounted(canvas: Canvas, y: float, name: str) -> str:
    """An empty gauge, and the same in words."""
    canvas.rect(_LEFT, y + 6, _BAR, 22, dashed=True, faint=True)
    canvas.text(_LEFT + 12, y + 21.5, "not counted: no cgroup of its own", size=12, faint=True)
    return f"{name}: not counted"


def _beside(canvas: Canvas, y: float, figure: str, words: str) -> None:
    """What a gauge shows, to its right."""
    canvas.text(_LEFT + _BAR + 14, y + 15, figure, size=12, bold=True)
    canvas.text(_LEFT + _BAR + 14, y + 31, words, size=11, faint=True)


def _bound(canvas: Canvas, y: float, container: Any, lines: list[str]) -> float:
    """Which limit is held by what, and which is not."""
    bound, loose = container._resolve().limits()
    for what, how in bound:
        canvas.text(2, y + 18, f"{what}: held by {how}", size=12)
        lines.append(f"{what}: held by {how}")
        y += 20
    for what, why in loose:
        canvas.text(2, y + 18, f"{what}: not held: {why}", size=12, color=RED)
        lines.append(f"{what}: not held: {why}")
        y += 20
    if not bound and not loose:
        canvas.text(2, y + 18, "No limit was asked for.", size=12, faint=True)
        lines.append("no limit was asked for")
        y += 20
    return y


def _bytes(value: int) -> str:
    if value < 1 << 10:
        return f"{value} B"
    power = min((value.bit_length() - 1) // 10, 3)
    scaled = value / (1 << 10 * power)
    unit = ("KiB", "MiB", "GiB")[power - 1]
    return f"{scaled:.0f} {unit}" if scaled >= 100 or scaled == int(scaled) else f"{scaled:.1f} {unit}"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.2f} s" if nanoseconds >= 10**9 else f"{nanoseconds / 1e6:.1f} ms"
