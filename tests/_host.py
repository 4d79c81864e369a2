"""A network namespace that plays the host, another that plays the world, and this thread in the first.

Real root's networking changes interfaces, routes and firewall of the host: here those of a namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from r2d2.bridge import BridgeNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    import r2d2

CLONE_NEWNET = 0x40000000
#: What the world sees of the host, and the other way round.
HOST, WORLD = "203.0.113.1", "203.0.113.2"
HOST6, WORLD6 = "2001:db8::1", "2001:db8::2"

#: Says to whoever connects, or sends a datagram, who that is; on port 80, or the one given.
SERVER = """
import socket, sys, threading
port = int(sys.argv[1]) if len(sys.argv) > 1 else 80
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", port))
def datagrams():
    while True:
        _, peer = udp.recvfrom(100)
        udp.sendto(peer[0].removeprefix("::ffff:").encode(), peer)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    connection, peer = tcp.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""
#: What such a server says: ADDRESS PORT tcp|udp SECONDS; else the error's name.
CLIENT = """
import errno, socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
try:
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
        client.settimeout(float(sys.argv[4]))
        client.connect((host, port))
        if kind == "udp":
            client.send(b"x")
        print(client.recv(100).decode())
except TimeoutError:
    print("timeout")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


class Namespace:
    """A network namespace, kept by a process."""

    def __init__(self) -> None:
        command = ["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline()
        self.process.stdout.close()
        self.enter = ["nsenter", "--net", "--target", str(self.process.pid)]

    def sh(self, script: str) -> str:
        """Runs a script there: its output."""
        done = subprocess.run(
            [*self.enter, "sh", "-ec", script], check=False, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, (script, done.stdout)
        return done.stdout

    def ask(self, host: object, port: int, kind: str = "tcp", patience: float = 10) -> str:
        """Whom a `SERVER` there takes us for."""
        command = [*self.enter, sys.executable, "-c", CLIENT, str(host), str(port), kind, str(patience)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @contextmanager
    def serving(self, port: int) -> Iterator[None]:
        """A `SERVER` there."""
        command = [*self.enter, sys.executable, "-c", SERVER, str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield
            finally:
                process.kill()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Host(Namespace):
    """The one that plays the host, with a wire to the world."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Namespace()
        self.sh(
            f"""
            ip link add wan type veth peer name wan netns {self.world.process.pid}
            ip link set lo up; ip link set wan up
            ip address add {HOST}/24 dev wan; ip address add {HOST6}/64 dev wan nodad
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            """
        )
        self.world.sh(
            f"""
            ip link set lo up; ip link set wan up
            ip address add {WORLD}/24 dev wan; ip address add {WORLD6}/64 dev wan nodad
            """
        )

    def left(self) -> str:
        """What is there of containers: interfaces, routes, the firewall."""
        found = self.sh("ip -o link; ip route show table all; ip -6 route show table all; nft list ruleset")
        return "\n".join(line for line in found.splitlines() if "r2d2-" in line or "proto 210" in line)

    @contextmanager
    def entered(self) -> Iterator[Host]:
        """With this thread, and what it starts, in it."""
        libc = ctypes.CDLL(None, use_errno=True)
        with ExitStack() as stack:
            ours, theirs = (
                os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in ("thread-self", self.process.pid)
            )
            stack.callback(os.close, ours)
            stack.callback(os.close, theirs)
            assert libc.setns(theirs, CLONE_NEWNET) == 0
            stack.callback(libc.setns, ours, CLONE_NEWNET)
            yield self

    def end(self) -> None:
        self.world.end()
        super().end()


def net(container: r2d2.Container) -> BridgeNetwork:
    """What ties a container to the host's network."""
    assert isinstance(container.network, BridgeNetwork)
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
