"""A container as testinfra sees it: the backend ``r2d2://NAME``, for one of this process or a detached one.

::

    def test_shell(host):                      # with pytest --hosts=r2d2://NAME
        assert host.file("/etc/passwd").contains("root")

    host = r2d2.testing.testinfra.host_of(container)

Needs the extra ``[testinfra]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2d2.container import Container
    from r2d2.detached import Detached

__all__ = ["backend_class", "host_of", "register"]

#: Containers of this process that testinfra was told of, by name.
_known: dict[str, Container | Detached] = {}
_class: type[Any] | None = None


def register() -> None:
    """Teaches testinfra the scheme ``r2d2://``; the plugin does it where testinfra's is loaded."""
    import_module("testinfra.backend").BACKENDS["r2d2"] = "r2d2.testing.testinfra.R2d2Backend"


def backend_class() -> type[Any]:
    """The backend. Made when it is first asked for: testinfra is not imported before."""
    global _class  # noqa: PLW0603 - made once
    if _class is not None:
        return _class
    base: Any = import_module("testinfra.backend.base").BaseBackend

    class R2d2Backend(base):  # type: ignore[misc] # testinfra has no types
        """Runs testinfra's commands in a container."""

        NAME = "r2d2"

        def __init__(self, name: str, *args: Any, **keywords: Any) -> None:
            self.name, self.user = self.parse_containerspec(name)
            super().__init__(self.name, *args, **keywords)

        def run(self, command: str, *args: str, **keywords: Any) -> Any:
            del keywords
            line = self.get_command(command, *args)
            given = {} if self.user is None else {"user": self.user}
            done = _find(self.name).run(["/bin/sh", "-c", line], capture_output=True, **given)
            return self.result(done.returncode, self.encode(line), done.stdout, done.stderr)

    _class = R2d2Backend
    return R2d2Backend


def _find(name: str) -> Any:
    if name in _known:
        return _known[name]
    from r2d2.detached import Detached

    return Detached.get(name)


def host_of(container: Container | Detached) -> Any:
    """The ``Host`` of testinfra for a container.

    Raises:
        ModuleNotFoundError: testinfra is not installed.
    """
    register()
    _known[container.name] = container
    host: Any = import_module("testinfra.host").Host
    return host(backend_class()(container.name))


def __getattr__(name: str) -> Any:
    """``R2d2Backend``, by the name under which testinfra imports it (PEP 562)."""
    if name == "R2d2Backend":
        return backend_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
