"""The figures that r2d2 must reach, measured beside what they are compared with.

    python tests/bench/bench.py [--quick] [--json]

Needs a release build (``maturin develop --release``), gcc, busybox, unshare(1), nsenter(1) and
bwrap(1), and a machine that is otherwise quiet, or ``chrt -r 1`` before it. Everything that is
compared takes turns, one start each (A B C A B C ...), so that whatever else happens on the
machine happens to all; figures are medians, ratios are medians of the ratios of each turn. What
is not r2d2 is spawned and timed by a C program (``limit.c``), so that no interpreter is in its
time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import r2d2
from r2d2 import _core

HERE = Path(__file__).parent


class Turns:
    """A process that does one thing at a time."""

    def __init__(self, *command: str, word: str = "x") -> None:
        self.word = word
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def take(self, word: str | None = None) -> float:
        """Nanoseconds, or whatever number the process answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write((word or self.word) + ("\n" if word else ""))
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended")
        return float(answer)

    def close(self) -> None:
        """Ends it."""
        self.process.communicate()


def medians(turns: dict[str, object], rounds: int) -> dict[str, list[float]]:
    """Everyone takes turns; the first tenth is warming up."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + rounds // 10 + 1):
        for name, turn in turns.items():
            took = turn() / 1e6  # type: ignore[operator]
            if number > rounds // 10:
                taken[name].append(took)
    return taken


def ratio(taken: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios of each turn."""
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def imports(rounds: int) -> dict[str, list[float]]:
    """Wall time of an interpreter that imports r2d2, and of one that does not, in milliseconds."""

    def start(code: str) -> float:
        began = time.perf_counter_ns()
        subprocess.run([sys.executable, "-c", code], check=True)
        return float(time.perf_counter_ns() - began)

    return medians({"import r2d2": lambda: start("import r2d2"), "bare": lambda: start("pass")}, rounds)


def crowd(image: r2d2.Image, count: int, threads: int) -> dict[str, float]:
    """Containers at once, each running a command."""
    containers = [r2d2.Container(image) for _ in range(count)]
    failures = []

    def each(number: int, action: str) -> None:
        for i in range(number, count, threads):
            try:
                if action == "run":
                    done = containers[i].run(["echo", str(i)], stdout=subprocess.PIPE)
                    assert done.stdout == b"%d\n" % i
                else:
                    getattr(containers[i], action)()
            except Exception as error:  # noqa: BLE001 - counted
                failures.append(error)

    times = {}
    for action in ("start", "run", "stop"):
        began = time.perf_counter()
        pool = [threading.Thread(target=each, args=(number, action)) for number in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        times[action] = time.perf_counter() - began
    return {**times, "failures": len(failures), "left": sum(container.running for container in containers)}


def covers(image: r2d2.Image) -> list[str]:
    """What bwrap(1) must be told to hide of /proc and /sys what a container of ours hides."""
    words = ["--ro-bind", "/sys", "/sys"]
    for step in r2d2.Container(image).explain():
        if hidden := re.fullmatch(r"bind (\S+) on ROOT(/(?:proc|sys)/\S+)", step.title):
            source, path = hidden.groups()
            file = source == "/dev/null"
            words += ["--ro-bind", source, path] if file else ["--tmpfs", path, "--remount-ro", path]
        elif kept := re.fullmatch(r"bind ROOT(/(?:proc|sys)/\S+) onto itself", step.title):
            words += ["--ro-bind", kept[1], kept[1]]
    return words


def main() -> int:  # noqa: PLR0915 - a list of measurements
    """Measures and prints; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--gigabytes", type=int, default=4, help="how large the large process is")
    options = parser.parse_args()
    rounds = 40 if options.quick else 300
    built = getattr(_core, "PROFILE", "unknown")

    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        program = f"{directory}/limit"
        subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / "limit.c"], check=True)
        os.makedirs(f"{directory}/images")
        os.chmod(f"{directory}/images", 0o700)
        layer = r2d2.chroot.build_minimal(f"{directory}/images", [], busybox=True)
        for name in ("proc", "dev", "tmp"):
            os.makedirs(f"{layer}/{name}", exist_ok=True)
        for name in ("upper", "work", "merged"):
            os.makedirs(f"{memory}/{name}")
        image = r2d2.Image.from_dir(layer)
        overlay = f"lowerdir={layer},upperdir={memory}/upper,workdir={memory}/work,userxattr"
        spaces = [
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ]
        unshare = ["unshare", *spaces, f"--root={layer}", "--mount-proc", "/bin/true"]
        apart = [f"--unshare-{name}" for name in ("user", "pid", "uts", "ipc", "net", "cgroup")]
        mounts = ["--ro-bind", layer, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        bare = ["bwrap", *apart, "--hostname", "r2d2", *mounts, "/bin/true"]
        bwrap = ["bwrap", *apart, "--hostname", "r2d2", *mounts, *covers(image), "/bin/true"]
        small = Turns(sys.executable, str(HERE / "worker.py"), layer, "0")
        megabytes = str(options.gigabytes * 1024)
        large = Turns(sys.executable, str(HERE / "worker.py"), layer, megabytes)
        pid = int(small.take("pid"))
        nsenter = [
            "nsenter",
            "--target",
            str(pid),
            "--preserve-credentials",
            *["-U", "-m", "-u", "-i", "-n", "-p", "-C"],
            "/bin/true",
        ]
        ids = [str(os.geteuid()), str(os.getegid())]
        limit = Turns(program, "start", f"{memory}/merged", *ids, overlay)
        by_unshare, by_bwrap, by_bare, by_nsenter = (
            Turns(program, "spawn", *command) for command in (unshare, bwrap, bare, nsenter)
        )
        static = f"{layer}/bin/true"
        try:
            starts = medians(
                {
                    "r2d2.run": lambda: small.take("run"),
                    "C limit": limit.take,
                    "unshare(1)": by_unshare.take,
                    "bwrap(1)": by_bwrap.take,
                    "bwrap(1), nothing hidden": by_bare.take,
                    "r2d2.run, large": lambda: large.take("run"),
                },
                rounds,
            )
            execs = medians(
                {
                    "c.run": lambda: small.take("exec"),
                    "subprocess.run": lambda: small.take(f"subprocess {static}"),
                    "nsenter(1)": by_nsenter.take,
                    "c.run, large": lambda: large.take("exec"),
                },
                rounds,
            )
            memory_used = small.take("pss")
        finally:
            for turns in (small, large, limit, by_unshare, by_bwrap, by_bare, by_nsenter):
                turns.close()
        imported = imports(rounds // 4)
        many = crowd(image, 500, 8)

    extra = statistics.median(imported["import r2d2"]) - statistics.median(imported["bare"])
    rows = [
        ("r2d2.run : C limit", ratio(starts, "r2d2.run", "C limit"), 1.5),
        ("r2d2.run : unshare(1)", ratio(starts, "r2d2.run", "unshare(1)"), 1.0),
        ("r2d2.run : bwrap(1)", ratio(starts, "r2d2.run", "bwrap(1)"), 0.5),
        ("c.run : subprocess.run", ratio(execs, "c.run", "subprocess.run"), 1.5),
        ("c.run : nsenter(1)", ratio(execs, "c.run", "nsenter(1)"), 0.6),
        (
            f"r2d2.run, {options.gigabytes} GB resident : small",
            ratio(starts, "r2d2.run, large", "r2d2.run"),
            1.15,
        ),
        (f"c.run, {options.gigabytes} GB resident : small", ratio(execs, "c.run, large", "c.run"), 1.15),
        ("idle container, PSS in kB", memory_used / 1000, 200),
        ("import r2d2, ms more than bare", extra, 30),
        ("500 containers, failures and left", many["failures"] + many["left"], 0),
    ]
    milliseconds = {name: statistics.median(times) for name, times in {**starts, **execs, **imported}.items()}
    if options.json:
        figures = [
            {"figure": name, "value": value, "at_most": most, "reached": value <= most}
            for name, value, most in rows
        ]
        print(json.dumps({"build": built, "ms": milliseconds, "crowd": many, "figures": figures}, indent=1))
    else:
        print(f"build {built}; medians of {rounds} turns, in ms")
        for name, value in milliseconds.items():
            print(f"  {name:<24}{value:8.3f}")
        print(
            "  500 containers: "
            + ", ".join(f"{name} {value:.2f} s" for name, value in list(many.items())[:3])
        )
        print(f"{'figure':<40}{'value':>8}{'at most':>9}")
        for name, value, most in rows:
            print(f"{name:<40}{value:8.2f}{most:9.2f}  {'reached' if value <= most else 'MISSED'}")
        print("unshare:", " ".join(unshare))
        print("bwrap:  ", " ".join(bwrap))
        print("nsenter:", " ".join(nsenter))
    return int(any(value > most for _, value, most in rows))


if __name__ == "__main__":
    sys.exit(main())
