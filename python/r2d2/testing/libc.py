"""Calls of the C library that ``os`` does not have, for isolated tests."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any


@functools.cache
def libc() -> Any:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def os_error(what: str) -> OSError:
    """The error of the C library's last call (errno(3))."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2).

    Raises:
        OSError: it was refused.
    """

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    arguments = (encoded(source), encoded(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data))
    if libc().mount(*arguments) != 0:
        raise os_error(f"mount {target}")
