"""Other user-mode networks behind the same handle: slirp4netns(1) and pasta(1), where they are installed.

``Container(network="pasta")`` and ``slirp.attach(pid, engine="slirp4netns")`` start the program in the place
of r2d2's engine: for comparisons, and for hosts whose administrators trust that program. They need a
``/dev/net/tun`` that the user may open; what a program cannot do (statistics, policy, names) is an
``UnsupportedError``, before anything is started where it is an argument.

The program is a child of this process. Before it executes the program, the child forks a watchdog that ends
the program when this process or the namespace's process ends, however they end::

    python ── fork, exec ──► r2d2-watch ── fork ──► the watchdog: polls pidfds of owner, guest and program
                                 └── exec ──► slirp4netns or pasta

So there is no moment at which the program runs and nobody watches it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from . import netspec, slirp
from .errors import ContainerClosed, SpecError, network_error, setup_error, unsupported_error
from .ports import Port, listening

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from . import _core
    from .netspec import Slirp
    from .ports import Publish
    from .spec import StrPath

__all__ = ["External", "attach", "check", "command_line"]

#: Who has the program, by its name.
_PACKAGES = {"slirp4netns": "slirp4netns", "pasta": "passt"}
#: Options that the programs have, too.
_KNOWN = {"ifname", "mtu", "cidr", "ipv6", "host_loopback", "configure", "device", "engine"}
#: How long a program may take until its network stands, in seconds.
_PATIENCE = 20.0

# Runs in the child, then becomes the program. -I -S: nothing of the user's or of site-packages is imported.
_PRELUDE = """
import os, select, signal, sys
watched = [int(n) for n in sys.argv[1].split(",")]
for fd in watched:
    os.set_inheritable(fd, False)
program = os.pidfd_open(os.getpid())
if os.fork() == 0:
    with open("/proc/self/comm", "w") as comm:
        comm.write("r2d2-watch")
    keep, last = sorted([program, *watched]), -1
    for fd in [*keep, 65536]:
        os.closerange(last + 1, fd)
        last = fd
    poll = select.poll()
    for fd in keep:
        poll.register(fd, select.POLLIN)
    gone = [fd for fd, _ in poll.poll()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        if program in gone:
            break
        try:
            signal.pidfd_send_signal(program, number)
        except ProcessLookupError:
            break
        last = select.poll()
        last.register(program, select.POLLIN)
        gone = [fd for fd, _ in last.poll(1000)]
    os._exit(0)
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec keeps that
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[3:])
"""


def check(options: Slirp) -> str:
    """The path of the program that ``options.engine`` names.

    Raises:
        SpecError: there is no such engine, or an option can never work.
        UnsupportedError: the program is not installed, cannot do what an option says, or may not open
            ``/dev/net/tun``.
    """
    name = options.engine
    if name not in _PACKAGES:
        known = ", ".join(map(repr, ("r2d2", *_PACKAGES)))
        raise SpecError(f"engine={name!r}: one of {known}")
    netspec.describe(options)
    usual = slirp.Slirp()
    for field in slirp.Slirp._fields:
        if field not in _KNOWN and getattr(options, field) != getattr(usual, field):
            _cannot(name, f"{field}=")
    if not isinstance(options.host_loopback, bool):
        _cannot(name, "host_loopback= for single ports")
    if options.device == "packet":
        _cannot(name, 'device="packet"')
    path = shutil.which(name)
    if path is None:
        raise unsupported_error(errno.ENOENT, f"{name} is not installed").with_hint(
            f'apt install {_PACKAGES[name]}, or dnf; or network="slirp", which needs nothing'
        )
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise unsupported_error(
            error.errno or 0, f"{name} needs /dev/net/tun: {os.strerror(error.errno or 0)}"
        ).with_hint(
            'modprobe tun; chmod 666 /dev/net/tun; or network="slirp", which can do without'
        ) from None
    return path


def _cannot(name: str, what: str) -> NoReturn:
    raise unsupported_error(errno.EOPNOTSUPP, f"{name} cannot do this: {what}").with_hint(
        'r2d2\'s own engine can: network="slirp", or engine="r2d2"'
    )


def command_line(options: Slirp, ports: Iterable[Publish] = ()) -> list[str]:
    """The program and its options, without the namespace and what tells when it is ready."""
    guest, gateway, dns = map(str, netspec.addresses(options))
    prefix = options.cidr.partition("/")[2]
    if options.engine == "slirp4netns":
        words = ["slirp4netns", f"--mtu={options.mtu}", f"--cidr={options.cidr}"]
        words += ["--enable-seccomp"]
        words += ["--configure"] if options.configure else []
        words += ["--enable-ipv6"] if options.ipv6 else []
        words += [] if options.host_loopback else ["--disable-host-loopback"]
        return words
    words = ["pasta", "--foreground", "--quiet", "--ns-ifname", options.ifname, "--mtu", str(options.mtu)]
    words += ["--address", guest, "--netmask", prefix, "--gateway", gateway, "--dns-forward", dns]
    words += ["--address", "fd00::100", "--gateway", "fd00::2"] if options.ipv6 else ["--ipv4-only"]
    words += ["--config-net"] if options.configure else []
    words += [] if options.host_loopback else ["--no-map-gw"]
    # It would become nobody, who may not join what is root's.
    words += ["--runas", "0"] if os.geteuid() == 0 else []
    for flag, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        specs = [f"{p.host}/{p.host_port}:{p.guest_port}" for p in ports if p.protocol == protocol]
        for spec in specs or ["none"]:
            words += [flag, spec]
    # By default it would lead every port that is bound outside into the namespace.
    return [*words, "--tcp-ns", "none", "--udp-ns", "none"]


class _Program:
    """The running program: what `r2d2.slirp.Network` needs of an engine."""

    device = "tap"

    def __init__(self, name: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.name = name
        self.api: int | None = None
        self.said = said
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._pidfd

    def alive(self) -> bool:
        return not self._closed and not select.select([self._pidfd], [], [], 0)[0]

    def words(self) -> str:
        """What it said last."""
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").splitlines()
        noise = ("syslog", "sent tapfd", "received tapfd", "WARNING: Support for", "seccomp: ")
        return "; ".join([line for line in lines if line and not any(word in line for word in noise)][-4:])

    def request(self, text: str, fds: Sequence[int] = ()) -> str:
        del fds
        if self._closed:
            raise ContainerClosed("this network is closed")
        _cannot(self.name, text.split(maxsplit=1)[0])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request to the API of slirp4netns(1)."""
        if self._closed or self.api is None:
            raise ContainerClosed("this network is closed")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_PATIENCE)
            client.connect(f"/proc/self/fd/{self.api}")
            client.sendall(json.dumps(request).encode())
            client.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda: client.recv(65536), b""))
        return cast("dict[str, Any]", json.loads(reply or b"{}"))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._process.terminate()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._pidfd)
        self.said.close()
        if self.api is not None:
            os.close(self.api)

    def __del__(self) -> None:
        self.close()


class External(slirp.Network):
    """A running slirp4netns or pasta. What only r2d2's engine can do raises UnsupportedError.

    pasta takes ports only when it starts; slirp4netns has them on IPv4 addresses only.

    ``fileno()`` is valid until ``close()``.
    """

    def __init__(self, program: _Program, options: Slirp) -> None:
        # slirp4netns' guest finds its own address by router advertisement.
        known = options.ipv6 and program.name == "pasta"
        v6 = netspec.check_address("fd00::100") if known else None
        super().__init__(cast("_core.Network", program), options.ifname, netspec.addresses(options), v6)
        self._program = program

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.alive else "closed"
        return f"<r2d2.external.External {self.engine} {self.ifname} {self.address} {state}>"

    @property
    def engine(self) -> str:
        """``slirp4netns`` or ``pasta``."""
        return self._program.name

    def _forward(self, port: Publish) -> Port:
        _check_port(self.engine, port)
        if self.engine == "pasta":
            _cannot("pasta", "ports that are added later: give them when it starts, ports=")
        with self._lock:
            found = _free(port)
            arguments = {
                "proto": port.protocol,
                "host_addr": port.host,
                "host_port": found.host_port,
                "guest_addr": str(self.address),
                "guest_port": port.guest_port,
            }
            reply = self._program.ask({"execute": "add_hostfwd", "arguments": arguments})
            if "return" not in reply:
                raise network_error(errno.EADDRINUSE, f"listen on {port}", str(reply.get("error")))
            added = _shown(self, found)
            self._ports[added] = reply["return"]["id"]
        return added

    def remove_port(self, port: Port) -> None:
        """Ends a forward.

        Raises:
            KeyError: it is not among `ports`.
            UnsupportedError: pasta cannot.
        """
        if self.engine == "pasta":
            _cannot("pasta", "ports that are removed")
        with self._lock:
            self._program.ask({"execute": "remove_hostfwd", "arguments": {"id": self._ports[port]}})
            del self._ports[port]


def _check_port(name: str, port: Publish) -> None:
    """What the program cannot lead inside."""
    if port.protocol == "unix":
        _cannot(name, "Unix sockets of the host")
    if name == "slirp4netns" and ":" in port.host:
        _cannot(name, "ports on IPv6 addresses")


def _free(port: Publish) -> Publish:
    """The port with a host port that is free now; the programs would not tell why theirs is not.

    Raises:
        NetworkError: it is not, or may not be listened on.
    """
    try:
        with listening(port) as probe:
            return port._replace(host_port=probe.getsockname()[1])
    except OSError as error:
        number = error.errno or 0
        raise network_error(number, f"listen on {port}", os.strerror(number)) from error


def attach(
    target: int | StrPath, options: Slirp, userns: StrPath | None = None, ports: Iterable[Publish] = ()
) -> External:
    """Starts the program that ``options.engine`` names for a namespace; see `r2d2.slirp.attach`.

    Raises:
        SpecError, UnsupportedError: see `check`.
        SetupNotFoundError: there is no such process or path.
        NetworkError: the program failed; the message has its words. A port cannot be listened on.
    """
    path = check(options)
    asked = [port.checked() for port in ports]
    for port in asked:
        _check_port(options.engine, port)
    wanted = [_free(port) for port in asked]
    # A socket's path has 108 bytes.
    long = len(tempfile.gettempdir()) > 80
    with tempfile.TemporaryDirectory(prefix="r2d2-", dir="/tmp" if long else None) as place:  # noqa: S108
        program = _start(path, options, target, userns, wanted, place)
        network = External(program, options)
        try:
            if options.engine == "slirp4netns":
                # What is connected to is the socket, not its name: nothing stays on disk.
                program.api = os.open(f"{place}/api", os.O_PATH | os.O_CLOEXEC)
                network._publish(wanted)
            else:
                network._ports |= {_shown(network, port): 0 for port in wanted}
        except BaseException:
            network.close()
            raise
    return network


def _shown(network: External, port: Publish) -> Port:
    guest = network.address6 if ":" in port.host and network.address6 else network.address
    return Port(port.protocol, port.host, port.host_port, str(guest), port.guest_port)


def _start(
    path: str, options: Slirp, target: int | StrPath, userns: StrPath | None, ports: list[Publish], place: str
) -> _Program:
    """The program, and its network stands."""
    words = command_line(options, ports if options.engine == "pasta" else ())
    where = _where(options.engine, target, userns)
    with ExitStack() as stack, ExitStack() as failed:
        said = failed.enter_context(tempfile.TemporaryFile())
        watched = _watched(target, stack)
        inherited = list(watched)
        if options.engine == "pasta":
            # The file that it writes its pid to when all stands.
            os.mkfifo(f"{place}/pid")
            ready = os.open(f"{place}/pid", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            words += ["--pid", f"{place}/pid", *where]
        else:
            ready, theirs = os.pipe()
            inherited.append(theirs)
            stack.callback(os.close, theirs)
            words += [f"--ready-fd={theirs}", f"--api-socket={place}/api", *where, options.ifname]
        stack.callback(os.close, ready)
        prelude = [sys.executable, "-I", "-S", "-c", _PRELUDE, ",".join(map(str, watched)), path]
        process = subprocess.Popen(
            [*prelude, *words],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            # Ctrl-C at our terminal is for us to act on.
            process_group=0,
        )
        program = _Program(options.engine, process, said)
        if problem := _await(program, ready):
            last = program.words()
            program.close()
            raise network_error(problem, f"start {program.name}", last or os.strerror(problem))
        failed.pop_all()
        return program


def _where(engine: str, target: int | StrPath, userns: StrPath | None) -> list[str]:
    """The namespace, as the program wants it named."""
    if isinstance(target, int):
        return [*(["--enable-sandbox"] if engine == "slirp4netns" else []), str(target)]
    path = os.path.abspath(target)
    if engine == "pasta":
        return ["--netns", path, *(["--netns-only"] if userns is None else ["--userns", os.fspath(userns)])]
    # Its sandbox needs the rights that it has in the user namespace of a process, or root's own.
    sandbox = ["--enable-sandbox"] if os.geteuid() == 0 else []
    return [
        "--netns-type=path",
        *sandbox,
        *([] if userns is None else [f"--userns-path={os.fspath(userns)}"]),
        path,
    ]


def _await(program: _Program, ready: int) -> int:
    """Waits until its network stands: 0, or the errno that says best why it does not."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.register(program.fileno(), select.POLLIN)
    events = dict(poll.poll(_PATIENCE * 1000))
    if events.get(ready, 0) & select.POLLIN and os.read(ready, 100):
        return 0
    if not events:
        return errno.ETIMEDOUT
    select.select([program.fileno()], [], [], 1)  # it closes its end before it says why
    return errno.EIO


def _watched(target: int | StrPath, stack: ExitStack) -> list[int]:
    """Descriptors of pidfds: of us, and of the process that is served."""
    fds = []
    for pid in (os.getpid(), *([target] if isinstance(target, int) else [])):
        try:
            fds.append(os.pidfd_open(pid))
        except OSError:
            failure = setup_error(errno.ENOENT, os.strerror(errno.ENOENT), f"/proc/{pid}")
            failure.step = "find the namespace"
            raise failure from None
        stack.callback(os.close, fds[-1])
    return fds
