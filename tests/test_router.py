"""Several networks: containers in more than one, routers between them, and the way out."""

from __future__ import annotations

import errno
import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import asked, echo, inside, namespace, out, python, resolver, server, serving
from _needs import needs
from _nodes import ECHO, nodes
from _proc import until

if TYPE_CHECKING:
    from r2d2 import slirp

pytestmark = needs("unshare")


def test_router_between_two_networks(device: slirp.Device) -> None:
    with (
        r2d2.Network(device=device) as left,
        r2d2.Network(device=device) as right,
        namespace() as router,
        namespace() as a,
        namespace() as b,
    ):
        inner = left.join(router, name="router", forward=True)
        outer = right.join(router, name="router", interface="eth1", forward=True)
        there = {str(right.subnet): str(inner.address), str(right.subnet6): str(inner.address6)}
        back = {str(left.subnet): str(outer.address), str(left.subnet6): str(outer.address6)}
        one, two = left.join(a, name="a", routes=there), right.join(b, name="b", routes=back)
        assert one.address not in right.subnet
        for address in (two.address, two.address6):
            assert inside(a, "ping", "-c2", "-i0.2", "-W5", str(address)).returncode == 0
        with serving(b, ECHO):
            code = f"""
s = socket.create_connection(("{two.address}", 7), 10); s.sendall(b"hello")
print(s.recv(5), s.getpeername()[0])
"""
            assert python(a, code) == f"b'hello' {two.address}"
        # Without the router there is no way.
        left.cut("a", "router")
        assert inside(a, "ping", "-c1", "-W1", str(two.address)).returncode != 0


def test_container_in_two_networks_knows_both() -> None:
    with (
        r2d2.Network() as front,
        r2d2.Network() as back,
        r2d2.Container("host", name="db", network=back) as db,
        r2d2.Container("host", name="app", network=[front, back]) as app,
        r2d2.Container("host", name="web", network=front) as web,
    ):
        assert [i.name for i in app.interfaces] == ["eth0", "eth1"]
        assert out(app, "getent", "ahostsv4", "db").split()[0] == str(db.interfaces[0].address)
        assert out(app, "getent", "ahostsv4", "web").split()[0] == str(web.interfaces[0].address)
        assert out(web, "getent", "ahostsv4", "app").split()[0] == str(app.interfaces[0].address)
        assert out(db, "getent", "ahostsv4", "app").split()[0] == str(app.interfaces[1].address)
        # Who is in one network only knows that one.
        assert web.run(["getent", "ahostsv4", "db"], timeout=20).returncode == 2
        db.stop()
        assert app.run(["getent", "ahostsv4", "db"], timeout=20).returncode == 2
        assert out(app, "getent", "ahostsv4", "web")


def test_ports_lead_to_members(image: r2d2.Image) -> None:
    script = "echo ready; while :; do printf $0 | nc -l -p 80; done"
    for gateway in (False, True):
        with (
            r2d2.Network(gateway=gateway) as net,
            r2d2.Container(image, name="one", network=net, ports=["0:80"]) as one,
            r2d2.Container(image, name="two", network=net, ports={0: 80}) as two,
        ):
            for c in (one, two):
                with c.popen(["sh", "-c", script, c.name], stdout=subprocess.PIPE) as serves:
                    assert serves.stdout is not None
                    serves.stdout.readline()
                    (port,) = c.ports
                    assert port.guest == str(c.interfaces[0].address)
                    assert until(lambda c=c: "0050" in out(c, "cat", "/proc/net/tcp", "/proc/net/tcp6"))
                    with socket.create_connection(("127.0.0.1", port.host_port), 10) as client:
                        assert client.recv(100) == c.name.encode()
                    serves.kill()
            assert one.network is not None
            assert one.network.stats()["frames_out"] > 0
            two.stop()
            assert len(one.ports) == 1, "another member's end is not its own"
            one.stop()
            assert one.ports == ()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port.host_port), 10)
    with pytest.raises(r2d2.SpecError, match="70000"):
        r2d2.Container(image, network=net, ports={70000: 80})


def test_port_in_use_ends_the_container(image: r2d2.Image) -> None:
    with r2d2.Network() as net, closing(socket.create_server(("127.0.0.1", 0))) as taken:
        container = r2d2.Container(image, network=net, ports={taken.getsockname()[1]: 80})
        with pytest.raises(r2d2.NetworkError, match="EADDRINUSE"):
            container.start()
        assert not container.running
        assert not net.members


def test_without_a_gateway_nobody_is_reached() -> None:
    with r2d2.Network() as net, nodes(net, "a") as pids, server(echo) as port:
        for host in ("192.0.2.1", "127.0.0.1"):
            code = f"""
try: socket.create_connection(("{host}", {port}), 5)
except OSError as e: print(e.errno)
"""
            assert python(pids["a"], code) in (str(errno.ENETUNREACH), str(errno.ECONNREFUSED))
        # Nor by a route of its own.
        resolver = str(net.resolver)
        assert inside(pids["a"], "ip", "route", "add", "default", "via", resolver).returncode == 0
        code = """
try: socket.create_connection(("192.0.2.1", 80), 5)
except OSError as e: print(e.errno)
"""
        assert python(pids["a"], code) == str(errno.ENETUNREACH)


def test_gateway_leads_out_and_names_are_relayed(device: slirp.Device) -> None:
    with resolver() as outside, server(echo) as port:
        way = r2d2.Slirp(host_loopback=[port], resolvers=[outside])
        with r2d2.Network(gateway=way, device=device) as net, nodes(net, "a", "b") as pids:
            gateway = net.subnet.network_address + 1
            for pid in pids.values():
                assert f"default via {gateway}" in inside(pid, "ip", "route").stdout
                code = f"""
import threading
s = socket.create_connection(("{gateway}", {port}), 10)
data = bytes(range(256)) * 4096
threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
got = b""
while part := s.recv(65536): got += part
print(got == data)
"""
                assert python(pid, code) == "True"
                assert inside(pid, "ping", "-c1", "-W5", str(gateway)).returncode == 0
            own, other = asked(pids["a"], str(net.resolver), "b", "example")
            assert own.replace(" ", ".") == str(net.members["b"].address)
            assert other == "192 0 2 7"
            # The way out is a link as all others.
            net.cut("a", "gateway")
            assert inside(pids["a"], "ping", "-c1", "-W1", str(gateway)).returncode != 0
            assert inside(pids["b"], "ping", "-c1", "-W5", str(gateway)).returncode == 0
