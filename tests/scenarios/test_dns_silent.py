"""A DNS server that stops answering: what its clients see, and what a second server is good for.

A name that does not exist and a server that says nothing are different errors, ``EAI_NONAME`` and
``EAI_AGAIN`` (getaddrinfo(3)): only the second is worth another try. With two servers in resolv.conf(5) the
answer comes, late.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import r2d2
from r2d2.testing import wait_until

if TYPE_CHECKING:
    from r2d2.process import Process

#: A server (RFC 1035) that knows the address of one name, and of no other.
SERVER = r"""
import socket
known = b"\x03api\x07example\x00"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 53))
print("ready", flush=True)
while True:
    query, client = s.recvfrom(512)
    end = query.index(0, 12) + 1
    name, kind = query[12:end], query[end:end + 2]
    found = name.lower() == known
    address = found and kind == b"\x00\x01"
    head = query[:2] + (b"\x85\x80" if found else b"\x85\x83") + b"\x00\x01" + bytes([0, address, 0, 0, 0, 0])
    answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04" + bytes([192, 0, 2, 7]) if address else b""
    s.sendto(head + query[12:end + 4] + answer, client)
"""

ASK = """
import socket, sys
names = {getattr(socket, name): name for name in dir(socket) if name.startswith("EAI_")}
try: print(socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
except socket.gaierror as error: print(names[error.errno])
"""

#: Seconds that the client waits for a server.
PATIENCE = 2


def test_a_dns_server_stops_answering() -> None:
    with ExitStack() as stack:
        net = stack.enter_context(r2d2.Network(ipv6=False))
        servers: dict[str, Process] = {}
        addresses = []
        for name in ("ns1", "ns2"):
            host = stack.enter_context(r2d2.Container("host", name=name, network=net))
            addresses.append(str(host.interfaces[0].address))
            server = host.popen(["python3", "-c", SERVER], stdout=subprocess.PIPE, text=True)
            servers[name] = stack.enter_context(server)
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        client = stack.enter_context(r2d2.Container("host", name="client", network=net))

        def use(*nameservers: str) -> None:
            lines = [f"nameserver {address}" for address in nameservers]
            lines.append(f"options timeout:{PATIENCE} attempts:1")
            client.path("/etc/resolv.conf").write_text("\n".join(lines) + "\n")

        def ask(name: str) -> tuple[str, float]:
            began = time.monotonic()
            done = client.run(["python3", "-c", ASK, name], capture_output=True, text=True, check=True)
            return done.stdout.strip(), time.monotonic() - began

        use(addresses[0])
        assert ask("api.example")[0] == "192.0.2.7"
        assert ask("nobody.example")[0] == "EAI_NONAME"

        # It hangs: its port is still open, so nobody is told.
        servers["ns1"].send_signal(signal.SIGSTOP)
        answer, took = ask("api.example")
        assert answer == "EAI_AGAIN"
        assert took >= PATIENCE

        # A second server helps, for the price of the wait for the first.
        use(*addresses)
        answer, took = ask("api.example")
        assert answer == "192.0.2.7"
        assert took >= PATIENCE
        net.cut("client", "ns2")
        assert ask("api.example")[0] == "EAI_AGAIN"

        # The first one goes on; what happened to the second does not matter.
        servers["ns1"].send_signal(signal.SIGCONT)
        wait_until(lambda: ask("api.example")[0] == "192.0.2.7")
