"""A namespace to attach a network to, programs in it, and servers of the host that they talk to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import r2d2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from r2d2 import slirp

#: Enters a namespace as the user who owns it.
ENTER = ("nsenter", "-U", "-n", "--preserve-credentials", "-t")


@contextmanager
def namespace() -> Iterator[int]:
    """A process in a user and a network namespace of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def inside(pid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the namespace."""
    return subprocess.run(
        [*ENTER, str(pid), *command], capture_output=True, text=True, check=False, timeout=60
    )


def spawn(pid: int, code: str) -> subprocess.Popen[str]:
    """Starts Python there; its output is a pipe."""
    command = [*ENTER, str(pid), sys.executable, "-c", "import socket, hashlib, time\n" + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(pid: int, code: str) -> Iterator[subprocess.Popen[str]]:
    """A program there that says "ready" when it is; it is killed at the end."""
    with spawn(pid, code) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line == "ready\n", process.stderr.read() if process.stderr else line
            yield process
        finally:
            process.kill()


def python(pid: int, code: str, look: Callable[[], str] | None = None, seconds: float = 60) -> str:
    """Runs Python there; what it prints. If it takes too long, ``look()`` says how things stand then."""
    with spawn(pid, code) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            stood = look() if look else ""
            process.kill()
            raise AssertionError(f"{error}\n{stood}") from error
    assert process.returncode == 0, f"{err}\n{look() if look else ''}"
    return out.strip()


def out(container: r2d2.Container, *command: str) -> str:
    """What a command prints in a container."""
    return str(container.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def interfaces(pid: int) -> set[str]:
    """Names of the interfaces there."""
    return set(python(pid, "print(*[name for _, name in socket.if_nameindex()])").split())


def situation(pid: int, network: slirp.Network, port: int) -> str:
    """How connections to a port of the host stand: the engine's figures, both kernels' sockets, the link."""
    ours = ["ss", "-tmino", "sport", "=", str(port), "or", "dport", "=", str(port)]
    try:
        engine = f"{network.stats()}\n{network.flows()}"
    except (r2d2.R2d2Error, OSError) as error:
        engine = repr(error)
    outside = subprocess.run(ours, capture_output=True, text=True, check=False, timeout=60).stdout
    looks = (ours, ["ip", "-s", "link"], ["ip", "neigh"], ["ip", "-6", "addr"])
    shown = [inside(pid, *command).stdout for command in looks]
    return "\n".join([f"engine: {engine}", "outside:", outside, "inside:", *shown])


@contextmanager
def server(answer: Callable[[socket.socket], object], family: int = socket.AF_INET) -> Iterator[int]:
    """A TCP server on the host's loopback that calls ``answer(connection)`` for each client, one by one."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@contextmanager
def resolver() -> Iterator[str]:
    """A DNS server on the host's loopback that answers one query, with 192.0.2.7: its address and port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))

        def answer() -> None:
            query, sender = listener.recvfrom(4096)
            if not query:
                return  # nobody has asked
            reply = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:]
            listener.sendto(reply + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\xc0\0\2\7", sender)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.sendto(b"", listener.getsockname())
        thread.join(10)


def asked(pid: int, server: str, *names: str) -> list[str]:
    """What a DNS server says there: for each name the four bytes of its IPv4 address."""
    code = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(8)
for name in {names}:
    label = bytes([len(name)]) + name.encode()
    s.sendto(b"ab\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + label + b"\\0\\0\\1\\0\\1", ("{server}", 53))
    print(*s.recv(4096)[-4:])
"""
    return python(pid, code).splitlines()


def echo(connection: socket.socket) -> None:
    """Sends back what comes; a network that is closed before this has heard the client's end resets it."""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            connection.sendall(data)


#: The beginning of a program whose host is a namespace of its own: it has 192.0.2.1 to .9, and 2001:db8::9;
#: everybody there may use ping sockets.
ELSEWHERE = """
import os, socket, subprocess, sys, threading, time
from _guest import inside, namespace, python, serving
from r2d2 import slirp
for each in ("link set lo up", *(f"addr add 192.0.2.{n}/32 dev lo" for n in range(1, 10)),
             "addr add 2001:db8::9/128 dev lo nodad"):
    subprocess.run(["ip", *each.split()], check=True)
open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 0")
"""


def elsewhere(code: str) -> str:
    """What an owner of networks prints whose host has addresses of its own that are nobody else's."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", ELSEWHERE + code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
