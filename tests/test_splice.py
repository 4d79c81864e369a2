"""Published TCP ports that go from kernel to kernel: what a server sees, and when the interface is used.

Names follow rootlesskit's suite (``TestTCPTransparent``).
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from _guest import inside, interfaces, namespace, serving
from _needs import needs
from _proc import children, ended, until
from r2d2 import slirp
from test_events import next_of
from test_slirp_load import KEEPING, owner

pytestmark = needs("unshare")

#: What /proc/PID/status says of the process that makes sockets: CAP_NET_ADMIN alone.
SANDBOXED = {"CapPrm": f"{1 << 12:016x}", "CapEff": f"{1 << 12:016x}", "NoNewPrivs": "1", "Seccomp": "2"}

#: Tells each client how it looks from here, then sends back what it hears, till the end.
TELL = """
import threading
def serve(s, peer):
    s.sendall(f"{peer[0].removeprefix('::ffff:')} {peer[1]}\\n".encode())
    while data := s.recv(1 << 16): s.sendall(data)
    s.shutdown(socket.SHUT_WR); s.close()
def listen(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    l = socket.create_server((address, port), family=family, backlog=512, dualstack_ipv6=address == "::")
    def accept():
        while True: threading.Thread(target=serve, args=l.accept(), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
for each in LISTEN: listen(*each)
print("ready", flush=True)
threading.Event().wait()
"""
SERVER = f"LISTEN = [('0.0.0.0', 80)]{TELL}"

#: Clients behind another link of the host, by both families; what each is called there and inside.
THIRD = """
from _guest import inside
listen = [("0.0.0.0", 81), ("::", 82), ("10.0.2.100", 83), ("fd00::100", 84)]
def words(pid, text):
    done = inside(pid, "sh", "-ec", text)
    assert not done.returncode, done.stderr
facts = {}
with namespace() as third:
    assert not os.system(f"ip link add r0 type veth peer name r1 netns {third} && ip link set r0 up && "
        "ip addr add 10.77.0.1/24 dev r0 && ip addr add fd77::1/64 dev r0 nodad")
    words(third, "ip link set r1 up; ip addr add 10.77.0.2/24 dev r1; ip addr add fd77::2/64 dev r1 nodad")
    for splice in (True, False):
        with namespace() as guest, slirp.attach(guest, device=DEVICE, splice=splice) as network:
            ports = [network.add_port(0, port, host="::" if "fd" in at else "0.0.0.0") for at, port in listen]
            ports.append(network.add_port(0, 82, host="::"))
            with serving(guest, f"LISTEN = {listen}{TELL}"):
                code = f'''
for family, port in {[(6 if p.host == "::" else 4, p.host_port) for p in ports]}:
    s = socket.create_connection(("10.77.0.1" if family == 4 else "fd77::1", port), 10)
    line = s.makefile().readline().split()
    print(line == [*map(str, s.getsockname()[:2])] or (line, s.getsockname()))
    s.sendall(b"and back"); s.shutdown(1); assert s.recv(100) == b"and back" and not s.recv(1)
'''
                facts[str(splice)] = python(third, code).split("\\n")
            stats = network.stats()
            facts[f"{splice} spliced"] = (stats["tcp_in"], stats["tcp_spliced"], stats["tcp_unspliced"])
print(json.dumps(facts))
"""


def greeting(client: socket.socket) -> str:
    """The server's first line."""
    client.settimeout(20)
    said = b""
    while not said.endswith(b"\n"):
        more = client.recv(1)
        assert more, said
        said += more
    return said.decode().strip()


def dial(port: slirp.Port) -> socket.socket:
    return socket.create_connection((port.host, port.host_port), 20)


def makers(network: slirp.Network) -> list[int]:
    """The processes that make sockets in this network's namespace: one, or none."""
    return [
        pid for pid, name in children(network.pid).items() if name.startswith(("r2d2-within", "r2d2-attach"))
    ]


def carried(network: slirp.Network) -> tuple[int, int]:
    """Connections that came from outside, and those of them that are spliced."""
    stats = network.stats()
    return stats["tcp_in"], stats["tcp_spliced"]


def test_tcp_transparent(device: slirp.Device) -> None:
    """Both ways show the same: the client's own address and port."""
    facts = owner(f"DEVICE = {device!r}\nTELL = {TELL!r}\n{THIRD}")
    assert facts["True"] == facts["False"] == ["True"] * 5, facts
    assert facts["True spliced"] == [5, 5, 0]
    assert facts["False spliced"] == [5, 0, 0]


@pytest.mark.parametrize("splice", [True, False])
def test_tcp_transparent_from_loopback(guest: int, tmp_path: Path, splice: bool) -> None:
    """Addresses that are nobody's inside appear as the router; its port is the client's own if it has one."""
    with (
        slirp.attach(guest, splice=splice) as network,
        serving(guest, f"LISTEN = [('::', 80)]{TELL}"),
    ):
        for host, seen in (("127.0.0.1", "10.0.2.2"), ("::1", "fd00::2")):
            with dial(network.add_port(0, 80, host=host)) as client:
                assert greeting(client) == f"{seen} {client.getsockname()[1]}"
        path = tmp_path / "s"
        network.add_socket(path, 80)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert greeting(client).startswith("10.0.2.2 ")
            client.sendall(b"x" * 300_000)
            client.shutdown(socket.SHUT_WR)
            assert sum(iter(lambda: len(client.recv(1 << 16)), 0)) == 300_000
        assert carried(network) == (3, 3 if splice else 0)


def test_both_ways_compared_by_hash_with_half_close(guest: int, device: slirp.Device) -> None:
    """Each side hears the other to the end after its own; nothing of it passes the interface."""
    size = 30_000_000
    code = f"""
l = socket.create_server(("0.0.0.0", 80))
print("ready", flush=True)
for first in ("client", "server"):
    s = l.accept()[0]; sum = hashlib.sha256()
    def hear():
        while data := s.recv(1 << 20): sum.update(data)
    if first == "client": hear()
    s.sendall(bytes(range(256)) * {size // 256}); s.shutdown(socket.SHUT_WR)
    if first == "server": hear()
    print(sum.hexdigest(), flush=True); s.close()
"""
    payload = os.urandom(size // 10) * 10
    theirs = hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()
    with slirp.attach(guest, device=device, splice=True) as network, serving(guest, code) as process:
        port = network.add_port(0, 80)
        before = network.stats()
        for first in ("client", "server"):
            heard = hashlib.sha256()

            def hear(client: socket.socket, heard: Any = heard) -> None:
                while data := client.recv(1 << 20):
                    heard.update(data)

            with dial(port) as client:
                if first == "server":
                    hear(client)
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)
                if first == "client":
                    hear(client)
                assert process.stdout is not None
                assert process.stdout.readline().strip() == hashlib.sha256(payload).hexdigest()
                assert heard.hexdigest() == theirs
        after = network.stats()
        assert after["bytes_in"] + after["bytes_out"] - before["bytes_in"] - before["bytes_out"] < 100_000
        assert carried(network) == (2, 2)
        assert until(lambda: not [flow for flow in network.flows() if flow.protocol == "tcp"])


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1"])
def test_refused(guest: int, device: slirp.Device, listen: str) -> None:
    """Nobody listens on the address that the port leads to: the client sees a reset, at once."""
    code = SERVER.replace("80", "81") if listen == "nowhere" else SERVER.replace("0.0.0.0", listen)
    with slirp.attach(guest, device=device, splice=True) as network, serving(guest, code):
        port = network.add_port(0, 80)
        for _ in range(3):
            with pytest.raises(ConnectionResetError), dial(port) as client:
                client.recv(1)
        stats = network.stats()
        assert (stats["tcp_in"], stats["tcp_spliced"], stats["tcp_unspliced"]) == (3, 0, 3)
        assert not network.flows()
        if listen == "nowhere":  # and that was for want of a server alone
            with dial(network.add_port(0, 81)) as client:
                assert greeting(client).startswith("10.0.2.2 ")


RESET = "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0])); s.close()"


@pytest.mark.parametrize("full", [False, True])
def test_reset_in_the_midst(guest: int, full: bool) -> None:
    """A reset of either side resets the other, also one whose data nobody takes."""
    code = f"""
import select
l = socket.create_server(("0.0.0.0", 80)); print("ready", flush=True)
s = l.accept()[0]; s.recv(3); s.settimeout(0.5)
try:
    while {full}: s.send(bytes(1 << 20))
except TimeoutError: pass
{RESET}
s = l.accept()[0]; s.sendall(b"go"); s.settimeout(20)
look = select.poll(); look.register(s, 0); print(bool(look.poll(20_000)), flush=True)
try:
    while s.recv(1 << 16): pass
    print("end", flush=True)
except ConnectionResetError: print("reset", flush=True)
"""
    with slirp.attach(guest, splice=True) as network, serving(guest, code) as process:
        port = network.add_port(0, 80)
        with dial(port) as client:
            client.sendall(b"hey")
            assert until(lambda: carried(network) == (1, 1))
            assert until(lambda: not network.flows() or not full, 20)

            def hear() -> None:
                while client.recv(1 << 16):
                    pass

            with pytest.raises(ConnectionResetError):
                hear()
        with dial(port) as s:
            assert s.recv(2) == b"go"
            if full:
                s.settimeout(0.2)
                with suppress(TimeoutError):
                    while True:
                        s.send(bytes(1 << 20))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert process.stdout.readline() == "reset\n"
        assert carried(network) == (2, 2)
        assert until(lambda: not network.flows())


@pytest.mark.parametrize("splice", [True, False])
def test_data_before_a_reset_arrives(guest: int, splice: bool) -> None:
    """Last words are heard, however their speaker ends."""
    code = f"""
l = socket.create_server(("0.0.0.0", 80)); print("ready", flush=True)
while True: s = l.accept()[0]; s.recv(3); s.sendall(bytes(10_000)); {RESET}
"""
    with slirp.attach(guest, splice=splice) as network, serving(guest, code):
        port = network.add_port(0, 80)
        for _ in range(50):
            with dial(port) as client:
                client.sendall(b"hey")
                heard = 0
                with pytest.raises(ConnectionResetError):
                    while data := client.recv(1 << 16):
                        heard += len(data)
                assert heard == 10_000
        assert carried(network) == (50, 50 * splice)


def test_urgent_data_holds_nothing_up(guest: int) -> None:
    """The client's urgent byte is passed over, as over the interface; what stands around it arrives."""
    code = """
l = socket.create_server(("0.0.0.0", 80)); print("ready", flush=True)
s = l.accept()[0]; got = b""
while len(got) < 40006: got += s.recv(100000)
s.sendall(b"all"); s.send(b"!", socket.MSG_OOB); s.sendall(b"back"); s.close()
"""
    with (
        slirp.attach(guest, splice=True) as network,
        serving(guest, code),
        dial(network.add_port(0, 80)) as client,
    ):
        client.settimeout(20)
        client.sendall(b"x" * 40_000)
        client.sendall(b"abc")
        client.send(b"u", socket.MSG_OOB)
        client.sendall(b"def")
        assert b"".join(iter(lambda: client.recv(100), b"")) == b"all!back"
        assert carried(network) == (1, 1)


def test_flows_events_and_counters(guest: int) -> None:
    with slirp.attach(guest, splice=True) as network, serving(guest, SERVER), network.events() as events:
        port = network.add_port(0, 80)
        with dial(port) as client:
            seen = greeting(client)
            client.sendall(b"x" * 5000)
            assert sum(iter(lambda: 5000 - len(client.recv(5000, socket.MSG_WAITALL)), 0)) == 0
            (flow,) = network.flows()
            assert (flow.protocol, flow.guest, flow.state) == ("tcp", "10.0.2.100:80", "Spliced")
            assert flow.remote == seen.replace(" ", ":")
            assert (flow.sent, flow.received) == (5000 + len(seen) + 1, 5000)
            opened = next_of(events, "opened")
            assert (opened.guest, opened.remote) == (flow.guest, flow.remote)
        closed = next_of(events, "closed")
        assert (closed.remote, closed.sent, closed.received) == (flow.remote, flow.sent, flow.received)
        assert carried(network) == (1, 1)


def test_who_wants_to_see_frames_sees_them(guest: int, tmp_path: Path) -> None:
    """While a capture runs, and with losses or delays, connections go over the interface."""
    with slirp.attach(guest, splice=True) as network, serving(guest, SERVER):
        port = network.add_port(0, 80)
        with network.capture(tmp_path / "c", "tcp port 80") as capture, dial(port) as client:
            greeting(client)
        assert capture.packets >= 4
        assert carried(network) == (1, 0)
        with dial(port) as client:
            greeting(client)
        assert carried(network) == (2, 1)
    with slirp.attach(guest, delay=0.005, splice=True) as network, serving(guest, SERVER):
        with dial(network.add_port(0, 80)) as client:
            greeting(client)
        assert carried(network) == (1, 0)
        assert not makers(network)


def test_server_that_is_bound_to_the_interface(guest: int) -> None:
    """It does not hear what comes by ``lo``, and is asked again over the interface."""
    code = """
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0")
l.bind(("", 80)); l.listen()
print("ready", flush=True)
s, peer = l.accept(); s.sendall(f"{peer[0]} {peer[1]}\\n".encode()); s.sendall(s.recv(9))
"""
    with (
        slirp.attach(guest, splice=True) as network,
        serving(guest, code),
        network.events() as events,
        dial(network.add_port(0, 80)) as client,
    ):
        assert greeting(client) == f"10.0.2.2 {client.getsockname()[1]}"
        client.sendall(b"hello")
        assert client.recv(9) == b"hello"
        assert (carried(network), network.stats()["tcp_unspliced"]) == ((1, 0), 1)
        (flow,) = network.flows()
        assert flow.state == "Established"
        assert next_of(events, "opened").remote == flow.remote


def test_namespace_with_a_mind_of_its_own(guest: int) -> None:
    """Strict reverse paths do not matter; a lost rule is noticed, and the interface takes over."""
    with slirp.attach(guest, splice=True) as network, serving(guest, SERVER):
        inside(guest, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.lo.rp_filter=1")
        port = network.add_port(0, 80)
        with dial(port) as client:
            greeting(client)
        assert carried(network) == (1, 1)
        assert not inside(guest, "ip", "rule", "del", "pref", "1").returncode
        for _ in range(2):  # the second does not wait
            with dial(port) as client:
                assert greeting(client) == f"10.0.2.2 {client.getsockname()[1]}"
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
        assert carried(network) == (3, 1)
        assert network.stats()["tcp_unspliced"] == 2


#: An engine with so many descriptors, and so many clients at once.
FEW = """
import subprocess
facts = {}
def round(limit, count):
    many = "import threading, resource; resource.setrlimit(7, (3000, 3000)); threading.stack_size(1 << 17)"
    with namespace() as guest, serving(guest, SERVER.replace("import threading", many)):
        code = f'''
import json, resource, sys
from r2d2 import slirp
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
with slirp.attach({guest}, splice=True) as network:
    print(network.add_port(0, 80).host_port, flush=True)
    while sys.stdin.readline(): print(json.dumps(network.stats()), flush=True)
'''
        with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
            port = int(process.stdout.readline())
            held = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(count)]
            well = 0
            for each in held:
                try:
                    each.settimeout(20); each.sendall(b"x")
                    line = each.makefile("rb").readline()
                    heard = line == b"10.0.2.2 %d\\n" % each.getsockname()[1]
                    well += heard
                except OSError: heard = False
            process.stdin.write("tell\\n"); process.stdin.flush()
            stats = json.loads(process.stdout.readline())
            process.stdin.close()
        for each in held: each.close()
        return stats | {"well": well, "newest": heard}
print(json.dumps([round(1600, 1000), round(350, 100), round(900, 1000)]))
"""


def test_a_thousand_connections_with_few_descriptors() -> None:
    """Some go around, the others over the interface; none is lost, and with too few none goes around.

    Where there are more than the engine can have at all, the longest idle are reset, the newest work.
    """
    facts: Any = owner(f"SERVER = {SERVER!r}\n{KEEPING}{FEW}")
    many, few, flood = facts
    assert (many["well"], many["shed"], many["tcp_in"]) == (1000, 0, 1000), many
    assert 300 <= many["tcp_spliced"] <= 400
    assert many["tcp_unspliced"] == 1000 - many["tcp_spliced"]
    assert (few["well"], few["shed"], few["tcp_spliced"]) == (100, 0, 0), few
    assert flood["newest"]
    assert flood["shed"] > 100
    assert flood["tcp_spliced"] > 100
    assert flood["well"] >= 1000 - flood["shed"], flood  # some were greeted before


def test_slow_readers_wait_without_harm_to_others(guest: int) -> None:
    """More who do not read than there are pipes: others get through, and in the end so do they."""
    with slirp.attach(guest, splice=True) as network, serving(guest, SERVER):
        port = network.add_port(0, 80)
        slow = [dial(port) for _ in range(40)]
        for client in slow:
            greeting(client)
            client.setblocking(False)
            with suppress(BlockingIOError):
                while client.send(bytes(1 << 20)):
                    pass
            client.settimeout(20)
        with dial(port) as client:
            greeting(client)
            client.sendall(b"quick")
            assert client.recv(5) == b"quick"
        assert carried(network) == (41, 41)
        for client in slow[::7]:
            threading.Thread(target=client.shutdown, args=(socket.SHUT_WR,)).start()
            assert sum(iter(lambda: len(client.recv(1 << 20)), 0)) > 1 << 20  # noqa: B023 - used at once
        for client in slow:
            client.close()
        assert until(lambda: not network.flows(), 20)


def test_maker_is_sandboxed(guest: int, device: slirp.Device) -> None:
    """It has the right to change the guest's network and no other, few calls and descriptors."""
    with slirp.attach(guest, device=device, splice=True) as network, serving(guest, SERVER):
        with dial(network.add_port(0, 80)) as client:
            greeting(client)
        assert carried(network) == (1, 1)
        (child,) = makers(network)
        lines = (line.split(":") for line in Path(f"/proc/{child}/status").read_text().splitlines())
        status = {name: value.strip() for name, value in lines if name in SANDBOXED}
        assert status == SANDBOXED
        # The channel, netlink, and five settings of /proc/sys/net; not dumpable, so its owner cannot look.
        if os.geteuid():
            with pytest.raises(PermissionError):
                os.listdir(f"/proc/{child}/fd")
        else:
            assert len(os.listdir(f"/proc/{child}/fd")) <= 7


@pytest.mark.parametrize("victim", ["engine", "maker", "guest"])
def test_sigkill_leaves_nothing(device: slirp.Device, victim: str) -> None:
    with (
        namespace() as guest,
        slirp.attach(guest, device=device, splice=True) as network,
        serving(guest, SERVER),
    ):
        port = network.add_port(0, 80)
        with dial(port) as client:
            greeting(client)
            (child,), engine = makers(network), network.pid
            os.kill({"engine": engine, "maker": child, "guest": guest}[victim], signal.SIGKILL)
            assert until(partial(ended, child), 20)
            if victim == "maker":
                # What stands goes on; what comes goes around as long as there are sockets in stock.
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                for _ in range(40):
                    with dial(port) as other:
                        greeting(other)
                stats = network.stats()
                assert stats["tcp_in"] == 41
                assert 0 < stats["tcp_unspliced"] < 40
            else:
                assert until(partial(ended, engine), 20)
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        if victim == "engine":
            assert until(lambda: interfaces(guest) == {"lo"})
            assert until(lambda: "lookup 1915883570" not in inside(guest, "ip", "rule").stdout)


def test_the_end_takes_everything_back(guest: int) -> None:
    settings = ["net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"]
    looks = (
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["sysctl", *settings],
    )

    def state() -> list[str]:
        return [
            line for look in looks for line in inside(guest, *look).stdout.splitlines() if "::1" not in line
        ]

    before: list[str] = []
    for turn in range(3):
        with slirp.attach(guest, splice=True) as network, serving(guest, SERVER):
            (child,) = makers(network)
            if turn:
                ports = [network.add_port(0, 80, host=host) for host in ("127.0.0.1", "::1")]
                with dial(ports[0]) as client:
                    greeting(client)
                assert carried(network) == (1, 1)
                now = " ".join(state())
                assert now.count("lookup 1915883570") == 2
                assert "tcp_fwmark_accept = 1" in now
        assert ended(child)
        assert until(lambda: interfaces(guest) == {"lo"})
        before = before or state()
        assert state() == before


def test_namespace_by_path_may_end(guest: int) -> None:
    """Nothing of ours keeps a namespace that has no process to end with: its ports use the interface."""
    path = f"/proc/{guest}/ns/"
    with slirp.attach(f"{path}net", userns=f"{path}user", splice=True) as network, serving(guest, SERVER):
        with dial(network.add_port(0, 80)) as client:
            greeting(client)
        assert carried(network) == (1, 0)
        assert network.stats()["tcp_unspliced"] == 0
    with namespace() as other:
        path = f"/proc/{other}/ns/"
        network = slirp.attach(f"{path}net", userns=f"{path}user", device="packet", splice=True)
        network.add_port(0, 80)
        os.kill(other, signal.SIGKILL)
        assert until(lambda: not network.alive, 20)
        network.close()
