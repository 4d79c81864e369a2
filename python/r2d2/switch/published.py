"""A member's way to the outside: ports of the host that lead to it through its network's gateway node."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from r2d2 import slirp

if TYPE_CHECKING:
    from . import Network
    from .member import Interface

__all__ = ["Outside"]


class Outside(slirp.Network):
    """What `slirp.Network` is to a container with a network to itself, for a member of one with others.

    Its ports are the member's; the counters are those of the network's gateway node, flows the member's own.
    """

    def __init__(self, network: Network, interface: Interface) -> None:
        v4 = (interface.address, network.subnet.network_address + 1, network.resolver)
        super().__init__(network._running(), interface.name, v4, interface.address6)
        self._own = {str(address) for address in (interface.address, interface.address6) if address}
        self._kind = interface.device
        self._ended = False

    @property
    def device(self) -> str:
        """What the interface is: ``tap``, or ``packet`` for one end of a veth pair."""
        return self._kind

    @property
    def alive(self) -> bool:
        """Whether the network runs, with the member in it."""
        return not self._ended and super().alive

    def stats(self) -> dict[str, int]:
        """Counters of the network's gateway node."""
        lines = self._network.request("gateway").splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    def flows(self) -> list[slirp.Flow]:
        """What the member and the outside say to each other."""
        return [flow for flow in super().flows() if flow.guest.rpartition(":")[0].strip("[]") in self._own]

    def close(self) -> None:
        """Ends the member's ports; the network goes on."""
        for port in self.ports:
            with suppress(OSError, KeyError):  # the network has ended, or another thread was quicker
                self.remove_port(port)
        self._ended = True
