"""SVG for people in light and dark rooms: shapes, text that fits, and the `Drawing` that they become.

A drawing stands alone (SVG 1.1, https://www.w3.org/TR/SVG11/): no script, no address, no identifiers that
two drawings on one page could share. Lines and text have ``currentColor``, the page's own where the page
holds the drawing itself. As an ``<img>``, which is how JupyterLab shows it, it has no page to ask and brings
a background and a colour of its own, by ``prefers-color-scheme``: that rule selects ``svg:root`` and means
nothing inside a page.

The width of text is not known before it is drawn, so it is estimated from above (the widest of the usual
fonts), and what would not fit is shortened; the whole of it is the element's ``<title>``.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2d2.spec import StrPath

__all__ = ["BLUE", "GREEN", "ORANGE", "PURPLE", "RED", "Canvas", "Drawing", "clean", "shorten", "width"]

#: Readable as lines on white and on black alike, and told apart by people who see red and green as one.
BLUE, ORANGE, GREEN, PURPLE, RED = "#3b82f6", "#d97706", "#16a34a", "#9061f9", "#e5484d"

SANS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'PingFang TC', 'Microsoft JhengHei', "
    "'Noto Sans CJK TC', 'Noto Sans TC', sans-serif"
)
MONO = (
    "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Noto Sans Mono CJK TC', "
    "'PingFang TC', 'Microsoft JhengHei', monospace"
)

#: Room around a drawing, and the widest that it may become: what a notebook's cell shows.
_PAD, _WIDEST = 12, 900

_ALONE = (
    "svg:root{color:#1f2328;background:#fff}"
    "@media(prefers-color-scheme:dark){svg:root{color:#e3e3e3;background:#111}}"
)
#: Widths of DejaVu Sans, in em: the widest of the fonts above.
_NARROW = dict.fromkeys("iljI.,:;'|!", 0.35) | dict.fromkeys('ftr()[]/-\\ "', 0.41)
_BROAD = dict.fromkeys("mwMW@%→↔—", 0.98)


class Drawing:
    """A picture of something that is there: an SVG, and the same in words.

    Jupyter shows the SVG; a terminal, a screen reader and ``print`` the words.

    Attributes:
        svg: the document; UTF-8 when it is written.
        text: the same facts as plain text.
        title: one line.
    """

    __slots__ = ("svg", "text", "title")

    def __init__(self, svg: str, text: str, title: str) -> None:
        self.svg = svg
        self.text = text
        self.title = title

    def __repr__(self) -> str:
        return f"<r2d2.drawings.Drawing {self.title}>"

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Drawing) and (self.svg, self.text) == (other.svg, other.text)

    def __hash__(self) -> int:
        return hash(self.svg)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For IPython, which asks for no less than both."""
        del include, exclude
        return {"image/svg+xml": self.svg, "text/plain": self.text}

    def save(self, path: StrPath) -> None:
        """Writes the SVG to a file.

        Raises:
            OSError: as ``open``.
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def clean(text: object) -> str:
    """One line of characters that XML takes and that move nothing: what is not printable is escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )


def escape(text: object) -> str:
    """Text for XML, in elements and in attributes."""
    safe = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace('"', "&quot;").replace("'", "&#39;")


def width(text: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """An upper estimate of the width of a line, in pixels."""
    total = 0.0
    for c in text:
        if unicodedata.combining(c):
            continue
        if unicodedata.east_asian_width(c) in "WF":
            total += 1.0
        elif mono:
            total += 0.605
        elif c in _NARROW:
            total += _NARROW[c]
        elif c in _BROAD:
            total += _BROAD[c]
        else:
            total += 0.7 if c.isupper() else 0.63
    return total * size * (1.08 if bold and not mono else 1.0)


def shorten(text: str, room: float, size: float, *, mono: bool = False, bold: bool = False) -> str:
    """As much of a line as fits: a path loses its beginning, everything else its end."""
    if width(text, size, mono=mono, bold=bold) <= room:
        return text
    path = text.startswith("/") and " " not in text
    while text and width(text + "…", size, mono=mono, bold=bold) > room:
        text = text[1:] if path else text[:-1]
    return "…" + text if path else text + "…"


class Canvas:
    """Collects elements; the height grows with them."""

    def __init__(self, wide: float, title: str) -> None:
        self.wide = wide
        self.high = 0.0
        self.title = clean(title)
        self._parts: list[str] = []

    def grow(self, y: float) -> None:
        """Make room down to ``y``."""
        self.high = max(self.high, y)

    def text(
        self,
        x: float,
        y: float,
        text: object,
        *,
        size: float = 13,
        anchor: str = "start",
        mono: bool = False,
        bold: bool = False,
        faint: bool = False,
        room: float | None = None,
        color: str = "currentColor",
        full: str | None = None,
    ) -> None:
        """A line of text whose baseline is ``y``.

        Args:
            x, y: pixels.
            text: shortened to ``room`` pixels.
            size: pixels.
            anchor: ``start``, ``middle`` or ``end``.
            mono, bold, faint: its look.
            room: by default what is left of the canvas.
            color: of CSS.
            full: the tooltip; by default the whole text where it was shortened.
        """
        whole = clean(text)
        if room is None:
            room = {"start": self.wide - x, "end": x}.get(anchor, 2 * min(x, self.wide - x))
        shown = shorten(whole, room, size, mono=mono, bold=bold)
        if full is None and shown != whole:
            full = whole
        look = f' font-size="{_n(size)}"'
        look += f' text-anchor="{anchor}"' if anchor != "start" else ""
        look += f' font-family="{MONO}"' if mono else ""
        look += ' font-weight="600"' if bold else ""
        look += ' fill-opacity="0.72"' if faint else ""
        look += f' fill="{color}"' if color != "currentColor" else ""
        tip = "" if full is None else f"<title>{escape(full)}</title>"
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}"{look} xml:space="preserve">{tip}{escape(shown)}</text>'
        )
        self.grow(y + size * 0.4)

    def rect(
        self,
        x: float,
        y: float,
        wide: float,
        high: float,
        *,
        color: str = "currentColor",
        fill: float = 0.0,
        line: float = 1.25,
        dashed: bool = False,
        radius: float = 6,
        faint: bool = False,
    ) -> None:
        """A box with rounded corners; ``fill`` is the opacity of its ground, ``line`` the stroke's width."""
        self._parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(wide, 0))}" height="{_n(max(high, 0))}" '
            f'rx="{_n(radius)}"{_look(color, fill, line, dashed=dashed, faint=faint)}/>'
        )
        self.grow(y + high + 1)

    def polygon(
        self,
        points: Iterable[tuple[float, float]],
        *,
        color: str = "currentColor",
        fill: float = 0.0,
        line: float = 1.25,
        dashed: bool = False,
        faint: bool = False,
    ) -> None:
        """A closed shape."""
        points = list(points)
        listed = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        look = _look(color, fill, line, dashed=dashed, faint=faint)
        self._parts.append(f'<polygon points="{listed}"{look}/>')
        self.grow(max(y for _, y in points) + 1)

    def path(
        self,
        d: str,
        *,
        color: str = "currentColor",
        line: float = 1.25,
        dashed: bool = False,
        faint: bool = False,
    ) -> None:
        """A line by SVG's path commands."""
        self._parts.append(f'<path d="{d}"{_look(color, 0, line, dashed=dashed, faint=faint)}/>')

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, color: str = "currentColor", **look: Any
    ) -> None:
        """A straight line."""
        self.path(f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}", color=color, **look)

    def arrow(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        color: str = "currentColor",
        dashed: bool = False,
        both: bool = False,
    ) -> None:
        """A straight line with a head at its end."""
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1.0
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        back = 6 if both else 0
        self.line(
            x1 + back * dx, y1 + back * dy, x2 - 6 * dx, y2 - 6 * dy, color=color, dashed=dashed, line=1.5
        )
        ends = [(x2, y2, dx, dy), *([(x1, y1, -dx, -dy)] if both else [])]
        for x, y, ux, uy in ends:
            left = (x - 8 * ux - 4 * uy, y - 8 * uy + 4 * ux)
            right = (x - 8 * ux + 4 * uy, y - 8 * uy - 4 * ux)
            self.polygon([(x, y), left, right], color=color, fill=1, line=0)

    def drawing(self, text: str) -> Drawing:
        """What was collected; ``text`` says the same in words."""
        wide, high = round(self.wide) + 2 * _PAD, round(self.high) + 2 * _PAD
        shown = min(wide, _WIDEST)
        text = "\n".join(clean(line).rstrip() for line in text.splitlines())
        described = "\n".join(escape(line) for line in text.splitlines())
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_PAD} {-_PAD} {wide} {high}" '
            f'width="{shown}" height="{round(high * shown / wide)}" role="img" '
            f'aria-label="{escape(self.title)}" fill="currentColor" '
            f'font-family="{SANS}" font-size="13" style="max-width:100%;height:auto">\n'
            f"<title>{escape(self.title)}</title>\n<desc>{described}</desc>\n<style>{_ALONE}</style>\n"
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )
        return Drawing(svg, text, self.title)


def _n(value: float) -> str:
    """A coordinate with at most one decimal, the same on every machine."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def _look(color: str, fill: float, line: float, *, dashed: bool, faint: bool) -> str:
    ground = f' fill="{color}" fill-opacity="{_opacity(fill)}"' if fill else ' fill="none"'
    stroke = f' stroke="{color}" stroke-width="{line:g}"' if line else ""
    stroke += ' stroke-dasharray="5 4"' if dashed and line else ""
    stroke += ' stroke-opacity="0.45"' if faint and line else ""
    return ground + stroke


def _opacity(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
