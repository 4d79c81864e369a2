"""``network="bridge"``: who reaches whom, and as whom, in a namespace that plays the host."""

from __future__ import annotations

import errno
import socket

import pytest

import r2d2
from _host import HOST, HOST6, WORLD, WORLD6, Host, ask, heard, net, serving
from _needs import needs

pytestmark = needs("unshare")
root = needs("root", "nft")


@root
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_world_sees_the_hosts_address(host: Host, kind: str) -> None:
    with host.world.serving(7000), r2d2.Container(network="bridge") as c:
        assert ask(c, WORLD, 7000, kind) == HOST
        assert ask(c, WORLD6, 7000, kind) == HOST6
        assert ask(c, WORLD, 7001) == "ECONNREFUSED"
        stats = net(c).stats()
        assert stats["tx_packets"] > 3
        assert stats["rx_bytes"] > 100


@root
def test_addresses_inside(host: Host) -> None:
    with r2d2.Container(network="bridge") as c:
        n = net(c)
        assert (n.device, n.ifname, str(n.gateway)) == ("veth", "eth0", "10.210.0.1")
        assert n.host_ifname == f"r2d2-{int(n.address):08x}"
        assert f"dev {n.host_ifname}" in host.sh(f"ip route get {n.address}")
        found = c.run(["ip", "-o", "address", "show", "eth0"], capture_output=True, text=True).stdout
        assert f"{n.address}/32" in found
        assert f"{n.address6}/128" in found
        assert "bridge: eth0" in c._repr_mimebundle_()["text/html"]
        with pytest.raises(r2d2.SpecError, match="no engine to draw"):
            r2d2.drawings.packet(c, "192.0.2.1:80")
        assert "default via 10.210.0.1" in c.run(["ip", "route"], capture_output=True, text=True).stdout
    assert not n.alive


@root
def test_published_ports(host: Host) -> None:
    ports = ["8080:80", "0.0.0.0:8081:80", f"{HOST}:8082:80/udp", "[::]:8083:80", "0.0.0.0:0:80"]
    with r2d2.Container(network="bridge", ports=ports) as c, serving(c):
        n, chosen = net(c), c.ports[-1].host_port
        assert [port.host_port for port in c.ports[:-1]] == [8080, 8081, 8082, 8083]
        # From the loopback, whose addresses are nobody's elsewhere: as the router.
        assert host.ask("127.0.0.1", 8080) == str(n.gateway)
        assert host.ask("127.0.0.1", 8081) == str(n.gateway)
        # From another address of the host's, and from the world: as it is.
        assert host.ask(HOST, 8081) == HOST
        for port, kind in ((8081, "tcp"), (chosen, "tcp"), (8082, "udp")):
            assert host.world.ask(HOST, port, kind) == WORLD
        assert host.world.ask(HOST6, 8083) == WORLD6
        assert host.ask(HOST6, 8083) == HOST6
        # Published on the loopback only; not published at all.
        assert host.world.ask(HOST, 8080) == "ECONNREFUSED"
        assert host.ask(n.address, 80) == str(n.gateway)
        # By the host's address, from itself: it could not answer its own address.
        assert ask(c, HOST, 8081) == str(n.gateway)


@root
def test_only_published_ports_are_open_to_neighbours(host: Host) -> None:
    """A machine of the same network that knows the way."""
    with r2d2.Container(network="bridge", ports=["0.0.0.0:8081:80", "8080:80"]) as c, serving(c):
        address = net(c).address
        host.world.sh(f"ip route add {address} via {HOST}")
        try:
            assert host.world.ask(HOST, 8081) == WORLD
            assert host.world.ask(address, 80, patience=0.5) == "timeout"  # the control: test_by_hand
        finally:
            host.world.sh(f"ip route del {address}")


@root
@pytest.mark.usefixtures("host")
def test_container_speaks_for_itself_and_never_to_the_loopback() -> None:
    """CVE-2020-8558: ``route_localnet``, which a port of the loopback takes, lets neighbours in."""
    with r2d2.Container(network="bridge", ports=["8080:80"]) as c:
        own = net(c).address
        assert heard(c, own, HOST, 10), "as it should be"
        assert not heard(c, own, "127.0.0.1")
        assert not heard(c, "10.210.0.77", HOST), "another container's address"
        assert not heard(c, "198.51.100.1", HOST)


@root
@pytest.mark.usefixtures("host")
def test_containers_reach_each_other() -> None:
    with r2d2.Container(network="bridge") as a, r2d2.Container(network="bridge") as b, serving(b):
        assert ask(a, net(b).address, 80) == str(net(a).address)
        assert ask(a, net(b).address6, 80, "udp") == str(net(a).address6)
        with r2d2.Container(network=r2d2.Bridge(cidr="10.99.0.0/24")) as stranger:
            assert ask(stranger, net(b).address, 80, patience=0.5) == "timeout"
        with r2d2.Container(network="bridge", userns="host") as real:
            assert ask(real, net(b).address, 80) == str(net(real).address)
        with r2d2.Container(network=r2d2.Bridge(ipv6=False, mtu=9000, ifname="net0")) as old:
            assert ask(old, net(b).address, 80) == str(net(old).address)
            assert net(old).address6 is None
            assert old.path("/sys/class/net/net0/mtu").read_text() == "9000\n"


@root
@pytest.mark.usefixtures("host")
def test_datagrams_follow_the_port() -> None:
    """Connection tracking remembers where a client's datagrams went; UDP has no end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind((HOST, 0))

        def answer() -> str:
            client.sendto(b"x", (HOST, 5353))
            return client.recvfrom(100)[0].decode()

        with pytest.raises(OSError, match="refused"):  # remembered as well: nobody
            client.connect((HOST, 5353))
            client.send(b"x")
            client.recv(1)
        for _ in range(2):
            with r2d2.Container(network="bridge", ports=["0.0.0.0:5353:80/udp"]) as c, serving(c):
                assert answer() == HOST


@root
@pytest.mark.usefixtures("host")
def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(r2d2.NetworkError, match="listen on") as caught:
            r2d2.Container(network="bridge", ports={taken: 80}).start()
        assert caught.value.errno == errno.EADDRINUSE
    with r2d2.Container(network="bridge", ports={0: 80}) as c:
        port = c.ports[0].host_port
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        with pytest.raises(r2d2.NetworkError):
            r2d2.Container(network="bridge", ports={port: 80}).start()


@root
def test_ports_come_and_go(host: Host) -> None:
    with r2d2.Container(network="bridge") as c, serving(c):
        n = net(c)
        first, *_ = added = n.add_ports("9000-9004:78-82")
        assert len(added) == 5
        assert host.ask("127.0.0.1", 9002) == str(n.gateway)
        n.remove_port(added[2])
        assert host.ask("127.0.0.1", 9002) == "ECONNREFUSED"
        assert host.ask("127.0.0.1", 9003) == "ECONNREFUSED"  # nobody listens inside
        with pytest.raises(KeyError):
            n.remove_port(added[2])
        n.add_port(9002, 80, protocol="udp")
        assert host.ask("127.0.0.1", 9002, "udp") == str(n.gateway)
        assert first in n.ports
        for what in (n.flows, n.events, lambda: n.capture("x"), lambda: n.add_socket("./x", 80)):
            with pytest.raises(r2d2.UnsupportedError) as caught:
                what()
            assert caught.value.hint is not None
        n.close()
        assert not host.left()
        assert c.run(["ls", "/sys/class/net"], capture_output=True, text=True).stdout == "lo\n"
        with pytest.raises(r2d2.ContainerClosed):
            n.add_port(9010)
