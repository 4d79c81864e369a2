"""Containers that are kept ready: ``Pool``."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .closing import Closing
from .container import Container
from .errors import ContainerClosed, SpecError
from .image import image_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from .image import Image
    from .spec import StrPath

__all__ = ["Pool"]

#: Those that were started and not closed: their thread starts containers at any time.
open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool(Closing):
    r"""Keeps started containers ready, so that taking one costs nothing; each is used once.

    >>> with Pool("host", 2) as pool, pool.container() as c:
    ...     c.run(["hostname"], capture_output=True, text=True).stdout
    'r2d2\n'

    A thread of its own starts them; what fails there is raised by :meth:`take`. The pool ends with the
    process, and with it the containers that nobody took.

    Args:
        image: as ``Container``'s.
        size: how many are ready at most.
        warm: called with each container once it runs, before it counts as ready: to start a server in it.
        keywords: as ``Container``'s, except ``name``.

    Raises:
        SpecError: ``size`` is less than 1, or keywords that no container takes.
    """

    def __init__(
        self,
        image: Image | StrPath = "host",
        size: int = 2,
        *,
        warm: Callable[[Container], Any] | None = None,
        **keywords: Any,
    ) -> None:
        if size < 1:
            raise SpecError(f"Pool(size={size}): at least 1")
        if "name" in keywords:
            raise SpecError("Pool(name=...): containers of a pool have names of their own")
        self._image = image_of(image)
        self._keywords = keywords
        Container(self._image, **keywords)  # a mistake is to be found here
        self._warm = warm
        self.size = size
        self._ready: deque[Container] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> int:
        """How many are ready now."""
        return len(self._ready)

    def start(self) -> Self:
        """Begins to fill it; returns itself. :meth:`take` does it, too."""
        with self._changed:
            if self._closed:
                raise ContainerClosed("the pool was closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._fill, name="r2d2-pool", daemon=True)
                self._thread.start()
                open_pools.add(self)
        return self

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._error is None and len(self._ready) < self.size)
                )
                if self._closed:
                    return
            container = None
            try:
                container = Container(self._image, **self._keywords).start()
                if self._warm is not None:
                    self._warm(container)
            except BaseException as error:  # noqa: BLE001 - whoever takes the next one hears of it
                if container is not None:
                    container.stop()
                container = None
                failure = error
            with self._changed:
                if container is None:
                    self._error = failure
                elif not self._closed:
                    self._ready.append(container)
                    container = None
                self._changed.notify_all()
            if container is not None:
                container.stop()

    def take(self, timeout: float | None = None) -> Container:
        """A running container, now the caller's to stop.

        Raises:
            TimeoutError: none got ready in ``timeout`` seconds.
            ContainerClosed: the pool was closed.
            And what starting one, or ``warm``, raised; the next call tries again.
        """
        self.start()
        with self._changed:
            while True:
                in_time = self._changed.wait_for(
                    lambda: self._closed or bool(self._ready) or self._error is not None, timeout
                )
                if self._closed:
                    raise ContainerClosed("the pool was closed")
                if not in_time:
                    raise TimeoutError(f"no container of the pool got ready in {timeout} s")
                if self._ready:
                    container = self._ready.popleft()
                    self._changed.notify_all()
                    if container.running:
                        return container
                    container.stop()  # it was killed while it waited
                elif self._error is not None:
                    error, self._error = self._error, None
                    self._changed.notify_all()
                    raise error

    @contextmanager
    def container(self, timeout: float | None = None) -> Iterator[Container]:
        """:meth:`take`, and stops it in the end."""
        container = self.take(timeout)
        try:
            yield container
        finally:
            container.stop()

    def close(self) -> None:
        """Ends the containers that nobody took, and the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        open_pools.discard(self)
        if self._thread is not None:
            self._thread.join()
        while self._ready:
            self._ready.popleft().stop()

    def __enter__(self) -> Self:
        return self.start()

    def __repr__(self) -> str:
        return f"<r2d2.Pool {self._image.name} {self.ready} of {self.size} ready>"
