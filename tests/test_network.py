"""A container with a user-mode network: ``Container(network="slirp", ports=…)`` and the command line."""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _guest import out
from _proc import children, ended, until
from r2d2.ports import Publish

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVE = "echo ready; printf hello | nc -l -p 80"


def echo_once() -> tuple[socket.socket, int]:
    """A TCP server of the host, on its loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


def test_interface_stands_before_the_first_program(image: r2d2.Image) -> None:
    script = "ip addr show tap0; ip route; cat /etc/resolv.conf"
    done = r2d2.run(["sh", "-c", script], image=image, network="slirp", capture_output=True, text=True)
    assert "inet 10.0.2.100/24" in done.stdout
    assert "default via 10.0.2.2" in done.stdout
    assert done.stdout.endswith("nameserver 10.0.2.3\n")
    assert not children()


def test_options(image: r2d2.Image) -> None:
    options = r2d2.Slirp(ifname="eth0", mtu=9000, cidr="192.168.77.0/24", ipv6=False, search=["a.example"])
    with r2d2.Container(image, network=options) as c:
        assert pickle.loads(pickle.dumps(c.spec)) == c.spec
        shown = out(c, "ip", "addr", "show", "eth0")
        assert "mtu 9000" in shown
        assert "inet 192.168.77.100/24" in shown
        assert out(c, "cat", "/etc/resolv.conf") == "search a.example\nnameserver 192.168.77.3\n"
        assert c.network is not None
        assert c.network.ifname == "eth0"
        assert c.network.stats()["frames_in"] >= 0


def test_host_is_reached_and_its_loopback_only_if_asked(image: r2d2.Image) -> None:
    listener, port = echo_once()
    with closing(listener):
        command = ["nc", "10.0.2.2", str(port)]
        with (
            r2d2.Container(image, network=r2d2.Slirp(host_loopback=[port])) as c,
            c.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as client,
        ):
            listener.settimeout(10)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"from the host\n")
            assert client.communicate(timeout=10)[0] == "from the host\n"
        refused = r2d2.run(
            command,
            image=image,
            network="slirp",
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=10,
        )
        assert "unreachable" in refused.stderr


@pytest.mark.parametrize("ports", [{0: 80}, ["0:80"], ["127.0.0.1::80/tcp"], ["80"]])
def test_ports_lead_inside(image: r2d2.Image, ports: Any) -> None:
    with r2d2.Container(image, network="slirp", ports=ports) as c:
        (port,) = c.ports
        assert (port.protocol, port.host, port.guest_port) == ("tcp", "127.0.0.1", 80)
        with c.popen(["sh", "-c", SERVE], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            server.stdout.readline()
            assert until(lambda: "0050" in out(c, "cat", "/proc/net/tcp", "/proc/net/tcp6"))
            with socket.create_connection(("127.0.0.1", port.host_port), 10) as client:
                assert client.recv(100) == b"hello"
            server.kill()
        assert c.network is not None
        added = c.network.add_port(0, 81)
        assert c.ports == (port, added)
    assert c.ports == ()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port.host_port), 10)


def test_port_in_use_ends_the_container(image: r2d2.Image) -> None:
    listener, port = echo_once()
    with closing(listener):
        container = r2d2.Container(image, network="slirp", ports={port: 80})
        with pytest.raises(
            r2d2.NetworkError, match=f"listen on 127.0.0.1:{port}:80/tcp: EADDRINUSE"
        ) as failure:
            container.start()
    assert failure.value.errno == errno.EADDRINUSE
    assert failure.value.hint
    again = pickle.loads(pickle.dumps(failure.value))
    assert str(again) == str(failure.value)
    assert not container.running
    assert not children(), "neither PID 1 nor engine"


def test_failed_attach_ends_the_container(image: r2d2.Image) -> None:
    # lo is there already, whatever kind of device is to get its name.
    with pytest.raises(r2d2.NetworkError, match="attach the user-mode network to PID 1: ") as failure:
        r2d2.run(["true"], image=image, network=r2d2.Slirp(ifname="lo"))
    assert failure.value.step == "attach the user-mode network to PID 1"
    assert failure.value.errno
    assert isinstance(failure.value.__cause__, r2d2.SetupError)
    assert not children()


def test_failed_start_ends_the_engine_that_was_ready(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    container = r2d2.Container(image, network="slirp", mounts=[r2d2.Mount(tmp_path / "file", "/bin")])
    with pytest.raises(r2d2.SetupError, match=r"step \d+ of \d+, bind") as failure:
        container.start()
    assert not isinstance(failure.value, r2d2.NetworkError), "the start's own failure"
    assert not children(), "neither PID 1 nor engine"


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"network": "slurp"}, "slurp"),
        ({"network": "none", "ports": {80: 80}}, "ports"),
        ({"network": "host", "ports": {80: 80}}, "ports"),
        ({"network": "slirp", "ports": {70000: 80}}, "70000"),
        ({"network": "slirp", "ports": {80: 0}}, "0"),
        ({"network": "slirp", "ports": "80:80"}, "list"),
        ({"network": "slirp", "ports": ["80:80/sctp"]}, "sctp"),
        ({"network": "slirp", "ports": ["80-90:80-95"]}, "80-95"),
        ({"network": "slirp", "ports": ["nowhere:80:80"]}, "nowhere"),
        ({"network": r2d2.Slirp(mtu=100)}, "mtu"),
        ({"network": r2d2.Slirp(cidr="127.0.0.0/8")}, "cidr"),
        ({"network": r2d2.Slirp(configure=False)}, "configure"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(r2d2.SpecError, match=words):
        r2d2.Container("scratch", **keywords)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Publish(8080, 80)),
        ("127.0.0.2:8080:80/udp", Publish(8080, 80, "udp", "127.0.0.2")),
        ("[::1]:8080:80", Publish(8080, 80, "tcp", "::1")),
        ("0.0.0.0::80", Publish(0, 80, "tcp", "0.0.0.0")),
        ("80", Publish(0, 80)),
    ],
)
def test_ports_as_docker_writes_them(text: str, port: Publish) -> None:
    assert Publish.parse(text) == port
    assert Publish.parse(str(port)) == port


def test_explain_has_it_as_the_last_step(image: r2d2.Image) -> None:
    container = r2d2.Container(image, network="slirp")
    last = container.explain()[-1]
    assert (last.title, last.took) == ("attach the user-mode network to PID 1", None)
    assert last.number == len(container.explain())
    with container:
        assert container.explain()[-1].took
        assert container.explain() == r2d2.Container(image, network="slirp", name=container.name).explain()


def test_death_of_the_engine_is_seen_and_the_container_lives_on(image: r2d2.Image) -> None:
    with r2d2.Container(image, network="slirp") as c:
        assert c.network is not None
        os.kill(c.network.pid, signal.SIGKILL)
        assert select.select([c.network], [], [], 5)[0]
        assert until(lambda: "tap0" not in out(c, "cat", "/proc/net/dev"))
        assert not c.network.alive


def test_ctrl_c_is_not_the_engines(image: r2d2.Image) -> None:
    with r2d2.Container(image, network="slirp") as c:
        assert c.network is not None
        assert os.getpgid(c.network.pid) != os.getpgrp()


def test_killed_owner_leaves_nothing(image: r2d2.Image) -> None:
    code = (
        f"import r2d2, time\nc = r2d2.Container({str(image.layers[0])!r}, network='slirp').start()\n"
        "print(c.pid, c.network.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = owner.stdout.readline().split()
        assert len(pids) == 2
        owner.kill()
    assert until(lambda: all(ended(pid) for pid in pids), 2)


def test_killed_container_takes_its_engine_along(image: r2d2.Image) -> None:
    with r2d2.Container(image, network="slirp") as c:
        assert c.network is not None
        c.kill()
        c.wait(5)
        assert select.select([c.network], [], [], 5)[0]


# The command line

COMMAND = [sys.executable, "-m", "r2d2"]


@pytest.fixture
def guest() -> Iterator[int]:
    """A process in a network namespace of its own."""
    with r2d2.namespace.popen(["sleep", "1000"], user=True, net=True) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cli_slirp_until_ctrl_c(guest: int, number: int) -> None:
    words = ["slirp", "--configure", "--disable-host-loopback", "--mtu=65520", str(guest), "tap0"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline().startswith("tap0 (")
        devices = Path(f"/proc/{guest}/net/dev")
        assert "tap0" in devices.read_text()
        engine.send_signal(number)
        assert engine.wait(10) == 0
        assert until(lambda: "tap0" not in devices.read_text(), 0.1)


def test_cli_slirp_ends_with_the_process(guest: int) -> None:
    with subprocess.Popen([*COMMAND, "slirp", str(guest)], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline()
        os.kill(guest, signal.SIGKILL)
        assert engine.wait(10) == 0


def test_cli_slirp_of_nobody() -> None:
    done = subprocess.run([*COMMAND, "slirp", str(2**22)], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("r2d2: ")


def test_cli_run_with_a_network_and_ports(image: r2d2.Image) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    words = ["run", "--network", "slirp", "-p", f"{port}:80", str(image.layers[0]), "sh", "-c", SERVE]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        said: list[bytes] = []

        def heard() -> bool:
            # Until nc listens, the connection is reset.
            try:
                with socket.create_connection(("127.0.0.1", port), 10) as client:
                    said.append(client.recv(100))
            except OSError:
                return False
            return said[-1] == b"hello"

        assert until(heard)
        assert container.wait(10) == 0
    done = subprocess.run(
        [*COMMAND, "run", "-p", "80:80", "scratch", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 125
    assert "hint: " in done.stderr
