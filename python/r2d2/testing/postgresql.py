"""PostgreSQL in a container: a cluster made once, a server of its own for each test."""

from __future__ import annotations

import os
import secrets
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from r2d2 import snapshot
from r2d2.container import Container
from r2d2.image import Image, image_of

from .service import TIMEOUT, Service, find, run_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from r2d2.spec import StrPath


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
    ready = "database system is ready to accept (read-only )?connections"  # read-only: a standby
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
        directory = _bin() if image.kind == "host" else ""
        version = os.path.join(directory, "postgres") if directory else ""
        stamp = os.stat(version).st_mtime_ns if version else 0
        empty = snapshot.cached(
            ["postgresql 2", image.__reduce__()[1], version, stamp, os.geteuid()], lambda: cls._initdb(image)
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
            for database in ("all", "replication"):
                for addresses in ("0.0.0.0/0", "::/0"):
                    file.write(f"host {database} all {addresses} scram-sha-256\n")

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


def _bin_in(container: Container) -> str:
    for directory in _versions([str(each) for each in container.path("/usr/lib/postgresql").glob("*/bin")]):
        if container.path(directory, "initdb").exists():
            return directory
    return os.path.dirname(find(container, "initdb", "postgresql"))


def _bin() -> str:
    import glob

    found = _versions(glob.glob("/usr/lib/postgresql/*/bin"))
    return next((each for each in found if os.path.exists(os.path.join(each, "initdb"))), "")


def _versions(directories: list[str]) -> list[str]:
    """The newest first."""

    def version(path: str) -> float:
        try:
            return float(path.split("/")[-2])
        except ValueError:
            return 0.0

    return sorted(directories, key=version, reverse=True)
