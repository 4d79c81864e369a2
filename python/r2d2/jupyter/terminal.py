"""A live terminal into a container, inside the notebook: a widget (anywidget) with xterm.js as its screen.

>>> from r2d2.jupyter.terminal import Terminal              # doctest: +SKIP
>>> Terminal(lab)

The program is started as by ``popen(tty=True)``: its terminal is the container's own. A thread reads what it
writes and sends it to the browser, which confirms what it has drawn; a program that writes faster than that
waits, as it would at any terminal. What is typed goes the other way when the kernel is idle, for widgets'
messages are handled then. A view that comes later (the notebook was reloaded, the widget is shown twice) gets
the last lines again.

The screen's code is in ``static``: xterm.js as it was released (MIT, see LICENSE.xterm there), and ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from r2d2.terminal import find_shell

if TYPE_CHECKING:
    from r2d2.container import Container

__all__ = ["Terminal"]

_STATIC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "static")
_CHUNK = 1 << 16
#: Bytes of a read after which more is to be expected, and for how long (seconds).
_FULL, _MOMENT = 2048, 0.002
#: Bytes that may be on their way to the browser.
_AHEAD = 1 << 20
#: Bytes that a new view gets.
_KEPT = 1 << 17
#: What may wait for a program that does not read.
_BACKLOG = 1 << 20


def _read(name: str) -> str:
    with open(os.path.join(_STATIC, name), encoding="utf-8") as file:
        return file.read()


def _module() -> str:
    """One ECMAScript module: each file of xterm.js in a scope of its own, then ours."""
    parts = []
    for name, exported in (("xterm.mjs", "Terminal"), ("addon-fit.mjs", "FitAddon")):
        text = re.sub(r"(?m)^//# sourceMappingURL=.*$", "", _read(name))
        text, count = re.subn(rf"export\s*\{{\s*(\w+) as {exported}\s*\}};?\s*$", r"return \1;", text)
        if count != 1:
            raise ValueError(f"{name}: it does not end in the export of {exported}")
        parts.append(f"const {exported} = (() => {{\n{text}\n}})();")
    return "\n".join([*parts, _read("terminal.mjs")])


class Terminal(anywidget.AnyWidget):
    """A terminal with a program of a container in it.

    Args:
        container: a running one.
        args: the program; by default a shell of the image.
        rows, columns: its size, until a browser shows it.
        keywords: as ``Container.popen``: ``user``, ``env``, ``cwd``.

    Attributes:
        process: the program's ``Process``.
        returncode: how it ended; None while it runs.

    Raises:
        ImageNotFound: the image has no shell.
        And what ``Container.popen`` raises.
    """

    _esm = _module()
    _css = _read("xterm.css") + _read("terminal.css")
    rows = traitlets.Int(24).tag(sync=True)
    columns = traitlets.Int(80).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    returncode = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self, container: Container, args: Any = None, *, rows: int = 24, columns: int = 80, **keywords: Any
    ) -> None:
        if args is None:
            found = find_shell(container)
            args = [found, "sh"] if found.endswith("busybox") else [found]
        if "env" not in keywords:
            language = os.environ.get("LANG", "C.UTF-8")  # the browser speaks UTF-8, so the programs should
            keywords["env"] = {"LANG": language, **container._environ(), "TERM": "xterm-256color"}
        self.process = container.popen(args, tty=True, size=(rows, columns), **keywords)
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._typed = bytearray()
        self._tail = bytearray()
        self._sent = 0
        self._drawn: dict[str, int] = {}  # of each view
        self._over = False
        try:
            super().__init__(rows=rows, columns=columns, label=f"terminal of container {container.name}")
        except BaseException:
            self.process.kill()
            raise
        self.on_msg(self._message)
        self._thread = threading.Thread(target=self._relay, daemon=True, name="r2d2 terminal")
        self._thread.start()

    # From the browser

    def _message(self, widget: Any, content: Any, buffers: Any) -> None:
        """What a view says; nothing of it is trusted to be well-formed."""
        del widget, buffers
        kind, view = content.get("type"), str(content.get("view", ""))
        if kind == "input":
            text = content.get("text")
            data = (
                text.encode("utf-8", "replace") if isinstance(text, str) else bytes(content.get("codes", ()))
            )
            self.write(data)
        elif kind == "resize":
            self.resize(int(content["rows"]), int(content["columns"]))
        elif kind == "ready":
            with self._lock:
                self._drawn[view] = self._sent
                self.send({"type": "replay", "view": view, "at": self._sent}, buffers=[bytes(self._tail)])
        elif kind == "ack":
            with self._lock:
                if view in self._drawn:
                    self._drawn[view] = max(self._drawn[view], min(int(content["at"]), self._sent))
            self._nudge()
        elif kind == "gone":
            with self._lock:
                self._drawn.pop(view, None)
            self._nudge()

    def write(self, data: bytes) -> None:
        """Types something."""
        with self._lock:
            if len(self._typed) < _BACKLOG:
                self._typed += data
        self._nudge()

    def resize(self, rows: int, columns: int) -> None:
        """Sets the terminal's size; programs in its foreground get SIGWINCH."""
        rows, columns = max(1, min(rows, 1000)), max(1, min(columns, 1000))
        with self._lock:
            if not self._over:
                self.process.resize(rows, columns)
        self.rows, self.columns = rows, columns

    def _nudge(self) -> None:
        with self._lock:
            if not self._over:
                os.eventfd_write(self._wake, 1)

    # To the browser

    def _relay(self) -> None:
        """Bytes both ways until the program has ended and all that it wrote is sent."""
        tty = self.process.tty
        if tty is None:
            return
        master = tty.fileno()
        os.set_blocking(master, False)
        poller = select.poll()
        poller.register(self.process.fileno(), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while True:
            with self._lock:
                ahead = self._sent - max(self._drawn.values(), default=self._sent)
                wanted = (select.POLLIN if ahead < _AHEAD else 0) | (select.POLLOUT if self._typed else 0)
            poller.register(master, wanted)
            ready = dict(poller.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if ready.get(master, 0) & select.POLLOUT:
                self._type(master)
            hung_up = ready.get(master, 0) & (select.POLLHUP | select.POLLERR) and not wanted & select.POLLIN
            if ready.get(master, 0) & select.POLLIN and not self._pass_on(master):
                break
            if hung_up or self.process.fileno() in ready:
                break
        while self._pass_on(master):
            pass
        code = self.process.wait()
        with self._lock:
            self._over = True
            tty.close()
            os.close(self._wake)
        self.returncode = code

    def _type(self, master: int) -> None:
        with self._lock:
            try:
                del self._typed[: os.write(master, self._typed)]
            except BlockingIOError:
                pass
            except OSError:
                self._typed.clear()

    def _pass_on(self, master: int) -> bool:
        """Sends what is there; false when there is nothing, or nothing will ever come (EIO)."""
        data = bytearray()
        with contextlib.suppress(OSError):
            # A terminal hands out 4 KiB at a time, and a message costs more than that is worth.
            while len(data) < _CHUNK and (more := os.read(master, _CHUNK)):
                data += more
                if len(more) < _FULL:
                    break
                time.sleep(_MOMENT)
        if not data:
            return False
        with self._lock:
            self._sent += len(data)
            self._tail += data
            del self._tail[:-_KEPT]
            if self._drawn:
                self.send({"type": "output", "at": self._sent}, buffers=[bytes(data)])
        return True

    def close(self) -> None:
        """Kills the program, and closes every view."""
        self.process.kill()
        self._thread.join()
        super().close()
