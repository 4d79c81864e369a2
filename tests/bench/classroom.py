"""A class on one machine: N kernels at once, each with a container of its own; memory and start time of each.

    python tests/bench/classroom.py [STUDENTS] [--json]

Every student's kernel starts at the same moment, runs the first cell of a lesson, starts a container, runs a
program in it, and stays until all have come so far: the worst that a class does. Memory is the proportional
set size (PSS, proc_pid_smaps_rollup(5)) of the kernel and of all that it started, so that what they share is
counted once. Needs the extra [course]. The exit status is 1 if a student failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

LESSON = """
import r2d2
from r2d2 import course
work = course.begin()
container = r2d2.Container("host").start()
done = container.run(["hostname"], capture_output=True, text=True, check=True)
print(done.stdout, end="")
"""


def descendants(pid: int) -> set[int]:
    """The process and all that it started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, todo = set(), [pid]
    while todo:
        found.add(todo[-1])
        todo += children.get(todo.pop(), ())
    return found


def memory(pid: int) -> int:
    """PSS of a process in bytes; 0 of one that may not be looked into (a container's PID 1)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.partition("\nPss:")[2].split()[0]) * 1024


async def student(number: int, place: str, ready: asyncio.Barrier) -> dict[str, Any]:
    began = time.monotonic()
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{place}/{number}")
    manager.connection_file = f"{place}/{number}.json"
    await manager.start_kernel(stdout=-3, stderr=-3)
    client = manager.client()
    client.start_channels()
    result: dict[str, Any] = {"student": number}
    try:
        await client.wait_for_ready(timeout=300)
        result["kernel"] = time.monotonic() - began
        said: list[str] = []
        reply = await client.execute_interactive(
            LESSON,
            timeout=300,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
        result["container"] = time.monotonic() - began - result["kernel"]
        result["ok"] = reply["content"]["status"] == "ok" and "".join(said).endswith("r2d2\n")
        await ready.wait()
        pids = descendants(manager.provisioner.pid)
        result["memory"] = sum(map(memory, pids))
        result["processes"] = len(pids)
        await ready.wait()
    finally:
        client.stop_channels()
        await manager.shutdown_kernel()
    return result


async def run(students: int) -> list[dict[str, Any]]:
    ready = asyncio.Barrier(students)
    with tempfile.TemporaryDirectory(prefix="r2d2-class-") as place:
        return await asyncio.gather(*(student(number, place, ready) for number in range(students)))


def available() -> int:
    """MemAvailable of the machine, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    students = int(words[0]) if words else 30
    load, free, began = os.getloadavg()[0], available(), time.monotonic()
    results = asyncio.run(run(students))
    took = time.monotonic() - began
    if "--json" in sys.argv:
        print(json.dumps(results, indent=1))
        return not all(each["ok"] for each in results)
    print(f"{students} students, {os.cpu_count()} CPUs, load {load:.1f} and {free >> 20} MiB free before")
    print(f"no failure: {all(each['ok'] for each in results)}; the whole, with its end: {took:.1f} s")
    for what, unit, scale in (("kernel", "s", 1), ("container", "s", 1), ("memory", "MiB", 1 << 20)):
        values = [each[what] / scale for each in results]
        print(f"{what:>10}: median {statistics.median(values):6.1f} {unit}, worst {max(values):6.1f} {unit}")
    print(f"    in all: {sum(each['memory'] for each in results) >> 20} MiB")
    return not all(each["ok"] for each in results)


if __name__ == "__main__":
    sys.exit(main())
