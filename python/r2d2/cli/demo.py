"""``r2d2 demo``: what a container is, on this machine, in about a second. Needs no network and no image."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from r2d2 import Container

    from .parser import Verbs

#: Where programs and what they need are, on any distribution.
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "nix", "gnu")

_LAYER = {"letter.txt": "Dear reader,\n", "diary.txt": "Monday.\n", "secret.txt": "Nobody must know.\n"}

_CHANGE = """\
echo 'A new poem.' > poem.txt
echo 'Tuesday.'   >> diary.txt
rm secret.txt"""

_LIST = 'for d in /proc/[0-9]*; do read -r name < $d/comm; echo "${d#/proc/} $name"; done'


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    verbs.add("demo", demo, "show what a container is, on this machine, in a second", "")


class _Page:
    """Prints; in colour if somebody sees it (https://no-color.org)."""

    def __init__(self) -> None:
        self.colour = (
            sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._number = 0

    def paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def head(self, title: str, remark: str) -> None:
        self._number += 1
        tail = f"  {self.paint(remark, '2')}" if remark else ""
        print(f"\n{self.paint(f'{self._number}. {title}', '1;36')}{tail}")

    def line(self, text: str = "") -> None:
        print(f"   {text}".rstrip())

    def table(self, rows: list[tuple[str, ...]]) -> None:
        """The first row is the heading."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            text = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self.line(self.paint(text, "2") if number == 0 else text)


def demo(arguments: argparse.Namespace) -> int:
    """``r2d2 demo``."""
    del arguments
    import r2d2

    page = _Page()
    title = page.paint("r2d2: a container from this machine's own programs", "1")
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}, unprivileged"
    print(f"{title}  {page.paint(f'({who}; no daemon, no image, no network)', '2')}")
    with r2d2.Container("host", hostname="r2d2") as container:
        _names(page, container)
        _processes(page, container)
        _namespaces(page, container)
        took = _median(15, lambda: container.run(["true"]))
    _layers(page)
    _times(page, took)
    _next(page)
    return 0


def _output(container: Container, *args: str) -> str:
    done = container.run(list(args), capture_output=True, text=True, check=True)
    return str(done.stdout)


def _names(page: _Page, container: Container) -> None:
    page.head("Its own name", "uts and user namespaces: another host name, another root")
    name, user = _output(container, "sh", "-c", "uname -n; id -u").split()
    page.table(
        [
            ("", "outside", "inside"),
            ("host name", os.uname().nodename, name),
            ("user id", str(os.geteuid()), f"{user} (root, but of the container alone)"),
        ]
    )


def _processes(page: _Page, container: Container) -> None:
    page.head("Its own processes", "PID namespace: nothing else can be seen, or signalled")
    outside = sum(name.isdigit() for name in os.listdir("/proc"))
    rows = [line.split(" ", 1) for line in _output(container, "sh", "-c", _LIST).splitlines()]
    page.table(
        [
            ("PID inside", "program", ""),
            *((pid, name, f"PID {container.pid} outside" if pid == "1" else "") for pid, name in rows),
        ]
    )
    page.line(page.paint(f"outside: {outside} processes", "2"))


def _namespaces(page: _Page, container: Container) -> None:
    from r2d2 import namespace

    page.head("Its own namespaces", "the inodes of ls -l /proc/PID/ns: another number is another world")
    ours, theirs = namespace.inspect(), container.namespaces
    links = {"mnt": "mount"}
    page.table(
        [
            ("namespace", "outside", "inside", ""),
            *(
                (
                    links.get(kind, kind),
                    str(ours[kind]),
                    str(inode),
                    "own" if inode != ours[kind] else "shared",
                )
                for kind, inode in theirs.items()
                if kind in ours and not kind.endswith("_for_children")
            ),
        ]
    )


def _median(count: int, work: Callable[[], object]) -> float:
    """The median time that it takes, in seconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)[count // 2]


@contextmanager
def _layer() -> Iterator[tuple[Path, list[str]]]:
    """A directory with three files, and what has to be mounted to have programs beside them."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="r2d2-demo-") as name:
        layer, binds = Path(name), []
        (layer / "home").mkdir()
        for file, text in _LAYER.items():
            (layer / "home" / file).write_text(text)
        for directory in _PROGRAMS:
            path = Path("/") / directory
            if path.is_symlink():
                (layer / directory).symlink_to(path.readlink())
            elif path.is_dir():
                binds.append(f"/{directory}:/{directory}:ro")
        yield layer, binds


def _layers(page: _Page) -> None:
    from r2d2 import Container, Image

    page.head("Its own files", "overlay: writes land in a layer of their own, what lies below stays")
    with (
        _layer() as (layer, binds),
        Container(Image.from_dir(layer), mounts=binds, workdir="/home") as container,
    ):
        for line in _CHANGE.splitlines():
            page.line(f"{page.paint('$', '2')} {line}")
        container.run(["sh", "-c", _CHANGE], check=True)
        words = {
            "A": "added",
            "C": "changed: copied up, then appended to",
            "D": "deleted: a whiteout hides it",
        }
        page.line(page.paint("what diff() says", "2"))
        for change in container.diff():
            letter, path = str(change).split(" ", 1)
            shown = page.paint(letter, {"A": "32", "C": "33", "D": "31"}.get(letter, "0"))
            page.line(f"{shown} {path:<18} {page.paint(words.get(letter, ''), '2')}".rstrip())
        names = sorted(path.name for path in (layer / "home").iterdir())
        unchanged = all((layer / "home" / file).read_text() == text for file, text in _LAYER.items())
        state = "as it was" if unchanged and names == sorted(_LAYER) else "changed"
        page.line(page.paint(f"the layer below: {', '.join(names)}: {state}", "2"))


def _times(page: _Page, inside: float) -> None:
    import subprocess

    import r2d2

    page.head("Its price", "medians, measured just now")
    whole = _median(7, lambda: r2d2.run(["true"]))
    plain = _median(7, lambda: subprocess.run(["true"], check=False))
    page.table(
        [
            ("", "ms"),
            ("a container made, true run in it, all of it gone", f"{whole * 1000:5.1f}"),
            ("true in a running container", f"{inside * 1000:5.1f}"),
            ("true without any", f"{plain * 1000:5.1f}"),
        ]
    )


def _next(page: _Page) -> None:
    page.head("Your turn", "")
    rows = [
        ("r2d2 shell", "a shell in a container: try anything, nothing of it stays"),
        ("r2d2 diff host sh -c 'touch /etc/new'", "what a command changes"),
        ("r2d2 explain", "every step that makes one: system call and shell command"),
        ("r2d2 run -d --name web host sleep 600", "one that stays: r2d2 ps, exec, logs, stop, rm"),
        ("r2d2 doctor", "what this machine allows"),
        ("python -c 'import r2d2; r2d2.run([\"id\"])'", "the same from Python"),
    ]
    width = max(len(line) for line, _ in rows)
    for line, remark in rows:
        page.line(f"{line.ljust(width)}   {page.paint(remark, '2')}")
