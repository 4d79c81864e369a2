"""Members of a network of containers that are bare namespaces, and what they say to each other."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from _guest import inside, namespace, python, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import r2d2


@contextmanager
def nodes(network: r2d2.Network, *names: str) -> Iterator[dict[str, int]]:
    """Processes, each in a network namespace of its own, that are members under these names."""
    with ExitStack() as stack:
        pids = {name: stack.enter_context(namespace()) for name in names}
        for name, pid in pids.items():
            network.join(pid, name=name)
        yield pids


#: Sends back what comes, to any number of clients, on port 7.
ECHO = """
import threading
s = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
def serve(c):
    with c:
        while data := c.recv(65536): c.sendall(data)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""

#: Prints the numbers of the datagrams that come on port 9, until one says that it is the last.
COLLECT = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9)); s.settimeout(30)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
print("ready", flush=True)
while (data := s.recv(65536)[:8]) != b"the last": print(int.from_bytes(data, "big"))
"""


def received(
    network: r2d2.Network, pids: dict[str, int], sender: str, receiver: str, count: int, **impairment: Any
) -> list[int]:
    """Sends numbered datagrams over a link with this impairment: those that came, in their order."""
    address = network.members[receiver].address
    if impairment:
        # First it must be known who has the address: datagrams wait for that as long as it takes.
        assert inside(pids[sender], "ping", "-c1", "-W5", str(address)).returncode == 0
        network.link(sender, receiver, both=False).set(**impairment)
    with serving(pids[receiver], COLLECT) as collector:
        python(
            pids[sender],
            f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("{address}", 9))
for n in range({count}):
    s.send(n.to_bytes(8, "big") + bytes(100))
    if n % 20 == 19: time.sleep(0.002)
""",
        )
        # The last one must come through: on a good link, when all others have had their time.
        last = 's = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"the last", ("{}", 9))'
        network.link(sender, receiver, both=False).clear()
        python(pids[sender], "time.sleep(0.1); " + last.format(address))
        assert collector.stdout is not None
        return [int(line) for line in collector.stdout.read().split()]
