"""A process that owns containers, to be killed: a nursery that forks owners and counts what survives them.

Run as a program. It reads lines ``ACTIONS SEED`` and for each forks an owner, which carries out the actions
in an order that the seed decides, over and over, until somebody kills it. It answers ``PID CONTROL``: CONTROL
is the pid of a process that the owner started and that has nothing to do with r2d2. As a child subreaper it
inherits whatever the owner leaves; the line ``left`` asks for it, ``mounts`` for its mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import r2d2
from _proc import children, mounts

PR_SET_CHILD_SUBREAPER = 36


def own(actions: list[str], seed: int, image: r2d2.Image, ready: int) -> None:
    """Never returns."""
    control = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    os.write(ready, b"%d %d\n" % (os.getpid(), control.pid))
    choose = random.Random(seed)
    number = 0
    while True:
        number += 1
        keywords: dict[str, object] = {"image": image, "name": f"kill-{os.getpid()}-{number}"}
        if "host" in actions and choose.random() < 0.3:
            keywords["image"] = "host"
        if "limits" in actions and choose.random() < 0.5:
            keywords["limits"] = {"memory": "64m", "pids": 50}
        if "disk" in actions and choose.random() < 0.5:
            keywords["storage"] = "disk"
        if choose.random() < 0.3:
            r2d2.run(["true"], stdin=subprocess.DEVNULL, **keywords)
            continue
        with r2d2.Container(**keywords) as container:
            for _ in range(choose.randrange(4)):
                action = choose.choice(actions)
                if action == "run":
                    # When the owner is killed the directories may go before it: its complaints are nobody's.
                    script = "echo x > /tmp/file; mkdir -p /tmp/shut; chmod 0 /tmp/shut"
                    container.run(["sh", "-c", script], stderr=subprocess.DEVNULL)
                elif action == "timeout":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        container.run(["sh", "-c", "(sleep 900 &) ; sleep 900"], timeout=0.01)
                elif action == "popen":
                    container.popen(["sh", "-c", "trap '' TERM HUP; setsid sleep 900 & sleep 900"])
                elif action == "tty":
                    container.popen(["sleep", "900"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                elif action == "copy":
                    container.copy_in(__file__, "/tmp/copied")
                    container.copy_out(
                        "/tmp/copied", os.path.join(os.environ["TMPDIR"], f"out-{os.getpid()}")
                    )
                    os.unlink(os.path.join(os.environ["TMPDIR"], f"out-{os.getpid()}"))
                elif action == "pause":
                    container.pause()
                    if choose.random() < 0.8:
                        container.resume()


def main() -> None:
    """Serves until its input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    image = r2d2.Image.from_dir(sys.argv[1])
    for line in sys.stdin:
        words = line.split()
        if words[0] == "left":
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            print(children(), flush=True)
        elif words[0] == "mounts":
            print(len(mounts()), flush=True)
        else:
            reading, writing = os.pipe()
            if os.fork() == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                log = os.open(
                    os.path.join(os.environ["TMPDIR"], "log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY
                )
                for number in (1, 2):
                    os.dup2(log, number)
                try:
                    own(words[0].split(","), int(words[1]), image, writing)
                except BaseException:  # noqa: BLE001 - whatever it is goes to the log
                    import traceback

                    traceback.print_exc()
                os._exit(1)
            os.close(writing)
            with os.fdopen(reading) as answer:
                print(answer.readline().strip(), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
