"""The /tmp of an isolated test: empty, but for what pytest, the project and this interpreter have there."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from .libc import mount

if TYPE_CHECKING:
    import pytest

_MS_BIND, _MS_REC, _MS_NOSUID, _MS_NODEV = 0x1000, 0x4000, 2, 4


def private_tmp(kept: list[str]) -> None:
    """An empty /tmp, into which what is needed of the old one is bound."""
    temporary = tempfile.gettempdir()
    mode = os.stat(temporary).st_mode & 0o7777
    here = os.getcwd()
    descriptors = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")  # noqa: S108
    if _below_tmp(temporary):
        os.makedirs(temporary)
        os.chmod(temporary, mode)
    for path, descriptor in descriptors:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a", encoding="ascii"):
                pass
        mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.chdir(here)  # the same directory, where it is now


def kept(item: pytest.Item) -> list[str]:
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
    return found


#: Variables that name directories which programs of the test may need.
_DIRECTORIES = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "R2D2_CACHE", "R2D2_RUNTIME")


def _below_tmp(path: str) -> bool:
    return path.startswith("/tmp/")  # noqa: S108 - a comparison
