"""A user-mode network for any network namespace: what ``slirp4netns PID tap0`` does, with our engine.

A new network namespace has nothing but a loopback device that is down. `attach` gives it an interface
whose other end is a process, r2d2's engine: it takes the packets of the namespace and speaks for it
with ordinary sockets of the calling user. No privilege is needed, not even the right to
open ``/dev/net/tun``, and nothing changes on the host::

    $ unshare --user --map-root-user --net sh -c 'echo $$; exec sleep 1000'
    12345

    >>> with slirp.attach(12345) as network:                       # doctest: +SKIP
    ...     network.add_port(8080, 80)

Inside, the address is 10.0.2.100 (and fd00::100), the router 10.0.2.2, the resolver 10.0.2.3. Leaving
the block ends the engine, and with it the interface, as Ctrl-C ends slirp4netns.

*Rules by name* (``allow=["example.org:443"]``) speak of the addresses that the resolver inside has
given for the name: for the time that the answer says, but a minute at least. So an address that nobody
has asked for has no name, and under ``deny=["*"]`` it is not reached. An allowed name is the one that
was asked for; a denied one also an alias that it leads to. If several names share an address, what is
allowed first decides. Rules are asked when a connection begins; those that stand stay. Programs may
write a name in any case, with or without the last dot; other alphabets are written as they are or in
their ASCII form. The guest's DNS over TCP is refused where there are such rules, and whoever asks
another resolver finds names that the rules do not know: ``deny=["*:53", "*:853"]`` closes that way.
What a connection says of its peer's name later (TLS, HTTP) is not looked at: of two names on one
address, allowing one allows both.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _core
from .closing import Closing
from .errors import R2d2Error, SpecError, setup_error
from .netspec import Slirp, addresses, describe, endpoint
from .ports import Port, Protocol, Publish, listening, parse_ports, remove_with

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Mapping, Sequence

    from .capture import Capture, Packets
    from .events import Events
    from .netspec import Address, Device, Engine
    from .spec import StrPath

__all__ = ["Flow", "Network", "Port", "Slirp", "attach"]


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection, or what comes closest to one, as the engine sees it.

    Attributes:
        protocol: ``tcp``, ``udp`` or ``icmp``.
        guest: address and port inside.
        remote: address and port outside, as known inside.
        state: of TCP ``Connecting``, ``SynSent``, ``SynReceived``, ``Established`` or ``TimeWait``, or
            ``Spliced`` of one that does not pass the interface (see `Network.add_port`); of UDP ``sent`` or
            ``replied``; of ICMP ``echo``.
        idle: seconds since the last packet.
        sent: bytes of payload that left the guest.
        received: bytes of payload that came in; what was sent again counts once.
        resent: TCP segments that were sent to the guest again.
    """

    protocol: str
    guest: str
    remote: str
    state: str
    idle: int
    sent: int = 0
    received: int = 0
    resent: int = 0


class Network(Closing):
    """A running network, made by `attach`. A context manager: leaving it removes the interface.

    Attributes:
        ifname: the interface's name inside.
        address: the guest's IPv4 address.
        gateway: the router inside.
        dns: the resolver inside.
        address6: the guest's IPv6 address; None with ``ipv6=False``.
    """

    def __init__(
        self, network: _core.Network, ifname: str, v4: Sequence[Address], v6: Address | None
    ) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._ports: dict[Port, int] = {}
        self._files: dict[Port, weakref.finalize[..., object]] = {}
        self.ifname = ifname
        self.address, self.gateway, self.dns = v4
        self.address6 = v6

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.alive else "closed"
        return f"<r2d2.slirp.Network {self.ifname} {self.address} {state}>"

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._network.pid

    @property
    def device(self) -> str:
        """What the interface is: ``tap``, or ``packet`` for one end of a veth pair."""
        return self._network.device

    @property
    def alive(self) -> bool:
        """Whether the engine runs. It ends with the process that it was attached to."""
        return self._network.alive()

    def fileno(self) -> int:
        """A descriptor that becomes readable when the engine ends (for select, poll, asyncio)."""
        return self._network.fileno()

    @property
    def ports(self) -> tuple[Port, ...]:
        """What `add_port`, `add_ports` and `add_socket` have added."""
        with self._lock:
            return tuple(self._ports)

    def add_port(
        self,
        host_port: int,
        guest_port: int | None = None,
        *,
        protocol: Protocol = "tcp",
        host: str = "127.0.0.1",
    ) -> Port:
        """Leads a port of the host into the namespace.

        A TCP server inside sees the client's own address and port; clients on the host's loopback appear as
        the router.

        With ``splice=True`` TCP connections do not pass the interface: the engine splices each with one that
        it opens inside (splice(2), ip(7) ``IP_TRANSPARENT``), which the server gets by ``lo``. So a firewall
        inside sees them come in on ``lo``, and neither `capture` nor tcpdump on the interface sees them. In
        the namespace, while the network lasts, the settings ``net.ipv4.tcp_fwmark_accept`` and
        ``fwmark_reflect`` are on, and rule 1 sends the mark 0x72321032 to a table of that number.
        Connections that come while a capture runs, with ``delay`` or ``loss``, beyond a quarter of the
        flows that the limit of descriptors allows, to a namespace that was given by its path, or where the
        kernel does not have it, pass the interface nevertheless, as do those that nobody takes on ``lo``; a
        server sees the same. `stats` counts both: ``tcp_spliced`` of ``tcp_in``, and ``tcp_unspliced`` that
        should have been. It is not the default: two sockets and two more wake-ups for each connection make
        new connections and short answers about a tenth slower than the interface is, and long streams no
        faster.

        Args:
            host_port: the port to listen on; 0 lets the kernel choose, see the result's ``host_port``.
            guest_port: the port inside; the same as ``host_port`` if None.
            protocol: ``tcp`` or ``udp``.
            host: the address to listen on, IPv4 or IPv6; ``0.0.0.0`` or ``::`` for all.

        Raises:
            OSError: the port cannot be listened on (``EADDRINUSE``, ``EACCES`` below 1024).
            SpecError: a port is not one.
            ContainerClosed: the network is closed.
        """
        guest_port = host_port if guest_port is None else guest_port
        if protocol == "unix":
            raise SpecError("protocol: a Unix socket has a path and no port; see add_socket")
        return self._publish((Publish(host_port, guest_port, protocol, host),))[0]

    def add_ports(self, text: str) -> tuple[Port, ...]:
        """Leads a range of ports into the namespace, all or none: ``8000-8010:8000-8010``.

        Args:
            text: as ``docker run -p`` takes it, ``[[ADDRESS:][PORT]:]PORT[/PROTOCOL]``, each PORT a number or
                a range, both of one length; or ``PATH:PORT``, see `add_socket`.

        Raises:
            OSError: one of them cannot be listened on.
            SpecError: it can never work.
            ContainerClosed: the network is closed.
        """
        return self._publish(parse_ports(text))

    def add_socket(self, path: StrPath, guest_port: int) -> Port:
        """Leads a Unix socket of the host (unix(7)) to a TCP port of the namespace.

        It is made with mode 0600, takes the place of one that nobody listens on, and is removed with the
        port or the network. A server inside sees its clients as the router.

        Args:
            path: where to make the socket, at most 107 bytes.
            guest_port: the TCP port inside.

        Raises:
            OSError: it cannot be made (``EADDRINUSE``: something is there).
            SpecError: it can never work.
            ContainerClosed: the network is closed.
        """
        return self._publish((Publish(0, guest_port, "unix", os.fspath(path)),))[0]

    def _publish(self, ports: Iterable[Publish]) -> tuple[Port, ...]:
        added: list[Port] = []
        try:
            for port in [port.checked() for port in ports]:
                added.append(self._forward(port))  # noqa: PERF401 - what was added before a failure must be known
        except BaseException:
            for done in reversed(added):
                with suppress(R2d2Error, OSError):
                    self.remove_port(done)
            raise
        return tuple(added)

    def _forward(self, port: Publish) -> Port:
        with listening(port) as listener, self._lock:
            name = listener.getsockname()
            unix = port.protocol == "unix"
            guest = self.address6 if listener.family == socket.AF_INET6 and self.address6 else self.address
            to = f"[{guest}]" if guest.version == 6 else f"{guest}"
            kind = "tcp" if unix else port.protocol
            host, host_port = (name, 0) if unix else name[:2]
            added = Port(port.protocol, host, host_port, str(guest), port.guest_port)
            words = f"{kind} {to}:{port.guest_port} {_listened(added)}"
            number = int(self._network.request(f"forward {words}", [listener.fileno()]))
            self._ports[added] = number
            if unix:
                self._files[added] = remove_with(self, name)
        return added

    def remove_port(self, port: Port) -> None:
        """Ends a forward. TCP connections that stand go on.

        Raises:
            KeyError: it is not among `ports`.
        """
        with self._lock:
            guest = f"[{port.guest}]" if ":" in port.guest else port.guest
            kind = "udp" if port.protocol == "udp" else "tcp"
            words = f"{self._ports[port]} {kind} {guest}:{port.guest_port} {_listened(port)}"
            self._network.request(f"unforward {words}")
            del self._ports[port]
            if (remove := self._files.pop(port, None)) is not None:
                remove()

    def stats(self) -> dict[str, int]:
        """The engine's counters by name: frames, bytes, flows, drops by reason, retransmissions.

        Bytes of spliced connections (``tcp_spliced``) are in no counter but their flows' own.
        """
        lines = self._network.request("stats").splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    def flows(self) -> list[Flow]:
        """What is going on now (as far as it fits 64 KiB)."""
        found = []
        for line in self._network.request("flows").splitlines():
            protocol, guest, remote, state, *numbers = line.split()
            found.append(Flow(protocol, guest, remote, state, *map(int, numbers)))
        return found

    def events(self) -> Events:
        """What happens from now on, as `Event` objects: an iterator and a context manager.

        >>> with network.events() as events:                           # doctest: +SKIP
        ...     for event in events:
        ...         print(event.kind, event.protocol, event.guest, event.remote, event.reason)

        Raises:
            SetupError: sixteen listen already (``ENOSPC``).
            ContainerClosed: the network is closed.
        """
        from .events import Events

        return Events(self._network)

    def capture(
        self,
        path: StrPath,
        filter: str = "",  # noqa: A002 - what everybody calls it
        *,
        snaplen: int = 1 << 18,
    ) -> Capture:
        """Records what passes from now on to a pcapng file, for tcpdump and Wireshark.

        Large TCP segments appear uncut, and checksums that are left to the device undone. Spliced connections
        that stood before do not pass the interface, later ones do; see `add_port`.

        Args:
            path: the file; emptied if it exists, made with mode 0600 if not.
            filter: which packets, as tcpdump's ``tcp port 80 and not host 192.0.2.1``; all if empty. See
                `r2d2.capture` for the words.
            snaplen: how many bytes of each frame are kept, 14 to 262144.

        Returns:
            The capture, a context manager; leaving it, or `Capture.close`, ends it.

        Raises:
            OSError: the file cannot be written.
            SpecError: the filter is no expression; ``path`` is no regular file.
            SetupError: there are eight captures already (``ENOSPC``).
            ContainerClosed: the network is closed.
        """
        from .capture import Capture, compile_filter

        return Capture(self._network, path, compile_filter(filter), snaplen)

    def packets(
        self,
        filter: str = "",  # noqa: A002 - what everybody calls it
        *,
        snaplen: int = 1 << 18,
    ) -> Packets:
        """What passes from now on, as `Packet` objects: an iterator and a context manager.

        >>> with network.packets("udp port 53") as packets:             # doctest: +SKIP
        ...     for packet in packets:
        ...         print(packet.time, packet.outgoing, packet.length, packet.data[:64])

        Args:
            filter: which packets; see `capture`.
            snaplen: how many bytes of each frame are kept.

        Raises:
            SpecError: the filter is no expression.
            SetupError: there are eight captures already (``ENOSPC``).
            ContainerClosed: the network is closed.
        """
        from .capture import Packets, compile_filter

        return Packets(self._network, compile_filter(filter), snaplen)

    def set_resolvers(self, resolvers: Iterable[str]) -> None:
        """Replaces the host's resolvers that queries are relayed to, for a laptop that changes networks."""
        self._network.request("resolvers " + " ".join(map(endpoint, resolvers)))

    def close(self) -> None:
        """Ends the engine and waits for its end. A second call does nothing.

        The interface goes with it, which takes the kernel 13 to 20 ms, and some 30 for a packet device.
        """
        self._network.close()
        with self._lock:
            files, self._files = self._files, {}
        for remove in files.values():
            remove()


def _listened(port: Port) -> str:
    """Where a port is listened on, in one word."""
    from urllib.parse import quote

    host = f"[{port.host}]" if ":" in port.host and port.protocol != "unix" else port.host
    return quote(host if port.protocol == "unix" else f"{host}:{port.host_port}", safe="/:[]")


def attach(
    target: int | StrPath,
    ifname: str = "tap0",
    *,
    mtu: int = 1500,
    cidr: str = "10.0.2.0/24",
    ipv6: bool = True,
    host_loopback: bool | Iterable[int] = False,
    ports: Mapping[int, int] | None = None,
    resolvers: Iterable[str] | None = None,
    search: Iterable[str] | None = None,
    names: Mapping[str, str | Sequence[str]] | None = None,
    allow: Iterable[str] = (),
    deny: Iterable[str] = (),
    deny_names: Iterable[str] = (),
    configure: bool = True,
    userns: StrPath | None = None,
    device: Device = "any",
    engine: Engine = "r2d2",
    delay: float = 0.0,
    loss: float = 0.0,
    splice: bool = False,
) -> Network:
    """Gives a network namespace an interface to the world.

    Args:
        target: a process in the namespace, whose end ends the network; or the path of a network namespace,
            such as ``/run/netns/NAME`` or ``/proc/PID/ns/net``, with ``userns`` where it belongs to another
            user namespace.
        ifname: the interface's name, at most 15 bytes.
        mtu: the largest packet, 576 to 65520 bytes (1280 at least with IPv6).
        cidr: the IPv4 network; the guest gets .100, the router .2, the resolver .3.
        ipv6: fd00::/64 besides.
        host_loopback: whether the router's address leads to the host's 127.0.0.1 and ::1, or for which ports
            only. Elsewise connecting to it fails at once with ``ENETUNREACH``.
        ports: TCP ports of the host's 127.0.0.1 that lead to ports inside; see `Network.add_port`.
        resolvers: who answers DNS queries, best first; the host's resolv.conf(5) if None.
        search: search domains for DHCP; the host's if None.
        names: names that the resolver inside knows by itself.
        allow: destinations that may be reached, as ``192.0.2.0/24:443``, ``example.org:443`` or
            ``*.example.org`` (names below it, not itself); looked at before ``deny``.
        deny: destinations that may not; ``*`` stands for all that ``allow`` does not name, and connecting to
            those fails at once with ``ENETUNREACH``.
        deny_names: domains that are not resolved, with everything below them, unless ``allow`` names them;
            ``*`` stands for all others. Addresses that an alias of one leads to are denied as well.
        configure: give the interface addresses and routes (else only bring it up).
        device: ``tap``; or ``packet``, a veth pair whose other end is known to nobody but the engine,
            which needs no ``/dev/net/tun``; or ``any``, the first of them that can be had.
        userns: path of the user namespace that owns the one that ``target`` names.
        engine: ``r2d2``; or ``slirp4netns`` or ``pasta``, where they are installed: see `r2d2.external`.
        delay: how much later each frame arrives, each way, in seconds (up to 10): a longer path, as by
            tc-netem(8).
        loss: which part of the frames is lost, each way, from 0 to 0.9; chosen by chance.
        splice: connections to published TCP ports go around the interface where they can; `Network.add_port`
            tells how, and why they do not without this.

    Raises:
        SpecError: an argument can never work.
        SetupError: the namespace cannot be joined or the interface not be made; ``step`` and ``errno``
            say why.
        SetupNotFoundError: there is no such process or path.
        SetupPermissionError: it belongs to somebody else.
        UnsupportedError: ``engine`` is not installed, or cannot do what another argument says.
    """
    options = Slirp(
        ifname,
        mtu,
        cidr,
        ipv6,
        host_loopback,
        resolvers,
        search,
        names,
        allow,
        deny,
        deny_names,
        configure,
        device,
        engine,
        delay,
        loss,
        splice,
    )
    if engine != "r2d2":
        from . import external

        return external.attach(target, options, userns, [Publish(*each) for each in (ports or {}).items()])
    network = attach_as(target, options, userns)
    try:
        for host_port, guest_port in (ports or {}).items():
            network.add_port(host_port, guest_port)
    except BaseException:
        network.close()
        raise
    return network


def attach_as(
    target: int | StrPath,
    options: Slirp,
    userns: StrPath | None = None,
    extra: Sequence[str] = (),
    spare: _core.SpareEngine | None = None,
    listener: socket.socket | None = None,
) -> Network:
    """`attach` with its options in one object.

    Args:
        target: as of `attach`.
        options: the rest of its arguments.
        userns: as of `attach`.
        extra: lines of the description that override those before.
        spare: the engine's process, if it runs already.
        listener: where the engine is to take requests besides ours; ``target`` must be a process.
    """
    lines = [describe(options), *extra]
    with ExitStack() as stack:
        fds: list[int] = []
        try:
            if isinstance(target, int):
                lines.append("watch")
                fds.append(os.pidfd_open(target))
                stack.callback(os.close, fds[-1])
            else:
                for path in (*(() if userns is None else (userns,)), target):
                    fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                    stack.callback(os.close, fds[-1])
        except OSError as error:
            name = f"/proc/{target}" if isinstance(target, int) else os.fsdecode(error.filename)
            number = errno.ENOENT if error.errno in (None, errno.ESRCH) else error.errno
            failure = setup_error(number, os.strerror(number), name)
            failure.step = "find the namespace"
            raise failure from None
        if listener is not None:
            lines.append("listen")
            fds.append(listener.fileno())
        engine = _core.Network("\n".join(lines), fds, spare)
    address6 = ipaddress.ip_address("fd00::100") if options.ipv6 else None
    return Network(engine, options.ifname, addresses(options), address6)
