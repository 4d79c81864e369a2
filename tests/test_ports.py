"""Ranges of ports and Unix sockets of the host that lead into a namespace."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import python, serving
from _needs import needs
from _proc import until
from r2d2 import slirp
from r2d2.ports import Publish, parse_ports

if TYPE_CHECKING:
    from pathlib import Path

#: A server inside: tells each client which port it came to, then sends back what it hears, till the end.
SERVE = """
import select, sys, threading
def serve(s, port):
    s.sendall(b"%d " % port)
    while data := s.recv(1 << 16): s.sendall(data)
    s.shutdown(socket.SHUT_WR); s.close()
listeners = [socket.create_server(("0.0.0.0", port)) for port in PORTS]
print("ready", flush=True)
while True:
    for l in select.select(listeners, [], [])[0]:
        s, peer = l.accept()
        assert peer[0] == "10.0.2.2", peer
        threading.Thread(target=serve, args=(s, l.getsockname()[1]), daemon=True).start()
"""


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    for first in range(20000 + os.getpid() % 9000, 60000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8000-8002:9000-9002", [Publish(8000 + i, 9000 + i) for i in range(3)]),
        ("[::1]:53-54:53-54/udp", [Publish(53 + i, 53 + i, "udp", "::1") for i in range(2)]),
        ("80-81", [Publish(0, 80), Publish(0, 81)]),
        ("127.0.0.2::80-81", [Publish(0, 80 + i, "tcp", "127.0.0.2") for i in range(2)]),
        ("0:80-81", [Publish(0, 80), Publish(0, 81)]),
        ("7-7:7-7", [Publish(7, 7)]),
        ("./app.sock:80", [Publish(0, 80, "unix", "./app.sock")]),
        ("/run/a:b.sock:80", [Publish(0, 80, "unix", "/run/a:b.sock")]),
    ],
)
def test_ranges_and_paths(text: str, ports: list[Publish]) -> None:
    assert parse_ports(text) == tuple(ports)
    assert [parse_ports(str(port)) for port in ports] == [(port,) for port in ports]


@pytest.mark.parametrize(
    "text",
    [
        "80-70:80-70",
        "80-81:80",
        "1-65536:1-65536",
        "0-1:0-1",
        "80:80/unix",
        "/a:0",
        "/a",
        "/a:80/udp",
        "-1:80",
    ],
)
def test_what_cannot_work(text: str) -> None:
    with pytest.raises(r2d2.SpecError):
        parse_ports(text)


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(r2d2.SpecError, match="107"):
        parse_ports(f"/{'a' * 107}:80")
    assert parse_ports(f"/{'a' * 106}:80")


def told(client: socket.socket) -> bytes:
    """The server's greeting."""
    said = b""
    while not said.endswith(b" "):
        more = client.recv(1)
        assert more, said
        said += more
    return said


@needs("unshare")
def test_a_range_leads_inside_all_or_none(guest: int, device: slirp.Device) -> None:
    first = free_ports(4)
    with (
        slirp.attach(guest, device=device) as network,
        serving(guest, f"PORTS = range(7000, 7004){SERVE}"),
    ):
        with (
            closing(socket.create_server(("127.0.0.1", first + 2))),
            pytest.raises(OSError, match="in use") as failure,
        ):
            network.add_ports(f"{first}-{first + 3}:7000-7003")
        assert failure.value.errno == errno.EADDRINUSE
        assert network.ports == ()
        socket.create_server(("127.0.0.1", first)).close()  # given back
        ports = network.add_ports(f"{first}-{first + 3}:7000-7003")
        assert network.ports == ports
        assert [port.host_port for port in ports] == list(range(first, first + 4))
        for port in ports:
            with socket.create_connection(("127.0.0.1", port.host_port), 10) as client:
                assert told(client) == b"%d " % port.guest_port
        chosen = network.add_ports("7000-7001")
        assert len({port.host_port for port in chosen} - {0}) == 2


@needs("unshare")
def test_a_unix_socket_leads_inside_both_ways(guest: int, device: slirp.Device, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    payload = os.urandom(3_000_000)
    with slirp.attach(guest, device=device) as network, serving(guest, f"PORTS = [80]{SERVE}"):
        port = network.add_socket(path, 80)
        assert (port.protocol, port.host, port.host_port) == ("unix", str(path), 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                assert told(client) == b"80 "

                def say(client: socket.socket = client) -> None:
                    client.sendall(payload)
                    client.shutdown(socket.SHUT_WR)

                thread = threading.Thread(target=say)
                thread.start()
                digest, got = hashlib.sha256(), 0
                while data := client.recv(100_000):
                    digest.update(data)
                    got += len(data)
                thread.join(20)
                assert (got, digest.digest()) == (len(payload), hashlib.sha256(payload).digest())
        assert network.stats()["tcp_in"] == 3
        network.remove_port(port)
        assert not path.exists()
        network.add_socket(path, 80)
    assert not path.exists(), "closing the network removes it"


@needs("unshare")
def test_descriptors_beside_the_bytes_do_not_stop_them(guest: int, tmp_path: Path) -> None:
    """A look at the queue stops where descriptors were passed; the bytes behind must come as well."""
    with slirp.attach(guest) as network, serving(guest, f"PORTS = [80]{SERVE}"):
        network.add_socket(tmp_path / "s", 80)
        with socket.socket(socket.AF_UNIX) as client, open(os.devnull, "rb") as null:
            client.settimeout(20)
            client.connect(str(tmp_path / "s"))
            for _ in range(20):
                socket.send_fds(client, [b"x" * 10], [null.fileno()])
            assert told(client) == b"80 "
            got = b""
            while len(got) < 200:
                more = client.recv(300)
                assert more, got
                got += more
            assert got == b"x" * 200


@needs("unshare")
def test_a_unix_socket_that_is_in_use_and_one_that_is_left(guest: int, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with slirp.attach(guest) as network:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with pytest.raises(OSError, match="in use"):
                network.add_socket(path, 80)
        assert path.exists(), "left by its owner"
        network.add_socket(path, 80)
        path.unlink()
        path.write_text("somebody else's")
        with pytest.raises(OSError, match="in use"):
            network.add_socket(path, 80)
    assert path.read_text() == "somebody else's"


def test_a_container_with_a_range_and_a_socket(image: r2d2.Image, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with r2d2.Container(image, network="slirp", ports=["80-81", f"{path}:80"]) as c:
        assert [(port.protocol, port.guest_port) for port in c.ports] == [
            ("tcp", 80),
            ("tcp", 81),
            ("unix", 80),
        ]
        with c.popen(["sh", "-c", "while :; do printf hello | nc -l -p 80; done"]) as server:
            said: list[bytes] = []

            def heard() -> bool:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(10)
                    client.connect(str(path))
                    said.append(client.recv(100))
                return said[-1] == b"hello"

            assert until(heard)
            server.kill()
    assert not path.exists()


@needs("unshare")
def test_guest_sees_clients_of_a_socket_on_many_ports(guest: int, tmp_path: Path) -> None:
    code = """
l = socket.create_server(("0.0.0.0", 80))
print("ready", flush=True)
for _ in range(3):
    s, peer = l.accept(); print(peer[1], flush=True); s.close()
"""
    with slirp.attach(guest) as network, serving(guest, code) as inside:
        assert inside.stdout is not None
        network.add_socket(tmp_path / "s", 80)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "s"))
                assert client.recv(1) == b""
        seen = [int(line) for line in inside.stdout]
    assert len(set(seen)) == 3
    assert all(port >= 49152 for port in seen)
    assert python(guest, "print(1)") == "1"
