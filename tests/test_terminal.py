"""Terminals: real ones, of the container's devpts, with job control, sizes and a restored caller."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pexpect
import pytest

import r2d2

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@pytest.fixture
def container() -> Iterator[r2d2.Container]:
    with r2d2.Container("host") as c:
        yield c


def read_all(process: r2d2.Process) -> str:
    """All that a program writes to its terminal."""
    text = b""
    while True:
        try:
            data = os.read(process.tty.fileno(), 4096)
        except OSError:  # EIO: no slave is open any more
            return text.decode()
        text += data


def python(script: str, **keywords: Any) -> pexpect.spawn:
    """A Python program at a terminal of its own."""
    return pexpect.spawn(
        sys.executable, ["-c", textwrap.dedent(script)], encoding="utf-8", timeout=20, **keywords
    )


def test_it_is_a_terminal_of_the_container(container: r2d2.Container) -> None:
    with container.popen(["sh", "-c", "tty; ls /dev/pts; echo err >&2; exit 3"], tty=True) as process:
        text = read_all(process)
        assert process.wait() == 3
    assert text.split() == ["/dev/pts/0", "0", "ptmx", "err"]
    assert process.tty.closed


def test_it_is_the_controlling_terminal(container: r2d2.Container) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo ok >/dev/tty"
    with container.popen(["sh", "-c", script], tty=True) as process:
        assert read_all(process).strip() == "ok"


def test_size(container: r2d2.Container) -> None:
    with container.popen(["sh", "-c", "stty size; read _; stty size"], tty=True, size=(30, 90)) as process:
        assert os.read(process.tty.fileno(), 100) == b"30 90\r\n"
        process.resize(11, 22)
        process.tty.write(b"\n")
        assert "11 22" in read_all(process)


def test_a_change_of_size_is_signalled(container: r2d2.Container) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    with container.popen(["sh", "-c", script], tty=True, size=(24, 80)) as process:
        assert os.read(process.tty.fileno(), 100) == b"ready\r\n"
        process.resize(5, 6)
        assert "5 6" in read_all(process)


def test_ctrl_c_by_hand(container: r2d2.Container) -> None:
    with container.popen(["sleep", "1000"], tty=True) as process:
        process.tty.write(b"\x03")
        assert process.wait(10) == -signal.SIGINT


def test_hangup_when_our_end_closes(container: r2d2.Container) -> None:
    with container.popen(["sleep", "1000"], tty=True) as process:
        process.tty.close()
        assert process.wait(10) == -signal.SIGHUP


def test_standard_descriptors_exclude_it(container: r2d2.Container) -> None:
    with pytest.raises(r2d2.SpecError, match="stdout"):
        container.popen(["true"], tty=True, stdout=subprocess.PIPE)
    with pytest.raises(r2d2.SpecError, match="popen"):
        container.run(["true"], tty=True)
    with container.popen(["true"]) as process, pytest.raises(ValueError, match="tty=True"):
        process.resize(1, 1)


def test_without_a_devpts_it_is_an_error(container: r2d2.Container) -> None:
    container.run(["sh", "-c", "umount /dev/pts || mount"], stderr=subprocess.DEVNULL)
    with r2d2.Container("host", cap_add=["SYS_ADMIN"]) as privileged:
        privileged.run(["umount", "/dev/pts"], check=True)
        with pytest.raises(r2d2.SetupNotFoundError, match="/dev/pts/ptmx"):
            privileged.popen(["true"], tty=True)


def test_a_false_ptmx_is_not_opened() -> None:
    """The container's root puts a named pipe where the multiplexer was: opening it would block for ever."""
    with r2d2.Container("host", cap_add=["SYS_ADMIN"]) as c:
        c.run(
            ["sh", "-c", "umount /dev/pts && mount -t tmpfs x /dev/pts && mkfifo /dev/pts/ptmx"], check=True
        )
        with pytest.raises(r2d2.SetupError, match="ENODEV"):
            c.popen(["true"], tty=True)
        c.run(["sh", "-c", "rm /dev/pts/ptmx && ln -s /dev/null /dev/pts/ptmx"], check=True)
        with pytest.raises(r2d2.SetupError, match=r"ELOOP|ENODEV"):
            c.popen(["true"], tty=True)


def test_nothing_leaks(container: r2d2.Container) -> None:
    with contextlib.suppress(FileNotFoundError):  # to say why, the container's files are opened: once
        container.popen(["no-such-program"])
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with container.popen(["true"], tty=True) as process:
            process.wait()
    del process
    with contextlib.suppress(FileNotFoundError):
        container.popen(["no-such-program"], tty=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_writes_to_the_callers_terminal(image: r2d2.Image) -> None:
    """Not the program's exit status, either: it was for the descriptor whose number standard input had."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        for _ in range(300):
            r2d2.run(["true"], image=image, stdin=theirs, **quiet)
        with pytest.raises(BlockingIOError):
            os.read(ours, 100)
        r2d2.run(["sh", "-c", "echo seen >&0"], image=image, stdin=theirs, **quiet)
        assert os.read(ours, 100) == b"seen\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_shell_from_a_pipe() -> None:
    script = "import r2d2\nwith r2d2.Container() as c: raise SystemExit(c.shell())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="hostname\ntty\nexit 7\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("r2d2\nnot a tty\n", 7)


SHELL = """
    import sys, termios, r2d2
    before = termios.tcgetattr(0)
    with r2d2.Container() as c:
        try:
            code = c.shell({args}, env={{"PS1": "in> "}})
        finally:
            print("restored", termios.tcgetattr(0) == before)
    print("code", code)
"""


def test_shell_with_job_control() -> None:
    child = python(SHELL.format(args=["/bin/bash", "--norc", "--noediting"]), dimensions=(33, 101))
    child.expect_exact("in> ")
    child.sendline("stty size; tty")
    child.expect(r"33 101\r\n/dev/pts/0")
    child.sendline("sleep 1000")
    child.expect_exact("sleep 1000")
    time.sleep(0.2)  # until bash has put it into the foreground: nothing tells
    child.send("\x1a")
    child.expect("Stopped")
    child.sendline("fg")
    child.expect(r"fg\r\nsleep 1000")
    time.sleep(0.2)
    child.send("\x03")
    child.expect_exact("in> ")
    child.sendline("echo status $?")
    child.expect("status 130")
    child.setwinsize(44, 55)
    child.expect_exact("in> ")
    child.sendline("stty size")
    child.expect("44 55")
    child.sendline("exit 9")
    child.expect("restored True")
    child.expect("code 9")
    child.expect(pexpect.EOF)


def test_end_of_file_is_typed() -> None:
    child = python(SHELL.format(args=["cat"]))
    child.sendline("hello")
    child.expect("hello\r\nhello")
    child.send("\x04")
    child.expect("restored True")
    child.expect("code 0")
    child.expect(pexpect.EOF)


def test_much_output_arrives_whole() -> None:
    child = python(SHELL.format(args=["seq", "30000"]))
    child.expect("restored True")
    assert child.before.split()[-1] == "30000"
    assert len(child.before.split()) == 30000
    child.expect(pexpect.EOF)


def test_restored_after_an_exception() -> None:
    child = python(
        """
        import signal, termios, r2d2
        before = termios.tcgetattr(0)
        def fail(*_): raise RuntimeError("out")
        signal.signal(signal.SIGUSR1, fail)
        mine = lambda *_: print("mine")
        signal.signal(signal.SIGWINCH, mine)
        with r2d2.Container() as c:
            try:
                c.shell(["sh", "-c", "echo up; sleep 1000"])
            except RuntimeError:
                print("restored", termios.tcgetattr(0) == before, signal.getsignal(signal.SIGWINCH) is mine)
        """
    )
    child.expect("up")
    os.kill(child.pid, signal.SIGUSR1)
    child.expect("restored True True")
    child.expect(pexpect.EOF)


def test_from_another_thread_the_size_follows() -> None:
    child = python(
        """
        import threading, r2d2
        with r2d2.Container() as c:
            t = threading.Thread(target=c.shell, args=(["sh", "-c", "echo up; read _; stty size"],))
            t.start(); t.join()
        """,
        dimensions=(20, 40),
    )
    child.expect("up")
    child.setwinsize(21, 41)
    time.sleep(0.6)  # it looks four times a second
    child.sendline("")
    child.expect("21 41")
    child.expect(pexpect.EOF)


def test_what_stays_behind_does_not_hold_the_shell() -> None:
    child = python(SHELL.format(args=["sh", "-c", "trap '' HUP; sleep 1000 & echo done"]))
    child.expect("code 0")
    child.expect(pexpect.EOF)
    assert child.wait() == 0


def test_no_shell_is_said_so(tmp_path: pathlib.Path) -> None:
    with r2d2.Container(tmp_path) as c, pytest.raises(r2d2.ImageNotFound, match="no shell"):
        c.shell()


def test_unread_output_does_not_block_typing(container: r2d2.Container) -> None:
    with container.popen(["cat"], tty=True) as process:
        os.set_blocking(process.tty.fileno(), False)
        process.tty.write(b"x\n")
        assert select.select([process.tty], [], [], 10)[0]
        assert termios.tcgetwinsize(process.tty.fileno())
        process.tty.write(b"\x04")
        assert process.wait(10) == 0
