"""What can be seen of a container from outside: its listening ports, answers on them, the text of logs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from r2d2.errors import ContainerClosed, SpecError

if TYPE_CHECKING:
    from r2d2.container import Container

_LISTEN = "0A"


def tail(output: str | bytes | None, lines: int) -> str:
    """The end of what a program wrote."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return "\n".join(text.splitlines()[-lines:])


def content(log: Any) -> str:
    """The text of a log so far."""
    if hasattr(log, "log_text"):  # a service
        log = log.log_text
    if hasattr(log, "logs"):  # a detached container
        data: Any = b"".join(log.logs())
    elif callable(log):
        data = log()
    elif hasattr(log, "read_bytes"):
        try:
            data = log.read_bytes()
        except FileNotFoundError:
            return ""
    elif isinstance(log, str | os.PathLike):
        try:
            with open(log, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return ""
    else:
        raise SpecError(f"log={log!r}: a path, a Detached, a service, or a function").with_hint(
            "give the program a file: popen(args, stdout=open(path, 'wb'), stderr=subprocess.STDOUT)"
        )
    return data.decode(errors="replace") if isinstance(data, bytes) else str(data)


def _sockets(container: Container) -> list[tuple[str, int]]:
    """The listening TCP sockets of a container's network: family and port (proc_pid_net(5))."""
    found = []
    pid = container.pid
    if not container.running:
        raise ContainerClosed(f"container {container.name} has ended")
    for family in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{family}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                found.append((family, int(fields[1].rpartition(":")[2], 16)))
    return found


def listening(container: Container, port: int) -> tuple[set[str], str]:
    """The families in which a port is listened on (``tcp6only``: version 4 finds nobody); if none, why."""
    found = _sockets(container)
    families = {family for family, each in found if each == port}
    if not families:
        others = ", ".join(str(each) for each in sorted({each for _, each in found})) or "no port"
        return families, f"nothing listens on port {port}; listening: {others}"
    return {"tcp6only"} if families == {"tcp6"} and not _dual() else families, ""


def _dual() -> bool:
    """Whether a socket of ::, too, takes connections of version 4, unless it says otherwise (ipv6(7))."""
    try:
        with open("/proc/sys/net/ipv6/bindv6only", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return True


_SCRIPT = """
import json, socket, sys
ask = json.loads(sys.argv[1])
timeout = max(ask["timeout"], 0.2)
try:
    if ask["do"] == "connect":
        socket.create_connection((ask["host"], ask["port"]), timeout).close()
        answer = {"ok": True, "seen": "connected"}
    else:
        import http.client
        peer = http.client.HTTPConnection(ask["host"], ask["port"], timeout=timeout)
        peer.request(ask["method"], ask["path"], headers=ask["headers"])
        got = peer.getresponse()
        body = got.read(65536).decode(errors="replace")
        answer = {"ok": True, "seen": "", "status": got.status, "body": body}
        peer.close()
except Exception as error:
    answer = {"ok": False, "seen": f"{type(error).__name__}: {error}"}
print(json.dumps(answer))
"""


def ask_inside(container: Container, ask: dict[str, Any], timeout: float) -> Any:
    """An interpreter of the host's, in the container's network namespace and nothing else of it."""
    from r2d2 import namespace

    args = [sys.executable, "-SEc", _SCRIPT, json.dumps({**ask, "timeout": timeout})]
    kinds = [kind for kind in ("user", "net") if kind in container.spec.namespaces]
    if "net" not in kinds:
        import subprocess

        return json.loads(subprocess.run(args, capture_output=True, check=True).stdout)
    done = namespace.enter(container.pid, args, kinds=kinds, capture_output=True, check=True)
    return json.loads(done.stdout)
