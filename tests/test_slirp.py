"""The user-mode network with real traffic: an engine in its process, a namespace, the host's kernel."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import r2d2
from _guest import asked, echo, inside, interfaces, python, resolver, server, serving
from _needs import needs
from _proc import until
from r2d2 import slirp

pytestmark = needs("unshare")


def test_interface_has_addresses_routes_and_mtu(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, mtu=9000, device=device) as network:
        assert network.alive
        assert (str(network.address), str(network.gateway), str(network.dns)) == (
            "10.0.2.100",
            "10.0.2.2",
            "10.0.2.3",
        )
        shown = inside(guest, "ip", "addr", "show", "tap0").stdout
        assert "inet 10.0.2.100/24" in shown
        assert "inet6 fd00::100/64" in shown
        assert "mtu 9000" in shown
        assert "default via 10.0.2.2" in inside(guest, "ip", "route").stdout
        assert "default via fd00::2" in inside(guest, "ip", "-6", "route").stdout


def test_leaving_the_block_removes_the_interface(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, "tap7", device=device) as network:
        assert "tap7" in interfaces(guest)
    assert "tap7" not in interfaces(guest), "at once"
    assert not network.alive
    with pytest.raises(r2d2.ContainerClosed):
        network.stats()
    network.close()


def test_death_of_the_engine_is_seen_and_the_interface_gone(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, device=device) as network:
        os.kill(network.pid, signal.SIGKILL)
        assert select.select([network], [], [], 5)[0], "its descriptor becomes readable"
        assert not network.alive
        until(lambda: "tap0" not in interfaces(guest))


def test_engine_ends_with_the_process_that_it_serves(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, device=device) as network:
        os.kill(guest, signal.SIGKILL)
        assert select.select([network], [], [], 5)[0]


def test_engine_ends_with_its_owner_even_if_a_fork_lives_on(guest: int) -> None:
    code = (
        "import os, sys, time\nfrom r2d2 import slirp\n"
        f"network = slirp.attach({guest})\n"
        "if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
        "print(network.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        until(
            lambda: (
                not Path(f"/proc/{pid}/status").exists()
                or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
            )
        )
        os.killpg(owner.pid, signal.SIGKILL)


def test_engine_is_sandboxed(guest: int) -> None:
    with slirp.attach(guest) as network:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{network.pid}/status").read_text().splitlines()
        )
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["Name"] == "r2d2-engine"
        if os.geteuid():
            with pytest.raises(PermissionError):
                os.readlink(f"/proc/{network.pid}/exe")


def test_udp_both_ways_and_a_refused_port(guest: int, device: slirp.Device) -> None:
    with (
        slirp.attach(guest, host_loopback=True, device=device),
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as peer,
    ):
        peer.bind(("127.0.0.1", 0))
        port = peer.getsockname()[1]

        def answer() -> None:
            for _ in range(3):
                data, sender = peer.recvfrom(65536)
                peer.sendto(data[::-1], sender)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        code = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect(("10.0.2.2", {port}))
for size in (1, 1400, 30000):
    s.send(bytes(size - 1) + b"x"); data = s.recv(65536); print(len(data), data[:1])
"""
        assert python(guest, code).splitlines() == ["1 b'x'", "1400 b'x'", "30000 b'x'"]
        thread.join(5)
        peer.close()
        refused = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect(("10.0.2.2", {port}))
try:
    s.send(b"x"); s.recv(1)
except OSError as e: print(type(e).__name__)
"""
        assert python(guest, refused) == "ConnectionRefusedError"


def test_host_loopback_is_denied_at_once(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, device=device) as network, server(echo) as port:
        for gateway in ("10.0.2.2", "fd00::2"):
            code = f"""
try: socket.create_connection(("{gateway}", {port}), 10)
except OSError as e: print(e.errno)
"""
            assert python(guest, code) == str(errno.ENETUNREACH)
        assert network.stats()["refused"] == 2


def test_host_loopback_for_one_port(guest: int) -> None:
    with server(echo) as open_port, server(echo) as other, slirp.attach(guest, host_loopback=[open_port]):
        code = """
s = socket.create_connection(("10.0.2.2", {}), 10); s.sendall(b"hi"); print(s.recv(2))
"""
        assert python(guest, code.format(open_port)) == "b'hi'"
        with pytest.raises(AssertionError, match="unreachable"):
            python(guest, code.format(other))


def test_closed_port_is_refused_and_denied_one_prohibited(guest: int) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with slirp.attach(guest, host_loopback=True, deny=["192.0.2.0/24:80"]):
        code = """
try: socket.create_connection(({!r}, {}), 10)
except OSError as e: print(e.errno)
"""
        assert python(guest, code.format("10.0.2.2", port)) == str(errno.ECONNREFUSED)
        assert python(guest, code.format("192.0.2.1", 80)) == str(errno.EHOSTUNREACH)


def test_gateway_answers_ping(guest: int, device: slirp.Device) -> None:
    with slirp.attach(guest, device=device):
        assert inside(guest, "ping", "-c1", "-W2", "10.0.2.2").returncode == 0
        assert inside(guest, "ping", "-c1", "-W2", "fd00::2").returncode == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_of_the_host_leads_inside(guest: int, device: slirp.Device, protocol: slirp.Protocol) -> None:
    kind = "STREAM" if protocol == "tcp" else "DGRAM"
    code = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.bind(("0.0.0.0", 8080))
{"s.listen()" if protocol == "tcp" else ""}
print("ready", flush=True)
{
        "s, peer = s.accept(); s.sendall(s.recv(9) + peer[0].encode())"
        if protocol == "tcp"
        else "data, peer = s.recvfrom(9); s.sendto(data + peer[0].encode(), peer)"
    }
"""
    with slirp.attach(guest, device=device) as network:
        port = network.add_port(0, 8080, protocol=protocol)
        assert port.host_port != 0
        assert network.ports == (port,)
        with serving(guest, code):
            client = socket.socket(socket.AF_INET, getattr(socket, f"SOCK_{kind}"))
            with client:
                client.settimeout(10)
                client.connect(("127.0.0.1", port.host_port))
                client.sendall(b"hello")
                assert client.recv(100) == b"hello10.0.2.2"
        network.remove_port(port)
        assert not network.ports
        with (
            pytest.raises(ConnectionRefusedError),
            socket.socket(socket.AF_INET, getattr(socket, f"SOCK_{kind}")) as late,
        ):
            late.connect(("127.0.0.1", port.host_port))
            late.settimeout(5)
            late.send(b"x")
            late.recv(1)


def test_port_in_use_is_an_error_there_and_then(guest: int) -> None:
    with slirp.attach(guest) as network, closing(socket.create_server(("127.0.0.1", 0))) as taken:
        with pytest.raises(OSError, match="in use") as failure:
            network.add_port(taken.getsockname()[1])
        assert failure.value.errno == errno.EADDRINUSE
        assert not network.ports
        with pytest.raises(KeyError):
            network.remove_port(slirp.Port("tcp", "127.0.0.1", 1, "10.0.2.100", 1))


def test_dns_is_relayed_with_failover_and_static_names(guest: int) -> None:
    with (
        resolver() as live,
        slirp.attach(guest, resolvers=["127.0.0.1:1", live], names={"db": "10.0.2.9"}) as network,
    ):
        assert asked(guest, "10.0.2.3", "db", "example") == ["10 0 2 9", "192 0 2 7"]
        assert network.stats()["dns_failover"] >= 1


def test_flows_and_stats(guest: int) -> None:
    ready = threading.Event()

    def hold(connection: socket.socket) -> None:
        connection.sendall(b"x")
        ready.wait(10)

    with slirp.attach(guest, host_loopback=True) as network, server(hold) as port:
        code = f"""
s = socket.create_connection(("10.0.2.2", {port}), 10); s.recv(1); print("ready", flush=True); s.recv(1)
"""
        with serving(guest, code) as process:
            (flow,) = [flow for flow in network.flows() if flow.protocol == "tcp"]
            assert (flow.state, flow.remote) == ("Established", f"10.0.2.2:{port}")
            ready.set()
            process.wait(10)
        assert network.stats()["frames_in"] > 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ifname": "a" * 16}, "ifname"),
        ({"ifname": "a b"}, "ifname"),
        ({"mtu": 1279}, "mtu"),
        ({"mtu": 65521}, "mtu"),
        ({"cidr": "24"}, "cidr"),
        ({"cidr": "foo"}, "cidr"),
        ({"cidr": "10.0.2.0"}, "cidr"),
        ({"cidr": "10.0.2.1/24"}, "cidr"),
        ({"cidr": "10.0.2.0/26"}, "cidr"),
        ({"cidr": "127.0.0.0/8"}, "cidr"),
        ({"deny": ["nonsense"]}, "deny"),
        ({"allow": ["10.0.0.0/8:90-80"]}, "allow"),
        ({"search": ["a\nloopback allow"]}, "search"),
        ({"names": {"a\nb": "10.0.0.1"}}, "names"),
        ({"resolvers": ["nobody"]}, "nobody"),
        ({"host_loopback": [70000]}, "host_loopback"),
        ({"loss": 1.0}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"delay": -1}, "delay"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(r2d2.SpecError, match=words):
        slirp.attach(os.getpid(), **arguments)  # type: ignore[arg-type]


def test_another_network(guest: int) -> None:
    with slirp.attach(guest, cidr="10.0.135.128/25", ipv6=False) as network:
        assert (str(network.address), network.address6) == ("10.0.135.228", None)
        assert "inet 10.0.135.228/25" in inside(guest, "ip", "addr", "show", "tap0").stdout
        assert inside(guest, "ping", "-c1", "-W2", "10.0.135.130").returncode == 0


def test_namespace_by_path(guest: int) -> None:
    with slirp.attach(f"/proc/{guest}/ns/net", userns=f"/proc/{guest}/ns/user"):
        assert "tap0" in interfaces(guest)


def test_failures_say_what_failed(guest: int) -> None:
    with pytest.raises(r2d2.SetupNotFoundError):
        slirp.attach(2**22)
    with pytest.raises(r2d2.SetupNotFoundError):
        slirp.attach("/nowhere")
    with slirp.attach(guest), pytest.raises(r2d2.SetupError) as failure:
        slirp.attach(guest)
    taken = {("make the tap", errno.EBUSY), ("make the veth pair", errno.EEXIST)}
    assert (failure.value.step, failure.value.errno) in taken
    assert "ifname" in (failure.value.hint or "")


def test_attaching_again_and_again_leaves_nothing(guest: int, device: slirp.Device) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with slirp.attach(guest, device=device) as network:
            assert network.device == device
        # The kernel takes a namespace apart when it finds the time.
        until(lambda: interfaces(guest) == {"lo"})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    until(lambda: interfaces(guest) == {"lo"})
