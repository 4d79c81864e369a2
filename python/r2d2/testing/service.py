"""What the servers of ``r2d2.testing.services`` have in common."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from r2d2.closing import Closing
from r2d2.container import Container
from r2d2.errors import ContainerClosed, ImageNotFound, SpecError
from r2d2.image import image_of
from r2d2.users import lookup

from .waiting import wait_for_log, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from r2d2.container import Networked
    from r2d2.image import Image
    from r2d2.process import Process
    from r2d2.spec import StrPath

#: Seconds that a server may take to start.
TIMEOUT = 60.0


class Service(Closing):
    """What the servers have in common.

    Args:
        image: that holds the server's program; the host's by default.
        network: ``"slirp"``: a port of 127.0.0.1 leads in; ``"none"``, ``"host"``, or networks of containers,
            as ``Container``'s: there ``ports=`` leads in from outside.
        timeout: seconds for the start.
        keywords: as ``Container``'s.

    Attributes:
        container: its container, once it was started.
        process: the server's program.
        password: the one that clients need, or None.
    """

    #: The port inside.
    guest_port: int
    #: The program, and the Debian package that has it.
    program: str
    package: str
    #: The user of the image that it runs as.
    account: str
    #: The line of its log that says it takes connections, or None: then the port tells.
    ready: str | None = None

    def __init__(
        self,
        image: Image | StrPath = "host",
        *,
        network: str | Networked | Iterable[Networked] = "slirp",
        timeout: float = TIMEOUT,
        **keywords: Any,
    ) -> None:
        self._image = image_of(image)
        self._timeout = timeout
        if network == "slirp":
            keywords.setdefault("ports", [f"0:{self.guest_port}"])
        self._keywords = {"network": network, **keywords}
        self.password: str | None = None
        self._container: Container | None = None
        self._process: Process | None = None
        self._log = -1

    # Life

    def start(self) -> Self:
        """Starts it and waits until it takes connections; returns itself.

        Raises:
            ImageNotFound: the image lacks the server.
            ContainerClosed: it ended before it was ready; the notes have its log's end.
            WaitTimeout: it was not ready in time; the same.
            And what ``Container`` raises.
        """
        if self._container is not None:
            raise ContainerClosed(f"{type(self).__name__} was started before").with_hint("make another one")
        self._container = Container(self._image, **self._keywords)
        try:
            self._container.start()
            self._log = os.memfd_create("r2d2-log")
            self._serve()
        except BaseException:
            self.stop()
            raise
        return self

    def _serve(self) -> None:
        args, user = self._command(self.container)
        prefix, keywords = run_as(self.container, user)
        self._process = self.container.popen(
            [*prefix, *args],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            **keywords,
        )
        if self.ready is not None:
            wait_for_log(self.log_text, self.ready, timeout=self._timeout, process=self._process)
        else:
            wait_for_port(
                self.container,
                self.guest_port,
                timeout=self._timeout,
                process=self._process,
                log=self.log_text,
            )

    def _command(self, container: Container) -> tuple[list[str], str]:
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it and everything of its container. Idempotent."""
        if self._container is not None:
            self._container.stop()
        if self._process is not None:
            self._process.wait()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def close(self) -> None:
        """As :meth:`stop`."""
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        state = "new" if self._container is None else "running" if self.running else "ended"
        return f"<r2d2.testing.{type(self).__name__} {state}>"

    # What it is

    @property
    def container(self) -> Container:
        """Its container."""
        if self._container is None:
            raise ContainerClosed(f"{type(self).__name__} was not started").with_hint("use start(), or with")
        return self._container

    @property
    def process(self) -> Process:
        """The server's program."""
        if self._process is None:
            raise ContainerClosed(f"{type(self).__name__} was not started").with_hint("use start(), or with")
        return self._process

    @property
    def running(self) -> bool:
        """Whether the server's program runs."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """What it wrote to its standard output and error so far."""
        if self._log < 0:
            return ""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, size, 0).decode(errors="replace")

    @property
    def host(self) -> str:
        """The address for clients."""
        ports = self.container.ports
        return ports[0].host if ports else "127.0.0.1"

    @property
    def port(self) -> int:
        """The port for clients, on :attr:`host`; with ``network="none"`` the one inside."""
        for each in self.container.ports:
            if each.guest_port == self.guest_port:
                return each.host_port
        return self.guest_port


def find(container: Container, program: str, package: str) -> str:
    """The path of a program in the image.

    Raises:
        ImageNotFound: it has none.
    """
    for directory in ("/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        if container.path(directory, program).exists():
            return f"{directory}/{program}"
    raise ImageNotFound(f"image {container.image.name}: it has no {program}").with_hint(
        f"on Debian and Ubuntu: apt install {package}"
    )


def run_as(container: Container, account: str) -> tuple[list[str], dict[str, Any]]:
    """How to run a program as a user who is not root: words before it, and keywords of ``popen``.

    Returns:
        The user's ids where the container has them; else unshare(1) with a user namespace where the
        container's root has the user's name.
    """
    try:
        uid, gid, *_ = lookup(container, account)
    except SpecError:
        uid = gid = 65534
    spec = container._resolve()
    if spec.has_uid(uid) and spec.has_gid(gid):
        return [], {"user": f"{uid}:{gid}"}
    return ["unshare", "--user", f"--map-user={uid}", f"--map-group={gid}"], {}
