"""A container as testcontainers' wait strategies see one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2.errors import SpecError

from .seen import content

if TYPE_CHECKING:
    from r2d2.container import Container


class ExecResult(NamedTuple):
    """What ``Target.exec`` returns."""

    exit_code: int
    output: bytes


class Target:
    """A container as testcontainers' wait strategies see one (``WaitStrategyTarget``).

    Strategies connect from the host, so they need published ports: ``ports={8080: 80}``. Those for a status
    or a health check ask for Docker's own objects, and cannot be had: ``running`` tells the one, and
    :func:`wait_for_command` does the other.

    Args:
        container: the container, or a service of ``r2d2.testing.services``.
        log: what ``get_logs`` returns: as :func:`wait_for_log`.
    """

    def __init__(self, container: Any, log: Any = None) -> None:
        inner = getattr(container, "container", container)
        self._container: Container = inner
        self._log = container if log is None and hasattr(container, "log_text") else log

    def get_container_host_ip(self) -> str:
        """The address of published ports."""
        ports = self._container.ports
        return ports[0].host if ports and ports[0].host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104

    def get_exposed_port(self, port: int) -> int:
        """The host's port that leads to a port inside.

        Raises:
            SpecError: it is not published.
        """
        for each in self._container.ports:
            if each.guest_port == port and each.protocol == "tcp":
                return each.host_port
        if self._container.spec.network == "host":
            return port
        raise SpecError(f"port {port} of {self._container.name} is not published").with_hint(
            f"Container(network='slirp', ports={{0: {port}}}), or wait_for_port, which needs none"
        )

    def get_wrapped_container(self) -> Target:
        """Itself: there is no other object behind it."""
        return self

    def get_logs(self) -> tuple[bytes, bytes]:
        """Standard output and error, as one."""
        return (b"" if self._log is None else content(self._log).encode()), b""

    def reload(self) -> None:
        """Nothing to do: it is asked anew each time."""

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        return "running" if self._container.running else "exited"

    def exec(self, command: str | list[str]) -> ExecResult:
        """Exit status and output of a program in the container."""
        import shlex

        args = shlex.split(command) if isinstance(command, str) else command
        done = self._container.run(args, capture_output=True)
        return ExecResult(done.returncode, done.stdout + done.stderr)
