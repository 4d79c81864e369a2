"""A container's user-mode network: what ``network=`` and ``ports=`` mean, and the last step of a start.

The engine's process is started before PID 1, and gets ready while PID 1 does. PID 1 stands, and no program
runs yet: then the engine is attached to PID 1's namespaces (`r2d2.slirp`). It ends with PID 1, and with this
process.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from . import _core
from .errors import NetworkError, R2d2Error, SpecError, network_error
from .explain import ExplainedStep
from .netspec import Slirp, addresses, describe, search_domains
from .ports import Publish, parse_ports
from .slirp import attach_as

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from .bridge import Bridge
    from .container import Container
    from .netspec import Engine
    from .slirp import Network
    from .spec import StrPath

__all__ = ["Publish"]

_TITLE = "attach the user-mode network to PID 1"
_BRIDGE_TITLE = "join PID 1 to the host's network"


def options_of(
    network: Any, ports: Any, known: tuple[str, ...]
) -> tuple[Slirp | Bridge, tuple[Publish, ...]]:
    """``network=`` and ``ports=`` of a container, checked.

    Raises:
        SpecError: they can never work.
        UnsupportedError: this host, or this user, cannot have it.
    """
    if network == "bridge" or hasattr(network, "forward"):
        from .bridge import Bridge, checked

        published = ports_of(ports)
        return checked(Bridge() if isinstance(network, str) else network, published), published
    if isinstance(network, Slirp):
        options = network
    elif network == "slirp":
        options = Slirp()
    elif network in ("slirp4netns", "pasta"):
        options = Slirp(engine=cast("Engine", network))
    elif network in ("none", "host"):
        raise SpecError(f"ports: network={network!r} has none to lead to").with_hint('network="slirp" has')
    else:
        raise SpecError(f"network={network!r}: an r2d2.Slirp, or one of {', '.join(map(repr, known))}")
    loopback = options.host_loopback
    options = options._replace(
        host_loopback=loopback if isinstance(loopback, bool) else tuple(loopback),
        resolvers=None if options.resolvers is None else tuple(options.resolvers),
        search=None if options.search is None else tuple(options.search),
        names=None if options.names is None else dict(options.names),
        allow=tuple(options.allow),
        deny=tuple(options.deny),
        deny_names=tuple(options.deny_names),
    )
    if not options.configure:
        raise SpecError("configure=False: a container's programs could not configure it before they start")
    if options.engine == "r2d2":
        describe(options)
    else:
        from . import external

        external.check(options)
    return options, ports_of(ports)


def ports_of(ports: Any) -> tuple[Publish, ...]:
    if isinstance(ports, Mapping):
        return tuple(Publish(host, guest).checked() for host, guest in ports.items())
    if ports is None:
        return ()
    if isinstance(ports, str) or not isinstance(ports, Iterable):
        raise SpecError(f"ports={ports!r}: a mapping such as {{8080: 80}}, or a list of '8080:80'")
    found = []
    for port in ports:
        if isinstance(port, Publish):
            found.append(port.checked())
        elif isinstance(port, str):
            found += parse_ports(port)
        else:
            raise SpecError(f"port {port!r}: a string such as '8080:80/tcp'")
    return tuple(found)


def resolv_conf(options: Slirp | Bridge) -> bytes:
    """/etc/resolv.conf (resolv.conf(5)) for this network."""
    if not isinstance(options, Slirp):
        from . import bridge

        return bridge.resolv_conf(options)
    search = search_domains(options)
    lines = [*([f"search {' '.join(search)}"] if search else []), f"nameserver {addresses(options)[2]}"]
    return "\n".join(lines).encode() + b"\n"


@contextmanager
def spare(options: Slirp | Bridge) -> Iterator[_core.SpareEngine | None]:
    """The engine's process, started before there is anything to attach it to; ended if nobody takes it.

    Raises:
        NetworkError: it cannot be started.
    """
    if isinstance(options, Slirp) and options.engine != "r2d2":
        yield None  # a program of somebody else, which wants its namespace at once
        return
    try:
        engine = _core.SpareEngine()
    except OSError as error:
        raise _failure(_title(options), error) from error
    try:
        yield engine
    finally:
        engine.close()


def connect(
    container: Container,
    options: Slirp | Bridge,
    engine: _core.SpareEngine | None,
    listener: socket.socket | None = None,
) -> None:
    """Gives a container that has just been started its network, or ends it.

    Args:
        container: PID 1 stands.
        options: the network.
        engine: its process, if it runs already.
        listener: where the engine is to take requests besides ours.
    """
    began = time.perf_counter_ns()
    try:
        ports = container.spec.ports
        container._network = network = (
            attach(container.pid, options, None, ports, engine, listener)
            if isinstance(options, Slirp)
            else _bridge(container.pid, options, ports, engine, listener)
        )
    except BaseException as error:
        container.stop()
        if isinstance(error, OSError) and not isinstance(error, NetworkError):
            raise _failure(_title(options), error) from error
        raise
    container._network_took = time.perf_counter_ns() - began
    if container._closed:  # by another thread, which could not know of it yet
        network.close()


def _title(options: Slirp | Bridge) -> str:
    return _TITLE if isinstance(options, Slirp) else _BRIDGE_TITLE


def _bridge(pid: int, options: Bridge, *rest: Any) -> Network:
    from . import bridge

    return bridge.attach(pid, options, *rest)


def attach(
    target: int | StrPath,
    options: Slirp,
    userns: StrPath | None,
    ports: Iterable[Publish],
    spare: _core.SpareEngine | None = None,
    listener: socket.socket | None = None,
) -> Network:
    """A network with its ports, by whichever engine ``options`` names."""
    if options.engine != "r2d2":
        from . import external

        return external.attach(target, options, userns, ports)
    network = attach_as(target, options, userns, (), spare, listener)
    try:
        for port in ports:
            listen(network, port)
    except BaseException:
        network.close()
        raise
    return network


def listen(network: Network, port: Publish) -> None:
    """Leads a port or Unix socket of the host inside, or raises NetworkError."""
    try:
        network._publish((port,))
    except OSError as error:
        hint = None
        if error.errno == errno.EADDRINUSE:
            hint = (
                f"another program listens there (ss -lnp); host port 0 takes a free one: 0:{port.guest_port}"
                if port.protocol != "unix"
                else "something else is there, or another program listens on it (ss -xlp): take another path"
            )
        elif error.errno == errno.EACCES:
            hint = "ports below net.ipv4.ip_unprivileged_port_start (1024) are root's: take a higher one"
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = "the address to listen on must be one of this host's: ip address"
        raise _failure(f"listen on {port}", error).with_hint(hint) from error


def _failure(step: str, error: OSError) -> R2d2Error:
    number = error.errno or 0
    said = f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
    if isinstance(error, R2d2Error):
        said = str(error)
    failure = network_error(number, step, said)
    failure.syscall = getattr(error, "syscall", None)
    return failure.with_hint(getattr(error, "hint", None))


def explained(
    options: Slirp | Bridge, ports: Iterable[Publish], number: int, took: int | None
) -> ExplainedStep:
    """The step, as ``explain()`` shows it."""
    if not isinstance(options, Slirp):
        from .bridge import by_hand

        return ExplainedStep(
            number,
            "caller",
            _BRIDGE_TITLE,
            "pidfd_open execve setns socket sendto bind",
            by_hand(options, ports),
            "a veth pair, a route and a table of the firewall's, kept by a process that ends with it",
            took=took,
        )
    if options.engine == "pasta":
        from .external import command_line

        return _step(number, took, " ".join([*command_line(options), "PID"]))
    words = ["slirp4netns", "--configure", f"--mtu={options.mtu}", f"--cidr={options.cidr}"]
    if options.host_loopback is False:
        words.append("--disable-host-loopback")
    if options.ipv6:
        words.append("--enable-ipv6")
    return _step(number, took, " ".join([*words, "PID", options.ifname]))


def _step(number: int, took: int | None, command: str) -> ExplainedStep:
    return ExplainedStep(
        number,
        "caller",
        _TITLE,
        "pidfd_open execve setns socket socketpair",
        command,
        "a process with ordinary sockets of the caller speaks for the container to the world",
        took=took,
    )
