"""How a cell runs in a container: its text, what it writes, its interruption, its life in the background.

The cell is an argument of its interpreter (``sh -c CELL``) where that is known to take one, so that programs
in it do not read the rest of the cell as their input; any other interpreter, and a cell too long for an
argument (execve(2)), gets it as standard input.

What it writes is shown as it comes, decoded as UTF-8 byte by byte if need be. It is over when its interpreter
has ended; what it left running in a container that goes on keeps its pipes, which are emptied until it ends.
"""

from __future__ import annotations

import codecs
import os
import re
import selectors
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from r2d2.errors import SetupNotFoundError, command_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r2d2.container import Container
    from r2d2.process import Process

__all__ = ["finish", "in_background", "start"]

_TAKES_C = re.compile(r"(ba|da|a|z|k|mk)?sh|python[0-9.]*|perl|ruby|node")
_EVAL = {"perl": "-e", "ruby": "-e", "node": "-e"}
#: MAX_ARG_STRLEN of execve(2), less what else may stand beside it.
_LONGEST = 120_000


def start(container: Container, interpreter: Sequence[str], cell: str, **keywords: Any) -> Process:
    """Starts a cell; its standard output and error are pipes.

    Raises:
        SetupNotFoundError: the image has no such interpreter.
        And what ``Container.popen`` raises.
    """
    cell = cell if cell.endswith("\n") else cell + "\n"
    data = cell.encode("utf-8", "surrogateescape")
    name = os.path.basename(interpreter[0])
    fits = b"\0" not in data and len(data) < _LONGEST and _TAKES_C.fullmatch(name) is not None
    args = [*interpreter, *([_EVAL.get(name, "-c"), data] if fits else [])]
    process = container.popen(
        args,
        stdin=subprocess.DEVNULL if fits else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        tree=True,
        **keywords,
    )
    process.args = list(interpreter)
    if not fits:
        threading.Thread(target=_feed, args=(process.stdin, data), daemon=True).start()
    return process


def pythons(container: Container) -> list[list[str]]:
    """Interpreters to try for a cell of Python, the likeliest first; unbuffered: lines come at once."""
    import sys

    names = [sys.executable] if container.image.kind == "host" and sys.executable else []
    return [[name, "-u"] for name in [*names, "python3", "python"]]


def start_first(
    container: Container, interpreters: Sequence[Sequence[str]], cell: str, **keywords: Any
) -> Process:
    """`start` with the first interpreter that is there."""
    for interpreter in interpreters[:-1]:
        try:
            return start(container, interpreter, cell, **keywords)
        except SetupNotFoundError as error:
            if error.syscall not in {None, "execve"}:
                raise
    return start(container, interpreters[-1], cell, **keywords)


def _feed(pipe: Any, data: bytes) -> None:
    try:
        with pipe:
            view = memoryview(data)
            while view:
                view = view[pipe.write(view) :]
    except OSError:
        return  # it did not want all of it


def finish(process: Process, write: dict[str, Callable[[str], object]]) -> int:
    """Passes on what it writes until it has ended: its return code.

    Args:
        process: made by `start`.
        write: called for pieces of text, by ``"stdout"`` and ``"stderr"``.

    Raises:
        KeyboardInterrupt: the process, and all that it started, was killed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")
    pipes = {name: getattr(process, name) for name in ("stdout", "stderr")}
    decoders = {name: decoder("replace") for name in pipes}
    with selectors.DefaultSelector() as selector:
        try:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            selector.register(process.fileno(), selectors.EVENT_READ)
            _pump(selector, decoders, write)
            code = process.wait()
        except BaseException:
            process.kill_tree()
            process.wait()
            _close(process)
            raise
        rest = {key.data for key in selector.get_map().values()}
    for name in pipes:
        if text := decoders[name].decode(b"", final=True):
            write[name](text)
    for name, pipe in pipes.items():
        if name in rest:
            threading.Thread(target=_empty, args=(pipe,), daemon=True).start()
        else:
            pipe.close()
    return code


def _pump(
    selector: selectors.BaseSelector,
    decoders: dict[str, Any],
    write: dict[str, Callable[[str], object]],
) -> None:
    """Until both pipes are closed, or the process has ended and nothing more is in them."""
    ended = False
    while any(key.data for key in selector.get_map().values()):
        ready = [key for key, _ in selector.select(0 if ended else None)]
        pipes = [key for key in ready if key.data]
        if ended and not pipes:
            return
        ended = ended or any(not key.data for key in ready)
        for key in pipes:
            data = os.read(key.fd, 1 << 16)
            if not data:
                selector.unregister(key.fileobj)
            elif text := decoders[key.data].decode(data):
                write[key.data](text)


def _empty(pipe: Any) -> None:
    """Reads on for programs that the cell left behind, which SIGPIPE would kill."""
    with pipe:
        while pipe.read(1 << 16):
            pass


def _close(process: Process) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def in_background(process: Process, keep: set[str], afterwards: Callable[[], object]) -> threading.Thread:
    """Lets it run on: empties the pipes that nobody asked for, and waits for its end.

    Args:
        process: made by `start`.
        keep: pipes that somebody else reads: ``"stdout"``, ``"stderr"``.
        afterwards: called when it has ended.
    """
    for name in {"stdout", "stderr"} - keep:
        threading.Thread(target=_empty, args=(getattr(process, name),), daemon=True).start()

    def wait() -> None:
        process.wait()
        afterwards()

    thread = threading.Thread(target=wait, daemon=True, name=f"cell {process.pid}")
    thread.start()
    return thread


def failed(code: int, line: str) -> Exception:
    """What a cell raises that did not end with 0."""
    return command_error(code, f"%%container {line}".rstrip(), None, None)
