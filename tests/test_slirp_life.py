"""A network beside other things: a fork of its owner, the collector, a suspended host, a day of traffic."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import echo, interfaces, python, server, serving
from _needs import needs
from _proc import ended, until
from r2d2 import slirp

if TYPE_CHECKING:
    import socket

pytestmark = needs("unshare")

#: How long the soak runs; R2D2_SOAK_SECONDS=86400 is a day.
SOAK = int(os.environ.get("R2D2_SOAK_SECONDS", "1"))


def in_a_fork(body: str, network: slirp.Network) -> int:
    """What a fork of this process ends with that does something with its copy of the network."""
    pid = os.fork()
    if pid == 0:
        try:
            exec(body, {"network": network, "gc": gc, "r2d2": r2d2})
        except r2d2.ContainerClosed:
            os._exit(7)
        except BaseException:  # noqa: BLE001 - it must end here, whatever it is
            os._exit(9)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", 0),
        ("network.close()", 0),
        ("with network: pass", 0),
        ("network.stats()", 7),
        ("network.add_port(0, 80)", 7),
        ("del network; gc.collect()", 0),
    ],
)
def test_a_fork_has_no_part_in_the_network(guest: int, body: str, code: int) -> None:
    """Its owner's stays as it is: neither ended, nor asked by two at once."""
    with slirp.attach(guest) as network:
        began = time.monotonic()
        assert in_a_fork(body, network) == code
        assert time.monotonic() - began < 0.9, "it has nothing to wait for"
        assert network.alive
        assert network.stats()["flows"] == 0
        network.add_port(0, 80)
    assert until(lambda: interfaces(guest) == {"lo"})


def test_a_network_that_nobody_has_any_more_ends(guest: int, device: slirp.Device) -> None:
    network = slirp.attach(guest, device=device)
    pid = network.pid
    cycle = [network]
    cycle.append(cycle)  # type: ignore[arg-type]
    del network, cycle
    gc.collect()
    assert ended(pid)
    assert until(lambda: interfaces(guest) == {"lo"})


def test_connections_outlast_a_suspended_host(guest: int, device: slirp.Device) -> None:
    """The engine sleeps, as with the host, and finds that time has jumped. Its clock is not the wall's."""
    with slirp.attach(guest, host_loopback=True, device=device) as network, server(echo) as port:
        code = f"""
s = socket.create_connection(("10.0.2.2", {port}), 20); s.sendall(b"before"); s.recv(9)
print("ready", flush=True)
time.sleep(0.5)  # until it sleeps
s.sendall(b"during"); print(s.recv(9).decode(), flush=True)
time.sleep(0.1)
s.sendall(b"after"); print(s.recv(9).decode(), flush=True)
"""
        with serving(guest, code) as program:
            os.kill(network.pid, signal.SIGSTOP)
            try:
                assert program.stdout
                assert not select.select([program.stdout], [], [], 1.2)[0], "it sleeps"
            finally:
                os.kill(network.pid, signal.SIGCONT)
            assert program.communicate(timeout=20)[0].split() == ["during", "after"]
        assert network.alive


def test_a_thousand_connections_at_once(guest: int) -> None:
    """Each asks, is answered and closes; nothing of them is left."""
    many = 1000
    code = f"""
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def one(i):
    reader, writer = await asyncio.open_connection("10.0.2.2", PORT)
    writer.write(str(i).encode()); writer.write_eof()
    answer = await reader.read()
    writer.close(); await writer.wait_closed()
    return answer.decode() == str(i)[::-1]
async def all_():
    return await asyncio.gather(*map(one, range({many})))
print(sum(asyncio.run(all_())))
"""
    serve = """
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def answer(reader, writer):
    writer.write((await reader.read())[::-1]); writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE) as answering:
        try:
            assert answering.stdout
            port = int(answering.stdout.readline())
            with slirp.attach(guest, host_loopback=True) as network:
                assert python(guest, code.replace("PORT", str(port))) == str(many)
                stats = network.stats()
                assert stats["tcp_out"] == many
                assert stats["buffered"] == 0
        finally:
            answering.kill()


@pytest.mark.timeout(60 + 2 * SOAK)
def test_soak(guest: int, device: slirp.Device) -> None:
    """Traffic of every kind, some of it lost, for as long as it is asked for: the engine does not grow."""

    def memory() -> int:
        return int(Path(f"/proc/{network.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def answer(connection: socket.socket) -> None:
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        except OSError:
            return  # the client went away, as one does

    code = """
import random
chance, end = random.Random(1), time.monotonic() + SECONDS
rounds = 0
while time.monotonic() < end:
    rounds += 1
    s = socket.create_connection(("10.0.2.2", PORT), 60)
    data = chance.randbytes(chance.choice((1, 1400, 100_000)))
    s.sendall(data); s.shutdown(socket.SHUT_WR)
    if chance.random() < 0.8:
        got = b"".join(iter(lambda: s.recv(1 << 16), b""))
        assert got == data, (rounds, len(got), len(data))
    s.close()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for size in (0, 100, 3000):
        u.sendto(bytes(size), ("10.0.2.2", 1 + chance.randrange(60_000)))
    u.close()
print(rounds)
"""
    with (
        slirp.attach(guest, host_loopback=True, loss=0.002, device=device) as network,
        server(answer) as port,
    ):
        first = code.replace("PORT", str(port)).replace("SECONDS", "0.7")
        assert int(python(guest, first)) > 0
        before = memory()
        rest = code.replace("PORT", str(port)).replace("SECONDS", str(SOAK))
        assert int(python(guest, rest, seconds=SOAK + 60)) > 0
        assert memory() - before < 4 << 20
        assert network.alive
