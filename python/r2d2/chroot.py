"""Root file systems made from the host's own programs.

A program does not start from its own file alone: the kernel first loads the loader that the file
names (``PT_INTERP``), and the loader loads the libraries (``DT_NEEDED``). `Rootfs` copies exactly
these, found from the ELF files and never from a list, and says of every file why it is there::

    >>> root = Rootfs("r2d2/rootfs")            # the tree: bin, lib, proc, ...
    >>> for file in root.install(["sh"]):       # sh, its loader, its libraries
    ...     print(file)
    /bin -> usr/bin: on the way to ...
    >>> root.install_busybox()                  # about 270 commands in one file
    >>> root.minimal_etc()                      # passwd, group, hosts, nsswitch.conf

Nothing here needs privileges, and nothing is ever written outside the directory, whatever symlinks
it holds (openat2(2) with ``RESOLVE_IN_ROOT``).

`chroot` and `pivot_root` run a program in such a directory. They differ in what is left of the
host: after chroot(2) its tree is still mounted and root walks back to it; after pivot_root(2) there
is nothing to walk to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from r2d2 import _core

from .surroundings import privileged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .process import CompletedProcess

__all__ = ["Installation", "Installed", "Rootfs", "build_minimal", "chroot", "pivot_root"]

_CAP_SYS_CHROOT, _CAP_SYS_ADMIN = 18, 21  # capabilities(7); root of a container may lack them

StrPath: TypeAlias = str | os.PathLike[str]
Program: TypeAlias = StrPath | tuple[StrPath, StrPath]


@dataclass(frozen=True, slots=True)
class Installed:
    """A file or symlink that came into the root.

    Attributes:
        path: its path in the root, absolute.
        link: the text of the symlink, or None for a file.
        reason: why it is there, as ``needed by /usr/bin/bash, found in ld.so.cache``.
    """

    path: str
    link: str | None
    reason: str

    def __str__(self) -> str:
        arrow = "" if self.link is None else f" -> {self.link}"
        return f"{self.path}{arrow}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Installation:
    """What one installation did: iterate over it, or print it.

    Attributes:
        files: each file with its reason, in the order of discovery.
        warnings: what is missing without harm to the programs asked for, such as a library of a
            plug-in that came with a directory.
    """

    files: tuple[Installed, ...]
    warnings: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Installed]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.files), *(f"warning: {text}" for text in self.warnings)])


class Rootfs:
    """A directory of the host that is to be the root of a container.

    Args:
        directory: where it is, or is to be.
        create: make the directory and the tree of a root file system in it (``bin dev etc lib proc
            root run sys tmp usr var``, with ``bin``, ``lib`` and the like merged under ``usr``
            where the host has them so). What is there already stays. False takes the directory as
            it is.

    Raises:
        SetupError: the directory cannot be made or opened.
    """

    def __init__(self, directory: StrPath, *, create: bool = True) -> None:
        self._directory = os.path.abspath(os.fspath(directory))
        self._core = _core.Rootfs(self._directory, create)

    def __fspath__(self) -> str:
        return self._directory

    def __repr__(self) -> str:
        return f"Rootfs({self._directory!r})"

    @property
    def path(self) -> str:
        """The directory, absolute."""
        return self._directory

    def install(self, programs: Iterable[Program], *, search_path: str | None = None) -> Installation:
        """Copy programs with exactly the loader and libraries that they ask for.

        Args:
            programs: each a name to be looked up in ``PATH``; or the path of a program, of any
                other file, or of a directory (then with all that is in it); or a pair
                ``(source, destination)``. A script brings the interpreter of its ``#!`` line, and
                ``#!/usr/bin/env X`` brings ``X`` too. Libraries come at the paths where the loader
                looks for them, symlinks and all; mode and modification time are kept, set-user-ID
                and set-group-ID bits are not. A program that was asked for by name and lies outside
                the usual ``PATH`` gets a symlink in ``/usr/local/bin``.
            search_path: directories separated by colons instead of the environment's ``PATH``.

        Returns:
            The files that are in the root for these programs, each with the reason.

        Raises:
            ImageNotFound: a program, its interpreter, loader or a library is not on this host;
                the message names it and where it was looked for. Nothing has been written then.
            SpecError: a destination without a file name, or with ``..`` in it.
            ImageError: a file of the host cannot be read.
            SetupError: the root cannot be written.

        Source: ld.so(8), elf(5), execve(2). Files that a program opens by dlopen(3) are named by
        nobody but itself: add them as paths. A program whose search path begins with ``$ORIGIN``
        needs a mounted ``/proc``: ld.so asks ``/proc/self/exe`` where the program lies.
        """
        return _installation(self._core.install(_pairs(programs), search_path))

    def install_busybox(self, *, search_path: str | None = None) -> Installation:
        """Copy the host's busybox to ``/bin/busybox`` and link its applets to it.

        An applet's place that is taken stays as it is, as with ``busybox --install -s``.

        Args:
            search_path: directories separated by colons instead of the environment's ``PATH``.

        Returns:
            busybox, what it needs, and the links that were made.

        Raises:
            ImageNotFound: there is no busybox on this host.
            SetupError: the root cannot be written.
        """
        return _installation(self._core.install_busybox(search_path))

    def minimal_etc(self) -> Installation:
        """Write ``/etc/passwd``, ``group``, ``hosts`` and ``nsswitch.conf`` where they are missing.

        Until then ``whoami`` says ``unknown uid 0``: names of users come from these files alone.

        Returns:
            The files that were written.

        Raises:
            SetupError: the root cannot be written.

        Source: passwd(5), group(5), hosts(5), nsswitch.conf(5).
        """
        return _installation(self._core.minimal_etc())

    def explain(self, program: StrPath) -> str | None:
        """Say why a program that lies in the root does not start there.

        Args:
            program: its absolute path in the root.

        Returns:
            A sentence, for example that the loader named by ``PT_INTERP`` is not in the root, which
            execve(2) reports as if the program itself were missing. None if the program is not
            there at all, or if nothing wrong is found.
        """
        return self._core.explain(os.fspath(program))


def build_minimal(
    store: StrPath,
    programs: Iterable[Program] = (),
    *,
    busybox: bool = False,
    etc: bool = False,
    search_path: str | None = None,
) -> str:
    """Find or make a root file system in a store of such.

    Its name there comes from the identity (device, inode, size, modification time) of every file
    that goes in: as long as none of them changes the same directory is returned, in well under a
    millisecond; afterwards a new one is made and the old one stays.

    Args:
        store: a directory of mode 0700 that belongs to the caller; made if it is not there.
        programs: as for `Rootfs.install`.
        busybox: with busybox and its applets; a program that the host lacks may be one of them.
        etc: with the files of `Rootfs.minimal_etc`.
        search_path: directories separated by colons instead of the environment's ``PATH``.

    Returns:
        The directory. Treat it as read-only: it is shared by all who ask for the same.

    Raises:
        ImageNotFound: as `Rootfs.install`, and if there is no busybox.
        SetupPermissionError: the store is a symlink, open to others or somebody else's.
        SetupError: the store cannot be written.
    """
    return _core.build_minimal(os.fspath(store), _pairs(programs), busybox, etc, search_path)


def chroot(directory: StrPath, args: Any, *, user: bool | None = None, **keywords: Any) -> CompletedProcess:
    """Run a program with another root directory, as chroot(1) does.

    That is no prison: the host's tree stays mounted, and whoever is root in there gets back to it
    with ``mkdir("x"); chroot("x"); chdir("../../../.."); chroot(".")``. Use `pivot_root` for one.

    >>> chroot("r2d2/rootfs", ["sh", "-c", "ls /"])

    Args:
        directory: the new root.
        args: the program and its arguments, looked up in the caller's ``PATH``, in the new root.
        user: in a user namespace in which the caller is root, since chroot(2) is for root alone;
            None: for everybody but root with CAP_SYS_CHROOT.
        keywords: as `subprocess.run`; ``cwd`` is a path in the new root, ``/`` by default.

    Returns:
        As `subprocess.run`. Nothing of the calling process changes.

    Raises:
        SetupNotFoundError: no such program there; its ``hint`` says if it is the loader or the
            interpreter that is missing.
        ImageError: the directory is missing, or is none.
        CommandTimeout, CommandError: as `subprocess.run`.

    Source: chroot(2).
    """
    return _run(directory, args, "chroot", user, keywords)


def pivot_root(
    directory: StrPath, args: Any, *, user: bool | None = None, **keywords: Any
) -> CompletedProcess:
    """Run a program with another root directory and nothing else mounted, as containers do.

    In a mount namespace of its own the directory becomes ``/``, and the host's tree is unmounted:
    the ways out of a chroot lead nowhere.

    Args:
        directory: the new root; what is mounted below it comes along.
        args: the program and its arguments, looked up in the caller's ``PATH``, in the new root.
        user: a user namespace in which the caller is root; None: for everybody but root with CAP_SYS_ADMIN.
        keywords: as `subprocess.run`; ``cwd`` is a path in the new root, ``/`` by default.

    Returns:
        As `subprocess.run`. Nothing of the calling process changes.

    Raises:
        As `chroot`.

    Source: pivot_root(2).
    """
    return _run(directory, args, "directory", user, keywords)


def _run(
    directory: StrPath, args: Any, root: str, user: bool | None, keywords: dict[str, Any]
) -> CompletedProcess:
    from .container import _capture, _finish
    from .namespace import explained, plain_spec, start

    ending = {name: keywords.pop(name, None) for name in ("input", "timeout", "check")}
    _capture(keywords, ending["input"], keywords.pop("capture_output", False))
    if user is None:
        user = os.geteuid() != 0 or not privileged(_CAP_SYS_CHROOT if root == "chroot" else _CAP_SYS_ADMIN)
    kinds = ["user"] if user else []
    if root == "directory":
        kinds.append("mount")
    spec = plain_spec(kinds, root=root, layers=[os.fsencode(os.path.abspath(directory))])
    with explained(directory, args):
        process = start(spec, args, **keywords)
    return _finish(process, args, ending["input"], ending["timeout"], bool(ending["check"]))


def _pairs(programs: Iterable[Program]) -> list[tuple[str, str | None]]:
    if isinstance(programs, str | os.PathLike):
        raise TypeError("programs must be a list of programs, not one path")
    return [
        (os.fspath(p[0]), os.fspath(p[1])) if isinstance(p, tuple) else (os.fspath(p), None) for p in programs
    ]


def _installation(result: tuple[list[tuple[str, str | None, str]], list[str]]) -> Installation:
    files, warnings = result
    return Installation(tuple(Installed(*file) for file in files), tuple(warnings))
