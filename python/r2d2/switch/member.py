"""A container's place in a network of containers: what ``network=`` means, the last steps of a start.

Names and addresses are taken before anything is started, so that what cannot be had is an error there and
then. When PID 1 stands, and before the first program runs, its interfaces are made and plugged in.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from r2d2.errors import NetworkError, SetupError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2d2.container import Container
    from r2d2.explain import ExplainedStep

    from . import Network

__all__ = ["Interface", "Member"]


class Member(NamedTuple):
    """How a container is to be in a network, made by `Network.member`.

    Attributes:
        network: the network.
        address: its IPv4 address there; None for the first that is free.
        aliases: further names.
        interface: the interface's name inside; None for ``eth0``, ``eth1``, … in the order of the networks.
        routes: networks that are reached by another member: pairs of network and address.
        forward: the container passes packets on between its networks: it is a router.
    """

    network: Network
    address: str | None = None
    aliases: tuple[str, ...] = ()
    interface: str | None = None
    routes: tuple[tuple[str, str], ...] = ()
    forward: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """A member's interface.

    Attributes:
        network: the network's name.
        node: the member's name there.
        name: the interface's name inside.
        address, address6: its addresses; the second is None in a network without IPv6.
        mac: its hardware address.
        device: ``tap``, or ``packet`` for one end of a veth pair.
    """

    network: str
    node: str
    name: str
    address: ipaddress.IPv4Address
    address6: ipaddress.IPv6Address | None
    mac: str
    device: str = ""


@dataclass(slots=True)
class Seat:
    """What is taken in a network by a member, from before it is started until it has gone."""

    interface: Interface
    member: Member
    joined: bool = False
    names: tuple[str, ...] = ()
    #: Networks that the member is in besides.
    others: tuple[Network, ...] = ()

    def lines(self) -> list[str]:
        """Its names as the resolver reads them; none before it has joined."""
        addresses = f"{self.interface.address} {self.interface.address6 or ''}".rstrip()
        return [f"{name} {addresses}" for name in self.names if self.joined]


def refused(number: int, message: str, hint: str | None = None) -> NetworkError:
    error = NetworkError(number, os.strerror(number))
    error.message = message
    error.with_hint(hint)
    return error


def route(to: str, by: str) -> tuple[str, str]:
    try:
        network = ipaddress.ip_network(to)
        router = ipaddress.ip_address(by)
    except ValueError as error:
        raise SpecError(f"routes: {error}") from None
    if network.version != router.version:
        raise SpecError(f"routes: {to} cannot be reached by {by}")
    return str(network), str(router)


def check_distinct(networks: Iterable[Network]) -> None:
    """Raises SpecError if two of them overlap: a container could not tell whom it speaks to."""
    seen: list[Network] = []
    for network in networks:
        for other in seen:
            if other is network:
                raise SpecError(f"network {network.name} is given twice")
            six = network.subnet6 is not None and other.subnet6 is not None
            if network.subnet.overlaps(other.subnet) or (
                six and cast("Any", network.subnet6).overlaps(other.subnet6)
            ):
                raise SpecError(
                    f"networks {other.name} and {network.name} overlap: {other.subnet}, {network.subnet}"
                ).with_hint("give them subnets apart, or none: then each takes its own")
        seen.append(network)


def failed(network: Network, interface: Interface, error: OSError) -> NetworkError:
    """What the kernel refused, as the failure of a step of a start."""
    number = error.errno or 0
    step = getattr(error, "step", None)
    failure = refused(
        number,
        f"join {interface.node} to network {network.name}: {error}",
        getattr(error, "hint", None) if isinstance(error, SetupError) else None,
    )
    failure.step = step
    failure.syscall = getattr(error, "syscall", None)
    return failure


# What a container's ``network=`` means


def members_of(network: Any) -> tuple[Member, ...]:
    """``network=`` of a container: a network, a member, or several.

    Raises:
        SpecError: they can never be together.
    """
    from . import Network as Switched

    given = (
        [network] if isinstance(network, Switched | Member) or not isinstance(network, Iterable) else network
    )
    members = tuple(each.member() if isinstance(each, Switched) else each for each in given)
    for each in members:
        if not isinstance(each, Member):
            raise SpecError(f"network={each!r}: an r2d2.Network, or a member of one").with_hint(
                'a list is for networks of containers; "slirp", "host" and "none" stand alone'
            )
    check_distinct(member.network for member in members)
    if not members:
        raise SpecError("network: an empty list").with_hint('"none" is a network without anybody')
    names = [member.interface or f"eth{i}" for i, member in enumerate(members)]
    if len(set(names)) != len(names):
        raise SpecError(f"interface: {', '.join(names)} are not all different")
    return members


def explained(container: Container, first: int) -> Iterator[ExplainedStep]:
    """The last steps of a start, as ``explain()`` shows them."""
    from r2d2.explain import ExplainedStep

    for number, member in enumerate(container._members):
        name, network = member.interface or f"eth{number}", member.network
        yield ExplainedStep(
            first + number,
            "caller",
            f"plug {name} into network {network.name}",
            "pidfd_open execve setns open ioctl socket sendmsg",
            f"ip link add {name} netns PID type veth peer name SWITCH-PORT",
            f"a switch in a process of the caller's passes frames of {network.subnet} on",
        )


def reserve(container: Container) -> None:
    """Takes the names and addresses of a container that is about to be started."""
    taken: list[Interface] = []
    try:
        for index, member in enumerate(container._members):
            taken.append(member.network._reserve(container.name, member, member.interface or f"eth{index}"))
    except BaseException:
        for member, interface in zip(container._members, taken, strict=False):
            member.network._release(interface.node)
        raise
    container._interfaces = tuple(taken)


def connect(container: Container) -> None:
    """Gives a container that has just been started its interfaces, or ends it."""
    from r2d2.network import listen

    from .published import Outside

    reserved, joined = container._interfaces, []
    way_out = next((m.network for m in container._members if m.network.has_gateway), None)
    try:
        for member, interface in zip(container._members, reserved, strict=True):
            network = member.network
            joined.append(network._attempt(container.pid, interface, default_route=network is way_out))
            container._interfaces = (*joined, *reserved[len(joined) :])
        tell(container)
        container._network = Outside(container._members[0].network, joined[0])
        for port in container.spec.ports:
            listen(container._network, port)
    except BaseException:
        container.stop()
        raise


def seated(container: Container) -> list[tuple[Member, Interface]]:
    """Where it still is a member, and by which interface."""
    pairs = zip(container._members, container._interfaces, strict=False)
    seats = ((member, found, member.network._seats.get(found.node)) for member, found in pairs)
    return [(member, found) for member, found, seat in seats if seat is not None and seat.interface == found]


def settle(container: Container) -> None:
    """Forgets networks that it has left."""
    pairs = seated(container)
    container._members = tuple(member for member, _ in pairs)
    container._interfaces = tuple(interface for _, interface in pairs)


def tell(container: Container) -> None:
    """Lets each of its networks know of the others."""
    networks = [member.network for member in container._members]
    if len(networks) < 2:
        return
    for network, interface in zip(networks, container._interfaces, strict=False):
        network._beside(interface.node, [other for other in networks if other is not network])


def release(container: Container) -> None:
    """Frees what it had."""
    for member, interface in seated(container):
        member.network._release(interface.node)
    container._interfaces = ()
