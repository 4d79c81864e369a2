"""What slirp4netns(1) has beside packets, served by our engine: its API socket, its links, its way to end.

``r2d2 slirp4netns`` is the face of this room: Podman and RootlessKit start it in slirp4netns' place. The
replies of the API are those of slirp4netns 1.2, byte for byte, but for requests that it crashes on or takes
without being able to serve them (a missing ``proto``, port 70000), which are refused here.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import select
import selectors
import socket
import stat
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core, netspec, slirp
from .errors import NetworkError, R2d2Error, SpecError, network_error
from .ports import Publish, listening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .netspec import Slirp
    from .ports import Protocol
    from .slirp import Network

__all__ = ["Api", "accept", "attach_link", "extras", "link_of_tap", "serve", "source_address"]

#: Where a port is listened on if a request does not say.
_ANYWHERE = "0.0.0.0"  # noqa: S104
#: A request must be shorter (slirp4netns(1)).
_LONGEST = 4096
#: How long a client of the API may take to say what it wants, in seconds.
_PATIENCE = 10.0
#: How many clients may be about to say what they want; the first to come is the first to go.
_CLIENTS = 64
#: How often the host's resolv.conf(5) is looked at, in seconds.
_LOOK = 2.0

_SIOCGIFADDR = 0x8915
_TUNGETIFF = 0x800454D2
_IFF_TUN, _IFF_VNET_HDR = 0x0001, 0x4000


class _Refused(Exception):
    """A request that cannot be carried out; the text is the reply's."""


class _Forward(NamedTuple):
    number: int
    shown: dict[str, Any]


class Api:
    """The API socket: ``add_hostfwd``, ``list_hostfwd``, ``remove_hostfwd`` in JSON, one a connection.

    A client sends its request, shuts its side down, and reads the reply. One that does not say what it wants
    within ten seconds is hung up on; meanwhile the network goes on, and so do other clients.
    """

    def __init__(self, path: str, network: Network) -> None:
        """Listens at ``path``; a socket that lies there is replaced.

        Raises:
            SpecError: the path is too long for a socket (unix(7)), or something else lies there.
            OSError: it cannot be made.
        """
        if len(os.fsencode(path)) >= 108:
            raise SpecError(f"the specified API socket path is too long (>= 108): {path}")
        self._network = network
        self._forwards: dict[int, _Forward] = {}
        self._last = 0
        self._clients: dict[socket.socket, tuple[bytearray, float]] = {}
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SpecError(f"API socket {path}: there is a file that is no socket")
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.listener.bind(path)
            self.listener.listen(64)
        except OSError as error:
            self.listener.close()
            raise _failure("listen on the API socket", error, path) from error

    def close(self) -> None:
        """Hangs up and removes the socket."""
        for client in [*self._clients, self.listener]:
            client.close()
        self._clients.clear()
        with suppress(OSError):
            os.unlink(self.path)

    # Clients

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Registers with a selector; what it reports with this object as data goes to `ready`."""
        selector.register(self.listener, selectors.EVENT_READ, self)

    def ready(self, selector: selectors.BaseSelector, file: Any) -> None:
        """There is something to read on one of our sockets."""
        if file is not self.listener:
            self._read(selector, file)
            return
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(self._clients) >= _CLIENTS:
            self._end(selector, next(iter(self._clients)))
        self._clients[client] = bytearray(), time.monotonic() + _PATIENCE
        selector.register(client, selectors.EVENT_READ, self)

    def hang_up_on_the_silent(self, selector: selectors.BaseSelector) -> None:
        """Forgets clients whose time is over."""
        for client, (_, deadline) in list(self._clients.items()):
            if time.monotonic() > deadline:
                self._end(selector, client)

    def _end(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        selector.unregister(client)
        del self._clients[client]
        client.close()

    def _read(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        request, _ = self._clients[client]
        try:
            data = client.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            self._end(selector, client)
            return
        request += data
        if data and len(request) < _LONGEST:
            return
        with suppress(OSError):  # it did not wait for its answer
            client.send(self.answer(bytes(request)))
        self._end(selector, client)

    # Requests

    def answer(self, request: bytes) -> bytes:
        """The reply to a request."""
        try:
            reply = self._carry_out(request)
        except _Refused as refused:
            reply = {"error": {"desc": f"bad request: {refused}"}}
        except R2d2Error as error:  # of an engine that is about to end
            reply = {"error": {"desc": str(error)}}
        return json.dumps(reply, separators=(",", ":")).encode()

    def _carry_out(self, request: bytes) -> dict[str, Any]:
        if len(request) >= _LONGEST:
            raise _Refused("too large message")
        asked = _parse(request)
        if not isinstance(asked, dict):
            raise _Refused("json_object() failed")
        verb = asked.get("execute")
        if not isinstance(verb, str):
            raise _Refused("no execute found")
        given = asked.get("arguments")
        arguments = given if isinstance(given, dict) else {}
        if verb == "add_hostfwd":
            return {"return": {"id": self._add(arguments)}}
        if verb == "list_hostfwd":
            return {"entries": [{"id": each, **f.shown} for each, f in self._forwards.items()]}
        if verb == "remove_hostfwd":
            self._remove(arguments)
            return {"return": {}}
        raise _Refused("unknown execute")

    def _add(self, arguments: dict[str, Any]) -> int:
        def refuse(field: str) -> _Refused:
            return _Refused(f"add_hostfwd: bad arguments.{field}")

        proto = arguments.get("proto")
        if proto not in ("tcp", "udp"):
            raise refuse("proto")
        shown: dict[str, Any] = {"proto": proto}
        for end, default in (("host", _ANYWHERE), ("guest", str(self._network.address))):
            address = arguments.get(f"{end}_addr")
            shown[f"{end}_addr"] = address = address if isinstance(address, str) and address else default
            try:
                socket.inet_pton(socket.AF_INET, address)
            except (OSError, ValueError):
                raise refuse(f"{end}_addr") from None
            port = arguments.get(f"{end}_port")
            if isinstance(port, bool) or not isinstance(port, int | float) or not 1 <= port < 65536:
                raise refuse(f"{end}_port")
            shown[f"{end}_port"] = int(port)
        try:
            number = self._listen(**shown)
        except OSError:
            raise _Refused("add_hostfwd: slirp_add_hostfwd failed") from None
        self._last += 1
        self._forwards[self._last] = _Forward(number, shown)
        return self._last

    def _listen(
        self, proto: Protocol, host_addr: str, host_port: int, guest_addr: str, guest_port: int
    ) -> int:
        with listening(Publish(host_port, guest_port, proto, host_addr)) as listener:
            request = f"forward {proto} {guest_addr}:{guest_port}"
            return int(self._network._network.request(request, [listener.fileno()]))

    def _remove(self, arguments: dict[str, Any]) -> None:
        number = arguments.get("id")
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or int(number) not in self._forwards
        ):
            raise _Refused("remove_hostfwd: bad arguments.id")
        forward = self._forwards.pop(int(number))
        self._network._network.request(f"unforward {forward.number}")


def _parse(request: bytes) -> Any:
    """JSON that may be followed by anything, as slirp4netns' parser takes it; keys must be unique."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError
        return found

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    text = request.partition(b"\0")[0].decode(errors="surrogateescape").lstrip(" \t\r\n")
    decoder = json.JSONDecoder(object_pairs_hook=unique, parse_constant=no_constant)
    try:
        return decoder.raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise _Refused("cannot parse JSON") from None


def _failure(step: str, error: OSError, what: str) -> NetworkError:
    number = error.errno or 0
    return network_error(number, step, f"{what}: {os.strerror(number)}")


# Options that the engine knows and `r2d2.slirp.attach` does not


def source_address(given: str, version: int) -> str:
    """An address of this host that sockets can be bound to, given itself or by its interface.

    Raises:
        SpecError: it is neither, or this host does not have it.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        address = ipaddress.ip_address(given)
        if address.version != version:
            raise SpecError(f"outbound address {given}: not an IPv{version} address")
    except ValueError:
        address = _address_of(given, version)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SpecError(f"outbound address {given}: {reason}").with_hint(
            "it must be an address of this host, or the name of an interface that has one: ip address"
        ) from None
    return str(address)


def _address_of(interface: str, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of an interface; of IPv6 one that is good beyond its link, if it has one."""
    if version == 4:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                request = struct.pack("16s24x", interface.encode()[:15])
                return ipaddress.IPv4Address(fcntl.ioctl(asked, _SIOCGIFADDR, request)[20:24])
        except OSError:
            pass
    else:
        try:
            with open("/proc/net/if_inet6", encoding="ascii") as file:
                lines = [line.split() for line in file]
        except OSError:
            lines = []
        # Global ones first (scope 00), then loopback (10); never those of the link alone (20).
        for _, digits in sorted(
            (scope, digits) for digits, _, _, scope, _, name in lines if name == interface
        ):
            address = ipaddress.IPv6Address(bytes.fromhex(digits))
            if not address.is_link_local:
                return address
    raise SpecError(
        f"outbound address {interface}: not an IPv{version} address, nor an interface that has one"
    )


def extras(
    options: Slirp, *, dns: bool = True, mac: str | None = None, outbound: Sequence[str] = ()
) -> list[str]:
    """Lines of a network's description beyond `r2d2.netspec.describe`.

    Args:
        options: the network.
        dns: whether there is a resolver inside.
        mac: the interface's hardware address, six hexadecimal bytes with colons.
        outbound: source addresses of what the engine opens, at most one a family; see `source_address`.

    Raises:
        SpecError: ``mac`` is not the address of one interface.
    """
    lines = [f"outbound {address}" for address in outbound]
    if not dns:
        network, (guest, gateway, _), dhcp = netspec.plan(options.cidr)
        lines.append(f"v4 {network.prefixlen} {guest} {gateway} 0.0.0.0 {dhcp}")
        if options.ipv6:
            lines.append("v6 fd00::100 fd00::2 ::")
    if mac is not None:
        parts = mac.split(":")
        try:
            octets = bytes(int(part, 16) for part in parts if 1 <= len(part) <= 2)
        except ValueError:
            octets = b""
        if len(octets) != 6 or len(parts) != 6:
            raise SpecError(f"MAC address {mac!r}: not six hexadecimal bytes with colons between them")
        if octets[0] & 1 or not any(octets):
            raise SpecError(f"MAC address {mac}: of a group, not of an interface").with_hint(
                "the first byte must be even: 52:55:0a:00:02:64"
            )
        lines.append("guest-mac " + ":".join(f"{octet:02x}" for octet in octets))
    return lines


# Links that somebody else made


def link_of_tap(fd: int) -> str:
    """How frames look on a descriptor of a tap: ``tap`` with a ``virtio_net_hdr`` before each, or ``plain``.

    The kernel does not tell whether a tap was made without IFF_NO_PI, as it must not be.

    Raises:
        SpecError: it is no tap.
    """
    try:
        flags = struct.unpack_from("16xH", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))[0]
    except OSError:
        raise SpecError(f"descriptor {fd}: not an open descriptor of a tap").with_hint(
            "open /dev/net/tun, TUNSETIFF with IFF_TAP | IFF_NO_PI, and pass it on (tuntap.rst)"
        ) from None
    if flags & _IFF_TUN:
        raise SpecError(f"descriptor {fd}: a tun, whose packets are no frames: IFF_TAP is needed")
    return "tap" if flags & _IFF_VNET_HDR else "plain"


def attach_link(fd: int, kind: str, options: Slirp, lines: Sequence[str] = ()) -> Network:
    """A network whose frames come and go over a descriptor: nothing is made and nothing configured.

    Args:
        fd: a tap, or a socket whose packets are frames; it stays the caller's.
        kind: ``tap`` or ``plain``; see `link_of_tap`.
        options: the network.
        lines: see `extras`.

    Raises:
        SetupError: the engine cannot be started.
    """
    engine = _core.Network("\n".join((netspec.describe(options), f"link {kind}", *lines)), [fd])
    return slirp.Network(engine, options.ifname, netspec.addresses(options), None)


def accept(path: str, exit_fd: int | None = None) -> socket.socket | None:
    """Waits for one BESS client (User Mode Linux' ``vec0:transport=bess``): its connection.

    The socket at ``path`` is seqpacket, every packet a frame. It is removed once somebody has connected.

    Returns:
        None if ``exit_fd`` reported something first.

    Raises:
        SpecError: the path is too long.
        NetworkError: the socket cannot be made.
    """
    if len(os.fsencode(path)) >= 108:
        raise SpecError(f"the specified BESS socket path is too long (>= 108): {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(path)
            listener.listen(1)
        except OSError as error:
            raise _failure("listen on the BESS socket", error, path) from error
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            if exit_fd is not None:
                poll.register(exit_fd, select.POLLIN)
            if any(fd == exit_fd for fd, _ in poll.poll()):
                return None
            return listener.accept()[0]
        finally:
            os.unlink(path)


# Life


def serve(network: Network, api: Api | None, exit_fd: int | None, *, follow_resolvers: bool = True) -> bool:
    """Serves until ``exit_fd`` reports something or the engine ends.

    Args:
        network: the network.
        api: its API socket, if it has one.
        exit_fd: a descriptor; any event on it is the end (``--exit-fd`` of slirp4netns(1)).
        follow_resolvers: hand the engine the host's resolvers whenever its resolv.conf(5) changes.

    Returns:
        Whether it was ``exit_fd``.
    """
    known = _resolv_conf()
    with selectors.PollSelector() as selector:
        selector.register(network, selectors.EVENT_READ)
        if exit_fd is not None:
            selector.register(exit_fd, selectors.EVENT_READ)
        if api is not None:
            api.watch(selector)
        while True:
            for key, _ in selector.select(_LOOK if follow_resolvers or (api and api._clients) else None):
                if key.fileobj == exit_fd:
                    return True
                if key.fileobj is network:
                    return False
                key.data.ready(selector, key.fileobj)
            if api is not None:
                api.hang_up_on_the_silent(selector)
            if follow_resolvers and (now := _resolv_conf()) != known:
                known = now
                with suppress(R2d2Error):  # of an engine that has just ended
                    network.set_resolvers(netspec.host_dns()[0])


def _resolv_conf() -> tuple[int, int] | None:
    try:
        found = os.stat("/etc/resolv.conf")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
