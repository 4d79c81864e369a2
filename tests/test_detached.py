"""Detached containers: they outlive their starter, are found again and never mistaken, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import r2d2
from _proc import cgroups, until
from r2d2 import _core, statedir
from r2d2.detached import Detached

pytestmark = pytest.mark.usefixtures("runtime")


def started(script: str) -> subprocess.Popen[str]:
    """A process that starts a detached container and goes on."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )


def dead(pid: int) -> bool:
    """Whether there is no such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_life(runtime: Path) -> None:
    with Detached.start(["sh", "-c", "echo out; echo err >&2; exec sleep 1000"], name="one") as container:
        assert container.running
        assert container.status == "running"
        assert container.returncode is None
        assert [each.name for each in Detached.list()] == ["one"]
        assert Detached.get("on").pid == container.pid
        done = Detached.get("one").run(["hostname"], capture_output=True, text=True)
        assert done.stdout == "r2d2\n"
        until(lambda: b"err" in b"".join(container.logs()), 5)
        assert b"".join(container.logs()) == b"out\nerr\n"
        assert container.stop() == -signal.SIGTERM
        assert not container.running
        assert Detached.list() == []
        assert [each.name for each in Detached.list(all=True)] == ["one"]
        assert container.returncode == -signal.SIGTERM
        with pytest.raises(r2d2.ContainerClosed):
            container.run(["true"])
        with pytest.raises(r2d2.ContainerClosed):
            container.kill(15)
        assert container.stop() == -signal.SIGTERM
    assert Detached.list(all=True) == []
    assert not runtime.exists()


def test_it_outlives_a_killed_starter() -> None:
    starter = started("""
        import r2d2, time
        limits = {"pids": 50, "best_effort": True}
        print(r2d2.Detached.start(["sleep", "1000"], name="x", limits=limits).pid, flush=True)
        time.sleep(1000)
    """)
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    container = Detached.get("x")
    assert container.pid == pid
    assert container.run(["echo", "still"], capture_output=True, text=True).stdout == "still\n"
    container.remove(force=True)
    assert until(lambda: dead(pid), 2)
    assert until(lambda: not any("r2d2-x" in group for group in cgroups()), 2)


def test_it_outlives_the_thread_that_started_it() -> None:
    made: list[Detached] = []
    thread = threading.Thread(target=lambda: made.append(Detached.start(["sleep", "1000"])))
    thread.start()
    thread.join()
    time.sleep(0.05)
    with made[0] as container:
        assert container.running


def test_a_starter_killed_half_way_leaves_nothing(runtime: Path) -> None:
    """Up to the moment at which the state is written, the container ends with its starter."""
    starter = started("""
        import r2d2, time
        from r2d2 import statedir
        def write(self, state):
            print(state.pid, flush=True)
            time.sleep(1000)
        statedir.Place.write = write
        r2d2.Detached.start(["sleep", "1000"], name="x", limits={"pids": 50, "best_effort": True})
    """)
    pid = int(starter.stdout.readline())
    assert Detached.list(all=True) == []
    with pytest.raises(r2d2.ImageNotFound, match="being started"):
        Detached.get("x")
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert until(lambda: dead(pid), 2)
    assert until(lambda: not any("r2d2-x" in group for group in cgroups()), 2)
    os.utime(runtime / "x", (0, 0))
    assert Detached.list(all=True) == []
    assert not runtime.exists()


def test_killed_at_random_instants(runtime: Path) -> None:
    """Whenever the starter is killed, the container is either listed or not there."""
    for wait in range(12):
        starter = started("""
            import r2d2
            print(flush=True)
            r2d2.Detached.start(["sleep", "1000"], name="x")
            print(flush=True)
        """)
        starter.stdout.readline()
        time.sleep(wait * 0.003)
        starter.kill()
        starter.wait()
        starter.stdout.close()

        def gone() -> bool:
            if (runtime / "x").exists():
                os.utime(runtime / "x", (0, 0))
            for each in Detached.list(all=True):
                each.remove(force=True)
            return not runtime.exists() or not list(runtime.iterdir())

        assert until(gone, 5)  # the child that is about to be killed holds the lock a moment longer
        assert until(lambda: not running_inits(), 2)
    if runtime.exists():
        runtime.rmdir()


def running_inits() -> list[int]:
    """PID 1s without a parent but the machine's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, fields = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
                environment = os.stat(entry).st_uid == os.geteuid()
            except OSError:
                continue
            if name == "r2d2-init" and fields.split()[:2] == ["S", "1"] and environment:
                found.append(int(entry.name))
    return found


def test_end_of_the_main_program_is_the_end() -> None:
    with Detached.start(["sh", "-c", "exit 7"]) as container:
        assert container.wait(10) == 7
        assert container.returncode == 7
        assert Detached.get(container.name).returncode == 7
    with Detached.start(["sleep", "1000"]) as container:
        container.kill()
        assert container.wait(10) == -9
    with Detached.start(["sleep", "1000"]) as container, pytest.raises(TimeoutError):
        container.wait(0.01)


def test_stop_asks_then_insists() -> None:
    with Detached.start(
        ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"]
    ) as container:
        until(lambda: b"up" in b"".join(container.logs()), 5)
        assert container.stop() == 3
    with Detached.start(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"]) as container:
        until(lambda: b"up" in b"".join(container.logs()), 5)
        began = time.monotonic()
        assert container.stop(0.2) == -9
        assert 0.2 <= time.monotonic() - began < 5


def test_without_a_main_program_it_waits() -> None:
    with Detached.start(name="idle") as container:
        assert container.run(["sh", "-c", "exit 4"]).returncode == 4
        assert container.running
        began = time.monotonic()
        assert container.stop() == -9
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("script", ["sleep 0.2", "true"])
def test_remove_by_itself(script: str, runtime: Path) -> None:
    container = Detached.start(["sh", "-c", f"{script}; exit 6"], remove=True, name="gone")
    assert container.wait() == 6
    assert until(lambda: Detached.list(all=True) == [], 5)
    assert until(lambda: not (runtime / "gone").exists(), 5)
    statedir.remove("gone")


def test_a_failed_start_leaves_nothing(runtime: Path) -> None:
    for remove in (False, True):
        with pytest.raises(FileNotFoundError):
            Detached.start(["no-such-program"], remove=remove)
        assert not runtime.exists()
    with pytest.raises(r2d2.ImageNotFound):
        Detached.start(["true"], image="/no/such/directory")
    with pytest.raises(r2d2.SpecError, match="name"):
        Detached.start(["true"], name="../escape")
    with Detached.start(name="taken"):
        with pytest.raises(r2d2.SpecError, match="taken"):
            Detached.start(name="taken")
        assert Detached.get("taken").running


def test_not_removed_while_it_runs() -> None:
    with Detached.start() as container:
        with pytest.raises(r2d2.SpecError, match="runs"):
            container.remove()
        assert container.running
    with pytest.raises(r2d2.ImageNotFound, match="none of this name"):
        Detached.get(container.name)
    container.remove()


def test_what_runs_inside_survives_the_connection() -> None:
    with Detached.start() as container:
        with container.attach() as attached:
            attached.popen(
                ["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            ).returncode = 0
        assert "sleep" in container.run(["ps", "-e"], capture_output=True, text=True).stdout
        with container.attach() as attached:
            first = attached.popen(["sleep", "1000"])
            with container.attach() as other, other.popen(["sleep", "1000"]) as second:
                second.terminate()
                assert second.wait(10) == -15
            assert first.poll() is None
            first.kill()
            assert first.wait(10) == -9


def test_terminal() -> None:
    with Detached.start() as container, container.popen(["sh", "-c", "tty; exit 2"], tty=True) as process:
        assert os.read(process.tty.fileno(), 100) == b"/dev/pts/0\r\n"
        assert process.wait(10) == 2


def test_environment_and_directory_are_remembered() -> None:
    with Detached.start(env={"A": "b c"}, workdir="/usr", hostname="deep") as container:
        done = Detached.get(container.name).run(
            ["sh", "-c", "echo $A; pwd; hostname"], capture_output=True, text=True
        )
        assert done.stdout == "b c\n/usr\ndeep\n"
        shown = container.inspect()
        json.dumps(shown)
        assert shown["hostname"] == "deep"
        assert shown["status"] == "running"
        assert shown["image"]["name"] == "host"


def test_follow() -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.05; done"
    with Detached.start(["sh", "-c", script]) as container:
        assert b"".join(container.logs(follow=True)) == b"1\n2\n3\n"
        assert container.inspect()["log_bytes"] == 6


def change(runtime: Path, container: str, /, **fields: object) -> None:
    """Rewrites fields of a state file."""
    file = runtime / container / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_pid_reuse_hits_no_stranger(runtime: Path) -> None:
    """Somebody else has the pid: neither is the container shown as running, nor is the stranger signalled."""
    container = Detached.start(name="old")
    pid = container.pid
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        change(runtime, "old", pid=stranger.pid)
        old = Detached.get("old")
        assert not old.running
        with pytest.raises(r2d2.ContainerClosed):
            old.kill()
        assert old.stop() == -9
        old.remove(force=True)
        assert stranger.poll() is None
        stranger.kill()
    container.kill()
    assert until(lambda: dead(pid), 5)


def test_other_start_time_namespace_or_boot_is_another_process(runtime: Path) -> None:
    with Detached.start(name="x") as container:
        state = container._state
        for field, value in {
            "start_time": state.start_time + 1,
            "pid_namespace": state.pid_namespace + 1,
            "boot": "another",
            "pid": 1,
        }.items():
            change(runtime, "x", **{field: value})
            assert not Detached.get("x").running, field
            change(runtime, "x", **{field: getattr(state, field)})
        assert Detached.get("x").running
    assert _core.find(-1, 0, 0) is None
    assert _core.find(2**31 - 1, 0, 0) is None


HOSTILE = {
    "empty": b"",
    "no json": b"{",
    "no object": b"[1]",
    "no version": b'{"name": "x"}',
    "deep": b"[" * 100_000,
    "huge": b" " * (2 << 20),
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_states(what: str, runtime: Path) -> None:
    with Detached.start(name="good") as container:
        (runtime / "x").mkdir(mode=0o700)
        (runtime / "x" / "state.json").write_bytes(HOSTILE[what])
        assert [each.name for each in Detached.list(all=True)] == ["good"]
        with pytest.raises(r2d2.R2d2Error, match="cannot be read"):
            Detached.get("x")
        assert container.running
        statedir.remove("x")


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "1"}, {"pid": -1}, {"pid": 1 << 40}, {"pid": True}, {"start_time": 1.5}, {"args": "sleep"},
        {"args": [1]}, {"kept": []}, {"kept": {}}, {"kept": {"image": 1}},
        {"kept": {"image": ["host", [1], "", []]}}, {"name": "other"}, {"version": 2}, {"created": "now"},
        {"boot": 0}, {"remove": 1}, {"pid_namespace": -1},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_fields(fields: dict[str, object], runtime: Path) -> None:
    with Detached.start(name="x") as container:
        before = (runtime / "x" / "state.json").read_text()
        change(runtime, "x", **fields)
        assert Detached.list(all=True) == []
        with pytest.raises(r2d2.R2d2Error, match="cannot be read"):
            Detached.get("x")
        (runtime / "x" / "state.json").write_text(before)
        assert container.running


def test_links_and_strangers_directories_are_refused(runtime: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    runtime.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        Detached.start(["true"])
    assert not list(elsewhere.iterdir())
    runtime.unlink()
    runtime.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="0700"):
        Detached.start(["true"])
    runtime.chmod(0o700)
    with Detached.start(name="x"):
        (runtime / "link").symlink_to(runtime / "x")
        assert [each.name for each in Detached.list()] == ["x"]
        state = runtime / "x" / "state.json"
        text = state.read_text()
        state.unlink()
        (tmp_path / "state").write_text(text)
        state.symlink_to(tmp_path / "state")
        assert Detached.list() == []
        state.unlink()
        state.write_text(text)
        (runtime / "link").unlink()


def test_default_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("R2D2_RUNTIME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert statedir.base_path() == str(tmp_path / "r2d2")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    assert statedir.base_path() in {f"/run/user/{os.geteuid()}/r2d2", f"/tmp/r2d2-{os.geteuid()}"}


def test_several_at_once() -> None:
    with Detached.start(["sleep", "1000"]) as one, Detached.start(["sleep", "1000"]) as two:
        assert [each.name for each in Detached.list()] == [one.name, two.name]
        one.kill()
        one.wait()
        assert two.running


def test_its_socket_is_out_of_reach_inside(runtime: Path) -> None:
    """The default directories are private to each container of the host image: no socket is found there."""
    with Detached.start() as container:
        done = container.run(["find", "/run", "/tmp", "-name", "control"], capture_output=True, text=True)
        assert done.stdout == ""
        assert (runtime / container.name / "control").is_socket()
