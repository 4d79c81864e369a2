"""Rows 5a to 5e, and the network of row 13: no network, then one by ordinary sockets, then none again."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import has, needs
from _proc import until
from r2d2 import namespace, slirp

if TYPE_CHECKING:
    from collections.abc import Iterator

PING = """
import socket, struct, sys
body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"r2d2"
total = sum(struct.unpack(f"!{len(body) // 2}H", body))
total = (total >> 16) + (total & 0xffff)
body = body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(10)
s.sendto(body, ("10.0.2.2", 0))
while True:
    packet, sender = s.recvfrom(2048)
    if packet[20] == 0:
        print(sender[0], packet[8], packet[28:].decode())
        break
"""

TALK = """
import socket, sys
for kind, port in ((socket.SOCK_STREAM, sys.argv[1]), (socket.SOCK_DGRAM, sys.argv[2])):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(10)
    s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: UDP is told of an unreachable network, too
    try:
        s.connect(("10.0.2.2", int(port)))
        s.sendall(b"hello")
        print(s.recv(100).decode())
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def guest() -> Iterator[int]:
    """`unshare --net --pid --fork --mount-proc`: a process with neither network nor neighbours."""
    with namespace.popen(["sleep", "1000"], net=True, pid=True, fork=True, mount_proc=True) as process:
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or [
            str(process.pid)
        ]
        yield int(inner)
        process.kill()


def inside(pid: int, *command: str) -> str:
    """Runs a command in the namespaces of the process: what it prints."""
    done = namespace.enter(pid, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def python(pid: int, code: str, *words: object) -> list[str]:
    return inside(pid, sys.executable, "-c", code, *map(str, words)).splitlines()


def links(pid: int) -> dict[str, dict[str, Any]]:
    """`ip address`, by name of the interface."""
    return {link["ifname"]: link for link in json.loads(inside(pid, "ip", "-json", "address"))}


def addresses(link: dict[str, Any]) -> set[str]:
    return {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] != "link"}


@contextmanager
def servers() -> Iterator[tuple[int, int]]:
    """A TCP and a UDP server on this machine's 127.0.0.1, which shout back: their ports."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as stream,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                try:
                    connection, _ = stream.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(connection.recv(100).upper())

        def receive() -> None:
            while True:
                data, sender = datagrams.recvfrom(100)
                if data == b"end":
                    return
                datagrams.sendto(data.upper(), sender)

        threads = [threading.Thread(target=work, daemon=True) for work in (accept, receive)]
        for thread in threads:
            thread.start()
        yield stream.getsockname()[1], datagrams.getsockname()[1]
        stream.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", datagrams.getsockname())
        for thread in threads:
            thread.join(10)


def test_row_05a_no_network_at_all(guest: int) -> None:
    seen = links(guest)
    assert set(seen) == {"lo"}
    assert "UP" not in seen["lo"]["flags"]
    assert seen["lo"]["operstate"] == "DOWN"
    assert inside(guest, "ip", "route") == ""
    code = """
import socket
try: socket.create_connection(("192.0.2.1", 80), 10)
except OSError as error: print(error.errno)
"""
    assert python(guest, code) == [str(errno.ENETUNREACH)]


def test_row_05b_the_tun_device(guest: int) -> None:
    if has("tun"):
        with open("/dev/net/tun", "rb+", buffering=0):
            pass
        with slirp.attach(guest) as network:
            assert network.device == "tap"
        return
    with pytest.raises(r2d2.SetupError, match=r"make the tap: open.*/dev/net/tun") as failure:
        slirp.attach(guest, device="tap")
    assert failure.value.hint
    with slirp.attach(guest) as network:
        assert network.device == "packet", "a veth pair does it as well, and needs nothing of the host"


def test_row_05c_the_interface_and_the_two_pids(guest: int) -> None:
    with slirp.attach(guest, mtu=65520, names={"lab": "192.0.2.9"}):
        seen = links(guest)
        assert set(seen) == {"lo", "tap0"}
        assert all("UP" in link["flags"] for link in seen.values())
        assert seen["tap0"]["mtu"] == 65520
        assert "10.0.2.100/24" in addresses(seen["tap0"])
        assert inside(guest, "ip", "route", "show", "default").startswith("default via 10.0.2.2 dev tap0")
        query = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
s.sendto(b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3lab\\0\\0\\1\\0\\1", ("10.0.2.3", 53))
data, sender = s.recvfrom(512)
print(sender[0], *data[-4:])
"""
        assert python(guest, query) == ["10.0.2.3 192 0 2 9"]
    status = Path(f"/proc/{guest}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    assert line.split()[1:] == [str(guest), "1"], "one process, two numbers"
    assert inside(guest, "cat", "/proc/1/comm") == "sleep"


def test_row_05d_ping_and_traffic(guest: int) -> None:
    with servers() as (tcp, udp):
        with slirp.attach(guest, host_loopback=[tcp, udp]):
            assert python(guest, PING) == ["10.0.2.2 255 r2d2"]
            assert python(guest, TALK, tcp, udp) == ["HELLO", "HELLO"]
        assert until(lambda: set(links(guest)) == {"lo"})
        with slirp.attach(guest) as network:
            began = time.monotonic()
            assert python(guest, TALK, tcp, udp) == [str(errno.ENETUNREACH)] * 2, "our 127.0.0.1 stays ours"
            assert time.monotonic() - began < 9, "and that is told, not left to a timeout"
            assert network.stats()["refused"] >= 1


def test_row_05e_ctrl_c(guest: int) -> None:
    command = [sys.executable, "-m", "r2d2", "slirp", "--configure", "--mtu=65520", str(guest), "tap0"]
    took = []
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
            assert engine.stdout is not None
            assert engine.stdout.readline().startswith("tap0 ")
            devices = Path(f"/proc/{guest}/net/dev")
            assert "tap0" in devices.read_text()
            engine.send_signal(signal.SIGINT)
            assert engine.wait(10) == 0
            began = time.monotonic()
            assert until(lambda: "tap0" not in devices.read_text())  # noqa: B023 - called here and now
            took.append(time.monotonic() - began)
    assert sorted(took)[1] < 0.1, "the kernel takes it away by itself"
    assert set(links(guest)) == {"lo"}
    assert inside(guest, "cat", "/proc/1/comm") == "sleep", "the container lives on"


def test_row_13b_all_together_with_a_network(image: r2d2.Image, tmp_path: Path) -> None:
    places: list[dict[str, Path]] = []
    for name in ("one", "two"):
        places.append({kind: tmp_path / name / kind for kind in ("upper", "work")})
        for path in places[-1].values():
            path.mkdir(parents=True)
    serve = "echo from $(hostname) > /page; nc -l -p 80 < /page"
    with r2d2.Container(image, hostname="one", network="slirp", ports={0: 80}, **places[0]) as one:
        (port,) = one.ports
        way = r2d2.Slirp(host_loopback=[port.host_port])
        with (
            r2d2.Container(image, hostname="two", network=way, **places[1]) as two,
            one.popen(["sh", "-c", serve], stdin=subprocess.DEVNULL) as server,
        ):
            fetch = ["sh", "-c", f"nc 10.0.2.2 {port.host_port} < /dev/null | tee /got"]

            def fetched() -> bool:
                # Until nc listens, there is nothing to get.
                return bool(two.run(fetch, capture_output=True, text=True).stdout == "from one\n")

            assert until(fetched, 20)
            server.kill()
        assert one.network is not None
        assert one.network.stats()["tcp_in"] >= 1
    assert (places[0]["upper"] / "page").read_text() == "from one\n"
    assert (places[1]["upper"] / "got").read_text() == "from one\n"
    assert not (places[1]["upper"] / "page").exists()


@contextmanager
def slirp4netns(pid: int, *options: str) -> Iterator[None]:
    """The program of the sheet, ready."""
    ready, theirs = os.pipe()
    command = [
        "slirp4netns",
        "--configure",
        "--mtu=65520",
        f"--ready-fd={theirs}",
        *options,
        str(pid),
        "tap0",
    ]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, pass_fds=[theirs], **quiet) as process:
        try:
            os.close(theirs)
            with open(ready, "rb") as file:
                assert file.read(1) == b"1"
            yield
        finally:
            process.send_signal(signal.SIGINT)


@needs("tun", "slirp4netns")
def test_the_same_with_slirp4netns_as_oracle(guest: int) -> None:
    def observed(tcp: int, udp: int) -> dict[str, Any]:
        seen = links(guest)
        return {
            "links": {name: (link["mtu"], "UP" in link["flags"]) for name, link in seen.items()},
            "address": "10.0.2.100/24" in addresses(seen["tap0"]),
            "route": inside(guest, "ip", "route", "show", "default").split()[:5],
            "ping": python(guest, PING),
            "traffic": python(guest, TALK, tcp, udp),
        }

    with servers() as (tcp, udp):
        with slirp4netns(guest):
            expected = observed(tcp, udp)
        assert until(lambda: set(links(guest)) == {"lo"})
        with slirp.attach(guest, mtu=65520, host_loopback=True):
            assert observed(tcp, udp) == expected
        assert until(lambda: set(links(guest)) == {"lo"})
        assert expected["traffic"] == ["HELLO", "HELLO"]
        with slirp4netns(guest, "--disable-host-loopback"):
            refused = python(guest, TALK, tcp, tcp)[0]
        assert until(lambda: set(links(guest)) == {"lo"})
        with slirp.attach(guest, mtu=65520):
            assert python(guest, TALK, tcp, tcp)[0] == refused == str(errno.ENETUNREACH)
