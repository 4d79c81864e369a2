"""Makes the containers of tests: for the fixtures ``container`` and ``container_factory``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from . import plugin
from .recorded import Recorded

if TYPE_CHECKING:
    from r2d2 import Container

#: How many tests a container may be started ahead.
_NEAR = 4
_positions = pytest.StashKey[dict[pytest.Item, int]]()


class Factory:
    """Makes containers that end with the fixture."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.containers: list[Recorded] = []
        #: Whether one may be made before its test, and end after it.
        self._ahead = (
            request.scope == "function" and request.config.getini("r2d2_ahead") and not plugin.forked()
        )
        if plugin.joins(plugin.keywords(request.node).get("network")):
            request.getfixturevalue("network")  # before the containers, to end after them

    def _new(self, image: Any, keywords: dict[str, Any]) -> Recorded:
        marked = keywords.pop("image", None)
        chosen = marked if image is None else image
        if chosen is None:
            chosen = self._request.getfixturevalue("r2d2_image")
        return Recorded(chosen, **keywords)

    def _keep(self, container: Recorded) -> Recorded:
        self.containers.append(container)
        self._request.node.stash.setdefault(plugin.recorded, []).append(container)
        return container

    def __call__(self, image: Any = None, **keywords: Any) -> Container:
        """``container_factory``."""
        keywords = plugin.keywords(self._request.node) | keywords
        if plugin.joins(keywords.get("network")):
            keywords["network"] = self._request.getfixturevalue("network")
        with plugin.refusals(self._request.config):
            return self._keep(self._new(image, keywords)).start()
        raise AssertionError  # refused: a skip or a failure was raised

    def first(self) -> Container:
        """The container of a test; then the next test's is begun, where that is asked for."""
        keywords = plugin.keywords(self._request.node)
        if not self._ahead or plugin.joins(keywords.get("network")):
            return self()
        from . import ahead

        with plugin.refusals(self._request.config):
            container = self._new(None, keywords)
            around = ahead.surroundings()
            if (ready := ahead.take(container, around)) is not None:
                container = self._keep(ready)
            else:
                self._keep(container).start()
        following = _following(self._request.node)
        ahead.prepare(
            None if following is None else lambda: self._new(None, plugin.keywords(following)), around
        )
        return container

    def _leave(self, container: Recorded) -> bool:
        if not self._ahead:
            return False
        from . import ahead

        return ahead.leave(self._request.node.nodeid, container)

    def close(self) -> None:
        """Ends them, the last one first."""
        failed = None
        node = self._request.node
        for container in reversed(self.containers):
            try:
                if not self._leave(container):
                    container.stop()
                for program in container.programs:
                    program.process.poll()  # it has ended, and is not to be taken for forgotten
            except Exception as error:  # noqa: BLE001 - the others end, too
                failed = error
            # What is left of it is a few descriptors, which go with the last reference.
            node.stash[plugin.recorded].remove(container)
        self.containers.clear()
        if failed is not None:
            raise failed


def _following(item: pytest.Item) -> pytest.Item | None:
    """The next of the coming tests that wants a container of its own, if it comes soon."""
    if item.stash.get(plugin.last, True):
        return None
    items = item.session.items
    positions = item.session.stash.get(_positions, {})
    if len(positions) != len(items):
        positions = item.session.stash[_positions] = {each: number for number, each in enumerate(items)}
    after = positions.get(item, len(items)) + 1
    return next((each for each in items[after : after + _NEAR] if plugin.wants_container(each)), None)
