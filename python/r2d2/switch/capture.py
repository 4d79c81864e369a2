"""What passed a network of containers: a pcapng file, and packets to look at in asserts: `Network.capture`.

::

    >>> with net.capture(protocol="tcp", port=5432) as seen:                              # doctest: +SKIP
    ...     run_the_query()
    >>> assert not any(packet.node == "replica" for packet in seen)
"""

from __future__ import annotations

import ipaddress
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from r2d2 import pcapng
from r2d2.closing import Closing
from r2d2.errors import ContainerClosed, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from r2d2.netspec import Address
    from r2d2.spec import StrPath

    from . import Network

__all__ = ["Capture", "Packet"]

_POINTS = ("sent", "received", "both")
_PROTOCOLS = ("arp", "icmp", "tcp", "udp")
#: From the lowest bit on.
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


class Packet(NamedTuple):
    """A frame as a node sent or received it.

    Attributes:
        time: seconds since 1970, to the microsecond.
        node: the member's name.
        received: it was received, not sent.
        data: from the Ethernet header on, as far as it was kept.
        length: how long it was; a large one that the kernel left uncut counts once.
    """

    time: float
    node: str
    received: bool
    data: bytes
    length: int

    def _ip(self) -> tuple[int, int, int] | None:
        """Version, protocol, and where the transport header starts; None for no IP."""
        kind, data = self.data[12:14], self.data
        if kind == b"\x08\x00" and len(data) >= 34:
            return 4, data[23], 14 + (data[14] & 15) * 4
        if kind != b"\x86\xdd" or len(data) < 54:
            return None
        protocol, at = data[20], 54
        while protocol in (0, 43, 44, 60) and at + 8 <= len(data):  # extension headers (RFC 8200)
            size = 8 if protocol == 44 else (data[at + 1] + 1) * 8
            protocol, at = data[at], at + size
        return 6, protocol, at

    @property
    def protocol(self) -> str:
        """``arp``, ``icmp`` (of either family), ``tcp``, ``udp``; "" for anything else."""
        ip = self._ip()
        if ip is None:
            return "arp" if self.data[12:14] == b"\x08\x06" else ""
        return _NAMES.get(ip[1], "")

    def _address(self, which: int) -> Address | None:
        ip = self._ip()
        if ip is None:
            return None
        start, size = (26, 4) if ip[0] == 4 else (22, 16)
        return ipaddress.ip_address(self.data[start + which * size : start + (which + 1) * size])

    @property
    def source(self) -> Address | None:
        """The sender's address; None without IP."""
        return self._address(0)

    @property
    def destination(self) -> Address | None:
        """The receiver's address; None without IP."""
        return self._address(1)

    @property
    def ports(self) -> tuple[int, int] | None:
        """Ports of source and destination, of TCP and UDP."""
        ip = self._ip()
        if ip is None or ip[1] not in (6, 17) or len(self.data) < ip[2] + 4:
            return None
        at = ip[2]
        source, destination = self.data[at : at + 2], self.data[at + 2 : at + 4]
        return int.from_bytes(source, "big"), int.from_bytes(destination, "big")

    @property
    def flags(self) -> str:
        """TCP's flags (RFC 9293), such as ``SYN ACK``; "" of anything else."""
        ip = self._ip()
        if ip is None or self.protocol != "tcp" or len(self.data) < ip[2] + 14:
            return ""
        bits = self.data[ip[2] + 13]
        return " ".join(name for bit, name in enumerate(_FLAGS) if bits >> bit & 1)

    @property
    def payload(self) -> bytes:
        """What TCP or UDP carries; b"" otherwise."""
        ip = self._ip()
        if ip is None or self.ports is None:
            return b""
        size = 8 if self.protocol == "udp" else (self.data[ip[2] + 12 : ip[2] + 13] or b"\0")[0] // 16 * 4
        total = int.from_bytes(self.data[16:18] if ip[0] == 4 else self.data[18:20], "big")
        return self.data[ip[2] + size : 14 + total + (0 if ip[0] == 4 else 40)]


class Capture(Closing):
    """A capture, made by `Network.capture`. A context manager: leaving it ends it; what it holds stays.

    Iterating gives the packets captured so far, from the first on, each time anew.

    Attributes:
        path: the pcapng file; None for one in memory.
    """

    def __init__(self, network: Network, path: StrPath | None, request: str) -> None:
        self._network = network
        self.path = None if path is None else os.path.abspath(path)
        if self.path is not None and os.path.exists(self.path) and not os.path.isfile(self.path):
            raise SpecError(f"path: {self.path} is no regular file")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_APPEND | os.O_NONBLOCK
        self._file = (
            os.memfd_create("r2d2-capture") if self.path is None else os.open(self.path, flags, 0o666)
        )
        self._ended: tuple[int, int] | None = None
        try:
            self._number = int(network._ask(request, [self._file]))
        except BaseException:
            os.close(self._file)
            raise

    def __del__(self) -> None:
        file = getattr(self, "_file", -1)
        if file >= 0 and hasattr(self, "_number"):
            os.close(file)

    def close(self) -> None:
        """Ends it. Idempotent."""
        self.stop()

    def stop(self) -> tuple[int, int]:
        """Ends it: frames that were captured, and frames that there was no room for. Idempotent."""
        if self._ended is None:
            self._ended = self.counts
            with suppress(OSError, ContainerClosed):  # the network has ended, and the capture with it
                self._network._ask(f"uncapture {self._number}")
        return self._ended

    @property
    def counts(self) -> tuple[int, int]:
        """Frames that were captured so far, and frames that there was no room for."""
        if self._ended is None:
            try:
                frames, dropped = map(int, self._network._ask(f"captured {self._number}").split())
            except (OSError, ContainerClosed):  # the network has ended; the file is what there is
                return sum(1 for _ in self._packets()), 0
            return frames, dropped
        return self._ended

    def __iter__(self) -> Iterator[Packet]:
        _ = self.counts  # once the engine has answered, everything before is in the file
        return self._packets()

    def wait(self, match: Callable[[Packet], object], timeout: float = 10.0) -> Packet:
        """The first packet for which ``match`` is true, as soon as there is one.

        Raises:
            TimeoutError: there is none after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            late = time.monotonic() >= deadline
            for packet in self:
                if match(packet):
                    return packet
            if late:
                raise TimeoutError(f"no such packet among {self.counts[0]} after {timeout} s")
            time.sleep(0.005)

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        at, end = 0, os.fstat(self._file).st_size
        while at + 12 <= end:
            head = os.pread(self._file, 8, at)
            kind, size = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
            if size < 12 or at + size > end:
                return
            yield kind, os.pread(self._file, size - 12, at + 8)
            at += size

    def _packets(self) -> Iterator[Packet]:
        nodes: list[str] = []
        for kind, body in self._blocks():
            if kind == pcapng.INTERFACE:
                nodes.append(pcapng.interface_name(body))
            elif kind == pcapng.PACKET:
                number, when, received, data, length = pcapng.frame(body)
                yield Packet(when, nodes[number], received, data, length)


def listed(value: str | int | Iterable[str] | Iterable[int] | None) -> list[str]:
    """One or several, as words."""
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | int) else [str(each) for each in value]


def request(
    nodes: list[str],
    at: str | None,
    protocol: str | Iterable[str] | None,
    port: int | Iterable[int] | None,
    host: str | Iterable[str] | None,
    snap: int,
    limit: int | None,
) -> str:
    """A capture as the engine reads it.

    Raises:
        SpecError: it can never work.
    """
    at = at or ("both" if nodes else "sent")
    if at not in _POINTS:
        raise SpecError(f"at: {at!r} is not {', '.join(_POINTS)}")
    protocols, ports, hosts = listed(protocol), listed(port), listed(host)
    for name in protocols:
        if name not in _PROTOCOLS:
            raise SpecError(f"protocol: {name!r} is not {', '.join(_PROTOCOLS)}")
    for number in ports:
        if not number.isdigit() or not 0 < int(number) < 65536:
            raise SpecError(f"port: {number} is not a port")
    try:
        networks = [ipaddress.ip_network(ipaddress.ip_address(address)) for address in hosts]
    except ValueError as error:
        raise SpecError(f"host: {error}") from None
    if not 1 <= snap <= 262144:
        raise SpecError(f"snap: {snap!r} is not between 1 and 262144 bytes")
    if limit is not None and limit < 1024:
        raise SpecError(f"limit: {limit!r} is not a size of at least 1024 bytes")
    groups = (protocols, [f"port={number}-{number}" for number in ports], [f"net={net}" for net in networks])
    words = _joined([_joined(group, "or") for group in groups if group], "and")
    lines = [" ".join(["capture", str(snap), str(2**63 if limit is None else limit), *words])]
    lines += [point for point in ("sent", "received") if at in (point, "both")]
    lines += [f"node {name}" for name in nodes]
    return "\n".join(lines)


def _joined(parts: list[str] | list[list[str]], word: str) -> list[str]:
    """The parts of an expression in postfix form, as the engine's filter takes it."""
    words: list[str] = []
    for number, part in enumerate(parts):
        words += [part] if isinstance(part, str) else part
        if number:
            words.append(word)
    return words
