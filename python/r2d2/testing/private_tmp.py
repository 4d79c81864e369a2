"""The /tmp of an isolated test: empty, but for what pytest, the project and this interpreter have there."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def kept(item: pytest.Item) -> tuple[str, ...]:
    """What pytest, the project and this interpreter have below /tmp, outermost only."""
    config = item.config
    paths = [str(config.rootpath), str(config.invocation_params.dir), os.getcwd(), str(item.path.parent)]
    paths += [sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    paths += [os.environ[name] for name in _DIRECTORIES if os.environ.get(name)]
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith("pytest-of-"):
                paths.append(entry.path)
    factory: Any = getattr(config, "_tmp_path_factory", None)
    if getattr(factory, "_basetemp", None) is not None:
        paths.append(str(factory.getbasetemp()))
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths if _below_tmp(os.path.abspath(path))}):
        shared = path == os.path.abspath(tempfile.gettempdir())
        if os.path.exists(path) and not shared and not any(path.startswith(each + "/") for each in found):
            found.append(path)
    return tuple(found)


def directory() -> tuple[str, int] | None:
    """The directory of temporary files, and its mode, if it is one below /tmp: a private one has it, too."""
    path = os.path.abspath(tempfile.gettempdir())
    return (path, os.stat(path).st_mode & 0o7777) if _below_tmp(path) else None


#: Variables that name directories which programs of the test may need.
_DIRECTORIES = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "R2D2_CACHE", "R2D2_RUNTIME")


def _below_tmp(path: str) -> bool:
    return path.startswith("/tmp/")  # noqa: S108 - a comparison
