"""slirp4netns and pasta behind the handle of our own engine, where they are installed."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

import r2d2
from _guest import inside, interfaces, python, server, serving
from _needs import has, needs
from _proc import children, ended, processes, strange, until
from r2d2 import external, slirp

ENGINES = [pytest.param(name, marks=needs("unshare", name, "tun")) for name in ("slirp4netns", "pasta")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> slirp.Engine:
    """Each program that is here."""
    return cast("slirp.Engine", request.param)


def has_tap(pid: int) -> bool:
    return "tap0" in interfaces(pid)


def watchdogs() -> set[int]:
    return {
        pid
        for pid, (name, state, _) in processes().items()
        if name == "r2d2-watch" and state != "Z" and not strange(pid)
    }


def test_attached_and_closed(engine: slirp.Engine, guest: int) -> None:
    before = watchdogs()
    with slirp.attach(guest, mtu=9000, cidr="10.0.135.128/25", engine=engine) as network:
        assert isinstance(network, external.External)
        assert (network.engine, network.device, network.alive) == (engine, "tap", True)
        assert engine in repr(network)
        shown = inside(guest, "ip", "addr", "show", "tap0").stdout
        assert f"inet {network.address}/25" in shown
        assert str(network.address) == "10.0.135.228"
        assert f"default via {network.gateway}" in inside(guest, "ip", "route").stdout
        assert children()[network.pid].split()[0].startswith(("slirp4netns", "pas"))
        assert len(watchdogs() - before) == 1
        for ask in (network.stats, network.flows, lambda: network.set_resolvers(["192.0.2.1"])):
            with pytest.raises(r2d2.UnsupportedError, match=engine) as failure:
                ask()
            assert failure.value.hint
    assert not network.alive
    assert until(lambda: not has_tap(guest))
    assert until(lambda: watchdogs() == before)
    network.close()
    with pytest.raises(r2d2.ContainerClosed):
        network.stats()


def test_traffic_and_the_hosts_loopback(engine: slirp.Engine, guest: int) -> None:
    code = """
try: print(socket.create_connection(("10.0.2.2", {}), 3).recv(99).decode())
except OSError as e: print("no")
"""
    with server(lambda client: client.sendall(b"from the host's loopback")) as port:
        with slirp.attach(guest, host_loopback=True, engine=engine):
            assert python(guest, code.format(port)) == "from the host's loopback"
        assert until(lambda: not has_tap(guest))
        with slirp.attach(guest, engine=engine):
            assert "loopback" not in python(guest, code.format(port))


SERVE = """
s = socket.create_server(("0.0.0.0", 8080)); print("ready", flush=True)
c, peer = s.accept(); c.sendall(b"from inside"); c.close()
"""


def fetched(guest: int, port: int) -> bytes:
    """What a server inside says to a client of the host's port."""
    with serving(guest, SERVE), socket.create_connection(("127.0.0.1", port), 10) as client:
        return client.recv(99)


def test_ports_that_are_given_at_the_start(engine: slirp.Engine, guest: int) -> None:
    with slirp.attach(guest, ports={0: 8080}, engine=engine) as network:
        (port,) = network.ports
        assert (port.protocol, port.guest, port.guest_port) == ("tcp", "10.0.2.100", 8080)
        assert port.host_port
        assert fetched(guest, port.host_port) == b"from inside"


def test_ports_at_run_time(engine: slirp.Engine, guest: int) -> None:
    with slirp.attach(guest, engine=engine) as network:
        if engine == "pasta":
            with pytest.raises(r2d2.UnsupportedError, match="ports="):
                network.add_port(0, 8080)
            return
        port = network.add_port(0, 8080)
        assert network.ports == (port,)
        assert fetched(guest, port.host_port) == b"from inside"
        with pytest.raises(r2d2.NetworkError) as failure:
            network.add_port(port.host_port, 8080)
        assert failure.value.errno == errno.EADDRINUSE
        with pytest.raises(r2d2.UnsupportedError, match="IPv6"):
            network.add_port(0, 8080, host="::1")
        with pytest.raises(r2d2.SpecError):
            network.add_port(0, 0)
        network.remove_port(port)
        assert not network.ports
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.host_port), 10)
        with pytest.raises(KeyError):
            network.remove_port(port)


def test_container(engine: slirp.Engine, image: r2d2.Image) -> None:
    with r2d2.Container(image, network=engine, ports={0: 80}) as c:
        assert isinstance(c.network, external.External)
        shown = c.run(["sh", "-c", "ip addr; cat /etc/resolv.conf"], capture_output=True, text=True).stdout
        assert "inet 10.0.2.100/24" in shown
        assert "nameserver 10.0.2.3" in shown
        (port,) = c.ports
        serve = ["sh", "-c", "echo ready; printf hello | nc -l -p 80"]
        with c.popen(serve, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()

            def heard() -> bool:
                try:
                    with socket.create_connection(("127.0.0.1", port.host_port), 10) as client:
                        return client.recv(100) == b"hello"
                except OSError:
                    return False

            assert until(heard, 20)
            process.kill()
        step = c.explain()[-1]
        assert step.took
        assert step.shell.startswith(engine)
        pid = c.network.pid
    assert ended(pid)
    assert not children()


def test_port_in_use_ends_the_container(engine: slirp.Engine, image: r2d2.Image) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        container = r2d2.Container(image, network=engine, ports={port: 80})
        with pytest.raises(r2d2.NetworkError, match=f"listen on 127.0.0.1:{port}:80/tcp") as failure:
            container.start()
    assert failure.value.errno == errno.EADDRINUSE
    assert not children()


def test_programs_own_words_when_it_fails(engine: slirp.Engine, guest: int) -> None:
    before = watchdogs()
    with pytest.raises(r2d2.NetworkError, match=f"start {engine}: .*[a-z]{{3}}") as failure:
        slirp.attach(guest, "lo", engine=engine)
    assert failure.value.step == f"start {engine}"
    assert not [pid for pid, name in children().items() if engine[:4] in name]
    assert until(lambda: watchdogs() == before)


def test_nobody_to_attach_to(engine: slirp.Engine) -> None:
    with pytest.raises(r2d2.SetupNotFoundError):
        slirp.attach(2**22, engine=engine)


def test_namespace_by_path(engine: slirp.Engine, guest: int) -> None:
    with slirp.attach(f"/proc/{guest}/ns/net", userns=f"/proc/{guest}/ns/user", engine=engine) as network:
        assert f"inet {network.address}/24" in inside(guest, "ip", "addr", "show", "tap0").stdout


def test_death_of_the_program_is_seen(engine: slirp.Engine, guest: int) -> None:
    with slirp.attach(guest, engine=engine) as network:
        os.kill(network.pid, signal.SIGKILL)
        assert select.select([network], [], [], 5)[0]
        assert not network.alive
        assert until(lambda: not has_tap(guest))


def test_ends_with_the_process_that_it_serves(engine: slirp.Engine, guest: int) -> None:
    with slirp.attach(guest, engine=engine) as network:
        os.kill(guest, signal.SIGKILL)
        assert select.select([network], [], [], 5)[0]


def test_killed_owner_leaves_nothing(engine: slirp.Engine, guest: int) -> None:
    before = watchdogs()
    code = (
        f"import time\nfrom r2d2 import slirp\nn = slirp.attach({guest}, engine={engine!r})\n"
        "print(n.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = owner.stdout.readline().strip()
        assert pid
        assert has_tap(guest)
        assert not [*Path("/tmp").glob("r2d2-*/api"), *Path("/tmp").glob("r2d2-*/pid")]
        owner.kill()
    assert until(lambda: ended(pid))
    assert until(lambda: not has_tap(guest))
    assert until(lambda: watchdogs() == before)


COMMAND = [sys.executable, "-m", "r2d2"]


def test_cli(engine: slirp.Engine, guest: int, image: r2d2.Image) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--network", engine, str(image.layers[0]), "ip", "addr", "show", "tap0"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "inet 10.0.2.100/24" in done.stdout
    words = ["slirp", "--engine", engine, "-p", "0:8080", str(guest)]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("tap0 (tap): 10.0.2.100")
        assert has_tap(guest)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert until(lambda: not has_tap(guest))


# Refused before anything is started, on every machine


@pytest.mark.parametrize("name", ["slirp4netns", "pasta"])
def test_not_installed(name: str, image: r2d2.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(r2d2.UnsupportedError, match=f"{name} is not installed") as failure:
        r2d2.Container(image, network=name)
    assert "apt install" in (failure.value.hint or "")
    assert failure.value.errno == errno.ENOENT
    with pytest.raises(r2d2.UnsupportedError, match="not installed"):
        slirp.attach(os.getpid(), engine=cast("slirp.Engine", name))


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in ("slirp4netns", "pasta")])
def test_without_a_tun_device(name: str, image: r2d2.Image) -> None:
    if has("tun"):
        assert r2d2.Container(image, network=name).spec.slirp == r2d2.Slirp(engine=cast("slirp.Engine", name))
        return
    with pytest.raises(r2d2.UnsupportedError, match="/dev/net/tun") as failure:
        r2d2.Container(image, network=name)
    assert 'network="slirp"' in (failure.value.hint or "")


@pytest.mark.parametrize("name", ["slirp4netns", "pasta"])
@pytest.mark.parametrize(
    "options",
    [
        {"resolvers": ["192.0.2.1"]},
        {"search": ["example"]},
        {"names": {"a": "192.0.2.1"}},
        {"allow": ["192.0.2.0/24"]},
        {"deny": ["*"]},
        {"deny_names": ["example"]},
        {"host_loopback": [80]},
        {"device": "packet"},
    ],
)
def test_what_the_programs_cannot_do(name: str, options: dict[str, Any]) -> None:
    (field,) = options
    with pytest.raises(r2d2.UnsupportedError, match=field) as failure:
        slirp.attach(os.getpid(), engine=cast("slirp.Engine", name), **options)
    assert name in str(failure.value)


@pytest.mark.parametrize("options", [{"engine": "vpnkit"}, {"engine": "pasta", "mtu": 5}, {"engine": ""}])
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(r2d2.SpecError):
        slirp.attach(os.getpid(), **options)
    with pytest.raises(r2d2.SpecError):
        r2d2.Container("scratch", network=r2d2.Slirp(**options))
