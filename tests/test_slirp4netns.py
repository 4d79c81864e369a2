"""``r2d2 slirp4netns`` in slirp4netns' place: the same client, the same commands, against both."""

from __future__ import annotations

import array
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _guest import ENTER, inside, interfaces, python, server, serving, spawn
from _needs import needs
from _proc import children, ended, until
from r2d2 import slirp4netns

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs("unshare")

OURS = [sys.executable, "-m", "r2d2", "slirp4netns"]
THEIRS = ["slirp4netns"]
#: Where both must do the same; theirs cannot make a tap without a /dev/net/tun that it may open.
BOTH = [
    pytest.param(OURS, id="r2d2"),
    pytest.param(THEIRS, id="slirp4netns", marks=needs("slirp4netns", "tun")),
]
both = pytest.mark.parametrize("program", BOTH)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a name that is short enough for a socket in it."""
    path = tempfile.mkdtemp(prefix="s4", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


@contextmanager
def running(
    program: list[str], *words: object, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """The program, ready; it ends when its exit descriptor is closed."""
    ready, ready_in = os.pipe()
    exit_out, exit_in = os.pipe()
    command = [*program, f"--ready-fd={ready_in}", "-e", str(exit_out), *map(str, words)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, pass_fds=[ready_in, exit_out, *pass_fds], stdout=said, stderr=subprocess.STDOUT
        )
        os.close(ready_in)
        os.close(exit_out)
        try:
            with open(ready, "rb") as file:
                told = file.read()
            said.seek(0)
            assert told == b"1", said.read().decode(errors="replace")
            yield process
        finally:
            os.close(exit_in)
            try:
                assert process.wait(10) == 0
            finally:
                process.kill()
                process.wait()


def ask(path: Path, request: bytes | dict[str, Any]) -> bytes:
    """One request of the API: its reply."""
    if isinstance(request, dict):
        request = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        reply = b""
        while data := client.recv(65536):
            reply += data
    return reply


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with closing(socket.socket(socket.AF_INET, kind)) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def add(**arguments: object) -> dict[str, object]:
    return {"execute": "add_hostfwd", "arguments": arguments}


def remove(number: object) -> dict[str, object]:
    return {"execute": "remove_hostfwd", "arguments": {"id": number}}


def error(text: str) -> bytes:
    return json.dumps({"error": {"desc": f"bad request: {text}"}}, separators=(",", ":")).encode()


# The API


@both
def test_api_replies(program: list[str], guest: int, place: Path) -> None:
    port, udp = free_port(), free_port(socket.SOCK_DGRAM)
    api = place / "api"
    entry = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port}
    entry |= {"guest_addr": "10.0.2.100", "guest_port": 80}
    other = {
        "proto": "udp",
        "host_addr": "0.0.0.0",
        "host_port": udp,
        "guest_addr": "10.0.2.15",
        "guest_port": 81,
    }
    without_guest = {name: value for name, value in entry.items() if name != "guest_addr"}
    without_host = {name: value for name, value in other.items() if name != "host_addr"}
    shown = json.dumps({"entries": [{"id": 1, **entry}, {"id": 2, **other}]}, separators=(",", ":")).encode()
    listing = b'{"execute": "list_hostfwd"}'
    script: list[tuple[bytes | dict[str, Any], bytes]] = [
        (b"", error("cannot parse JSON")),
        (b"{", error("cannot parse JSON")),
        (b"{'execute': 'x'}", error("cannot parse JSON")),
        (b'{"execute": NaN}', error("cannot parse JSON")),
        (b'{"execute": "x", "execute": "list_hostfwd"}', error("cannot parse JSON")),
        (b"[]", error("json_object() failed")),
        (b"1", error("json_object() failed")),
        ({}, error("no execute found")),
        ({"execute": 1}, error("no execute found")),
        ({"execute": "foo"}, error("unknown execute")),
        (b'{"execute": "li\xff"}', error("unknown execute")),
        (b" " * 4094 + b"1", error("json_object() failed")),
        (b" " * 4095 + b"1", error("too large message")),
        (add(proto="sctp"), error("add_hostfwd: bad arguments.proto")),
        (add(**entry | {"host_port": 0}), error("add_hostfwd: bad arguments.host_port")),
        (add(**entry | {"host_port": "80"}), error("add_hostfwd: bad arguments.host_port")),
        (add(**entry | {"guest_port": 0}), error("add_hostfwd: bad arguments.guest_port")),
        (add(**entry | {"host_addr": "foo"}), error("add_hostfwd: bad arguments.host_addr")),
        (add(**entry | {"host_addr": "::1"}), error("add_hostfwd: bad arguments.host_addr")),
        (add(**entry | {"guest_addr": "foo"}), error("add_hostfwd: bad arguments.guest_addr")),
        (listing, b'{"entries":[]}'),
        (add(**without_guest), b'{"return":{"id":1}}'),
        (add(**entry), error("add_hostfwd: slirp_add_hostfwd failed")),
        (add(**without_host), b'{"return":{"id":2}}'),
        (listing, shown),
        (b"\n " + listing + b" and more", shown),
        ({"execute": "remove_hostfwd"}, error("remove_hostfwd: bad arguments.id")),
        (remove("1"), error("remove_hostfwd: bad arguments.id")),
        (remove(9), error("remove_hostfwd: bad arguments.id")),
        (remove(1), b'{"return":{}}'),
        (remove(1), error("remove_hostfwd: bad arguments.id")),
        (add(**entry), b'{"return":{"id":3}}'),
        (remove(2), b'{"return":{}}'),
        (remove(3), b'{"return":{}}'),
        (listing, b'{"entries":[]}'),
    ]
    with running(program, "-c", "-a", api, guest, "tap0"):
        assert [(request, ask(api, request)) for request, _ in script] == script


def test_what_slirp4netns_crashes_on_or_takes_in_vain_is_refused(guest: int, place: Path) -> None:
    port, api = free_port(), place / "api"
    good: dict[str, Any] = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port, "guest_port": 80}
    with running(OURS, "-c", "-a", api, guest, "tap0"):
        for bad, field in (
            ({}, "proto"),
            ({"proto": 1}, "proto"),
            (good | {"host_port": 70000}, "host_port"),
            (good | {"host_port": -1}, "host_port"),
            (good | {"host_port": True}, "host_port"),
            (good | {"guest_port": 65536}, "guest_port"),
        ):
            assert ask(api, add(**bad)) == error(f"add_hostfwd: bad arguments.{field}")
        assert ask(api, {"execute": "add_hostfwd"}) == error("add_hostfwd: bad arguments.proto")
        assert ask(api, add(**good)) == b'{"return":{"id":1}}', "and it lives"


@both
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_forwarded_port_leads_inside_until_removed(
    program: list[str], proto: str, guest: int, place: Path
) -> None:
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    port, api = free_port(kind), place / "api"
    code = f"""
s = socket.socket(socket.AF_INET, {int(kind)}); s.bind(("0.0.0.0", 8080))
{"s.listen()" if proto == "tcp" else ""}
print("ready", flush=True)
{"c, _ = s.accept(); c.sendall(c.recv(9))" if proto == "tcp" else "d, c = s.recvfrom(9); s.sendto(d, c)"}
"""
    with running(program, "-c", "-a", api, guest, "tap0"):
        assert ask(api, add(proto=proto, host_addr="127.0.0.1", host_port=port, guest_port=8080)).startswith(
            b'{"return":'
        )
        with serving(guest, code), socket.socket(socket.AF_INET, kind) as client:
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        assert ask(api, remove(1)) == b'{"return":{}}'
        with socket.socket(socket.AF_INET, kind) as late, pytest.raises(ConnectionRefusedError):
            late.settimeout(10)
            late.connect(("127.0.0.1", port))
            late.send(b"x")
            late.recv(1)


def test_a_client_that_says_nothing_keeps_nobody_waiting(guest: int, place: Path) -> None:
    api = place / "api"
    with running(OURS, "-c", "-a", api, guest, "tap0"), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(api))
        silent.sendall(b'{"execute": ')
        assert ask(api, {"execute": "list_hostfwd"}) == b'{"entries":[]}'
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        # Too many of them: the first goes.
        more = [socket.socket(socket.AF_UNIX) for _ in range(70)]
        for client in more:
            client.connect(str(api))
        silent.settimeout(10)
        assert silent.recv(1) == b""
        assert ask(api, {"execute": "list_hostfwd"}) == b'{"entries":[]}'
        for client in more:
            client.close()
    assert not api.exists()


def test_api_socket_that_cannot_be(guest: int, place: Path) -> None:
    (place / "file").write_text("keep\n")
    for path, words in (
        ("x" * 200, "too long (>= 108)"),
        (place / "none" / "api", "No such file"),
        (place / "file", "no socket"),
    ):
        done = subprocess.run(
            [*OURS, "-c", "-a", str(path), str(guest), "tap0"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 125
        assert words in done.stderr
    assert (place / "file").read_text() == "keep\n"
    assert until(lambda: "tap0" not in interfaces(guest))


def test_a_socket_that_was_left_behind_is_replaced(guest: int, place: Path) -> None:
    api = place / "api"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(api))
    with running(OURS, "-c", "-a", api, guest, "tap0"):
        assert ask(api, {"execute": "list_hostfwd"}) == b'{"entries":[]}'


# Options


@both
def test_configured_interface(program: list[str], guest: int) -> None:
    with running(program, "--configure", "--mtu=9000", "-6", "--cidr", "10.0.135.128/25", guest, "tap7"):
        shown = inside(guest, "ip", "addr", "show", "tap7").stdout
        assert "inet 10.0.135.228/25" in shown
        assert "mtu 9000" in shown
        assert "default via 10.0.135.130" in inside(guest, "ip", "route").stdout
        assert inside(guest, "ping", "-c1", "-W5", "10.0.135.130").returncode == 0
        assert "LOOPBACK,UP" in inside(guest, "ip", "link", "show", "lo").stdout
    assert until(lambda: "tap7" not in inside(guest, "ip", "link").stdout), "the exit descriptor ended it"


@both
def test_interface_to_be_configured_by_others(program: list[str], guest: int) -> None:
    with running(program, "--mtu=1500", guest, "tap0"):
        assert "inet " not in inside(guest, "ip", "addr", "show", "tap0").stdout
        # As RootlessKit does.
        for command in (
            "ip link set tap0 up",
            "ip link set dev tap0 mtu 1500",
            "ip addr add 10.0.2.100/24 dev tap0",
            "ip route add default via 10.0.2.2 dev tap0",
        ):
            done = inside(guest, *command.split())
            assert done.returncode == 0, done.stderr
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0


@both
def test_words_as_getopt_reads_them(program: list[str], guest: int) -> None:
    for words in (
        ["-cm1400", guest, "tap0"],
        [guest, "--conf", "tap0", "--mt", "1400"],
        ["-c", "-m", "1400", "--", guest, "tap0"],
    ):
        with running(program, *words):
            shown = inside(guest, "ip", "addr", "show", "tap0").stdout
            assert "mtu 1400" in shown
            assert "inet 10.0.2.100/24" in shown
        assert until(lambda: "tap0" not in inside(guest, "ip", "link").stdout)


@both
def test_host_loopback_unless_disabled(program: list[str], guest: int) -> None:
    code = """
try: print(socket.create_connection(("10.0.2.2", {}), 10).recv(9).decode())
except OSError as e: print(e.errno)
"""
    with server(lambda client: client.sendall(b"hello")) as port:
        with running(program, "-c", guest, "tap0"):
            assert python(guest, code.format(port)) == "hello"
        assert until(lambda: "tap0" not in inside(guest, "ip", "link").stdout)
        with running(program, "-c", "--disable-host-loopback", guest, "tap0"):
            assert python(guest, code.format(port)) == str(errno.ENETUNREACH)
            assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0


def test_no_resolver_if_disabled(guest: int) -> None:
    for words, answers in (((), True), (("--disable-dns",), False)):
        with running(OURS, "-c6", *words, guest, "tap0"):
            for address in ("10.0.2.3", "fd00::3"):
                found = inside(guest, "ping", "-c1", "-W2", address).returncode == 0
                assert found == answers, (words, address)
            assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        assert until(lambda: "tap0" not in inside(guest, "ip", "link").stdout)


@both
def test_macaddress(program: list[str], guest: int) -> None:
    with running(program, "-c", "--macaddress", "52:55:00:00:00:0a", guest, "tap0"):
        assert "link/ether 52:55:00:00:00:0a" in inside(guest, "ip", "link", "show", "tap0").stdout
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0


@both
@pytest.mark.parametrize("userns", [True, False])
def test_namespace_by_path(program: list[str], userns: bool, guest: int) -> None:
    words = [f"--userns-path=/proc/{guest}/ns/user"] if userns else []
    if not userns:
        # From inside the user namespace, where the right to join is.
        program = ["nsenter", "-t", str(guest), "-U", "--preserve-credentials", *program]
    with running(program, "-c", "--netns-type=path", *words, f"/proc/{guest}/ns/net", "tap0"):
        assert "inet 10.0.2.100/24" in inside(guest, "ip", "addr", "show", "tap0").stdout


@both
@pytest.mark.parametrize(("given", "seen"), [("127.0.0.2", "127.0.0.2"), ("lo", "127.0.0.1")])
def test_outbound_address(program: list[str], given: str, seen: str, guest: int) -> None:
    with (
        server(lambda client: client.sendall(client.getpeername()[0].encode())) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        running(program, "-c", f"--outbound-addr={given}", guest, "tap0"),
    ):
        assert (
            python(guest, f"print(socket.create_connection(('10.0.2.2', {tcp}), 10).recv(99).decode())")
            == seen
        )
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(10)
        code = (
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n"
            f"s.sendto(b'x', ('10.0.2.2', {udp.getsockname()[1]})); print(s.recv(99).decode())"
        )
        with spawn(guest, code) as client:
            _, sender = udp.recvfrom(100)
            udp.sendto(sender[0].encode(), sender)
            assert client.communicate(timeout=10)[0].strip() == seen


def test_outbound_ipv6_address(guest: int) -> None:
    """In a host of its own, so to speak, that has more than one IPv6 address."""
    host = [*ENTER, str(guest)]
    for command in ("link set lo up", "addr add fd77::2/128 dev lo"):
        inside(guest, "ip", *command.split()).check_returncode()
    serve = """
import socket
s = socket.create_server(("::1", 0), family=socket.AF_INET6); print(s.getsockname()[1], flush=True)
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()
"""
    nested = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 1000"]
    with (
        subprocess.Popen([*host, sys.executable, "-c", serve], stdout=subprocess.PIPE) as listener,
        subprocess.Popen([*host, *nested], stdout=subprocess.PIPE) as inner,
    ):
        try:
            assert listener.stdout is not None
            assert inner.stdout is not None
            port = int(listener.stdout.readline())
            inner.stdout.readline()
            code = f"print(socket.create_connection(('fd00::2', {port}), 10).recv(99).decode())"
            for words, seen in (
                ((), "::1"),
                (("--outbound-addr6=fd77::2",), "fd77::2"),
                (("--outbound-addr6=lo",), "fd77::2"),
            ):
                with running([*host, *OURS], "-c6", *words, inner.pid, "tap0"):
                    assert python(inner.pid, code) == seen
                assert until(lambda: "tap0" not in inside(inner.pid, "ip", "link").stdout)
        finally:
            listener.kill()
            inner.kill()


def test_outbound_address_that_is_not_ours() -> None:
    assert slirp4netns.source_address("127.0.0.3", 4) == "127.0.0.3"
    assert slirp4netns.source_address("lo", 4) == "127.0.0.1"
    for given, version in (
        ("192.0.2.250", 4),
        ("::1", 4),
        ("127.0.0.1", 6),
        ("nosuchdevice", 4),
        ("nosuch", 6),
    ):
        with pytest.raises(r2d2.SpecError, match=given):
            slirp4netns.source_address(given, version)


@both
def test_sandbox_and_seccomp_are_asked_for(program: list[str], guest: int) -> None:
    with running(program, "-c", "--enable-sandbox", "--enable-seccomp", guest, "tap0") as process:
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
        if program is OURS:
            (engine,) = children(process.pid)
            status = Path(f"/proc/{engine}/status").read_text()
            assert "Seccomp:\t2" in status
            assert "CapEff:\t0000000000000000" in status


@pytest.mark.parametrize("program", [OURS, pytest.param(THEIRS, marks=needs("slirp4netns"))])
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--bogus", "{pid}", "tap0"],
        ["foo", "tap0"],
        ["0", "tap0"],
        ["4194303", "tap0"],
        ["-m", "65522", "{pid}", "tap0"],
        ["-m", "0", "{pid}", "tap0"],
        ["-m", "many", "{pid}", "tap0"],
        ["-e", "-1", "{pid}", "tap0"],
        ["-r", "foo", "{pid}", "tap0"],
        ["--cidr", "24", "{pid}", "tap0"],
        ["--cidr", "foo/24", "{pid}", "tap0"],
        ["--cidr", "10.0.2.1/24", "{pid}", "tap0"],
        ["--cidr", "10.0.2.0/26", "{pid}", "tap0"],
        ["--netns-type=path", "/nowhere", "tap0"],
        ["--netns-type=path", "--userns-path=/nowhere", "/proc/{pid}/ns/net", "tap0"],
        ["--target-type=foo", "{pid}", "tap0"],
        ["--target-type=bess", "-c", "/tmp/nobody"],
        ["--macaddress=foo", "-c", "{pid}", "tap0"],
        ["--macaddress=52:55:00:00:00:01", "{pid}", "tap0"],
        ["--macaddress=52:55:00:00:00:01:02", "-c", "{pid}", "tap0"],
        ["--outbound-addr=foo", "-c", "{pid}", "tap0"],
        ["--outbound-addr6=10.0.0.1", "-c", "{pid}", "tap0"],
    ],
)
def test_what_cannot_work_is_refused(program: list[str], words: list[str], guest: int) -> None:
    done = subprocess.run(
        [*program, *(word.format(pid=guest) for word in words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == (125 if program is OURS else 1)
    assert done.stderr or program is THEIRS
    assert "Traceback" not in done.stderr
    assert "tap0" not in inside(guest, "ip", "link").stdout


def test_a_descriptor_that_is_not_open_is_refused(guest: int) -> None:
    for option in ("--exit-fd=99", "--ready-fd=99", "--netns-type=tapfd"):
        words = ["99"] if "tapfd" in option else [str(guest)]
        done = subprocess.run([*OURS, option, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 125
        assert "99" in done.stderr
        assert "open descriptor" in done.stderr


OPTIONS = [
    *("--configure", "--exit-fd", "--ready-fd", "--mtu", "--enable-ipv6", "--api-socket", "--cidr"),
    *("--disable-host-loopback", "--netns-type", "--userns-path", "--enable-sandbox", "--enable-seccomp"),
    *("--outbound-addr", "--outbound-addr6", "--disable-dns", "--macaddress", "--target-type", "--version"),
]


@pytest.mark.parametrize("program", [OURS, pytest.param(THEIRS, marks=needs("slirp4netns"))])
def test_help_names_what_callers_look_for(program: list[str]) -> None:
    for flag in ("--help", "-h"):
        done = subprocess.run([*program, flag], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert [name for name in OPTIONS if name not in done.stdout] == []
    version = subprocess.run([*program, "-v"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("slirp4netns version 1.")


def test_called_by_its_name(place: Path) -> None:
    script = place / "slirp4netns"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom r2d2.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("slirp4netns version 1.")
    other = script.rename(place / "r2d2")
    assert (
        subprocess.run([other, "--version"], capture_output=True, text=True, check=True).stdout[:5] == "r2d2 "
    )


# Links that somebody else made

_TAP = """
import array, fcntl, os, socket, struct, subprocess, sys
flags = int(sys.argv[2])
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", b"tap0", flags))
for command in ("link set tap0 up", "addr add 10.0.2.100/24 dev tap0"):
    subprocess.run(["ip", *command.split()], check=True)
with socket.socket(fileno=int(sys.argv[1])) as there:
    there.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
"""


def tap(guest: int, flags: int) -> int:
    """A tap in the namespace: its descriptor."""
    here, there = socket.socketpair()
    with here, there:
        subprocess.run(
            [*ENTER, str(guest), sys.executable, "-c", _TAP, str(there.fileno()), str(flags)],
            check=True,
            pass_fds=[there.fileno()],
        )
        _, ancillary, _, _ = here.recvmsg(1, socket.CMSG_SPACE(4))
        return array.array("i", ancillary[0][2])[0]


@needs("tun")
@pytest.mark.parametrize("flags", [0x1002, 0x5002], ids=["plain", "vnet_hdr"])
def test_tap_of_somebody_else(flags: int, guest: int) -> None:
    fd = tap(guest, flags)
    payload = b"0123456789abcdef" * 200_000
    try:
        with (
            server(lambda client: client.sendall(payload)) as port,
            running(OURS, "--netns-type=tapfd", fd, pass_fds=(fd,)),
        ):
            code = f"""
s = socket.create_connection(("10.0.2.2", {port}), 10); h = hashlib.sha256()
while d := s.recv(1 << 16): h.update(d)
print(h.hexdigest())
"""
            assert python(guest, code) == hashlib.sha256(payload).hexdigest()
        assert "tap0" in inside(guest, "ip", "link").stdout, "it stays its maker's"
    finally:
        os.close(fd)


@needs("tun")
@both
def test_tap_that_is_there_already(program: list[str], guest: int) -> None:
    """As RootlessKit makes it: persistent, up, and to be attached to by its name."""
    for command in ("tuntap add name tap0 mode tap", "link set tap0 up"):
        inside(guest, "ip", *command.split()).check_returncode()
    with running(program, "--mtu=65520", "--disable-host-loopback", guest, "tap0"):
        for command in (
            "link set dev tap0 mtu 65520",
            "addr add 10.0.2.100/24 dev tap0",
            "route add default via 10.0.2.2 dev tap0",
        ):
            inside(guest, "ip", *command.split()).check_returncode()
        assert inside(guest, "ping", "-c1", "-W5", "10.0.2.2").returncode == 0
    assert inside(guest, "ping", "-c1", "-W1", "10.0.2.2").returncode != 0


@needs("tun")
def test_tun_is_no_tap(guest: int) -> None:
    fd = tap(guest, 0x1001)
    try:
        with pytest.raises(r2d2.SpecError, match="IFF_TAP"):
            slirp4netns.link_of_tap(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "program", [OURS, pytest.param(THEIRS, id="slirp4netns", marks=needs("slirp4netns"))]
)
def test_bess_client_exchanges_frames(program: list[str], place: Path) -> None:
    """What User Mode Linux does: a seqpacket socket, every packet an Ethernet frame."""
    path = place / "bess"
    ready, ready_in = os.pipe()
    command = [*program, "--target-type=bess", f"--ready-fd={ready_in}", str(path)]
    process = subprocess.Popen(
        command, pass_fds=[ready_in], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(ready_in)
    mine, my_ip, gateway = bytes.fromhex("025500000001"), bytes([10, 0, 2, 100]), bytes([10, 0, 2, 2])
    try:
        assert until(path.exists)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(10)
            assert until(lambda: link.connect_ex(str(path)) == 0)
            with open(ready, "rb") as file:
                assert file.read() == b"1"
            arp = b"\xff" * 6 + mine + bytes.fromhex("0806000108000604")
            link.send(arp + b"\0\1" + mine + my_ip + bytes(6) + gateway)
            reply = next(
                frame for frame in iter(lambda: link.recv(65536), b"") if frame[12:14] == b"\x08\x06"
            )
            assert (reply[20:22], reply[28:32]) == (b"\0\2", gateway)
            router = reply[22:28]
            echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"ping"
            echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0, my_ip, gateway)
            ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
            link.send(router + mine + b"\x08\0" + ip + echo)
            answer = next(
                f for f in iter(lambda: link.recv(65536), b"") if f[12:14] == b"\x08\0" and f[23] == 1
            )
            assert answer[26:34] == gateway + my_ip
            packet = answer[34 : 14 + int.from_bytes(answer[16:18])]
            assert (packet[0], packet[4:]) == (0, struct.pack("!HH", 7, 1) + b"ping")
            assert checksum(answer[14:34]) == checksum(packet) == 0, "computed by the sender"
        if program is OURS:
            assert process.wait(10) == 0, "ends with its only client"
            assert not path.exists()
    finally:
        process.kill()
        process.wait()


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2])) + (data[-1] << 8) * (
        len(data) % 2
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_waiting_for_a_bess_client_ends_with_the_exit_descriptor(place: Path) -> None:
    out, into = os.pipe()
    with subprocess.Popen(
        [*OURS, "--target-type=bess", f"-e{out}", str(place / "bess")],
        pass_fds=[out],
        stdout=subprocess.DEVNULL,
    ) as process:
        os.close(out)
        assert until((place / "bess").exists)
        os.close(into)
        assert process.wait(10) == 0
    assert not (place / "bess").exists()


# Life


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_it_takes_the_interface_along(number: int, guest: int, place: Path) -> None:
    api = place / "api"
    with subprocess.Popen(
        [*OURS, "-c", "-a", str(api), str(guest), "tap0"], stdout=subprocess.DEVNULL
    ) as process:
        assert until(api.exists)
        assert until(lambda: bool(children(process.pid)))
        (engine,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(10) == (-number if number == signal.SIGKILL else 0)
    assert until(lambda: ended(engine))
    assert until(lambda: "tap0" not in inside(guest, "ip", "link").stdout)
    assert api.exists() == (number == signal.SIGKILL)


def test_ends_with_the_process(guest: int) -> None:
    with running(OURS, "-c", guest, "tap0") as process:
        os.kill(guest, signal.SIGKILL)
        assert process.wait(10) == 0


def test_resolvers_follow_the_host(guest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop hands the engine new resolvers when the file changes, and only then."""
    out, into = os.pipe()
    heard: list[list[str]] = []
    stamps = iter([1, 1, 2])
    monkeypatch.setattr(slirp4netns, "_LOOK", 0.01)
    monkeypatch.setattr(slirp4netns, "_resolv_conf", lambda: next(stamps, 2))
    monkeypatch.setattr(slirp4netns.netspec, "host_dns", lambda: (["192.0.2.7:53"], []))
    with r2d2.slirp.attach(guest) as network:
        real = network.set_resolvers

        def seen(resolvers: Any) -> None:
            heard.append(list(resolvers))
            real(heard[-1])
            os.close(into)

        monkeypatch.setattr(network, "set_resolvers", seen)
        assert slirp4netns.serve(network, None, out)
    os.close(out)
    assert heard == [["192.0.2.7:53"]]
