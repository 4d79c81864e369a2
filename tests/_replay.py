"""A container and its script, side by side: what both show, made comparable."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import r2d2

MARK = "=== next ==="


class Seen(NamedTuple):
    """What a program inside sees."""

    namespaces: frozenset[str]
    mounts: tuple[str, ...]
    hostname: str
    output: str


def probe(commands: str) -> str:
    """A script for the sh of a container that shows what is compared; /proc is there, programs may not be.

    ``ls -l /proc/self/ns`` needs ls: the namespaces are read by the caller where there is none.
    """
    return f"""
        echo {MARK!r}; for ns in user mnt pid uts ipc net cgroup; do readlink /proc/self/ns/$ns; done
        echo {MARK!r}; cat /proc/self/mountinfo
        echo {MARK!r}; cat /proc/sys/kernel/hostname
        echo {MARK!r}; {commands}
    """


def read(text: str, outside: frozenset[str]) -> Seen:
    """What the probe printed; namespaces as the kinds that differ from those outside."""
    _, namespaces, mountinfo, hostname, output = text.split(MARK + "\n")
    inside = frozenset(namespaces.split())
    kinds = frozenset(each.split(":")[0] for each in inside - outside)
    return Seen(kinds, mounts(mountinfo), hostname.strip(), output)


def mounts(mountinfo: str) -> tuple[str, ...]:
    """Mount point, root, options, propagation, type, source and options of the file system.

    Dropped: mount ids, parent ids and device numbers, which the kernel hands out; the parent's place is
    kept as its mount point. ``lowerdir+=A,lowerdir+=B`` and ``lowerdir=A:B`` are two ways to say the same.
    """
    rows = [line.split(" ") for line in mountinfo.splitlines()]
    points = {row[0]: row[4] for row in rows}
    result = []
    for row in rows:
        end = row.index("-")
        options = ",".join(layers(row[end + 3]))
        parent = points.get(row[1], "outside")
        result.append((row[4], parent, row[3], row[5], *row[6:end], row[end + 1], row[end + 2], options))
    # Mounts on the same point keep their order, others may come in any: the kernel lists them by id.
    return tuple(" ".join(row) for row in sorted(result, key=lambda row: row[0]))


def layers(options: str) -> list[str]:
    """The options of a file system; lower layers one by one, as their paths are."""
    result = []
    for option in options.split(","):
        key, equals, value = option.partition("=")
        if key == "lowerdir+":
            result.append(f"lowerdir={octal(value)}")
        elif key == "lowerdir":
            # The string as mount(2) was given it, with overlayfs's own backslashes.
            parts = re.findall(r"(?:[^:\\]|\\.)+", octal(value), re.DOTALL)
            result += ["lowerdir=" + re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]
        else:
            result.append(key + equals + octal(value))
    return result


def octal(text: str) -> str:
    """What the kernel escaped (seq_file)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def outside() -> frozenset[str]:
    """The namespaces of this process."""
    kinds = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup")
    return frozenset(os.readlink(f"/proc/self/ns/{kind}") for kind in kinds)


def replay(container: r2d2.Container, commands: str, directory: Path) -> tuple[Seen, Seen]:
    """Runs the container's script, then the container: what each shows."""
    script = directory / "by hand.sh"
    explanation = container.explain()
    script.write_bytes(os.fsencode(explanation.script(["sh", "-c", probe(commands)])))
    by_hand = subprocess.run(
        ["sh", script], capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )
    assert by_hand.returncode == 0, by_hand.stderr.decode(errors="replace")
    skipped = {
        int(line.split()[1])
        for line in by_hand.stderr.decode(errors="replace").splitlines()
        if "is skipped" in line
    }
    with container:
        real = container.run(["sh", "-c", probe(commands)], capture_output=True, check=True)
        started = container.explain()
    assert started == explanation
    assert {step.number for step in started if step.errno is not None} == skipped
    ours = outside()
    return read(os.fsdecode(by_hand.stdout), ours), read(os.fsdecode(real.stdout), ours)
