"""The user-mode network beside a kernel link and beside other engines: the table of its figures and targets.

    python tests/bench/slirp.py [--runs 3] [--seconds 2] [--only PART,PART] [--with NAME,NAME] [--json FILE]

Everything happens in private namespaces, nothing leaves the machine, and no privilege is needed but for a
``/dev/net/tun`` that may be opened (else only the packet device is measured). H stands for the host; N is a
namespace that each engine has of its own; R is a third one behind a veth pair of H::

    N ── veth, or bridge, slirp4netns, pasta, r2d2 (tap), r2d2 (packet) ── H ── veth, MTU 1500 ── R

All are attached at once and take turns at each figure, since machines change their speed from one second to
the next: what is compared is measured within a few seconds. Figures are medians of the runs, ratios medians
of the ratios of each run; many short runs tell more than a few long ones. Traffic is made and measured by a C
program (``traffic.c``), by the side that receives. ``put`` is namespace to host,
``get`` the other way on a connection that the namespace opened, ``in`` a connection from the host to a
published port. Parts: %(parts)s. Needs a release build (``maturin develop --release``), gcc, ip(8),
unshare(1), nsenter(1), and a machine that is otherwise quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import r2d2
from _guest import ENTER, inside, namespace
from _needs import has
from _nodes import nodes
from r2d2 import bridge, network
from r2d2.netspec import Slirp
from r2d2.ports import Publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
PARTS = ("flows", "latency", "udp", "memory", "peer", "delay", "start")
#: In the order of their turns: what ours is held against comes right before it.
ENGINES = ("slirp4netns", "pasta", "bridge", "veth", "tap", "packet")
#: Where the servers listen, each with the two ports after it; and where those inside are published, from
#: there on for the first engine.
PORT, PUBLISHED = 5200, 15200
HELD = 2000


def options(engine: str, mtu: int = 1500, delay: float = 0.0) -> Slirp:
    """The network that an engine's name stands for; all may reach the host's loopback."""
    ours = engine in ("tap", "packet")
    named: Any = {"device": engine} if ours else {"engine": engine}
    return Slirp(mtu=mtu, host_loopback=True, ipv6=False, delay=delay, **named)


def worker() -> None:
    """In H: attaches an engine to N as a line says, and tells how long it took; until the input ends."""
    for line in sys.stdin:
        engine, pid, mtu, delay, published = line.split()
        ports = [
            Publish(int(published) + n, PORT + n, protocol, "127.0.0.1")
            for protocol in ("tcp", "udp")
            for n in range(3)
        ]
        began = time.monotonic_ns()
        net = (
            bridge.attach(int(pid), bridge.Bridge(mtu=int(mtu), ipv6=False, forward=True), ports)
            if engine == "bridge"
            else network.attach(int(pid), options(engine, int(mtu), float(delay)), None, ports)
        )
        print(began, time.monotonic_ns() - began, net.pid, flush=True)
        sys.stdin.readline()
        began = time.monotonic_ns()
        net.close()
        print(time.monotonic_ns() - began, flush=True)


class Bench:
    """The programs, the namespaces H and R, and what was measured: run by run, by engine and figure."""

    def __init__(self, program: str, host: int, peer: int, seconds: float) -> None:
        self.program, self.host, self.peer, self.seconds = program, host, peer, seconds
        self.found: dict[str, list[float | None]] = {}
        self.run = 0

    def keep(self, engine: str, figure: str, value: float | None) -> None:
        """Notes a figure of this run."""
        values = self.found.setdefault(f"{engine} {figure}", [])
        values += [None] * (self.run - len(values))
        values.append(value)
        print(
            f"  {engine:11} {figure:18} {'failed' if value is None else f'{value:12.4f}'}",
            file=sys.stderr,
            flush=True,
        )

    def ask(self, pid: int, *words: object) -> list[float] | None:
        """What the C program answers in a namespace; None if it failed there."""
        try:
            done = inside(pid, self.program, *map(str, words))
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            print("  ", *words, done.stderr.strip(), file=sys.stderr)
            return None
        return [float(word) for word in done.stdout.split()]

    @contextmanager
    def serving(self, pid: int) -> Iterator[None]:
        """The servers there."""
        with self.started(pid, "serve", PORT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the servers did not start"
            yield

    @contextmanager
    def started(self, pid: int, *words: object) -> Iterator[subprocess.Popen[str]]:
        """The C program there, killed at the end."""
        command = [*ENTER, str(pid), self.program, *map(str, words)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()


def told(pid: int, script: str) -> None:
    """Runs a shell's words in a namespace; they must succeed."""
    done = inside(pid, "sh", "-ec", script)
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr}")


@contextmanager
def nested(parent: int, script: str) -> Iterator[int]:
    """A process in namespaces of its own below those of ``parent``, which ``script`` prepares."""
    code = (
        "ip link set lo up; echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range; echo; exec sleep 3600"
    )
    command = [*ENTER, str(parent), "unshare", "--user", "--map-root-user", "--net", "sh", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            if script:
                told(parent, script.format(pid=process.pid))
            yield process.pid
        finally:
            process.kill()


class Attached:
    """An engine that serves N: where each side reaches the other, and the engine's process."""

    def __init__(self, pid: int, to_host: str, to_guest: str, port: int, engine: int | None) -> None:
        self.pid, self.to_host, self.to_guest, self.port, self.engine = pid, to_host, to_guest, port, engine
        self.began = self.took = self.close_took = 0


@contextmanager
def attached(
    bench: Bench, engine: str, mtu: int = 1500, delay: float = 0.0, pid: int = 0
) -> Iterator[Attached]:
    """N with an engine. It is new unless ``pid`` names it."""
    with ExitStack() as stack:
        if engine == "veth":
            script = (
                f"ip link add v0 mtu {mtu} type veth peer name v1 mtu {mtu} netns {{pid}}; "
                "ip addr add 10.9.0.1/24 dev v0; ip link set v0 up"
            )
            pid = stack.enter_context(nested(bench.host, script))
            told(pid, "ip addr add 10.9.0.2/24 dev v1; ip link set v1 up; ip route add default via 10.9.0.1")
            stack.callback(inside, bench.host, "ip", "link", "del", "v0")
            yield Attached(pid, "10.9.0.1", "10.9.0.2", PORT, None)
            return
        pid = pid or stack.enter_context(nested(bench.host, ""))
        command = [*ENTER, str(bench.host), sys.executable, __file__, "worker"]
        pipe = subprocess.PIPE
        process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        assert process.stdin is not None
        assert process.stdout is not None
        published = PUBLISHED + 10 * ENGINES.index(engine)
        process.stdin.write(f"{engine} {pid} {mtu} {delay} {published}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{engine} did not start")
        began, took, number = map(int, line.split())
        router = "10.210.0.1" if engine == "bridge" else "10.0.2.2"
        made = Attached(pid, router, "127.0.0.1", published, number)
        made.began, made.took = began, took
        yield made
        process.stdin.write("\n")
        process.stdin.flush()
        made.close_took = int(process.stdout.readline())
        process.stdin.close()


@contextmanager
def all_attached(bench: Bench, engines: list[str], mtu: int = 1500) -> Iterator[dict[str, Attached]]:
    """A namespace with servers for each of them, in the order of their turns; servers in H, too."""
    with ExitStack() as stack:
        stack.enter_context(bench.serving(bench.host))
        made = {}
        for engine in sorted(engines, key=ENGINES.index):
            made[engine] = net = stack.enter_context(attached(bench, engine, mtu))
            stack.enter_context(bench.serving(net.pid))
        yield made


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from tree(int(child))


def processor(pid: int) -> float:
    """Seconds of processor time that a process and its children have had (proc_pid_stat(5))."""
    ticks = 0
    for each in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident bytes of a process and its children (proc_pid_status(5))."""
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) << 10
    return total


def first(answer: list[float] | None) -> float | None:
    """The first figure, if there is one."""
    return answer[0] if answer else None


def flows(bench: Bench, engines: list[str]) -> None:
    """TCP throughput, and the engine's processor time for it."""
    seconds = bench.seconds
    for mtu in (1500, 65520):
        with all_attached(bench, engines, mtu) as nets:
            for verb in ("put", "get"):
                for engine, net in nets.items():
                    for count in (1, 4):
                        before = processor(net.engine) if net.engine else 0
                        rate = first(bench.ask(net.pid, verb, net.to_host, PORT, seconds, count))
                        bench.keep(engine, f"{verb}{count}@{mtu}", rate)
                        if net.engine and rate and count == 1 and mtu == 1500:
                            spent = processor(net.engine) - before
                            bench.keep(engine, f"cpu {verb}", spent / (rate * seconds))
            for engine, net in nets.items():
                rate = first(bench.ask(bench.host, "put", net.to_guest, net.port, seconds, 1))
                bench.keep(engine, f"in1@{mtu}", rate)


def latency(bench: Bench, engines: list[str]) -> None:
    """Round trips of one byte, and of whole connections."""
    seconds = min(bench.seconds, 1.5)
    with all_attached(bench, engines) as nets:
        for way in ("out", "in"):
            ends = {
                engine: (net.pid, net.to_host, PORT) if way == "out" else (bench.host, net.to_guest, net.port)
                for engine, net in nets.items()
            }
            for engine, (pid, host, port) in ends.items():
                answer = bench.ask(pid, "ask", host, port, seconds)
                bench.keep(engine, f"p50 {way}", answer and answer[0])
                bench.keep(engine, f"p99 {way}", answer and answer[1])
            for engine, (pid, host, port) in ends.items():
                bench.keep(engine, f"dial {way}", first(bench.ask(pid, "dial", host, port, seconds, 4)))


def udp(bench: Bench, engines: list[str]) -> None:
    """Datagrams of 1400 bytes that arrive, in thousands per second, of as many as one program can send.

    Plain: the programs are ordinary ones, a datagram a call, a receive buffer of the size that the system
    gives, as iperf3's. There the sender's and the receiver's calls are what bounds every fast way, a kernel
    link too. Bulk: the programs work as QUIC's do, which hand a run of datagrams over by one call
    (``UDP_SEGMENT``) and take runs (``UDP_GRO``, ``recvmmsg``) into a buffer as large as the system allows;
    so the way between them is the bound.
    """
    with all_attached(bench, engines) as nets:
        for way in ("out", "in"):
            for verb, name, after in (("flood", "udp", 1), ("bulk", "udp bulk", 2)):
                for engine, net in nets.items():
                    pid, to, host, port = (
                        (net.pid, bench.host, net.to_host, PORT)
                        if way == "out"
                        else (bench.host, net.pid, net.to_guest, net.port)
                    )
                    bench.ask(to, "count", PORT + after)  # what another engine brought
                    bench.ask(pid, verb, host, port, bench.seconds, 1400)
                    time.sleep(0.3)
                    answer = bench.ask(to, "count", PORT + after)
                    rate = answer[0] / max(answer[1], bench.seconds) / 1e3 if answer else None
                    bench.keep(engine, f"{name} {way}", rate)


def size(bench: Bench, engines: list[str]) -> None:
    """Memory of the engine, idle and for each idle connection."""
    for engine in engines:
        if engine == "veth":
            continue
        with attached(bench, engine) as net, bench.serving(bench.host):
            assert net.engine is not None
            idle = memory(net.engine)
            bench.keep(engine, "idle MB", idle / 1e6)
            with bench.started(net.pid, "hold", net.to_host, PORT, HELD) as process:
                assert process.stdout is not None
                stood = int(process.stdout.readline() or 0)
                time.sleep(0.3)
                per = (memory(net.engine) - idle) / stood if stood == HELD else None
                bench.keep(engine, "bytes per flow", per)


def peer(bench: Bench, engines: list[str]) -> None:
    """To a peer behind the host's own link of MTU 1500, beside the host's own connections to it."""
    with bench.serving(bench.peer), all_attached(bench, [each for each in engines if each != "veth"]) as nets:
        # veth would need routes of H: what it gives is the direct figure, in its turn.
        pids = {engine: net.pid for engine, net in nets.items()} | {"veth": bench.host}
        for verb in ("put", "get"):
            for engine in sorted(pids, key=ENGINES.index):
                rate = first(bench.ask(pids[engine], verb, "10.77.0.2", PORT, bench.seconds, 1))
                bench.keep("direct" if engine == "veth" else engine, f"peer {verb}", rate)


def delay(bench: Bench, engines: list[str]) -> None:
    """At long round trips: our delay device; the kernel's own TCP over a link of ours with the same delay."""
    seconds = bench.seconds * 2
    ours = [engine for engine in engines if engine in ("tap", "packet")][:1]
    for trip in (20, 50, 100):
        one_way = trip / 2000
        with r2d2.Network() as net, nodes(net, "a", "b") as pids, bench.serving(pids["b"]):
            net.link("a", "b").set(delay=one_way)
            address = net.members["b"].address
            for verb in ("put", "get"):
                rate = first(bench.ask(pids["a"], verb, address, PORT, seconds, 1))
                bench.keep("kernel", f"{verb}@{trip}ms", rate)
        for engine in ours:
            with attached(bench, engine, delay=one_way) as guest, bench.serving(bench.host):
                for verb in ("put", "get"):
                    rate = first(bench.ask(guest.pid, verb, guest.to_host, PORT, seconds, 1))
                    bench.keep(engine, f"{verb}@{trip}ms", rate)


def start(bench: Bench, engines: list[str]) -> None:
    """From `attach` to the first byte; what a network adds to a container's start; how long its end takes.

    Not of the kernel's: its containers would be started in this machine's own network.
    """
    engines = [engine for engine in engines if engine not in ("veth", "bridge")]
    for engine in engines:
        times, closes = [], []
        with bench.serving(bench.host):
            for _ in range(5):
                with nested(bench.host, "") as pid, bench.started(pid, "first", "10.0.2.2", PORT) as process:
                    assert process.stdout is not None
                    process.stdout.readline()
                    with attached(bench, engine, pid=pid) as net:
                        times.append((int(process.stdout.readline()) - net.began) / 1e6)
                    closes.append(net.close_took / 1e6)
        bench.keep(engine, "first byte ms", statistics.median(times))
        bench.keep(engine, "close ms", statistics.median(closes))
    for engine, added in container_starts(engines).items():
        bench.keep(engine, "start ms", added)


def container_starts(engines: list[str], turns: int = 30) -> dict[str, float]:
    """Milliseconds that a network adds to a container's start: the median of the differences of each turn."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "bin").mkdir()
        image = r2d2.Image.from_dir(root)
        kinds: dict[str, Any] = {"none": "none"}
        kinds |= {engine: options(engine) for engine in engines}
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(turns + 3):
            for name, kind in kinds.items():
                container = r2d2.Container(image, network=kind)
                began = time.perf_counter_ns()
                container.start()
                took = (time.perf_counter_ns() - began) / 1e6
                container.stop()
                if turn >= 3:  # what is made once is made
                    taken[name].append(took)
    none = taken.pop("none")
    return {
        name: statistics.median(a - b for a, b in zip(took, none, strict=True))
        for name, took in taken.items()
    }


#: Title, figure, unit; then bounds of the figure of our tap, or of the packet device where there is no tap:
#: (">=" or "<=", factor, of whose, which figure). Without a whose, the factor is the bound itself.
ROWS: list[tuple[str, str, str, list[tuple[str, float, str, str]]]] = [
    (
        "TCP, 1 flow, MTU 1500, put",
        "put1@1500",
        "Gbit/s",
        [(">=", 0.7, "veth", ""), (">=", 10, "slirp4netns", "")],
    ),
    (
        "TCP, 1 flow, MTU 1500, get",
        "get1@1500",
        "Gbit/s",
        [(">=", 0.7, "veth", ""), (">=", 5, "slirp4netns", "")],
    ),
    (
        "TCP, 1 flow, MTU 1500, in",
        "in1@1500",
        "Gbit/s",
        [(">=", 0.7, "veth", ""), (">=", 5, "slirp4netns", "")],
    ),
    *(
        (
            f"TCP, 1 flow, MTU 65520, {verb}",
            f"{verb}1@65520",
            "Gbit/s",
            [(">=", 0.7, "veth", ""), (">=", 1.2, "pasta", ""), (">=", 1.2, "slirp4netns", "")],
        )
        for verb in ("put", "get", "in")
    ),
    *(
        (
            f"TCP, 4 flows, MTU {mtu}, {verb}",
            f"{verb}4@{mtu}",
            "Gbit/s",
            [(">=", 0.9, "tap", f"{verb}1@{mtu}")],
        )
        for mtu in (1500, 65520)
        for verb in ("put", "get")
    ),
    *(
        (f"TCP to a peer of the host, {verb}", f"peer {verb}", "Gbit/s", [(">=", 0.6, "direct", "")])
        for verb in ("put", "get")
    ),
    *(
        (f"TCP at {trip} ms round trip, {verb}", f"{verb}@{trip}ms", "Gbit/s", [(">=", 0.9, "kernel", "")])
        for trip in (20, 50, 100)
        for verb in ("put", "get")
    ),
    *(
        (f"TCP round trip {at}, {way}", f"{at} {way}", "µs", [("<=", factor, "veth", "")])
        for at, factor in (("p50", 0.8), ("p99", 1.2))
        for way in ("out", "in")
    ),
    *(
        (f"connections, {way}", f"dial {way}", "1/s", [(">=", 0.5, "veth", ""), (">=", 1.3, "pasta", "")])
        for way in ("out", "in")
    ),
    *(
        (
            f"{title}, {way}",
            f"{name} {way}",
            "1000/s",
            [(">=", 0.55, "veth", ""), (">=", 10, "slirp4netns", "")],
        )
        for name, title in (("udp", "UDP 1400 B"), ("udp bulk", "UDP 1400 B in bulk"))
        for way in ("out", "in")
    ),
    *(
        (
            f"engine's processor time, {verb}",
            f"cpu {verb}",
            "s/Gbit",
            [("<=", 0.06, "", ""), ("<=", 0.12, "slirp4netns", "")],
        )
        for verb in ("put", "get")
    ),
    ("engine's memory, idle", "idle MB", "MB", [("<=", 8, "", "")]),
    ("engine's memory, per idle flow", "bytes per flow", "B", [("<=", 256, "", "")]),
    ("attach to first byte", "first byte ms", "ms", [("<=", 5, "", "")]),
    ("added to a container's start", "start ms", "ms", [("<=", 3, "", "")]),
    ("end of the network", "close ms", "ms", []),
]
#: The same for the packet device, where it has a target.
PACKET = [
    (f"packet device, {verb}", f"{verb}1@1500", "Gbit/s", [(">=", 0.3, "veth", "")])
    for verb in ("put", "get")
]


def judged(
    bench: Bench, engine: str, figure: str, bounds: list[tuple[str, float, str, str]]
) -> tuple[str, str]:
    """The targets of a row in words, and of each whether it holds, with the ratio."""
    own = bench.found.get(f"{engine} {figure}", [])
    words, verdicts = [], []
    for sign, factor, whose, which in bounds:
        words.append(f"{sign} {factor:g}{' x ' + whose if whose else ''}{' 1 flow' if which else ''}")
        beside = engine if whose == "tap" else whose
        other = bench.found.get(f"{beside} {which or figure}", []) if whose else [1.0] * len(own)
        ratios = [a / b for a, b in zip(own, other, strict=False) if a is not None and b]
        if not ratios:
            verdicts.append("not measured")
            continue
        ratio = statistics.median(ratios)
        holds = ratio >= factor if sign == ">=" else ratio <= factor
        verdicts.append(f"{'ok' if holds else 'MISSED'} ({ratio:.3g})")
    return ", ".join(words), ", ".join(verdicts)


def table(bench: Bench) -> None:
    """Prints the figures, their targets and the verdicts."""
    columns = [*ENGINES, "direct", "kernel"]
    print("| figure | unit |", " | ".join(columns), "| target | verdict (ratio) |")
    print("| --- | --- |" + " ---: |" * len(columns) + " --- | --- |")
    ours = "tap" if any(name.startswith("tap ") for name in bench.found) else "packet"
    for rows, engine in ((ROWS, ours), (PACKET, "packet")):
        for title, figure, unit, bounds in rows:
            cells = []
            for column in columns:
                values = [value for value in bench.found.get(f"{column} {figure}", []) if value is not None]
                cells.append(f"{statistics.median(values):.3g}" if values else "")
            if any(cells):
                print(
                    f"| {title} | {unit} |",
                    " | ".join(cells),
                    "|",
                    " | ".join(judged(bench, engine, figure, bounds)),
                    "|",
                )


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:] == ["worker"]:
        worker()
        return
    parser = argparse.ArgumentParser(
        description=(__doc__ or "") % {"parts": ", ".join(PARTS)},
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="for each flow")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma")
    parser.add_argument("--with", dest="engines", default=",".join(ENGINES), help="engines, by comma")
    parser.add_argument("--json", type=Path, help="also write the figures of each run there")
    given = parser.parse_args()
    parts, engines = given.only.split(","), given.engines.split(",")
    if not set(parts) <= set(PARTS) or not set(engines) <= set(ENGINES):
        parser.error(f"parts: {', '.join(PARTS)}; engines: {', '.join(ENGINES)}")
    usable = {"veth", "bridge", "packet"} | ({"tap"} if has("tun") else set())
    usable |= {name for name in ("slirp4netns", "pasta") if has("tun") and has(name)}
    for name in sorted(set(engines) - usable):
        print(f"{name}: left out, it is not installed or /dev/net/tun cannot be opened", file=sys.stderr)
    engines = [engine for engine in engines if engine in usable]
    todo: dict[str, Callable[[Bench, list[str]], None]] = {
        "flows": flows,
        "latency": latency,
        "udp": udp,
        "memory": size,
        "peer": peer,
        "delay": delay,
        "start": start,
    }
    with ExitStack() as stack:
        program = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "traffic")
        subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / "traffic.c"], check=True)
        host = stack.enter_context(namespace())
        # pasta wants a default route to take its template from.
        told(
            host,
            "ip link set lo up; echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range; "
            "ip link add eth0 type veth peer name eth0p; ip link set eth0p up; "
            "ip addr add 198.18.0.1/24 dev eth0; ip link set eth0 up; ip route add default via 198.18.0.254",
        )
        link = "ip link add r0 type veth peer name r1 netns {pid}; ip link set r0 up"
        third = stack.enter_context(nested(host, f"{link}; ip addr add 10.77.0.1/24 dev r0"))
        told(third, "ip addr add 10.77.0.2/24 dev r1; ip link set r1 up")
        bench = Bench(program, host, third, given.seconds)
        for run in range(given.runs):
            bench.run = run
            print(f"run {run + 1} of {given.runs}", file=sys.stderr)
            for name in parts:
                todo[name](bench, engines)
    table(bench)
    if given.json:
        given.json.write_text(json.dumps(bench.found, indent=1) + "\n")


if __name__ == "__main__":
    main()
