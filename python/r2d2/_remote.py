"""The far side of ``Container.call``: runs in a container, in a fresh interpreter, from its source.

It is given two descriptors. From the first it reads two pickles: what it needs (a dict), then the function
with its arguments. To the second it writes one answer: a letter, a length, and that many bytes.

| letter | bytes |
| --- | --- |
| ``R`` | the result, by ``codec`` |
| ``P`` | the result or exception, by cloudpickle: only where the caller trusts it |
| ``E`` | an exception, by ``codec``: a dict |
| ``L`` | the function could not be loaded: the same |
| ``U`` | the result cannot be sent: the same |
"""

from __future__ import annotations

import linecache
import os
import pickle
import struct
import sys
import types
from typing import Any


def module(name: str, source: str) -> types.ModuleType:
    """Makes a module that is importable from its source."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, made)
    made.__file__ = f"<{name}, sent by r2d2>"
    made.__package__ = parent or name
    made.__path__ = []
    exec(compile(source, made.__file__, "exec"), made.__dict__)  # noqa: S102 - the caller's own source
    return made


def answer(fd: int, letter: bytes, data: bytes) -> None:
    """Writes all of it."""
    with open(fd, "wb", closefd=False) as file:
        file.write(letter + struct.pack("<Q", len(data)))
        file.write(data)


def described(codec: Any, error: BaseException) -> bytes:
    """An exception as plain data."""
    import traceback

    kind = type(error)
    try:
        args = list(error.__reduce__()[1] if kind.__module__ == "builtins" else error.args)
        codec.encode(args)
    except Exception:  # noqa: BLE001 - an exception class may do anything
        args = None
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the same
        text = "(its __str__ failed)"
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == "<r2d2>":
        trace = trace.tb_next  # our own frames
    told: bytes = codec.encode(
        {
            "class": f"{kind.__module__}:{kind.__qualname__}",
            "args": args,
            "text": text,
            "traceback": "".join(traceback.format_exception(kind, error, trace)),
            "notes": [str(note) for note in getattr(error, "__notes__", [])],
        }
    )
    return told


def main(reading: int, writing: int) -> None:
    """Loads, calls, answers."""
    os.set_inheritable(writing, False)
    codec = None
    with open(reading, "rb") as file:
        given = pickle.load(file)  # noqa: S301 - from the caller, whom a container must trust
        sys.argv[:] = [""]
        sys.path[:0] = given["path"]
        linecache.cache.update({name: (0, None, lines, name) for name, lines in given["lines"].items()})
        for name, source in given["modules"].items():
            if name not in sys.modules:
                module(name, source)
        codec = sys.modules["r2d2_codec"]
        inner = vars(sys.modules["cloudpickle.cloudpickle"])
        vars(sys.modules["cloudpickle"]).update({k: v for k, v in inner.items() if not k.startswith("__")})
        try:
            function, args, keywords = pickle.load(file)  # noqa: S301 - the same
        except BaseException as error:  # noqa: BLE001 - all of it is told
            answer(writing, b"L", described(codec, error))
            return
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    trusted = given["trust"]
    try:
        result = function(*args, **keywords)
    except BaseException as error:  # noqa: BLE001 - all of it is told
        if trusted:
            import cloudpickle  # type: ignore[import-untyped]

            try:
                answer(writing, b"P", cloudpickle.dumps((False, error, described(codec, error))))
            except Exception:  # noqa: BLE001 - then it goes as plain data
                answer(writing, b"E", described(codec, error))
        else:
            answer(writing, b"E", described(codec, error))
        return
    try:
        if trusted:
            import cloudpickle

            data = cloudpickle.dumps((True, result, None))
        else:
            data = codec.encode(result)
    except BaseException as error:  # noqa: BLE001 - all of it is told
        answer(writing, b"U", described(codec, error))
        return
    answer(writing, b"P" if trusted else b"R", data)
