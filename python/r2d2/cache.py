"""Where r2d2 keeps what outlives a container: minimal images, and upper layers on disk while theirs lives."""

from __future__ import annotations

import os
import stat
from itertools import count

from .errors import SetupPermissionError

_numbers = count(1)


def cache_dir(*parts: str) -> str:
    """A directory of ours, made if it is not there: mode 0700, owned by us, no symbolic link.

    ``R2D2_CACHE``, else ``$XDG_CACHE_HOME/r2d2``, else ``~/.cache/r2d2``; where none of these can be written,
    ``/var/tmp/r2d2-UID``.

    Raises:
        SetupPermissionError: it exists and belongs to somebody else, or none can be made.
    """
    reasons = []
    for base in bases():
        try:
            os.makedirs(os.path.dirname(base), mode=0o755, exist_ok=True)
            return _own(base, parts)
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
    failed = SetupPermissionError(13, "no directory for the cache: " + "; ".join(reasons))
    failed.message = "no directory for the cache: " + "; ".join(reasons)
    raise failed.with_hint("set R2D2_CACHE to a directory that you may write")


def bases() -> list[str]:
    """The directories that are tried, in order."""
    chosen = os.environ.get("R2D2_CACHE")
    if chosen:
        return [os.path.abspath(chosen)]
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    home = os.path.expanduser("~")
    bases = []
    if os.path.isabs(xdg):
        bases.append(os.path.join(xdg, "r2d2"))
    elif os.path.isabs(home) and os.path.isdir(home):
        bases.append(os.path.join(home, ".cache", "r2d2"))
    return [*bases, f"/var/tmp/r2d2-{os.geteuid()}"]  # noqa: S108 - checked to be ours before use


def _own(base: str, parts: tuple[str, ...]) -> str:
    path = base
    for part in ("", *parts):
        path = os.path.join(path, part) if part else path
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            info = os.lstat(path)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise PermissionError(13, "exists, and is not a directory of ours alone", path) from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable", path)
    return path


def upper_dir() -> str:
    """The path of a new directory for an upper layer on disk; it is made by the container's first steps."""
    return os.path.join(cache_dir("upper"), f"{os.getpid()}-{next(_numbers)}")
