"""The command line, as people and scripts use it: real processes, their output and exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pexpect
import pytest

import r2d2
from _proc import until
from r2d2 import cli, statedir

if TYPE_CHECKING:
    from collections.abc import Iterator

R2D2 = (sys.executable, "-m", "r2d2")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, empty at the end."""
    path = tmp_path / "runtime"
    monkeypatch.setenv("R2D2_RUNTIME", str(path))
    yield path
    left = list(path.iterdir()) if path.exists() else []
    for each in r2d2.Detached.list(all=True):
        each.remove(force=True)
    assert not left


def r2d2_(*args: str | os.PathLike[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
    """One command line."""
    keywords = {"capture_output": True, "text": True, "timeout": 60, **keywords}
    if "input" not in keywords and "stdin" not in keywords:
        keywords["stdin"] = subprocess.DEVNULL
    return subprocess.run([*R2D2, *args], check=False, **keywords)


def at_terminal(*args: str, **keywords: Any) -> pexpect.spawn:
    """One command line at a terminal."""
    return pexpect.spawn(sys.executable, ["-m", "r2d2", *args], encoding="utf-8", timeout=30, **keywords)


def background(*args: str, **keywords: Any) -> subprocess.Popen[str]:
    """One command line that goes on."""
    return subprocess.Popen([*R2D2, *args], stdout=subprocess.PIPE, text=True, **keywords)


# Exit status

EXIT = {
    "0": (["run", "host", "true"], 0),
    "the command's": (["run", "host", "sh", "-c", "exit 42"], 42),
    "the command's, 255": (["run", "host", "sh", "-c", "exit 255"], 255),
    "SIGKILL": (["run", "host", "sh", "-c", "kill -9 $$"], 137),
    "SIGTERM": (["run", "host", "sh", "-c", "kill $$"], 143),
    "SIGSEGV": (["run", "host", "sh", "-c", "kill -11 $$"], 139),
    "missing program": (["run", "host", "no-such-program"], 127),
    "missing path": (["run", "host", "/no/such/program"], 127),
    "not executable": (["run", "host", "/etc/passwd"], 126),
    "a directory": (["run", "host", "/etc"], 126),
    "missing workdir": (["run", "-w", "/no/such", "host", "true"], 126),
    "missing image": (["run", "no-such-image", "true"], 125),
    "missing directory": (["run", "./no-such-image", "true"], 125),
    "no image": (["run"], 125),
    "unknown flag": (["run", "--no-such-flag", "host", "true"], 125),
    "unknown verb": (["no-such-verb"], 125),
    "no verb": ([], 125),
    "bad value": (["run", "--cpus", "many", "host", "true"], 125),
    "bad mount": (["run", "-v", "nowhere", "host", "true"], 125),
    "missing bind": (["run", "-v", "/no/such:/x", "host", "true"], 125),
    "bad memory": (["run", "-m", "lots", "host", "true"], 125),
    "bad user": (["run", "-u", "no-such-user", "host", "true"], 125),
    "bad capability": (["run", "--cap-add", "NO_SUCH", "host", "true"], 125),
    "bad ulimit": (["run", "--ulimit", "nofile", "host", "true"], 125),
    "long hostname": (["run", "-h", "x" * 65, "host", "true"], 125),
    "-d with -t": (["run", "-dt", "host", "true"], 125),
    "-it without a terminal": (["run", "-it", "host", "true"], 125),
    "unknown container": (["exec", "no-such-container", "true"], 125),
    "exec without a command": (["exec", "no-such-container"], 125),
    "missing program, -d": (["run", "-d", "host", "no-such-program"], 127),
    "unshare, missing": (["unshare", "-u", "no-such-program"], 127),
    "unshare, not executable": (["unshare", "-u", "/etc/passwd"], 126),
    "unshare, the command's": (["unshare", "-u", "sh", "-c", "exit 9"], 9),
    "unshare, signal": (["unshare", "-u", "sh", "-c", "kill -9 $$"], 137),
    "overlay without lowerdir": (["overlay", "-o", "upperdir=/tmp", "/mnt", "true"], 125),
    "overlay, unknown option": (["overlay", "-o", "lowerdir=/a,colour=red", "/mnt", "true"], 125),
    "rootfs of nothing": (["rootfs", "somewhere"], 125),
    "help": (["run", "--help"], 0),
    "version": (["--version"], 0),
}


@pytest.mark.parametrize("what", EXIT)
def test_exit_status(what: str, tmp_path: Path) -> None:
    args, code = EXIT[what]
    done = r2d2_(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    if code in {125, 126, 127}:
        assert done.stdout == ""
        assert done.stderr.startswith("r2d2: ")
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    assert not (tmp_path / "somewhere").exists()


def test_errors_are_short_and_have_hints() -> None:
    done = r2d2_("run", "debian", "true")
    assert done.stderr.splitlines()[0] == "r2d2: image 'debian': there is none of this name"
    assert done.stderr.splitlines()[1].startswith("hint: ")
    done = r2d2_("run", "host", "no-such-program")
    assert done.stderr.startswith("r2d2: no-such-program: No such file or directory\nhint: ")
    done = r2d2_("run", "debian", "true", env={**os.environ, "R2D2_DEBUG": "1"})
    assert "Traceback" in done.stderr


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("r2d2")
    if not script.exists():
        pytest.skip("no console script beside this interpreter")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"r2d2 {r2d2.__version__}\n"


# Flags of run


def out(*args: str, **keywords: Any) -> str:
    """Standard output of `r2d2 run`, which must succeed."""
    done = r2d2_("run", *args, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_output_is_the_commands_alone() -> None:
    done = r2d2_("run", "host", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_arguments_pass_as_they_are() -> None:
    assert out("host", "printf", "%s|", "-v", "--rm", "a b", "--", "") == "-v|--rm|a b|--||"
    assert out("host", "--", "echo", "-n") == ""
    assert out("--image", "host", "echo", "x") == "x\n"
    assert out("--image", "host", "--", "echo", "x") == "x\n"
    assert out("--", "echo", "x") == "x\n"


def test_standard_input_only_when_asked_for() -> None:
    assert out("-i", "host", "cat", input="typed") == "typed"
    assert out("host", "cat", input="typed") == ""


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "variables"
    file.write_text("# a comment\nA=from the file\nB=2\nMINE\n\n")
    text = out(
        "--env-file", str(file), "-e", "B=3", "-e", "OURS", "-e", "UNSET", "host",
        "sh", "-c", "echo $A,$B,$MINE,$OURS,${UNSET-unset}",
        env={**os.environ, "MINE": "m", "OURS": "o"},
    )  # fmt: skip
    assert text == "from the file,3,m,o,unset\n"


def test_names_and_places() -> None:
    assert out("-h", "deep", "-w", "/usr", "host", "sh", "-c", "hostname; pwd") == "deep\n/usr\n"
    assert out("--hostname=deep", "host", "hostname") == "deep\n"
    assert "192.0.2.1" in out("--add-host", "db:192.0.2.1", "host", "grep", "db", "/etc/hosts")


def test_mounts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "comma").write_text("")
    assert out("-v", f"{tmp_path}:/x", "host", "sh", "-c", "cat /x/file; echo new >/x/new") == "text"
    assert (tmp_path / "new").read_text() == "new\n"
    assert r2d2_("run", "-v", f"{tmp_path}:/x:ro", "host", "touch", "/x/more").returncode == 1
    assert out("-v", ".:/x", "host", "ls", "/x", cwd=tmp_path) == "a,b\nfile\nnew\n"
    assert (
        out("--mount", f'type=bind,"source={tmp_path}/a,b",target=/x,readonly', "host", "ls", "/x")
        == "comma\n"
    )
    assert r2d2_("run", "--mount", f"source={tmp_path},dst=/x,ro", "host", "touch", "/x/y").returncode == 1
    size = "df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2"
    assert out("--tmpfs", "/t:size=1m", "host", "sh", "-c", size) == "1024\n"
    assert out("--mount", "type=tmpfs,target=/t,tmpfs-size=2m", "host", "sh", "-c", size) == "2048\n"
    done = r2d2_("run", "--mount", "type=bind,source=/,target=/x,colour=red", "host", "true")
    assert "colour" in done.stderr
    assert r2d2_("run", "--mount", "type=tmpfs", "host", "true").returncode == 125


def test_mount_of_an_overlay(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    option = f"type=overlay,target=/x,lowerdir={tmp_path}/a:{tmp_path}/b"
    assert out("--mount", option, "host", "cat", "/x/a", "/x/b") == "ab"


def test_read_only() -> None:
    done = r2d2_("run", "--read-only", "host", "touch", "/etc/x")
    assert done.returncode == 1
    assert "Read-only" in done.stderr


def test_network() -> None:
    links = ["host", "sh", "-c", "ls /sys/class/net"]
    assert out(*links) == "lo\n"
    assert set(out("--network", "host", *links).split()) == set(os.listdir("/sys/class/net"))
    assert r2d2_("run", "--network", "moon", *links).returncode == 125


def test_capabilities() -> None:
    mask = ["host", "sh", "-c", "grep CapEff /proc/self/status | cut -f2"]
    assert int(out("--cap-drop", "ALL", *mask), 16) == 0
    assert int(out("--cap-drop", "ALL", "--cap-add", "CHOWN", *mask), 16) == 1
    assert int(out("--cap-add", "SYS_ADMIN", *mask), 16) & 1 << 21
    flag = ["host", "grep", "NoNewPrivs", "/proc/self/status"]
    assert out(*flag).split()[1] == "1"
    assert out("--security-opt", "no-new-privileges=false", *flag).split()[1] == "0"


def test_limits() -> None:
    assert out("--ulimit", "nofile=64", "host", "sh", "-c", "ulimit -n") == "64\n"
    options = ["-m", "64m", "--memory-swap", "64m", "--pids-limit", "50", "--cpus", "1.5", "--best-effort"]
    assert out(*options, "host", "echo", "ok") == "ok\n"
    assert r2d2_("run", "--memory-swap", "64m", "host", "true").returncode == 125


def test_other_images(image: r2d2.Image) -> None:
    assert out(image.layers[0], "busybox", "echo", "ok") == "ok\n"
    assert r2d2_("run", "scratch", "sh").returncode == 127
    done = r2d2_("run", "scratch")
    assert done.returncode == 125
    assert "no shell" in done.stderr


def test_user_of_the_container() -> None:
    assert out("-u", "0", "host", "id", "-u") == "0\n"
    assert out("-u", "root", "host", "id", "-un") == "root\n"


def test_without_a_command_a_shell_reads() -> None:
    assert out("-i", "host", input="hostname\n") == "r2d2\n"
    done = r2d2_("shell", input="hostname; exit 4\n")
    assert (done.stdout, done.returncode) == ("r2d2\n", 4)


# Signals and terminals


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_signals_are_forwarded(number: int, code: int) -> None:
    with background("run", "host", "sh", "-c", "echo up; exec sleep 1000") as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(20) == code


def test_a_program_may_handle_a_signal() -> None:
    script = "trap 'echo got it; exit 5' INT; echo up; while :; do sleep 0.01; done"
    with background("run", "host", "sh", "-c", script) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "got it\n"
        assert process.wait(20) == 5


def test_ctrl_c_at_a_terminal() -> None:
    child = at_terminal("run", "host", "sh", "-c", "echo up; exec sleep 1000")
    child.expect("up")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_ctrl_c_in_unshare() -> None:
    # A loop, because a shell that is interrupted just before it starts a long sleep traps only after it.
    script = "trap 'echo mine; exit 6' INT; echo up; while :; do sleep 0.1; done"
    child = at_terminal("unshare", "-u", "sh", "-c", script)
    child.expect("up")
    child.sendintr()
    child.expect("mine")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 6


def test_nohup_stays_in_force() -> None:
    ignore = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    args = [*ignore, *R2D2, "run", "host", "sh", "-c", "echo up; sleep 0.3"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 0


def test_run_at_a_terminal() -> None:
    child = at_terminal(
        "run", "-it", "host", "sh", "-c", "tty; stty size; read x; echo got $x; exit 7", dimensions=(31, 99)
    )
    child.expect("/dev/pts/0\r\n31 99\r\n")
    child.sendline("word")
    child.expect("got word")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 7


def test_a_terminal_without_input() -> None:
    assert out("-t", "host", "sh", "-c", "tty") == "/dev/pts/0\n"


def test_shell_at_a_terminal() -> None:
    child = at_terminal("shell", "-e", "PS1=in> ", "host", "/bin/sh")
    child.expect("in> ")
    child.sendline("hostname")
    child.expect("r2d2")
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_reader_that_leaves() -> None:
    """`r2d2 logs x | head -1` ends without a word."""
    r2d2_("run", "-d", "--name", "noisy", "host", "sh", "-c", "seq 200000")
    assert r2d2_("wait", "noisy").stdout == "0\n"
    command = f"{shutil.which('env')} {' '.join(R2D2)} logs noisy | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")
    r2d2_("rm", "noisy")


# Detached


def test_detached_life(runtime: Path) -> None:
    script = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.01; done"
    done = r2d2_("run", "-d", "--name", "one", "host", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    try:
        assert until(lambda: "err" in r2d2_("logs", "one").stdout, 10)
        assert r2d2_("logs", "one").stdout == "out\nerr\n"
        assert r2d2_("logs", "-n", "1", "one").stdout == "err\n"
        lines = r2d2_("ps").stdout.splitlines()
        assert lines[0].split() == ["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "PORTS"]
        assert re.fullmatch(r"one +host +sh -c 'echo out; .*… +\d+ seconds? ago +running +\d+", lines[1])
        [shown] = json.loads(r2d2_("ps", "--json").stdout)
        assert (shown["name"], shown["status"]) == ("one", "running")
        assert r2d2_("ps", "-q").stdout == "one\n"
        assert r2d2_("exec", "one", "hostname").stdout == "r2d2\n"
        assert r2d2_("exec", "one", "sh", "-c", "exit 8").returncode == 8
        assert r2d2_("exec", "one", "no-such-program").returncode == 127
        assert r2d2_("exec", "-i", "one", "cat", input="in").stdout == "in"
        done = r2d2_("exec", "-e", "A=1", "-w", "/usr", "one", "sh", "-c", "echo $A; pwd; echo $PATH")
        assert done.stdout.startswith("1\n/usr\n/")
        assert r2d2_("exec", "-d", "one", "touch", "/tmp/made").returncode == 0
        assert until(lambda: r2d2_("exec", "one", "test", "-e", "/tmp/made").returncode == 0, 10)
        [known] = json.loads(r2d2_("inspect", "one").stdout)
        assert known["args"] == ["sh", "-c", script]
        assert r2d2_("rm", "one").returncode == 125
        assert r2d2_("run", "-d", "--name", "one", "host", "true").returncode == 125
        assert r2d2_("shell", "one", input="hostname\n").stdout == "r2d2\n"
        assert r2d2_("stop", "one").stdout == "one\n"
        assert r2d2_("ps", "-q").stdout == ""
        assert "exited (3)" in r2d2_("ps", "-a").stdout
        assert r2d2_("wait", "one").stdout == "3\n"
        assert r2d2_("exec", "one", "true").returncode == 125
        assert r2d2_("kill", "one").returncode == 125
    finally:
        assert r2d2_("rm", "-f", "one").stdout == "one\n"
    assert not runtime.exists()
    assert r2d2_("rm", "one").returncode == 125
    assert r2d2_("rm", "-f", "one").returncode == 0
    assert r2d2_("ps", "-a", "--json").stdout == "[]\n"


def test_detached_with_rm(runtime: Path) -> None:
    assert r2d2_("run", "-d", "--rm", "--name", "brief", "host", "true").returncode == 0
    assert until(lambda: not (runtime / "brief").exists(), 10)
    statedir.remove("brief")


def test_detached_without_a_command_waits() -> None:
    name = r2d2_("run", "-d", "host").stdout.strip()
    assert re.fullmatch(r"host-[0-9a-f]{4}", name)
    assert r2d2_("exec", name, "true").returncode == 0
    assert r2d2_("rm", "-f", name[:7]).stdout == f"{name}\n"


def test_kill_and_several_at_once() -> None:
    for name in ("a", "b"):
        r2d2_(
            "run",
            "-d",
            "--name",
            name,
            "host",
            "sh",
            "-c",
            "trap 'exit 9' USR1; while :; do sleep 0.01; done",
        )
    done = r2d2_("kill", "-s", "USR1", "a", "missing", "b")
    assert (done.returncode, done.stdout) == (125, "a\nb\n")
    assert "missing" in done.stderr
    assert r2d2_("wait", "a", "b").stdout in {"9\n9\n", "138\n138\n", "9\n138\n", "138\n9\n"}
    assert r2d2_("kill", "-s", "NOSUCH", "a").returncode == 125
    assert r2d2_("rm", "a", "b").stdout == "a\nb\n"


def test_follow_ends_with_the_container() -> None:
    r2d2_("run", "-d", "--name", "slow", "host", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")
    assert r2d2_("logs", "-f", "slow").stdout == "1\n2\n3\n"
    assert r2d2_("logs", "-f", "-n", "1", "slow").stdout == "3\n"
    r2d2_("rm", "slow")


def test_exec_at_a_terminal() -> None:
    r2d2_("run", "-d", "--name", "term", "host")
    child = at_terminal("exec", "-it", "-e", "A=b", "term", "sh", "-c", "tty; echo $A; read x; exit $x")
    child.expect("/dev/pts/0\r\nb\r\n")
    child.sendline("5")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5
    r2d2_("rm", "-f", "term")


def test_exec_forwards_signals() -> None:
    r2d2_("run", "-d", "--name", "sig", "host")
    with background("exec", "sig", "sh", "-c", "echo up; exec sleep 1000") as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(20) == 143
    r2d2_("rm", "-f", "sig")


def test_an_unreadable_state_can_be_removed(runtime: Path) -> None:
    r2d2_("run", "-d", "--name", "x", "host", "true")
    r2d2_("wait", "x")
    (runtime / "x" / "state.json").write_text("{")
    assert r2d2_("ps", "-a", "-q").stdout == ""
    assert r2d2_("rm", "x").returncode == 125
    assert r2d2_("rm", "-f", "x").returncode == 0


# What looks


def test_diff(tmp_path: Path) -> None:
    done = r2d2_("diff", "host", "sh", "-c", "echo talk; mkdir /etc/new; echo x > /etc/new/file; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "A /etc/new\nA /etc/new/file\n", "talk\n")
    [change] = json.loads(r2d2_("diff", "--json", "host", "touch", "/etc/new").stdout)
    assert (change["path"], change["kind"]) == ("etc/new", "added")
    r2d2_("run", "-d", "--name", "d", "host")
    r2d2_("exec", "d", "touch", "/etc/made")
    assert r2d2_("diff", "d").stdout == "A /etc/made\n"
    r2d2_("rm", "-f", "d")
    assert r2d2_("diff", "missing").returncode == 125
    (tmp_path / "rootfs").mkdir()


def test_explain() -> None:
    text = r2d2_("explain").stdout
    assert "pivot_root" in text
    assert r2d2_("explain", "--script", "host", "true").stdout.startswith("#!/bin/sh")
    assert json.loads(r2d2_("explain", "--json", "-h", "deep", "host").stdout)
    assert "<table" in r2d2_("explain", "--html").stdout
    assert r2d2_("explain", "--html", "--json").returncode == 125


def test_doctor() -> None:
    done = r2d2_("doctor")
    assert done.returncode in {0, 1}
    assert "user" in done.stdout
    assert json.loads(r2d2_("doctor", "--json").stdout)


# Primitives


def test_unshare() -> None:
    assert r2d2_("unshare", "-U", "id", "-u").stdout == "0\n"
    assert r2d2_("unshare", "--uts", "sh", "-c", "hostname inner; hostname").stdout == "inner\n"
    assert (
        r2d2_("unshare", "-pf", "--mount-proc", "sh", "-c", "echo $$; echo /proc/[0-9]*").stdout
        == "1\n/proc/1\n"
    )
    text = "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/cgroup"
    inside = r2d2_("unshare", "-n", "-i", "-C", "sh", "-c", text).stdout.split()
    assert not set(inside) & {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "cgroup")}
    assert r2d2_("unshare", "-u", "-w", "/usr", "pwd").stdout == "/usr\n"
    assert r2d2_("unshare", "--mount-proc", "-p", "true").returncode == 125


def test_unshare_root(image: r2d2.Image) -> None:
    assert "busybox" in r2d2_("unshare", "-R", image.layers[0], "/bin/busybox", "ls", "/bin").stdout


def test_overlay(tmp_path: Path) -> None:
    for name in ("low:er", "upper", "merged", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "low:er" / "old").write_text("old")
    options = "lowerdir=low\\:er,upperdir=upper,workdir=work"
    done = r2d2_(
        "overlay", "-o", options, "merged", "sh", "-c", "cat old; echo new > new; exit 2", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "old"), done.stderr
    assert (tmp_path / "upper" / "new").read_text() == "new\n"
    assert not list((tmp_path / "merged").iterdir())


def test_overlay_shell_at_a_terminal(tmp_path: Path) -> None:
    for name in ("lower", "upper", "merged"):
        (tmp_path / name).mkdir()
    child = at_terminal(
        "overlay", "-o", "lowerdir=lower,upperdir=upper", "merged",
        cwd=str(tmp_path), env={**os.environ, "SHELL": "/bin/sh", "PS1": "in> "},
    )  # fmt: skip
    child.expect("in> ")
    child.sendline("echo x > made; stty size; exit 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3
    assert (tmp_path / "upper" / "made").exists()


def test_rootfs(tmp_path: Path) -> None:
    done = r2d2_("rootfs", "--etc", "root", "sh", "cat", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "PT_INTERP" in done.stdout
    assert out("./root", "sh", "-c", "cat /etc/passwd", cwd=tmp_path).startswith("root:")
    files = json.loads(r2d2_("rootfs", "--json", "other", "sh", cwd=tmp_path).stdout)
    assert any(file["path"].endswith("/sh") for file in files)
    done = r2d2_("rootfs", "root", "no-such-program", cwd=tmp_path)
    assert done.returncode == 125


# Demo


def test_demo() -> None:
    done = r2d2_("demo")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "\033" not in text
    assert re.search(r"host name +\S+ +r2d2\n", text)
    assert re.search(r"1 +r2d2-init +PID \d+ outside", text)
    for kind in ("user", "mount", "pid", "uts", "ipc", "net", "cgroup"):
        assert re.search(rf"^ +{kind} +\d+ +\d+ +own$", text, re.MULTILINE), kind
    for line in ("A /home/poem.txt", "C /home/diary.txt", "D /home/secret.txt", "as it was"):
        assert line in text
    assert "r2d2 shell" in text
    assert max(map(len, text.splitlines())) <= 110


def test_demo_in_colour_at_a_terminal_only() -> None:
    child = at_terminal("demo", env={**os.environ, "TERM": "xterm"})
    child.expect(pexpect.EOF)
    child.close()
    assert "\033[1;36m" in child.before
    child = at_terminal("demo", env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"})
    child.expect(pexpect.EOF)
    child.close()
    assert "\033[1;36m" not in child.before


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_parses(shell: str) -> None:
    script = r2d2_("completion", shell).stdout
    for word in ("run", "inspect", "completion", "pids-limit", "read-only"):
        assert word in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_bash_completes() -> None:
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash")
    script = r2d2_("completion", "bash").stdout

    def completed(*words: str) -> set[str]:
        setting = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
        text = f'{script}\n{setting}\nlast=""\n_r2d2\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
        return set(
            subprocess.run([bash], input=text, capture_output=True, text=True, check=True).stdout.split()
        )

    assert completed("r2d2", "unsh") == {"unshare"}
    assert {"run", "ps", "demo"} <= completed("r2d2", "''")
    assert completed("r2d2", "run", "--read") == {"--read-only"}
    assert completed("r2d2", "run", "--network", "no") == {"none"}
    assert completed("r2d2", "completion", "fi") == {"fish"}
    assert "minimal" in completed("r2d2", "run", "mini")


def test_importing_the_command_line_is_quick() -> None:
    """Listing verbs must not import what carries them out."""
    code = "import sys; from r2d2.cli.parser import build; build(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"r2d2._core", "r2d2.container", "json", "tempfile", "asyncio"} & set(done.stdout.split())


def test_main_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-such-image", "true"]) == 125
    assert capsys.readouterr().err.startswith("r2d2: ")
    assert cli.main(["ps"]) == 0
