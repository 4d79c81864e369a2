"""A container's place in the kernel's own network: what ``docker run`` does by default, for real root.

A veth pair leads from ``eth0`` inside to an interface of the host, ``r2d2-`` and the container's address in
hexadecimal digits. The host routes: answers come in, what goes out bears the host's address (masquerade),
published ports change their destination (DNAT) so that servers see their clients' addresses, and containers
reach each other by address. There is no bridge device and no file that says who has which address; the
firewall's table belongs to a process that ends with the container, so the kernel removes all of it, whoever
is killed (``src/bridge`` tells how)::

    >>> with Container(network="bridge", ports={8080: 80}) as c:             # doctest: +SKIP
    ...     print(c.network.address, c.network.host_ifname, c.ports)

What it needs of the host, and takes or leaves:

- The right to change the host's network (``CAP_NET_ADMIN`` there), nf_tables, and a /proc/sys that can be
  written (that of most containers cannot).
- ``net.ipv4.ip_forward``, which makes the machine a router. Where it is off, nothing is started;
  ``Bridge(forward=True)`` is the word to turn it on, as Docker does unasked. It stays on then: nobody could
  say when the last that needs it is gone.
- A firewall that lets forwarded packets pass. An ``accept`` of ours cannot open what another table drops: if
  one has a closed ``forward`` chain without a word about ``r2d2-`` interfaces, a warning says so (of chains
  of nf_tables, also those that iptables-nft made; what iptables-legacy has cannot be seen).
- Published on 127.0.0.1, a port needs ``route_localnet``: set for that interface alone, which is not to be
  reached from inside by it (a rule drops what comes for 127.0.0.0/8).

Containers find each other by address; ``extra_hosts=`` gives addresses names.

A port is held by a listening socket on which nothing arrives: it is taken for others, ``EADDRINUSE``. IPv6
has unique local addresses; it reaches the world where the host forwards IPv6, and not over ``::1``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import _core, netspec, slirp
from .errors import SpecError, UnsupportedError, unsupported_error
from .hint_words import HINTS

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from .netspec import Address
    from .ports import Port, Publish

__all__ = ["Bridge", "BridgeNetwork"]

#: Networks that are tried in turn, until one overlaps none of the host's routes.
SUBNETS = ("10.210.0.0/16", "172.30.0.0/16", "192.168.210.0/24")
_FORWARD = "/proc/sys/net/ipv4/ip_forward"


class Bridge(NamedTuple):
    """How a container is joined to the host's network: ``Container(network=r2d2.Bridge(mtu=9000))``.

    Attributes:
        ifname: the interface's name inside.
        mtu: the largest packet, 576 to 65535 bytes (1280 at least with IPv6).
        cidr: the IPv4 network, with a prefix of 8 to 30 bits; None for the first of 10.210.0.0/16,
            172.30.0.0/16 and 192.168.210.0/24 that overlaps none of the host's routes. Containers of one
            network reach each other; those of another do not reach them.
        ipv6: fdd2:d2d2:d2d2::/96 besides.
        resolvers: IPv4 or IPv6 addresses for resolv.conf(5); the host's if None, without those on its
            loopback, which a container cannot reach (those that systemd-resolved asks stand in for its own).
        search: search domains; the host's if None.
        forward: turn net.ipv4.ip_forward on where it is off. It stays on.
    """

    ifname: str = "eth0"
    mtu: int = 1500
    cidr: str | None = None
    ipv6: bool = True
    resolvers: Iterable[str] | None = None
    search: Iterable[str] | None = None
    forward: bool = False


def checked(options: Bridge, ports: Sequence[Publish]) -> Bridge:
    """The options, if this host and this user can have such a network.

    Raises:
        SpecError: an option or a port can never work.
        UnsupportedError: the right to change the host's network, nf_tables or ip_forward is missing.
    """
    options = options._replace(
        resolvers=None if options.resolvers is None else tuple(options.resolvers),
        search=None if options.search is None else tuple(options.search),
    )
    describe(options)
    resolv_conf(options)
    for port in ports:
        _check_port(options, port)
    _core.probe("bridge")
    if lacking := _lacking(options.forward):
        number, fact, hint = lacking
        raise unsupported_error(number, f'network="bridge": {fact}').with_hint(hint)
    return options


def _lacking(forward: bool) -> tuple[int, str, str] | None:
    """What else this host lacks: errno, fact, hint."""
    if not os.access(_FORWARD, os.W_OK):
        return errno.EROFS, "/proc/sys cannot be written", HINTS["bridge.sysctl"]
    if not forward and not forwards():
        fact = "net.ipv4.ip_forward is off, so this machine is no router"
        return errno.EOPNOTSUPP, fact, HINTS["bridge.forward"]
    return None


def _check_port(options: Bridge, port: Publish) -> None:
    if port.protocol == "unix":
        _cannot("Unix sockets of the host (publish a TCP port)")
    if ":" in port.host:
        if not options.ipv6:
            raise SpecError(f"port {port}: the container has no IPv6 address (ipv6=False)")
        if ipaddress.ip_address(port.host).is_loopback:
            _cannot("ports on ::1: the kernel routes nothing from there (127.0.0.1 it does)")


def _cannot(what: str) -> NoReturn:
    raise unsupported_error(errno.EOPNOTSUPP, f'network="bridge" cannot do this: {what}').with_hint(
        HINTS["bridge.slirp"]
    )


def forwards() -> bool:
    """Whether this machine passes IPv4 packets on."""
    try:
        with open(_FORWARD, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def describe(options: Bridge) -> str:
    """The network as its keeper reads it (``src/helper/engine/bridging.rs``).

    Raises:
        SpecError: an option can never work.
    """
    if not netspec.IFNAME.fullmatch(options.ifname) or options.ifname in (".", "..", "lo"):
        raise SpecError(f"ifname: {options.ifname!r} is not an interface's name of at most 15 bytes")
    least = 1280 if options.ipv6 else 576
    if not least <= options.mtu <= 65535:
        raise SpecError(f"mtu: {options.mtu} is not between {least} and 65535")
    return "\n".join(
        (
            "bridge",
            f"ifname {options.ifname}",
            f"mtu {options.mtu}",
            *(f"subnet {subnet}" for subnet in _subnets(options)),
            f"ipv6 {str(options.ipv6).lower()}",
            f"forward {str(options.forward).lower()}",
        )
    )


def _subnets(options: Bridge) -> tuple[str, ...]:
    if options.cidr is None:
        return SUBNETS
    try:
        network = ipaddress.IPv4Network(options.cidr)
    except ValueError as error:
        raise SpecError(f"cidr: {error}") from None
    if "/" not in options.cidr or not 8 <= network.prefixlen <= 30:
        raise SpecError(f"cidr: {options.cidr} is not a network with a prefix of 8 to 30 bits")
    if network.is_loopback or network.is_multicast or network.is_unspecified or network.is_link_local:
        raise SpecError(f"cidr: {options.cidr} cannot be a container's network")
    return (options.cidr,)


def resolvers(options: Bridge) -> list[Address]:
    """Who answers DNS queries."""
    if options.resolvers is not None:
        return [netspec.check_address(resolver) for resolver in options.resolvers]
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        found = _resolvers(path)
        if found:
            return found
    return []


def _resolvers(path: str) -> list[Address]:
    found: list[Address] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    for words in lines:
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_address(words[1])  # one with a scope has no meaning inside
            except ValueError:
                continue
            if not address.is_loopback and not address.is_unspecified and not address.is_link_local:
                found.append(address)
    return found


def resolv_conf(options: Bridge) -> bytes:
    """/etc/resolv.conf for this network."""
    search = netspec.search_domains(slirp.Slirp(search=options.search))
    lines = [*([f"search {' '.join(search)}"] if search else [])]
    lines += [f"nameserver {address}" for address in resolvers(options)]
    if not any(line.startswith("nameserver") for line in lines):
        lines.append("# The host's resolvers are on its loopback, out of reach: Bridge(resolvers=[...])")
    return "\n".join(lines).encode() + b"\n"


class BridgeNetwork(slirp.Network):
    """A container's place in the host's network. What only r2d2's own engine can do raises UnsupportedError.

    Attributes:
        host_ifname: the host's end of the wire, for tcpdump(8) and the like; the firewall's table is called
            so too.
        gateway6: the router's IPv6 address; None with ``ipv6=False``.
        closed_by: chains of the host's firewall that drop what they forward unless a rule of theirs says
            otherwise, and have none about ``r2d2-`` interfaces, as ``"ip filter FORWARD"``.
    """

    def __init__(self, network: _core.Network, options: Bridge, words: str) -> None:
        _kind, self.host_ifname, address, router, *sixth, closed = words.split()
        v4, gateway = ipaddress.ip_address(address), ipaddress.ip_address(router)
        v6, gateway6 = [None if word == "-" else ipaddress.ip_address(word) for word in sixth]
        dns = next(iter(resolvers(options)), ipaddress.ip_address("0.0.0.0"))  # noqa: S104 - none
        super().__init__(network, options.ifname, (v4, gateway, dns), v6)
        self.gateway6 = gateway6
        self.closed_by = () if closed == "-" else tuple(each.replace(":", " ") for each in closed.split(","))
        self._options = options

    def __repr__(self) -> str:
        state = f"{self.host_ifname}, pid {self.pid}" if self.alive else "closed"
        return f"<r2d2.bridge.BridgeNetwork {self.ifname} {self.address} {state}>"

    @property
    def device(self) -> str:
        """What the interface is: ``veth``."""
        return "veth"

    def _forward(self, port: Publish) -> Port:
        _check_port(self._options, port)
        return super()._forward(port)

    def stats(self) -> dict[str, int]:
        """The interface's counters by name, as seen from inside: packets, bytes, errors, drops."""
        return super().stats()

    def flows(self) -> NoReturn:
        """Not to be had: packets are the kernel's (``conntrack -L`` shows its connections)."""
        _cannot("flows")

    def events(self) -> NoReturn:
        """Not to be had."""
        _cannot("events")

    def capture(self, *_: Any, **__: Any) -> NoReturn:
        """Not to be had: ``tcpdump -i`` with `host_ifname` records it."""
        _cannot(f"captures (tcpdump -i {self.host_ifname} can)")

    def packets(self, *_: Any, **__: Any) -> NoReturn:
        """Not to be had: see `capture`."""
        _cannot(f"captures (tcpdump -i {self.host_ifname} can)")

    def set_resolvers(self, *_: Any, **__: Any) -> NoReturn:
        """Not to be had: programs ask the resolvers of /etc/resolv.conf themselves."""
        _cannot("other resolvers (write /etc/resolv.conf inside)")


def attach(
    pid: int,
    options: Bridge,
    ports: Iterable[Publish],
    spare: _core.SpareEngine | None = None,
    listener: socket.socket | None = None,
) -> BridgeNetwork:
    """Joins the network namespace of a process to the host's network.

    Raises:
        SetupError: it cannot be joined or a step was refused; nothing of it is left.
        NetworkError: a port cannot be listened on.
    """
    lines, fds = [describe(options), "watch"], [os.pidfd_open(pid)]
    try:
        if listener is not None:
            lines.append("listen")
            fds.append(listener.fileno())
        keeper = _core.Network("\n".join(lines), fds, spare)
    finally:
        os.close(fds[0])
    network = BridgeNetwork(keeper, options, keeper.device)
    if network.closed_by:
        import warnings

        words = HINTS["bridge.closed"].format(chains=", ".join(network.closed_by))
        warnings.warn(f'network="bridge": {words}', UserWarning, stacklevel=2)
    from .network import listen

    try:
        for port in ports:
            listen(network, port)
    except BaseException:
        network.close()
        raise
    return network


def by_hand(options: Bridge, ports: Iterable[Publish]) -> str:
    """The same with ip(8), sysctl(8) and nft(8), for a container at an address."""
    network = ipaddress.IPv4Network(_subnets(options)[0])
    own, router = network.network_address + 2, network.network_address + 1
    near = f"r2d2-{int(own):08x}"
    inside = "nsenter -t PID -n ip"
    lines = [
        f"ip link add {near} mtu {options.mtu} type veth peer name {options.ifname} netns PID",
        f"sysctl -w net.ipv4.conf.{near}.forwarding=1 net.ipv6.conf.{near}.accept_ra=0",
        f"ip link set {near} up",
        f"ip address add {router} dev {near}",
        f"ip route add {own} dev {near} src {router}",
        f"{inside} link set {options.ifname} up",
        f"{inside} address add {own} dev {options.ifname}",
        f"{inside} route add {router} dev {options.ifname}",
        f"{inside} route add default via {router}",
        f"nft add table inet {near}",
        *(
            f"nft add chain inet {near} {chain} '{{ type {kind} hook {hook} priority {priority}; }}'"
            for chain, kind, hook, priority in (
                ("guard", "filter", "prerouting", "raw"),
                ("forward", "filter", "forward", "filter"),
                ("prerouting", "nat", "prerouting", "dstnat"),
                ("output", "nat", "output", "-100"),
                ("postrouting", "nat", "postrouting", "srcnat"),
            )
        ),
        f"nft add rule inet {near} guard iifname != {near} accept",
        f"nft add rule inet {near} guard ip saddr != {own} drop",
        f"nft add rule inet {near} guard ip daddr 127.0.0.0/8 drop",
        f"nft add rule inet {near} forward oifname != {near} accept",
        f"nft add rule inet {near} forward ct state established,related accept",
        f"nft add rule inet {near} forward ct status dnat accept",
        f"nft add rule inet {near} forward iifname 'r2d2-*' ip saddr {network} accept",
        f"nft add rule inet {near} forward drop",
        f"nft add rule inet {near} postrouting ip saddr {own} oifname != 'r2d2-*' masquerade",
        f"nft add rule inet {near} postrouting oifname {near} ip saddr 127.0.0.0/8 masquerade",
    ]
    for port in ports:
        if ":" in port.host:
            continue  # the same with ip6
        everywhere = port.host == "0.0.0.0"  # noqa: S104 - only compared
        to = "meta nfproto ipv4 fib daddr type local" if everywhere else f"ip daddr {port.host}"
        rule = f"{to} {port.protocol} dport {port.host_port} dnat ip to {own}:{port.guest_port}"
        loopback = ipaddress.ip_address(port.host).is_loopback
        if loopback or everywhere:
            lines.append(f"sysctl -w net.ipv4.conf.{near}.route_localnet=1")
        chains = ("output",) if loopback else ("output", "prerouting")
        lines += [f"nft add rule inet {near} {chain} {rule}" for chain in chains]
    return "\n".join(lines)


def possible() -> tuple[bool, str, str | None]:
    """Whether a container could have such a network now, for ``doctor()``: the fact, and a hint."""
    try:
        _core.probe("bridge")
    except UnsupportedError as error:
        return False, str(error), error.hint
    if lacking := _lacking(forward=False):
        return False, f"interfaces, routes and nf_tables may be changed, but {lacking[1]}", lacking[2]
    return True, "interfaces, routes and nf_tables may be changed; net.ipv4.ip_forward is on", None
