"""A detached container's network: it outlives the starter, is found again, and ends with the container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from _proc import children, ended, until
from r2d2 import statedir
from r2d2.detached import Detached

if TYPE_CHECKING:
    from pathlib import Path

#: Answers everybody on port 80.
SERVE = ["sh", "-c", "while :; do echo hello | nc -l -p 80; done"]

pytestmark = pytest.mark.usefixtures("runtime")


def heard(port: int) -> bytes:
    """What the server behind a port of the host says; nothing if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            return connection.recv(100)
    except OSError:
        return b""


def started_elsewhere(image: r2d2.Image, last: str = "") -> str:
    """A detached container whose starter has ended: by itself, or as ``last`` says."""
    code = f"""
    import os, signal, r2d2
    c = r2d2.Detached.start({SERVE!r}, image={str(image.layers[0])!r}, network="slirp", ports=["0:80"])
    print(c.name, flush=True)
    {last}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (-9 if last else 0)
    return done.stdout.strip()


def kernel() -> tuple[int, ...]:
    """Its version."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.parametrize("last", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["ends", "is killed"])
def test_outlives_its_starter_and_ends_with_the_container(image: r2d2.Image, last: str) -> None:
    container = Detached.get(started_elsewhere(image, last))
    (port,) = container.ports
    assert (port.protocol, port.host, port.guest, port.guest_port) == ("tcp", "127.0.0.1", "10.0.2.100", 80)
    assert until(lambda: heard(port.host_port) == b"hello\n", 10)
    assert container.inspect()["ports"][0]["host_port"] == port.host_port
    assert (
        "nameserver 10.0.2.3"
        in container.run(["cat", "/etc/resolv.conf"], capture_output=True).stdout.decode()
    )
    with container.attach() as found:
        assert found.network is not None
        engine = found.network.pid
        assert found.network.device in {"tap", "packet"}
        assert found.network.stats()["tcp_in"] > 0
    assert not ended(str(engine))
    container.stop(0)
    assert ended(str(engine))
    assert heard(port.host_port) == b""
    assert container.ports == ()


def test_ports_come_and_go_from_anywhere(image: r2d2.Image) -> None:
    with Detached.start(SERVE, image=image, network="slirp", ports=["0:80"]) as container:
        first = container.ports
        with container.attach() as one, container.attach() as other:
            assert one.network is not None
            assert other.network is not None
            added = one.network.add_port(0, 80)
            assert set(other.network.ports) == {*first, added} == set(container.ports)
            assert until(lambda: heard(added.host_port) == b"hello\n", 10)
            with pytest.raises(OSError, match=r"(?i)address already in use"):
                other.network.add_port(added.host_port, 80)
            other.network.remove_port(added)
            assert heard(added.host_port) == b""
            with pytest.raises(KeyError):
                one.network.remove_port(added)
        assert container.ports == first
        assert until(lambda: heard(first[0].host_port) == b"hello\n", 10), "those that stayed go on"


def test_more_clients_than_the_engine_takes(image: r2d2.Image) -> None:
    with Detached.start(None, image=image, network="slirp") as container:
        held = [statedir.connect(container.name, "network") for _ in range(40)]
        try:
            with container.attach() as found:
                assert found.network is None, "there is no room for one more"
        finally:
            for each in held:
                each.close()

        def again() -> bool:
            with container.attach() as found:
                return found.network is not None and found.network.stats()["flows"] == 0

        assert until(again, 10)


def test_death_of_the_engine_is_seen(image: r2d2.Image) -> None:
    with Detached.start(None, image=image, network="slirp", ports=["0:80"]) as container:
        with container.attach() as found:
            assert found.network is not None
            assert found.network.alive
            os.kill(found.network.pid, signal.SIGKILL)
            assert until(lambda: found.network is not None and not found.network.alive, 5)
            with pytest.raises(r2d2.ContainerClosed):
                found.network.stats()
        assert container.running
        assert container.ports == ()
        with container.attach() as found:
            assert found.network is None


@pytest.mark.parametrize("started", ["here", "elsewhere"])
@pytest.mark.parametrize("end", ["engine", "container"])
def test_events_of_a_network_that_was_found_again_end_with_the_true_reason(
    image: r2d2.Image, started: str, end: str
) -> None:
    if started == "here":
        container = Detached.start(None, image=image, network="slirp")
    else:
        container = Detached.get(started_elsewhere(image))
    with container, container.attach() as found:
        assert found.network is not None
        with found.network.events() as events:
            assert events.get(0) is None
            if end == "engine":
                os.kill(found.network.pid, signal.SIGKILL)
            else:
                container.kill(signal.SIGKILL)
            told = list(events)[-1]
            reason = "signal SIGKILL" if end == "engine" else "exit 0"
            if started == "elsewhere" and kernel() < (6, 15):
                reason = "unknown"
            assert (told.kind, told.reason) == ("ended", reason)


def test_killed_container_takes_its_engine_along(image: r2d2.Image) -> None:
    with Detached.start(None, image=image, network="slirp") as container:
        with container.attach() as found:
            assert found.network is not None
            engine = found.network.pid
        container.kill(signal.SIGKILL)
        assert until(lambda: ended(str(engine)), 5)


def test_a_start_that_fails_leaves_nothing(image: r2d2.Image, runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(r2d2.NetworkError, match="EADDRINUSE"):
            Detached.start(SERVE, image=image, network="slirp", ports={port: 80})
    with pytest.raises(r2d2.SetupNotFoundError):
        Detached.start(["no-such-program"], image=image, network="slirp")
    assert until(lambda: not children(), 5)
    assert not runtime.exists()


def test_what_would_be_left_behind_is_refused(image: r2d2.Image, tmp_path: Path) -> None:
    with pytest.raises(r2d2.SpecError, match="Unix socket"):
        Detached.start(None, image=image, network="slirp", ports=[f"{tmp_path}/s:80"])
    assert not children()


@needs("tun", "pasta")
def test_other_programs_are_refused(image: r2d2.Image) -> None:
    with pytest.raises(r2d2.UnsupportedError, match="pasta") as failure:
        Detached.start(None, image=image, network="pasta")
    assert failure.value.hint


def test_command_line(image: r2d2.Image) -> None:
    def r2(*words: str) -> str:
        command = [sys.executable, "-m", "r2d2", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    r2("run", "-d", "--name", "web", "--network", "slirp", "-p", "0:80", str(image.layers[0]), *SERVE)
    shown = r2("port", "web").strip()
    assert shown.startswith("127.0.0.1:")
    assert shown.endswith("->80/tcp")
    assert shown in r2("ps")
    assert until(lambda: heard(int(shown.split(":")[1].split("-")[0])) == b"hello\n", 10)
    r2("rm", "-f", "web")
    assert "web" not in r2("ps", "-a")
