"""What the engine tells of as it happens, and what each flow has carried."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import echo, interfaces, python, server, spawn
from _needs import needs
from _proc import until
from r2d2 import slirp

if TYPE_CHECKING:
    from pathlib import Path

    from r2d2.events import Event, Events

pytestmark = needs("unshare")


def next_of(events: Events, kind: str, protocol: str = "tcp") -> Event:
    """The next of a kind; a namespace says many other things of its own."""
    while (event := events.get(20)) is not None:
        if event.kind == kind and event.protocol in (protocol, ""):
            return event
    raise AssertionError(f"no {kind} came")


def drained(events: Events) -> int:
    """Reads what there is: how many were missed."""
    missed = 0
    while (event := events.get(0)) is not None:
        missed += event.count
    return missed


def test_flows_are_told_with_what_they_carried(guest: int, device: slirp.Device) -> None:
    with (
        server(echo) as port,
        slirp.attach(guest, host_loopback=[port], device=device) as network,
        network.events() as events,
    ):
        code = """
s = socket.create_connection(("10.0.2.2", {}), 10)
s.sendall(b"x" * 5000); n = 0
while n < 5000: n += len(s.recv(9999))
print(s.getsockname()[1], flush=True); {}
"""
        with spawn(guest, code.format(port, "s.recv(1)")) as held:
            assert held.stdout is not None
            here = f"10.0.2.100:{int(held.stdout.readline())}"
            opened = next_of(events, "opened")
            assert (opened.guest, opened.remote) == (here, f"10.0.2.2:{port}")
            (flow,) = [flow for flow in network.flows() if flow.protocol == "tcp"]
            assert (flow.guest, flow.sent, flow.received, flow.resent) == (here, 5000, 5000, 0)
            held.kill()
        closed = next_of(events, "closed")
        assert (closed.guest, closed.sent, closed.received) == (here, 5000, 5000)
        with pytest.raises(AssertionError, match="unreachable"):
            python(guest, code.format(port + 1 if port < 65535 else 1, "0"))
        refused = next_of(events, "refused")
        assert (refused.reason, refused.remote.split(":")[0]) == ("network", "10.0.2.2")
        assert events.get(0) is None or network.alive


def test_refusals_by_rule_of_every_protocol(guest: int) -> None:
    with slirp.attach(guest, deny=["192.0.2.0/24"]) as network, network.events() as events:
        python(
            guest,
            """
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(5)
    try: s.connect(("192.0.2.7", 25)); s.send(b"x"); s.recv(1)
    except OSError: pass
""",
        )
        for protocol in ("tcp", "udp"):
            refused = next_of(events, "refused", protocol)
            assert (refused.remote, refused.reason) == ("192.0.2.7:25", "prohibited")


def test_udp_and_dns_are_counted(guest: int) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        slirp.attach(guest, host_loopback=True, names={"db": "10.0.2.9"}) as network,
    ):
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        port = peer.getsockname()[1]
        with spawn(
            guest,
            f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
s.sendto(bytes(700), ("10.0.2.2", {port})); assert len(s.recv(9000)) == 1300
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.settimeout(20)
d.sendto(b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2db\\0\\0\\1\\0\\1", ("10.0.2.3", 53))
print(len(d.recv(999)), flush=True)
time.sleep(60)
""",
        ) as held:
            peer.sendto(bytes(1300), peer.recvfrom(9000)[1])
            assert held.stdout is not None
            answer = int(held.stdout.readline())
            flows = {flow.remote: flow for flow in network.flows() if flow.protocol == "udp"}
            direct, dns = flows[f"10.0.2.2:{port}"], flows["10.0.2.3:53"]
            assert (direct.sent, direct.received, direct.state) == (700, 1300, "replied")
            assert (dns.sent, dns.received) == (20, answer)
            held.kill()


def test_ports_are_told_to_all_who_listen(guest: int, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with slirp.attach(guest) as network, network.events() as one, network.events() as other:
        port = network.add_port(0, 80)
        network.add_socket(path, 81)
        network.remove_port(port)
        for events in (one, other):
            added = next_of(events, "port-added")
            assert (added.guest, added.remote) == ("10.0.2.100:80", f"127.0.0.1:{port.host_port}")
            assert next_of(events, "port-added").remote == str(path)
            assert next_of(events, "port-removed").remote == added.remote


def test_death_of_the_engine_is_the_last_event(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, device=device) as network, network.events() as events:
        assert not select.select([events], [], [], 0)[0] or events.get(0)
        os.kill(network.pid, signal.SIGKILL)
        assert select.select([events], [], [], 20)[0]
        told = list(events)
        assert (told[-1].kind, told[-1].reason) == ("ended", "signal SIGKILL")
        assert events.get(0) is None


def test_end_of_the_guest_and_of_the_network(guest: int) -> None:
    network = slirp.attach(guest)
    with network, network.events() as events:
        network.close()
        assert next_of(events, "ended").reason == "exit 0"
        with pytest.raises(r2d2.ContainerClosed):
            network.events()
    # The kernel takes a namespace apart when it finds the time.
    assert until(lambda: "tap0" not in interfaces(guest), 20)
    with slirp.attach(guest) as network, network.events() as events:
        os.kill(guest, signal.SIGKILL)
        assert next_of(events, "ended").reason == "exit 0"


def test_who_does_not_read_misses_some_and_is_told(guest: int) -> None:
    flood = """
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(5000):
    try: u.sendto(b"x", ("10.0.2.2", 1 + i))
    except OSError: pass
"""
    with slirp.attach(guest) as network, network.events() as idle, network.events() as events:
        for _ in range(20):
            python(guest, flood)
            if network.stats()["refused"] > 20_000:
                break
        told = {listener: drained(listener) for listener in (idle, events)}
        # What is told next says how many are missing, if nothing has yet.
        network.add_port(0, 80)
        for listener, missed in told.items():
            assert (missed or next_of(listener, "missed").count) > 0
        assert network.alive


def test_listeners_are_limited_and_those_who_left_do_not_count(guest: int) -> None:
    with slirp.attach(guest) as network:
        for _ in range(40):
            network.events().close()
        held = [network.events() for _ in range(16)]
        with pytest.raises(r2d2.SetupError) as failure:
            network.events()
        assert failure.value.step == "listen to events"
        for events in held:
            events.close()
        network.events().close()
