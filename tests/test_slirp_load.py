"""More than usual: ten thousand idle connections, more flows than descriptors, slow readers, many datagrams.

Everything runs in a network namespace of its own, so that thousands of ports are nobody else's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from _needs import needs

pytestmark = needs("unshare")

#: What every owner starts with: a namespace inside, programs in it, figures of the engine.
OWNER = """
import json, os, resource, socket, sys, threading, time
from _guest import namespace, python, serving
from r2d2 import slirp
def memory(network):
    return int(open(f"/proc/{network.pid}/statm").read().split()[1]) * resource.getpagesize()
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def settled(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.01)
"""


def owner(code: str) -> dict[str, Any]:
    """Runs an owner of networks whose host is a namespace with nothing but a loopback; what it prints."""
    shell = 'ip link set lo up && exec "$0" -c "$1"'
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "sh",
        "-c",
        shell,
        sys.executable,
        OWNER + code,
    ]
    place = Path(__file__).parent
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=90)
        finally:
            # What it started is in its group; engines end with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err[-3000:]
    facts: dict[str, Any] = json.loads(out)
    return facts


#: A server that takes connections and keeps them.
KEEPING = """
descriptors()
kept = []
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
port = listener.getsockname()[1]
def take():
    while True:
        kept.append(listener.accept()[0])
threading.Thread(target=take, daemon=True).start()
"""


@pytest.mark.timeout(240)
def test_ten_thousand_idle_connections() -> None:
    """Each costs the engine no more than 256 bytes; after all of them the first and the last still work."""
    facts = owner(
        KEEPING
        + """
room = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
many = min(10_000, room - 300)
first = many // 5  # by then all that is for all of them is there
with namespace() as guest, slirp.attach(guest, host_loopback=True) as network:
    code = f'''
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({room}, {room}))
held = []
def more(n):
    for _ in range(n):
        held.append(socket.create_connection(("10.0.2.2", {port}), 20))
more({first})
print("ready", flush=True)
sys.stdin.readline()
more({many} - {first})
for each in (held[0], held[-1]):
    each.sendall(b"still here")
print("all", flush=True)
sys.stdin.readline()
'''
    import _guest, subprocess
    started = [*_guest.ENTER, str(guest), sys.executable, "-c", "import socket\\n" + code]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\\n"
        settled(lambda: len(kept) == first)
        before = memory(network)
        process.stdin.write("go\\n"); process.stdin.flush()
        assert process.stdout.readline() == "all\\n"
        settled(lambda: len(kept) == many)
        after, stats = memory(network), network.stats()
        said = []
        for each in (kept[0], kept[-1]):
            each.settimeout(20)
            said.append(each.recv(100).decode())
        process.stdin.write("end\\n"); process.stdin.flush()
print(json.dumps({"many": many, "bytes": (after - before) / (many - first), "flows": stats["flows"],
    "shed": stats["shed"], "buffered": stats["buffered"], "said": said}))
"""
    )
    assert facts["flows"] == facts["many"]
    assert (facts["shed"], facts["buffered"]) == (0, 0)
    assert facts["said"] == ["still here", "still here"]
    assert facts["bytes"] <= 256, facts


#: An engine with few descriptors: a process with a low limit attaches it, and tells how it stands when asked.
FEW = """
import subprocess
from contextlib import contextmanager
@contextmanager
def few(guest, limit):
    code = f'''
import json, resource, sys
from r2d2 import slirp
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
with slirp.attach({guest}, host_loopback=True) as network:
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(network.stats() | {{"alive": network.alive}}), flush=True)
'''
    started = [sys.executable, "-c", code]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\\n"
        def stats():
            process.stdin.write("tell\\n"); process.stdin.flush()
            return json.loads(process.stdout.readline())
        yield stats
        process.stdin.close()
"""


def test_more_connections_than_descriptors() -> None:
    """The longest idle give way, and are told so; none is refused, and the newest works."""
    facts = owner(
        KEEPING
        + FEW
        + """
with namespace() as guest, few(guest, 400) as stats:
    code = f'''
held = []
for i in range(900):
    held.append(socket.create_connection(("10.0.2.2", {port}), 20))
held[-1].sendall(b"newest")
time.sleep(0.2)
reset = 0
for each in held:
    each.setblocking(False)
    try: each.recv(1)
    except BlockingIOError: pass
    except ConnectionResetError: reset += 1
print(reset)
'''
    code = "import resource\\nresource.setrlimit(7, (1000, 1000))\\n" + code
    reset = int(python(guest, code))
    settled(lambda: len(kept) == 900)
    kept[-1].settimeout(20)
    facts = stats() | {"reset": reset, "said": kept[-1].recv(100).decode()}
print(json.dumps(facts))
"""
    )
    assert facts["said"] == "newest"
    assert facts["tcp_out"] == 900
    assert facts["alive"]
    # 400 descriptors less those that are kept free of flows.
    assert 900 - 336 <= facts["shed"] <= 700
    assert facts["reset"] == facts["shed"]


def test_datagrams_to_sixty_thousand_ports() -> None:
    """An engine with few descriptors goes on: the last datagram arrives, and so does a connection."""
    facts = owner(
        KEEPING
        + FEW
        + """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, namespace() as guest, few(guest, 400) as stats:
    peer.bind(("127.0.0.1", 65000)); peer.settimeout(20)
    code = f'''
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1, 60001):
    s.sendto(b"x", ("10.0.2.2", port))
    if port % 100 == 0: time.sleep(0.001)
s.settimeout(1)
for _ in range(20):
    s.sendto(b"last", ("10.0.2.2", 65000))
    try:
        # A few "x" before it: from sockets of the engine whose own port is the one that they send to.
        while (data := s.recv(10)) != b"tsal": pass
        print(data.decode())
        break
    except TimeoutError: pass
print(socket.create_connection(("10.0.2.2", {port}), 20).getpeername()[0])
'''
    def answer():
        while True:
            try: data, sender = peer.recvfrom(10)
            except OSError: return
            peer.sendto(data[::-1], sender)
    threading.Thread(target=answer, daemon=True).start()
    heard = python(guest, code).split()
    facts = stats() | {"heard": heard}
print(json.dumps(facts))
os._exit(0 if not sys.stdout.flush() else 1)
"""
    )
    assert facts["heard"] == ["tsal", "10.0.2.2"]
    assert facts["alive"]
    assert facts["shed"] > 1000
    assert facts["datagram_flows"] > 10_000
    assert facts["flows"] <= 336


@pytest.mark.parametrize("direction", ["to the host", "to the guest"])
def test_slow_readers(direction: str) -> None:
    """Eight that do not read stop their senders, cost a bounded amount, and get everything in the end."""
    size, many = 60_000_000, 8
    up = direction == "to the host"
    sends = f"""
def sends(connections):
    blocks, left = bytes(range(256)) * 256, dict.fromkeys(connections, {size})
    sent = 0
    idle = time.monotonic()
    for each in connections: each.setblocking(False)
    while any(left.values()):
        moved = 0
        for each in connections:
            if left[each]:
                try: n = each.send(blocks[-left[each] % 65536:][:left[each]])
                except BlockingIOError: continue
                left[each] -= n; moved += n
                if not left[each]: each.shutdown(socket.SHUT_WR)
        if moved: idle = time.monotonic()
        elif time.monotonic() - idle > 1:
            print("stuck", {size} * len(connections) - sum(left.values()), flush=True)
            idle = float("inf")
        else: time.sleep(0.01)
"""
    reads = """
def reads(connections):
    for each in connections:
        each.setblocking(True)
        whole = n = 0
        while data := each.recv(65536):
            assert data == (pattern * 2)[n % 256:][:len(data)], n
            n += len(data)
        print("read", n, flush=True)
pattern = bytes(range(256)) * 512
"""
    inner = f"""
import socket, sys, time
{sends}{reads}
connections = [socket.create_connection(("10.0.2.2", PORT), 20) for _ in range({many})]
print("ready", flush=True)
sys.stdin.readline()
{"sends" if up else "reads"}(connections)
print("end", flush=True)
"""
    facts = owner(
        sends.replace('print("stuck", ', "stuck.append(").replace(", flush=True)", ")")
        + reads.replace('print("read", n, flush=True)', "got.append(n)")
        + "stuck, got, inner = [], [], "
        + repr(inner)
        + KEEPING
        + f"""
import subprocess, _guest
with namespace() as guest, slirp.attach(guest, host_loopback=True) as network:
    before = memory(network)
    started = [*_guest.ENTER, str(guest), sys.executable, "-c", inner.replace("PORT", str(port))]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\\n"
        settled(lambda: len(kept) == {many})
        if {up}:
            process.stdin.write("go\\n"); process.stdin.flush()
            stuck.append(int(process.stdout.readline().split()[1]))
        else:
            sender = threading.Thread(target=sends, args=(kept,)); sender.start()
            settled(lambda: stuck)
        held, buffered, more = stuck[0], network.stats()["buffered"], memory(network) - before
        if {up}:
            reads(kept)
            assert process.stdout.readline() == "end\\n"
        else:
            process.stdin.write("go\\n"); process.stdin.flush()
            for _ in kept: got.append(int(process.stdout.readline().split()[1]))
            sender.join()
print(json.dumps(dict(held=held, buffered=buffered, more=more, got=got)))
"""
    )
    assert facts["got"] == [size] * many
    assert 0 < facts["held"] < size * many, "they did stop"
    # Towards the guest all waits in the host's sockets; of the guest's data at most a window each is held.
    assert facts["buffered"] <= (many * 8_388_480 if up else 0), facts
    assert facts["more"] <= (facts["buffered"] * 2 if up else 0) + (8 << 20), facts
