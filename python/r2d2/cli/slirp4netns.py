"""``slirp4netns``: the command line of slirp4netns(1) with our engine, for programs that start that one."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r2d2.slirp import Network

    from .parser import Verbs

#: Whose command line and API this is.
_LIKE = "1.2.0"
_DEPRECATED = {
    "no_host_loopback": "disable_host_loopback",
    "create_sandbox": "enable_sandbox",
}


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "slirp4netns",
        slirp4netns,
        "do what slirp4netns does, with its arguments and API socket",
        "[OPTIONS] PID|PATH|FD [TAPNAME]",
        epilog="Options, defaults and API are those of slirp4netns(1): the host's loopback can be reached\n"
        "at 10.0.2.2 unless --disable-host-loopback. The network ends with its process, too; without\n"
        "-c the interface has no address, but is up. Called by the name slirp4netns (a link to r2d2),\n"
        "r2d2 is this command.",
    )
    parser.gnu = True
    option = parser.add_argument
    yes: dict[str, Any] = {"action": "store_true"}
    option("-c", "--configure", **yes, help="bring up the interface, with addresses and routes")
    option("-e", "--exit-fd", metavar="FD", type=_descriptor, help="end when something happens on FD")
    option("-r", "--ready-fd", metavar="FD", type=_descriptor, help="write 1 to FD when the network stands")
    option("-m", "--mtu", metavar="MTU", type=int, default=1500, help="MTU (default=1500, max=65520)")
    option("-6", "--enable-ipv6", **yes, help="enable IPv6: fd00::/64")
    option("-a", "--api-socket", metavar="PATH", help="API socket path")
    option("--cidr", metavar="CIDR", default="10.0.2.0/24", help="network address (default=10.0.2.0/24)")
    option("--disable-host-loopback", **yes, help="prohibit connecting to 127.0.0.1:* on the host")
    option(
        "--netns-type",
        metavar="TYPE",
        choices=("path", "pid", "tapfd"),
        help="path, pid or tapfd (default=pid)",
    )
    option("--userns-path", metavar="PATH", help="the user namespace that owns the network namespace")
    option("--enable-sandbox", **yes, help="has no effect: the engine always is in a sandbox")
    option("--enable-seccomp", **yes, help="has no effect: the engine always has a seccomp filter")
    option("--outbound-addr", metavar="IPv4|IFNAME", help="source address of what it opens")
    option("--outbound-addr6", metavar="IPv6|IFNAME", help="the same for IPv6 (with --enable-ipv6)")
    option("--disable-dns", **yes, help="no resolver at 10.0.2.3")
    option("--macaddress", metavar="MAC", help="MAC address of the interface (only with -c)")
    option(
        "--target-type",
        metavar="TYPE",
        choices=("netns", "bess"),
        default="netns",
        help="netns, or bess: PATH is a socket for User Mode Linux (default=netns)",
    )
    for name in _DEPRECATED:
        option(_option(name), **yes, help=argparse.SUPPRESS)
    option("-h", action="help", help=argparse.SUPPRESS)
    option("-v", "--version", action="version", version=_version(), help="show version and exit")
    option("target", metavar="PID|PATH|FD", help="a process, or a path")
    option("ifname", metavar="TAPNAME", nargs="?", default="tap0", help="the interface's name (tap0)")


def _option(name: str) -> str:
    """The option whose argument has this name."""
    return "--" + name.replace("_", "-")


def _version() -> str:
    import r2d2

    return f"slirp4netns version {_LIKE}+r2d2\nr2d2: {r2d2.__version__}"


def _descriptor(text: str) -> int:
    number = int(text) if text.isdigit() else -1
    try:
        os.fstat(number)
    except (OSError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text} is not an open descriptor") from None
    os.set_inheritable(number, False)
    return number


def slirp4netns(arguments: argparse.Namespace) -> int:
    """``r2d2 slirp4netns``."""
    from r2d2.slirp4netns import Api, serve

    from .foreground import forwarding
    from .network import _Ctrl, _ended, _stop

    for old, new in _DEPRECATED.items():
        if getattr(arguments, old):
            words = f"{_option(old)} is deprecated, please use {_option(new)} instead."
            print(f"WARNING: {words}", file=sys.stderr)
            setattr(arguments, new, True)
    _check(arguments)
    with ExitStack() as stack:
        forward = stack.enter_context(forwarding())
        forward.target = _stop
        try:
            network, ends_with = _attach(arguments)
            if network is None:
                return 0
            stack.enter_context(network)
            api = None
            if arguments.api_socket is not None:
                api = Api(arguments.api_socket, network)
                stack.callback(api.close)
            _tell(arguments, network)
            if arguments.ready_fd is not None:
                os.write(arguments.ready_fd, b"1")
                os.close(arguments.ready_fd)
            if serve(network, api, arguments.exit_fd, follow_resolvers=not arguments.disable_dns):
                return 0
        except _Ctrl:
            return 0
    return 0 if ends_with is None else _ended(ends_with)


def _check(arguments: argparse.Namespace) -> None:
    """Combinations that mean nothing."""
    from r2d2 import SpecError

    bess, tapfd = arguments.target_type == "bess", arguments.netns_type == "tapfd"
    for name in ("configure", "netns_type", "userns_path"):
        if bess and getattr(arguments, name):
            raise SpecError(f"{_option(name)} conflicts with --target-type=bess")
    for name in ("configure", "userns_path"):
        if tapfd and getattr(arguments, name):
            raise SpecError(f"{_option(name)} conflicts with --netns-type=tapfd")
    if arguments.macaddress is not None and not arguments.configure:
        raise SpecError("--macaddress: only valid with --configure")
    if arguments.outbound_addr6 is not None and not arguments.enable_ipv6:
        raise SpecError("--outbound-addr6: only valid with --enable-ipv6")


def _attach(arguments: argparse.Namespace) -> tuple[Network | None, int | str | None]:
    """The network, and whose end is its end; no network if we are to end before there is one."""
    from r2d2 import SpecError
    from r2d2.netspec import Slirp
    from r2d2.slirp import attach_as
    from r2d2.slirp4netns import accept, attach_link, extras, link_of_tap, source_address

    outbound = [
        source_address(given, version)
        for given, version in ((arguments.outbound_addr, 4), (arguments.outbound_addr6, 6))
        if given is not None
    ]
    options = Slirp(
        ifname=arguments.ifname,
        mtu=arguments.mtu,
        cidr=arguments.cidr,
        ipv6=arguments.enable_ipv6,
        host_loopback=not arguments.disable_host_loopback,
        resolvers=() if arguments.disable_dns else None,
        configure=arguments.configure,
    )
    lines = extras(options, dns=not arguments.disable_dns, mac=arguments.macaddress, outbound=outbound)
    target = arguments.target
    if arguments.target_type == "bess":
        print(f"Waiting for connection to {target}", flush=True)
        client = accept(target, arguments.exit_fd)
        if client is None:
            return None, None
        with client:
            return attach_link(client.fileno(), "plain", options, lines), None
    if arguments.netns_type == "path":
        return attach_as(target, options, arguments.userns_path, lines), target
    if not target.isdigit() or not int(target):
        what = "a descriptor" if arguments.netns_type == "tapfd" else "PID"
        raise SpecError(f"{target!r}: {what} must be a positive integer").with_hint(
            "a path needs --netns-type=path"
        )
    if arguments.netns_type == "tapfd":
        number = int(target)
        return attach_link(number, link_of_tap(number), options, lines), None
    if arguments.userns_path is not None:
        return attach_as(f"/proc/{target}/ns/net", options, arguments.userns_path, lines), int(target)
    return attach_as(int(target), options, None, lines), int(target)


def _tell(arguments: argparse.Namespace, network: Network) -> None:
    """What slirp4netns says when it starts."""
    import ipaddress

    link = ipaddress.IPv4Network(arguments.cidr)
    lines: Sequence[tuple[str, object]] = (
        ("MTU", arguments.mtu),
        ("Network", link.network_address),
        ("Netmask", link.netmask),
        ("Gateway", network.gateway),
        ("DNS", "none" if arguments.disable_dns else network.dns),
        ("DHCP begin", link.network_address + 15),
        ("DHCP end", link.network_address + 30),
        ("Recommended IP", network.address),
        ("API Socket", arguments.api_socket),
        ("Outbound IPv4", arguments.outbound_addr),
        ("Outbound IPv6", arguments.outbound_addr6),
    )
    print("Starting slirp")
    for name, value in lines:
        if value is not None:
            print(f"* {name + ':':<16} {value}")
    if not arguments.disable_host_loopback:
        print(
            f"WARNING: 127.0.0.1:* on the host is accessible as {network.gateway} "
            "(set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)"
        )
    sys.stdout.flush()
