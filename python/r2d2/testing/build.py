"""Images that tests provision: once for all workers of a run, told once if it fails (``r2d2_build``)."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from r2d2 import snapshot
from r2d2.errors import ImageError
from r2d2.image import image_of

from .seen import tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from r2d2.container import Container
    from r2d2.image import Image


class Builder:
    """The value of the fixture ``r2d2_build``."""

    def __init__(self, directory: Path, *, keep: bool) -> None:
        self._directory = directory
        self._keep = keep

    def __call__(
        self,
        base: Any,
        provision: Callable[[Container], Any],
        *inputs: object,
        **keywords: Any,
    ) -> Image:
        """The image.

        Args:
            base: as ``Container``'s image.
            provision: called with a running container of it.
            inputs: what else decides the content: paths stand for what is in the file.
            keywords: as ``Container``'s.

        Raises:
            ImageError: ``provision`` failed; the cause says how.
        """
        image = image_of(base)
        every = [image.__reduce__()[1], source(provision), sorted(keywords.items()), *inputs]
        key = snapshot.key_of(every)
        path = self._directory / key
        failed = path.with_suffix(".failed")

        def fresh() -> Image:
            from r2d2.container import Container

            with Container(image, **keywords) as container:
                provision(container)
                return container.snapshot()

        def build() -> Image:
            if failed.exists():
                raise _failure(key, f"failed before in this run: {failed.read_text()}", told=True)
            try:
                return snapshot.cached(["kept", key], fresh) if self._keep else fresh()
            except Exception as error:
                what = getattr(provision, "__qualname__", repr(provision))
                text = f"{what}: {type(error).__name__}: {error}"
                failed.write_text(text)
                problem = _failure(key, text)
                for name in ("stdout", "stderr"):
                    output = getattr(error, name, None)
                    if output:
                        problem.add_note(f"{name}: {tail(output, 40)}")
                raise problem from error

        return snapshot.noted(path, build)


def _failure(key: str, text: str, *, told: bool = False) -> ImageError:
    """What the plugin tells once; ``told`` by whoever built it, maybe in another worker."""
    error = ImageError(text)
    error.r2d2_build = key  # type: ignore[attr-defined]
    error.r2d2_told = told  # type: ignore[attr-defined]
    return error


def source(function: Any) -> str:
    """What a function does, for a key."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(getattr(function, "__qualname__", function))


def clean(directory: Path, *, keep: bool) -> None:
    """Removes the images that a run built, unless they are to be kept, and the notes about them."""
    import shutil

    for path in directory.iterdir():
        image = None if keep or path.suffix else snapshot.read_note(path.read_text())
        if image is not None:
            snapshot.discard(os.path.dirname(image.layers[0]))  # R2D2_CACHE may be another one by now
    shutil.rmtree(directory, ignore_errors=True)
