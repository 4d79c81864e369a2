"""Figures of a network of containers: throughput of one TCP flow, accuracy of a delay, time to join.

    python tests/bench/network.py [--runs 3] [--seconds 2] [--json FILE]

Two bare namespaces are the members. Everything is the median of the runs. Every run measures the machine's
own loopback in the same way, for comparison: three processes share the machine's processors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import r2d2
from _guest import namespace, python, serving
from _needs import has
from _nodes import ECHO, nodes

SINK = """
s = socket.create_server(("", 5001)); print("ready", flush=True)
buffer = bytearray(1 << 20)
while True:
    c = s.accept()[0]; total = 0; began = time.perf_counter()
    while n := c.recv_into(buffer): total += n
    c.sendall(f"{total * 8 / (time.perf_counter() - began) / 1e9}\\n".encode()); c.close()
"""


def throughput(sender: int, receiver: int, address: str, seconds: float) -> float:
    """Gbit/s of one TCP flow."""
    code = f"""
s = socket.create_connection(("{address}", 5001), 10); data = memoryview(bytes(1 << 20))
end = time.perf_counter() + {seconds}
while time.perf_counter() < end: s.sendall(data)
s.shutdown(socket.SHUT_WR); print(s.recv(100).decode())
"""
    with serving(receiver, SINK):
        return float(python(sender, code))


def round_trip(pid: int, address: str) -> float:
    """Median of the seconds to an echo server and back."""
    code = f"""
s = socket.create_connection(("{address}", 7), 10)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(60):
    began = time.perf_counter(); s.send(b"x"); s.recv(1)
    print(time.perf_counter() - began); time.sleep(0.005)
"""
    return statistics.median(float(line) for line in python(pid, code).split())


def flows(runs: int, seconds: float) -> dict[str, float]:
    """Gbit/s by kind of interface."""
    devices = [*(["tap"] if has("tun") else []), "packet"]
    found: dict[str, list[float]] = {name: [] for name in ("loopback", *devices)}
    for _ in range(runs):
        with namespace() as pid:
            python(pid, "import subprocess; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)")
            found["loopback"].append(throughput(pid, pid, "127.0.0.1", seconds))
        for device in devices:
            with r2d2.Network(device=device) as net, nodes(net, "a", "b") as pids:
                address = str(net.members["b"].address)
                found[device].append(throughput(pids["a"], pids["b"], address, seconds))
    return {f"tcp_1_flow_{name}_gbit_s": statistics.median(values) for name, values in found.items()}


def delays(runs: int) -> dict[str, float]:
    """By how much a delay is missed at the median, in milliseconds; and by how much it may be."""
    found: dict[str, float] = {}
    with r2d2.Network() as net, nodes(net, "a", "b") as pids, serving(pids["b"], ECHO):
        address = str(net.members["b"].address)
        link = net.link("a", "b", both=False)
        for delay in (0.001, 0.01, 0.05):
            missed = []
            for _ in range(runs):
                link.clear()
                plain = round_trip(pids["a"], address)
                link.set(delay=delay)
                missed.append((round_trip(pids["a"], address) - plain - delay) * 1e3)
            found[f"delay_{delay * 1e3:.0f}_ms_off_ms"] = statistics.median(missed)
            found[f"delay_{delay * 1e3:.0f}_ms_may_be_off_ms"] = 0.2 + delay * 0.02 * 1e3
    return found


def switched(runs: int) -> dict[str, float]:
    """The same at the switch: from the time at which it read a frame until it passed it on."""
    found: dict[str, float] = {}
    with r2d2.Network() as net, nodes(net, "a", "b") as pids:
        address = net.members["b"].address
        for delay in (0.001, 0.01, 0.05):
            net.link("a", "b", both=False).set(delay=delay)
            with net.capture(protocol="udp", port=9, at="both") as seen:
                code = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range({40 * runs}): s.sendto(n.to_bytes(8, "big"), ("{address}", 9)); time.sleep(0.005)
time.sleep({2 * delay})
"""
                python(pids["a"], code)
            sent = {packet.payload: packet.time for packet in seen if not packet.received}
            missed = [(p.time - sent[p.payload] - delay) * 1e3 for p in seen if p.received]
            found[f"delay_{delay * 1e3:.0f}_ms_off_at_switch_ms"] = statistics.median(missed)
    return found


def joins(count: int) -> dict[str, float]:
    """Milliseconds to make a network, and to join one."""
    began = time.perf_counter()
    with r2d2.Network() as net, ExitStack() as stack:
        made = time.perf_counter() - began
        pids = [stack.enter_context(namespace()) for _ in range(count)]
        times = []
        for number, pid in enumerate(pids):
            began = time.perf_counter()
            net.join(pid, name=f"n{number}")
            times.append(time.perf_counter() - began)
    return {"network_ms": made * 1e3, "join_ms": statistics.median(times) * 1e3}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    r2d2.run(["true"])  # what is made once is made
    figures = joins(16) | flows(options.runs, options.seconds) | delays(options.runs) | switched(options.runs)
    for name, value in figures.items():
        print(f"{name:32} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
