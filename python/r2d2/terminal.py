"""Terminals of containers: ``popen(tty=True)`` and ``shell()``.

The terminal is a pair of the *container's* devpts, so that ``tty`` and ``ps`` inside tell the truth. The
slave is the program's three standard descriptors and its controlling terminal; the master stays here.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from .errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from . import _core
    from .container import Container
    from .process import Process

#: Shells to try, in this order.
SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/busybox")

_CHUNK = 65536
#: How much of what was typed may wait for a program that does not read.
_BACKLOG = 1 << 20


def window_size(fd: int) -> tuple[int, int] | None:
    """Rows and columns of a terminal, or None where ``fd`` is none."""
    import termios

    try:
        rows, columns = termios.tcgetwinsize(fd)
    except (OSError, termios.error):
        return None
    return rows, columns


def attach_terminal(
    handle: _core.Handle, keywords: dict[str, Any], make: Callable[[dict[str, Any]], Process]
) -> Process:
    """Makes the program with a terminal of the container's as its standard descriptors.

    Raises:
        SpecError: stdin, stdout or stderr are given too.
        SetupNotFoundError: the container has no /dev/pts.
    """
    for name in ("stdin", "stdout", "stderr"):
        if keywords.get(name) is not None:
            raise SpecError(f"{name} and tty=True exclude each other: all three are the terminal")
    rows, columns = keywords.pop("size", None) or window_size(0) or (24, 80)
    master, slave = handle.terminal()
    try:
        import termios

        termios.tcsetwinsize(slave, (rows, columns))
        process = make({**keywords, "stdin": slave, "stdout": slave, "stderr": slave, "tty": True})
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    process.tty = os.fdopen(master, "r+b", buffering=0)
    return process


def find_shell(container: Container) -> str:
    """A shell of the image: bash before sh, as ``docker exec`` users expect.

    Raises:
        ImageNotFound: there is none.
    """
    from . import _core
    from .errors import ImageNotFound

    root, upper = container._running().root()
    if upper is not None:
        os.close(upper)
    try:
        for shell in SHELLS:
            if _core.is_program(root, os.fsencode(shell)):
                return shell
    finally:
        os.close(root)
    raise ImageNotFound(f"image {container.image.name} has no shell: none of {', '.join(SHELLS)}").with_hint(
        "name a program, or use an image with one, such as 'host' or 'minimal'"
    )


def shell(
    container: Container,
    args: Any = None,
    *,
    user: str | int | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """See ``Container.shell``."""
    if args is None:
        found = find_shell(container)
        args = [found, "sh"] if found.endswith("busybox") else [found]
    keywords: dict[str, Any] = {"user": user, "cwd": cwd}
    if env is not None:
        keywords["env"] = {**container._environ(), "TERM": os.environ.get("TERM", "xterm"), **env}
    if not os.isatty(0):
        with container.popen(args, **keywords) as process:
            return process.wait()
    with container.popen(args, tty=True, **keywords) as process:
        try:
            return interact(process)
        except BaseException:
            process.kill()
            raise


def interact(process: Process, *, stdin: int | None = 0, stdout: int = 1) -> int:
    """Connects the caller's terminal with that of a program until the program ends: its return code.

    The caller's terminal is raw meanwhile, so that keys such as Ctrl-C and Ctrl-Z act inside; it is as it was
    on every way out. Its size is forwarded whenever it changes.

    Args:
        process: made with ``tty=True``.
        stdin: a terminal; None: nobody types.
        stdout: where the program's output goes.
    """
    if process.tty is None:
        raise ValueError("the program has no terminal: start it with tty=True")
    if stdin is None:
        _relay(process, process.tty.fileno(), None, stdout, None)
        return process.wait()
    with _raw(stdin), _follow_size(stdin, process) as poll_size:
        _relay(process, process.tty.fileno(), stdin, stdout, poll_size)
        return process.wait()


def _context(function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    from contextlib import contextmanager

    return contextmanager(function)


@_context
def _raw(fd: int) -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        # A process in the background must not be stopped for giving the terminal back (tcsetattr(3)).
        old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


@_context
def _follow_size(fd: int, process: Process) -> Iterator[Callable[[], None] | None]:
    """Forwards the window's size by SIGWINCH, or gives a function to call now and then."""
    last = [window_size(fd)]
    if last[0] is not None:
        process.resize(*last[0])

    def forward() -> None:
        size = window_size(fd)
        if size is not None and size != last[0]:
            last[0] = size
            process.resize(*size)

    previous = signal.getsignal(signal.SIGWINCH)
    if threading.current_thread() is not threading.main_thread() or previous is None:
        yield forward  # only the main thread may set handlers; one that C code set could not be put back
        return

    def handler(number: int, frame: Any) -> None:
        forward()
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGWINCH, handler)
    try:
        forward()
        yield None
    finally:
        signal.signal(signal.SIGWINCH, previous)


def _relay(
    process: Process, master: int, stdin: int | None, stdout: int, poll_size: Callable[[], None] | None
) -> None:
    """Bytes both ways until the program has ended and all that it wrote was read.

    The master does not block: a program that does not read must not keep its own output from us. What it
    leaves running in the background may keep the terminal open; its end is the end all the same.
    """
    import select

    os.set_blocking(master, False)
    poller = select.poll()
    poller.register(process.fileno(), select.POLLIN)
    typed = bytearray()
    listening = stdin is not None
    while True:
        poller.register(master, select.POLLIN | (select.POLLOUT if typed else 0))
        if stdin is not None and listening and len(typed) < _BACKLOG:
            poller.register(stdin, select.POLLIN)
        ready = dict(poller.poll(None if poll_size is None else 250))
        if poll_size is not None:
            poll_size()
        if stdin is not None and ready.get(stdin):
            poller.unregister(stdin)
            data = os.read(stdin, _CHUNK)
            typed += data
            listening = bool(data)
        if typed and ready.get(master, 0) & select.POLLOUT:
            try:
                del typed[: os.write(master, typed)]
            except BlockingIOError:
                pass
            except OSError:
                typed.clear()
        if (
            ready.get(master, 0) & ~select.POLLOUT and not _forward(master, stdout)
        ) or process.fileno() in ready:
            break
    process.wait()
    while _forward(master, stdout):
        pass


def _forward(master: int, stdout: int) -> bool:
    """Takes what is there; false when there is nothing, or nothing will ever come (EIO: no slave is open)."""
    try:
        data = os.read(master, _CHUNK)
    except OSError:
        return False
    view = memoryview(data)
    while view:
        view = view[os.write(stdout, view) :]
    return bool(data)
