"""The pytest plugin, run by pytest in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _needs import needs
from _proc import until
from _pytests import QUIET, run, running

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run"]
pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)


def test_it_imports_the_standard_library_and_pytest_alone() -> None:
    script = """
import sys
import r2d2.testing.plugin
heavy = {name for name in sys.modules if name.startswith("r2d2") and "_core" in name or name in (
    "r2d2.container", "r2d2.spec", "r2d2.testing.isolated", "r2d2.testing.waiting", "ctypes", "testinfra")}
print(heavy or "light")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "light\n"


def test_a_container_is_fresh_for_each_test(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import pytest, r2d2

        seen = []

        @pytest.mark.parametrize("number", range(3))
        def test_fresh(container, number):
            assert isinstance(container, r2d2.Container) and container.running
            assert not container.path("/tmp/file").exists()
            container.path("/tmp/file").write_text("x")
            seen.append(container)

        def test_all_are_gone():
            assert len({id(each) for each in seen}) == 3
            assert not any(each.running for each in seen)

        @pytest.mark.r2d2(hostname="one", env={"A": "1"})
        class TestMarks:
            @pytest.mark.r2d2(hostname="two")
            def test_the_nearest_wins(self, container):
                out = container.run(["sh", "-c", "hostname; echo $A"], capture_output=True, text=True).stdout
                assert out == "two\\n1\\n"

        @pytest.mark.r2d2(image="scratch")
        def test_image(container):
            assert container.image.name == "scratch"

        def test_factory(container_factory):
            one, two = container_factory(hostname="one"), container_factory("scratch")
            assert one.spec.hostname == "one" and two.image.name == "scratch"
            assert one.running and two.running
            seen.extend([one, two])

        def test_those_are_gone_too():
            assert not any(each.running for each in seen)
    """)
    run().assert_outcomes(passed=8)


def test_scope_and_image_by_option(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        def test_first(container):
            container.path("/kept").write_text("x")

        def test_second(container):
            assert container.path("/kept").read_text() == "x"
            assert container.image.name.startswith("minimal")
    """)
    run("--r2d2-scope=module", "--r2d2-image=minimal").assert_outcomes(passed=2)
    run("--r2d2-image=minimal").assert_outcomes(passed=1, failed=1)
    pytester.makeini("[pytest]\nr2d2_scope = session\nr2d2_image = minimal\n")
    run().assert_outcomes(passed=2)
    run("--r2d2-scope=year").stderr.fnmatch_lines("*invalid choice*")


def test_a_failure_tells_what_ran(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        def test_fails(container):
            container.run(["sh", "-c", "seq 100; echo oops >&2; exit 3"], capture_output=True)
            container.popen(["sleep", "100"])
            container.run(["sh", "-c", "kill -9 $$"])
            assert container.name == "other"

        def test_command(container):
            container.run(["sh", "-c", "echo told; exit 4"], capture_output=True, check=True)

        def test_passes(container):
            container.run(["echo", "unseen"], capture_output=True)
    """)
    result = run()
    result.assert_outcomes(passed=1, failed=2)
    out = result.stdout.str()
    result.stdout.fnmatch_lines([
        "*r2d2 container *", "image host, running", "*exit 3*exit status 3]", "  stdout: 81", "  stdout: 100",
        "  stderr: oops", "$ sleep 100*still running]", "*killed by signal 9]", "*exit status 4]",
        "  stdout: told",
    ])  # fmt: skip
    assert "stdout: 80" not in out
    assert "unseen" not in out
    assert "pivot_root" not in out
    assert "pivot_root" in run("-v").stdout.str()


def test_fixtures_that_live_on_are_no_leaks(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import pytest, r2d2

        @pytest.fixture(scope="module")
        def pool():
            with r2d2.Pool("minimal", 2) as pool:
                yield pool

        @pytest.mark.parametrize("number", range(4))
        def test_pool(pool, container, number):
            with pool.container() as other:
                assert other.running
            while pool.ready < 2:
                pass

        @pytest.fixture(scope="module")
        def shared():
            with r2d2.Container("scratch") as container:
                yield container

        def test_shared(shared, container): assert shared.running
    """)
    run("-W", "error").assert_outcomes(passed=5)


def test_leaks_are_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import subprocess, pytest, r2d2

        left = []

        def test_leaves_a_process(container):
            left.append(subprocess.Popen(["sleep", "1235"]))

        def test_leaves_a_container(container_factory):
            left.append(r2d2.Container("scratch").start())

        def test_leaves_nothing(container):
            container.popen(["sleep", "1236"])
            subprocess.run(["true"])

        @pytest.mark.isolated
        def test_isolated():
            left.append(subprocess.Popen(["sleep", "1237"]))

        def test_clean_up():
            left[0].kill(); left[0].wait(); left[1].stop()
    """)
    result = run()
    result.assert_outcomes(passed=5, warnings=3)
    result.stdout.fnmatch_lines([
        "*test_leaves_a_process left running: sleep (pid *)",
        "*test_leaves_a_container left running: * (pid *)",
        "*test_isolated left running: sleep (pid * inside)",
    ])  # fmt: skip
    assert "nothing left running" not in result.stdout.str()
    result = run("-W", "error", "-k", "isolated or process")
    result.assert_outcomes(passed=2, errors=2)
    assert not running("sleep", "1237")
    for pid in running("sleep", "1235"):
        os.kill(int(pid), signal.SIGKILL)


BUILD = """
    import os, pytest

    def provision(container):
        with open(os.environ["LOG"], "a") as log:
            log.write("built\\n")
        container.run(["sh", "-c", "echo ready > /state; exit $CODE"], check=True, capture_output=True)

    @pytest.fixture(scope="session")
    def r2d2_image(r2d2_build):
        return r2d2_build("minimal", provision, 1, env={"CODE": os.environ["CODE"]})

    @pytest.mark.parametrize("number", range(6))
    def test_state(container, number):
        assert container.path("/state").read_text() == "ready\\n"
        container.path("/state").write_text("mine")
"""


def test_one_build_for_all_workers(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(BUILD)
    log, cache = pytester.path / "log", pytester.path / "cache"
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setenv("CODE", "0")
    monkeypatch.setenv("R2D2_CACHE", str(cache))
    run("-n", "2").assert_outcomes(passed=6)
    assert log.read_text() == "built\n"
    assert not [name for name in os.listdir(cache / "snapshots") if name != "built"], "the run removes it"
    run("-n", "2", "--r2d2-keep").assert_outcomes(passed=6)
    run("--r2d2-keep").assert_outcomes(passed=6)
    assert log.read_text() == "built\n" * 2
    path = next(pytester.path.glob("test_*.py"))
    path.write_text(path.read_text().replace("provision, 1,", "provision, 2,"))
    run("--r2d2-keep").assert_outcomes(passed=6)
    assert log.read_text() == "built\n" * 3


def test_a_build_that_fails_is_told_once(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(BUILD.replace("exit $CODE", "echo the-cause >&2; exit $CODE"))
    monkeypatch.setenv("LOG", str(pytester.path / "log"))
    monkeypatch.setenv("CODE", "5")
    monkeypatch.delenv("CI", raising=False)  # there, pytest's summary tells errors once more, uncut
    for count, args in ((6, ()), (200, ("-n", "2"))):
        (pytester.path / "log").unlink(missing_ok=True)
        test = next(pytester.path.glob("test_*.py"))
        test.write_text(test.read_text().replace("range(6)", f"range({count})"))
        result = run(*args)
        result.assert_outcomes(errors=count)
        out = result.stdout.str()
        assert out.count("stderr: the-cause") == 1
        assert out.count("def provision") <= 1, "one traceback, whoever built it"
        assert out.count("in __call__") == 1
        result.stdout.fnmatch_lines(["*r2d2_build: *provision: CommandError*exit status 5*"])
        assert (pytester.path / "log").read_text() == "built\n"


@needs("unshare")
def test_a_host_that_cannot_skips_with_a_hint(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    """A user namespace in which no further one may be made; and a filter that refuses unshare(2)."""
    pytester.makepyfile("""
        import pytest, r2d2

        def test_one(container): raise AssertionError

        def test_in_the_test(container_factory): container_factory()

        @pytest.fixture(scope="module")
        def own():
            with r2d2.Container("scratch") as container:
                yield container

        def test_own(own): raise AssertionError

        def test_plain(): pass
    """)
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    command = ["unshare", "-Ur", "sh", "-c", limit, "sh", sys.executable, "-mpytest", "-rs", *QUIET]
    result = pytester.run(*command)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(["r2d2: containers do not work here", "SKIPPED*max_user_namespaces*"])
    result = pytester.run(*command, "--r2d2-required")
    result.assert_outcomes(passed=1, failed=1, errors=2)
    pytester.makeconftest(f"""
        import sys
        sys.path.append({str(Path(__file__).parent)!r})
        import _broken
        _broken.refuse("unshare")
    """)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.isolated
        def test_one(): raise AssertionError
    """)
    result = run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*isolated: * unshare: EPERM: Operation not permitted; see r2d2.doctor()"]
    )
    run("--r2d2-required").assert_outcomes(errors=1)


def test_a_killed_worker_leaves_nothing(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import os, signal, time, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_container(container, number):
            container.popen(["sleep", "1238"])
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        @pytest.mark.isolated
        def test_isolated():
            pid = next(line for line in open("/proc/self/status") if line.startswith("PPid"))
            assert pid.split()[1] == "0"
    """)
    result = run("-n", "2", "--max-worker-restart=2")
    result.assert_outcomes(passed=4, failed=1)
    assert until(lambda: not running("sleep", "1238"), 10)


def test_a_killed_worker_takes_its_isolated_test_and_containers_along(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import os, subprocess, time, pytest

        worker = os.getpid()

        @pytest.fixture(scope="session")
        def r2d2_image(r2d2_build):
            return r2d2_build("host", lambda container: container.path("/etc/built").touch())

        @pytest.fixture(scope="module")
        def server(r2d2_image):
            import r2d2
            with r2d2.Container(r2d2_image) as container:
                yield container.popen(["sleep", "1241"])

        def test_container(server): pass

        @pytest.mark.isolated
        def test_long(server):
            subprocess.Popen(["sleep", "1242"])
            with open("pid", "w") as file:
                file.write(f"{worker}.")
            time.sleep(1000)
    """)
    told = pytester.path / "pid"
    command = [sys.executable, "-mpytest", *QUIET, "-n", "1", "--max-worker-restart", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert until(lambda: told.exists() and told.read_text().endswith("."), 60)
            assert running("sleep", "1241")
            assert running("sleep", "1242")
            os.kill(int(told.read_text().rstrip(".")), signal.SIGKILL)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "crashed" in out
    assert until(lambda: not running("sleep", "1241") and not running("sleep", "1242"), 10)


@needs("asyncio")
def test_coroutines(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import asyncio, pytest

        pytestmark = [pytest.mark.asyncio, pytest.mark.isolated]

        async def test_one(container):
            await asyncio.sleep(0)
            assert container.running

        async def test_fails():
            await asyncio.sleep(0)
            assert 1 == 2
    """)
    plugins = ("-p", "no:testinfra", "-o", "asyncio_default_fixture_loop_scope=function")
    run(plugins=plugins).assert_outcomes(passed=1, failed=1)


@needs("testinfra")
def test_testinfra(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        from r2d2.testing.testinfra import host_of

        def test_host(container):
            container.path("/etc/mine").write_text("text")
            host = host_of(container)
            assert host.file("/etc/mine").content_string == "text"
            assert host.user("root").uid == 0
            assert not host.file("/etc/other").exists
            assert host.run("exit 3").rc == 3
            assert host.run("echo out; echo err >&2").stderr == "err\\n"
            assert "sleep" not in {each.comm for each in host.process.filter()}
    """)
    plugins = ("-p", "no:asyncio", "-W", "ignore::DeprecationWarning")
    run(plugins=plugins).assert_outcomes(passed=1)
    name = f"infra-{os.getpid()}"
    command = [sys.executable, "-m", "r2d2"]
    subprocess.run([*command, "run", "-d", "--name", name, "host", "sleep", "1000"], check=True)
    try:
        pytester.makepyfile(
            test_by_name="""
            def test_name(host):
                assert host.file("/etc/hostname").content_string == "r2d2\\n"
                assert host.backend.NAME == "r2d2"
        """
        )
        run(f"--hosts=r2d2://{name}", "test_by_name.py", plugins=plugins).assert_outcomes(passed=1)
    finally:
        subprocess.run([*command, "rm", "-f", name], check=True)
