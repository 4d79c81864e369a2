"""Real servers in containers, from the programs that this machine has: Redis, PostgreSQL, nginx.

::

    @pytest.fixture
    def database():
        with PostgreSQL() as server:
            yield server.url                    # postgresql://postgres:...@127.0.0.1:PORT/postgres

Each has a container and a network of its own, so its ports inside are the usual ones and never collide; one
port of 127.0.0.1 leads to it. ``start()`` returns when it takes connections. Nothing of it outlives
``stop()``, nor this process.

The servers run as the image's user for them. Where the container has one user id alone, that is done by a
further user namespace with unshare(1), since PostgreSQL refuses to be root.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from r2d2 import snapshot
from r2d2.container import Container
from r2d2.errors import ContainerClosed, ImageNotFound
from r2d2.image import Image, image_of

from .waiting import wait_for_log, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from r2d2.process import Process
    from r2d2.spec import StrPath

__all__ = ["Nginx", "PostgreSQL", "Redis", "Service"]

#: Seconds that a server may take to start.
TIMEOUT = 60.0


class Service:
    """What the servers have in common.

    Args:
        image: that holds the server's program; the host's by default.
        network: ``"slirp"``: a port of 127.0.0.1 leads in; ``"none"``, or ``"host"``.
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
        network: str = "slirp",
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

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

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


class Redis(Service):
    """redis-server, empty, without persistence, with a password of its own.

    Args:
        options: more of its options: ``{"maxmemory": "10mb"}``.
        image, network, timeout, keywords: as :class:`Service`'s.
    """

    guest_port = 6379
    program, package, account = "redis-server", "redis-server", "redis"
    ready = "Ready to accept connections"

    def __init__(
        self, image: Image | StrPath = "host", *, options: dict[str, str] | None = None, **keywords: Any
    ) -> None:
        super().__init__(image, **keywords)
        self.password = secrets.token_urlsafe(12)
        self._options = options or {}

    def _command(self, container: Container) -> tuple[list[str], str]:
        options = {
            "port": str(self.guest_port), "bind": "* -::*", "requirepass": self.password or "", "save": "",
            "appendonly": "no", "daemonize": "no", "dir": "/tmp", **self._options,  # noqa: S108 - its own
        }  # fmt: skip
        args = [find(container, self.program, self.package)]
        for name, value in options.items():
            args += [f"--{name}", *(value.split() if name == "bind" else [value])]
        return args, self.account

    @property
    def url(self) -> str:
        """For clients: ``redis://:PASSWORD@HOST:PORT/0``."""
        return f"redis://:{quote(self.password or '')}@{self.host}:{self.port}/0"


class PostgreSQL(Service):
    """A PostgreSQL server with a fresh cluster: superuser ``postgres``, a password of its own.

    Each one starts from a snapshot in which initdb has run, made once and kept in the cache: see
    :meth:`prepare`. It does not sync to disk, since nothing of it outlives its container.

    Args:
        image: one that :meth:`prepare` returned; None: that of the host's PostgreSQL.
        options: settings of postgresql.conf: ``{"max_connections": "20"}``.
        network, timeout, keywords: as :class:`Service`'s.
    """

    guest_port = 5432
    program, package, account = "postgres", "postgresql", "postgres"
    ready = "database system is ready to accept connections"
    user = "postgres"
    database = "postgres"
    _HOME = "/var/lib/r2d2-postgresql"

    def __init__(
        self, image: Image | None = None, *, options: dict[str, str] | None = None, **keywords: Any
    ) -> None:
        super().__init__(self.prepare() if image is None else image, **keywords)
        self._options = options or {}

    @classmethod
    def prepare(
        cls,
        base: Image | StrPath = "host",
        provision: Callable[[PostgreSQL], Any] | None = None,
        *,
        inputs: tuple[object, ...] = (),
    ) -> Image:
        """An image with a cluster in it: initdb, then ``provision``, once for all processes and runs.

        Args:
            base: the image with PostgreSQL.
            provision: called with the running server, to load a schema; again when its source changes.
            inputs: what else decides the content: paths stand for what is in the file (``snapshot.cached``).

        Raises:
            ImageNotFound: the image lacks PostgreSQL.
            CommandError: initdb failed; ``stderr`` says why.
        """
        from .build import source

        image = image_of(base)
        directory = _bin("/") if image.kind == "host" else ""
        version = os.path.join(directory, "postgres") if directory else ""
        stamp = os.stat(version).st_mtime_ns if version else 0
        empty = snapshot.cached(
            ["postgresql 1", image.__reduce__()[1], version, stamp, os.geteuid()], lambda: cls._initdb(image)
        )
        if provision is None:
            return empty
        work = provision

        def build() -> Image:
            with cls(empty, network="none") as server:
                work(server)
                server.process.send_signal(signal.SIGINT)  # "fast shutdown": postgres(1)
                server.process.wait(TIMEOUT)
                return server.container.snapshot(name="postgresql")

        return snapshot.cached(["postgresql", empty.__reduce__()[1], source(work), *inputs], build)

    @classmethod
    def _initdb(cls, image: Image) -> Image:
        with Container(image) as container:
            cls.make_cluster(container)
            return container.snapshot(name="postgresql")

    @classmethod
    def make_cluster(cls, container: Container) -> None:
        """Runs initdb in a container, where this class looks for it.

        Raises:
            CommandError: it failed.
        """
        prefix, keywords = run_as(container, cls.account)
        container.path(cls._HOME).mkdir(0o700)
        password = container.path(cls._HOME, "password")
        password.write_text(secrets.token_urlsafe(12))
        password.chmod(0o600)
        if keywords:
            chown = ["chown", "-R", str(keywords["user"]), cls._HOME]
            container.run(chown, check=True, capture_output=True)
        container.run(
            [
                *prefix, os.path.join(_bin_in(container), "initdb"), "-D", f"{cls._HOME}/data",
                "-U", cls.user, "-A", "scram-sha-256", f"--pwfile={cls._HOME}/password", "--no-sync",
                "-E", "UTF8",
                "--locale=C.UTF-8",
            ],
            check=True, capture_output=True, text=True, **keywords,
        )  # fmt: skip
        with container.path(cls._HOME, "data", "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 scram-sha-256\nhost replication all 0.0.0.0/0 scram-sha-256\n")

    def _command(self, container: Container) -> tuple[list[str], str]:
        self.password = container.path(self._HOME, "password").read_text()
        options = {
            "listen_addresses": "*", "port": str(self.guest_port), "fsync": "off", "full_page_writes": "off",
            "synchronous_commit": "off", "unix_socket_directories": "/tmp",  # noqa: S108 - its own
            "shared_buffers": "32MB", "logging_collector": "off", **self._options,
        }  # fmt: skip
        args = [os.path.join(_bin_in(container), "postgres"), "-D", f"{self._HOME}/data"]
        for name, value in options.items():
            args += ["-c", f"{name}={value}"]
        return args, self.account

    @property
    def url(self) -> str:
        """For clients: ``postgresql://postgres:PASSWORD@HOST:PORT/postgres``."""
        return (
            f"postgresql://{self.user}:{quote(self.password or '')}@{self.host}:{self.port}/{self.database}"
        )

    def execute(self, statement: str) -> str:
        """Runs SQL with the image's psql, inside: what it prints, unaligned, without headers.

        Raises:
            CommandError: the server refused it; ``stderr`` says why.
        """
        args = [
            os.path.join(_bin_in(self.container), "psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
            "-h", "127.0.0.1", "-p", str(self.guest_port), "-U", self.user, self.database,
        ]  # fmt: skip
        done = self.container.run(
            args,
            input=statement,
            env={**self.container._environ(), "PGPASSWORD": self.password or ""},
            capture_output=True,
            text=True,
            check=True,
        )
        output: str = done.stdout
        return output


class Nginx(Service):
    """nginx on port 8080 of its container.

    Args:
        root: a directory of the host: it serves a copy of its files, readable for all; None: an empty one.
        config: what stands in ``http { ... }`` in place of the server that serves ``root``.
        image, network, timeout, keywords: as :class:`Service`'s.
    """

    guest_port = 8080
    program, package, account = "nginx", "nginx-light", "www-data"

    def __init__(
        self,
        image: Image | StrPath = "host",
        *,
        root: StrPath | None = None,
        config: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(image, **keywords)
        self._root = root
        self._config = config

    def _command(self, container: Container) -> tuple[list[str], str]:
        program = find(container, self.program, self.package)
        container.path("/srv/r2d2-www").mkdir(parents=True, exist_ok=True)
        if self._root is not None:
            container.copy_in(os.path.join(os.path.abspath(self._root), "."), "/srv/r2d2-www")
            container.run(["chmod", "-R", "a+rX", "/srv/r2d2-www"], check=True, capture_output=True)
        server = self._config or f"server {{ listen {self.guest_port}; root /srv/r2d2-www; }}"
        types = "include /etc/nginx/mime.types;" if container.path("/etc/nginx/mime.types").exists() else ""
        paths = " ".join(
            f"{name}_temp_path /tmp/nginx-{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        container.path("/tmp/nginx.conf").write_text(  # noqa: S108 - its own
            f"daemon off; pid /tmp/nginx.pid; error_log stderr info; worker_processes 1;\n"
            f"events {{ worker_connections 256; }}\n"
            f"http {{ {types} {paths} access_log /tmp/access.log;\n{server}\n}}\n"
        )
        return [program, "-e", "stderr", "-c", "/tmp/nginx.conf"], self.account  # noqa: S108

    @property
    def url(self) -> str:
        """For clients: ``http://HOST:PORT``."""
        return f"http://{self.host}:{self.port}"

    def access_log(self) -> str:
        """The requests so far, one on a line."""
        return self.container.path("/tmp/access.log").read_text(errors="replace")  # noqa: S108 - its own


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


def _bin_in(container: Container) -> str:
    for directory in _versions([str(each) for each in container.path("/usr/lib/postgresql").glob("*/bin")]):
        if container.path(directory, "initdb").exists():
            return directory
    return os.path.dirname(find(container, "initdb", "postgresql"))


def _bin(root: str) -> str:
    import glob

    found = _versions(glob.glob(os.path.join(root, "usr/lib/postgresql/*/bin")))
    return next((each for each in found if os.path.exists(os.path.join(each, "initdb"))), "")


def _versions(directories: list[str]) -> list[str]:
    """The newest first."""

    def version(path: str) -> float:
        try:
            return float(path.split("/")[-2])
        except ValueError:
            return 0.0

    return sorted(directories, key=version, reverse=True)


def run_as(container: Container, account: str) -> tuple[list[str], dict[str, Any]]:
    """How to run a program as a user who is not root: words before it, and keywords of ``popen``.

    Returns:
        The user's ids where the container has them; else unshare(1) with a user namespace where the
        container's root has the user's name.
    """
    ids = ("65534", "65534")
    passwd = container.path("/etc/passwd")
    for line in passwd.read_text().splitlines() if passwd.exists() else ():
        fields = line.split(":")
        if fields[0] == account and len(fields) > 3:
            ids = (fields[2], fields[3])
    spec = container._resolve()
    if spec.has_uid(int(ids[0])) and spec.has_gid(int(ids[1])):
        return [], {"user": ":".join(ids)}
    return ["unshare", "--user", f"--map-user={ids[0]}", f"--map-group={ids[1]}"], {}
