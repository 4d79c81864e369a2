"""Files of a running container, from outside: ``Container.path``, ``copy_in`` and ``copy_out``.

Every path is resolved by the kernel inside the container's root directory (openat2(2),
``RESOLVE_IN_ROOT``), so neither an absolute symlink, nor ``..``, nor a race leads to the host. FIFOs and
devices are never opened. No program of the container takes part; where a file belongs to an id that the
calling user has no power over, a process of r2d2's own inside does it, with the rights of the container's
root.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from . import _core
from .errors import ContainerClosed, R2d2Error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .container import Container
    from .spec import StrPath

__all__ = ["ContainerPath"]


class ContainerPath:
    """A path in a container, with the methods of ``pathlib.Path``; ``Container.path`` makes it.

    Errors are those of ``pathlib``: ``FileNotFoundError``, ``PermissionError``, ``NotADirectoryError`` and
    so on, with the container's path as ``filename``. Owners in ``stat()`` are ids inside. Opening what is
    no regular file is an ``OSError`` (EINVAL).

    It is no ``os.PathLike``, on purpose: ``open(c.path("/etc/passwd"))`` would open the host's.
    """

    __slots__ = ("_container", "_pure")

    def __init__(self, container: Container, *segments: StrPath | ContainerPath) -> None:
        self._container = container
        self._pure = PurePosixPath(container.spec.workdir, *map(_text, segments))

    def _with(self, pure: PurePosixPath) -> ContainerPath:
        new = object.__new__(ContainerPath)
        new._container = self._container
        new._pure = pure
        return new

    # Pure

    @property
    def container(self) -> Container:
        """Where it is."""
        return self._container

    @property
    def parts(self) -> tuple[str, ...]:
        """As ``PurePath.parts``."""
        return self._pure.parts

    @property
    def parent(self) -> ContainerPath:
        """The directory above, by the text of the path."""
        return self._with(self._pure.parent)

    @property
    def parents(self) -> tuple[ContainerPath, ...]:
        """All directories above, the nearest first."""
        return tuple(self._with(pure) for pure in self._pure.parents)

    @property
    def name(self) -> str:
        """The last component."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """``.txt`` and the like, or an empty string."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All of them."""
        return self._pure.suffixes

    def joinpath(self, *segments: StrPath | ContainerPath) -> ContainerPath:
        """The path with more components."""
        return self._with(self._pure.joinpath(*map(_text, segments)))

    def __truediv__(self, segment: StrPath | ContainerPath) -> ContainerPath:
        try:
            return self._with(self._pure / _text(segment))
        except TypeError:
            return NotImplemented

    def with_name(self, name: str) -> ContainerPath:
        """The same with another last component."""
        return self._with(self._pure.with_name(name))

    def with_stem(self, stem: str) -> ContainerPath:
        """The same with another stem."""
        return self._with(self._pure.with_stem(stem))

    def with_suffix(self, suffix: str) -> ContainerPath:
        """The same with another suffix."""
        return self._with(self._pure.with_suffix(suffix))

    def relative_to(self, other: StrPath | ContainerPath) -> PurePosixPath:
        """The path as seen from ``other``."""
        return self._pure.relative_to(_text(other))

    def is_relative_to(self, other: StrPath | ContainerPath) -> bool:
        """Whether it lies in ``other``."""
        return self._pure.is_relative_to(_text(other))

    def match(self, pattern: str) -> bool:
        """As ``PurePath.match``."""
        return self._pure.match(pattern)

    def as_posix(self) -> str:
        """The path as a string."""
        return str(self._pure)

    def __str__(self) -> str:
        return str(self._pure)

    def __bytes__(self) -> bytes:
        return os.fsencode(str(self._pure))

    def __repr__(self) -> str:
        return f"<r2d2.ContainerPath {str(self._pure)!r} in {self._container.name}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ContainerPath):
            return NotImplemented
        return self._container is other._container and self._pure == other._pure

    def __lt__(self, other: ContainerPath) -> bool:
        if not isinstance(other, ContainerPath):
            return NotImplemented
        return self._pure < other._pure

    def __hash__(self) -> int:
        return hash((id(self._container), self._pure))

    # In the container

    def _do(self, operation: str, *arguments: Any) -> Any:
        return do(self._container, operation, bytes(self), *arguments)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``os.stat``; owners as they are inside (65534 for one who does not exist there)."""
        return stat_result(self._do("stat", follow_symlinks))

    def lstat(self) -> os.stat_result:
        """Of a symlink itself."""
        return self.stat(follow_symlinks=False)

    def _is(self, kind: Callable[[int], bool], *, follow: bool = True) -> bool:
        try:
            return kind(self._do("stat", follow)[0])
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether something is there; a symlink counts as what it leads to."""
        return self._is(lambda mode: True, follow=follow_symlinks)

    def is_file(self) -> bool:
        """Whether it is a regular file, or a symlink to one."""
        return self._is(modes.S_ISREG)

    def is_dir(self) -> bool:
        """Whether it is a directory, or a symlink to one."""
        return self._is(modes.S_ISDIR)

    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        return self._is(modes.S_ISLNK, follow=False)

    def is_fifo(self) -> bool:
        """Whether it is a FIFO."""
        return self._is(modes.S_ISFIFO)

    def is_socket(self) -> bool:
        """Whether it is a socket."""
        return self._is(modes.S_ISSOCK)

    def is_char_device(self) -> bool:
        """Whether it is a character device."""
        return self._is(modes.S_ISCHR)

    def is_block_device(self) -> bool:
        """Whether it is a block device."""
        return self._is(modes.S_ISBLK)

    def samefile(self, other: ContainerPath) -> bool:
        """Whether both are the same file."""
        return os.path.samestat(self.stat(), other.stat())

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As ``open()``: a regular file only, a FIFO or device is an ``OSError`` (EINVAL).

        The file stays open when the container ends, and keeps its file system alive until it is closed.
        """

        def opener(path: str, flags: int) -> int:
            del path
            descriptor: int = self._do("open", flags, 0o666)
            return descriptor

        return open(str(self), mode, buffering, encoding, errors, newline, opener=opener)

    def read_bytes(self) -> bytes:
        """The content."""
        with self.open("rb", 0) as file:
            content: bytes = file.read()
            return content

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The content, decoded."""
        with self.open(encoding=encoding, errors=errors) as file:
            text: str = file.read()
            return text

    def write_bytes(self, data: bytes) -> int:
        """Replaces the content, or makes the file; the number of bytes."""
        with self.open("wb") as file:
            return file.write(memoryview(data))

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Replaces the content, or makes the file; the number of characters."""
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}")
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return file.write(data)

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Makes the file, or sets its times to now."""
        if exist_ok:
            try:
                return self.utime()
            except FileNotFoundError:
                pass
        exclusive = 0 if exist_ok else os.O_EXCL
        os.close(self._do("open", os.O_CREAT | os.O_WRONLY | exclusive, mode))
        return None

    def utime(self, ns: tuple[int, int] | None = None, *, follow_symlinks: bool = True) -> None:
        """Sets atime and mtime, in nanoseconds since 1970; to now without ``ns``."""
        import time

        atime, mtime = (time.time_ns(),) * 2 if ns is None else ns
        self._do("utime", atime, mtime, follow_symlinks)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the directory; with ``parents`` those above it."""
        try:
            self._do("mkdir", mode)
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, parents=False, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def rmdir(self) -> None:
        """Removes an empty directory."""
        self._do("rmdir")

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file or symlink."""
        try:
            self._do("unlink")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def symlink_to(self, target: StrPath | ContainerPath, target_is_directory: bool = False) -> None:
        """Makes a symlink with the text ``target``."""
        del target_is_directory
        do(self._container, "symlink", os.fsencode(_text(target)), bytes(self))

    def readlink(self) -> PurePosixPath:
        """The text of a symlink."""
        return PurePosixPath(os.fsdecode(self._do("readlink")))

    def rename(self, target: StrPath | ContainerPath) -> ContainerPath:
        """Moves it, over what is at ``target`` (rename(2)): the new path. EXDEV between two mounts."""
        new = self._with(self._pure.parent.joinpath(_text(target)))
        self._do("rename", bytes(new))
        return new

    replace = rename

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Sets the permission bits."""
        self._do("chmod", mode, follow_symlinks)

    def chown(self, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True) -> None:
        """Sets the owner, in ids of the container."""
        self._do("chown", uid, gid, follow_symlinks)

    def truncate(self, size: int) -> None:
        """Cuts or extends a file."""
        self._do("truncate", size)

    def iterdir(self) -> Iterator[ContainerPath]:
        """What is in a directory, in no order."""
        return iter([self / os.fsdecode(name) for name in self._do("listdir")])

    def _scan(self) -> list[tuple[ContainerPath, int]]:
        """The same with modes (of symlinks themselves)."""
        found = []
        for name, stat in self._do("entries"):
            child = self / os.fsdecode(name)
            try:
                found.append((child, child._do("stat", False)[0] if stat is None else stat[0]))
            except FileNotFoundError:
                continue
        return sorted(found)

    def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> Iterator[tuple[ContainerPath, list[str], list[str]]]:
        """As ``pathlib.Path.walk`` of Python 3.12: ``(directory, names of directories, other names)``."""
        todo: list[Any] = [self]
        while todo:
            directory = todo.pop()
            if isinstance(directory, tuple):
                yield directory
                continue
            try:
                scanned = directory._scan()
            except OSError as error:
                if on_error is not None:
                    on_error(error)
                continue
            directories: list[str] = []
            others: list[str] = []
            for child, mode in scanned:
                below = modes.S_ISDIR(mode) or (follow_symlinks and modes.S_ISLNK(mode) and child.is_dir())
                (directories if below else others).append(child.name)
            if top_down:
                yield directory, directories, others
            else:
                todo.append((directory, directories, others))
            todo.extend(directory / name for name in reversed(directories))

    def glob(self, pattern: str) -> Generator[ContainerPath, None, None]:
        """The paths below that fit ``*``, ``?``, ``[…]`` and ``**`` (any number of directories).

        ``**`` does not follow symlinks.
        """
        pure = PurePosixPath(pattern)
        if not pure.parts or pure.is_absolute():
            raise ValueError(f"glob({pattern!r}): a relative pattern, not an empty one")
        seen = set()
        for found in _glob(self, pure.parts):
            if found not in seen:
                seen.add(found)
                yield found

    def rglob(self, pattern: str) -> Generator[ContainerPath, None, None]:
        """``glob`` with ``**/`` before the pattern."""
        return self.glob(f"**/{pattern}")


def _glob(directory: ContainerPath, parts: tuple[str, ...]) -> Iterator[ContainerPath]:
    first, rest = parts[0], parts[1:]
    if first == "**":
        for below, _, _ in directory.walk():
            yield from _glob(below, rest) if rest else [below]
        return
    for child, mode in _fitting(directory, first):
        if not rest:
            yield child
        elif modes.S_ISDIR(mode) or modes.S_ISLNK(mode):
            yield from _glob(child, rest)


def _fitting(directory: ContainerPath, pattern: str) -> Iterator[tuple[ContainerPath, int]]:
    """What fits one component of a pattern, with modes."""
    import fnmatch
    import re

    fits = re.compile(fnmatch.translate(pattern)).match
    try:
        if any(magic in pattern for magic in "*?["):
            yield from ((child, mode) for child, mode in directory._scan() if fits(child.name))
        else:
            yield directory / pattern, (directory / pattern).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return


def _text(path: StrPath | ContainerPath) -> str:
    return str(path) if isinstance(path, ContainerPath) else os.fspath(path)


def do(container: Container, operation: str, *arguments: Any) -> Any:
    """An operation of ``_core.Root``, its failures as Python's own."""
    root = container._files()
    try:
        return getattr(root, operation)(*arguments)
    except PermissionError as error:
        error.add_note(
            "hint: not even the container's root may do this: the file belongs to an id that does not exist "
            "inside (with the host image, files of the host's root), or is immutable; what is in a directory "
            "of the container's own can be replaced (unlink and write, or copy_in)"
        )
        raise
    except OSError as error:
        if error.errno == errno.EBADF and container._closed:
            raise ContainerClosed(f"container {container.name} has ended") from None
        if error.errno == errno.EINVAL and operation in ("open", "truncate"):
            raise OSError(errno.EINVAL, "Not a regular file", error.filename) from None
        raise


def stat_result(fields: tuple[Any, ...]) -> os.stat_result:
    """As the ``os`` module has it."""
    mode, ino, dev, nlink, uid, gid, size, atime, mtime, ctime, blocks, rdev = fields
    extra = {"st_blocks": blocks, "st_rdev": rdev, "st_blksize": 4096}
    for name, ns in (("atime", atime), ("mtime", mtime), ("ctime", ctime)):
        extra[f"st_{name}"] = ns / 1e9
        extra[f"st_{name}_ns"] = ns
    whole = [ns // 1_000_000_000 for ns in (atime, mtime, ctime)]
    return os.stat_result((mode, ino, dev, nlink, uid, gid, size, *whole), extra)


def copy_in(
    container: Container, source: StrPath, target: StrPath | ContainerPath, *, follow_symlinks: bool = False
) -> ContainerPath:
    """``Container.copy_in``."""
    path = _copy(
        container, os.fspath(source), container.path(target), target, out=False, follow=follow_symlinks
    )
    return container.path(path)


def copy_out(
    container: Container, source: StrPath | ContainerPath, target: StrPath, *, follow_symlinks: bool = False
) -> Path:
    """``Container.copy_out``."""
    return Path(_copy(container, source, os.fspath(target), target, out=True, follow=follow_symlinks))


def _copy(container: Container, source: Any, target: Any, given: Any, *, out: bool, follow: bool) -> str:
    def host(path: str) -> bytes:
        return os.fsencode(os.path.join(os.getcwd(), path))

    text = _text(source)
    contents = text in (".", "./") or text.endswith(("/.", "/./"))
    arguments = (bytes(container.path(source)), host(target)) if out else (host(text), bytes(target))
    root = container._files()
    path, skipped, _, _ = root.copy(
        *arguments,
        out=out,
        contents=contents,
        follow=follow,
        into=_text(given).endswith("/"),
        special_bits=not out,
    )
    if skipped:
        import warnings

        first = ", ".join(f"{os.fsdecode(path)!r} ({why})" for path, why in skipped[:5])
        more = "" if len(skipped) <= 5 else f" and {len(skipped) - 5} more"
        warnings.warn(f"copy of {text!r}: left out {first}{more}", UserWarning, stacklevel=4)
    return os.fsdecode(path)


def explain_exec(container: Container, program: bytes) -> str | None:
    """Why a program of the container cannot be executed, in words; None if nothing is known.

    Also after the container has ended: then of its image.
    """
    try:
        root, owner = _root(container)
    except (R2d2Error, OSError):
        return None
    try:
        return _why(container, root, program)
    except OSError:
        return None
    finally:
        if owner is not None:
            owner.stop()
        if root is not container._root:
            root.close()


def _why(container: Container, root: _core.Root, program: bytes) -> str | None:
    name, workdir = os.fsdecode(program), os.fsencode(container.spec.workdir)
    if b"/" in program:
        path = os.path.join(workdir, program)
        if reason := root.explain_exec(path):
            return reason
        return None if there(root, path) else f"{name} is not in the image {container.image.name}"
    search = container._environ().get("PATH", os.defpath)
    for directory in os.fsencode(search).split(b":"):
        path = os.path.join(workdir, directory, program)
        if there(root, path):
            return root.explain_exec(path)
    return f"{name} is in none of the directories of PATH ({search})"


def there(root: _core.Root, path: bytes) -> bool:
    """Whether a path exists, if only as a symlink."""
    try:
        root.stat(path, False)
    except OSError:
        return False
    return True


def _root(container: Container) -> tuple[_core.Root, Container | None]:
    """The container's root directory; if it has ended, that of another one of the same image."""
    try:
        return container._files(), None
    except ContainerClosed:
        pass
    image = container.image
    if not container.spec.mounts:
        if image.kind == "host" and not image.layers:
            return _core.Root(b"/"), None
        if image.kind != "host" and len(image.layers) == 1:
            return _core.Root(os.fsencode(image.layers[0])), None
    from .container import Container as Another

    other = Another(image, mounts=container.spec.mounts, userns=container.spec.userns).start()
    try:
        return other._files(), other
    except BaseException:
        other.stop()
        raise
