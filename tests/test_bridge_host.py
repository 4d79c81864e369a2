"""``network="bridge"``: what it takes of the host and leaves there, and who is refused it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

import r2d2
from _host import HOST, SERVER, WORLD, WORLD6, Host, ask, heard, net, serving
from _needs import needs
from _proc import children, until
from r2d2 import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs("unshare")
root = needs("root", "nft")


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
