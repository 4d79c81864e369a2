"""The fixture ``network`` and the log of a network in the report of a test that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)

QUIET = ("-p", "no:asyncio", "-p", "no:testinfra", "-p", "no:cacheprovider")
PING = '["ping", "-c1", "-W2", "db"]'


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs pytest over the files that were made."""

    def runner(*args: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*QUIET, *args)

    return runner


def test_a_network_is_fresh_for_each_test(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(f"""
        import pytest, r2d2

        seen = []

        @pytest.mark.parametrize("number", range(4))
        def test_fresh(network, container_factory, number):
            assert isinstance(network, r2d2.Network) and network.alive and not len(network)
            db = container_factory(name="db", network=network)
            web = container_factory(name="web", network=network.member(aliases=["www"]))
            web.run({PING}, check=True, capture_output=True)
            assert set(network) == {{"db", "web"}}
            network.partition(["db"], ["web"])
            seen.append(network)

        @pytest.mark.r2d2(network=True)
        def test_marked(network, container, container_factory):
            assert list(network) == [container.name]
            container_factory(name="db")
            container.run({PING}, check=True, capture_output=True)
            container_factory(name="alone", network="none")
            assert set(network) == {{container.name, "db"}}
            seen.append(network)

        @pytest.mark.r2d2(network={{"seed": 9, "subnet": "10.123.0.0/24"}}, name="one")
        def test_keywords(container, network):
            assert (network.seed, str(network.subnet)) == (9, "10.123.0.0/24")
            assert str(container.interfaces[0].address) == "10.123.0.3"
            seen.append(network)

        @pytest.mark.r2d2(network="none")
        def test_strings_are_the_containers_own(container):
            assert container.interfaces == ()

        def test_all_are_gone():
            assert not any(each.alive for each in seen)
    """)
    run("-W", "error").assert_outcomes(passed=8)
    run("-W", "error", "-n", "2", "-k", "not gone").assert_outcomes(passed=7)


def test_the_scope_is_that_of_containers(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import pytest

        pytestmark = pytest.mark.r2d2(network={"seed": 3}, name="kept")

        def test_first(container, network):
            assert list(network) == ["kept"] and network.seed == 3
            network.node("kept").set(delay=0.5)

        def test_second(container, network):
            assert network.node("kept").impairments[0].delay == 0.5
            assert container.running
    """)
    run("--r2d2-scope=module", "-W", "error").assert_outcomes(passed=2)
    run("-W", "error").assert_outcomes(passed=1, failed=1)
    pytester.makepyfile("""
        import pytest, r2d2

        @pytest.fixture(scope="module")
        def network():
            with r2d2.Network(name="ours") as net:
                yield net

        def test_overridden(network): assert network.name == "ours"

        @pytest.mark.r2d2(network=True)
        def test_with_containers(container, network):
            assert list(network) == [container.name] and network.name == "ours"
    """)
    run("-W", "error").assert_outcomes(passed=2)


def test_a_failure_tells_what_happened_in_the_network(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.fixture
        def pair(network, container_factory):
            return [container_factory(name=name, network=network) for name in ("db", "web")]

        def test_fails(network, pair):
            pair[1].run({PING}, check=True, capture_output=True)
            network.link("db", "web").set(delay=0.02)
            network.cut("web", "db", both=False)
            assert pair[1].run({PING}, capture_output=True).returncode == 0

        def test_passes(network, pair): pass

        @pytest.fixture
        def broken(network, pair): raise OSError("in the fixture")

        def test_setup(broken): pass
    """)
    result = run()
    result.assert_outcomes(passed=1, failed=1, errors=1)
    out = result.stdout.str()
    result.stdout.fnmatch_lines([
        "*r2d2 network network-*", "network network-*: 10.89.*seed 0", "  db: 10.89.*eth0*", "  web: 10.89.*",
    ])  # fmt: skip
    failed = out[out.index("_ test_fails _") :]
    for words in (
        "web → db: cut, nothing passes (", " cut off)", "db ↔ web: 20 ms (", "db sent ", "events:",
        "s db joined: 10.89.", "s db → web: 20 ms", "s web → db: 20 ms", "s cut: web → db", " packets sent:",
        "web: icmp ", " bytes",
    ):  # fmt: skip
        assert words in failed, words
    assert "ff02::" not in failed
    assert out.count("- r2d2 network network-") == 2, "one that passed tells nothing"
    assert "r2d2 network" in run("-n", "2").stdout.str()


def test_networks_left_open_are_named(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import pytest, r2d2

        left = []

        def test_leaves_one(network):
            left.append(r2d2.Network(name="forgotten").start())

        @pytest.fixture(scope="module")
        def shared():
            with r2d2.Network() as net:
                yield net

        def test_beside_one_that_lives_on(shared, network):
            left.append(r2d2.Network(name="another").start())
            with r2d2.Network(name="closed"): pass

        def test_leaves_nothing(network, request):
            request.getfixturevalue("shared").capture().close()

        def test_clean_up():
            for each in left: each.close()
    """)
    result = run()
    result.assert_outcomes(passed=4, warnings=2)
    result.stdout.fnmatch_lines([
        "*test_leaves_one left running: network forgotten (pid *)",
        "*test_beside_one_that_lives_on left running: network another (pid *)",
    ])  # fmt: skip
    assert "closed (pid" not in result.stdout.str()


def test_worlds_that_go_wrong_leave_nothing(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("""
        import os, signal, threading, time
        import pytest, r2d2
        from r2d2.testing import WaitTimeout, wait_for_port

        @pytest.fixture
        def pair(network, container_factory):
            return [container_factory(name=name, network=network) for name in ("db", "web")]

        def test_name_used_twice(network, pair, container_factory):
            with pytest.raises(r2d2.NetworkError, match="has a member 'db' already"):
                container_factory(name="db", network=network)

        def test_networks_that_overlap(network, container_factory):
            with r2d2.Network(str(network.subnet), ipv6=False) as other:
                with pytest.raises(r2d2.SpecError, match="overlap"):
                    container_factory(network=[network, other])

        def test_never_ready(pair):
            with pytest.raises(WaitTimeout, match="nothing listens on port 80"):
                wait_for_port(pair[0], 80, timeout=0.3)

        def test_kills_pid_1(network, pair):
            os.kill(pair[0].pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while set(network) != {"web"} and time.monotonic() < deadline:
                time.sleep(0.01)
            assert set(network) == {"web"}

        def test_kills_the_switch(network, pair):
            os.kill(network.pid, signal.SIGKILL)
            assert pair[0].run(["true"]).returncode == 0
            raise AssertionError("and reports it")

        @pytest.mark.r2d2(tmpfs_size="8m")
        def test_fills_the_disk(container):
            done = container.run(["dd", "if=/dev/zero", "of=/var/full", "bs=64k"], capture_output=True)
            assert b"No space left" in done.stderr

        def test_forks(pair):
            pair[1].run(["sh", "-c", "for i in 1 2 3 4 5; do setsid sleep 1244 & done"], check=True)

        def test_leaves_a_thread(pair):
            threading.Thread(target=pair[0].run, args=(["sleep", "1244"],), daemon=True).start()

        @pytest.mark.timeout(2)
        def test_hangs(pair):
            pair[1].run(["sleep", "1244"])

        def test_after(pair):
            assert pair[1].run(["ping", "-c1", "-W5", "db"], capture_output=True).returncode == 0
    """)
    result = run()
    result.assert_outcomes(passed=8, failed=2)
    result.stdout.fnmatch_lines(["*and reports it*", "network network-*: does not run*"])
    result.stdout.fnmatch_lines(["*Timeout*", "$ sleep 1244*"])
    out = result.stdout.str()
    assert "left running" not in out
