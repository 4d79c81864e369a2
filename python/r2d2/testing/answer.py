"""What the fork of an isolated test says to its parent: messages of plain data, through a pipe."""

from __future__ import annotations

import json
import marshal
import os
import signal
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


class Answer:
    """What came back from the fork; reports and warnings go to ``deliver``. An error of that is kept."""

    def __init__(self, deliver: Callable[[str, dict[str, Any]], None]) -> None:
        self._deliver = deliver
        self.raised: Exception | None = None
        self.left: list[str] = []
        self.refused: str | None = None
        self.exit: tuple[str, int | None] | None = None
        self.complete = False
        self.status: int | None = None

    def take(self, kind: str, value: Any) -> None:
        """One message."""
        if kind in ("report", "warning"):
            self._hand_over(kind, value)
        elif kind == "left":
            self.left = value
        elif kind == "refused":
            self.refused = value
        elif kind == "exit":
            self.exit = (value[0], value[1])
        elif kind == "complete":
            self.complete = True

    def _hand_over(self, kind: str, value: dict[str, Any]) -> None:
        if self.raised is None:
            try:
                self._deliver(kind, value)
            except pytest.exit.Exception:
                raise
            except Exception as error:  # noqa: BLE001 - for later: the fork runs on
                self.raised = error

    def crash(self) -> str:
        """How the test's process ended, when it should not have."""
        if self.status is None:
            return "the isolated test's process vanished"
        code = os.waitstatus_to_exitcode(self.status)
        if code >= 0:
            return f"the isolated test's process exited with status {code}"
        return f"the isolated test's process was killed by {signal.Signals(-code).name}"


def parse(data: bytearray, answer: Answer) -> None:
    """Takes the messages that are complete out of ``data``."""
    while len(data) >= 8 and len(data) >= (end := 8 + struct.unpack_from("=Q", data)[0]):
        answer.take(*marshal.loads(data[8:end]))  # noqa: S302 - data alone, of a fork of ours
        del data[:end]


def tell(writing: int, kind: str, value: Any) -> None:
    """Writes a message."""
    try:
        data = marshal.dumps((kind, value))
    except ValueError:  # somebody's object, as a user property of the test
        data = marshal.dumps((kind, json.loads(json.dumps(value, default=str))))
    data = struct.pack("=Q", len(data)) + data
    while data:
        data = data[os.write(writing, data) :]
