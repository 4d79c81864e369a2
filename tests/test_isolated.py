"""``@pytest.mark.isolated``, run by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from _needs import needs
from _proc import until
from _pytests import QUIET, run, running

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run"]
pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)


ISOLATED = """
    import os, socket, subprocess, time, unittest, warnings
    import pytest

    pytestmark = pytest.mark.isolated
    PORT = 18080

    @pytest.fixture
    def server():
        with socket.create_server(("127.0.0.1", PORT)) as server:
            yield server

    @pytest.mark.parametrize("number", range(4))
    def test_fixed_port(server, number):
        time.sleep(0.3)
        socket.create_connection(("127.0.0.1", PORT)).close()

    def test_view(tmp_path):
        assert os.getpid() == 2
        assert {int(name) for name in os.listdir("/proc") if name.isdigit()} == {1, 2}
        assert not os.path.exists("/tmp/r2d2-marker")
        open("/tmp/r2d2-marker-inside", "w").close()
        (tmp_path / "file").write_text("x")
        assert os.listdir("/dev/shm") == []
        assert os.getuid() == UID
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert os.path.samefile(os.getcwd(), CWD)

    @pytest.mark.isolated(root=True, net=False, tmp=False)
    def test_options():
        assert os.getuid() == 0
        assert os.path.exists("/tmp/r2d2-marker")
        assert os.readlink("/proc/self/ns/net") == NET
"""


def test_isolated_tests_do_not_meet(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    marker = Path("/tmp/r2d2-marker")
    marker.touch()
    try:
        head = (
            f"UID = {os.getuid()}; CWD = {str(pytester.path)!r}; NET = {os.readlink('/proc/self/ns/net')!r}\n"
        )
        (pytester.path / "test_it.py").write_text(
            head + "\n".join(line[4:] for line in ISOLATED.splitlines())
        )
        run().assert_outcomes(passed=6)
        run("-n", "2").assert_outcomes(passed=6)
        assert not Path("/tmp/r2d2-marker-inside").exists()
        # The control: without the marker two workers do meet on the port.
        text = (pytester.path / "test_it.py").read_text().replace("pytestmark =", "unused =")
        (pytester.path / "test_it.py").write_text(text)
        result = run("-n", "2", "-k", "fixed_port", "--dist=load")
        assert "Address already in use" in result.stdout.str()
    finally:
        marker.unlink()


def test_isolated_in_a_row(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    """What is prepared for the next one, and what of the last one still ends meanwhile, is seen by nobody."""
    pytester.makeconftest("""
        import os

        def children():
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return "none"
            return "some"

        def pytest_unconfigure(config):
            print("children at the end:", children())
    """)
    pytester.makepyfile("""
        import fcntl, os, socket, time
        import pytest
        from conftest import children

        @pytest.mark.parametrize("number", range(4))
        @pytest.mark.isolated(net=False, tmp=False)
        def test_held_to_the_end(number):
            global file, server
            file = open("lock", "w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            server = socket.create_server(("127.0.0.1", 46551))

        @pytest.mark.isolated
        def test_leaves_a_process():
            if os.fork() == 0:
                time.sleep(0.5)
                open("late", "w").close()
                os._exit(0)

        @pytest.mark.parametrize("number", range(3))
        @pytest.mark.isolated(root=True)
        def test_other_options(number): assert children() == "none"

        def test_bare(): assert children() == "none"

        @pytest.mark.isolated
        def test_fails(): assert 0

        @pytest.mark.isolated
        def test_never(): pass
    """)
    result = run("-s", "-x")
    result.assert_outcomes(passed=9, failed=1, warnings=1)
    result.stdout.fnmatch_lines(["*children at the end: none"])
    assert not (pytester.path / "late").exists()


RESULTS = """
    import asyncio, os, subprocess, sys, unittest, warnings
    import pytest

    pytestmark = pytest.mark.isolated

    def test_passes(): print("unseen")

    def test_fails():
        print("printed"); print("to stderr", file=sys.stderr); os.system("echo by a program")
        left, right = [1, 2], [1, 3]
        assert left == right

    def test_raises():
        raise ValueError("mine")

    def test_skips(): pytest.skip("because of this")

    @pytest.mark.xfail(strict=True)
    def test_xfails(): assert 0

    @pytest.mark.xfail(strict=True)
    def test_xpasses(): pass

    def test_subtests(subtests):
        for number in range(3):
            with subtests.test(number=number):
                assert number != 1

    @pytest.fixture
    def broken(): raise OSError("in the fixture")

    def test_setup_error(broken): pass

    @pytest.fixture
    def late():
        yield
        raise OSError("in the tear-down")

    def test_teardown_error(late): pass

    class TestUnit(unittest.TestCase):
        @classmethod
        def setUpClass(cls): cls.value = 1
        def setUp(self): self.own = 2
        def test_unit(self): self.assertEqual((self.value, self.own), (1, 2))
        def test_unit_fails(self): self.assertEqual(self.value, 2)
        @unittest.skip("unit")
        def test_unit_skips(self): pass

    def test_property(record_property): record_property("key", object())

    def test_warns(): warnings.warn("take care", UserWarning)

    def test_container(container):
        assert container.run(["hostname"], capture_output=True, text=True).stdout == "r2d2\\n"
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_results_are_those_of_a_test(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], workers: tuple[str, ...]
) -> None:
    pytester.makepyfile(RESULTS)
    result = run("-rs", *workers)
    result.assert_outcomes(passed=7, failed=5, skipped=2, xfailed=1, errors=2, warnings=1)
    out = result.stdout.str()
    for text in (
        "assert [1, 2] == [1, 3]", "At index 1 diff: 2 != 3", "Captured stdout call", "printed", "to stderr",
        "by a program", "ValueError: mine", "because of this", "[XPASS(strict)]", "in the fixture",
        "in the tear-down", "AssertionError: 1 != 2", "UserWarning: take care",
    ):  # fmt: skip
        assert text in out, text
    assert "unseen" not in out
    junit = pytester.path / "junit.xml"
    run(f"--junitxml={junit}", "-k", "fails")
    assert 'name="test_fails"' in junit.read_text()


def test_fixtures_of_a_longer_life(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import os, pytest

        log = open("log", "a", buffering=1)
        here = os.getpid()

        @pytest.fixture(scope="module")
        def shared():
            log.write(f"up {os.getpid() == here}\\n")
            yield 1
            log.write(f"down {os.getpid() == here}\\n")

        @pytest.mark.isolated
        def test_first(shared): assert shared == 1

        def test_plain(shared): assert shared == 1

        @pytest.mark.isolated
        def test_last(shared): assert shared == 1
    """)
    run().assert_outcomes(passed=3)
    log = (pytester.path / "log").read_text().splitlines()
    # Its own in the fork that is the first to use it; then the parent's, which the second fork leaves alone.
    assert log == ["up False", "down False", "up True", "down True"]


def test_ends_that_are_none(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import os, signal, subprocess, time, threading
        import pytest

        pytestmark = pytest.mark.isolated

        def test_dies(): os.kill(os.getpid(), signal.SIGKILL)

        def test_exits(): os._exit(7)

        def test_kills_pid_1():
            os.kill(1, signal.SIGKILL)  # the kernel lets no signal from inside reach it
            assert os.getpid() == 2
            assert os.path.isdir("/proc/1")

        @pytest.mark.timeout(1)
        def test_hangs():
            subprocess.Popen(["sleep", "1234"])
            time.sleep(1000)

        def test_forks():
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)

        def test_thread(): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

        def test_after(): pass
    """)
    result = run()
    result.assert_outcomes(passed=4, failed=3, warnings=1)
    result.stdout.fnmatch_lines([
        "*killed by SIGKILL", "*exited with status 7", "*Timeout*", "*test_forks left running: *",
    ])  # fmt: skip
    assert not running("sleep", "1234")


def test_exit_ends_the_session(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.isolated
        def test_exits(): pytest.exit("enough", 9)

        def test_never(): raise AssertionError
    """)
    result = run()
    assert result.ret == 9
    result.stdout.fnmatch_lines("*enough*")


def test_a_killed_pytest_takes_its_isolated_test_along(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import subprocess, time, pytest

        @pytest.mark.isolated
        def test_long():
            subprocess.Popen(["sleep", "1239"])
            time.sleep(1000)
    """)
    command = [sys.executable, "-mpytest", *QUIET]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: bool(running("sleep", "1239")), 30)
    finally:
        process.kill()
        process.wait()
    assert until(lambda: not running("sleep", "1239"), 10)


@needs("coverage")
def test_coverage_is_measured(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        measured="""
        def function(value):
            if value:
                return 1
            return 2
        """,
        test_it="""
        import pytest, measured

        @pytest.mark.isolated
        def test_one(): assert measured.function(1) == 1
        """,
    )
    (pytester.path / ".coveragerc").write_text("[run]\npatch = _exit\nparallel = true\n")
    coverage = [sys.executable, "-m", "coverage"]
    pytester.run(*coverage, "run", "-m", "pytest", *QUIET).assert_outcomes(passed=1)
    pytester.run(*coverage, "combine", "-q")
    pytester.run(*coverage, "report", "-m", "--include=measured.py").stdout.fnmatch_lines("measured.py*75%*4")


def test_a_debugger_in_the_terminal(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.isolated
        def test_one():
            value = 41
            breakpoint()
            assert value == 42
    """)
    child = pytester.spawn(f"{sys.executable} -mpytest {' '.join(QUIET)}", expect_timeout=60)
    child.expect(r"\(Pdb\)")
    child.sendline("p value + 1000")
    child.expect("1041")
    child.sendline("value = 42")
    child.expect(r"\(Pdb\)")
    child.sendline("c")
    child.expect("1 passed")
    child.expect(pexpect.EOF)
    child.close()


def test_threads_of_the_parent_do_not_matter(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import threading, time, pytest

        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()

        @pytest.mark.isolated
        @pytest.mark.parametrize("number", range(5))
        def test_one(number):
            assert threading.active_count() == 1

        def test_end():
            stop.set(); thread.join()
    """)
    run("-W", "error").assert_outcomes(passed=6)


def test_reports_come_while_it_runs(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    """Each as soon as its phase is over; a reporter that fails ends the session, as ever."""
    pytester.makeconftest("""
        def pytest_runtest_logreport(report):
            if report.when == "setup":
                open("was-set-up", "w").close()
            assert report.when != "call" or "broken" not in report.nodeid, "a broken reporter"
    """)
    pytester.makepyfile("""
        import os, time, pytest

        pytestmark = pytest.mark.isolated

        def test_one():
            deadline = time.monotonic() + 30
            while not os.path.exists("was-set-up"):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        def test_broken(): pass
    """)
    run("-k", "one").assert_outcomes(passed=1)
    result = run()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["INTERNALERROR> *a broken reporter*"])


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupt_in_the_midst_of_a_fork(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], number: int, threads: int
) -> None:
    """It ends the session, with nothing left: be the world made beside the fork, or before it.

    A second thread takes the signal, since the first one blocks it.
    """
    pytester.makeconftest(f"""
        import os, signal, threading, time

        for _ in range({threads}):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        here, forks, fork = os.getpid(), [], os.fork

        def interrupted():
            forks.append(1)
            if len(forks) == {number}:
                os.kill(here, signal.SIGINT)
            return fork()

        os.fork = interrupted

        def pytest_unconfigure(config):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no child is left")
    """)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(5))
        @pytest.mark.isolated
        def test_one(number): pass
    """)
    result = run("-s")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(passed=number - 1)
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*", "no child is left"])


def test_directories_of_temporary_files(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the project holds is there as it is; another one below /tmp is made anew, with its mode."""
    pytester.makepyfile("""
        import os, stat, tempfile, pytest

        @pytest.mark.isolated
        def test_one():
            directory = tempfile.gettempdir()
            assert directory == os.environ["TMPDIR"]
            assert stat.S_IMODE(os.stat(directory).st_mode) == 0o750
            assert os.listdir(directory) == os.environ["HOLDS"].split()
            with tempfile.NamedTemporaryFile(): pass
    """)
    held = pytester.path / "held"
    held.mkdir()
    held.chmod(0o750)
    (held / "file").touch()
    with tempfile.TemporaryDirectory(dir="/tmp") as other:
        os.chmod(other, 0o750)
        (Path(other) / "unseen").touch()
        for directory, holds in ((str(held), "file"), (other, "")):
            monkeypatch.setenv("TMPDIR", directory)
            monkeypatch.setenv("HOLDS", holds)
            run(f"--basetemp={pytester.path / 'base'}").assert_outcomes(passed=1)


def test_a_directory_that_is_gone(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    """It is the failure of the test that is in it."""
    pytester.makepyfile("""
        import os, pytest

        @pytest.mark.isolated
        def test_before(): pass

        def test_goes(tmp_path):
            (tmp_path / "gone").mkdir()
            os.chdir(tmp_path / "gone")
            os.rmdir(tmp_path / "gone")

        @pytest.mark.isolated
        def test_in_it(): pass

        def test_after(request): os.chdir(request.config.rootpath)

        @pytest.mark.isolated
        def test_elsewhere(): pass
    """)
    run().assert_outcomes(passed=4, failed=1)
