"""What the notebooks of the course begin with: a place to work in, and cells that say what they need.

`begin` gives the kernel an empty working directory, which goes with it. From then on a cell whose first line
is a comment such as ``# needs: network`` is tried out first: where this machine cannot have that, the cell
says so in one line instead of failing. ``r2d2 course`` is in `r2d2.shelf`.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import R2d2Error, unsupported_error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEEDS", "begin", "missing"]

_COMMENT = re.compile(r"# needs: ([a-z]+(?:, [a-z]+)*)\s*")
_HOME: list[str] = []  # where the kernel started, and the directory that begin() made


def _containers() -> None:
    from .container import Container

    with Container("host"):
        pass


def _proc() -> None:
    from .namespace import unshare

    unshare(["true"], pid=True, fork=True, mount_proc=True, check=True)


def _cgroup() -> None:
    from .container import Container

    with Container("scratch", limits={"memory": "64m", "pids": 50}):
        pass


def _network() -> None:
    from .container import Container

    with Container("scratch", network="slirp"):
        pass


def _program(name: str, package: str) -> Callable[[], None]:
    def look() -> None:
        if shutil.which(name) is None:
            error = unsupported_error(errno.ENOENT, f"there is no {name} on this machine")
            raise error.with_hint(f"install {package}")

    return look


#: What a cell may need: what it is, and a probe that raises where it cannot be had.
NEEDS: dict[str, tuple[str, Callable[[], None]]] = {
    "containers": ("a container", _containers),
    "proc": ("a /proc of a container's own", _proc),
    "cgroup": ("limits by a cgroup", _cgroup),
    "network": ("a user-mode network", _network),
    "busybox": ("busybox", _program("busybox", "busybox-static, or busybox")),
    "ip": ("ip(8)", _program("ip", "iproute2")),
    "ps": ("ps(1)", _program("ps", "procps")),
}


@cache
def missing(what: str) -> str | None:
    """Why this machine cannot do what a cell needs, with the remedy; None if it can.

    Tried out once in a process: a limit is set, a network attached, in a container that ends at once.

    Args:
        what: a key of `NEEDS`.
    """
    name, probe = NEEDS[what]
    try:
        probe()
    except (R2d2Error, OSError) as error:
        hint = getattr(error, "hint", None)
        return f"{name} cannot be had here: {error}" + (f" (hint: {hint})" if hint else "")
    return None


def _left_out(lines: list[str]) -> list[str]:
    """An input transformer (IPython): a cell that cannot run here becomes the reason."""
    match = _COMMENT.fullmatch(lines[0]) if lines else None
    for what in match[1].split(", ") if match else ():
        if reason := missing(what):
            return [f"print({'left out: ' + reason!r})\n"]
    return lines


def _shell() -> Any:
    """The running IPython, if there is one."""
    import sys

    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


def _tidy(directory: str, owner: int) -> None:
    """Removes the working directory; a forked child is not its owner."""
    if os.getpid() != owner or not os.path.isdir(directory):
        return
    os.chdir("/")
    # overlayfs leaves a directory of mode 0 in its work directory, which its owner must open up first.
    for top, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(top, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(directory)


def begin() -> Path:
    """Makes ready for a lesson: an empty working directory, which is removed when the kernel ends.

    A second call, as when a notebook is run once more from the top, makes a new one and removes the old.

    Returns:
        The directory, which is the working directory now.

    Raises:
        UnsupportedError: no container can be had on this machine; the hint says what would help.
    """
    import tempfile

    if (reason := missing("containers")) is not None:
        raise unsupported_error(errno.EOPNOTSUPP, reason).with_hint(
            "r2d2 doctor tells what this machine allows"
        )
    if _HOME:
        atexit.unregister(_tidy)
        _tidy(_HOME[1], os.getpid())
        os.chdir(_HOME[0])
    home = os.getcwd()
    directory = os.path.realpath(tempfile.mkdtemp(prefix="r2d2-course-"))
    _HOME[:] = [home, directory]
    atexit.register(_tidy, directory, os.getpid())
    os.chdir(directory)
    shell = _shell()
    if shell is not None and _left_out not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(_left_out)
    print("ready")  # noqa: T201 - the reader of the notebook sees it
    return Path(directory)
