"""What notebooks show of r2d2's objects: HTML tables without script and colours, drawings, and text.

Each function takes an object and returns a MIME bundle (IPython's ``_repr_mimebundle_``) that always has
``text/plain``. Showing something must not fail: what cannot be asked at this moment is left out.
"""

from __future__ import annotations

import os
import sys
from html import escape
from typing import TYPE_CHECKING, TypeAlias

from r2d2.drawings.canvas import GREEN, ORANGE, RED
from r2d2.explain import _shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from r2d2.container import Container
    from r2d2.detached import Detached
    from r2d2.diagnosis import Check, Report
    from r2d2.errors import R2d2Error
    from r2d2.image import Image
    from r2d2.namespace import Namespaces
    from r2d2.overlay import Change, Changes, FileInfo, Overlay
    from r2d2.process import CompletedProcess
    from r2d2.spec import Mount

    Bundle: TypeAlias = dict[str, str]

_LINE = "border:0;border-bottom:1px solid color-mix(in srgb, currentColor 20%, transparent)"
_CELL = f"{_LINE};text-align:left;vertical-align:top;padding:2px 8px;background:none;color:inherit"
_CODE = "background:none;color:inherit;white-space:pre-wrap;overflow-wrap:anywhere"
#: More rows than anybody reads; the text has them all.
_ROWS = 200


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: str = "",
    marks: Mapping[str, str] | None = None,
) -> str:
    """An HTML table. Text of any origin is safe in it, and stays what it is.

    Args:
        caption: above it.
        heads: names of the columns; none: the first column names the rows.
        rows: cells of plain text; one that begins with a backtick is code.
        foot: a line below.
        marks: colours of cells that are a mark, beside words that say the same.
    """
    marks = marks or {}

    def cell(text: str, tag: str = "td", more: str = "") -> str:
        safe = escape(_shown(text))
        if text.startswith("`"):
            safe = "\n".join(escape(_shown(line)) for line in text[1:].splitlines())
            safe = f'<code style="{_CODE}">{safe}</code>'
        color = ""
        if text in marks:
            color, more = f";color:{marks[text]}", ' aria-hidden="true"'
        return f'<{tag} style="{_CELL}{color}"{more}>{safe}</{tag}>'

    head = "".join(cell(name, "th", ' scope="col"') for name in heads)
    body = []
    for row in rows:
        first = cell(row[0]) if heads else cell(row[0], "th", ' scope="row"')
        body.append(f"<tr>{first}{''.join(cell(text) for text in row[1:])}</tr>")
    return (
        '<table style="color:inherit;border-collapse:collapse">'
        + (
            f'<caption style="color:inherit;text-align:left">{escape(_shown(caption))}</caption>'
            if caption
            else ""
        )
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{''.join(body)}</tbody></table>"
        + (f'<p style="color:inherit">{escape(_shown(foot))}</p>' if foot else "")
    )


def container(of: Container) -> Bundle:
    """A running container: who it is, what it may use."""
    spec = of.spec
    state = of._state
    running = state == "running"
    rows = [("image", of.image.name), ("host name", f"`{spec.hostname}")]
    if running:
        rows.append(("PID 1 on the host", str(of.pid)))
    rows += [("namespaces of its own", ", ".join(spec.namespaces)), ("network", _network(of))]
    rows += [
        (f"port {port.guest_port}/{port.protocol}", f"{port.host}:{port.host_port}") for port in of.ports
    ]
    rows += [("mount", _mount(mount)) for mount in spec.mounts]
    limits = spec.limits
    if limits is not None:
        asked = {name: getattr(limits, name) for name in ("memory", "swap", "pids", "cpus", "cpuset")}
        text = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        rows += [("limits", text)] if text else []
    if running:
        rows += [("uses", text)] if (text := _use(of)) else []
    return {"text/plain": repr(of), "text/html": table(f"Container {of.name}: {state}", (), rows)}


def _mount(mount: Mount) -> str:
    source = mount.type if mount.source is None else os.fspath(mount.source)
    return f"{source} on {os.fspath(mount.target)}{', read-only' * mount.readonly}"


def _network(of: Container) -> str:
    network = of.network
    if network is None:
        return of.spec.network
    if of.spec.network == "bridge":
        return f"bridge: {network.ifname} {network.address}, router {network.gateway}"
    return f"slirp: {network.ifname} {network.address}, router {network.gateway}, DNS {network.dns}"


def _use(of: Container) -> str:
    from r2d2.drawings.gauges import _bytes

    try:
        stats = of.stats()
    except (OSError, RuntimeError):
        return ""
    memory, pids = stats.get("memory_bytes"), stats.get("pids")
    found = [] if memory is None else [f"{_bytes(memory)} of memory"]
    return ", ".join(found + ([] if pids is None else ["1 process" if pids == 1 else f"{pids} processes"]))


def detached(of: Detached) -> Bundle:
    """A detached container."""
    rows = [("status", of.status), ("PID 1 on the host", str(of.pid or "-"))]
    if of.args is not None:
        rows.append(("program", "`" + " ".join(of.args)))
    return {"text/plain": repr(of), "text/html": table(f"Detached container {of.name}", (), rows)}


def image(of: Image) -> Bundle:
    """An image."""
    kinds = {
        "host": "this machine's own tree, writes private to each container",
        "layers": "an overlay of read-only layers, writes private to each container",
        "empty": "nothing but /proc, /dev and /sys",
        "directory": "one directory, written to directly",
    }
    rows = [("kind", kinds.get(of.kind, of.kind))]
    rows += [(f"layer {i}", f"`{layer}") for i, layer in enumerate(of.layers, 1)]
    rows += [("variable", f"`{name}={value}") for name, value in of.env]
    return {"text/plain": repr(of), "text/html": table(f"Image {of.name}", (), rows)}


def namespaces(of: Namespaces) -> Bundle:
    """Namespaces of a process, and which of them are the caller's."""
    from r2d2.namespace import KINDS, _link, inspect

    own = inspect()
    names = {_link(kind): kind for kind in KINDS}
    rows = []
    order = list(names)
    for link, inode in sorted(of.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99):
        if link.endswith("_for_children") and inode == of.get(link.removesuffix("_for_children")):
            continue
        shared = "shared with this process" if own.get(link) == inode else "its own"
        rows.append((names.get(link, link), f"`{link}:[{inode}]", KINDS.get(names.get(link, ""), ""), shared))
    wide = max((len(row[1]) for row in rows), default=0)
    text = "\n".join(f"{row[0]:<7} {row[1][1:]:<{wide}} {row[3]}" for row in rows)
    heads = ("kind", "namespace", "isolates", "")
    return {"text/plain": text or "{}", "text/html": table("Namespaces", heads, rows)}


def overlay(of: Overlay) -> Bundle:
    """An overlay: its layers as slides, if they can be read now."""
    from r2d2.drawings import overlay as draw

    try:
        drawing = draw(of)
    except (OSError, RuntimeError, ValueError):
        return {"text/plain": repr(of)}
    return {"text/plain": f"{of!r}\n{drawing.text}", "image/svg+xml": drawing.svg}


def changes(of: Changes) -> Bundle:
    """A diff."""
    rows = [(_kind(each), f"`/{each.path}", _detail(each)) for each in of[:_ROWS]]
    foot = f"and {len(of) - _ROWS} more" if len(of) > _ROWS else ""
    caption = f"{len(of)} change{'s' * (len(of) != 1)}"
    text = "\n".join(_shown(str(each)) for each in of) or "no changes"
    return {"text/plain": text, "text/html": table(caption, ("change", "path", "now"), rows, foot)}


def _kind(change: Change) -> str:
    return "replaced" if change.opaque else change.kind


def _detail(change: Change) -> str:
    if change.renamed_from is not None:
        return f"was /{change.renamed_from}"
    if change.after is None:
        return "" if change.before is None else f"was {_file(change.before)}"
    text = _file(change.after)
    if change.before is not None and change.kind in {"modified", "metadata"}:
        text += f" (was {_file(change.before)})"
    return text


def _file(info: FileInfo) -> str:
    import stat

    size = f", {info.size} bytes" if info.type == "file" else ""
    return f"{info.type} {stat.filemode(info.mode)[1:]} {info.uid}:{info.gid}{size}"


def report(of: Report) -> str:
    """What this host allows, as HTML: first what it does not."""
    looks = {"ok": ("✔", GREEN), "degraded": ("◐", ORANGE), "failed": ("✘", RED)}

    def row(check: Check) -> tuple[str, ...]:
        seen = check.fact if check.hint is None else f"{check.fact}. Hint: {check.hint}"
        return looks[check.status][0], check.status, check.name, check.needed_for, seen

    heads = ("", "", "what", "for", "seen")
    amiss = [check for check in of if check.status != "ok"]
    fine = [check for check in of if check.status == "ok"]
    html = f'<p style="color:inherit">{escape(of.verdict)}</p>'
    marks = dict(looks.values())
    html += table("", heads, map(row, amiss), marks=marks) if amiss else ""
    rest = table("", heads, map(row, fine), marks=marks)
    html += f'<details style="color:inherit"><summary>{len(fine)} checks are ok</summary>{rest}</details>'
    return html


def completed(of: CompletedProcess) -> Bundle:
    """How a program ended, and what it wrote."""
    words = [of.args] if isinstance(of.args, str | bytes) else list(of.args)
    rows = [
        ("program", "`" + " ".join(os.fsdecode(word) for word in words)),
        ("exit status", str(of.returncode)),
    ]
    rows.append(("used", f"{of.user_time + of.system_time:.3f} s of CPU, {of.max_rss >> 10} KiB of memory"))
    for name, stream in (("output", of.stdout), ("errors", of.stderr)):
        if stream:
            text = stream.decode(errors="replace") if isinstance(stream, bytes) else str(stream)
            lines = text.splitlines()
            rows.append((name, "`" + "\n".join(lines[:_ROWS])))
            rows += [("", f"… {len(lines) - _ROWS} more lines")] if len(lines) > _ROWS else []
    return {"text/plain": repr(of), "text/html": table("Completed", (), rows)}


def traceback(error: R2d2Error) -> list[str]:
    """An error as a notebook shows it: where in the user's own code, what, and what to do about it.

    With ``R2D2_DEBUG`` set, the whole traceback.
    """
    import traceback as tracebacks

    if os.environ.get("R2D2_DEBUG"):
        return [line.rstrip("\n") for line in tracebacks.format_exception(error)]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    frames = tracebacks.extract_tb(error.__traceback__)
    inner = next((i for i, frame in enumerate(frames) if frame.filename.startswith(package)), len(frames))
    own = [
        frame
        for frame in frames[:inner]
        if f"{os.sep}IPython{os.sep}" not in frame.filename
        if not (frame.line or "").startswith("get_ipython().run_")
    ]
    lines = []
    for frame in own:
        scope = "" if frame.name == "<module>" else f", in {frame.name}"
        lines += [f"{_place(frame.filename)}, line {frame.lineno}{scope}", f"    {frame.line or ''}".rstrip()]
    said = "".join(tracebacks.format_exception_only(error)).rstrip("\n")
    return [*lines, *said.split("\n")]


def _place(filename: str) -> str:
    """A file, or the cell that IPython compiled under its name."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    named = shell.compile.format_code_name(filename) if shell is not None else None
    return f'File "{filename}"' if named is None else " ".join(named)
