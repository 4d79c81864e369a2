"""The network of a detached container: its engine outlives us, and is asked on a socket of its own.

The engine listens on ``network`` in the container's directory (see `r2d2.detached`), as its PID 1 does on
``control``. It is started like any other and ends with us until the container is kept; then it ends with the
container's PID 1, and with it the interface and the ports. How it ended the kernel tells others than its
parent since Linux 6.15 (``PIDFD_GET_INFO``), if they have opened a descriptor of it in time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from . import bridge, network, statedir
from .bridge import Bridge, BridgeNetwork
from .errors import ContainerClosed, R2d2Error, SpecError, setup_error, unsupported_error
from .netspec import Slirp, addresses, describe
from .ports import Port
from .slirp import Network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from . import _core
    from .container import Container
    from .state import State
    from .statedir import Place

__all__ = ["Rejoined"]

#: The longest answer.
_MAX = 64 << 10
#: How long an answer may take, in seconds: the engine never blocks.
_PATIENCE = 10.0
#: From linux/pidfd.h: the request, for the first version of the structure, and what is asked for.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8


def check(container: Container) -> None:
    """Refuses a network that cannot outlive us.

    Raises:
        UnsupportedError: it is another program's.
        SpecError: a Unix socket is published: nobody would remove it.
    """
    options = container.spec.slirp
    if isinstance(options, Slirp) and options.engine != "r2d2":
        raise unsupported_error(
            errno.EOPNOTSUPP, f"network={options.engine!r}: the program ends with this process"
        ).with_hint('network="slirp" has an engine that stays with a detached container')
    if any(port.protocol == "unix" for port in container.spec.ports):
        raise SpecError("ports: a Unix socket would be left behind by a detached container").with_hint(
            "publish a TCP port, on 127.0.0.1 unless others may connect"
        )


def connect(
    container: Container, options: Slirp | Bridge, place: Place, engine: _core.SpareEngine | None
) -> None:
    """Gives a container that is being started its network; it ends with us until `_core.Network.leave`."""
    with place.listening("network") as listener:
        network.connect(container, options, engine, listener)


class _Asked:
    """The engine, as whoever finds it again has it: what `Network` needs of a `_core.Network`."""

    def __init__(self, control: socket.socket, name: str) -> None:
        self._control = control
        self._name = name
        self._lock = threading.Lock()
        self._pidfd = -1
        pid, self.device = self.request("about").split(maxsplit=1)
        self.pid = int(pid)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise _failure("", name) from None
        try:
            self.request("about")  # it still answers, so the descriptor is of no later process
        except BaseException:
            os.close(self._pidfd)
            raise

    def request(self, text: str, fds: Sequence[int] = ()) -> str:
        """Sends one request; what follows ``ok`` in the answer.

        Raises:
            SetupError: the engine refuses it.
            ContainerClosed: the engine has ended, or this connection has.
        """
        with self._lock:
            if self._control.fileno() < 0:
                raise ContainerClosed("this network is closed")
            try:
                socket.send_fds(self._control, [text.encode()], list(fds))
                answer = self._control.recv(_MAX).decode()
            except (ConnectionError, TimeoutError):
                answer = ""
        if not answer.startswith("ok"):
            raise _failure(answer, self._name)
        return answer[2:].lstrip()

    def alive(self) -> bool:
        """Whether it still answers."""
        return self._control.fileno() >= 0 and not select.select([self._control], [], [], 0)[0]

    def fileno(self) -> int:
        """A descriptor that is readable when it has ended."""
        return self._control.fileno()

    def outcome(self) -> int | None:
        """How it ended: an exit code, or a signal's number negated; None if it has not, or nobody tells."""
        with self._lock:
            if self._pidfd < 0:
                return None
            with suppress(ChildProcessError):  # it is ours, and we have not asked yet
                found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None:
                    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            info = bytearray(64)
            struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
            try:
                fcntl.ioctl(self._pidfd, _PIDFD_GET_INFO, info)
            except OSError:
                return None
            (mask,), (status,) = struct.unpack_from("=Q", info), struct.unpack_from("=i", info, 60)
            return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._control.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1


def _failure(answer: str, name: str) -> R2d2Error:
    words = answer.split("\t")
    if len(words) == 4 and words[0] == "error" and words[3].isdigit():
        number = int(words[3])
        failure = setup_error(number, f"{words[1]}: {words[2]}: {os.strerror(number)}", None)
        failure.step = words[1]
        return failure
    return ContainerClosed(f"the network of container {name} has ended")


class _Again(Network):
    """What is the same whoever made it: its ports."""

    @property
    def ports(self) -> tuple[Port, ...]:
        """What leads inside now, whoever added it."""
        with self._lock:
            self._refresh()
            return tuple(self._ports)

    def remove_port(self, port: Port) -> None:
        """As `Network.remove_port`, whoever added it."""
        with self._lock:
            self._refresh()
        super().remove_port(port)

    def _refresh(self) -> None:
        found = {}
        for line in self._network.request("forwards").splitlines():
            number, kind, to, at = line.split()
            guest, guest_port = _address(to)
            host, host_port = _address(unquote(at))
            found[Port(cast("Any", kind), host, host_port, guest, guest_port)] = int(number)
        self._ports = found


class Rejoined(_Again):
    """The network of a detached container. Closing it ends the connection, not the network."""

    def __init__(self, options: Slirp, asked: _Asked) -> None:
        from ipaddress import ip_address

        address6 = ip_address("fd00::100") if options.ipv6 else None
        super().__init__(cast("_core.Network", asked), options.ifname, addresses(options), address6)


class RejoinedBridge(_Again, BridgeNetwork):
    """The same of a container that is joined to the host's network."""

    def __init__(self, options: Bridge, asked: _Asked) -> None:
        BridgeNetwork.__init__(self, cast("_core.Network", asked), options, asked.device)


@contextmanager
def ending(state: State) -> Iterator[None]:
    """Ends the container's network after the body, which ends the container: its ports are free then."""
    network = rejoin(state)
    if network is None:
        yield
        return
    with network, ExitStack() as stack:
        try:
            engine = os.pidfd_open(network.pid)
        except ProcessLookupError:
            engine = -1
        else:
            stack.callback(os.close, engine)
        if not network.alive:  # it may be somebody else's pid by now
            engine = -1
        yield
        if engine >= 0:
            select.select([engine], [], [], _PATIENCE)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def rejoin(state: State) -> Rejoined | RejoinedBridge | None:
    """The network of a detached container; None if it has none of its own, or none any more."""
    fields = state.kept.get("slirp")
    kind: type[Slirp | Bridge] = Bridge if state.kept.get("network") == "bridge" else Slirp
    if not isinstance(fields, list | tuple) or len(fields) != len(kind._fields):
        return None
    try:
        options = kind(*fields)
        describe(options) if isinstance(options, Slirp) else bridge.describe(options)
        control = statedir.connect(state.name, "network")
    except (SpecError, TypeError, ValueError, AttributeError, ContainerClosed):
        return None
    control.settimeout(_PATIENCE)
    try:
        asked = _Asked(control, state.name)
        return Rejoined(options, asked) if isinstance(options, Slirp) else RejoinedBridge(options, asked)
    except ContainerClosed:
        control.close()
        return None
    except BaseException:
        control.close()
        raise
