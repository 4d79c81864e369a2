"""A container's changes, frozen into an image: ``Container.snapshot``.

A snapshot is one directory in the cache, named by its content, that holds what an upper layer holds: new
and changed files, whiteouts, opaque directories. A container of the new image has it as one more lower
layer, read-only and shared with all others; the kernel merges (overlayfs, kernel documentation). Below a
snapshot of the host image is the machine's own tree as it is when a container starts, not as it was.

What is kept: content with its holes, symbolic and hard links, modes, mtimes, FIFOs, ``user.*`` attributes
and ACLs; for real root also owners, devices, capabilities and ``trusted.*``. What is not: sockets; whatever
is mounted; /proc, /sys, /dev; the container's own /etc/hosts, hostname and resolv.conf; with
``userns="subuid"`` owners (all files become root's). ``/`` of the host image is no overlay
(``src/overlay/layout.rs``): a directory that is new in it comes back as a mount, which can be emptied but not
removed, and a file of more than 16 MiB read-only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat as modes
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from .errors import ImageError, SpecError
from .frozen import Frozen, copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .container import Container
    from .image import Image
    from .spec import StrPath

__all__ = ["cached", "freeze", "remove", "stored"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_numbers = count(1)


def freeze(container: Container, *, name: str | None = None, pause: bool = True) -> Image:
    """``Container.snapshot``.

    Raises:
        SpecError: the image is a writable directory, which has no upper layer.
        ContainerClosed: the container does not run.
        ImageError: its tree is nested deeper than 256 directories.
        UnsupportedError: the cache's file system takes no ``user.*`` attributes.
        OSError: no space, or a file cannot be read.
    """
    from .image import Image

    image = container.image
    handle = container._running()
    if image.kind == "directory":
        raise SpecError(
            f"snapshot of {image.name}: the directory itself is written to, there is no upper layer"
        ).with_hint("use Image.from_dir(..., writable=False), whose writes go to a layer of their own")
    with ExitStack() as stack:
        root_fd, upper = _roots(container)
        stack.callback(os.close, root_fd)
        if upper is not None:
            stack.callback(os.close, upper)
        jobs = _jobs(handle.parts(), root_fd, upper, plain=image.kind in ("host", "empty"))
        with _new() as (directory, target):
            with _paused(container) if pause else nullcontext():
                frozen = _copied(container, jobs, target, directory)
            layer = _publish(directory, frozen.digest)
    if frozen.skipped:
        import warnings

        others = f" and {len(frozen.skipped) - 1} more" if len(frozen.skipped) > 1 else ""
        warnings.warn(f"snapshot: left out {frozen.skipped[0]}{others}: a device", UserWarning, stacklevel=3)
    kind = "host" if image.kind == "host" else "layers"
    label = name or f"{image.name}+{frozen.digest[:12]}"
    return Image(kind, (layer, *image.layers), label, image.env)


# Where it goes


def _store() -> str:
    from .cache import cache_dir

    return cache_dir("snapshots")


@contextmanager
def _new() -> Iterator[tuple[str, int]]:
    """A directory for a layer that is being made: its path, and a descriptor of its ``layer``.

    Locked while its maker lives; those of makers that were killed are removed by the next.
    """
    import fcntl

    store = _store()
    for entry in os.listdir(store):
        if entry.startswith(".new-"):
            _reclaim(os.path.join(store, entry))
    directory = os.path.join(store, f".new-{os.getpid()}-{next(_numbers)}")
    os.mkdir(directory, 0o700)
    lock = os.open(directory, _DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.mkdir("layer", 0o755, dir_fd=lock)
        target = os.open("layer", _DIRECTORY, dir_fd=lock)
        try:
            yield directory, target
        finally:
            os.close(target)
    finally:
        _wipe(directory)
        os.close(lock)


def keep(fill: Callable[[str], None], digest: str) -> Image:
    """An image of a layer that ``fill`` writes into the empty directory that it is given.

    Args:
        fill: what it raises is passed on, and nothing is left.
        digest: of the content, or of all that decides it: 40 hexadecimal digits.
    """
    from .image import Image

    with _new() as (directory, _):
        fill(os.path.join(directory, "layer"))
        return Image("layers", [_publish(directory, digest)])


def _reclaim(directory: str) -> None:
    import fcntl

    with suppress(OSError):
        lock = os.open(directory, _DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.listdir(lock):  # its maker locks it before it puts anything in
                _wipe(directory)
        finally:
            os.close(lock)


def _publish(directory: str, digest: str) -> str:
    """Under its name; if another was faster, that one's layer: their content is the same."""
    final = os.path.join(_store(), digest[:40])
    try:
        os.rename(directory, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    return os.path.join(final, "layer")


def _wipe(path: str) -> None:
    """Removes a tree of ours, also where its directories have no permissions."""
    import shutil

    with suppress(OSError):
        for _, names, _, fd in os.fwalk(path):
            for name in names:
                if modes.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.chmod(name, 0o700, dir_fd=fd)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def stored() -> list[str]:
    """The layers in the cache, as paths: those of every snapshot that was not removed."""
    store = _store()
    return sorted(os.path.join(store, each, "layer") for each in os.listdir(store) if _named(each))


def _named(entry: str) -> bool:
    return len(entry) == 40 and not entry.strip("0123456789abcdef")


def remove(image: Image) -> None:
    """``Image.remove``.

    Raises:
        SpecError: it is no snapshot of this cache.
    """
    store = _store()
    layer = image.layers[0] if image.layers else ""
    directory, name = os.path.split(layer)
    if name != "layer" or os.path.dirname(directory) != store or not _named(os.path.basename(directory)):
        raise SpecError(f"remove {image.name}: it is no snapshot in {store}, and nothing of ours to remove")
    discard(directory)


def discard(directory: str) -> None:
    """Removes a snapshot's directory, whichever cache it is in.

    It is out of sight at once: a container that is being started from it sees all or nothing.
    """
    aside = os.path.join(os.path.dirname(directory), f".new-{os.getpid()}-{next(_numbers)}")
    with suppress(FileNotFoundError):
        os.rename(directory, aside)
        _wipe(aside)


def cached(inputs: Iterable[object], build: Callable[[], Image]) -> Image:
    """The image that was built from these inputs, or builds it: one builder, however many want it.

    Kept in the cache until ``Image.remove``. Processes that come while it is being built wait for it.

    Args:
        inputs: what decides the content: ``os.PathLike`` stands for the file's content (of a directory, all
            files below), everything else for its ``repr``.
        build: makes it; it should end in ``return container.snapshot()``.

    Raises:
        What ``build`` raises; the next caller then tries again.
    """
    from .cache import cache_dir

    return noted(os.path.join(cache_dir("snapshots", "built"), key_of(inputs)), build)


def noted(path: StrPath, build: Callable[[], Image]) -> Image:
    """As :func:`cached`, in a file of one's own: the image it names, or builds one and notes it there."""
    import fcntl

    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        image = read_note(file.read())
        if image is None or not all(os.path.isdir(layer) for layer in image.layers):
            image = build()
            file.truncate(0)
            file.write(json.dumps(image.__reduce__()[1]))
    return image


def read_note(text: str) -> Image | None:
    """The image that :func:`noted` wrote down; None if it did not come to that."""
    from .image import Image

    try:
        kind, layers, name, env = json.loads(text)
    except ValueError:
        return None
    return Image(kind, layers, name, [tuple(pair) for pair in env])


def key_of(inputs: Iterable[object]) -> str:
    """A digest of the inputs, as :func:`cached` understands them."""
    digest = hashlib.sha256()
    for each in inputs:
        digest.update(repr(each).encode(errors="surrogateescape") + b"\0")
        if isinstance(each, os.PathLike):
            for path in _below(os.fspath(each)):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
                digest.update(os.fsencode(path) + b"\0" + content)
    return digest.hexdigest()[:40]


def _below(path: Any) -> list[Any]:
    if not os.path.isdir(path):
        return [path]
    found = (os.path.join(top, name) for top, _, names in os.walk(path) for name in names)
    return sorted(each for each in found if os.path.isfile(each))


def _roots(container: Container) -> tuple[int, int | None]:
    """Descriptors of the root directory and the upper layers: from PID 1, which a freezer stops, too."""
    if not container._paused:
        return container._running().root()
    container.resume()
    try:
        return container._running().root()
    finally:
        container.pause()


@contextmanager
def _paused(container: Container) -> Iterator[None]:
    """Nothing changes while it is copied. One that was paused before stays so."""
    if container._paused:
        yield
        return
    container.pause()
    try:
        yield
    finally:
        container.resume()


# What is to be copied


def _jobs(parts: list[Any], root: int, upper: int | None, *, plain: bool) -> list[dict[str, Any]]:
    """A list of trees, as plain data: it may have to go to another process."""
    mounts = [path for kind, path, *_ in parts if kind == "mount"]
    own = [path for kind, path, *_ in parts if kind == "our file"]
    jobs: list[dict[str, Any]] = []
    if plain:
        made = {
            path: (kind, text.hex())
            for kind, path, _, _, _, text in parts
            if path and not kind.startswith("our ") and kind != "overlay"
        }
        made |= {path: ("mount", "") for kind, path, *_ in parts if kind == "overlay" and path}
        jobs.append({"kind": "plain", "fd": root, "made": made})
    for kind, path, below, lowers, precreated, _ in parts:
        if kind == "overlay" and upper is not None:
            lower = _mode(lowers[0]) if lowers and path else None
            jobs.append({
                "kind": "upper", "fd": upper, "below": below, "at": path, "drop": own, "mode": lower,
                "empty": [os.path.join(path, each) for each in precreated] + mounts,
            })  # fmt: skip
    return jobs


def _mode(path: str) -> int | None:
    try:
        return modes.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _copied(container: Container, jobs: list[dict[str, Any]], target: int, directory: str) -> Frozen:
    """By this process, or where it may not read a file, by one in the container's user namespace."""
    try:
        return copy(jobs, target, owners=os.geteuid() == 0)
    except PermissionError:
        if os.geteuid() == 0 or "user" not in container.spec.namespaces:
            raise
    for entry in os.listdir(target):
        _wipe(os.path.join(directory, "layer", entry))
    from .changes import as_root_inside

    fds = sorted({job["fd"] for job in jobs} | {target})
    kind, result = as_root_inside(container, _SCRIPT, [jobs, target], pass_fds=fds)
    if kind == "image":
        raise ImageError(result)
    if kind == "refused":
        raise OSError(*result)
    return Frozen(*result)


_SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from r2d2 import frozen
from r2d2.errors import ImageError
try:
    answer = ("done", frozen.copy(*json.load(sys.stdin), owners=False))
except ImageError as error:
    answer = ("image", str(error))
except OSError as error:
    answer = ("refused", (error.errno, error.strerror or str(error), error.filename))
print(json.dumps(answer))
"""
