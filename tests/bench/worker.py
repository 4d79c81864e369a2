"""What is measured inside an interpreter of its own: ``worker.py LAYER MEGABYTES``, one command a line.

``run`` and ``exec`` answer nanoseconds, ``subprocess PROGRAM`` too, ``pss`` the bytes of an idle container's
processes, ``pid`` its PID 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import r2d2


def pss(pid: int) -> int:
    """Proportional set size of PID 1 and all below it, in bytes (proc_pid_smaps(5))."""
    total = 0
    for entry in os.listdir("/proc"):
        try:
            if (
                entry.isdigit()
                and os.stat(f"/proc/{entry}/ns/pid").st_ino == os.stat(f"/proc/{pid}/ns/pid").st_ino
            ):
                text = Path(f"/proc/{entry}/smaps_rollup").read_text()
                total += (
                    sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
                )
        except OSError:
            continue
    return total


def main() -> None:
    """Serves until its input ends."""
    image = r2d2.Image.from_dir(sys.argv[1])
    kept = bytearray(int(sys.argv[2]) << 20)
    kept[::4096] = b"x" * len(kept[::4096])  # every page is resident
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with r2d2.Container(image) as container:
        for line in sys.stdin:
            words = line.split()
            if words[0] == "pss":
                print(pss(container.pid), flush=True)
                continue
            if words[0] == "pid":
                print(container.pid, flush=True)
                continue
            began = time.perf_counter_ns()
            if words[0] == "run":
                code = r2d2.run(["true"], image=image, **quiet).returncode
            elif words[0] == "exec":
                code = container.run(["true"], **quiet).returncode
            else:
                code = subprocess.run(words[1:], check=False, **quiet).returncode
            took = time.perf_counter_ns() - began
            assert code == 0, code
            print(took, flush=True)


if __name__ == "__main__":
    main()
