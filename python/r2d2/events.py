"""What happens on a user-mode network, as it happens: flows, refusals, ports, the engine's end.

The engine writes each event to a socket that it was given for that, and never waits for a reader: who does
not read misses some, and is told how many.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from .closing import Closing

if TYPE_CHECKING:
    from . import _core

__all__ = ["Event", "Events"]

Kind: TypeAlias = Literal["opened", "closed", "refused", "port-added", "port-removed", "missed", "ended"]

_MAX = 1 << 16
_PORTS: dict[str, Kind] = {"forward-added": "port-added", "forward-removed": "port-removed"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        kind: ``opened`` or ``closed`` (a flow), ``refused`` (a flow, by policy), ``port-added`` or
            ``port-removed``, ``missed`` (events, not read in time), ``ended`` (the engine; the last).
        time: when this process learnt of it, in seconds since 1970.
        protocol: ``tcp``, ``udp`` or ``icmp``.
        guest: address and port inside.
        remote: address and port outside, as known inside; of a port, where the host listens.
        reason: of ``refused`` how the guest sees it: ``network`` (``ENETUNREACH``), ``host`` or
            ``prohibited`` (``EHOSTUNREACH``), ``port`` (``ECONNREFUSED``). Of ``ended`` how:
            ``signal SIGKILL``, or ``exit 0`` (closed, or the process that it served is gone); ``unknown``
            only of a detached container's network, before Linux 6.15.
        sent: of ``closed`` how many bytes of payload left the guest.
        received: of ``closed`` how many came in.
        count: of ``missed`` how many.
    """

    kind: Kind
    time: float
    protocol: str = ""
    guest: str = ""
    remote: str = ""
    reason: str = ""
    sent: int = 0
    received: int = 0
    count: int = 0


def _event(line: str, now: float) -> Event:
    from urllib.parse import unquote

    word, *rest = line.split(" ")
    if word == "missed":
        return Event("missed", now, count=int(rest[0]))
    protocol, guest, remote, *more = rest
    if word in _PORTS:
        return Event(_PORTS[word], now, protocol, guest, unquote(remote))
    if word == "closed":
        return Event("closed", now, protocol, guest, remote, sent=int(more[0]), received=int(more[1]))
    if word == "refused":
        return Event("refused", now, protocol, guest, remote, more[0])
    return Event("opened", now, protocol, guest, remote)


class Events(Closing):
    """A network's events from now on; made by `Network.events`. An iterator and a context manager.

    Iterating waits for the next event, and ends after ``ended``. For use by one thread at a time.
    """

    def __init__(self, network: _core.Network) -> None:
        self._network = network
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._waiting: list[Event] = []
        self._ended = False
        with theirs:
            try:
                network.request("events", [theirs.fileno()])
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        """A descriptor that is readable when there are events (select, poll, asyncio)."""
        return self._socket.fileno()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none within ``timeout`` seconds, or after ``ended``."""
        while not self._waiting:
            if self._ended or not self._readable(timeout):
                return None
            self._read()
        return self._waiting.pop(0)

    def _readable(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def _read(self) -> None:
        now = time.time()
        try:
            text = self._socket.recv(_MAX).decode()
        except ConnectionResetError:
            text = ""
        if text:
            self._waiting += [_event(line, now) for line in text.splitlines()]
        else:
            self._ended = True
            self._waiting.append(Event("ended", now, reason=self._reason()))

    def _reason(self) -> str:
        deadline = time.monotonic() + 5
        while (code := self._network.outcome()) is None:
            # Its sockets are closed: it will not be long.
            if time.monotonic() > deadline:
                return "unknown"
            time.sleep(0.001)
        if code >= 0:
            return f"exit {code}"
        return f"signal {signal.Signals(-code).name}"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Listens no longer. A second call does nothing."""
        self._ended = True
        self._waiting.clear()
        self._socket.close()
