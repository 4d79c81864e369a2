"""Recording what passes on a user-mode network: pcapng files, and packets as they come.

The engine writes, to a descriptor that it is given for that: it opens no files. A filter is an expression as
tcpdump's, of these: ``tcp``, ``udp``, ``icmp`` (of both families), ``arp``, ``ip``, ``ip6``,
``host ADDRESS``, ``net ADDRESS/LENGTH``, ``port N``, ``portrange A-B``, the last four also after ``src`` or
``dst``; ``and``, ``or``, ``not`` and parentheses. A protocol may stand right before what it belongs to:
``tcp port 80``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import select
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from . import pcapng
from .closing import Closing
from .errors import SpecError

if TYPE_CHECKING:
    from . import _core
    from .spec import StrPath

__all__ = ["Capture", "Packet", "Packets", "compile_filter"]

_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")
_PROTOCOLS = frozenset({"tcp", "udp", "icmp", "arp", "ip", "ip6"})
_ENDS = frozenset({"src", "dst"})
_NETS = frozenset({"host", "net"})
_PORTS = frozenset({"port", "portrange"})


class _Expression:
    """A parser by descent, which leaves the words in postfix form."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = _TOKEN.findall(text)
        self._at = 0
        self.out: list[str] = []

    def parse(self) -> list[str]:
        if self._words:
            self._any()
            if self._peek():
                raise self._error()
        return self.out

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _next(self) -> str:
        word = self._peek()
        self._at += 1
        return word

    def _error(self) -> SpecError:
        where = f"{self._peek()!r} is not understood" if self._peek() else "something is missing at the end"
        return SpecError(f"filter {self._text!r}: {where}")

    def _any(self) -> None:
        self._all()
        while self._peek() in ("or", "||"):
            self._next()
            self._all()
            self.out.append("or")

    def _all(self) -> None:
        self._one()
        while self._peek() in ("and", "&&"):
            self._next()
            self._one()
            self.out.append("and")

    def _one(self) -> None:
        word = self._peek()
        if word in ("not", "!"):
            self._next()
            self._one()
            self.out.append("not")
        elif word == "(":
            self._next()
            self._any()
            if self._peek() != ")":
                raise self._error()
            self._next()
        elif word in _PROTOCOLS:
            self.out.append(self._next())
            if self._peek() in _ENDS | _NETS | _PORTS:
                self._end()
                self.out.append("and")
        else:
            self._end()

    def _end(self) -> None:
        prefix = f"{self._next()}-" if self._peek() in _ENDS else ""
        kind = self._peek()
        if kind in _NETS | _PORTS:
            self._next()
        elif prefix and kind[:1] not in ("", "(", ")"):
            kind = "host"  # as tcpdump takes it: src 192.0.2.1
        else:
            raise self._error()
        value = self._peek()
        try:
            if kind in _NETS:
                net = ipaddress.ip_network(value)
                if kind == "host" and "/" in value:
                    raise self._error()
                self.out.append(f"{prefix}net={net}")
            else:
                first, _, last = value.partition("-")
                low, high = int(first), int(last or first)
                if not 0 <= low <= high <= 65535 or (kind == "port" and last):
                    raise self._error()
                self.out.append(f"{prefix}port={low}-{high}")
        except ValueError:
            raise self._error() from None
        self._next()


def compile_filter(text: str) -> list[str]:
    """The filter's words in postfix form, as the engine takes them.

    Raises:
        SpecError: it is no expression; the message says where.
    """
    try:
        words = _Expression(text).parse()
    except RecursionError:
        raise SpecError(f"filter {text[:40]!r}…: too deep") from None
    if len(words) > 1024:
        raise SpecError("filter: more than 1024 words")
    return words


def _start(network: _core.Network, words: list[str], snaplen: int, descriptor: int) -> int:
    return int(network.request(" ".join(["capture", str(snaplen), *words]), [descriptor]))


def _checked(snaplen: int) -> int:
    if not 14 <= snaplen <= 1 << 18:
        raise SpecError(f"snaplen: {snaplen} is not between 14 and {1 << 18} bytes")
    return snaplen


class _Recording(Closing):
    """One recorder of the engine; ended once."""

    def __init__(self, network: _core.Network, number: int) -> None:
        self._network = network
        self._number: int | None = number
        self.packets = 0
        self.dropped = 0

    def _stop(self) -> int:
        """Ends it; the errno that had ended it before, or 0."""
        from .errors import R2d2Error

        number, self._number = self._number, None
        if number is None:
            return 0
        try:
            written, dropped, failure = map(int, self._network.request(f"uncapture {number}").split())
        except R2d2Error:
            return 0  # the engine has ended, and the recording with it
        self.packets, self.dropped = written, dropped
        return failure

    def close(self) -> None:
        """Ends the recording. A second call does nothing."""
        self._stop()


class Capture(_Recording):
    """A recording to a file; made by `Network.capture`. A context manager: leaving it ends the recording.

    Attributes:
        packets: how many packets were written; known after `close`.
        dropped: how many were not, because there was no room; known after `close`.
    """

    def __init__(self, network: _core.Network, path: StrPath, words: list[str], snaplen: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            # The engine never waits, as it would for the reader of a pipe.
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SpecError(
                    f"path {os.fsdecode(path)!r}: not a regular file; packets() reads without one"
                )
            super().__init__(network, _start(network, words, _checked(snaplen), descriptor))
        finally:
            os.close(descriptor)
        self._path = os.fsdecode(path)

    def close(self) -> None:
        """Ends the recording; the file is complete then. A second call does nothing.

        Raises:
            OSError: writing had failed before (``ENOSPC``); what is there is whole up to that packet.
        """
        failure = self._stop()
        if failure:
            raise OSError(failure, os.strerror(failure), self._path)


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame as it passed.

    Attributes:
        time: when, in seconds since 1970.
        outgoing: whether the guest sent it.
        data: the frame from its Ethernet header on; cut if it is longer than ``snaplen``.
        length: how long it was.
    """

    time: float
    outgoing: bool
    data: bytes
    length: int


class Packets(_Recording):
    """Packets from now on, as `Packet` objects; made by `Network.packets`. An iterator and a context manager.

    Iterating waits for the next packet, and ends with the network. The engine does not wait for a slow
    reader: packets for which there is no room are missing, and counted.

    Attributes:
        packets: how many packets there were; known after `close`.
        dropped: how many are missing; known after `close`.
    """

    def __init__(self, network: _core.Network, words: list[str], snaplen: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            try:
                super().__init__(network, _start(network, words, _checked(snaplen), theirs.fileno()))
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        """A descriptor that is readable when there are packets (select, poll, asyncio)."""
        return self._socket.fileno()

    def get(self, timeout: float | None = None) -> Packet | None:
        """The next packet; None if none comes within ``timeout`` seconds, or the network has ended."""
        poll = select.poll()
        while self._socket.fileno() >= 0:
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(None if timeout is None else max(0.0, timeout) * 1000):
                return None
            try:
                block = self._socket.recv(1 << 19)
            except ConnectionResetError:
                block = b""
            if not block:
                return None
            if int.from_bytes(block[:4], "little") == pcapng.PACKET:
                frame = pcapng.frame(block[8:])
                return Packet(frame.time, not frame.received, frame.data, frame.length)
        return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Packet:
        packet = self.get()
        if packet is None:
            raise StopIteration
        return packet

    def close(self) -> None:
        """Ends the recording. A second call does nothing."""
        self._stop()
        self._socket.close()
