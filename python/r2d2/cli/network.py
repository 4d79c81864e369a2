"""``slirp``: a user-mode network for any process, as slirp4netns gives it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from . import slirp4netns

if TYPE_CHECKING:
    from .parser import Verbs


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    parser = verbs.add(
        "slirp",
        slirp,
        "give the network of a process a way to the world, until Ctrl-C",
        "[OPTIONS] PID|PATH [IFNAME]",
        epilog="Inside: 10.0.2.100, the router 10.0.2.2, the resolver 10.0.2.3. One line tells when it\n"
        "stands; Ctrl-C, or the end of the process, removes the interface. PATH is\n"
        "a network namespace's.",
    )
    add_option = parser.add_argument
    add_option("-m", "--mtu", metavar="N", type=int, default=1500, help="largest packet, 576 to 65520 (1500)")
    add_option("--cidr", metavar="CIDR", default="10.0.2.0/24", help="its IPv4 network (10.0.2.0/24)")
    add_option(
        "-c",
        "--configure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give the interface addresses and routes (the default)",
    )
    add_option(
        "--host-loopback", action="store_true", help="the router's address leads to our 127.0.0.1 and ::1"
    )
    add_option(
        "--disable-host-loopback",
        dest="host_loopback",
        action="store_false",
        help="it does not (the default): ENETUNREACH",
    )
    add_option("--ipv6", action=argparse.BooleanOptionalAction, default=True, help="fd00::/64 besides")
    add_option("--device", choices=("any", "tap", "packet"), default="any", help="what the interface is")
    add_option(
        "--engine",
        choices=("r2d2", "slirp4netns", "pasta"),
        default="r2d2",
        help="who does it (r2d2); the others where they are installed",
    )
    add_option("--userns", metavar="PATH", help="the user namespace that owns the one at PATH")
    add_option(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/udp]|PATH:PORT",
        action="append",
        default=[],
        help="lead a port, a range A-B of ports, or a Unix socket of ours inside",
    )
    add_option("target", metavar="PID|PATH", help="the process")
    add_option("ifname", metavar="IFNAME", nargs="?", default="tap0", help="the interface's name (tap0)")
    slirp4netns.add(verbs)


class _Ctrl(BaseException):
    """A signal asks for the end."""


def _stop(number: int) -> None:
    raise _Ctrl(number)


def slirp(arguments: argparse.Namespace) -> int:
    """``r2d2 slirp``."""
    import select

    from r2d2.netspec import Slirp
    from r2d2.network import attach
    from r2d2.ports import parse_ports

    from .foreground import forwarding

    ports = [port for text in arguments.publish for port in parse_ports(text)]
    target = int(arguments.target) if arguments.target.isdigit() else arguments.target
    fields = {name: getattr(arguments, name) for name in Slirp._fields if hasattr(arguments, name)}
    with (
        forwarding() as forward,
        attach(target, Slirp(**fields), arguments.userns, ports) as network,
    ):
        try:
            forward.target = _stop
            what = f"{network.address}, router {network.gateway}, DNS {network.dns}"
            print(f"{network.ifname} ({network.device}): {what}; Ctrl-C ends it", flush=True)
            select.select([network], [], [])
        except _Ctrl:
            return 0
    return _ended(target)


def _ended(target: int | str) -> int:
    """The engine ended by itself: with the process, as it should, or not."""
    import select

    from r2d2 import NetworkError

    if isinstance(target, int):
        try:
            process = os.pidfd_open(target)
        except ProcessLookupError:
            return 0
        try:
            if select.select([process], [], [], 0)[0]:  # a zombie, too
                return 0
        finally:
            os.close(process)
    raise NetworkError("the network engine has ended").with_hint("start it again, and report this as a bug")
