"""The copy of an upper layer into the directory of a snapshot (``r2d2.snapshot``).

The tree is the container's, so it may be hostile: it is walked by descriptors, no symbolic link is followed,
and marks of overlayfs count only where the kernel itself wrote them: in a plain directory anybody can make a
whiteout, or an attribute of its name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as modes
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ImageError, unsupported_error

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Directories nested deeper than this are refused: each level holds two descriptors open.
MAX_DEPTH = 256
_SLICE = 1 << 20
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
_WHITEOUTS = ("user.overlay.whiteout", "trusted.overlay.whiteout")
_KEPT = ("user.", "trusted.", "system.posix_acl_", "security.capability")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Frozen(NamedTuple):
    """What was copied.

    Attributes:
        digest: of everything but the directories' times, in hexadecimal.
        files: regular files.
        skipped: devices that could not be made, as paths.
    """

    digest: str
    files: int
    skipped: list[str]


def copy(jobs: list[dict[str, Any]], target: int, *, owners: bool) -> Frozen:
    """Copies the trees below the directory ``target``; runs in the caller, or in a user namespace."""
    work = _Copy(owners=owners)
    for job in jobs:
        if job["kind"] == "plain":
            work.plain(job["fd"], target, job["made"])
        else:
            work.upper(job, target)
    digest = hashlib.sha256(b"".join(sorted(work.records))).hexdigest()
    return Frozen(digest, work.files, work.skipped)


class _Copy:
    """The copy of one container's changes."""

    def __init__(self, *, owners: bool) -> None:
        self.owners = owners
        self.records: list[bytes] = []
        self.files = 0
        self.skipped: list[str] = []
        self._links: dict[tuple[int, int], str] = {}
        self._root = -1

    # Trees

    def upper(self, job: dict[str, Any], target: int) -> None:
        """The upper layer of an overlay that is at ``at``."""
        self._root = target
        rules = _Rules(True, frozenset(job["drop"]), frozenset(job["empty"]))
        source = os.open(job["below"] or ".", _DIRECTORY, dir_fd=job["fd"])
        try:
            at = job["at"]
            info = os.fstat(source)
            if at:
                with self._way(target, at) as (parent, name):
                    changed = job["mode"] is not None and job["mode"] != modes.S_IMODE(info.st_mode)
                    self._directory(source, parent, name, at, rules, keep=changed)
            else:
                self._children(source, target, "", rules, 0)
                os.fchmod(target, modes.S_IMODE(info.st_mode))
        finally:
            os.close(source)

    def plain(self, root: int, target: int, made: dict[str, tuple[str, str]]) -> None:
        """What is new in directories that are no overlay, by what was made there."""
        self._root = target
        todo = [""]
        while todo:
            directory = todo.pop()
            source = os.open(directory or ".", _DIRECTORY, dir_fd=root)
            try:
                here = os.fstat(source).st_dev
                names = set(os.listdir(source))
                known = {os.path.basename(path) for path in made if os.path.dirname(path) == directory}
                for name in sorted(names | known):
                    path = os.path.join(directory, name)
                    if path in ("proc", "sys", "dev"):
                        continue
                    if name not in names:
                        with self._way(target, path) as (parent, last):
                            self._whiteout(parent, last, path)
                        continue
                    info = os.stat(name, dir_fd=source, follow_symlinks=False)
                    kind, text = made.get(path, ("", ""))
                    if info.st_dev != here or kind == "mount":
                        continue
                    if kind == "directory" and modes.S_ISDIR(info.st_mode):
                        todo.append(path)
                    elif not self._unchanged(source, name, info, kind, bytes.fromhex(text)):
                        with self._way(target, path, root) as (parent, last):
                            self._entry(source, name, parent, last, path, info, _Rules(False), 0)
            finally:
                os.close(source)

    @staticmethod
    def _unchanged(source: int, name: str, info: os.stat_result, kind: str, text: bytes) -> bool:
        if kind == "symlink" and modes.S_ISLNK(info.st_mode):
            return os.fsencode(os.readlink(name, dir_fd=source)) == text
        if kind == "file" and modes.S_ISREG(info.st_mode) and info.st_size == len(text):
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=source), "rb") as file:
                return file.read() == text
        return False

    @contextmanager
    def _way(self, target: int, path: str, root: int | None = None) -> Iterator[tuple[int, str]]:
        """The parent of ``path`` in the target, made with the mode that it has in ``root``; and the name."""
        current = os.dup(target)
        done = ""
        try:
            *above, name = path.split("/")
            for part in above:
                done = os.path.join(done, part)
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                    if root is not None:
                        info = os.stat(done, dir_fd=root, follow_symlinks=False)
                        os.chmod(part, modes.S_IMODE(info.st_mode), dir_fd=current)
                below = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            yield current, name
        finally:
            os.close(current)

    def _children(self, source: int, target: int, path: str, rules: _Rules, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise ImageError(
                f"snapshot: directories are nested deeper than {MAX_DEPTH} levels: /{path[:80]}..."
            )
        device = os.fstat(source).st_dev
        made = 0
        for name in sorted(os.listdir(source)):
            below = os.path.join(path, name) if path else name
            try:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile
            if info.st_dev == device and below not in rules.drop:
                made += self._entry(source, name, target, name, below, info, rules, depth)
        return made

    # Entries

    def _entry(
        self,
        source: int,
        name: str,
        target: int,
        new: str,
        path: str,
        info: os.stat_result,
        rules: _Rules,
        depth: int,
    ) -> int:
        """Copies one entry: 1, or 0 if there was nothing to copy."""
        kind = modes.S_IFMT(info.st_mode)
        if kind == modes.S_IFDIR:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=source)
            except FileNotFoundError:
                return 0
            try:
                return self._directory(below, target, new, path, rules, keep=True, depth=depth + 1)
            finally:
                os.close(below)
        if kind not in {modes.S_IFREG, modes.S_IFLNK}:
            return self._special(target, new, path, info, rules)
        if info.st_nlink > 1 and self._linked(target, new, path, info):
            return 1
        if kind == modes.S_IFLNK:
            text = os.readlink(name, dir_fd=source)
            os.symlink(text, new, dir_fd=target)
            if self.owners:
                os.chown(new, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)
            self._record(path, info, os.fsencode(text))
            return 1
        return self._file(source, name, target, new, path, rules)

    def _directory(
        self, source: int, target: int, name: str, path: str, rules: _Rules, *, keep: bool, depth: int = 1
    ) -> int:
        info = os.fstat(source)
        made_here = True
        try:
            os.mkdir(name, 0o700, dir_fd=target)
        except FileExistsError:
            made_here = False
        below = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            count = self._children(source, below, path, rules, depth)
            attributes = self._attributes(source, marked=rules.marks)
            if made_here and not count and not attributes and (not keep or path in rules.empty):
                os.rmdir(name, dir_fd=target)
                return 0
            self._finish(below, info, attributes)
            for mark in _OPAQUE[: 2 if self.owners else 1] if "opaque" in attributes else ():
                try:
                    os.setxattr(below, mark, b"y")
                except OSError as error:
                    if mark == _OPAQUE[0]:
                        raise unsupported_error(
                            error.errno or 0, f"snapshot: the cache takes no extended attributes ({mark})"
                        ).with_hint("set R2D2_CACHE to a directory on ext4, xfs or btrfs") from None
            self._record(path, info, b"", attributes)
        finally:
            os.close(below)
        return 1

    def _special(self, target: int, name: str, path: str, info: os.stat_result, rules: _Rules) -> int:
        if modes.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            return self._whiteout(target, name, path) if rules.marks else 0
        if modes.S_ISSOCK(info.st_mode):
            return 0
        try:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        except PermissionError:
            self.skipped.append("/" + path)
            return 0
        os.chmod(name, modes.S_IMODE(info.st_mode), dir_fd=target)
        if self.owners:
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        self._record(path, info, str(info.st_rdev).encode())
        return 1

    def _whiteout(self, target: int, name: str, path: str) -> int:
        os.mknod(name, modes.S_IFCHR, 0, dir_fd=target)  # anybody may make this one device (mknod(2))
        self.records.append(os.fsencode(path) + b"\0whiteout\n")
        return 1

    def _linked(self, target: int, name: str, path: str, info: os.stat_result) -> bool:
        """Another name of a file that was copied."""
        key = (info.st_dev, info.st_ino)
        first = self._links.setdefault(key, path)
        if first == path:
            return False
        with self._way(self._root, first) as (parent, old):
            os.link(old, name, src_dir_fd=parent, dst_dir_fd=target, follow_symlinks=False)
        self.records.append(os.fsencode(path) + b"\0link\0" + os.fsencode(first) + b"\n")
        return True

    def _file(self, source: int, name: str, target: int, new: str, path: str, rules: _Rules) -> int:
        reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            info = os.fstat(reading)
            if rules.marks and not info.st_size and _marked(reading, _WHITEOUTS):
                return self._whiteout(target, new, path)
            attributes = self._attributes(reading, marked=False)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            writing = os.open(new, flags, 0o600, dir_fd=target)
            try:
                content = _pour(reading, writing, info.st_size)
                self._finish(writing, info, attributes)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        self.files += 1
        self._record(path, info, content, attributes)
        return 1

    # Metadata

    def _attributes(self, fd: int, *, marked: bool) -> dict[str, bytes]:
        """What is kept of the extended attributes; and ``opaque``, if the overlay says so."""
        kept = {}
        for name in _names(fd):
            if name.startswith(_KEPT) and not name.startswith(("user.overlay.", "trusted.overlay.")):
                with suppress(OSError):
                    kept[name] = os.getxattr(fd, name)
        if marked and _marked(fd, _OPAQUE):
            kept["opaque"] = b"y"
        return kept

    def _finish(self, fd: int, info: os.stat_result, attributes: dict[str, bytes]) -> None:
        if self.owners:
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, modes.S_IMODE(info.st_mode))
        for name, value in attributes.items():
            if name != "opaque":
                with suppress(OSError):  # this file system, or this user, has none of the kind
                    os.setxattr(fd, name, value)
        os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _record(
        self, path: str, info: os.stat_result, content: bytes, attributes: dict[str, bytes] | None = None
    ) -> None:
        owner = (info.st_uid, info.st_gid) if self.owners else (0, 0)
        time = 0 if modes.S_ISDIR(info.st_mode) else info.st_mtime_ns
        size = info.st_size if modes.S_ISREG(info.st_mode) else 0
        fields = (info.st_mode, *owner, size, time, sorted((attributes or {}).items()))
        self.records.append(
            os.fsencode(path) + b"\0" + repr(fields).encode() + content.hex().encode() + b"\n"
        )


class _Rules(NamedTuple):
    """How a tree is read.

    Attributes:
        marks: it is an upper layer: the kernel's marks mean something.
        drop: paths that are no part of the image.
        empty: directories that are none, if nothing is in them.
    """

    marks: bool
    drop: frozenset[str] = frozenset()
    empty: frozenset[str] = frozenset()


def _names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError:
        return []


def _marked(fd: int, marks: tuple[str, ...]) -> bool:
    for mark in marks:
        with suppress(OSError):
            if os.getxattr(fd, mark)[:1] in (b"y", b""):
                return True
    return False


def _pour(reading: int, writing: int, size: int) -> bytes:
    """The bytes, holes as holes: a digest of what was read, and where."""
    digest = hashlib.sha256()
    at = 0
    while at < size:
        try:
            start = os.lseek(reading, at, os.SEEK_DATA)
            end = min(os.lseek(reading, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            start, end = at, size
        at = start
        digest.update(b"%d\0" % start)
        while at < end:
            piece = os.pread(reading, min(_SLICE, end - at), at)
            if not piece:
                end = size = at  # it became shorter
                break
            digest.update(piece)
            view = memoryview(piece)
            while view:
                written = os.pwrite(writing, view, at)
                view = view[written:]
                at += written
    os.ftruncate(writing, size)
    return digest.digest()
