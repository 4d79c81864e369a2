"""Values as bytes that a hostile sender cannot turn into code.

``Container.call`` sends results through it. Pickle can name any function of the reader; this format can only
name the types of a fixed table, and builds each from plain data. What it carries: None, bool, int, float,
complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, slice, Ellipsis; of collections
OrderedDict, Counter and deque; array.array; datetime, date, time, timedelta, timezone and ZoneInfo; Decimal,
Fraction, UUID, paths, IP addresses and networks; built-in exceptions; and dataclasses, named tuples and
enums of classes that the reader allows.

Two names for one object become two objects. The module is sent into containers as source, so it imports
nothing of r2d2 and nothing at its head but the standard library.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CodecError", "UnknownClassError", "decode", "encode", "qualified"]

#: Containers in containers.
MAX_DEPTH = 200


class CodecError(ValueError):
    """A value that cannot be sent, or bytes that are no value."""


class UnknownClassError(CodecError):
    """An object of a class that the reader did not allow."""


def qualified(cls: type) -> str:
    """How a class is named: ``module:qualname``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _table() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:  # noqa: C901 - a table
    """By qualified name: to plain data, and back. Only of modules that are loaded or harmless to load."""
    import array
    import collections
    import datetime as dt
    import decimal
    import fractions
    import ipaddress
    import pathlib
    import uuid

    def spread(cls: Any) -> Callable[[Any], Any]:
        return lambda data: cls(*data)

    def fraction(data: Any) -> Any:
        if [type(part) for part in data] != [int, int]:  # a string such as 1e999999999 would take for ever
            raise CodecError("not a value: a fraction of no ints")
        return fractions.Fraction(*data)

    def moment(value: Any) -> Any:
        data = [
            getattr(value, part) for part in ("hour", "minute", "second", "microsecond", "tzinfo", "fold")
        ]
        return [value.year, value.month, value.day, *data] if isinstance(value, dt.date) else data

    def unmoment(cls: Any) -> Callable[[Any], Any]:
        return lambda data: cls(*data[:-1], fold=data[-1])

    def zone(value: Any) -> Any:
        return [value.utcoffset(None), value.tzname(None)]

    def zoneinfo(key: str) -> Any:
        from zoneinfo import ZoneInfo

        return ZoneInfo(key)

    def day(value: Any) -> Any:
        return [value.year, value.month, value.day]

    def pairs(value: Any) -> Any:
        return list(value.items())

    def numbers(value: Any) -> Any:
        return [value.typecode, value.tobytes()]

    def unnumbers(data: Any) -> Any:
        made = array.array(data[0])
        made.frombytes(data[1])
        return made

    table: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        qualified(range): (lambda v: [v.start, v.stop, v.step], spread(range)),
        qualified(slice): (lambda v: [v.start, v.stop, v.step], spread(slice)),
        qualified(type(Ellipsis)): (lambda v: None, lambda data: Ellipsis),
        qualified(type(NotImplemented)): (lambda v: None, lambda data: NotImplemented),
        qualified(collections.OrderedDict): (pairs, collections.OrderedDict),
        qualified(collections.Counter): (dict, lambda data: collections.Counter(dict(data))),
        qualified(collections.deque): (lambda v: [list(v), v.maxlen], spread(collections.deque)),
        qualified(array.array): (numbers, unnumbers),
        qualified(dt.datetime): (moment, unmoment(dt.datetime)),
        qualified(dt.time): (moment, unmoment(dt.time)),
        qualified(dt.date): (day, spread(dt.date)),
        qualified(dt.timedelta): (
            lambda v: [v.days, v.seconds, v.microseconds],
            spread(dt.timedelta),
        ),
        qualified(dt.timezone): (zone, spread(dt.timezone)),
        "zoneinfo:ZoneInfo": (lambda v: v.key, zoneinfo),
        qualified(decimal.Decimal): (str, decimal.Decimal),
        qualified(fractions.Fraction): (lambda v: [v.numerator, v.denominator], fraction),
        qualified(uuid.UUID): (lambda v: v.bytes, lambda data: uuid.UUID(bytes=data)),
    }
    for path in (pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath):
        table[qualified(path)] = (str, path)
    for kind in ("Address", "Network", "Interface"):
        for version in ("IPv4", "IPv6"):
            cls = getattr(ipaddress, version + kind)
            table[qualified(cls)] = (str, cls)
    return table


_cached: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


def _types() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    if not _cached:
        _cached.update(_table())
    return _cached


# Writing


def encode(value: Any) -> bytes:
    """The value as bytes.

    Raises:
        CodecError: it holds something that the format does not carry, which the message names.
    """
    out: list[bytes] = []
    _write(value, out, "result", 0)
    return b"".join(out)


def _sized(tag: bytes, data: bytes, out: list[bytes]) -> None:
    out.append(tag + struct.pack("<Q", len(data)))
    out.append(data)


def _write(value: Any, out: list[bytes], where: str, depth: int) -> None:  # noqa: C901, PLR0912 - one case a type
    if depth > MAX_DEPTH:
        raise CodecError(
            f"{where}: more than {MAX_DEPTH} containers in one another, or one that contains itself"
        )
    kind = type(value)
    if value is None:
        out.append(b"N")
    elif kind is bool:
        out.append(b"T" if value else b"F")
    elif kind is int:
        _sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True), out)
    elif kind is float:
        out.append(b"f" + struct.pack("<d", value))
    elif kind is complex:
        out.append(b"c" + struct.pack("<dd", value.real, value.imag))
    elif kind is str:
        _sized(b"s", value.encode("utf-8", "surrogatepass"), out)
    elif kind is bytes:
        _sized(b"b", value, out)
    elif kind is bytearray:
        _sized(b"B", bytes(value), out)
    elif kind is list and len(value) > 16 and _packed(value, out):
        pass
    elif kind in (list, tuple, set, frozenset):
        tag = {"list": b"l", "tuple": b"t", "set": b"S", "frozenset": b"Z"}[kind.__name__]
        out.append(tag + struct.pack("<Q", len(value)))
        for i, item in enumerate(value):
            _write(item, out, f"{where}[{i}]" if kind in (list, tuple) else where, depth + 1)
    elif kind is dict:
        out.append(b"d" + struct.pack("<Q", len(value)))
        for key, item in value.items():
            _write(key, out, f"{where}'s key {key!r:.60}", depth + 1)
            _write(item, out, f"{where}[{key!r:.60}]", depth + 1)
    else:
        _write_object(value, kind, out, where, depth)


def _packed(value: list[Any], out: list[bytes]) -> bool:
    """A list of nothing but floats, or of nothing but 64-bit ints, in one piece."""
    kinds = set(map(type, value))
    try:
        if kinds == {int}:
            _sized(b"q", struct.pack(f"<{len(value)}q", *value), out)
        elif kinds == {float}:
            _sized(b"g", struct.pack(f"<{len(value)}d", *value), out)
        else:
            return False
    except struct.error:  # an int of more than 64 bits
        return False
    return True


def _write_object(value: Any, kind: type, out: list[bytes], where: str, depth: int) -> None:
    name = qualified(kind)
    if name in _types():
        tag, data = b"x", _types()[name][0](value)
    elif isinstance(value, BaseException) and kind.__module__ == "builtins":
        tag, data = b"e", list(value.__reduce__()[1])
    elif (shape := _shape(value)) is not None:
        tag, data = b"o", list(shape)
    else:
        raise CodecError(f"{where} is a {kind.__module__}.{kind.__qualname__}")
    _sized(tag, name.encode(), out)
    _write(data, out, where, depth + 1)


def _shape(value: Any) -> tuple[str, Any] | None:
    """An object that is nothing but its fields."""
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return "fields", {name: getattr(value, name) for name in fields if hasattr(value, name)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "tuple", list(value)
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return "member", value.name
    return None


# Reading


def decode(data: bytes | bytearray | memoryview, allow: Iterable[type] = ()) -> Any:
    """The value that ``encode`` was given; it is safe to hand it bytes from anybody.

    Args:
        data: the bytes.
        allow: classes whose instances may be among it: dataclasses, named tuples, enums, exceptions. Their
            ``__init__`` is not called.

    Raises:
        UnknownClassError: an object of another class.
        CodecError: no such value.
    """
    reader = _Reader(memoryview(data), {qualified(cls): cls for cls in allow})
    try:
        value = reader.read(0)
    except CodecError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise CodecError(f"not a value: {error}") from error
    if reader.at != len(reader.data):
        raise CodecError("not a value: more bytes than it has")
    return value


class _Reader:
    def __init__(self, data: memoryview, allow: dict[str, type]) -> None:
        self.data = data
        self.at = 0
        self.allow = allow

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise CodecError("not a value: it ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def size(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def read(self, depth: int) -> Any:  # noqa: PLR0911 - one case a tag
        if depth > 2 * MAX_DEPTH + 4:
            raise CodecError("not a value: too deep")
        tag = bytes(self.take(1))
        if tag in b"NTF":
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag == b"f":
            return struct.unpack("<d", self.take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack("<dd", self.take(16)))
        size = self.size()
        if tag in b"isbBqg":
            return self.plain(tag, self.take(size))
        if tag in b"ltSZd":
            if size > len(self.data) - self.at:  # each item has a byte at least
                raise CodecError("not a value: it ends early")
            if tag == b"d":
                return {self.read(depth + 1): self.read(depth + 1) for _ in range(size)}
            items = [self.read(depth + 1) for _ in range(size)]
            return items if tag == b"l" else {b"t": tuple, b"S": set, b"Z": frozenset}[tag](items)
        if tag in b"xeo":
            name = bytes(self.take(size)).decode()
            return self.object(tag, name, self.read(depth + 1))
        raise CodecError(f"not a value: tag {tag!r}")

    @staticmethod
    def plain(tag: bytes, data: memoryview) -> Any:
        if tag == b"i":
            return int.from_bytes(data, "little", signed=True)
        if tag == b"s":
            return str(data, "utf-8", "surrogatepass")
        if tag == b"b":
            return bytes(data)
        if tag == b"B":
            return bytearray(data)
        return list(struct.unpack(f"<{len(data) // 8}{'q' if tag == b'q' else 'd'}", data))

    def object(self, tag: bytes, name: str, data: Any) -> Any:
        if tag == b"x":
            if name not in _types():
                raise CodecError(f"not a value: type {name!r:.100}")
            return _types()[name][1](data)
        if tag == b"e":
            return exception(name, data, self.allow)
        cls = self.allow.get(name)
        if cls is None:
            raise UnknownClassError(f"an object of the class {name.replace(':', '.'):.200}")
        return _build(cls, *data)


def exception(name: str, args: Any, allow: dict[str, type]) -> BaseException:
    """An exception of a built-in or allowed class; never one that would end the reader."""
    import builtins

    module, _, plain = name.partition(":")
    cls = allow.get(name) or (getattr(builtins, plain, None) if module == "builtins" else None)
    if not isinstance(cls, type) or not issubclass(cls, Exception) or issubclass(cls, BaseExceptionGroup):
        raise UnknownClassError(f"an exception of the class {name.replace(':', '.'):.200}")
    if name in allow and module != "builtins":
        made = cls.__new__(cls, *args)
        made.args = tuple(args)
        return made
    return cls(*args)


def _build(cls: Any, shape: str, data: Any) -> Any:
    """An instance of an allowed class, from its fields."""
    fields = getattr(cls, "__dataclass_fields__", None)
    if shape == "fields" and fields is not None and isinstance(data, dict):
        made = object.__new__(cls)
        for name, value in data.items():
            if name not in fields:
                raise CodecError(f"not a value: {cls.__name__} has no field {name!r:.60}")
            object.__setattr__(made, name, value)
        return made
    if shape == "tuple" and issubclass(cls, tuple) and hasattr(cls, "_make"):
        return cls._make(data)
    if shape == "member" and hasattr(cls, "__members__"):
        return cls.__members__[data]
    raise CodecError(f"not a value: {cls.__name__} is none of dataclass, named tuple, enum")
