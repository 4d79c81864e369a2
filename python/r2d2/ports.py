"""What leads from the host into a network namespace: ports, ranges of them, Unix sockets.

A port is written as ``docker run -p`` takes it, ``[[ADDRESS:][PORT]:]PORT[/PROTOCOL]``, where both ports may
be ranges of one length, ``8000-8010:8000-8010``. A path of the host, ``/run/app.sock:80``, is a Unix socket
whose clients reach a TCP port inside.

The listening sockets are made here, in the caller's process, so that what cannot be had is an error there
and then.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

from .errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Port", "Protocol", "Publish", "listening", "parse_ports", "remove_with"]

Protocol: TypeAlias = Literal["tcp", "udp", "unix"]

_RANGE = r"\d+(?:-\d+)?"
_PUBLISHED = re.compile(
    rf"(?:(?:(?P<host>[^:\[\]]+|\[[^\]]+\]):)?(?P<port>{_RANGE}|):)?(?P<guest>{_RANGE})(?:/(?P<kind>\w+))?"
)
_PATH = re.compile(r"(?P<path>\.{0,2}/.*):(?P<guest>\d+)", re.DOTALL)
#: sun_path of unix(7) with its end.
_LONGEST_PATH = 107


@dataclass(frozen=True, slots=True)
class Port:
    """A port or Unix socket of the host that leads into the namespace.

    Attributes:
        protocol: ``tcp``, ``udp``, or ``unix`` for a Unix socket whose clients reach a TCP port.
        host: the address that is listened on; the path of a Unix socket.
        host_port: the port that is listened on, never 0; but 0 for a Unix socket, which has none.
        guest: the address inside.
        guest_port: the port inside.
    """

    protocol: Protocol
    host: str
    host_port: int
    guest: str
    guest_port: int


class Publish(NamedTuple):
    """A port of the host that is to lead into a container.

    Attributes:
        host_port: the port of the host; 0 lets the kernel choose.
        guest_port: the port inside.
        protocol: ``tcp`` or ``udp``; ``unix`` for a Unix socket.
        host: the host's address to listen on; the path of a Unix socket.
    """

    host_port: int
    guest_port: int
    protocol: Protocol = "tcp"
    host: str = "127.0.0.1"

    @classmethod
    def parse(cls, text: str) -> Publish:
        """One port; a range is an error. See `parse_ports`.

        Raises:
            SpecError: it can never work.
        """
        ports = parse_ports(text)
        if len(ports) != 1:
            raise SpecError(f"port {text!r}: a range, where one port is meant")
        return ports[0]

    def checked(self) -> Publish:
        """Itself.

        Raises:
            SpecError: it can never work.
        """
        for port, least in ((self.host_port, 0), (self.guest_port, 1)):
            if isinstance(port, bool) or not isinstance(port, int) or not least <= port <= 65535:
                raise SpecError(f"port {port!r}: not a number from {least} to 65535")
        if self.protocol == "unix":
            length = len(os.fsencode(os.path.abspath(self.host)))
            if not self.host or "\0" in self.host or length > _LONGEST_PATH:
                raise SpecError(f"path {self.host!r}: not one of 1 to {_LONGEST_PATH} bytes (unix(7))")
        elif self.protocol in ("tcp", "udp"):
            from .netspec import check_address

            check_address(self.host)
        else:
            raise SpecError(f"port {self}: protocol {self.protocol!r} is not tcp, udp or unix")
        return self

    def __str__(self) -> str:
        if self.protocol == "unix":
            return f"{self.host}:{self.guest_port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.host_port}:{self.guest_port}/{self.protocol}"


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise SpecError(f"port {text!r}: the range ends before it begins")
    return found


def parse_ports(text: str) -> tuple[Publish, ...]:
    """``[[ADDRESS:][PORT]:]PORT[/PROTOCOL]`` with ranges, or ``PATH:PORT``: one `Publish` for each port.

    Raises:
        SpecError: it can never work.
    """
    if match := _PATH.fullmatch(text):
        return (Publish(0, int(match["guest"]), "unix", match["path"]).checked(),)
    match = _PUBLISHED.fullmatch(text)
    if match is None:
        raise SpecError(f"port {text!r}: not [[ADDRESS:][PORT]:]PORT[/tcp|/udp] or PATH:PORT")
    host = (match["host"] or "127.0.0.1").strip("[]")
    kind = cast("Protocol", match["kind"] or "tcp")
    if kind == "unix":
        raise SpecError(f"port {text!r}: a Unix socket is a path of the host, as in ./app.sock:80")
    inside = _range(match["guest"])
    outside = _range(match["port"]) if match["port"] else range(0)
    if len(outside) == 1 and outside[0] == 0:
        outside = range(0)
    if outside and len(outside) != len(inside):
        raise SpecError(f"port {text!r}: {len(outside)} ports of the host, but {len(inside)} inside")
    chosen = outside or [0] * len(inside)
    return tuple(
        Publish(host_port, guest_port, kind, host).checked()
        for host_port, guest_port in zip(chosen, inside, strict=True)
    )


@contextmanager
def listening(port: Publish) -> Iterator[socket.socket]:
    """A socket that listens there; closed at the end, for by then the engine has its own of it.

    A Unix socket is for its user alone (mode 0600), and takes the place of one that nobody listens on any
    more. Its file is removed if the block fails.

    Raises:
        OSError: it cannot be had (``EADDRINUSE``, ``EACCES``).
    """
    if port.protocol == "unix":
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind | socket.SOCK_NONBLOCK) as listener, ExitStack() as failed:
        if family == socket.AF_UNIX:
            path = os.path.abspath(port.host)
            os.fchmod(listener.fileno(), 0o600)
            _remove_stale(path)
            listener.bind(path)
            failed.callback(os.unlink, path)
        else:
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port.protocol == "tcp":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            listener.bind((port.host, port.host_port))
        if port.protocol != "udp":
            listener.listen(4096)
        yield listener
        failed.pop_all()


def _remove_stale(path: str) -> None:
    """Removes a Unix socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        return


def remove_with(owner: object, path: str) -> weakref.finalize[..., object]:
    """Removes a Unix socket's file when called, when ``owner`` is collected, or when the interpreter ends."""
    found = os.lstat(path)
    return weakref.finalize(owner, _remove, path, (found.st_dev, found.st_ino), os.getpid())


def _remove(path: str, file: tuple[int, int], pid: int) -> None:
    if os.getpid() != pid:  # a fork's
        return
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == file:
            os.unlink(path)
    except OSError:
        return
