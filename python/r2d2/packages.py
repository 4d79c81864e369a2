"""``Image.from_packages``: root file systems of Debian packages, installed here or in .deb files.

The files of the packages, of everything that they depend on, and of the essential packages, on which any may
rely without saying so (Debian policy 3.8), are copied into a layer of the cache. Of installed packages that
is what is on the disk, configuration as it stands included.

Maintainer scripts are not run. What they and dpkg's tools would have left is made here where programs rely on
it: the directories of every root, /usr merged, /bin/sh, the links of update-alternatives(1) as this machine
has them, and the accounts: this machine's own below 1000, and those of the servers that r2d2.testing knows.
ld.so.cache is not: Debian's loader looks in Debian's directories without it.

What an ordinary user cannot read is left out, with a record: see :func:`contents`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from typing import IO, TYPE_CHECKING, Any

from . import dpkg, snapshot
from .deb import Deb
from .errors import ImageError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .dpkg import Package
    from .image import Image
    from .spec import StrPath

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")
_DOCUMENTATION = ("usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/lintian/")
_ROOT = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "etc": 0o755, "usr": 0o755, "var": 0o755,
         "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777, "usr/bin": 0o755}  # fmt: skip
#: Accounts that the maintainer scripts of these packages make.
_ACCOUNTS = {"redis-server": "redis", "postgresql-common": "postgres", "nginx-common": "www-data"}


def build(packages: Iterable[StrPath], *, documentation: bool = False) -> Image:
    """``Image.from_packages``."""
    if isinstance(packages, str | os.PathLike):
        raise SpecError(f"from_packages({os.fspath(packages)!r}): a list of packages, not one")
    wanted = [os.fspath(each) for each in packages]
    if not wanted:
        raise SpecError("from_packages: no package given; for an empty root use Image.scratch()")
    debs, roots = {}, []
    known = dpkg.installed()
    for name in wanted:
        if "/" in name or name.endswith(".deb"):
            deb = Deb(name)
            fields = next(dpkg.paragraphs(deb.control), {})
            given = dpkg.package(fields, deb.path)
            debs[deb.path] = deb
            known.append(given)
            roots.append(given)
    choice = dpkg.Known(known)
    roots += [choice.named(name) for name in wanted if "/" not in name and not name.endswith(".deb")]
    essential = [each for each in choice.packages if each.essential and each.deb is None]
    names = {each.name for each in roots}
    chosen = choice.closure([*(each for each in essential if each.name not in names), *roots])
    work = _Layer(chosen, debs, documentation=documentation)
    made = snapshot.cached(["packages 1", work.key()], lambda: snapshot.keep(work.fill, work.key()))
    from .image import Image

    return Image("layers", made.layers, f"packages({', '.join(map(os.path.basename, wanted))})")


def contents(image: Image) -> dict[str, Any]:
    """What an image of ``Image.from_packages`` was made of.

    Returns:
        ``packages``: names, versions and architectures; ``left_out``: each file that is not in it, and why.

    Raises:
        ImageError: it is another kind of image.
    """
    path = os.path.join(os.path.dirname(image.layers[-1]), "packages.json") if image.layers else ""
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise ImageError(f"image {image.name}: it was not made by Image.from_packages") from None
    return found


class Tree:
    """A directory that takes the files of packages, and writes nowhere else, whatever links are in it.

    Nobody else may write to it meanwhile.
    """

    def __init__(self, top: str) -> None:
        self._top = top

    def place(self, path: str) -> str:
        """Where a path of the root is on the host: links on the way are followed as the root's own.

        Raises:
            ImageError: it leaves the root, or its links have no end.
        """
        if "\0" in path or ".." in path.split("/"):
            raise ImageError(f"path {path!r}: it leaves the root")
        waiting = [part for part in path.split("/") if part not in ("", ".")][::-1]
        here: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                del here[-1:]
                continue
            here.append(part)
            if not waiting:
                break
            where = os.path.join(self._top, *here)
            try:
                mode = os.lstat(where).st_mode
            except FileNotFoundError:
                os.mkdir(where, 0o755)
                continue
            if stat.S_ISLNK(mode):
                links += 1
                if links > 40:
                    raise ImageError(f"path {path!r}: too many symbolic links")
                text = os.readlink(where)
                here = [] if text.startswith("/") else here[:-1]
                waiting += [each for each in text.split("/") if each not in ("", ".")][::-1]
            elif not stat.S_ISDIR(mode):
                raise ImageError(f"path {path!r}: {'/'.join(here)} is no directory")
        return os.path.join(self._top, *here)

    def has(self, path: str) -> bool:
        """Whether something is there."""
        return os.path.lexists(self.place(path))

    def directory(self, path: str, mode: int) -> str:
        """Makes one; a link to a directory stays (as dpkg does it)."""
        where = self.place(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(where)
        if os.path.islink(where):
            return where
        if not os.path.isdir(where):
            raise ImageError(f"path {path!r}: a file and a directory in one place")
        os.chmod(where, stat.S_IMODE(mode) | 0o700)  # its owner, who fills it, may
        return where

    def link(self, path: str, text: str) -> str:
        """Makes a symbolic link; what it says is the container's concern."""
        where = self._free(path)
        os.symlink(text, where)
        return where

    def hard_link(self, path: str, other: str) -> str:
        """One more name for a file of the tree."""
        source = self.place(other)
        if not os.path.lexists(source) or not stat.S_ISREG(os.lstat(source).st_mode):
            raise ImageError(f"path {path!r}: a hard link to {other!r}, which is no file of the archive")
        where = self.place(path)
        if where != source:
            self._free(path)
            os.link(source, where, follow_symlinks=False)
        return where

    def file(self, path: str, content: IO[bytes] | bytes, mode: int, modified: int = 0) -> str:
        """Makes a file; ``modified`` in nanoseconds."""
        where = self._free(path)
        with open(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                while data := content.read(1 << 20):
                    file.write(data)
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.utime(file.fileno(), ns=(modified, modified))
        return where

    def _free(self, path: str) -> str:
        where = self.place(path)
        if os.path.isdir(where) and not os.path.islink(where):
            raise ImageError(f"path {path!r}: a directory and a file in one place")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(where)
        return where


class _Layer:
    """The content of a layer: listed first, for its key; then written."""

    def __init__(self, chosen: list[Package], debs: dict[str, Deb], *, documentation: bool) -> None:
        self._chosen = chosen
        self._debs = debs
        self._documentation = documentation
        self._left_out: dict[str, str] = {}
        self._diverted = _diversions()
        self._alternatives = _alternatives() if any(each.deb is None for each in chosen) else []
        self._listed = {each: _listed(each) for each in chosen if each.deb is None}
        self._owners = os.geteuid() == 0
        self._key = ""

    def key(self) -> str:
        """A digest of everything that decides the content; of files on the disk, what stat(2) says."""
        if self._key:
            return self._key
        digest = hashlib.sha256()

        def add(*values: object) -> None:
            digest.update(repr(values).encode("utf-8", "surrogateescape") + b"\n")

        add(self._documentation, os.geteuid(), self._alternatives, self._diverted, _accounts(self._chosen))
        for each in self._chosen:
            add(each.name, each.version, each.arch)
            if each.deb is not None:
                with open(each.deb, "rb") as file:
                    add(hashlib.file_digest(file, "sha256").hexdigest())
                continue
            for path in self._listed[each]:
                try:
                    info = os.lstat(self._source(each, path))
                    add(path, info.st_mode, info.st_uid, info.st_gid,
                        0 if stat.S_ISDIR(info.st_mode) else (info.st_size, info.st_mtime_ns))  # fmt: skip
                except OSError:
                    add(path)
        self._key = digest.hexdigest()[:40]
        return self._key

    def _source(self, package: Package, path: str) -> str:
        """Where a file of an installed package is, which another may have diverted (dpkg-divert(1))."""
        there, by = self._diverted.get(path, (path, package.name))
        return path if by == package.name else there

    def fill(self, top: str) -> None:
        """Writes it to an empty directory, and the record beside that."""
        tree = Tree(top)
        for path, mode in _ROOT.items():
            tree.directory(path, mode)
        for name in _MERGED:
            tree.directory(f"usr/{name}", 0o755)
            tree.link(name, f"usr/{name}")
        for each in self._chosen:
            if each.deb is None:
                self._copy(tree, each)
            else:
                self._unpack(tree, self._debs[each.deb])
        self._links(tree)
        passwd, group = _accounts(self._chosen)
        tree.file("etc/passwd", passwd.encode(), 0o644)
        tree.file("etc/group", group.encode(), 0o644)
        if not tree.has("etc/nsswitch.conf"):
            tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", 0o644)
        record = {
            "packages": [[each.name, each.version, each.arch] for each in self._chosen],
            "left_out": dict(sorted(self._left_out.items())),
        }
        with open(os.path.join(os.path.dirname(top), "packages.json"), "w", encoding="utf-8") as file:
            json.dump(record, file)

    def _unwanted(self, path: str) -> bool:
        return not self._documentation and path.lstrip("/").startswith(_DOCUMENTATION)

    def _copy(self, tree: Tree, package: Package) -> None:
        for path in self._listed[package]:
            if self._unwanted(path):
                continue
            source = self._source(package, path)
            try:
                self._copy_one(tree, source)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if error.filename != source:
                    raise
                self._left_out[source] = error.strerror or "unreadable"

    def _copy_one(self, tree: Tree, source: str) -> None:
        info = os.lstat(source)
        if stat.S_ISDIR(info.st_mode):
            made = tree.directory(source, info.st_mode)
        elif stat.S_ISLNK(info.st_mode):
            where = tree.place(source)
            if os.path.isdir(where) or source.lstrip("/") in _MERGED:
                return  # the directory of another package (dpkg leaves it, too), or a link to one
            made = tree.link(source, os.readlink(source))
        elif stat.S_ISREG(info.st_mode):
            with open(source, "rb") as content:
                made = tree.file(source, content, info.st_mode, info.st_mtime_ns)
        else:
            self._left_out[source] = "neither file, directory nor symbolic link"
            return
        if self._owners and (info.st_uid or info.st_gid):
            os.chown(made, info.st_uid, info.st_gid, follow_symlinks=False)
            if not stat.S_ISLNK(info.st_mode):
                os.chmod(made, stat.S_IMODE(info.st_mode))  # chown(2) clears what setuid was

    def _unpack(self, tree: Tree, deb: Deb) -> None:
        for member, content in deb.files():
            path = member.name.removeprefix("./").rstrip("/")
            if path in ("", ".") or self._unwanted(path) or path in _MERGED:
                continue
            try:
                _place(tree, path, member, content)
            except (ImageError, ValueError, OverflowError) as error:
                raise ImageError(f"{deb.path}: {error}") from None
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise ImageError(f"{deb.path}: a path of {len(path)} bytes") from None

    def _links(self, tree: Tree) -> None:
        """Those of update-alternatives(1), where what they lead to is there; and /bin/sh."""
        for name, link, target in self._alternatives:
            if tree.has(target) and not tree.has(link):
                tree.link(f"etc/alternatives/{name}", target)
                tree.link(link, f"/etc/alternatives/{name}")
        shells = [shell for shell in ("dash", "bash") if tree.has(f"usr/bin/{shell}")]
        if shells and not tree.has("usr/bin/sh"):
            tree.link("usr/bin/sh", shells[0])


def _place(tree: Tree, path: str, member: Any, content: IO[bytes] | None) -> None:
    if member.isdir():
        tree.directory(path, member.mode)
    elif member.issym():
        tree.link(path, member.linkname)
    elif member.islnk():
        tree.hard_link(path, member.linkname)
    elif content is not None:
        tree.file(path, content, member.mode, max(0, min(int(member.mtime), 1 << 33)) * 10**9)
    else:
        raise ImageError(f"path {path!r}: a device or pipe")


# dpkg's other files


def _listed(package: Package) -> list[str]:
    """The paths of an installed package, parents first.

    Raises:
        ImageError: dpkg has no list of them.
    """
    for name in (f"{package.name}:{package.arch}", package.name):
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(dpkg.DATABASE, "info", f"{name}.list"), "rb") as file:
                paths = [os.fsdecode(line) for line in file.read().splitlines()]
            return [path for path in paths if path not in ("", "/", "/.")]
    raise ImageError(f"package {package.name}: dpkg has no list of its files").with_hint(
        f"apt install --reinstall {package.name}"
    )


def _diversions() -> dict[str, tuple[str, str]]:
    """Path to where others' file of that path is, and whose is not there."""
    with contextlib.suppress(FileNotFoundError):
        with open(os.path.join(dpkg.DATABASE, "diversions"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        return {lines[n]: (lines[n + 1], lines[n + 2]) for n in range(0, len(lines) - 2, 3)}
    return {}


def _alternatives() -> list[tuple[str, str, str]]:
    """Name, link and target of each that is set here, slaves included; then other choices, the best first."""
    found = []
    directory = os.path.join(dpkg.DATABASE, "alternatives")
    for entry in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with open(os.path.join(directory, entry), encoding="utf-8", errors="surrogateescape") as file:
            head, _, rest = file.read().partition("\n\n")
        names = head.split("\n")[1:]
        links = [(entry, names[0]), *zip(names[1::2], names[2::2], strict=False)]
        for name, link in links:
            with contextlib.suppress(OSError):
                found.append((name, link, os.readlink(f"/etc/alternatives/{name}")))
        lines = rest.split("\n")
        size = len(links) + 1
        choices = [lines[n : n + size] for n in range(0, len(lines) - size + 1, size) if lines[n]]
        choices.sort(key=lambda choice: -int(choice[1]) if choice[1].lstrip("-").isdigit() else 0)
        for path, _priority, *slaves in choices:
            targets = zip(links, [path, *slaves], strict=False)
            found += [(name, link, target) for (name, link), target in targets if target]
    return found


def _accounts(chosen: Iterable[Package]) -> tuple[str, str]:
    """/etc/passwd and /etc/group: this machine's system accounts, without passwords, and servers' own."""
    texts = []
    for path, fallback in (("/etc/passwd", "root:x:0:0:root:/root:/bin/sh"), ("/etc/group", "root:x:0:")):
        lines = [fallback]
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8", errors="replace") as file:
                rows = [line.split(":") for line in file.read().splitlines() if line.count(":") >= 3]
            system = [
                row for row in rows if row[2].isdigit() and (int(row[2]) < 1000 or int(row[2]) == 65534)
            ]
            lines = [":".join([row[0], "x", *row[2:]]) for row in system] or lines
        texts.append(lines)
    passwd, group = texts
    used = {int(line.split(":")[2]) for line in passwd + group}
    for package in chosen:
        account = _ACCOUNTS.get(package.name)
        if account and not any(line.startswith(f"{account}:") for line in passwd):
            number = next(each for each in range(200, 1000) if each not in used)
            used.add(number)
            passwd.append(f"{account}:x:{number}:{number}::/var/lib/{account}:/usr/sbin/nologin")
            group.append(f"{account}:x:{number}:")
    return "\n".join(passwd) + "\n", "\n".join(group) + "\n"
