"""What the peers' own tests look at and no other test here does; `test_network_cases` has the lists."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _guest import elsewhere, inside, interfaces, namespace, python, server, serving
from _needs import needs
from _proc import until
from r2d2 import slirp

if TYPE_CHECKING:
    from r2d2.ports import Protocol

pytestmark = needs("unshare")

#: passt's sizes: more than any buffer holds, and less than a segment does.
BIG, SMALL = 10 << 20, 2 << 10
families = pytest.mark.parametrize("family", [4, 6])
GATEWAY = {4: "10.0.2.2", 6: "fd00::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: "AF_INET", 6: "AF_INET6"}


def some(size: int) -> bytes:
    """The same bytes for the same size, and no two alike."""
    return random.Random(size).randbytes(size)


# passt: pasta/tcp, pasta/udp


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
@families
def test_transfer_to_the_host(guest: int, device: slirp.Device, family: int, size: int) -> None:
    heard: list[bytes] = []

    def keep(connection: socket.socket) -> None:
        heard.append(b"".join(iter(lambda: connection.recv(1 << 16), b"")))

    code = f"""
import random
s = socket.create_connection(({GATEWAY[family]!r}, PORT), 20)
s.sendall(random.Random({size}).randbytes({size})); s.shutdown(socket.SHUT_WR); s.recv(1)
"""
    with (
        server(keep, getattr(socket, FAMILY[family])) as port,
        slirp.attach(guest, host_loopback=True, device=device),
    ):
        python(guest, code.replace("PORT", str(port)))
    assert heard == [some(size)]


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
@families
def test_transfer_to_the_guest(guest: int, device: slirp.Device, family: int, size: int) -> None:
    code = f"""
listener = socket.create_server(("", 8080), family=socket.{FAMILY[family]}); print("ready", flush=True)
s, _ = listener.accept(); digest = hashlib.sha256()
while data := s.recv(1 << 16): digest.update(data)
s.sendall(digest.hexdigest().encode())
"""
    with slirp.attach(guest, device=device) as network, serving(guest, code):
        port = network.add_port(0, 8080, host=LOOPBACK[family]).host_port
        with socket.create_connection((LOOPBACK[family], port), 20) as client:
            client.sendall(some(size))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100).decode() == hashlib.sha256(some(size)).hexdigest()


@pytest.mark.parametrize("way", ["to the host", "to the guest"])
@families
def test_datagrams(guest: int, device: slirp.Device, family: int, way: str) -> None:
    """As pasta's: one file of many datagrams; here each is asked for, so that none is lost."""
    parts = 100
    answering = f"""
s = socket.socket(socket.{FAMILY[family]}, socket.SOCK_DGRAM); s.bind(("", 8080)); print("ready", flush=True)
for _ in range({parts}):
    data, peer = s.recvfrom(65536); s.sendto(data[::-1], peer)
"""
    asking = f"""
import random, socket
s = socket.socket(socket.{FAMILY[family]}, socket.SOCK_DGRAM); s.settimeout(20); s.connect(ADDRESS)
for i in range({parts}):
    data = random.Random(i).randbytes(1 + i * 83); s.send(data)
    assert s.recv(65536) == data[::-1], i
"""
    with ExitStack() as stack:
        network = stack.enter_context(slirp.attach(guest, host_loopback=True, device=device))
        if way == "to the guest":
            stack.enter_context(serving(guest, answering))
            port = network.add_port(0, 8080, protocol="udp", host=LOOPBACK[family]).host_port
            client = asking.replace("ADDRESS", str((LOOPBACK[family], port)))
            subprocess.run([sys.executable, "-c", client], check=True, timeout=60)
            return
        peer = stack.enter_context(socket.socket(getattr(socket, FAMILY[family]), socket.SOCK_DGRAM))
        peer.bind((LOOPBACK[family], 0))

        def answer() -> None:
            for _ in range(parts):
                data, sender = peer.recvfrom(65536)
                peer.sendto(data[::-1], sender)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        python(guest, asking.replace("ADDRESS", str((GATEWAY[family], peer.getsockname()[1]))))
        thread.join(20)


# passt's two_guests/basic


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_two_guests_meet_at_a_port_of_the_host(guest: int, device: slirp.Device, protocol: Protocol) -> None:
    """Two engines in one process; each guest reaches the other as it would anybody on the host."""
    stream = protocol == "tcp"
    kind = "STREAM" if stream else "DGRAM"
    answering = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.bind(("", 8080))
{"s.listen()" if stream else ""}
print("ready", flush=True)
{"c, _ = s.accept(); c.sendall(c.recv(9)[::-1])" if stream else "d, c = s.recvfrom(9); s.sendto(d[::-1], c)"}
"""
    asking = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.settimeout(20); s.connect(("10.0.2.2", PORT))
s.send(b"hello"); print(s.recv(9).decode())
"""
    with namespace() as other:
        at = {"host_loopback": True, "device": device}
        with slirp.attach(guest, **at) as one, slirp.attach(other, **at) as two:
            assert one.pid != two.pid
            for network, server_pid, client_pid in ((one, guest, other), (two, other, guest)):
                port = network.add_port(0, 8080, protocol=protocol).host_port
                with serving(server_pid, answering):
                    assert python(client_pid, asking.replace("PORT", str(port))) == "olleh"
            # One ends without the other noticing.
            one.close()
            assert two.alive
            assert inside(other, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0


def test_two_interfaces_in_one_namespace(guest: int, device: slirp.Device) -> None:
    with (
        slirp.attach(guest, device=device),
        slirp.attach(guest, "tap1", cidr="10.0.3.0/24", ipv6=False, device=device),
    ):
        assert interfaces(guest) == {"lo", "tap0", "tap1"}
        for gateway in ("10.0.2.2", "10.0.3.2"):
            assert inside(guest, "ping", "-c1", "-W5", gateway).returncode == 0


# slirp4netns: dhcp; passt: pasta/dhcp, pasta/ndp


@needs("busybox")
def test_dhcp_client_gets_the_first_lease(guest: int, device: slirp.Device, tmp_path: Path) -> None:
    """A DHCP client as it is: what it would configure, it is told; slirp4netns' address, pasta's MTU."""
    script = tmp_path / "told"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "$ip $subnet $router $dns $mtu $search"; exit 0\n')
    script.chmod(0o755)
    with slirp.attach(guest, configure=False, mtu=65520, search=["example.org"], device=device):
        inside(guest, "ip", "link", "set", "tap0", "up").check_returncode()
        client = ["busybox", "udhcpc", "-i", "tap0", "-s", str(script), "-f", "-q", "-n", "-O", "mtu"]
        done = inside(guest, *client, "-O", "search")
        assert done.returncode == 0, done.stderr
        told = next(line for line in done.stdout.splitlines() if line.startswith("10."))
        assert told.split() == ["10.0.2.15", "255.255.255.0", "10.0.2.2", "10.0.2.3", "65520", "example.org"]


def test_router_advertisement_configures_an_interface(guest: int, device: slirp.Device) -> None:
    """The kernel's own SLAAC: an address of the prefix, and the router it came from as the default route."""
    with slirp.attach(guest, configure=False, device=device):
        for setting in ("disable_ipv6=0", "accept_ra=2", "autoconf=1"):
            name, value = setting.split("=")
            inside(guest, "sysctl", "-qw", f"net.ipv6.conf.tap0.{name}={value}").check_returncode()
        for state in ("down", "up"):
            inside(guest, "ip", "link", "set", "tap0", state).check_returncode()

        def settled() -> bool:
            address = inside(guest, "ip", "-6", "addr", "show", "tap0", "scope", "global").stdout
            return "inet6 fd00:" in address and "tentative" not in address

        assert until(settled, 20), inside(guest, "ip", "-6", "addr").stdout
        assert "default via fe80::" in inside(guest, "ip", "-6", "route").stdout
        assert inside(guest, "ping", "-6", "-c1", "-W5", "fd00::2").returncode == 0


# passt: passt_in_ns/icmp; rootlesskit: TestUDPTransparent. In a host of its own, that has public addresses.


def test_echo_of_somebody_beyond_the_gateway() -> None:
    code = """
with namespace() as guest, slirp.attach(guest) as network:
    for address in ("192.0.2.9", "2001:db8::9"):
        done = inside(guest, "ping", "-c3", "-i0.01", "-W5", address)
        print(done.returncode, "3 received" in done.stdout)
    print(network.stats()["ping_forbidden"])
"""
    assert elsewhere(code).split() == ["0", "True", "0", "True", "0"]


def test_a_datagrams_sender_is_seen_and_answered() -> None:
    """Not its address alone arrives: the answer comes back to it, from the port that it sent to."""
    code = """
answering = '''
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 8080)); print("ready", flush=True)
while True:
    data, peer = s.recvfrom(99); s.sendto(f"{peer[0]}:{peer[1]}".encode(), peer)
'''
with namespace() as guest, slirp.attach(guest) as network, serving(guest, answering):
    port = network.add_port(0, 8080, protocol="udp", host="192.0.2.1").host_port
    for source in ("192.0.2.9", "192.0.2.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((source, 0)); client.settimeout(20); client.connect(("192.0.2.1", port))
            client.send(b"x")
            print(client.recv(99).decode() == f"{source}:{client.getsockname()[1]}")
"""
    assert elsewhere(code).split() == ["True", "True"]


# slirp4netns: disable-dns, ready-fd, sandbox-no-unmount

PROGRAM = [sys.executable, "-m", "r2d2", "slirp4netns"]


def test_without_a_resolver_nobody_answers(guest: int) -> None:
    code = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.connect(("10.0.2.3", 53))
try: s.send(b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1"); s.recv(99)
except OSError as error: print(type(error).__name__)
"""
    ready, ready_in = os.pipe()
    command = [*PROGRAM, "-c", "--disable-dns", f"-r{ready_in}", str(guest), "tap0"]
    with subprocess.Popen(command, pass_fds=[ready_in], stdout=subprocess.DEVNULL) as process:
        os.close(ready_in)
        try:
            with open(ready, "rb") as file:
                assert file.read() == b"1", "and then nothing: it is closed"
            assert "tap0" in interfaces(guest), "it stands when that is said"
            assert python(guest, code) == "TimeoutError"
        finally:
            process.terminate()
            process.wait(10)


def test_mounts_of_the_host_survive_the_sandbox(guest: int, tmp_path: Path) -> None:
    """Those below /run, which slirp4netns' sandbox once took along (its issue 211)."""
    (tmp_path / "run").mkdir()
    script = """
mount -t tmpfs tmpfs "$1/run" && mkdir "$1/run/deep" && mount -t tmpfs tmpfs "$1/run/deep" || exit 9
shift
"$@" & echo $!
read _; kill $!; wait; grep -c "/run" /proc/self/mountinfo
"""
    ready, ready_in = os.pipe()
    before = 2 + sum("/run" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    enter = ["nsenter", "-U", "--preserve-credentials", "-t", str(guest)]
    command = [*enter, "unshare", "--mount", "--propagation=slave", "sh", "-c", script, "sh", str(tmp_path)]
    program = [*PROGRAM, "-c", "--enable-sandbox", f"-r{ready_in}", str(guest), "tap0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *program], pass_fds=[ready_in], **pipes) as process:  # type: ignore[call-overload]
        os.close(ready_in)
        assert os.read(ready, 1) == b"1"
        os.close(ready)
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        out, _ = process.communicate("\n", timeout=20)
    assert int(out.split()[-1]) == before
    shutil.rmtree(tmp_path / "run")


# passt's memory/passt


def test_what_a_published_port_costs(guest: int) -> None:
    """A thousand of them, and no more than 400 bytes of the engine's memory each."""

    def memory(network: slirp.Network) -> int:
        return int(Path(f"/proc/{network.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    with slirp.attach(guest) as network, closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        for _ in range(100):
            network.add_port(0, 80)
        before = memory(network)
        for _ in range(700):
            network.add_port(0, 80)
        assert len(network.ports) == 800
        assert (memory(network) - before) / 700 <= 400
        with pytest.raises(OSError, match=r".") as failure:
            network.add_port(probe.getsockname()[1])
        assert failure.value.errno == errno.EADDRINUSE


# gvisor-tap-vsock: records of other types


def test_records_of_every_type_are_relayed_as_they_are(guest: int) -> None:
    """CNAME, MX, NS, SRV, TXT: the engine looks at questions, and passes answers on byte for byte."""
    kinds = {"CNAME": 5, "MX": 15, "NS": 2, "SRV": 33, "TXT": 16, "HTTPS": 65, "ANY": 255}
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as resolver:
        resolver.bind(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                query, sender = resolver.recvfrom(4096)
                if not query:
                    return
                record = b"\xc0\x0c" + query[-4:] + b"\0\0\0\5" + b"\0\x06" + b"\3abc\xc0\x0c"
                resolver.sendto(query[:2] + b"\x85\x80\0\1\0\1\0\0\0\0" + query[12:] + record, sender)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = f"127.0.0.1:{resolver.getsockname()[1]}"
        code = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); s.connect(("10.0.2.3", 53))
for kind in {list(kinds.values())}:
    query = b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4some\\4name\\0" + kind.to_bytes(2) + b"\\0\\1"
    s.send(query)
    record = b"\\xc0\\x0c" + query[-4:] + b"\\0\\0\\0\\5\\0\\x06\\3abc\\xc0\\x0c"
    print(s.recv(4096) == b"ab\\x85\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + query[12:] + record)
"""
        with slirp.attach(guest, resolvers=[address]):
            assert python(guest, code).split() == ["True"] * len(kinds)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as end:
            end.sendto(b"", resolver.getsockname())
        thread.join(10)
