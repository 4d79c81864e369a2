"""A container ends with its owner, at whatever instant that ends, and with nothing else."""

from __future__ import annotations

import ast
import contextlib
import gc
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import has, needs
from _proc import cgroups, children, ended, stat, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
KILLS = 200
INTERRUPTS = 100
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Nursery:
    """``_owner.py``, running."""

    def __init__(self, image: r2d2.Image, directory: Path) -> None:
        self.directory = directory
        environ = {**os.environ, "TMPDIR": str(directory), "XDG_RUNTIME_DIR": str(directory)}
        environ |= {"R2D2_CACHE": str(directory / "cache"), "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "_owner.py"), *image.layers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def left(self) -> dict[int, str]:
        found: dict[int, str] = ast.literal_eval(self.ask("left"))
        return found

    def files(self) -> list[str]:
        """What there is but the log, empty directories of the cache, and what the caller copied out."""
        return [
            str(path)
            for path in self.directory.rglob("*")
            if path.name != "log"
            and not path.name.startswith("out-")
            and not (path.is_dir() and path.parent in {self.directory, self.directory / "cache"})
        ]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def nursery(image: r2d2.Image, tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(image, tmp_path)
    yield made
    made.close()


def _kill_and_look(nursery: Nursery, actions: list[str], rounds: int, longest: float) -> None:
    choose = random.Random(rounds)
    before = nursery.ask("mounts")
    for seed in range(rounds):
        pid, control = map(int, nursery.ask(f"{','.join(actions)} {seed}").split())
        time.sleep(choose.random() * longest)  # the random instant
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        mine = f"r2d2-kill-{pid}-*"
        until(lambda: set(nursery.left()) <= {control}, 1)  # noqa: B023 - called at once
        until(lambda: not cgroups(mine) and not nursery.files(), 1 - (time.monotonic() - killed))  # noqa: B023
        found = (nursery.left(), cgroups(mine), nursery.files(), nursery.ask("mounts"))
        log = (nursery.directory / "log").read_text()
        name = stat(control)
        os.kill(control, signal.SIGKILL)
        assert (set(found[0]), *found[1:]) == ({control}, set(), [], before), f"seed {seed}, {found}, {log}"
        assert name is not None, "a process that has nothing to do with it lives on"
        assert name[0] == "sleep"
        assert not log
        until(lambda: not nursery.left(), 1)


def _actions(*more: str) -> list[str]:
    actions = ["run", "timeout", "popen", "tty", *more]
    return [*actions, "copy"] if hasattr(r2d2.Container, "copy_in") else actions


@pytest.mark.timeout(300)
def test_killed_owner_leaves_nothing(nursery: Nursery) -> None:
    _kill_and_look(nursery, _actions("host"), KILLS, 0.08)


@pytest.mark.timeout(300)
@needs("cgroup")
def test_killed_owner_leaves_no_cgroup(nursery: Nursery) -> None:
    _kill_and_look(nursery, _actions("limits", "pause"), KILLS, 0.08)


@pytest.mark.timeout(300)
def test_killed_owner_leaves_no_upper_layer_on_disk(nursery: Nursery) -> None:
    _kill_and_look(nursery, _actions("disk"), KILLS // 2, 0.08)


def test_a_container_outlives_the_thread_that_started_it(image: r2d2.Image) -> None:
    # PR_SET_PDEATHSIG would fire here. Processors are busy: a thread may end before PID 1 has run.
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        for _ in range(150):
            started: list[r2d2.Container] = []
            thread = threading.Thread(target=lambda: started.append(r2d2.Container(image).start()))  # noqa: B023
            thread.start()
            thread.join()
            with contextlib.closing(started[0]) as running:
                assert running.run(["true"], **QUIET).returncode == 0
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


@needs("cgroup")
def test_the_reaper_outlives_the_thread_that_started_it(image: r2d2.Image) -> None:
    script = f"""
import os, signal, threading, r2d2
image = r2d2.Image.from_dir({image.layers[0]!r})
made = []
limits = {{"memory": "64m", "pids": 50}}
def start():
    made.append(r2d2.Container(image, name="thread-{os.getpid()}", limits=limits).start())
thread = threading.Thread(target=start)
thread.start(); thread.join()
made[0].run(["true"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, **QUIET)
    assert done.returncode == -9
    assert until(lambda: not cgroups(f"r2d2-thread-{os.getpid()}-*"), 1)


def _in_child(container: r2d2.Container, answers: Any) -> None:
    try:
        container.run(["true"])
        answers.put("it ran")
    except r2d2.ContainerClosed as error:
        answers.put(f"closed: {error}")
    container.stop()
    del container
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers.put(
            r2d2.run(["echo", "own"], image=os.environ["R2D2_TEST_IMAGE"], capture_output=True).stdout
        )


def test_multiprocessing_by_fork(image: r2d2.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D2_TEST_IMAGE", image.layers[0])
    context = multiprocessing.get_context("fork")
    with r2d2.Container(image) as container:
        program = container.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        answers = context.SimpleQueue()
        worker = context.Process(target=_in_child, args=(container, answers))
        worker.start()
        assert "fork" in answers.get(), "a copy of the object is dead"
        assert answers.get() == b"own\n", "a container of its own works there"
        worker.join()
        worker.close()
        assert program.communicate(b"x") == (b"x", None), "and did no harm here"
        assert container.run(["true"], **QUIET).returncode == 0
        answers.close()


def _spawned(layer: str, answers: Any) -> None:
    answers.put(r2d2.run(["echo", "own"], image=layer, capture_output=True).stdout)


def test_multiprocessing_by_spawn(image: r2d2.Image) -> None:
    code = """
import multiprocessing, sys, r2d2, subprocess
sys.path.insert(0, sys.argv[2])
from test_lifetime import _spawned
if __name__ == "__main__":
    with r2d2.Container(sys.argv[1]) as container:
        context = multiprocessing.get_context("spawn")
        answers = context.SimpleQueue()
        worker = context.Process(target=_spawned, args=(sys.argv[1], answers))
        worker.start()
        assert answers.get() == b"own\\n"
        worker.join()
        assert container.run(["true"]).returncode == 0
"""
    command = [sys.executable, "-c", code, image.layers[0], str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_outlives_the_owner_keeps_nothing_alive(image: r2d2.Image) -> None:
    # A pipe as lifeline would be held open by the worker.
    script = """
import os, signal, sys, time, r2d2
container = r2d2.Container(sys.argv[1]).start()
worker = os.fork()
if worker == 0:
    os.close(1)
    time.sleep(1000)
print(worker, container.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, image.layers[0]], stdout=subprocess.PIPE, check=False
    )
    worker, init = map(int, done.stdout.split())
    try:
        assert until(lambda: ended(init), 1)
        assert stat(worker) is not None
    finally:
        os.kill(worker, signal.SIGKILL)


def test_forgotten_container_is_ended_with_a_warning(image: r2d2.Image) -> None:
    kept = [r2d2.Container(image).start()]
    pid = kept[0].pid
    with pytest.warns(ResourceWarning, match="unclosed"):
        kept.clear()
    assert stat(pid) is None


def test_the_interpreter_ends_with_running_containers(image: r2d2.Image) -> None:
    script = """
import sys, r2d2
kept = [r2d2.Container(sys.argv[1]).start() for _ in range(3)]
programs = [container.popen(["sleep", "900"]) for container in kept]
print(*(container.pid for container in kept))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, image.layers[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pids = done.stdout.split()
    assert len(pids) == 3
    assert until(lambda: all(ended(pid) for pid in pids), 1)


class Alarm:
    """Raises KeyboardInterrupt in the main thread, once, after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def _interrupt(attempt: Callable[[], object], longest: float, *, always: bool) -> None:
    """Interrupts many attempts, each at another instant."""
    choose = random.Random(7)
    raised = 0
    for _ in range(INTERRUPTS):
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
            # Between a constructor's return and the with statement the object is collected, as a file is.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                with Alarm(0.0001 + choose.random() * longest):
                    attempt()
                    while always:
                        signal.pause()
            except KeyboardInterrupt:
                raised += 1
        gc.collect()
        assert until(lambda: not children(), 2), children()
    assert raised == INTERRUPTS if always else raised > INTERRUPTS // 4, raised


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_run(image: r2d2.Image) -> None:
    _interrupt(lambda: r2d2.run(["sleep", "900"], image=image, **QUIET), 0.02, always=True)
    _interrupt(lambda: r2d2.run(["true"], image=image, **QUIET), 0.006, always=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_start(image: r2d2.Image) -> None:
    def start_and_stop() -> None:
        with r2d2.Container(image):
            pass

    _interrupt(start_and_stop, 0.005, always=False)


@needs("cgroup")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_start_with_limits(image: r2d2.Image) -> None:
    def start_and_stop() -> None:
        with r2d2.Container(image, limits={"memory": "64m", "pids": 50}):
            pass

    _interrupt(start_and_stop, 0.02, always=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_exec(image: r2d2.Image) -> None:
    choose = random.Random(8)
    raised = 0
    with r2d2.Container(image) as container:
        for _ in range(INTERRUPTS):
            try:
                with Alarm(0.0001 + choose.random() * 0.01):
                    container.run(["sleep", "900"], **QUIET)
            except KeyboardInterrupt:
                raised += 1
            assert raised
        assert raised == INTERRUPTS
        assert container.run(["echo", "well"], stdout=subprocess.PIPE).stdout == b"well\n"
        listing = container.run(["ps"], capture_output=True, text=True).stdout
        assert "sleep 900" not in listing, "as subprocess.run, it kills what it waited for"


def test_interrupt_reaches_every_wait(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        program = container.popen(["sleep", "900"], **QUIET)
        waits: list[Callable[[], object]] = [program.wait, container.wait, program.communicate]
        if has("cgroup"):
            container.pause()
            waits.append(lambda: container.run(["true"], **QUIET))
        for wait in waits:
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt), Alarm(0.05):
                wait()
            assert time.monotonic() - began < 1
        container.resume()
        program.kill()
        program.wait()


# The caller's own affairs


def test_the_caller_is_left_alone(image: r2d2.Image) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: seen.append(number))

    def state() -> tuple[object, ...]:
        status = Path("/proc/self/status").read_text()
        names = [
            "Umask",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "Uid",
            "Gid",
            "Groups",
            "CapEff",
            "CapBnd",
            "NoNewPrivs",
        ]
        fields = [line for line in status.splitlines() if line.split(":")[0] in names]
        return (
            fields,
            os.getcwd(),
            dict(os.environ),
            r2d2.namespace.inspect(),
            signal.pthread_sigmask(0, ()),
        )

    def dumpable() -> bool:
        return os.access("/proc/self/environ", os.R_OK) and os.stat("/proc/self/mem").st_uid == os.geteuid()

    try:
        found = state()
        assert dumpable()
        with r2d2.Container(image) as container:
            container.run(["true"], **QUIET)
            assert state() == found
        assert state() == found
        assert dumpable()
        assert signal.getsignal(signal.SIGCHLD) is not before
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_callers_children_stay_its_own(image: r2d2.Image) -> None:
    child = subprocess.Popen(["sh", "-c", "exit 7"])
    assert until(lambda: (found := stat(child.pid)) is not None and found[1] == "Z")
    for _ in range(3):
        r2d2.run(["true"], image=image, **QUIET)
    with r2d2.Container(image) as container:
        container.run(["true"], **QUIET)
    assert child.wait() == 7


def test_a_loop_of_wait_beside_containers(image: r2d2.Image) -> None:
    # Some programs reap every child there is: supervisors, PID 1 of a Docker container.
    over = threading.Event()

    def reap() -> None:
        while not over.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        for code in range(1, 40):
            assert r2d2.run(["sh", "-c", f"exit {code}"], image=image, **QUIET).returncode == code
        with r2d2.Container(image) as container:
            assert container.run(["sh", "-c", "exit 9"], **QUIET).returncode == 9
            assert container.running
        assert not container.running
    finally:
        over.set()
        thread.join()


def test_sigchld_ignored(image: r2d2.Image) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(50):  # the end of a first program races with PID 1's own beginning
            assert r2d2.run(["sh", "-c", "exit 3"], image=image, **QUIET).returncode == 3
        with r2d2.Container(image) as container:
            assert container.run(["sh", "-c", "exit 4"], **QUIET).returncode == 4
            shown = container.run(["grep", "SigIgn", "/proc/self/status"], stdout=subprocess.PIPE, text=True)
            assert int(shown.stdout.split()[1], 16) == 0, "and inside nothing is ignored"
        assert not container.running
    finally:
        signal.signal(signal.SIGCHLD, before)


def _in_a_fresh_interpreter(image: r2d2.Image, code: str, **keywords: Any) -> str:
    head = "import os, subprocess, sys, r2d2\nimage = r2d2.Image.from_dir(sys.argv[1])\n"
    command = [sys.executable, "-c", head + code, image.layers[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_closed_standard_descriptors(image: r2d2.Image, tmp_path: Path) -> None:
    code = """
for number in (0, 1, 2):
    os.close(number)
shell = ["sh", "-c", "ls -l /proc/self/fd; cat; echo out; echo err >&2"]
done = r2d2.run(shell, image=image, capture_output=True)
with r2d2.Container(image) as container:
    code = container.run(["sh", "-c", "echo nobody hears it; exit 5"]).returncode
with open(sys.argv[2], "w") as file:
    file.write(f"{code} {done.returncode} {done.stdout!r} {done.stderr!r}")
"""
    out = tmp_path / "out"
    head = "import os, subprocess, sys, r2d2\nimage = r2d2.Image.from_dir(sys.argv[1])\n"
    command = [sys.executable, "-c", head + code, image.layers[0], str(out)]
    assert subprocess.run(command, check=False).returncode == 0
    text = out.read_text()
    assert text.startswith("5 0 b'")
    assert "\\nout\\n'" in text
    assert text.endswith("err\\n'")
    assert text.count("->") == 3 or text.count("->") == 4, "no more than the three, and ls's own directory"


def test_a_working_directory_that_was_removed(image: r2d2.Image, tmp_path: Path) -> None:
    code = """
os.mkdir(sys.argv[1] + "/../gone-" + str(os.getpid())) if False else None
import tempfile
gone = tempfile.mkdtemp(); os.chdir(gone); os.rmdir(gone)
print(r2d2.run(["pwd"], image=image, capture_output=True, text=True).stdout.strip())
"""
    assert _in_a_fresh_interpreter(image, code) == "/\n"
    assert tmp_path


def test_the_callers_umask_does_not_show(image: r2d2.Image) -> None:
    code = """
os.umask(0o777)
shell = "umask; stat -c %a / /etc /dev /dev/null /tmp 2>/dev/null; touch /a; stat -c %a /a"
print(r2d2.run(["sh", "-c", shell], image=image, capture_output=True, text=True).stdout.split())
"""
    first = _in_a_fresh_interpreter(image, code)
    assert first == _in_a_fresh_interpreter(image, code.replace("0o777", "0o022"))
    assert "'0022'" in first


def test_few_descriptors(image: r2d2.Image) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with r2d2.Container(image) as container:
    programs = []
    try:
        while True:
            programs.append(container.popen(["sleep", "900"], stdin=-3, stdout=-3, stderr=-3))
    except OSError as error:
        print(error.errno, len(programs) > 5)
    for program in programs:
        program.kill()
        program.wait()
    del programs, program
    print(container.run(["echo", "well"], capture_output=True, text=True).stdout)
"""
    assert _in_a_fresh_interpreter(image, code) == "24 True\nwell\n\n"


def test_every_descriptor_closes_at_exec(image: r2d2.Image) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with r2d2.Container(image) as container:
        program = container.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in map(int, set(os.listdir("/proc/self/fd")) - before):
            try:
                link = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            assert not os.get_inheritable(number), link
        program.communicate(b"")


def test_many_lives_leave_no_descriptor(image: r2d2.Image) -> None:
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(30):
        with r2d2.Container(image) as container:
            container.run(["true"], **QUIET)
            with pytest.raises(FileNotFoundError):
                container.run(["missing"], **QUIET)
        with pytest.raises(r2d2.R2d2Error):
            r2d2.Container(image, mounts=["/etc/passwd:/bin/sh/below"]).start()
    del container
    assert count() == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
