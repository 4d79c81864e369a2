"""What can be known of an overlay's directories before anything is mounted; the care of its work directory.

The kernel answers most mistakes with EINVAL and a line in its log, and one of them (two overlays on one upper
layer) with that line alone; so they are looked for here, and named.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import SetupError, SpecError, setup_error, unsupported_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: File systems on which overlayfs refuses an upper layer ("not supported as upperdir"): somebody else may
#: change their names, or names compare in a way of their own, or they are an overlay themselves, or they take
#: no files at all.
_NO_UPPER = frozenset({
    "overlay", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "vfat", "msdos", "exfat", "ntfs3",
    "hfsplus", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "squashfs", "erofs", "iso9660",
})  # fmt: skip


class _Mount(NamedTuple):
    """A line of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

    number: int
    point: bytes
    fstype: str
    options: list[bytes]


def real(path: str | bytes | os.PathLike[str] | os.PathLike[bytes], what: str) -> bytes:
    """Absolute and without symbolic links, so that paths can be compared.

    Raises:
        SpecError: no path at all.
        UnsupportedError: it leads through ``/proc/PID/root`` or the like into another mount namespace.
    """
    given = os.fsencode(path)
    if not given or b"\0" in given:
        raise SpecError(f"{what}: {path!r} is no path")
    resolved = os.path.realpath(given)
    try:
        same = os.path.samestat(os.stat(given), os.stat(resolved))
    except OSError:
        # Said by `checked`, if it is missing; a magic link's text need not be a path.
        same = not os.path.exists(given)
    if not same:
        raise unsupported_error(
            errno.EINVAL, f"{what}: {os.fsdecode(given)} lies in another mount namespace and is no layer here"
        ).with_hint("name its layers instead: an overlay takes up to 500 of them")
    return resolved


def path(given: bytes) -> Path:
    """For the caller; bytes that are no UTF-8 survive (PEP 383)."""
    from pathlib import Path

    return Path(os.fsdecode(given))


def check_nesting(layers: Iterable[tuple[str, bytes]]) -> None:
    """One directory below another would be seen twice: the kernel refuses it (ELOOP).

    Raises:
        SpecError: naming both.
    """
    known: dict[bytes, str] = {}
    for what, layer in layers:
        if layer in known:
            raise SpecError(f"{what}: {os.fsdecode(layer)} is also {known[layer]}")
        known[layer] = what
    for layer, what in known.items():
        parent = os.path.dirname(layer)
        while parent != b"/":
            if parent in known:
                raise SpecError(
                    f"{what}: {os.fsdecode(layer)} lies inside {known[parent]} {os.fsdecode(parent)}: "
                    "the layers of an overlay must be separate trees"
                )
            parent = os.path.dirname(parent)
        if b"/" in known and layer != b"/":
            raise SpecError(f"{what}: {os.fsdecode(layer)} lies inside {known[b'/']} /")


def claim(layers: Iterable[tuple[str, bytes]], merged: bytes) -> int | None:
    """Refuse what can be known to fail; lock the upper layer.

    Returns:
        A descriptor that holds the lock (flock(2)) as long as the overlay is mounted; None without an upper.

    Raises:
        SetupNotFoundError, SetupPermissionError, UnsupportedError, SetupError: see ``Overlay.mount``.
    """
    table = _mount_table("self")
    lock = None
    try:
        for what, layer in [*layers, ("merged", merged)]:
            try:
                descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise _refused(error.errno or 0, what, layer) from None
            try:
                if what != "merged":
                    _check_mounts(what, layer, table)
                if what in {"upper", "work"}:
                    _check_upper(what, layer, _filesystem(descriptor, table))
                if what == "upper":
                    lock = os.dup(descriptor)
                    _lock(lock, layer)
            finally:
                os.close(descriptor)
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    return lock


def release(lock: int) -> None:
    """Give the upper layer back, also where a fork of this process still has the descriptor."""
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _lock(descriptor: int, upper: bytes) -> None:
    """Refuse an upper layer that another overlay has.

    The kernel itself only writes "is in-use" to its log, and lets the two ruin it. Ours hold a lock; others
    are found in the mount tables that we may read.
    """
    import fcntl

    user = _user_of(upper)
    if user is None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            user = ""
    if user is not None:
        error = _refused(errno.EBUSY, "upper", upper)
        error.message += f": {user or 'another process'} has an overlay with this upper layer"
        error.with_hint("unmount that one first, or give each overlay an upper layer of its own")
        raise error


def _refused(number: int, what: str, layer: bytes) -> SetupError:
    name = os.fsdecode(layer)
    error = setup_error(number, os.strerror(number), name)
    error.message = f"{what}: {name}: {os.strerror(number)}"
    error.step = "check the layers"
    return error


def _check_mounts(what: str, layer: bytes, table: list[_Mount]) -> None:
    """Refuse mounts below a layer: a new user namespace locks them, and overlayfs then refuses it."""
    inside = layer.rstrip(b"/") + b"/"
    below = sorted({mount.point for mount in table if mount.point.startswith(inside)})
    if below:
        others = f" and {len(below) - 1} more" if len(below) > 1 else ""
        raise unsupported_error(
            errno.EINVAL,
            f"{what}: {os.fsdecode(layer)} holds a mount, {os.fsdecode(below[0])}{others}: no layer can",
        ).with_hint(
            "name directories without mounts below them, such as /usr; for the whole machine use Image.host()"
        )


def _check_upper(what: str, layer: bytes, filesystem: str) -> None:
    if filesystem in _NO_UPPER:
        raise unsupported_error(
            22,
            f"{what}: {os.fsdecode(layer)} lies on {filesystem}, which overlayfs takes for no {what} layer",
        ).with_hint("put it on a local file system, such as ext4, xfs, btrfs or a tmpfs")
    if not os.access(layer, os.W_OK):
        raise _refused(errno.EROFS if os.statvfs(layer).f_flag & os.ST_RDONLY else errno.EACCES, what, layer)


def _user_of(upper: bytes) -> str | None:
    """The process in whose mount table an overlay has this upper layer."""
    import re

    own = os.stat(upper)
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            mounts = _mount_table(pid)
        except OSError:
            continue  # somebody else's, or gone
        for option in (option for mount in mounts if mount.fstype == "overlay" for option in mount.options):
            if not option.startswith(b"upperdir="):
                continue
            name = re.sub(rb"\\(.)", rb"\1", option[9:], flags=re.DOTALL)
            # A container's root is another one than when its overlay was mounted: then by the name alone.
            for path in (os.fsencode(f"/proc/{pid}/root") + name, name):
                try:
                    other = os.stat(path)
                except OSError:
                    continue
                if os.path.samestat(own, other):
                    return f"process {pid}"
    return None


def _filesystem(descriptor: int, table: list[_Mount]) -> str:
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                number = int(line.split()[1])
                return next((mount.fstype for mount in table if mount.number == number), "")
    return ""


def _mount_table(pid: str) -> list[_Mount]:
    table = []
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            head, _, tail = line.partition(b" - ")
            fields, rest = head.split(b" "), tail.split()
            if len(fields) > 4 and rest:
                options = [_unescaped(option) for option in rest[-1].split(b",")]
                table.append(_Mount(int(fields[0]), _unescaped(fields[4]), rest[0].decode(), options))
    return table


def _unescaped(text: bytes) -> bytes:
    r"""Octal escapes of blanks, backslash and, in options, comma and equals sign: ``\054``."""
    if b"\\" not in text:
        return text
    import re

    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def make_work(upper: bytes) -> bytes:
    """Make a directory beside the upper layer, on its file system; remove those of killed processes."""
    parent, name = os.path.split(upper)
    prefix = b"." + name[:200] + b".work-"
    made = os.path.join(parent, prefix + os.urandom(4).hex().encode())
    try:
        for entry in os.listdir(parent):
            # The upper layer is locked and free, so whatever is still there serves nobody.
            if entry.startswith(prefix):
                remove_tree(os.path.join(parent, entry))
        os.mkdir(made, 0o700)
    except OSError as error:
        raise _refused(error.errno or 0, "work", made).with_hint(
            "name a work directory: an empty one on the file system of the upper layer"
        ) from None
    return made


def remove_tree(directory: bytes) -> None:
    """Removes what overlayfs leaves, directories of mode 000 included; fine if it is not there."""
    try:
        os.chmod(directory, 0o700)
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(directory)
