"""What a container changed: ``Container.diff``.

A root directory is one overlay (images of layers) or many, with plain directories between them (the host
image; see ``src/overlay/layout.rs``). Overlays tell their changes by their upper layers; the rest lies on a
tmpfs and is compared with what r2d2 put there, which the steps of the start say.
"""

from __future__ import annotations

import os
import stat as modes
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from .errors import SpecError
from .files import there
from .overlay import Change, Changes, FileInfo, change_of, diff as overlay_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from . import _core
    from .container import Container
    from .overlay import FileType, Kind

_TYPES: dict[int, FileType] = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "dir",
    modes.S_IFLNK: "symlink",
    modes.S_IFCHR: "char",
    modes.S_IFBLK: "block",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
}

_Part = tuple[str, str, str, list[str], list[str], bytes]


def diff(container: Container) -> Changes:
    """``Container.diff``."""
    if container.image.kind == "directory":
        raise SpecError(
            f"diff of {container.image.name}: the directory itself is written to, there is no upper layer"
        ).with_hint("use Image.from_dir(..., writable=False), whose writes go to a layer of their own")
    parts = container._running().parts()
    ours = {path for kind, path, *_ in parts if kind == "mount"}
    changes = []
    with ExitStack() as stack:
        root_fd, upper = container._running().root()
        stack.callback(os.close, root_fd)
        if upper is not None:
            stack.callback(os.close, upper)
            for kind, path, below, lowers, precreated, _ in parts:
                if kind == "overlay":
                    layers = [_open(stack, lower) for lower in lowers]
                    top = _open(stack, below or ".", upper)
                    early = {os.path.join(path, directory) for directory in precreated}
                    found = _of_overlay(container, top, layers, path, precreated)
                    changes += [change for change in found if not _made_early(change, early)]
    if not any(kind == "overlay" and not path for kind, path, *_ in parts):
        changes += _plain(container._files(), parts)
    changes = _with_ours(container._files(), parts, changes)
    kept = [change for change in changes if not _mount_point(change, ours)]
    return Changes(sorted(kept, key=lambda change: os.fsencode(change.path)))


def _of_overlay(
    container: Container, top: int, layers: list[int], prefix: str, precreated: list[str]
) -> list[Change]:
    """One overlay's changes, owners as ids inside."""
    marks: Literal["user", "trusted"] = "user" if "user" in container.spec.namespaces else "trusted"
    try:
        found = overlay_diff(top, layers, prefix=prefix, marks=marks, precreated=precreated)
    except PermissionError:
        if container.spec.userns != "subuid":
            raise
        arguments = [top, layers, prefix, marks, precreated]
        told = as_root_inside(container, _SCRIPT, arguments, pass_fds=[top, *layers])
        return [change_of(tuple(fields)) for fields in told]  # owners are ids inside
    owner = _owner(container)
    return [_inside(change, owner) for change in found]


_SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from r2d2 import _core
print(json.dumps(_core.overlay_diff(*json.load(sys.stdin))))
"""


def as_root_inside(container: Container, script: str, arguments: list[Any], pass_fds: Iterable[int]) -> Any:
    """What a script prints, by a fresh interpreter in the container's user namespace: its root's rights hold.

    It joins no other namespace: the container can neither see it nor reach it.

    Args:
        script: its first argument is where r2d2 is to be imported from; it reads and prints JSON.
    """
    import json
    import sys

    from . import namespace

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = namespace.enter(
        container.pid,
        [sys.executable, "-c", script, package],
        kinds=["user"],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=True,
        pass_fds=pass_fds,
    )
    return json.loads(done.stdout)


def _open(stack: ExitStack, path: str, dir_fd: int | None = None) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    stack.callback(os.close, fd)
    return fd


def _owner(container: Container) -> Callable[[FileInfo | None], FileInfo | None]:
    """From ids outside to ids inside."""
    users, groups = container._resolve().idmap()

    def inside(ranges: list[tuple[int, int, int]], value: int) -> int:
        if not ranges:
            return value
        mapped = (first + value - outer for first, outer, count in ranges if outer <= value < outer + count)
        return next(mapped, 65534)

    def translate(info: FileInfo | None) -> FileInfo | None:
        if info is None:
            return None
        return FileInfo(
            info.type, info.mode, inside(users, info.uid), inside(groups, info.gid), info.size, info.mtime_ns
        )

    return translate


def _inside(change: Change, owner: Callable[[FileInfo | None], FileInfo | None]) -> Change:
    return Change(
        change.path,
        change.kind,
        owner(change.before),
        owner(change.after),
        change.opaque,
        change.renamed_from,
    )


def _made_early(change: Change, precreated: set[str]) -> bool:
    """Is it a directory that r2d2 made in the upper layer? mkdir(2) gives none setuid and setgid bits."""
    before, after = change.before, change.after
    return (
        change.kind == "metadata"
        and change.path in precreated
        and before is not None
        and after is not None
        and before.mode & 0o1777 == after.mode & 0o1777
    )


def _mount_point(change: Change, ours: set[str]) -> bool:
    """Did r2d2 make it, for a mount?"""
    return (
        change.kind == "added"
        and change.path in ours
        and change.after is not None
        and (change.after.type == "dir" or (change.after.type == "file" and change.after.size == 0))
    )


def _info(stat: tuple[Any, ...]) -> FileInfo:
    mode, _, _, _, uid, gid, size, _, mtime, *_ = stat
    return FileInfo(_TYPES[modes.S_IFMT(mode)], modes.S_IMODE(mode), uid, gid, size, mtime)


def _with_ours(root: _core.Root, parts: Iterable[_Part], changes: list[Change]) -> list[Change]:
    """The changes against r2d2's own lower layer (/etc/hosts and the like), not the image's below it."""
    by_path = {change.path: change for change in changes}
    for kind, path, _, _, _, text in parts:
        if kind == "our directory":
            change = by_path.get(path)
            if change is None and not there(root, os.fsencode("/" + path)):
                by_path[path] = Change(path, "deleted")
            elif change is not None and change.after is not None and change.after.type == "dir":
                del by_path[path]
                if change.after.mode != 0o755:
                    by_path[path] = Change(path, "metadata", None, change.after)
        elif kind == "our file":
            by_path.pop(path, None)
            by_path.update({change.path: change for change in _our_file(root, path, text)})
    return list(by_path.values())


def _our_file(root: _core.Root, path: str, text: bytes) -> list[Change]:
    directory, name = os.path.split(os.fsencode("/" + path))
    try:
        entries = dict(root.entries(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []  # the directory's own change tells it
    if name not in entries:
        return [Change(path, "deleted")]
    stat = entries[name]
    if stat is None:
        return []  # a mount
    if not _same(root, path, stat, "file", text):
        return [Change(path, "modified", None, _info(stat))]
    return [] if modes.S_IMODE(stat[0]) == 0o644 else [Change(path, "metadata", None, _info(stat))]


def _plain(root: _core.Root, parts: Iterable[_Part]) -> list[Change]:
    """Changes outside overlays: in directories that r2d2 made on the tmpfs."""
    made = {path: (kind, text) for kind, path, _, _, _, text in parts if not kind.startswith("our ")}
    children: dict[str, set[str]] = {}
    for path in made:
        children.setdefault(os.path.dirname(path), set()).add(path)
    changes: list[Change] = []
    # The work list: a directory, and whether r2d2 made it (else everything in it is new).
    todo: list[tuple[str, bool]] = [("", True)]
    while todo:
        directory, known = todo.pop()
        try:
            entries = root.entries(os.fsencode("/" + directory))
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile
        found = {os.path.join(directory, os.fsdecode(name)): stat for name, stat in entries}
        for path, stat in found.items():
            if stat is None:
                continue  # a mount
            verdict = _verdict(root, path, stat, made.get(path) if known else None)
            if verdict is not None:
                changes.append(Change(path, verdict, None, _info(stat)))
            if modes.S_ISDIR(stat[0]):
                todo.append((path, verdict is None))
        if known:
            gone = children.get(directory, set()) - found.keys()
            changes += [Change(path, "deleted") for path in gone]
    return changes


def _verdict(
    root: _core.Root, path: str, stat: tuple[Any, ...], made: tuple[str, bytes] | None
) -> Kind | None:
    """What happened to a path, by what r2d2 made there, if it made anything."""
    if made is None:
        return "added"
    kind, text = made
    is_dir = modes.S_ISDIR(stat[0])
    same = kind == "mount" or (is_dir if kind == "directory" else _same(root, path, stat, kind, text))
    return None if same else "modified"


def _same(root: _core.Root, path: str, stat: tuple[Any, ...], kind: str, text: bytes) -> bool:
    where = os.fsencode("/" + path)
    try:
        if kind == "symlink" and modes.S_ISLNK(stat[0]):
            return root.readlink(where) == text
        if kind == "file" and modes.S_ISREG(stat[0]) and stat[6] == len(text):
            with open(root.open(where, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                return bytes(file.read(len(text) + 1)) == text
    except OSError:
        return False
    return False
