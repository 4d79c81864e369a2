"""A network of containers that remembers what happened to it, for the report of a test that fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from r2d2.drawings.wiring import words
from r2d2.switch import Network

if TYPE_CHECKING:
    from r2d2.switch.capture import Packet
    from r2d2.switch.link import Impairment
    from r2d2.switch.member import Interface

#: Events and packets that a report shows.
EVENTS, PACKETS = 20, 12
#: Bytes that are kept of each packet, and of all.
_SNAP, _ROOM = 128, 4 << 20


class RecordedNetwork(Network):
    """A ``Network`` with a memory: of members, of links, and of the packets that were sent."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.events: list[tuple[float, str]] = []
        self._began = time.time()
        self._overheard: Any = None

    @property
    def running(self) -> bool:
        """As a container says it."""
        return self.alive

    def start(self) -> RecordedNetwork:
        """As `Network.start`."""
        super().start()
        self._began = time.time()
        self._overheard = self.capture(snap=_SNAP, limit=_ROOM)
        return self

    def _event(self, what: str) -> None:
        self.events.append((time.time() - self._began, what))
        del self.events[: -4 * EVENTS]

    def _connect(self, pid: int, interface: Interface, *, default_route: bool) -> Interface:
        joined = super()._connect(pid, interface, default_route=default_route)
        self._event(f"{joined.node} joined: {joined.address}")
        return joined

    def _release(self, node: str) -> None:
        was = node in self._seats
        super()._release(node)
        if was:
            self._event(f"{node} left")

    def _impair(self, direction: tuple[str, str], how: Impairment) -> None:
        super()._impair(direction, how)
        sender, receiver = direction
        self._event(f"{sender or 'all'} → {receiver or 'all'}: {words(how) or 'a good link'}")

    def _cut(self, how: str, ways: list[tuple[str, str]]) -> None:
        super()._cut(how, ways)
        shown = ", ".join(f"{a} → {b}" for a, b in ways[:6])
        more = f" and {len(ways) - 6} more" if len(ways) > 6 else ""
        self._event(f"{'cut' if how == 'on' else 'healed'}: {shown}{more}")

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """As `Network.heal`."""
        super().heal(a, b)
        if a is None:
            self._event("healed: all")

    def sections(self, *, verbose: bool = False) -> list[tuple[str, str]]:
        """For a test's report: what happened, what its links do and passed, the last packets."""
        del verbose
        lines = []
        try:
            lines += self.draw(counters=True).text.splitlines()
        except Exception as error:  # noqa: BLE001 - a report must not fail
            state = "was not started" if self._network is None else f"does not run: {error}"
            lines.append(f"network {self.name}: {state}")
        if self.events:
            lines.append("events:")
            lines += ["  ..."] if len(self.events) > EVENTS else []
            lines += [f"  {when:8.3f} s {what}" for when, what in self.events[-EVENTS:]]
        lines += self._packets()
        return [(f"r2d2 network {self.name}", "\n".join(lines))]

    def _packets(self) -> list[str]:
        if self._overheard is None:
            return []
        try:
            frames, dropped = self._overheard.counts
            last = [each for each in self._overheard if not _housekeeping(each)][-PACKETS:]
        except Exception as error:  # noqa: BLE001 - a report must not fail
            return [f"packets: {type(error).__name__}: {error}"]
        if not last:
            return [f"packets: {frames} were sent, all of them the kernel's own"]
        more = f", before {dropped} for which there was no room" if dropped else ""
        lines = [f"the last {len(last)} of {frames} packets sent{more}:"]
        return [*lines, *(f"  {each.time - self._began:8.3f} s {_told(each)}" for each in last)]


def _housekeeping(packet: Packet) -> bool:
    """Whether it is the kernel's own: who has an address, who listens to a group (RFC 4861, RFC 3810)."""
    to = packet.destination
    return packet.protocol == "icmp" and to is not None and to.is_multicast


def _told(packet: Packet) -> str:
    """A line about a packet."""
    if packet.source is None:
        return f"{packet.node}: {packet.protocol or 'other'}, {packet.length} bytes"
    ends = [str(packet.source), str(packet.destination)]
    if packet.ports is not None:
        ends = [f"[{end}]" if ":" in end else end for end in ends]
        ends = [f"{end}:{port}" for end, port in zip(ends, packet.ports, strict=True)]
    flags = f" {packet.flags}" if packet.flags else ""
    kind = f"{packet.protocol or 'ip'}{flags}"
    return f"{packet.node}: {kind} {ends[0]} → {ends[1]}, {packet.length} bytes"
