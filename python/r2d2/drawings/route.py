"""The way of a packet out of a container: its own stack, the interface, the engine, the host's sockets."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from r2d2.errors import ContainerClosed, SpecError

from .canvas import BLUE, GREEN, ORANGE, RED, Canvas, Drawing

if TYPE_CHECKING:
    from r2d2.netspec import Slirp
    from r2d2.slirp import Network

_WIDE = 900


class _End(NamedTuple):
    """Where it is to go."""

    host: str
    port: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def _end(text: str) -> _End:
    if not isinstance(text, str) or not text:
        raise SpecError(f"destination={text!r}: 'ADDRESS', 'ADDRESS:PORT', '[ADDRESS6]:PORT' or 'NAME:PORT'")
    host, port = text, ""
    if text.startswith("["):
        host, _, tail = text[1:].partition("]")
        port = tail.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SpecError(f"destination={text!r}: {port!r} is no port")
    try:
        return _End(host, port, ipaddress.ip_address(host))
    except ValueError:
        return _End(host, port, None)


def packet(target: Any, destination: str) -> Drawing:
    """See `r2d2.drawings.packet`."""
    from r2d2.container import Container
    from r2d2.slirp import Network

    end = _end(destination)
    if isinstance(target, Network):
        return _slirp(target, None, "the namespace", end)
    if not isinstance(target, Container):
        raise SpecError(f"{target!r}: a Container or a slirp.Network")
    if target.spec.network == "bridge":
        raise SpecError('network="bridge": its packets are the kernel\'s; there is no engine to draw')
    if target.network is not None:
        return _slirp(target.network, cast("Slirp | None", target.spec.slirp), target.name, end)
    if not target.running:
        raise ContainerClosed(f"container {target.name} does not run")
    return _plain(target, end)


def _slirp(network: Network, options: Slirp | None, name: str, end: _End) -> Drawing:
    if not network.alive:
        raise ContainerClosed("the network is closed")
    stats = network.stats()
    source = network.address6 if end.address is not None and end.address.version == 6 else network.address
    verdict, leads, passes = _verdict(network, options, end)
    canvas = Canvas(_WIDE, f"The way of a packet from {name} to {end}")
    canvas.text(2, 20, f"A packet from {name} to {end}", bold=True, size=14)
    canvas.rect(1, 34, 898, 128, color=BLUE, fill=0.06, dashed=True)
    canvas.text(16, 54, f"network namespace of {name}", size=12, faint=True, room=600)
    boxes = (
        ("program", "connect(2), sendto(2)", f"to {end}"),
        ("kernel: TCP, UDP, ICMP", f"source {source}", "sums, sequence numbers"),
        ("routing table", _via(network, end), "ip route"),
        (f"{network.ifname} ({network.device})", f"{source}", "one end of the wire"),
    )
    for i, (title, first, second) in enumerate(boxes):
        x = 16 + i * 222
        _box(canvas, x, 66, 200, title, first, second, BLUE)
        if i:
            canvas.arrow(x - 20, 106, x - 2, 106)
    canvas.arrow(782, 148, 782, 214, both=passes)
    frames = f"frames: {stats.get('frames_in', 0)} out, {stats.get('frames_out', 0)} in"
    canvas.text(770, 186, frames, size=11.5, anchor="end", faint=True)
    canvas.text(16, 208, f"the host: ordinary sockets of uid {os.getuid()}", size=12, faint=True)
    color = GREEN if passes else RED
    hosts = (
        (f"engine (pid {network.pid})", "reads Ethernet frames", verdict),
        ("ordinary socket", "its own connection", "no packet is forwarded"),
        ("kernel of the host", "the host's own address", "its routes, its firewall"),
        (leads, "answers the host", "and never sees " + str(source)),
    )
    for i, (title, first, second) in enumerate(hosts):
        x = 682 - i * 222
        if i and not passes:
            break
        _box(canvas, x, 218, 200, title, first, second, color if i in {0, 3} else ORANGE)
        if i:
            canvas.arrow(x + 220, 258, x + 202, 258, both=True)
    if not passes:
        canvas.text(660, 252, "✕", size=26, color=RED, anchor="end", bold=True)
        canvas.text(632, 252, leads, anchor="end", room=600)
    counted = [f"{stats[key]} {words}" for key, words in _COUNTS if stats.get(key)]
    flows = [
        flow for flow in network.flows() if end.address is None or flow.remote.startswith(str(end.address))
    ]
    y = 326.0
    canvas.text(2, y, "Counted so far: " + (", ".join(counted) or "nothing"), size=11.5, faint=True)
    for flow in flows[:3]:
        y += 18
        canvas.text(2, y, f"{flow.protocol} {flow.guest} ↔ {flow.remote} {flow.state}", size=11.5, mono=True)
    lines = [f"from {name} to {end}:"]
    lines += [f"  {title}: {first}, {second}" for title, first, second in boxes]
    shown = hosts if passes else hosts[:1]
    lines += [f"  {title}: {first}, {second}" for title, first, second in shown]
    lines += [] if passes else [f"  refused: {leads}"]
    lines += [f"  flow: {flow.protocol} {flow.guest} - {flow.remote} {flow.state}" for flow in flows]
    return canvas.drawing("\n".join(lines))


_COUNTS = (
    ("bytes_in", "bytes out"), ("bytes_out", "bytes in"), ("tcp_out", "TCP connections out"),
    ("tcp_in", "TCP connections in"), ("datagram_flows", "datagram flows"), ("refused", "refused"),
    ("retransmits", "retransmissions"),
)  # fmt: skip


def _via(network: Network, end: _End) -> str:
    if end.address is None:
        return f"default via {network.gateway}"
    if end.address in (network.gateway, network.dns):
        return f"on link, dev {network.ifname}"
    if end.address.version == 6:
        return f"default via fd00::2, dev {network.ifname}" if network.address6 else "no IPv6 here"
    return f"default via {network.gateway}"


def _verdict(network: Network, options: Slirp | None, end: _End) -> tuple[str, str, bool]:
    """What the engine does with it: in a few words, where it leads, whether it goes on."""
    found = "takes the data out of it", str(end), True
    if end.address is None:
        found = f"first asks DNS {network.dns}", str(end), True
    elif end.address == network.dns and end.port in {"", "53"}:
        found = "relays the query", "resolver of the host", True
    elif end.address in {network.gateway, network.dns}:
        found = "the router is the host", f"127.0.0.1:{end.port}".rstrip(":"), True
        if options is not None and not _loopback(options, end):
            found = "answers ENETUNREACH", "the host's loopback is closed: host_loopback opens it", False
    elif end.address.version == 6 and network.address6 is None:
        found = "no IPv6: ipv6=False", "this network has no IPv6", False
    elif options is not None and _denied(options, end):
        found = "denied by a rule", f"deny holds {end}", False
    return found


def _loopback(options: Slirp, end: _End) -> bool:
    """Whether the router's address leads to this port of the host's loopback."""
    given = options.host_loopback
    return given if isinstance(given, bool) else bool(end.port) and int(end.port) in given


def _denied(options: Slirp, end: _End) -> bool:
    """As the engine decides: the first rule that holds, allow before deny."""
    return not _held(options.allow, end) and _held(options.deny, end)


def _held(rules: Any, end: _End) -> bool:
    from r2d2.netspec import checked_rule

    for rule in rules:
        _, network, ports = checked_rule("rule", rule).split(" ")
        low, high = map(int, ports.split("-"))
        if end.port and not low <= int(end.port) <= high:
            continue
        if network == "*" or (end.address is not None and end.address in ipaddress.ip_network(network)):
            return True
    return False


def _plain(container: Any, end: _End) -> Drawing:
    """``network="none"`` and ``"host"``."""
    shared = container.spec.network == "host"
    own = end.address is not None and end.address.is_loopback
    canvas = Canvas(_WIDE, f"The way of a packet from {container.name} to {end}")
    canvas.text(2, 20, f"A packet from {container.name} to {end}", bold=True, size=14)
    canvas.rect(1, 34, 898, 128, color=BLUE, fill=0.06, dashed=not shared)
    where = "the host's network namespace" if shared else f"network namespace of {container.name}"
    canvas.text(16, 54, where, size=12, faint=True, room=600)
    boxes = [("program", "connect(2), sendto(2)", f"to {end}"), ("kernel: TCP, UDP, ICMP", "its socket", "")]
    if shared:
        boxes += [("routing table", "the host's own", "ip route"), (str(end), "nothing between", "")]
    elif own:
        boxes += [("routing table", "local", "ip route"), ("lo", "comes back here", "never the host's lo")]
    else:
        boxes += [("routing table", "no route", "only lo is here")]
    for i, (title, first, second) in enumerate(boxes):
        x = 16 + i * 222
        _box(canvas, x, 66, 200, title, first, second, RED if first == "no route" else BLUE)
        if i:
            canvas.arrow(x - 20, 106, x - 2, 106, both=i == 3)
    refused = not shared and not own
    if refused:
        canvas.text(686, 112, "✕", size=26, color=RED, bold=True)
        canvas.text(716, 104, "ENETUNREACH", mono=True, size=12.5)
        canvas.text(716, 122, 'network="slirp" has a way', size=11.5, faint=True)
    lines = [f"from {container.name} to {end}:"]
    lines += [f"  {', '.join(filter(None, box))}" for box in boxes]
    lines += ["  refused: ENETUNREACH"] if refused else []
    return canvas.drawing("\n".join(lines))


def _box(
    canvas: Canvas, x: float, y: float, wide: float, title: str, first: str, second: str, color: str
) -> None:
    canvas.rect(x, y, wide, 80, color=color, fill=0.12)
    canvas.text(x + wide / 2, y + 25, title, bold=True, anchor="middle", room=wide - 14)
    canvas.text(x + wide / 2, y + 47, first, size=12, anchor="middle", room=wide - 14)
    canvas.text(x + wide / 2, y + 66, second, size=11.5, anchor="middle", faint=True, room=wide - 14)
