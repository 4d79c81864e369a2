"""``network="bridge"``: a container in the kernel's own network, in a namespace that plays the host."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

import r2d2
from _host import CLIENT, HOST, HOST6, SERVER, WORLD, WORLD6, Host
from _needs import needs
from _proc import children, until
from r2d2 import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from r2d2.bridge import BridgeNetwork

pytestmark = needs("unshare")
root = needs("root", "nft")


@pytest.fixture(scope="module")
def _namespaces() -> Iterator[Host]:
    made = Host()
    yield made
    made.end()


@pytest.fixture
def host(_namespaces: Host) -> Iterator[Host]:
    """This thread is in a network namespace that plays the host; nothing is left in it."""
    with _namespaces.entered() as entered:
        assert not entered.left()
        yield entered
        assert until(lambda: not entered.left(), 2), entered.left()


def net(container: r2d2.Container) -> BridgeNetwork:
    assert isinstance(container.network, bridge.BridgeNetwork)
    return container.network


@contextmanager
def serving(container: r2d2.Container, port: int = 80) -> Iterator[None]:
    """A `SERVER` in a container."""
    server = container.popen(["python3", "-c", SERVER, str(port)], stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


def ask(container: r2d2.Container, to: object, port: int, kind: str = "tcp", patience: float = 10) -> str:
    """Whom a `SERVER` takes a container for."""
    command = ["python3", "-c", CLIENT, str(to), str(port), kind, str(patience)]
    return container.run(command, capture_output=True, text=True, check=True).stdout.strip()


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
            assert host.world.ask(address, 80, patience=0.5) == "timeout"  # test_by_hand has the control
        finally:
            host.world.sh(f"ip route del {address}")


#: Sends a UDP datagram in a frame of its own: FROM TO PORT, in a container.
FORGE = """
import socket, struct, sys
source, to, port = socket.inet_aton(sys.argv[1]), socket.inet_aton(sys.argv[2]), int(sys.argv[3])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"who", ("10.210.0.1", 9))  # finds the router
router = bytes(6)
while not any(router):
    entries = [line.split() for line in open("/proc/net/arp") if line.startswith("10.210.0.1 ")]
    router = bytes.fromhex(entries[0][3].replace(":", "")) if entries else router
own = bytes.fromhex(open("/sys/class/net/eth0/address").read().replace(":", ""))
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, source, to)
total = sum(struct.unpack("!10H", header)); total = (total & 0xffff) + (total >> 16)
header = header[:10] + struct.pack("!H", ~total & 0xffff) + header[12:]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind(("eth0", 0))
    s.send(router + own + b"\\x08\\x00" + header + struct.pack("!HHHH", 1, port, 12, 0) + b"here")
"""


def heard(container: r2d2.Container, source: object, to: str, patience: float = 0.5) -> bool:
    """Whether a forged datagram reaches a server of the host that listens on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(patience)
        server.bind(("0.0.0.0", 0))
        port = str(server.getsockname()[1])
        container.run(["python3", "-c", FORGE, str(source), to, port], check=True)
        try:
            return server.recvfrom(100)[1][0] == str(source)
        except TimeoutError:
            return False


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


@root
def test_subnet_collides_with_nothing(host: Host) -> None:
    host.sh("ip route add 10.210.64.0/20 via 203.0.113.2")
    try:
        with r2d2.Container(network="bridge") as c:
            assert str(net(c).gateway) == "172.30.0.1"
        with pytest.raises(
            r2d2.NetworkError, match=r"10\.210\.0\.0/17 overlaps the route to 10\.210\.64"
        ) as caught:
            r2d2.Container(network=r2d2.Bridge(cidr="10.210.0.0/17")).start()
        assert caught.value.errno == errno.EADDRINUSE
        assert "cidr" in (caught.value.hint or "")
    finally:
        host.sh("ip route del 10.210.64.0/20")


@root
@pytest.mark.usefixtures("host")
def test_addresses_run_out() -> None:
    options = r2d2.Bridge(cidr="10.99.0.0/30")
    with r2d2.Container(network=options) as c:
        assert str(net(c).address) == "10.99.0.2"
        with pytest.raises(r2d2.NetworkError, match="all of the subnet are taken") as caught:
            r2d2.Container(network=options).start()
        assert "larger" in (caught.value.hint or "")


@root
@pytest.mark.usefixtures("host")
def test_twenty_from_four_threads() -> None:
    options = r2d2.Bridge(cidr="10.99.0.0/27")  # little room, so that they meet

    def start(number: int) -> r2d2.Container:
        return r2d2.Container(network=options, ports={0: 80}, name=f"many-{number}").start()

    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        made = list(pool.map(start, range(20)))
        for c in made:
            stack.callback(c.stop)
        assert len({net(c).address for c in made}) == 20
        assert len({c.ports[0].host_port for c in made}) == 20
        targets = " ".join(str(net(c).address) for c in made)
        ping = f"for a in {targets}; do ping -c1 -W2 $a >/dev/null || echo $a; done"
        assert made[0].run(["sh", "-c", ping], capture_output=True, text=True).stdout == ""


@root
def test_forwarding_is_turned_on_by_word_only(host: Host) -> None:
    host.sh("sysctl -qw net.ipv4.ip_forward=0")
    try:
        before = children()
        with pytest.raises(r2d2.UnsupportedError, match="ip_forward is off") as caught:
            r2d2.Container(network="bridge")
        assert "Bridge(forward=True)" in (caught.value.hint or "")
        assert children() == before
        assert r2d2.doctor()["bridge"].status == "failed"
        with host.world.serving(7000), r2d2.Container(network=r2d2.Bridge(forward=True)) as c:
            assert ask(c, WORLD, 7000) == HOST
        assert bridge.forwards()
    finally:
        host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    assert r2d2.doctor()["bridge"].status == "ok"


@root
def test_no_way_for_ipv6_where_the_host_has_none(host: Host) -> None:
    """Programs are to know at once: ENETUNREACH, not a timeout."""
    host.sh("sysctl -qw net.ipv6.conf.all.forwarding=0")
    try:
        with r2d2.Container(network="bridge") as c, serving(c):
            assert ask(c, WORLD6, 7000) == "ENETUNREACH"
            assert host.ask(net(c).address6, 80) == str(net(c).gateway6)
    finally:
        host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")


@root
def test_closed_firewall_is_told(host: Host) -> None:
    closed = "{ type filter hook forward priority 0; policy drop; }"
    host.sh(f"nft add table ip filter; nft 'add chain ip filter FORWARD {closed}'")
    try:
        container = r2d2.Container(network="bridge")
        with pytest.warns(UserWarning, match="ip filter FORWARD"):
            container.start()
        with closing(container), host.world.serving(7000):
            assert net(container).closed_by == ("ip filter FORWARD",)
            assert ask(container, WORLD, 7000, patience=0.5) == "timeout"
        host.sh("for d in iifname oifname; do nft add rule ip filter FORWARD $d 'r2d2-*' accept; done")
        with host.world.serving(7000), r2d2.Container(network="bridge") as c:
            assert not net(c).closed_by
            assert ask(c, WORLD, 7000) == HOST
    finally:
        host.sh("nft delete table ip filter")


@root
def test_table_is_nobody_elses(host: Host) -> None:
    with r2d2.Container(network="bridge", ports={8080: 80}) as c, serving(c):
        host.sh("nft flush ruleset")
        host.sh(f"! nft delete table inet {net(c).host_ifname} 2>/dev/null")
        assert host.ask("127.0.0.1", 8080) == str(net(c).gateway)


OWNER = """
import os, r2d2, sys
made = []
print("ready", flush=True)
while True:
    made.append(r2d2.Container(network="bridge", ports=["0:80", "0.0.0.0:0:81/udp"]).start())
    if len(made) > 3:
        made.pop(0).stop()
    if os.fork() == 0:  # a fork keeps what it inherits
        import time; time.sleep(3); os._exit(0)
"""


@pytest.fixture
def reaper() -> Iterator[None]:
    """Whatever loses its parent becomes our child (prctl(2))."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    yield
    libc.prctl(36, 0, 0, 0, 0)


@root
@pytest.mark.usefixtures("reaper")
def test_sigkill_leaves_nothing(host: Host) -> None:
    choose, took, before = random.Random(7), [], set(children())

    def left() -> bool:
        orphans = set(children()) - before
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        # The forks are not r2d2's; they inherit all that a fork does, and end by themselves.
        return bool(host.left()) or any("r2d2-" in name for name in children().values())

    for _ in range(8):
        command = [sys.executable, "-c", OWNER]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            owner.stdout.close()
            time.sleep(choose.uniform(0.05, 0.9))
            seen = host.left()
            owner.kill()
            began = time.monotonic()
        assert until(lambda: not left(), 5), (host.left(), children())
        took.append((time.monotonic() - began, bool(seen)))
    print("seconds from SIGKILL to nothing:", [round(each, 2) for each, _ in took])
    assert sorted(each for each, _ in took)[len(took) // 2] < 1
    assert sum(seen for _, seen in took) > 2, "there was something to leave"
    assert until(lambda: not left() and not set(children()) - before, 5)


@root
def test_wire_is_cut_when_the_keeper_is_killed(host: Host) -> None:
    """Without the keeper's table nobody would look at what the container sends."""
    with r2d2.Container(network="bridge", ports={8080: 80}) as c:
        assert c.path(f"/sys/class/net/{net(c).ifname}").exists()
        os.kill(net(c).pid, signal.SIGKILL)
        assert until(lambda: not net(c).alive, 2)
        assert until(lambda: not host.left(), 2), host.left()
        assert c.run(["ls", "/sys/class/net"], capture_output=True, text=True).stdout == "lo\n"
        assert c.ports == ()


@root
def test_detached_keeps_its_ports(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D2_RUNTIME", str(tmp_path / "runtime"))
    start = ["r2d2", "run", "-d", "--name", "kept", "--network", "bridge", "-p", "0.0.0.0:8090:80", "host"]
    command = [sys.executable, "-m", *start, "python3", "-c", SERVER]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = r2d2.Detached.get("kept")
    assert until(lambda: b"ready" in b"".join(found.logs()), 20)
    assert host.world.ask(HOST, 8090) == WORLD
    listed = subprocess.run(
        [sys.executable, "-m", "r2d2", "port", "kept"], capture_output=True, text=True, check=True
    ).stdout
    assert listed == "0.0.0.0:8090->80/tcp\n"
    with found.attach() as again:
        n = net(again)
        n.add_port(8091, 80)
        assert host.ask("127.0.0.1", 8091) == str(n.gateway)
        assert n.stats()["rx_packets"] > 0
        n.remove_port(next(port for port in n.ports if port.host_port == 8090))
        assert host.world.ask(HOST, 8090) == "ECONNREFUSED"
    assert found.inspect()["slirp"]["ifname"] == "eth0"
    found.remove(force=True)
    assert until(lambda: not host.left(), 2)


@root
def test_by_hand(host: Host) -> None:
    """What ``explain()`` shows makes the same."""
    with r2d2.Container(network="none") as c:
        ports = ["0.0.0.0:8081:80", "8080:80"]
        step = r2d2.Container(network=r2d2.Bridge(ipv6=False), ports=ports).explain()[-1]
        assert "nft" in step.shell
        host.sh(step.shell.replace("PID", str(c.pid)))
        by_hand = host.sh("nft list ruleset")
        try:
            with serving(c), host.world.serving(7000):
                assert ask(c, WORLD, 7000) == HOST
                assert host.world.ask(HOST, 8081) == WORLD
                assert host.ask("127.0.0.1", 8080) == "10.210.0.1"
                # What the guards are for.
                host.world.sh(f"ip route add 10.210.0.2 via {HOST}")
                try:
                    assert host.world.ask("10.210.0.2", 80, patience=0.5) == "timeout"
                    assert not heard(c, "10.210.0.2", "127.0.0.1")
                    host.sh("for c in guard forward; do nft flush chain inet r2d2-0ad20002 $c; done")
                    assert host.world.ask("10.210.0.2", 80) == WORLD
                    assert heard(c, "10.210.0.2", "127.0.0.1", 10)
                finally:
                    host.world.sh("ip route del 10.210.0.2")
        finally:
            host.sh("nft delete table inet r2d2-0ad20002; ip link del r2d2-0ad20002")
    with r2d2.Container(network=r2d2.Bridge(ipv6=False, cidr="10.210.0.0/16"), ports=ports) as c:
        ours = host.sh("nft list ruleset").replace(net(c).host_ifname, "r2d2-0ad20002")
        ours = ours.replace(str(net(c).address), "10.210.0.2")
    for line in by_hand.splitlines():
        assert line.strip() in ours, line


def test_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, resolved = tmp_path / "resolv.conf", tmp_path / "resolved.conf"
    found = bridge._resolvers

    def instead(path: str) -> object:
        return found(str(real if path == "/etc/resolv.conf" else resolved))

    monkeypatch.setattr(bridge, "_resolvers", instead)
    real.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n")
    assert b"nameserver 192.0.2.53\n" in bridge.resolv_conf(r2d2.Bridge())
    real.write_text("nameserver 127.0.0.53\n")
    resolved.write_text("nameserver 192.0.2.54\n")
    assert b"nameserver 192.0.2.54\n" in bridge.resolv_conf(r2d2.Bridge())
    resolved.unlink()
    assert b"Bridge(resolvers=" in bridge.resolv_conf(r2d2.Bridge())
    options = r2d2.Bridge(resolvers=["192.0.2.1"], search=["example.org"])
    assert bridge.resolv_conf(options) == b"search example.org\nnameserver 192.0.2.1\n"


WRONG = [
    ({"cidr": "10.0.0.1/24"}, "cidr"),
    ({"cidr": "10.0.0.0/31"}, "cidr"),
    ({"cidr": "127.0.0.0/8"}, "cidr"),
    ({"mtu": 100}, "mtu"),
    ({"ifname": "lo"}, "ifname"),
    ({"ifname": "a name"}, "ifname"),
    ({"resolvers": ["nobody"]}, "nobody"),
]


@pytest.mark.parametrize(("keywords", "said"), WRONG, ids=str)
def test_options_that_can_never_work(keywords: dict[str, object], said: str) -> None:
    with pytest.raises(r2d2.SpecError, match=said):
        r2d2.Container(network=r2d2.Bridge(**keywords))  # type: ignore[arg-type]


@pytest.mark.parametrize("port", ["./web.sock:80", "[::1]:80:80"])
def test_ports_that_it_cannot_publish(port: str) -> None:
    with pytest.raises(r2d2.UnsupportedError) as caught:
        r2d2.Container(network="bridge", ports=[port])
    assert 'network="slirp"' in (caught.value.hint or "")


@needs("user")
def test_ordinary_user_is_refused_before_anything_is_started() -> None:
    before = children()
    with pytest.raises(r2d2.UnsupportedError, match="CAP_NET_ADMIN") as caught:
        r2d2.Container(network="bridge")
    assert caught.value.errno == errno.EPERM
    assert 'network="slirp"' in (caught.value.hint or "")
    assert children() == before
    assert r2d2.doctor()["bridge"].status == "failed"


#: Starts a container on a bridge and connects to a port of it, in whatever namespaces it is in.
TRY = f"""
import json, r2d2, socket, subprocess
from pathlib import Path
try:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
except OSError:
    pass
try:
    with r2d2.Container(network="bridge", ports=["8080:80"]) as c:
        server = c.popen(["python3", "-c", {SERVER!r}], stdout=subprocess.PIPE)
        server.stdout.readline()
        said = socket.create_connection(("127.0.0.1", 8080), 3).recv(100).decode()
        print(json.dumps([said, str(c.network.gateway)]))
        server.kill()
except r2d2.UnsupportedError as error:
    print(json.dumps([error.errno, error.hint]))
"""


def tried(*unshare: str, before: str = "ip link set lo up 2>/dev/null || true") -> list[str | int]:
    command = ["unshare", *unshare, "sh", "-ec", f'{before}; exec "$@"', "-"]
    done = subprocess.run([*command, sys.executable, "-c", TRY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str | int] = json.loads(done.stdout)
    return found


def test_root_of_a_user_namespace_needs_a_network_namespace_of_its_own() -> None:
    number, hint = tried("-U", "-r")
    assert number == errno.EPERM
    assert "unshare -Urn" in str(hint)
    said, router = tried("-U", "-r", "-n")
    assert said == router


@root
def test_sysctls_that_cannot_be_written() -> None:
    """As in most containers, where root may have the right to change the network."""
    number, hint = tried(
        "-n", "-m", before="mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
    )
    assert number == errno.EROFS
    assert "--privileged" in str(hint)
