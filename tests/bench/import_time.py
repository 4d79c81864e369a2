"""What `import r2d2` costs over a bare interpreter, and what the first use of `r2d2.run` adds: medians.

    python tests/bench/import_time.py [ROUNDS]

They are measured in turns, so that a busy moment of the machine hits all of them. The import may cost 30 ms;
the exit status says whether that holds. The first use loads what the import put off, subprocess included.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PROGRAMS = {"bare interpreter": "", "import r2d2": "import r2d2", "first r2d2.run": "import r2d2; r2d2.run"}
ALLOWED = 0.030


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    took: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            took[name].append(time.perf_counter() - began)
    bare = statistics.median(took["bare interpreter"])
    for name, times in took.items():
        more = statistics.median(times) - bare
        print(f"{name:>16}: {statistics.median(times) * 1e3:6.1f} ms, {more * 1e3:+5.1f} ms")
    return statistics.median(took["import r2d2"]) - bare > ALLOWED


if __name__ == "__main__":
    sys.exit(main())
