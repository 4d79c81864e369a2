"""Captures of a running network: pcapng files that others read, packets as they come, filters."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import echo, inside, python, server
from _needs import needs
from _proc import until
from r2d2 import slirp
from r2d2.capture import Packet, compile_filter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TALK = 's = socket.create_connection(("10.0.2.2", {}), 10); s.sendall(b"needle"); print(s.recv(9))'


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each block; the file must be made of whole ones."""
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert length == struct.unpack_from("<I", data, at + length - 4)[0]
        yield kind, data[at + 8 : at + length - 4]
        at += length
    assert at == len(data)


def frames(path: Path) -> list[bytes]:
    found = []
    for kind, body in blocks(path.read_bytes()):
        if kind == 6:
            kept = struct.unpack_from("<I", body, 12)[0]
            found.append(body[20 : 20 + kept])
    return found


@needs("unshare")
def test_a_file_has_what_passed_while_it_ran(guest: int, device: slirp.Device, tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    with server(echo) as port, slirp.attach(guest, host_loopback=True, device=device) as network:
        python(guest, TALK.format(port).replace("needle", "before"))
        with network.capture(path) as capture:
            python(guest, TALK.format(port))
        python(guest, TALK.format(port).replace("needle", "after!"))
        kinds = [kind for kind, _ in blocks(path.read_bytes())]
        assert kinds[:2] == [0x0A0D0D0A, 1]
        assert kinds[-1] == 5
        assert set(kinds[2:-1]) == {6}
        assert capture.packets == len(kinds) - 3
        assert capture.dropped == 0
        whole = b"".join(frames(path))
        assert whole.count(b"needle") == 2, "there and back"
        assert b"before" not in whole
        assert b"after!" not in whole
        assert os.stat(path).st_mode & 0o777 == 0o600
        capture.close()


@needs("unshare", "tcpdump")
def test_tcpdump_reads_it(guest: int, tmp_path: Path) -> None:
    path = tmp_path / "tcp.pcapng"
    with server(echo) as port, slirp.attach(guest, host_loopback=True) as network:
        with network.capture(path, f"tcp port {port} or icmp"):
            python(guest, TALK.format(port))
            assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        command = ["tcpdump", "-n", "-r", str(path)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"10.0.2.2.{port}: Flags [S]" in shown
    assert f"10.0.2.2.{port} > 10.0.2.100" in shown
    assert "ICMP echo request" in shown
    assert "ICMP echo reply" in shown


@needs("unshare")
def test_packets_come_as_they_pass(guest: int, device: slirp.Device) -> None:
    with (
        server(echo) as port,
        slirp.attach(guest, host_loopback=True, device=device) as network,
        network.packets(f"tcp and port {port}") as packets,
    ):
        assert packets.get(0) is None
        python(guest, TALK.format(port))
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        seen: list[Packet] = []
        while (packet := packets.get(2 if len(seen) < 6 else 0)) is not None:
            seen.append(packet)
        syn, answer = seen[:2]
        assert (syn.outgoing, syn.data[47] & 0x3F) == (True, 2)
        assert (answer.outgoing, answer.data[47] & 0x3F) == (False, 0x12)
        assert all(packet.data[23] == 6 for packet in seen), "no ping"
        assert {b"needle" in packet.data for packet in seen} == {True, False}
        assert all(one.time <= other.time for one, other in pairwise(seen))
        packets.close()
        assert (packets.packets, packets.dropped) == (len(seen), 0)


@needs("unshare")
def test_frames_are_cut_but_their_length_is_known(guest: int) -> None:
    with slirp.attach(guest) as network, network.packets("icmp and src 10.0.2.100", snaplen=20) as packets:
        assert inside(guest, "ping", "-c1", "-W5", "-s", "1000", "10.0.2.2").returncode == 0
        packet = packets.get(20)
        assert packet is not None
        assert (len(packet.data), packet.length) == (20, 1000 + 8 + 20 + 14)


@needs("unshare")
def test_who_does_not_read_misses_packets_and_nobody_waits(guest: int) -> None:
    with (
        server(echo) as port,
        slirp.attach(guest, host_loopback=True) as network,
        network.packets() as packets,
    ):
        code = f"""
s = socket.create_connection(("10.0.2.2", {port}), 30)
for _ in range(30):
    s.sendall(bytes(1 << 20)); n = 0
    while n < 1 << 20: n += len(s.recv(1 << 20))
"""
        python(guest, code)
        packets.close()
        assert packets.dropped > 0
        assert packets.packets > 0


@needs("unshare")
def test_captures_are_limited_and_given_back(guest: int, tmp_path: Path) -> None:
    with slirp.attach(guest) as network:
        held = [network.capture(tmp_path / str(i)) for i in range(8)]
        with pytest.raises(r2d2.SetupError) as failure:
            network.packets()
        assert failure.value.step == "start a capture"
        for capture in held:
            capture.close()
        before = len(os.listdir(f"/proc/{network.pid}/fd")) if os.geteuid() == 0 else 0
        for _ in range(20):
            network.packets("tcp").close()
        assert before in (0, len(os.listdir(f"/proc/{network.pid}/fd")) if before else 0)


@needs("unshare")
def test_the_networks_end_ends_the_packets(guest: int, tmp_path: Path) -> None:
    with slirp.attach(guest) as network, network.packets("arp") as packets:
        capture = network.capture(tmp_path / "file")
        os.kill(network.pid, signal.SIGKILL)
        assert list(packets) == []
        assert until(lambda: not network.alive)
        capture.close()
    with pytest.raises(r2d2.ContainerClosed):
        network.packets()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("tcp", "tcp"),
        ("tcp port 80", "tcp port=80-80 and"),
        ("udp and not port 53", "udp port=53-53 not and"),
        ("arp or icmp and host 10.0.2.2", "arp icmp net=10.0.2.2/32 and or"),
        ("(arp or icmp) and dst net 10.0.0.0/8", "arp icmp or dst-net=10.0.0.0/8 and"),
        ("! ip6 && src portrange 1-1024 || ip", "ip6 not src-port=1-1024 and ip or"),
        ("host fd00::2", "net=fd00::2/128"),
    ],
)
def test_filters(text: str, words: str) -> None:
    assert " ".join(compile_filter(text)) == words


@pytest.mark.parametrize(
    "text",
    ["tcp tcp", "port", "port x", "port 70000", "port 1-2", "portrange 9-1", "(tcp", "tcp)", "and", "not",
     "host 10.0.2.0/24", "net 10.0.2.1/24", "src", "src tcp", "sctp", "tcp and", "host a\nb"],
)  # fmt: skip
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(r2d2.SpecError, match="filter"):
        compile_filter(text)


def test_filters_that_are_too_long_or_deep() -> None:
    for text in ("(" * 5000 + "tcp" + ")" * 5000, " or ".join(["tcp"] * 2000)):
        with pytest.raises(r2d2.SpecError):
            compile_filter(text)


@needs("unshare")
def test_a_pipe_is_refused(guest: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with slirp.attach(guest) as network:
            with pytest.raises(r2d2.SpecError, match="regular file"):
                network.capture(tmp_path / "fifo")
            with pytest.raises(r2d2.SpecError, match="snaplen"):
                network.capture(tmp_path / "file", snaplen=0)
            with pytest.raises(FileNotFoundError):
                network.capture(tmp_path / "nowhere" / "file")
    finally:
        os.close(reader)


def test_a_containers_network(image: r2d2.Image, tmp_path: Path) -> None:
    with r2d2.Container(image, network="slirp") as c:
        assert c.network is not None
        with c.network.capture(tmp_path / "c.pcapng", "icmp"):
            c.run(["ping", "-c1", "-W5", "10.0.2.2"], check=True, stdout=subprocess.DEVNULL)
    # Neighbour discovery, which may fall into that moment, is ICMP, too.
    assert len([frame for frame in frames(tmp_path / "c.pcapng") if frame[12:14] == b"\x08\x00"]) == 2


def test_half_a_block_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(struct.pack("<IIII", 6, 32, 0, 0))
    with pytest.raises((AssertionError, struct.error)):
        frames(tmp_path / "bad")
