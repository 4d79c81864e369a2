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
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .postgresql import PostgreSQL
from .service import Service, find

if TYPE_CHECKING:
    from r2d2.container import Container
    from r2d2.image import Image
    from r2d2.spec import StrPath

__all__ = ["Nginx", "PostgreSQL", "Redis", "Service"]


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
        """For clients: ``redis://default:PASSWORD@HOST:PORT/0`` (redis-cli wants a user, too)."""
        return f"redis://default:{quote(self.password or '')}@{self.host}:{self.port}/0"


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
