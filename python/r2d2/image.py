"""Where a container's root directory comes from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import ImageError, ImageNotFound, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .spec import StrPath


class Image:
    """The read-only part of a container's file system.

    Immutable, comparable, picklable; shared by any number of containers at once.

    Use one of the constructors: :meth:`host`, :meth:`minimal`, :meth:`from_packages`, :meth:`from_dir`,
    :meth:`scratch`; or ``Container.snapshot``.

    Attributes:
        kind: ``"host"``, ``"layers"``, ``"empty"`` or ``"directory"``.
        layers: its directories on the host, top first; of a ``"host"`` image, the snapshots above it.
        name: for people.
        env: variables that programs of this image expect.
    """

    __slots__ = ("env", "kind", "layers", "name")

    kind: str
    layers: tuple[str, ...]
    name: str
    env: tuple[tuple[str, str], ...]

    def __init__(
        self,
        kind: str,
        layers: Iterable[str] = (),
        name: str = "",
        env: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        pairs = env.items() if hasattr(env, "items") else env
        for slot, value in (
            ("kind", kind),
            ("layers", tuple(layers)),
            ("name", name or kind),
            ("env", tuple(pairs)),
        ):
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Image is immutable")

    def __reduce__(self) -> tuple[object, ...]:
        return (Image, (self.kind, self.layers, self.name, self.env))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.__reduce__()[1] == other.__reduce__()[1]

    def __hash__(self) -> int:
        return hash(self.__reduce__()[1])

    def __repr__(self) -> str:
        return f"<r2d2.Image {self.name}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.image(self)

    def remove(self) -> None:
        """Removes a snapshot's own layer from the cache; those below it stay. Fine if it is gone already.

        The caller sees to it that no container of it, or of a snapshot made from it, runs or will run.

        Raises:
            SpecError: it is no snapshot of this cache (``R2D2_CACHE``).
        """
        from .snapshot import remove

        remove(self)

    @classmethod
    def host(cls) -> Image:
        """The machine's own tree: every program there, nothing copied, writes private to each container.

        Source: the layout of overlays is described in ``src/overlay/layout.rs``.
        """
        return cls("host", env=[("PATH", os.environ.get("PATH", os.defpath))])

    @classmethod
    def scratch(cls) -> Image:
        """Nothing but what every container gets (/proc, /dev, /sys): for static programs copied in."""
        return cls("empty", name="scratch")

    @classmethod
    def from_dir(cls, path: StrPath | Iterable[StrPath], *, writable: bool = False) -> Image:
        """A directory that holds a root file system, or several, top first.

        Args:
            path: the directory, or the layers of an overlay, top first (at most 499).
            writable: write into the directory itself instead of a private upper layer (one directory only).

        Raises:
            ImageNotFound: there is no such directory.
            ImageError: it is not a directory.
        """
        single = isinstance(path, str | os.PathLike)
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not paths:
            raise SpecError("from_dir: no directory given; for an empty root use Image.scratch()")
        layers = []
        for each in paths:
            layer = os.path.abspath(os.path.expanduser(each))
            if not os.path.lexists(layer):
                raise ImageNotFound(f"{layer}: there is no such directory").with_hint(
                    "Image.minimal(programs) builds a root file system from this machine's own programs"
                )
            if not os.path.isdir(layer):
                raise ImageError(f"{layer}: an image must be a directory")
            layers.append(layer)
        if writable and len(layers) > 1:
            raise SpecError("from_dir(writable=True): one directory only")
        name = layers[0] if single else f"{layers[0]} and {len(layers) - 1} more"
        return cls("directory" if writable else "layers", layers, name)

    @classmethod
    def minimal(cls, programs: Iterable[StrPath] = (), *, busybox: bool | None = None) -> Image:
        """A root file system of this machine's programs, each with exactly what its ELF file asks for.

        Built once and kept in the cache (``R2D2_CACHE``, else ``$XDG_CACHE_HOME/r2d2``, else
        ``~/.cache/r2d2``, else ``/var/tmp/r2d2-UID``); built again when one of the files changes.

        Args:
            programs: names (looked up in PATH) or absolute paths.
            busybox: also install busybox and links for all of its applets; None: if this machine has it. A
                program that is asked for by name takes precedence over the applet.

        Raises:
            ImageNotFound: a program, or a library that it needs, is not on this machine.
        """
        from . import chroot
        from .cache import cache_dir

        if isinstance(programs, str):
            raise SpecError(f"minimal({programs!r}): a list of programs, not one string")
        names = [os.fspath(program) for program in programs]
        if busybox is None:
            busybox = not names or any(
                os.access(os.path.join(directory, "busybox"), os.X_OK) for directory in os.get_exec_path()
            )
        layer = chroot.build_minimal(cache_dir("minimal"), names, busybox=busybox, etc=True)
        return cls("layers", [layer], f"minimal({', '.join(names)})")

    @classmethod
    def from_packages(cls, packages: Iterable[StrPath], *, documentation: bool = False) -> Image:
        """A root file system of Debian packages with all that they depend on, offline.

        Built once and kept in the cache, as a snapshot's layer, until ``remove()``; built again when one of
        the files changes. Maintainer scripts are not run; `r2d2.packages` says what is made in their place,
        and ``r2d2.packages.contents(image)`` what is in it and what this user could not read.

        Args:
            packages: names of packages that are installed here, such as ``"redis-server"``, and paths of
                .deb files, which take precedence. Essential packages of this machine are always in it.
            documentation: with /usr/share/doc, man, info.

        Raises:
            ImageNotFound: a package, or one that is needed, is neither installed nor given.
            ImageError: a .deb file is damaged, or would write outside of the image.
            UnsupportedError: a .deb file is compressed in a way that this machine cannot read.
        """
        from .packages import build

        return build(packages, documentation=documentation)


def image_of(value: Image | str | os.PathLike[str]) -> Image:
    """An image, or ``"host"``, ``"minimal"``, ``"scratch"``, or the path of a directory."""
    if isinstance(value, Image):
        return value
    if value == "host":
        return Image.host()
    if value == "minimal":
        return Image.minimal()
    if value == "scratch":
        return Image.scratch()
    if isinstance(value, os.PathLike) or os.sep in value or value in (".", ".."):
        return Image.from_dir(value)
    raise ImageNotFound(f"image {value!r}: there is none of this name").with_hint(
        "images are 'host', 'minimal', 'scratch', a directory such as './rootfs', or an r2d2.Image"
    )
