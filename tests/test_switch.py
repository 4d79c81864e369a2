"""Networks of containers: members, addresses, names, and what is left when they end."""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _guest import inside, interfaces, namespace, out, python, serving
from _needs import needs
from _nodes import ECHO, nodes
from _proc import children, ended, until

if TYPE_CHECKING:
    from r2d2 import slirp

pytestmark = needs("unshare")


def test_members_have_addresses_and_reach_each_other(device: slirp.Device) -> None:
    with r2d2.Network("10.77.0.0/24", device=device) as net, nodes(net, "a", "b") as pids:
        a, b = net.members["a"], net.members["b"]
        assert (a.name, a.device, str(a.address), str(b.address)) == (
            "eth0",
            device,
            "10.77.0.3",
            "10.77.0.4",
        )
        shown = inside(pids["a"], "ip", "addr", "show", "eth0").stdout
        assert "inet 10.77.0.3/24" in shown
        assert f"inet6 {a.address6}/64" in shown
        assert a.mac in shown
        assert (
            "default"
            not in inside(pids["a"], "ip", "route").stdout + inside(pids["a"], "ip", "-6", "route").stdout
        )
        for address in (b.address, b.address6):
            assert inside(pids["a"], "ping", "-c2", "-i0.2", "-W5", str(address)).returncode == 0
        assert net.stats()["a"]["sent"] >= 4
        assert net.link("a", "b").stats.packets >= 8


def test_containers_find_each_other_by_name() -> None:
    with (
        r2d2.Network() as net,
        r2d2.Container("host", name="db", network=net.member(aliases=["database"])) as db,
        r2d2.Container("host", name="web", network=net) as web,
    ):
        (own,) = db.interfaces
        for name in ("db", "database", "DB"):
            assert out(web, "getent", "ahostsv4", name).split()[0] == str(own.address)
        assert out(web, "getent", "ahostsv6", "db").split()[0] == str(own.address6)
        assert out(db, "getent", "ahostsv4", "web").split()[0] == str(web.interfaces[0].address)
        # Nobody else has a name here, and that is known at once.
        assert web.run(["getent", "ahostsv4", "example.org"], timeout=20).returncode == 2
        db.stop()
        assert web.run(["getent", "ahostsv4", "db"], timeout=20).returncode == 2


def test_tcp_between_containers_by_name(image: r2d2.Image) -> None:
    with (
        r2d2.Network() as net,
        r2d2.Container(image, name="db", network=net) as db,
        db.popen(["sh", "-c", "echo ready; printf hello | nc -l -p 80"], stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        assert until(lambda: "0050" in out(db, "cat", "/proc/net/tcp", "/proc/net/tcp6"))
        with r2d2.Container("host", network=net) as web:
            script = "exec 3<>/dev/tcp/db/80; cat <&3"
            # The first address of a name is IPv6, where busybox may not listen: bash tries them all.
            assert out(web, "bash", "-c", script) == "hello"
        server.kill()


def test_large_transfer_is_whole(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        for address in (net.members["b"].address, net.members["b"].address6):
            code = f"""
import os, threading
data = os.urandom(1 << 20) * 16
s = socket.create_connection(("{address}", 7), 30)
threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
got = hashlib.sha256()
while part := s.recv(1 << 20): got.update(part)
print(got.digest() == hashlib.sha256(data).digest())
"""
            assert python(pids["a"], code) == "True"


@pytest.mark.parametrize("mtu", [1280, 9000, 65520])
def test_mtu(device: slirp.Device, mtu: int) -> None:
    with r2d2.Network(device=device, mtu=mtu) as net, nodes(net, "a", "b") as pids:
        address = str(net.members["b"].address)
        ping = ("ping", "-c1", "-W5", "-Mdo")
        assert inside(pids["a"], *ping, f"-s{mtu - 28}", address).returncode == 0
        assert inside(pids["a"], *ping, f"-s{mtu - 27}", address).returncode != 0, "does not fit"


def test_without_ipv6() -> None:
    with r2d2.Network(ipv6=False) as net, nodes(net, "a", "b") as pids:
        assert net.members["a"].address6 is None
        assert "inet6 fd" not in inside(pids["a"], "ip", "addr").stdout
        assert inside(pids["a"], "ping", "-c1", "-W5", str(net.members["b"].address)).returncode == 0


def test_sixteen_nodes_reach_each_other_without_loss() -> None:
    names = [f"n{i}" for i in range(16)]
    with r2d2.Network() as net, nodes(net, *names) as pids:
        receive = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9)); s.settimeout(60)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
print("ready", flush=True)
for _ in range({15 * 20}): s.recv(2000)
print("all")
"""
        with ExitStack() as stack:
            servers = [stack.enter_context(serving(pids[name], receive)) for name in names]
            for name in names:
                others = [str(net.members[other].address) for other in names if other != name]
                send = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(20):
    for to in {others!r}: s.sendto(bytes(1000), (to, 9))
    time.sleep(0.001)
"""
                python(pids[name], send)
            for server in servers:
                assert server.stdout is not None
                assert server.stdout.readline() == "all\n"
        stats = net.stats()
        assert all(stats[name]["full"] == 0 for name in names)
        assert all(net.link(a, b, both=False).stats.packets >= 20 for a in names for b in names if a != b)


def test_static_addresses_and_reuse() -> None:
    with r2d2.Network("10.77.1.0/24") as net:
        with nodes(net, "a"), namespace() as pid:
            joined = net.join(pid, "10.77.1.200", name="b", interface="lan7", aliases=["c"])
            assert (str(joined.address), joined.name) == ("10.77.1.200", "lan7")
            assert "10.77.1.200/24" in inside(pid, "ip", "addr", "show", "lan7").stdout
            assert list(net) == ["a", "b"]
            net.leave("b")
            assert until(lambda: interfaces(pid) == {"lo"})
            assert list(net) == ["a"]
            assert str(net.join(pid, name="b").address) == "10.77.1.4"
        # Members that have ended have left.
        assert until(lambda: not net.members)
        with nodes(net, "a"):
            assert str(net.members["a"].address) == "10.77.1.3"


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"subnet": "10.0.0.0"}, "prefix"),
        ({"subnet": "10.0.0.0/30"}, "prefix"),
        ({"subnet": "10.0.0.1/24"}, "host bits"),
        ({"subnet": "nonsense/24"}, "subnet"),
        ({"subnet": "127.0.0.0/8"}, "link"),
        ({"ipv6": "fd00::/48"}, "/64"),
        ({"ipv6": "nonsense"}, "ipv6"),
        ({"mtu": 100}, "mtu"),
        ({"seed": -1}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"device": "tun"}, "device"),
        ({"name": "a b"}, "name"),
    ],
)
def test_bad_networks_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(r2d2.SpecError, match=words):
        r2d2.Network(**keywords)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"address": "10.77.3.1"}, "not in 10.77.2.0/24"),
        ({"address": "10.77.2.1"}, "own"),
        ({"address": "10.77.2.2"}, "own"),
        ({"address": "10.77.2.255"}, "own"),
        ({"address": "fd00::1"}, "address"),
        ({"aliases": ["a b"]}, "aliases"),
        ({"aliases": "ab"}, "aliases"),
        ({"interface": "a" * 16}, "interface"),
        ({"routes": {"10.0.0.0/8": "nobody"}}, "routes"),
        ({"routes": {"10.0.0.0/8": "fd00::1"}}, "routes"),
    ],
)
def test_bad_members_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(r2d2.SpecError, match=words):
        r2d2.Network("10.77.2.0/24").member(**keywords)


def test_what_containers_cannot_have_together(image: r2d2.Image) -> None:
    one, two = r2d2.Network("10.77.0.0/16"), r2d2.Network("10.77.9.0/24", ipv6=False)
    with pytest.raises(r2d2.SpecError, match="overlap") as failure:
        r2d2.Container(image, network=[one, two])
    assert failure.value.hint
    six = r2d2.Network("10.78.0.0/16", ipv6="fd01::/64"), r2d2.Network("10.79.0.0/16", ipv6="fd01::/64")
    with pytest.raises(r2d2.SpecError, match="overlap"):
        r2d2.Container(image, network=six)
    with pytest.raises(r2d2.SpecError, match="twice"):
        r2d2.Container(image, network=[one, one])
    with pytest.raises(r2d2.SpecError, match="slirp"):
        r2d2.Container(image, network=[one, "slirp"])  # type: ignore[list-item]
    with pytest.raises(r2d2.SpecError, match="5"):
        r2d2.Container(image, network=5)  # type: ignore[arg-type]
    with pytest.raises(r2d2.SpecError, match="ends with this process"):
        r2d2.Detached.start(["true"], image=image, network=one)
    assert not r2d2.Network().subnet.overlaps(r2d2.Network().subnet)


def test_what_is_taken_is_refused_before_anything_starts(image: r2d2.Image) -> None:
    with (
        r2d2.Network("10.77.4.0/29") as net,
        r2d2.Container(image, name="db", network=net.member("10.77.4.4")),
    ):
        before = set(children())
        for name, member, number in (
            ("db", net.member(), errno.EEXIST),
            ("x", net.member(aliases=["db"]), errno.EEXIST),
            ("x", net.member("10.77.4.4"), errno.EADDRINUSE),
        ):
            with pytest.raises(r2d2.NetworkError) as failure:
                r2d2.Container(image, name=name, network=member).start()
            assert failure.value.errno == number
            assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)
        with pytest.raises(r2d2.SpecError, match="gateway"):
            r2d2.Container(image, name="gateway", network=net).start()
        with r2d2.Container(image, network=net), r2d2.Container(image, network=net), nodes(net, "last"):
            with pytest.raises(r2d2.NetworkError, match="full") as failure:
                r2d2.Container(image, network=net).start()
            assert failure.value.errno == errno.ENOSPC
            assert failure.value.hint
        assert set(children()) == before
        assert list(net) == ["db"]


def test_a_network_must_run(image: r2d2.Image) -> None:
    net = r2d2.Network()
    with pytest.raises(r2d2.ContainerClosed, match="not started"):
        r2d2.Container(image, network=net).start()
    with net:
        with pytest.raises(TypeError):
            pickle.dumps(net)
        with pytest.raises(r2d2.ContainerClosed, match="before"):
            net.start()
    with pytest.raises(r2d2.ContainerClosed, match="ended"):
        r2d2.Container(image, network=net).start()
    net.close()
    assert not children()


def test_failed_join_leaves_nothing(image: r2d2.Image) -> None:
    with r2d2.Network() as net:
        with pytest.raises(r2d2.NetworkError, match="join x to network") as failure:
            r2d2.Container(image, name="x", network=net.member(interface="lo")).start()
        assert isinstance(failure.value.__cause__, r2d2.SetupError)
        assert failure.value.step
        assert not net.members
        with pytest.raises(OSError, match="No such process"):
            net.join(2**22, name="nobody")
        with r2d2.Container(image, name="x", network=net):
            assert list(net) == ["x"]


def test_running_container_joins_and_leaves(image: r2d2.Image) -> None:
    with r2d2.Network() as one, r2d2.Network() as two, r2d2.Container(image, network=one) as c:
        joined = two.join(c)
        assert (joined.name, c.interfaces[1]) == ("eth1", joined)
        assert f"inet {joined.address}/24" in out(c, "ip", "addr", "show", "eth1")
        with pytest.raises(r2d2.SpecError, match="twice"):
            two.join(c)
        two.leave(c)
        assert until(lambda: "eth1" not in out(c, "cat", "/proc/net/dev"))
        assert "eth0" in out(c, "cat", "/proc/net/dev")
        assert [i.name for i in c.interfaces] == ["eth0"]
        again = two.join(c, name="other", aliases=["alias"], interface="lan")
        assert (list(two), again.name) == (["other"], "lan")
        two.leave("other")
        assert two.join(c).name == "eth1"


def test_one_program_as_a_member(image: r2d2.Image) -> None:
    with r2d2.Network() as net, nodes(net, "a"):
        ping = ["ping", "-c1", "-W5", str(net.members["a"].address)]
        assert r2d2.run(ping, image=image, network=net, capture_output=True).returncode == 0
        assert list(net) == ["a"]


def test_many_join_at_once(image: r2d2.Image) -> None:
    with r2d2.Network() as net, ThreadPoolExecutor(8) as pool:
        containers = [r2d2.Container(image, name=f"c{i}", network=net) for i in range(12)]
        list(pool.map(r2d2.Container.start, containers))
        assert len({c.interfaces[0].address for c in containers}) == len(net) == 12
        for other in containers[1:]:
            address = str(other.interfaces[0].address)
            assert containers[0].run(["ping", "-c1", "-W5", address], capture_output=True).returncode == 0
        list(pool.map(r2d2.Container.stop, containers))
        assert not len(net)


def test_hostile_frames_harm_nobody_else(device: slirp.Device) -> None:
    noise = r"""
import random
random.seed(5)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
peer, own = bytes.fromhex("{}"), bytes.fromhex("{}")
for n in range(3000):
    head = random.choice((peer, b"\xff" * 6, random.randbytes(6))) + random.choice((own, random.randbytes(6)))
    kind = random.choice((b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00"))
    body = random.choice((b"\x45", b"\x60", b"")) + random.randbytes(random.randrange(1400))
    try: s.send(head + kind + body)
    except OSError: pass
print("sent")
"""
    with r2d2.Network(device=device, gateway=True) as net, nodes(net, "bad", "a", "b") as pids:
        macs = [net.members[name].mac.replace(":", "") for name in ("a", "bad")]
        assert python(pids["bad"], noise.format(*macs)) == "sent"
        assert net.alive
        assert net.stats()["bad"]["sent"] > 1000
        for name in ("b", "bad"):
            to = str(net.members[name].address)
            assert inside(pids["a"], "ping", "-c3", "-i0.2", "-W5", to).returncode == 0


def test_explain_tells_of_it(image: r2d2.Image) -> None:
    net = r2d2.Network()
    explanation = r2d2.Container(image, name="x", network=net).explain()
    assert net.name in explanation[-1].title
    assert "script() does not carry out" in explanation.notes[-1]


def test_closing_while_containers_run(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, namespace() as pid:
        net.join(pid, name="a")
        assert "eth0" in interfaces(pid)
        net.close()
        assert until(lambda: interfaces(pid) == {"lo"})
        assert not net.alive


def test_end_of_a_member_frees_its_port(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a") as outer:
        before = len(os.listdir(f"/proc/{net.pid}/fd")) if os.geteuid() == 0 else 0
        with namespace() as pid:
            net.join(pid, name="b")
            os.kill(pid, signal.SIGKILL)
            assert until(lambda: list(net) == ["a"])
        if os.geteuid() == 0:
            assert len(os.listdir(f"/proc/{net.pid}/fd")) == before
        with namespace() as pid:
            net.join(pid, name="b")
            assert inside(outer["a"], "ping", "-c1", "-W5", str(net.members["b"].address)).returncode == 0


def test_death_of_its_process_is_seen(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a") as pids:
        os.kill(net.pid, signal.SIGKILL)
        assert select.select([net], [], [], 5)[0]
        assert not net.alive
        assert until(lambda: interfaces(pids["a"]) == {"lo"})
        with pytest.raises(OSError, match="engine"):
            net.stats()


def test_its_process_is_sandboxed() -> None:
    with r2d2.Network() as net:
        text = Path(f"/proc/{net.pid}/status").read_text()
        assert "Seccomp:\t2" in text
        assert "CapEff:\t0000000000000000" in text


def test_killed_owner_leaves_nothing(image: r2d2.Image) -> None:
    code = (
        "import os, r2d2, time\nnet = r2d2.Network().start()\n"
        f"c = r2d2.Container({str(image.layers[0])!r}, network=net).start()\n"
        "fork = os.fork() or time.sleep(60)\n"
        "print(c.pid, net.pid, fork, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        *pids, fork = owner.stdout.readline().split()
        assert len(pids) == 2
        owner.kill()
        try:
            assert until(lambda: all(ended(pid) for pid in pids), 5), "although a fork holds the socket"
        finally:
            os.kill(int(fork), signal.SIGKILL)
