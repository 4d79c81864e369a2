"""The container of the next test, which the pytest plugin starts while one runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from _needs import needs
from _proc import until

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(120)

QUIET = ("-p", "no:asyncio", "-p", "no:testinfra", "-p", "no:cacheprovider", "-W", "error")

LEAK = "r2d2.testing.plugin.R2d2LeakWarning"

CONFTEST = """
    import os, time

    def children():
        found = set()
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/children") as file:
                    found |= set(map(int, file.read().split()))
            except OSError:
                pass
        return found

    def runs(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().split()[1:3] == ["(r2d2-init)", "S"]
        except OSError:
            return False

    def another(container):
        # The pid of the one that is started beside: it is there soon, or never.
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            found = [pid for pid in children() - {container.pid} if runs(pid)]
            time.sleep(0.1)  # the thread comes to its end, and the one before to its own
            for pid in found:
                if runs(pid):
                    return pid
        return None

    def pytest_unconfigure(config):
        print("children at the end:", len(children()))
"""


@pytest.fixture
def made(pytester: pytest.Pytester) -> pytest.Pytester:
    """With the functions above."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nr2d2_ahead = true\n")
    return pytester


def test_one_ahead_and_none_in_vain(made: pytest.Pytester) -> None:
    made.makepyfile("""
        import pytest
        from conftest import another, children

        pids = []

        @pytest.mark.parametrize("number", range(3))
        def test_next(container, number):
            if pids:
                assert container.pid == pids[-1]
            container.path("/mine").touch(exist_ok=False)
            assert container.run(["true"]).returncode == 0
            pids.append(another(container))

        def test_bare(): assert pids[-1] in children()

        @pytest.mark.r2d2(hostname="other")
        def test_its_own_words(container):
            assert container.pid == pids[-1]
            assert container.run(["hostname"], capture_output=True, text=True).stdout == "other\\n"
            assert another(container) is None, "nobody else wants one like it"

        @pytest.mark.r2d2(network="host")
        def test_not_apart(container):
            assert container.pid not in pids
            assert another(container) is None, "the next one's directory may still change"

        @pytest.mark.r2d2(image="/usr")
        def test_directory(container):
            assert container.pid not in pids
            pids.append(another(container))

        def test_last(container):
            assert container.pid == pids[-1]
            assert another(container) is None
    """)
    result = made.runpytest_subprocess(*QUIET, "-s")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*children at the end: 0"])
    made.makepyfile("""
        import pytest
        from conftest import another

        @pytest.mark.parametrize("number", range(2))
        def test_off(container, number): assert another(container) is None
    """)
    made.runpytest_subprocess(*QUIET, "-o", "r2d2_ahead=false", "-k", "off").assert_outcomes(passed=2)


def test_what_a_start_copies_may_change(made: pytest.Pytester) -> None:
    """One that a new one would differ from is thrown away."""
    made.makepyfile("""
        import os, resource, select
        import pytest
        from conftest import another, children

        pids = []

        @pytest.fixture
        def fewer():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        @pytest.fixture
        def mask():
            old = os.umask(0o027)
            yield
            os.umask(old)

        def test_one(container): pids.append(another(container))

        def test_limits(fewer, container):
            assert pids[-1] not in children() and container.pid != pids[-1]
            out = container.run(["sh", "-c", "ulimit -c"], capture_output=True, text=True).stdout
            assert out == "0\\n"
            pids.append(another(container))

        def test_umask(mask, container):
            assert pids[-1] not in children() and container.pid != pids[-1]
            pids.append(another(container))

        def test_killed_while_it_waited(container):
            pid = another(container)
            os.kill(pid, 9)
            select.select([os.pidfd_open(pid)], [], [])

        def test_a_new_one(container): assert container.running
    """)
    result = made.runpytest_subprocess(*QUIET, "-s")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*children at the end: 0"])


@needs("unshare")
def test_a_mount(made: pytest.Pytester) -> None:
    """What is mounted on the host is in a container that is started afterwards."""
    made.makepyfile("""
        import os, subprocess
        from pathlib import Path
        import pytest
        from conftest import another

        pids = []

        @pytest.fixture
        def mounted(tmp_path):
            subprocess.run(["mount", "-t", "tmpfs", "none", "/usr/local"], check=True)
            Path("/usr/local/new").touch()

        def test_one(container): pids.append(another(container))

        def test_two(mounted, container):
            assert pids[0] != container.pid
            assert container.path("/usr/local/new").exists()
    """)
    command = ["unshare", "-Urm", sys.executable, "-mpytest", *QUIET, "-s"]
    made.run(*command).assert_outcomes(passed=2)


def test_leaks_and_ends(made: pytest.Pytester) -> None:
    """What a test leaves is named, and what it started has ended when the next one begins."""
    made.makepyfile("""
        import os, subprocess, sys, threading, time
        import pytest, r2d2
        from conftest import another, children

        left = []

        def test_leaves_a_container(container):
            left.append(r2d2.Container("scratch").start())

        def test_stop(container):
            left[0].stop()
            left.append(container.popen(["sleep", "1251"], stdout=subprocess.PIPE))

        def test_ended(container):
            assert left[1].stdout.read() == b"" and left[1].poll() is not None
            container.run(["sh", "-c", "sleep 1252 & echo $! > /pid"])
            with open("/proc/%s/task/%s/children" % ((container.pid,) * 2)) as file:
                left.append(file.read().split()[0])

        def test_its_orphans_ended(container):
            assert not os.path.exists(f"/proc/{left[2]}")

        def test_forks(container):
            assert threading.active_count() == 1 or another(container)
            if (pid := os.fork()) == 0:
                os._exit(0 if container.pid not in children() else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert threading.active_count() == 1

        @pytest.mark.isolated
        @pytest.mark.parametrize("number", range(2))
        def test_isolated(container, number):
            assert container.run(["true"]).returncode == 0
            assert len(children()) == 1

        def test_after(container): assert container.running

        def test_fails(container): assert 0

        def test_never(container): pass
    """)
    result = made.runpytest_subprocess(
        *QUIET, "-s", "-x", "-W", "default::r2d2.testing.plugin.R2d2LeakWarning"
    )
    result.assert_outcomes(passed=8, failed=1, warnings=1)
    result.stdout.fnmatch_lines([
        "*test_leaves_a_container left running: * (pid *)", "*children at the end: 0"
    ])  # fmt: skip


def test_a_kill_takes_it_along(made: pytest.Pytester) -> None:
    made.makepyfile("""
        import os, signal
        from conftest import another

        def test_one(container):
            pid = another(container)
            with open("pids", "w") as file:
                file.write(f"{pid} {container.pid}")
            os.kill(os.getpid(), signal.SIGKILL)

        def test_two(container): pass
    """)
    done = subprocess.run([sys.executable, "-mpytest", *QUIET], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL
    for pid in Path("pids").read_text().split():
        assert until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 10)
