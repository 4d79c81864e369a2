"""A network namespace that plays the host, another that plays the world, and this thread in the first.

Real root's networking changes interfaces, routes and firewall of the host: here those of a namespace.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
