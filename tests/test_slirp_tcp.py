"""Streams through the engine, whole and in both directions."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from _guest import python, server, situation
from _needs import needs
from r2d2 import slirp

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs("unshare")


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("mtu", [1500, 65520])
def test_tcp_both_ways_compared_by_hash(guest: int, device: slirp.Device, family: str, mtu: int) -> None:
    size = 20_000_000
    heard: list[str] = []
    payload = os.urandom(1 << 20)

    def answer(connection: socket.socket) -> None:
        digest, got = hashlib.sha256(), 0
        while data := connection.recv(1 << 16):
            digest.update(data)
            got += len(data)
        heard.append(f"{got} {digest.hexdigest()}")
        for _ in range(size // len(payload)):
            connection.sendall(payload)

    with (
        slirp.attach(guest, mtu=mtu, host_loopback=True, device=device) as network,
        server(answer, socket.AF_INET if family == "4" else socket.AF_INET6) as port,
    ):
        gateway = "10.0.2.2" if family == "4" else "fd00::2"
        said, got = python(
            guest,
            f"""
s = socket.create_connection(("{gateway}", {port}), 10)
digest, block = hashlib.sha256(), bytes(range(256)) * 4001
for _ in range(20):
    s.sendall(block); digest.update(block)
s.shutdown(socket.SHUT_WR)
print(20 * len(block), digest.hexdigest())
digest, n = hashlib.sha256(), 0
while data := s.recv(1 << 16):
    digest.update(data); n += len(data)
print(n, digest.hexdigest())
""",
            lambda: situation(guest, network, port),
        ).splitlines()
        assert heard == [said], "the half-closed connection brought everything"
        whole = hashlib.sha256(payload * (size // len(payload)))
        assert got == f"{size // len(payload) * len(payload)} {whole.hexdigest()}"
        assert network.stats()["tcp_out"] == 1


def test_fits_and_starts(guest: int, device: slirp.Device) -> None:
    """A sender and a reader that pause: the host's window closes and must open again, every time."""
    rounds = [(chunk, reads) for chunk in (100, 4000, 65483) for reads in (1000, 1 << 16, 1 << 20)] * 3
    size = 400_000
    plan: Iterator[tuple[int, int]] = iter(rounds)

    def answer(connection: socket.socket) -> None:
        chunk, _ = next(plan)
        for start in range(0, size, chunk):
            connection.sendall(bytes(min(chunk, size - start)))

    with (
        slirp.attach(guest, host_loopback=True, device=device) as network,
        server(answer, socket.AF_INET) as port,
    ):
        code = f"""
for chunk, reads in {rounds}:
    s = socket.create_connection(("10.0.2.2", {port}), 10)
    n = i = 0
    while data := s.recv(reads):
        n, i = n + len(data), i + 1
        if i % 50 == 1:
            time.sleep(0.002)
    assert n == {size}, (chunk, reads, n)
"""
        python(guest, code, lambda: situation(guest, network, port))
        assert network.stats()["tcp_out"] == len(rounds)
