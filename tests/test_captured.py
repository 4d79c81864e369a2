"""Captures of a network of containers: the file, the packets, the filters."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _guest import inside, python, serving
from _needs import needs
from _nodes import ECHO, nodes, received
from _proc import until

if TYPE_CHECKING:
    from pathlib import Path

    from r2d2 import slirp

pytestmark = needs("unshare")


def test_what_passes_is_seen_by_who_sent_and_who_received(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        a, b = net.members["a"].address, net.members["b"].address
        with net.capture(at="both", protocol="tcp") as seen:
            python(pids["a"], f's = socket.create_connection(("{b}", 7), 9); s.send(b"hello"); s.recv(5)')
            first = seen.wait(lambda packet: packet.payload == b"hello")
        assert (first.node, first.received, first.source, first.destination) == ("a", False, a, b)
        assert first.ports is not None
        assert first.ports[1] == 7
        assert first.flags == "PSH ACK"
        assert next(iter(seen)).flags == "SYN"
        packets = list(seen)
        hello = [(p.node, p.received, p.source) for p in packets if p.payload == b"hello"]
        assert hello == [("a", False, a), ("b", True, a), ("b", False, b), ("a", True, b)]
        assert {p.protocol for p in packets} == {"tcp"}
        assert [p.time for p in packets] == sorted(p.time for p in packets)
        assert seen.stop() == (len(packets), 0)
        inside(pids["a"], "ping", "-c1", "-W5", str(b))
        assert len(list(seen)) == len(packets), "it has ended"


def test_filters(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a", "b", "c") as pids:
        c = str(net.members["c"].address)
        with (
            net.capture() as everything,
            net.capture(nodes="b") as at_b,
            net.capture(protocol=["icmp", "arp"]) as asked,
            net.capture(host=c, protocol="icmp") as to_c,
            net.capture(port=9) as port,
            net.capture(at="received", nodes=["c"], protocol="udp") as came,
        ):
            for name in ("b", "c"):
                assert inside(pids["a"], "ping", "-c1", "-W5", str(net.members[name].address)).returncode == 0
            assert received(net, pids, "a", "c", 3) == [0, 1, 2]
            assert {p.node for p in at_b} == {"b"}
            assert {p.received for p in at_b} == {True, False}
            assert {p.protocol for p in asked} == {"icmp", "arp"}
            assert {str(p.destination) for p in to_c} == {c, str(net.members["a"].address)}
            assert {p.ports[1] for p in port if p.ports} == {9}
            assert len(list(port)) == len([p for p in everything if p.ports and p.ports[1] == 9]) == 4
            assert [p.payload[:8] for p in came] == [*(n.to_bytes(8, "big") for n in range(3)), b"the last"]
        assert all(not p.received for p in everything)


def test_lost_frames_are_sent_and_not_received() -> None:
    def run() -> tuple[list[bytes], list[bytes]]:
        with r2d2.Network(seed=11) as net, nodes(net, "a", "b") as pids:
            with net.capture(protocol="udp", port=9, at="both") as seen:
                came = received(net, pids, "a", "b", 200, loss=0.2)
            sent = [p.payload for p in seen if not p.received]
            arrived = [p.payload for p in seen if p.received]
            assert len(sent) == 201
            assert [int.from_bytes(p[:8], "big") for p in arrived[:-1]] == came
            return sent, arrived

    first = run()
    assert len(first[1]) < len(first[0]) - 10
    assert run() == first, "the same seed, the same fates"


@needs("tcpdump")
def test_tcpdump_reads_it(tmp_path: Path, device: slirp.Device) -> None:
    path = tmp_path / "net.pcapng"
    with r2d2.Network(device=device) as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        b = net.members["b"].address
        with net.capture(path, protocol="tcp") as seen:
            python(pids["a"], f's = socket.create_connection(("{b}", 7), 9); s.send(b"hello"); s.recv(5)')
            seen.wait(lambda packet: packet.payload == b"hello" and packet.node == "b")
        assert seen.path == str(path)
        count, _ = seen.stop()
    done = subprocess.run(["tcpdump", "-nn", "-v", "-r", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "Flags" in line]
    assert len(lines) == count == len(list(seen))
    assert any(f"{b}.7: Flags [S]" in line for line in lines)
    assert "incorrect" not in done.stdout, "checksums are done, although the card was to do them"


@needs("tshark")
def test_tshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    with r2d2.Network() as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        b = net.members["b"].address
        with net.capture(path, protocol="tcp", at="both") as seen:
            python(pids["a"], f's = socket.create_connection(("{b}", 7), 9); s.send(b"hello"); s.recv(5)')
            seen.wait(lambda packet: packet.payload == b"hello" and packet.node == "a" and packet.received)
        count, _ = seen.stop()
    fields = ("frame.interface_name", "frame.packet_flags_direction", "ip.src", "tcp.dstport", "tcp.payload")
    checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    command = ["tshark", "-n", "-r", str(path), *checks, "-T", "fields", *(f"-e{f}" for f in fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == count
    hello = [row[0] for row in rows if row[4] == b"hello".hex()]
    assert hello == ["a", "b", "b", "a"]
    bad = ["-Y", "tcp.checksum.status == 0 or _ws.malformed"]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *checks, *bad], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


#: Two hundred datagrams, the same in every run: IPv6 does not number packets, and here has no flow label.
SEND = """
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, 70, 0)  # IPV6_AUTOFLOWLABEL
s.bind(("", 1009)); s.connect(("{to}", 9))
for n in range(200):
    s.send(hashlib.sha256(bytes([n])).digest() * 3)
    time.sleep(0.001)
"""

SINK = """
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("", 9))
print("ready", flush=True)
while True: s.recv(1000)
"""


@needs("tcpdump")
def test_same_seed_same_file(tmp_path: Path, device: slirp.Device) -> None:
    """Two runs, as another program reads their files: the same bytes are lost, doubled and damaged alike."""

    def run(seed: int, name: str) -> tuple[bytes, bytes]:
        with r2d2.Network("10.89.55.0/24", seed=seed, device=device) as net, nodes(net, "a", "b") as pids:
            to = str(net.members["b"].address6)
            assert inside(pids["a"], "ping", "-c1", "-W5", to).returncode == 0
            net.link("a", "b", both=False).set(loss=0.1, duplicate=0.1, corrupt=0.1, delay=0.002)
            files = [str(tmp_path / f"{name}-{way}.pcapng") for way in ("sent", "received")]
            with (
                net.capture(files[0], nodes="a", at="sent"),
                net.capture(files[1], nodes="b", at="received"),
                serving(pids["b"], SINK),
            ):
                before = net.link("a", "b").stats.packets
                python(pids["a"], SEND.format(to=to))
                assert until(lambda: net.link("a", "b").stats.packets > before + 150, 10)
                python(pids["a"], "time.sleep(0.2)")  # the last ones are under way for 2 ms
        read = ["tcpdump", "-nn", "-t", "-q", "-xx", "len == 158", "-r"]
        sent, came = (subprocess.run([*read, f], capture_output=True, check=True).stdout for f in files)
        assert sent.count(b"0x0000:") == 200
        return sent, came

    sent, came = run(7, "first")
    assert 150 < came.count(b"0x0000:") != 200
    assert run(7, "second") == (sent, came), "the same seed, the same fate of every packet"
    other = run(8, "third")
    assert other[0] == sent
    assert other[1] != came


def test_limit_and_end(tmp_path: Path) -> None:
    with r2d2.Network() as net, nodes(net, "a", "b") as pids:
        ping = ("ping", "-c10", "-i0.01", "-s1000", "-W5", str(net.members["b"].address))
        full = net.capture(tmp_path / "small", limit=3000, host=ping[-1])
        cut = net.capture(snap=60, protocol="icmp", host=ping[-1])
        assert inside(pids["a"], *ping).returncode == 0
        frames, dropped = full.counts
        assert frames == len(list(full)) > 0
        assert frames + dropped == 20
        assert (tmp_path / "small").stat().st_size <= 3000
        assert {(len(p.data), p.length) for p in cut} == {(60, 1042)}
        with pytest.raises(TimeoutError):
            cut.wait(lambda packet: packet.protocol == "tcp", 0.05)
        os.kill(net.pid, signal.SIGKILL)
        assert len(list(cut)) == 20, "what was captured stays"
        assert cut.stop() == (20, 0)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"nodes": "nobody"}, "nobody"),
        ({"at": "there"}, "at"),
        ({"protocol": "sctp"}, "protocol"),
        ({"port": 0}, "port"),
        ({"port": "http"}, "port"),
        ({"host": "nowhere"}, "host"),
        ({"snap": 0}, "snap"),
        ({"limit": 1}, "limit"),
        ({"path": "/dev/null"}, "regular"),
    ],
)
def test_bad_captures_are_refused(keywords: dict[str, Any], words: str) -> None:
    with r2d2.Network() as net, pytest.raises(r2d2.SpecError, match=words):
        net.capture(**keywords)
