"""Blocks of a pcapng file (IETF draft-ietf-opsawg-pcapng) as the engine writes them."""

from __future__ import annotations

import struct
from typing import NamedTuple

INTERFACE = 1
PACKET = 6

_RECEIVED = 1


class Frame(NamedTuple):
    """An Enhanced Packet Block (§4.3).

    Attributes:
        interface: the number of its Interface Description Block in the file, from 0.
        time: seconds since 1970.
        received: the interface received it; it sent it otherwise.
        data: the frame from its Ethernet header on, as far as it was kept.
        length: how long it was.
    """

    interface: int
    time: float
    received: bool
    data: bytes
    length: int


def frame(body: bytes) -> Frame:
    """A packet, from what is between the block's lengths; little endian, times in microseconds."""
    interface, high, low, kept, length = struct.unpack_from("<5I", body)
    flags = 20 + (kept + 3 & ~3) + 4  # the first option's value
    return Frame(interface, (high << 32 | low) / 1e6, body[flags] == _RECEIVED, body[20 : 20 + kept], length)


def interface_name(body: bytes) -> str:
    """An interface's name, which is its first option."""
    size = int.from_bytes(body[10:12], "little")
    return body[12 : 12 + size].decode()
