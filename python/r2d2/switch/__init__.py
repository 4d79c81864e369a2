"""Networks of containers: a switch of their own, without privileges and without anything on the host.

Each member has an Ethernet interface whose other end is held by one process, r2d2's engine: it passes frames
from one member to the others as a switch does, answers for their names, and, if asked, is their way out::

    >>> with r2d2.Network() as net:                                                     # doctest: +SKIP
    ...     with r2d2.Container("host", name="db", network=net) as db:
    ...         with r2d2.Container("host", network=net) as web:
    ...             web.run(["ping", "-c1", "db"])

The network is the calling process's: it ends with it, however that ends, and with the network its members'
interfaces. What links do to frames (`Network.link`) is decided by the network's seed alone.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import threading
import weakref
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from r2d2 import _core
from r2d2.closing import Closing
from r2d2.errors import ContainerClosed, NetworkError, SpecError
from r2d2.netspec import DOMAIN, IFNAME, Slirp, describe

from .link import GATEWAY, Linked
from .member import Interface, Member, Seat, check_distinct, failed, refused, route, seated, settle, tell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from r2d2.container import Container
    from r2d2.drawings import Drawing
    from r2d2.netspec import Address, Device
    from r2d2.spec import StrPath

    from .capture import Capture

__all__ = ["Network", "open_networks"]

_V4 = ipaddress.IPv4Network
_subnets = count()
_numbers = count(1)
#: One for all networks of this process: a member of several is known to each of them.
_LOCK = threading.RLock()
#: Those that were started and not closed.
open_networks: weakref.WeakSet[Network] = weakref.WeakSet()


def _subnet(subnet: str | None) -> ipaddress.IPv4Network:
    if subnet is None:
        number = next(_subnets)
        return _V4((int(ipaddress.IPv4Address("10.89.0.0")) + number % 16384 * 256, 24))
    try:
        network = _V4(subnet)
    except ValueError as error:
        raise SpecError(f"subnet: {error}") from None
    if "/" not in subnet or not 8 <= network.prefixlen <= 29:
        raise SpecError(f"subnet: {subnet} is not a network with a prefix of 8 to 29 bits")
    if network.is_loopback or network.is_multicast or network.is_unspecified:
        raise SpecError(f"subnet: {subnet} cannot be a link's network")
    return network


def _subnet6(ipv6: bool | str, v4: ipaddress.IPv4Network) -> ipaddress.IPv6Network | None:
    """A unique local /64 (RFC 4193) with the IPv4 network's address in it: two overlap only if those do."""
    if ipv6 is False:
        return None
    if ipv6 is True:
        return ipaddress.IPv6Network((0xFD72_3264 << 96 | int(v4.network_address) << 64, 64))
    try:
        network = ipaddress.IPv6Network(ipv6)
    except ValueError as error:
        raise SpecError(f"ipv6: {error}") from None
    if network.prefixlen != 64 or network.is_multicast or network.is_link_local:
        raise SpecError(f"ipv6: {ipv6} is not a /64 for hosts")
    return network


class Network(Linked, Closing):
    """Containers that reach each other, and nobody else unless ``gateway`` says so.

    A context manager; every method may be called from any thread. The first address of ``subnet`` is the
    gateway's, the second the resolver's, members have the rest; in IPv6 they have the same numbers in a /64.

    Args:
        subnet: the IPv4 network; 10.89.0.0/24 or the next that no ``Network`` of this process took if None.
        ipv6: a unique local /64 besides, or which.
        gateway: whether members reach what the caller reaches, as with ``network="slirp"``; an ``r2d2.Slirp``
            says which resolvers, rules and loopback ports (its addresses and its interface do not count).
        seed: where all chance comes from: with the same seed, the same link does the same to the same frames.
        name: for errors and drawings; ``network-NUMBER`` by default.
        mtu: the largest packet, 1280 to 65520 bytes.
        device: what interfaces are: ``tap``, ``packet`` (needs no ``/dev/net/tun``) or ``any``, the first of
            them that can be had.

    Attributes:
        subnet, subnet6: its networks; the second is None without IPv6.
        resolver: the address that answers for names.

    Raises:
        SpecError: an argument can never work.
    """

    def __init__(
        self,
        subnet: str | None = None,
        *,
        ipv6: bool | str = True,
        gateway: bool | Slirp = False,
        seed: int = 0,
        name: str | None = None,
        mtu: int = 1500,
        device: Device = "any",
    ) -> None:
        from r2d2.spec import check_name

        self.subnet = _subnet(subnet)
        self.subnet6 = _subnet6(ipv6, self.subnet)
        self.name = check_name(name) if name is not None else f"network-{next(_numbers)}"
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
            raise SpecError(f"seed: {seed!r} is not a number from 0 to 2**64-1")
        self.seed = seed
        self.mtu = mtu
        self.device = device
        self.has_gateway = gateway is not False
        options = gateway if isinstance(gateway, Slirp) else Slirp()
        options = options._replace(mtu=mtu, device=device, ifname="eth0", cidr="10.0.2.0/24")
        if not self.has_gateway:
            options = options._replace(resolvers=(), search=())
        self.resolver = self._at(2)
        lines = [
            f"switch {seed}",
            describe(options),
            self._addresses(self._at(3), self._at(3, 6)),
            "services false",
            f"closed {str(not self.has_gateway).lower()}",
        ]
        self._description = "\n".join(lines)
        super().__init__(self.name)
        self._lock = _LOCK
        self._network: _core.Network | None = None
        self._closed = False
        self._seats: dict[str, Seat] = {}

    def _at(self, number: int, version: int = 4) -> Any:
        network = self.subnet if version == 4 else self.subnet6
        return None if network is None else network.network_address + number

    def _addresses(self, v4: Address, v6: Address | None) -> str:
        """An interface's addresses, and who else is there, as the engine reads it."""
        router = 1 if self.has_gateway else 2
        lines = [f"v4 {self.subnet.prefixlen} {v4} {self._at(router)} {self._at(2)} {v4}"]
        lines.append("v6 off" if v6 is None else f"v6 {v6} {self._at(router, 6)} {self._at(2, 6)}")
        return "\n".join(lines)

    # Life

    def start(self) -> Self:
        """Starts it; returns itself. ``with`` does that.

        Raises:
            SetupError: its process cannot be started.
            ContainerClosed: it was started before.
        """
        with self._lock:
            if self._network is not None or self._closed:
                raise ContainerClosed(f"network {self.name} was started before: it is good for one life")
            self._network = _core.Network(self._description, [])
            open_networks.add(self)
        return self

    def close(self) -> None:
        """Ends it: its members' interfaces are gone when this returns, the containers run on. Idempotent."""
        with self._lock:
            self._closed = True
            self._seats.clear()
            open_networks.discard(self)
            if self._network is not None:
                self._network.close()

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        state = "new" if self._network is None else f"pid {self.pid}" if self.alive else "closed"
        return f"<r2d2.Network {self.name} {self.subnet} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Network is a running thing and cannot be pickled")

    def _running(self) -> _core.Network:
        if self._network is None or self._closed:
            state = "has ended" if self._closed else "was not started"
            raise ContainerClosed(f"network {self.name} {state}").with_hint(
                "use it in a with statement around its containers"
            )
        return self._network

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._network is not None and not self._closed and self._network.alive()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    def fileno(self) -> int:
        """A descriptor that becomes readable when its process ends (for select, poll, asyncio)."""
        return self._running().fileno()

    def _ask(self, text: str, fds: Iterable[int] = ()) -> str:
        return self._running().request(text, list(fds))

    # Members

    def member(
        self,
        address: str | None = None,
        *,
        aliases: Iterable[str] = (),
        interface: str | None = None,
        routes: Mapping[str, str] | None = None,
        forward: bool = False,
    ) -> Member:
        """How a container is to be in it: ``Container(network=net.member("10.89.0.5"))``.

        Args:
            address: its IPv4 address, in the subnet; the first that is free if None.
            aliases: names that lead to it besides its own.
            interface: the interface's name inside, at most 15 bytes.
            routes: networks that another member passes packets on to: ``{"10.90.0.0/24": "10.89.0.5"}``.
            forward: pass packets on between its networks (``net.ipv4.ip_forward`` and its IPv6 relative).

        Raises:
            SpecError: it can never work: the address is outside, the network's own, or no address at all.
        """
        if isinstance(aliases, str):
            raise SpecError(f"aliases={aliases!r}: a list of names, not one string")
        names = tuple(aliases)
        for name in names:
            if not DOMAIN.fullmatch(name):
                raise SpecError(f"aliases: {name!r} is not a name")
        if interface is not None and (not IFNAME.fullmatch(interface) or interface in (".", "..")):
            raise SpecError(f"interface: {interface!r} is not an interface's name of at most 15 bytes")
        if address is not None:
            self._number(address)
        ways = tuple(route(to, by) for to, by in (routes or {}).items())
        return Member(self, address, names, interface, ways, forward)

    def _number(self, address: str) -> int:
        """Which host of the subnet this is."""
        try:
            found = ipaddress.IPv4Address(address)
        except ValueError as error:
            raise SpecError(f"address: {error}") from None
        if found not in self.subnet:
            raise SpecError(f"address: {found} is not in {self.subnet}").with_hint(
                f"members of {self.name} have {self._at(3)} to {self.subnet.broadcast_address - 1}"
            )
        number = int(found) - int(self.subnet.network_address)
        if number < 3 or found == self.subnet.broadcast_address:
            raise SpecError(f"address: {found} is the network's own").with_hint(
                f"members of {self.name} have {self._at(3)} to {self.subnet.broadcast_address - 1}"
            )
        return number

    def _reserve(self, name: str, member: Member, ifname: str) -> Interface:
        """Takes a name and an address, or says why they cannot be had."""
        with self._lock:
            self._running()
            wanted = (name, *member.aliases)
            taken = {n for seat in self._seats.values() for n in seat.names}
            addresses = {int(seat.interface.address) for seat in self._seats.values()}
            base = int(self.subnet.network_address)
            number = None if member.address is None else self._number(member.address)
            hosts = range(3, self.subnet.num_addresses - 1)
            full = len(addresses) >= min(len(hosts), 1022)
            if taken & set(wanted) or full or (number is not None and base + number in addresses):
                if self._prune():
                    return self._reserve(name, member, ifname)
                for each in wanted:
                    if each in taken:
                        raise refused(errno.EEXIST, f"network {self.name} has a member {each!r} already")
                if full:
                    raise refused(
                        errno.ENOSPC,
                        f"network {self.name} is full: {len(addresses)} members in {self.subnet}",
                        "give it a larger subnet",
                    )
                raise refused(errno.EADDRINUSE, f"network {self.name}: {member.address} is another member's")
            if GATEWAY in wanted:
                raise SpecError(f"name {GATEWAY!r}: it is the network's own node")
            if number is None:
                number = next(n for n in hosts if base + n not in addresses)
            address = self._at(number)
            mac = "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed)
            interface = Interface(self.name, name, ifname, address, self._at(number, 6), mac)
            self._seats[name] = Seat(interface, member, names=wanted)
            return interface

    def _prune(self) -> bool:
        """Gives up the seats of members that have ended; whether there were any."""
        up = set(self._ask("up").split())
        gone = [name for name, seat in self._seats.items() if seat.joined and name not in up]
        for name in gone:
            del self._seats[name]
        return bool(gone)

    def _connect(self, pid: int, interface: Interface, *, default_route: bool) -> Interface:
        """Makes the interface that was reserved, and plugs it in."""
        seat = self._seats[interface.node]
        lines = [
            "interface",
            f"ifname {interface.name}",
            f"device {self.device}",
            f"mtu {self.mtu}",
            f"guest-mac {interface.mac}",
            self._addresses(interface.address, interface.address6),
            f"routes {str(default_route).lower()}",
            f"forward {str(seat.member.forward).lower()}",
            *(f"via {to.replace('/', ' ')} {by}" for to, by in seat.member.routes),
        ]
        pidfd = os.pidfd_open(pid)
        try:
            made, fd = _core.Network.interface("\n".join(lines), [pidfd])
            try:
                known = f"{interface.mac} {interface.address} {interface.address6 or ''}"
                self._ask(f"port {interface.node} {made}\n{known}", [fd, pidfd])
            finally:
                os.close(fd)
        finally:
            os.close(pidfd)
        joined = Interface(
            self.name,
            interface.node,
            interface.name,
            interface.address,
            interface.address6,
            interface.mac,
            made.split()[0],
        )
        with self._lock:
            seat.interface = joined
            seat.joined = True
            self._known.add(joined.node)
            self._tell_names()
        return joined

    def _release(self, node: str) -> None:
        """Lets a member go."""
        with self._lock:
            seat = self._seats.pop(node, None)
            if seat is None or not self.alive:
                return
            with suppress(OSError):  # it has ended by itself
                self._ask(f"unport {node}")
            with suppress(OSError):  # and so has the network
                self._tell_names()
                for other in seat.others:
                    if other.alive:
                        other._tell_names(others=False)

    def _tell_names(self, *, others: bool = True) -> None:
        """Tells the resolver who is there; a member of several networks asks the first of them for all."""
        lines = ["names"]
        for seat in self._seats.values():
            lines += seat.lines()
            own = seat.interface
            for other in seat.others:
                rows = [row for each in other._seats.values() for row in each.lines()]
                for asker in filter(None, (own.address, own.address6)):
                    lines += [f"@{asker} {row}" for row in rows]
        self._ask("\n".join(lines))
        if others:
            for network in {other for seat in self._seats.values() for other in seat.others}:
                if network.alive:
                    network._tell_names(others=False)

    def _beside(self, node: str, others: Iterable[Network]) -> None:
        """A member is in other networks too."""
        with self._lock:
            if node in self._seats:
                self._seats[node].others = tuple(others)
                self._tell_names()

    def join(
        self,
        container: Container | int,
        address: str | None = None,
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        interface: str | None = None,
        routes: Mapping[str, str] | None = None,
        forward: bool = False,
    ) -> Interface:
        """Takes a container that runs already in, or any process with a network namespace of its own.

        Its /etc/resolv.conf stays as it is.

        Args:
            container: a ``Container``, or a process.
            name: its name in the network; the container's own by default.
            address, aliases, interface, routes, forward: as `member` takes them.

        Raises:
            SpecError: it can never work.
            NetworkError: the name or the address is in use (``EEXIST``, ``EADDRINUSE``), the subnet full
                (``ENOSPC``), or the interface cannot be made.
            ContainerClosed: the network, or the container, has ended.
        """
        from r2d2.spec import check_name

        member = self.member(address, aliases=aliases, interface=interface, routes=routes, forward=forward)
        if isinstance(container, int):
            if name is None:
                raise SpecError("name: a process has none by itself")
            reserved = self._reserve(check_name(name), member, interface or "eth0")
            return self._attempt(container, reserved, default_route=self.has_gateway)
        pid = container.pid
        settle(container)
        others = [other.network for other in container._members]
        check_distinct([*others, self])
        taken = {found.name for found in container.interfaces}
        if container.spec.slirp is not None:
            taken.add(container.spec.slirp.ifname)
        ifname = interface or next(n for n in (f"eth{i}" for i in count()) if n not in taken)
        reserved = self._reserve(check_name(name or container.name), member, ifname)
        default = self.has_gateway and container.spec.slirp is None and not any(n.has_gateway for n in others)
        joined = self._attempt(pid, reserved, default_route=default)
        container._members += (member,)
        container._interfaces += (joined,)
        tell(container)
        return joined

    def _attempt(self, pid: int, reserved: Interface, *, default_route: bool) -> Interface:
        try:
            return self._connect(pid, reserved, default_route=default_route)
        except BaseException as error:
            self._release(reserved.node)
            if isinstance(error, OSError) and not isinstance(error, NetworkError):
                raise failed(self, reserved, error) from error
            raise

    def leave(self, member: Container | str) -> None:
        """Takes a member out: its interface vanishes, name and address are free. Nothing if it is none."""
        if isinstance(member, str):
            self._release(member)
            return
        for place, interface in seated(member):
            if place.network is self:
                self._release(interface.node)
        settle(member)

    @property
    def members(self) -> dict[str, Interface]:
        """Who is in it, by name."""
        with self._lock:
            if self.alive:
                self._prune()
            return {name: seat.interface for name, seat in self._seats.items() if seat.joined}

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def capture(
        self,
        path: StrPath | None = None,
        *,
        nodes: str | Iterable[str] | None = None,
        at: str | None = None,
        protocol: str | Iterable[str] | None = None,
        port: int | Iterable[int] | None = None,
        host: str | Iterable[str] | None = None,
        snap: int = 65549,
        limit: int | None = None,
    ) -> Capture:
        """Writes down what passes, from now until the capture ends, as pcapng (tcpdump, Wireshark).

        Args:
            path: a file, which is replaced; in memory if None.
            nodes: at these members' interfaces only.
            at: frames as they are ``sent`` (once each, whatever becomes of them), as ``received``, or
                ``both``; ``sent`` if None, with ``nodes`` ``both``.
            protocol: ``arp``, ``icmp``, ``tcp``, ``udp``, or several of them.
            port, host: from or to one of these ports, or addresses.
            snap: so many bytes of each frame are kept.
            limit: the largest size in bytes; none if None, but 256 MiB in memory.

        Raises:
            SpecError: it can never work.
            OSError: the file cannot be made.
        """
        from .capture import Capture, listed, request

        names = [self._node(name) for name in listed(nodes)]
        limit = 256 << 20 if limit is None and path is None else limit
        return Capture(self, path, request(names, at, protocol, port, host, snap, limit))

    def draw(self, *others: Network, counters: bool = False) -> Drawing:
        """A picture of it (SVG), and the same in words: members, addresses, links, partitions, the gateway.

        In a notebook, a network that a cell ends in is shown so.

        Args:
            others: networks to draw below it; containers that are in several are joined by a line.
            counters: what passed over each link so far, and what was dropped.

        Raises:
            SpecError: a network is given twice.
            ContainerClosed: one does not run.
        """
        from r2d2.drawings import network

        return network(self, *others, counters=counters)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For IPython: the drawing while it runs."""
        try:
            return self.draw()._repr_mimebundle_(include, exclude)
        except (OSError, ContainerClosed):
            return {"text/plain": repr(self)}

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by node: packets and bytes that it sent and received, and what was dropped, by reason.

        Packets are those on the wire: a large one that the kernel left uncut counts for what it stands for.
        """
        fields = ("sent", "sent_bytes", "received", "received_bytes", "malformed", "full")
        found = {}
        for line in self._ask("stats").splitlines():
            kind, *words = line.split()
            if kind == "node":
                found[words[0]] = dict(zip(fields, map(int, words[1:7]), strict=True))
        return found
