"""Waiting for what a container does: a port, an answer over HTTP, a line of a log, a file, a command.

Each function tries until it comes true, and raises :class:`WaitTimeout` (a ``TimeoutError``) with the last
answer and the end of the output as notes. With ``timeout=0`` it tries once, which is how :func:`any_of` and
:func:`all_of` combine them::

    wait_for_port(container, 5432, timeout=10)
    any_of(partial(wait_for_log, log, "ready"), partial(wait_for_file, container, "/run/ready"), timeout=10)

A port is tried from inside the container's network, whatever that is and whether or not it is published.
``wait_until`` takes a function, or one of testcontainers' wait strategies.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from r2d2.errors import ContainerClosed, R2d2Error, SpecError

from .seen import ask_inside, content, listening, tail
from .target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from r2d2.container import Container
    from r2d2.process import Process

__all__ = [
    "Target",
    "WaitTimeout",
    "all_of",
    "any_of",
    "wait_for_command",
    "wait_for_file",
    "wait_for_http",
    "wait_for_log",
    "wait_for_port",
    "wait_until",
]

#: Lines of output that an error carries.
TAIL = 30
_INTERVAL = 0.02


class WaitTimeout(R2d2Error, TimeoutError):
    """It did not come true in time. The notes say what was seen last."""


def _wait(
    what: str,
    attempt: Callable[[float], tuple[bool, str]],
    timeout: float,
    *,
    interval: float = _INTERVAL,
    process: Process | None = None,
    log: Any = None,
) -> None:
    """Tries until ``attempt(seconds that are left)`` says (True, ...); its second value is what was seen."""
    deadline = time.monotonic() + timeout
    seen = ""
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            done, seen = attempt(left)
        except ContainerClosed as error:
            raise _noted(error, seen, log) from None
        if done:
            return
        if process is not None and process.poll() is not None:
            ended = ContainerClosed(f"{what}: the program ended with status {process.returncode} before")
            raise _noted(ended, seen, log)
        if time.monotonic() >= deadline:
            raise _noted(WaitTimeout(f"{what}: not within {timeout:g} s"), seen, log)
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))


def _noted(error: R2d2Error, seen: str, log: Any) -> R2d2Error:
    if seen:
        error.add_note(f"last seen: {seen}")
    if log is not None:
        error.add_note(f"the log's end:\n{tail(content(log), TAIL)}")
    return error


# What a container does


def wait_for_port(
    container: Container,
    port: int,
    *,
    host: str | None = None,
    timeout: float = 30.0,
    process: Process | None = None,
    log: Any = None,
) -> None:
    """Until a TCP connection to a port can be made, from inside the container's network.

    Args:
        container: a running container, whatever its network.
        port: the port inside.
        host: the address inside; 127.0.0.1 by default, or ::1 if only that is listened on.
        timeout: seconds; 0 tries once.
        process: the server: when it ends there is nothing to wait for.
        log: of the server, for the error: as :func:`wait_for_log`.

    Raises:
        WaitTimeout: nobody took a connection in time.
        ContainerClosed: the container, or the process, ended meanwhile.
    """

    def attempt(left: float) -> tuple[bool, str]:
        families, seen = listening(container, port)
        if not families:
            return False, seen
        address = host or ("::1" if families == {"tcp6only"} else "127.0.0.1")
        answer = ask_inside(container, {"do": "connect", "host": address, "port": port}, min(left, 2.0))
        return answer["ok"], answer["seen"]

    _wait(f"port {port} of {container.name}", attempt, timeout, process=process, log=log)


def wait_for_http(
    container: Container,
    port: int,
    path: str = "/",
    *,
    status: int | Callable[[int], bool] | None = None,
    contains: str | None = None,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    timeout: float = 30.0,
    process: Process | None = None,
    log: Any = None,
) -> None:
    """Until an HTTP request is answered as it should be, from inside the container's network.

    Args:
        container, port, host, timeout, process, log: as :func:`wait_for_port`.
        path: with the query, if any.
        status: the status that is wanted, or a function of it; by default any from 200 to 399.
        contains: text that the body must hold.
        method, headers: of the request.

    Raises:
        What :func:`wait_for_port` raises.
    """
    want = status

    def good(code: int) -> bool:
        if want is None:
            return 200 <= code < 400
        return want(code) if callable(want) else code == want

    request = {
        "do": "http", "host": host, "port": port, "path": path, "method": method,
        "headers": dict(headers or {}),
    }  # fmt: skip

    def attempt(left: float) -> tuple[bool, str]:
        families, seen = listening(container, port)
        if not families:
            return False, seen
        answer = ask_inside(container, request, min(max(left, 1.0), 5.0))
        if not answer["ok"]:
            return False, answer["seen"]
        seen = f"status {answer['status']}: {answer['body'][:200]!r}"
        return good(answer["status"]) and (contains is None or contains in answer["body"]), seen

    what = f"{method} http://{host}:{port}{path} in {container.name}"
    _wait(what, attempt, timeout, process=process, log=log)


def wait_for_log(
    log: Any, pattern: str, *, times: int = 1, timeout: float = 30.0, process: Process | None = None
) -> re.Match[str]:
    """Until a line of a log matches.

    Args:
        log: a path of the host or of a container (``container.path``), a ``Detached`` container, a service
            of ``r2d2.testing.services``, or a function that returns the text so far.
        pattern: a regular expression, searched for in each line.
        times: how many lines must match.
        timeout, process: as :func:`wait_for_port`.

    Returns:
        The match of the last of them.

    Raises:
        WaitTimeout, ContainerClosed: as :func:`wait_for_port`.
    """
    compiled = re.compile(pattern)
    found: list[re.Match[str]] = []

    def attempt(left: float) -> tuple[bool, str]:
        del left
        matches = (compiled.search(line) for line in content(log).splitlines())
        found[:] = [match for match in matches if match is not None]
        return len(found) >= times, f"{len(found)} of {times} lines that match"

    _wait(f"a line that matches {pattern!r}", attempt, timeout, process=process, log=log)
    return found[times - 1]


def wait_for_file(
    container: Container,
    path: str,
    *,
    contains: str | None = None,
    timeout: float = 30.0,
    process: Process | None = None,
    log: Any = None,
) -> None:
    """Until a file is there (a socket or directory will do), or with ``contains`` until it holds that text.

    Raises:
        WaitTimeout, ContainerClosed: as :func:`wait_for_port`.
    """
    file = container.path(path)

    def attempt(left: float) -> tuple[bool, str]:
        del left
        if not file.exists():
            return False, f"{path} is not there"
        if contains is None:
            return True, ""
        text = file.read_text(errors="replace")
        return contains in text, f"{path} ends in {text[-200:]!r}"

    _wait(f"file {path} in {container.name}", attempt, timeout, process=process, log=log)


def wait_for_command(
    container: Container,
    args: list[str],
    *,
    status: int = 0,
    timeout: float = 30.0,
    interval: float = 0.1,
    process: Process | None = None,
    log: Any = None,
    **keywords: Any,
) -> None:
    """Until a program in the container exits with ``status``; a health check.

    Args:
        container, timeout, process, log: as :func:`wait_for_port`.
        args: the program, as for ``Container.run``; killed when the time is over.
        interval: seconds between two tries.
        keywords: as for ``Container.run``.

    Raises:
        What :func:`wait_for_port` and, for a program that cannot be started, ``Container.run`` raise.
    """
    import subprocess

    def attempt(left: float) -> tuple[bool, str]:
        try:
            done = container.run(args, capture_output=True, timeout=max(left, 1.0), **keywords)
        except subprocess.TimeoutExpired as error:
            seen = tail(error.stdout, TAIL) + tail(error.stderr, TAIL)
            return False, f"still ran after {error.timeout:g} s\n{seen}"
        output = "\n".join(filter(None, (tail(done.stdout, TAIL), tail(done.stderr, TAIL))))
        return done.returncode == status, f"exit status {done.returncode}\n{output}"

    what = f"{' '.join(args)} in {container.name}"
    _wait(what, attempt, timeout, interval=interval, process=process, log=log)


def wait_until(condition: Any, container: Container | None = None, *, timeout: float = 30.0) -> None:
    """Until a function of no argument returns something true, or a testcontainers strategy is content.

    Args:
        condition: the function, or an object with ``wait_until_ready`` (which has a timeout of its own).
        container: what a strategy is to look at: a container, a :class:`Target`, a service.
        timeout: seconds.

    Raises:
        WaitTimeout: it did not come true.
        And what the strategy raises.
    """
    if hasattr(condition, "wait_until_ready"):
        if container is None:
            raise SpecError("wait_until(strategy): a strategy needs the container")
        target = container if hasattr(container, "get_wrapped_container") else Target(container)
        condition.wait_until_ready(target)
        return
    _wait(
        getattr(condition, "__name__", repr(condition)),
        lambda _: (bool(condition()), ""),
        timeout,
    )


def any_of(*waits: Callable[..., Any], timeout: float = 30.0) -> int:
    """Until one of several comes true: its index.

    Args:
        waits: the functions of this module with their arguments: ``functools.partial(wait_for_port, c, 80)``.
        timeout: seconds for all together.

    Raises:
        WaitTimeout: none did; its notes say what each saw last.
    """
    return _combined("any", waits, timeout)[0]


def all_of(*waits: Callable[..., Any], timeout: float = 30.0) -> None:
    """Until each of several came true, not necessarily all at the same time.

    Raises:
        WaitTimeout: one did not; its notes say what each of these saw last.
    """
    _combined("all", waits, timeout)


def _combined(kind: str, waits: tuple[Callable[..., Any], ...], timeout: float) -> list[int]:
    if not waits:
        raise SpecError(f"{kind}_of: nothing to wait for")
    deadline = time.monotonic() + timeout
    done: list[int] = []
    while True:
        failed: list[WaitTimeout] = []
        for index, wait in enumerate(waits):
            if index in done:
                continue
            try:
                wait(timeout=0)
                done.append(index)
            except WaitTimeout as error:
                failed.append(error)
        if not failed or (kind == "any" and done):
            return done
        if time.monotonic() >= deadline:
            late = WaitTimeout(f"{kind}_of: not within {timeout:g} s")
            for each in failed:
                late.add_note("\n".join([str(each), *getattr(each, "__notes__", ())]))
            raise late
        time.sleep(_INTERVAL)
