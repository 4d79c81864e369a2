"""Tests of infrastructure: containers as pytest fixtures, and the patience that servers ask for.

The plugin (``r2d2.testing.plugin``) is there wherever r2d2 and pytest are installed. ``wait_for_port`` and
its relatives wait for what a container does; ``r2d2.testing.services`` starts servers that this machine has.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .services import Nginx, PostgreSQL, Redis
    from .waiting import (
        WaitTimeout,
        all_of,
        any_of,
        wait_for_command,
        wait_for_file,
        wait_for_http,
        wait_for_log,
        wait_for_port,
        wait_until,
    )

__all__ = [
    "Nginx",
    "PostgreSQL",
    "Redis",
    "WaitTimeout",
    "all_of",
    "any_of",
    "wait_for_command",
    "wait_for_file",
    "wait_for_http",
    "wait_for_log",
    "wait_for_port",
    "wait_until",
]


def __getattr__(name: str) -> object:
    """Imports a public name from its home (PEP 562): the plugin is loaded in every run of pytest."""
    if name not in __all__:
        raise AttributeError(f"module 'r2d2.testing' has no attribute {name!r}")
    from importlib import import_module

    home = "services" if name in {"Nginx", "PostgreSQL", "Redis"} else "waiting"
    value = getattr(import_module(f"r2d2.testing.{home}"), name)
    globals()[name] = value
    return value
