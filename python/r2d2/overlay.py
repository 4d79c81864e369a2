"""Layers, and what changed in them.

An overlay shows a stack of read-only lower layers through one upper layer that takes all writes,
like slides laid on each other and seen from above. So the upper layer *is* the list of changes, if
one can read its marks: whiteouts, opaque directories, copies without consequence. `diff` reads them
(https://docs.kernel.org/filesystems/overlayfs.html)::

    >>> for change in diff("upper", ["lower"]):
    ...     print(change)
    A /etc/new.conf
    D /etc/motd

`Overlay` mounts one, for everybody and without a trace on the host (see `r2d2.mounted`).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from r2d2 import _core

from .mounted import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Change", "Changes", "FileInfo", "Overlay", "diff"]

Layer: TypeAlias = str | bytes | os.PathLike[str] | int
FileType: TypeAlias = Literal["file", "dir", "symlink", "char", "block", "fifo", "socket"]
Kind: TypeAlias = Literal["added", "modified", "metadata", "deleted", "renamed"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Metadata of a file on one side of a change, as the calling process sees it.

    Attributes:
        type: ``file``, ``dir``, ``symlink``, ``char``, ``block``, ``fifo`` or ``socket``.
        mode: permission bits with setuid, setgid and sticky, as ``0o644``.
        uid: owner; the overflow id 65534 where it has no name in this user namespace.
        gid: group.
        size: bytes; of a directory whatever its file system says.
        mtime_ns: last modification, nanoseconds since 1970.
    """

    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """One path that is not as the lower layers have it.

    Attributes:
        path: relative to the root of the layers, decoded as `os.fsdecode` does.
        kind: ``added``; ``modified`` (content, type, or a directory that was replaced);
            ``metadata`` (only mode, owner, mtime or extended attributes); ``deleted`` (with
            everything below); ``renamed`` (a directory or file that kept its content).
        before: as the lower layers show it; None where added.
        after: as it is now; None where deleted.
        opaque: a directory through which nothing of the lower layers shows any more; what did not
            come back has its own ``deleted``.
        renamed_from: the old path.
    """

    path: str
    kind: Kind
    before: FileInfo | None = None
    after: FileInfo | None = None
    opaque: bool = False
    renamed_from: str | None = None

    def __str__(self) -> str:
        """One line as ``docker diff`` prints it: ``A``, ``C`` or ``D`` and the absolute path."""
        letter = {"added": "A", "deleted": "D", "renamed": "R"}.get(self.kind, "C")
        origin = "" if self.renamed_from is None else f"/{self.renamed_from} -> "
        return f"{letter} {origin}/{self.path}"


class Changes(list[Change]):
    """A list of changes, sorted by path. Jupyter shows it as a table."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.changes(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        del cycle
        printer.text(self._repr_mimebundle_()["text/plain"])


def diff(
    upper: Layer,
    lowers: Sequence[Layer],
    *,
    prefix: str | os.PathLike[str] = "",
    marks: Literal["either", "trusted", "user"] = "either",
    precreated: Iterable[str | os.PathLike[str]] = (),
) -> Changes:
    """What the upper layer changed, sorted by path.

    Files of the same size are compared by their bytes: a copy that changed nothing is no change.
    The layers are only read, need not be mounted, and may be in use. A directory's mtime follows
    from what is in it and does not count.

    Args:
        upper: directory, or an open descriptor of it (``O_PATH`` is enough).
        lowers: the same for each lower layer, the topmost first.
        prefix: put before each path: where the root of the layers is in the container.
        marks: which extended attributes are the overlay's: ``user`` if it was mounted with
            ``userxattr``, ``trusted`` if without, ``either`` if unknown.
        precreated: directories below the root that were made in the upper layer beforehand, whose
            owner is therefore no change.

    Raises:
        OSError: a layer cannot be read; `FileNotFoundError`, `PermissionError` and so on.
    """
    with ExitStack() as stack:

        def descriptor(layer: Layer) -> int:
            if isinstance(layer, int):
                return layer
            fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        found = _core.overlay_diff(
            descriptor(upper),
            [descriptor(layer) for layer in lowers],
            os.fspath(prefix),
            marks,
            [os.fspath(path) for path in precreated],
        )
    return Changes(change_of(fields) for fields in found)


def change_of(fields: tuple[Any, ...]) -> Change:
    """A change as the core tells it."""
    path, kind, before, after, opaque, origin = fields
    return Change(path, cast("Kind", kind), _info(before), _info(after), opaque, origin)


def _info(side: tuple[str, int, int, int, int, int] | None) -> FileInfo | None:
    if side is None:
        return None
    file_type, *rest = side
    return FileInfo(cast("FileType", file_type), *rest)
