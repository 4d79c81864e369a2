"""A detached container, as the ``Container`` that whoever finds it again works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _core, statedir
from .container import Container
from .errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from .explain import Explanation
    from .state import State


class _Reached:
    """A handle, and what only the starter's handle could tell."""

    def __init__(self, handle: _core.Handle, parts: Sequence[Any]) -> None:
        self._handle = handle
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def parts(self) -> Sequence[Any]:
        """What its root directory was made of."""
        return self._parts


class Attached(Container):
    """A ``Container`` whose end is not the container's."""

    def __init__(self, state: State, pidfd: int) -> None:
        super().__init__(state.image, name=state.name)
        self.spec = state.spec(self.spec)
        control = statedir.connect(state.name)
        try:
            handle: Any = _Reached(_core.attach(state.pid, pidfd, control.fileno()), state.parts())
            self._handle = handle
        finally:
            control.close()
        if state.kept.get("slirp") is not None:
            from .rejoined import rejoin

            self._network = rejoin(state)

    def stop(self) -> None:
        """Lets go of it."""
        self._closed = True
        if self._network is not None:
            self._network.close()

    close = stop

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        """Nothing: the container stays."""

    def pause(self) -> None:
        """Not from here: the cgroup that it takes would end with this process."""
        raise SpecError("pause: only the process that started a container can pause it")

    resume = pause

    def explain(self) -> Explanation:
        """The steps of its start; what each took is not known any more."""
        twin = Container(self.image)
        twin.spec = self.spec
        return twin.explain()
