"""What a user-mode network is to be: options, checked before anything is started, in the engine's words.

The words are those of the first message to the engine (``src/helper/engine/control.rs``), a line each.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

from .errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Address", "Device", "Engine", "Slirp"]

Device: TypeAlias = Literal["any", "tap", "packet"]
Engine: TypeAlias = Literal["r2d2", "slirp4netns", "pasta"]
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

IFNAME = re.compile(r"[^\s/:]{1,15}")
DOMAIN = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
#: Everybody, a network or a name; ports.
RULE = re.compile(
    r"(\*|\[[^\]]+\](?:/\d+)?|[0-9.]+(?:/\d+)?|[0-9a-fA-F:]+/\d+|[^\s/:\[\]]+)"
    r"(?::(\d+)(?:-(\d+))?)?"
)


class Slirp(NamedTuple):
    """How a user-mode network is to be: ``Container(network=r2d2.Slirp(mtu=65520))``.

    The fields are arguments of `attach`, which explains them. With ``engine="pasta"`` or ``"slirp4netns"``
    those that only r2d2's own engine knows must be left alone.
    """

    ifname: str = "tap0"
    mtu: int = 1500
    cidr: str = "10.0.2.0/24"
    ipv6: bool = True
    host_loopback: bool | Iterable[int] = False
    resolvers: Iterable[str] | None = None
    search: Iterable[str] | None = None
    names: Mapping[str, str | Sequence[str]] | None = None
    allow: Iterable[str] = ()
    deny: Iterable[str] = ()
    deny_names: Iterable[str] = ()
    configure: bool = True
    device: Device = "any"
    engine: Engine = "r2d2"
    delay: float = 0.0
    loss: float = 0.0
    splice: bool = False


def endpoint(resolver: str) -> str:
    """``192.0.2.1`` or ``[2001:db8::1]:5353`` with its port."""
    host, _, port = resolver.rpartition(":")
    if port.isdigit() and (host.startswith("[") or host.count(":") == 0) and host:
        return (
            f"[{check_address(host.strip('[]'))}]:{port}"
            if host.startswith("[")
            else f"{check_address(host)}:{port}"
        )
    address = check_address(resolver.partition("%")[0])
    return f"[{address}]:53" if address.version == 6 else f"{address}:53"


def check_address(text: str) -> Address:
    """An IPv4 or IPv6 address, or a SpecError."""
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise SpecError(str(error)) from None


def host_dns() -> tuple[list[str], list[str]]:
    """Resolvers and search domains of the host (resolv.conf(5))."""
    resolvers: list[str] = []
    search: list[str] = []
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return resolvers, search
    for line in lines:
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            try:
                resolvers.append(endpoint(words[1]))
            except SpecError:
                continue
        elif words[0] in ("search", "domain"):
            search = [word for word in words[1:] if DOMAIN.fullmatch(word)]
    return resolvers, search


def checked_rule(verb: str, rule: str) -> str:
    """A rule as the engine reads it.

    ``192.0.2.0/24``, ``192.0.2.1:443``, ``[2001:db8::]/32:80-90``, ``*:25``, ``example.org``,
    ``*.example.org:443``. A name has a dot, if only at its end.
    """
    match = RULE.fullmatch(rule)
    if not match:
        raise SpecError(f"{verb}: {rule!r} is not ADDRESS[/PREFIX][:PORT[-PORT]], nor NAME[:PORT[-PORT]]")
    whom, first, last = match.groups()
    if whom != "*":
        try:
            whom = str(ipaddress.ip_network(whom.replace("[", "").replace("]", "")))
        except ValueError as error:
            if re.fullmatch(r"[0-9.]+|.*[/:].*", whom):
                raise SpecError(f"{verb}: {rule!r}: {error}") from None
            whom = _pattern(verb, whom, dotted=True)
    low, high = int(first or 0), int(last or first or 65535)
    if not low <= high <= 65535:
        raise SpecError(f"{verb}: {rule!r} has no such ports")
    return f"{verb} {whom} {low}-{high}"


def plan(cidr: str) -> tuple[ipaddress.IPv4Network, list[Address], Address]:
    """The network; guest, gateway and resolver in it; the first address for DHCP."""
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise SpecError(f"cidr: {error}") from None
    if "/" not in cidr or network.prefixlen > 25 or network.prefixlen < 8:
        raise SpecError(f"cidr: {cidr} is not a network with a prefix of 8 to 25 bits")
    if network.is_loopback or network.is_multicast or network.is_unspecified:
        raise SpecError(f"cidr: {cidr} cannot be a link's network")
    guest, gateway, dns = (cast("Address", network.network_address + last) for last in (100, 2, 3))
    return network, [guest, gateway, dns], network.network_address + 15


def _domain(argument: str, name: str) -> str:
    """A name as it is asked for: other alphabets in their ASCII form (RFC 3490)."""
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError as error:
        raise SpecError(f"{argument}: {name!r} is not a name: {error}") from None
    if not DOMAIN.fullmatch(ascii_name) or len(ascii_name) > 254:
        raise SpecError(f"{argument}: {name!r} is not a name")
    return ascii_name.rstrip(".")


def _pattern(argument: str, name: str, *, dotted: bool = False) -> str:
    """A name, or all names below one: ``*.example.org``. ``dotted``: with a dot, lest it be a slip."""
    below = name.startswith("*.")
    domain = _domain(argument, name[2 * below :])
    if (dotted and "." not in name) or domain.rpartition(".")[2].isdigit():
        raise SpecError(f"{argument}: {name!r} is neither an address nor a name with a dot")
    return "*." * below + domain


def _names(names: Mapping[str, str | Sequence[str]]) -> list[str]:
    lines = []
    for given, addresses in names.items():
        name = _domain("names", given)
        listed = [addresses] if isinstance(addresses, str) else addresses
        lines.append(f"name {name} " + " ".join(str(check_address(address)) for address in listed))
    return lines


def _loopback(host_loopback: bool | Iterable[int]) -> str:
    if host_loopback is True:
        return "loopback allow"
    ports = [] if host_loopback is False else sorted(host_loopback)
    for port in ports:
        if not 0 < port <= 65535:
            raise SpecError(f"host_loopback: {port} is not a port")
    return "loopback " + (" ".join(map(str, ports)) or "deny")


def addresses(options: Slirp) -> tuple[Address, Address, Address]:
    """IPv4 addresses of the guest, the router and the resolver."""
    guest, gateway, dns = plan(options.cidr)[1]
    return guest, gateway, dns


def search_domains(options: Slirp, host: list[str] | None = None) -> list[str]:
    """What a name without a dot is tried with; ``host``: the host's, where they were read already."""
    if options.search is not None:
        return [_domain("search", domain) for domain in options.search]
    return host_dns()[1] if host is None else host


def describe(options: Slirp) -> str:
    """The network as the engine reads it.

    Raises:
        SpecError: an option can never work.
    """
    if not IFNAME.fullmatch(options.ifname) or options.ifname in (".", ".."):
        raise SpecError(f"ifname: {options.ifname!r} is not an interface's name of at most 15 bytes")
    least = 1280 if options.ipv6 else 576
    if not least <= options.mtu <= 65520:
        raise SpecError(f"mtu: {options.mtu} is not between {least} and 65520")
    if options.device not in ("any", "tap", "packet"):
        raise SpecError(f"device: {options.device!r} is not any, tap or packet")
    if not 0 <= options.delay <= 10:
        raise SpecError(f"delay: {options.delay} is not between 0 and 10 seconds")
    if not 0 <= options.loss <= 0.9:
        raise SpecError(f"loss: {options.loss} is not between 0 and 0.9")
    faults = f"{round(options.loss * 10_000)} {round(options.delay * 1_000_000)}"
    network, v4, dhcp = plan(options.cidr)
    found, search = host_dns()
    resolvers = found if options.resolvers is None else map(endpoint, options.resolvers)
    return "\n".join(
        (
            f"ifname {options.ifname}",
            f"device {options.device}",
            f"mtu {options.mtu}",
            f"v4 {network.prefixlen} {v4[0]} {v4[1]} {v4[2]} {dhcp}",
            f"configure {str(options.configure).lower()}",
            f"faults {faults}",
            f"splice {str(options.splice).lower()}",
            _loopback(options.host_loopback),
            *(() if options.ipv6 else ("v6 off",)),
            *(f"resolver {r}" for r in resolvers),
            *(f"search {domain}" for domain in search_domains(options, search)),
            *_names(options.names or {}),
            *(f"deny-name {d if d == '*' else _pattern('deny_names', d)}" for d in options.deny_names),
            *(checked_rule("allow", rule) for rule in options.allow),
            *(checked_rule("deny", rule) for rule in options.deny),
        )
    )
