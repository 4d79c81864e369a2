"""Links of a network of containers: delay, loss, rate and all else, partitions, and counters."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _guest import inside, python, serving
from _needs import needs
from _nodes import ECHO, nodes, received
from _proc import until
from r2d2.switch.link import Impairment

if TYPE_CHECKING:
    from r2d2 import slirp

pytestmark = needs("unshare")


def round_trips(net: r2d2.Network, pid: int, to: str, count: int = 20) -> list[float]:
    """Seconds that bytes take to an echo server and back."""
    code = f"""
s = socket.create_connection(("{net.members[to].address}", 7), 30)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range({count}):
    began = time.perf_counter(); s.send(b"x"); s.recv(1); print(time.perf_counter() - began)
"""
    return [float(line) for line in python(pid, code).split()]


def test_delay_counts_in_each_direction(device: slirp.Device) -> None:
    with r2d2.Network(device=device) as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        assert statistics.median(round_trips(net, pids["a"], "b")) < 0.03, "without delay"
        net.link("a", "b").set(delay=0.02)
        both = round_trips(net, pids["a"], "b")
        assert min(both) >= 0.04
        assert statistics.median(both) < 0.08
        net.link("a", "b", both=False).clear()
        one = round_trips(net, pids["a"], "b")
        assert 0.02 <= min(one) < 0.04
        net.node("b").set(delay=0.015)
        assert min(round_trips(net, pids["a"], "b")) >= 0.05, "its own link besides"
        net.node("b").clear()
        net.link("a", "b").clear()
        assert statistics.median(round_trips(net, pids["a"], "b")) < 0.02


def test_jitter_keeps_order_and_bounds() -> None:
    with r2d2.Network() as net, nodes(net, "a", "b") as pids:
        assert received(net, pids, "a", "b", 300, delay=0.02, jitter=0.01) == list(range(300))
        net.link("a", "b").set(delay=0.02, jitter=0.01)
        with serving(pids["b"], ECHO):
            times = round_trips(net, pids["a"], "b", 30)
        assert min(times) >= 0.02
        assert max(times) - min(times) > 0.005


def lost(seed: int, device: slirp.Device = "any", **impairment: Any) -> list[int]:
    with r2d2.Network(seed=seed, device=device) as net, nodes(net, "a", "b") as pids:
        came = received(net, pids, "a", "b", 500, loss=0.1, **impairment)
        stats = net.link("a", "b", both=False).stats
        gone = sorted(set(range(500)) - set(came))
        assert stats.dropped == {"cut": 0, "loss": len(gone), "queue": 0}
        return gone


def test_same_seed_same_losses(device: slirp.Device) -> None:
    first = lost(7, device)
    assert 20 < len(first) < 90
    assert lost(7, device) == first
    assert lost(7, delay=0.01) == first, "whatever else the link does"
    assert lost(8) != first


def test_duplicates_and_disorder() -> None:
    with r2d2.Network(seed=3) as net, nodes(net, "a", "b") as pids:
        came = received(net, pids, "a", "b", 300, duplicate=0.2)
        assert sorted(set(came)) == list(range(300))
        # The one that ends the series has gone over a good link: it is not among them.
        assert len(came) - 300 == net.link("a", "b", both=False).stats.duplicated > 20
        came = received(net, pids, "a", "b", 300, reorder=0.2)
        assert sorted(came) == list(range(300))
        assert came != sorted(came)
        assert net.link("a", "b", both=False).stats.reordered > 20


def test_damage_is_noticed_by_the_receiver(device: slirp.Device) -> None:
    with r2d2.Network(seed=1, device=device) as net, nodes(net, "a", "b") as pids:
        came = received(net, pids, "a", "b", 300, corrupt=0.1)
        stats = net.link("a", "b", both=False).stats
        assert stats.corrupted > 10
        # A flipped bit loses the datagram, but for the rare one in a field that no checksum covers.
        assert 300 - stats.corrupted <= len(came) < 300
        assert all(number < 300 for number in came)


def test_tcp_survives_all_of_it(device: slirp.Device) -> None:
    with r2d2.Network(seed=5, device=device) as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        link = net.link("a", "b")
        link.set(delay=0.002, jitter=0.001, loss=0.01, duplicate=0.01, reorder=0.02, corrupt=0.005)
        code = f"""
import os, threading
data = os.urandom(1 << 20)
s = socket.create_connection(("{net.members["b"].address}", 7), 30)
threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
got = b""
while part := s.recv(1 << 20): got += part
print(got == data)
"""
        assert python(pids["a"], code) == "True"
        stats = link.stats
        assert min(stats.dropped["loss"], stats.duplicated, stats.reordered, stats.corrupted) > 0, stats


def test_rate_and_queue() -> None:
    with r2d2.Network() as net, nodes(net, "a", "b") as pids:
        link = net.link("a", "b", both=False)
        code = f"""
s = socket.create_connection(("{net.members["b"].address}", 7), 30)
import threading
data = bytes(500_000)
began = time.perf_counter()
threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
while s.recv(1 << 20): pass
print(time.perf_counter() - began)
"""
        with serving(pids["b"], ECHO):
            fast = float(python(pids["a"], code))
            link.set(rate=8_000_000)
            slow = float(python(pids["a"], code))
        assert slow >= 0.5 > fast, (slow, fast)
        link.set(rate=1_000_000, queue=5)
        burst = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(100): s.sendto(bytes(1000), ("{net.members["b"].address}", 9))
"""
        python(pids["a"], burst)
        assert link.stats.dropped["queue"] > 50
        assert net.link("b", "a", both=False).stats.dropped["queue"] == 0


STREAM = """
s = socket.create_connection(("{}", 7), 60)
print("ready", flush=True)
for n in range(10_000):
    s.sendall(b"%08d" % n)
    assert s.recv(8, socket.MSG_WAITALL) == b"%08d" % n
    print(n, flush=True)
    time.sleep(0.01)
"""


def test_partition_and_heal_of_a_live_stream(device: slirp.Device) -> None:
    with (
        r2d2.Network(device=device) as net,
        nodes(net, "a", "b", "c") as pids,
        serving(pids["b"], ECHO),
        serving(pids["a"], STREAM.format(net.members["b"].address)) as stream,
    ):
        assert stream.stdout is not None
        for n in range(5):
            assert int(stream.stdout.readline()) == n
        net.partition({"a"}, {"b", "c"})
        ping = ("ping", "-c1", "-W1")
        assert inside(pids["a"], *ping, str(net.members["b"].address)).returncode != 0
        assert inside(pids["c"], *ping, str(net.members["b"].address)).returncode == 0, "one side is whole"
        assert net.link("a", "b").stats.dropped["cut"] > 0
        passed = net.link("a", "b").stats.packets
        assert inside(pids["a"], *ping, str(net.members["c"].address)).returncode != 0
        assert net.link("a", "b").stats.packets == passed, "not one packet"
        net.heal()
        # The stream goes on where it was: no byte is lost, none comes twice.
        last = n
        for _ in range(20):
            last += 1
            while (line := stream.stdout.readline()) and int(line) < last:
                pass
            assert int(line) == last


def test_cut_in_one_direction() -> None:
    with r2d2.Network() as net, nodes(net, "a", "b") as pids:
        # Datagrams need no answer, once it is known who has the address.
        assert received(net, pids, "a", "b", 5) == list(range(5))
        net.cut("b", "a", both=False)
        assert inside(pids["a"], "ping", "-c1", "-W1", str(net.members["b"].address)).returncode != 0
        assert received(net, pids, "a", "b", 5) == list(range(5))
        net.heal("a", "b")
        assert inside(pids["a"], "ping", "-c1", "-W5", str(net.members["b"].address)).returncode == 0


def test_a_node_that_comes_again_finds_its_links() -> None:
    with r2d2.Network() as net, nodes(net, "a") as pids:
        with nodes(net, "b"):
            net.link("a", "b").set(delay=0.02)
        assert until(lambda: list(net) == ["a"])
        with nodes(net, "b") as again, serving(again["b"], ECHO):
            assert net.link("a", "b").impairments[0].delay == 0.02
            assert min(round_trips(net, pids["a"], "b", 3)) >= 0.04


def test_who_joins_after_a_partition_is_in_none_of_its_groups() -> None:
    def reaches(sender: str, receiver: str) -> bool:
        ping = ("ping", "-c1", "-W2", str(net.members[receiver].address))
        return inside(pids[sender], *ping).returncode == 0

    with r2d2.Network() as net, nodes(net, "a", "c") as pids:
        with pytest.raises(r2d2.SpecError, match="never had a member 'late'"):
            net.partition(["a"], ["c", "late"])
        assert reaches("a", "c"), "nothing was cut"
        with nodes(net, "b") as first:
            pids.update(first)
            net.partition(["a"], ["b", "c"])
            assert not reaches("a", "b")
            assert reaches("c", "b")
        assert until(lambda: set(net) == {"a", "c"})
        with nodes(net, "late") as late, nodes(net, "b") as again:
            pids.update(late | again)
            for name in "abc":
                assert reaches("late", name)
            assert not reaches("a", "b"), "it has come again"
            assert not reaches("b", "a")
            assert reaches("c", "b")
            net.partition(["a"], ["late"])
            assert not reaches("late", "a")
            assert not reaches("a", "b"), "cuts add up"
            assert reaches("late", "b")


def test_settings_are_kept_apart_and_checked() -> None:
    with r2d2.Network() as net, nodes(net, "a", "b"):
        link = net.link("a", "b")
        link.set(delay=0.05)
        link.set(loss=0.5)
        assert link.impairments == (Impairment(delay=0.05, loss=0.5),) * 2
        bad: dict[str, Any]
        for bad in (
            {"delay": -1},
            {"jitter": 1e9},
            {"loss": 1.1},
            {"duplicate": -0.1},
            {"reorder": 2},
            {"corrupt": 7},
            {"rate": 0},
            {"queue": 0},
        ):
            with pytest.raises(r2d2.SpecError, match=next(iter(bad))):
                link.set(**bad)
        assert link.impairments == (Impairment(delay=0.05, loss=0.5),) * 2
        link.clear()
        assert link.impairments == (Impairment(),) * 2
        for call in (
            lambda: net.link("a", "nobody"),
            lambda: net.link("a", "a"),
            lambda: net.node("nobody"),
            lambda: net.partition({"a"}),
            lambda: net.partition({"a"}, {"a", "b"}),
            lambda: net.partition({"a"}, {"nobody"}),
            lambda: net.cut("a", "nobody"),
            lambda: net.heal("a"),
        ):
            with pytest.raises(r2d2.SpecError):
                call()
        assert "a to b" in repr(link)
