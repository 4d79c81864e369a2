"""Debian archives, read without dpkg: the fields of their control file, and their files (deb(5)).

A .deb is an ar archive of three members: ``debian-binary``, ``control.tar`` and ``data.tar``, the last two
compressed. Whoever made it may mean harm, so nothing of it is believed: sizes are held against the file's
own, and where a file may go is `packages.Tree`'s to say.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import IO, TYPE_CHECKING, Any

from .errors import ImageError, ImageNotFound, unsupported_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .spec import StrPath

_MAGIC = b"!<arch>\n"
#: Bytes: a control file is a page of text; what an archive may unpack to.
_CONTROL, _DATA = 4 << 20, 16 << 30


class Deb:
    """A .deb file.

    Args:
        path: of the file.

    Attributes:
        path: absolute.
        control: the text of its control file.

    Raises:
        ImageNotFound: there is no such file.
        ImageError: it is no Debian archive, or damaged.
        UnsupportedError: it is compressed in a way that this machine cannot read.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        if not os.path.exists(self.path):
            raise ImageNotFound(f"{self.path}: there is no such file").with_hint(
                "`apt-get download PACKAGE` puts the .deb file of a package into the current directory"
            )
        self._members = self._read_members()
        self.control = self._read_control()

    def _bad(self, what: str) -> ImageError:
        return ImageError(f"{self.path}: not a usable Debian archive: {what}")

    def _read_members(self) -> dict[str, tuple[int, int]]:
        """Name to offset and size (ar(5))."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise self._bad("it does not begin as an ar archive")
                members: dict[str, tuple[int, int]] = {}
                while header := file.read(60):
                    text = header.decode("ascii", "replace")
                    if len(header) < 60 or header[58:] != b"`\n" or not text[48:58].strip().isdigit():
                        raise self._bad("truncated, or a damaged member header")
                    start, length = file.tell(), int(text[48:58])
                    if start + length > size:
                        raise self._bad(
                            f"truncated: {text[:16].strip()} ends {start + length - size} B later"
                        )
                    members.setdefault(text[:16].strip().rstrip("/"), (start, length))
                    file.seek(start + length + length % 2)
                start, length = members.get("debian-binary", (0, 0))
                file.seek(start)
                if not file.read(min(length, 16)).startswith(b"2."):
                    raise self._bad("debian-binary does not say 2.x")
        except IsADirectoryError:
            raise self._bad("it is a directory") from None
        return members

    def _read_control(self) -> str:
        for member, content in self._tar("control"):
            if os.path.normpath(member.name) == "control" and content is not None:
                if member.size > _CONTROL:
                    raise self._bad(f"a control file of {member.size} bytes")
                return content.read().decode("utf-8", "replace")
        raise self._bad("it has no control file")

    def files(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Its files in order, each with its content where it has one, which is to be read at once.

        Raises:
            ImageError: it is damaged.
        """
        yield from self._tar("data")

    def _tar(self, kind: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        name = next((name for name in self._members if name.split(".")[:2] == [kind, "tar"]), None)
        if name is None:
            raise self._bad(f"it has no {kind}.tar")
        total = 0
        try:
            with self._plain(name) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    total += member.size
                    self._check(total)
                    yield member, archive.extractfile(member) if member.isreg() else None
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            if type(error).__module__ == "r2d2.errors" or getattr(error, "errno", None):
                raise
            raise self._bad(f"{name}: {error}") from error
        except Exception as error:
            if type(error).__name__ not in ("LZMAError", "error", "ZstdError"):
                raise
            raise self._bad(f"{name}: {error}") from error

    def _check(self, total: int) -> None:
        if total > _DATA:
            raise self._bad(f"it unpacks to more than {_DATA >> 30} GiB")

    @contextlib.contextmanager
    def _plain(self, name: str) -> Iterator[Any]:
        """A member, decompressed as it is read."""
        start, length = self._members[name]
        suffix = name.rpartition(".tar")[2]
        with open(self.path, "rb") as file:
            part = io.BufferedReader(_Part(file, start, length))
            if suffix == "":
                yield part
            elif suffix in _MODULES:
                try:
                    module = importlib.import_module(_MODULES[suffix])
                except ImportError:
                    raise unsupported_error(0, f"{name}: this Python has no {_MODULES[suffix]}") from None
                with module.open(part, "rb") as plain:
                    yield plain
            elif suffix == ".zst":
                with _zstd(part, name) as plain:
                    yield plain
            else:
                raise self._bad(f"{name}: an unknown compression")


_MODULES = {".gz": "gzip", ".xz": "lzma", ".lzma": "lzma", ".bz2": "bz2"}


class _Part(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file = file
        self._left = length
        file.seek(start)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """At most up to the end of the range."""
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _zstd(part: Any, name: str) -> Iterator[Any]:
    """By Python's own module (3.14), the package zstandard, or the program zstd(1)."""
    with contextlib.suppress(ImportError):
        with importlib.import_module("compression.zstd").open(part, "rb") as plain:
            yield plain
        return
    with contextlib.suppress(ImportError):
        with importlib.import_module("zstandard").ZstdDecompressor().stream_reader(part) as plain:
            yield plain
        return
    program = shutil.which("zstd")
    if program is None:
        raise unsupported_error(0, f"{name}: nothing here reads zstd").with_hint(
            "apt install zstd, or pip install zstandard, or use Python 3.14"
        )
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as complaint:
        shutil.copyfileobj(part, packed)
        packed.seek(0)
        with subprocess.Popen(
            [program, "-dcq"], stdin=packed, stdout=subprocess.PIPE, stderr=complaint
        ) as process:
            try:
                yield process.stdout
                process.stdout.read()  # type: ignore[union-attr]
            finally:
                process.kill()
