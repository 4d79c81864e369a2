"""``Container.call``: what goes in, what comes back, and what a hostile container can do about it."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import os
import pathlib
import pickle
import shutil
import signal
import socket
import struct
import sys
import sysconfig
import threading
import time
import traceback
import typing
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

import r2d2
from r2d2 import codec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def container() -> Iterator[r2d2.Container]:
    with r2d2.Container("host") as started:
        assert started.path("/").is_dir()  # what it opens once is open before anybody counts
        yield started


@dataclasses.dataclass
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list)


class Pair(typing.NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = 1


class OurError(Exception):
    pass


CONSTANT = 7


def helper(number: int) -> int:
    return number * CONSTANT


def with_helper(number: int, *, plus: int = 0) -> int:
    return helper(number) + plus


def test_a_function_runs_in_the_container(container: r2d2.Container) -> None:
    assert container.call(os.getpid) != os.getpid()
    assert container.call(socket.gethostname) == "r2d2"
    assert container.call(with_helper, 6, plus=1) == 43
    assert container.call(lambda x: [x, CONSTANT], "é") == ["é", 7]


def test_it_is_a_fresh_interpreter(container: r2d2.Container) -> None:
    secret = "s3cret"  # noqa: F841 - nothing of this frame goes there

    def look() -> tuple[bool, list[str], bool]:
        return "pytest" in sys.modules, sys.argv, os.path.dirname(__file__) in sys.path

    assert container.call(look) == (False, [""], False)
    assert "PYTEST_CURRENT_TEST" not in container.call(lambda: dict(os.environ))


def test_python_path_is_added_when_asked(container: r2d2.Container) -> None:
    assert "/some/where" not in container.call(lambda: sys.path)
    assert container.caller(python_path=["/some/where"])(lambda: sys.path)[0] == "/some/where"


def test_site_packages_are_reachable_in_the_host_image(container: r2d2.Container) -> None:
    if sys.prefix.startswith(("/tmp/", "/run/")):
        assert container.call(lambda: sys.prefix) != sys.prefix  # /tmp is private to the container
    else:
        assert container.call(lambda: __import__("pytest").__version__) == pytest.__version__


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1 << 70,
    -(1 << 63),
    1.5,
    float("inf"),
    1 - 2j,
    "",
    "é\udcff\0",
    b"\0\xff",
    bytearray(b"x"),
    [],
    [1, 2.5, "x", None],
    list(range(100)),
    [1 << 80] * 20,
    [0.1] * 50,
    (),
    (1, (2,)),
    {1, 2},
    frozenset("ab"),
    {"a": {1: [2]}, (1, 2): b""},
    range(1, 9, 2),
    slice(1, None),
    Ellipsis,
    NotImplemented,
    collections.OrderedDict(a=1, b=2),
    collections.Counter("abca"),
    collections.deque([1, 2], maxlen=3),
    array.array("d", [1.0, 2.0]),
    dt.datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=dt.UTC, fold=1),
    dt.date(2026, 1, 2),
    dt.time(1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=8), "CST")),
    dt.timedelta(1, 2, 3),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=5),
    pathlib.Path("/a b"),
    pathlib.PurePosixPath("x"),
    pathlib.PureWindowsPath("c:\\x"),
    ipaddress.ip_address("10.0.2.3"),
    ipaddress.ip_network("fd00::/64"),
]


def test_values_come_back_as_they_are(container: r2d2.Container) -> None:
    back = container.call(lambda values: values, VALUES)
    for sent, received in zip(VALUES, back, strict=True):
        assert received == sent
        assert type(received) is type(sent)


def test_objects_of_allowed_classes(container: r2d2.Container) -> None:
    sent = [Point(1, [2]), Pair(1, "x"), Colour.RED, OurError("a", 1)]
    values = container.caller(allow=[Point, Pair, Colour])(lambda values: values[:3], sent)
    assert values == sent[:3]
    assert [type(value) for value in values] == [Point, Pair, Colour]
    for value in sent[:3]:
        with pytest.raises(r2d2.CallError, match=type(value).__name__) as caught:
            container.call(lambda value: value, value)
        assert "allow=" in caught.value.hint


def test_trust_brings_anything_back(container: r2d2.Container) -> None:
    trusted = container.caller(trust=True)
    value = trusted(lambda: [Point(1), lambda: 5])
    assert value[0] == Point(1)
    assert value[1]() == 5
    with pytest.raises(OurError, match="text") as caught:
        trusted(raise_ours)
    assert "raise_ours" in str(caught.value.__cause__)


def raise_ours() -> None:
    raise OurError("text")


def raise_with_note() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/nothing here")
    error.add_note("a note")
    raise error


def test_exceptions_come_back_with_their_traceback(container: r2d2.Container) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        container.call(raise_with_note)
    assert caught.value.filename == "/nothing here"
    assert caught.value.__notes__ == ["a note"]
    text = "".join(traceback.format_exception(caught.value))
    assert "in raise_with_note" in text
    assert "direct cause" in text
    assert "<r2d2>" not in text
    with pytest.raises(r2d2.CallError, match=r"raised test_call\.OurError: text") as other:
        container.call(raise_ours)
    assert other.value.remote_class == "test_call.OurError"
    assert "raise OurError" in other.value.remote_traceback
    pickle.loads(pickle.dumps(other.value))
    with pytest.raises(OurError, match="text"):
        container.caller(allow=[OurError])(raise_ours)
    with pytest.raises(ZeroDivisionError):
        container.call(lambda: 1 / 0)


def test_what_ends_an_interpreter_does_not_end_this_one(container: r2d2.Container) -> None:
    with pytest.raises(r2d2.CallError, match=r"sys\.exit\(3\)"):
        container.call(sys.exit, 3)
    with pytest.raises(r2d2.CallError, match="KeyboardInterrupt"):
        container.call(raise_interrupt)
    with pytest.raises(r2d2.CallError, match="exit status 5 before"):
        container.call(os._exit, 5)
    with pytest.raises(r2d2.CallError, match="signal 11 before"):
        container.call(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert container.call(lambda: 1) == 1


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_sent_is_named(container: r2d2.Container) -> None:
    lock = threading.Lock()
    with pytest.raises(r2d2.SpecError, match=r"argument 2 of .*lambda.* cannot be pickled.*lock"):
        container.call(lambda *args: args, 1, lock)
    with pytest.raises(r2d2.SpecError, match="argument key= of"):
        container.call(with_helper, key=lock)

    def closure() -> object:
        return lock

    with pytest.raises(r2d2.SpecError, match=r"function .*closure cannot be pickled"):
        container.call(closure)
    with pytest.raises(r2d2.SpecError, match="not a function"):
        container.call(5)  # type: ignore[arg-type]


def test_what_cannot_come_back_is_named(container: r2d2.Container) -> None:
    with pytest.raises(r2d2.CallError, match=r"result\['a'\]\[1\] is a _thread\.lock"):
        container.call(lambda: {"a": [1, threading.Lock()]})
    with pytest.raises(r2d2.CallError, match="contains itself"):
        container.call(loop)
    with pytest.raises(r2d2.CallError, match="lock"):
        container.caller(trust=True)(threading.Lock)


def loop() -> list[object]:
    items: list[object] = []
    items.append(items)
    return items


def test_a_module_that_is_not_there(
    container: r2d2.Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "only_outside.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(package)
    import only_outside  # type: ignore[import-not-found]

    with pytest.raises(r2d2.CallError, match=r"could not be loaded in the container.*only_outside"):
        container.call(only_outside.f)
    del sys.modules["only_outside"]


def test_large_arguments_and_results(container: r2d2.Container) -> None:
    large = b"0123456789" * 10_000_000
    assert container.call(len, large) == 100_000_000
    assert container.call(bytes, 100_000_000) == bytes(100_000_000)
    with pytest.raises(r2d2.CallError, match="max_result"):
        container.caller(max_result=1000)(bytes, 1_000_000)


def test_streams_pass_through(
    container: r2d2.Container, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def talk() -> str:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        return sys.stdin.read()

    assert container.call(talk) == ""
    assert capfd.readouterr() == ("to stdout\n", "to stderr\n")
    with (tmp_path / "out").open("wb") as file:
        container.caller(stdout=file)(talk)
    assert (tmp_path / "out").read_text() == "to stdout\n"


def test_a_timeout_kills_what_was_started(container: r2d2.Container) -> None:
    def hang() -> None:
        os.system("sleep 987 & sleep 987")

    began = time.monotonic()
    with pytest.raises(r2d2.CommandTimeout, match="hang"):
        container.caller(timeout=1.5)(hang)
    assert time.monotonic() - began < 20
    deadline = time.monotonic() + 10
    while "987" in container.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline


def test_a_result_does_not_wait_for_a_daemon(container: r2d2.Container) -> None:
    """The answer's pipe is not inherited by programs; a fork that keeps it does not keep the caller."""

    def leave_a_fork() -> int:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        return 1

    began = time.monotonic()
    assert container.call(leave_a_fork) == 1
    assert time.monotonic() - began < 30


def test_from_many_threads(container: r2d2.Container) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(container.call(with_helper, n))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 7, 14, 21]


def test_user_env_and_cwd(container: r2d2.Container) -> None:
    caller = container.caller(env={"PATH": os.environ["PATH"], "A": "b"}, cwd="/usr")
    assert caller(lambda: (os.environ["A"], os.getcwd())) == ("b", "/usr")


def test_a_container_that_ends_meanwhile() -> None:
    with r2d2.Container("host") as container:
        threading.Timer(1.5, container.kill).start()
        with pytest.raises(r2d2.ContainerClosed, match="ended while sleep ran"):
            container.call(time.sleep, 60)
    with pytest.raises(r2d2.ContainerClosed):
        container.call(time.sleep, 0)


# Interpreters


def image_with(tmp_path: Path, python: str | None) -> r2d2.Image:
    root = tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox in PATH (Debian: busybox-static)"
    shutil.copy(busybox, root / "bin")
    for applet in ("sh", "cat", "printf", "dd"):
        (root / "bin" / applet).symlink_to("busybox")
    if python is not None:
        (root / "bin/python3").write_text(python)
        (root / "bin/python3").chmod(0o755)
    return r2d2.Image.from_dir(root)


def test_an_image_without_python(tmp_path: Path) -> None:
    with r2d2.Container(image_with(tmp_path, None)) as container:
        with pytest.raises(r2d2.ImageNotFound, match="no Python interpreter") as caught:
            container.call(os.getpid)
        assert isinstance(caught.value, LookupError)
        with pytest.raises(r2d2.ImageNotFound, match="/opt/python"):
            container.caller(python="/opt/python")(os.getpid)


def frame(letter: bytes, data: bytes) -> str:
    """As printf(1) writes it."""
    octal = "".join(f"\\{byte:03o}" for byte in letter + struct.pack("<Q", len(data)) + data)
    return f"printf '{octal}' >> /proc/self/fd/$5\n"


HERE = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}".encode()


def test_an_image_with_another_python(tmp_path: Path) -> None:
    python = "#!/bin/sh\n" + frame(b"H", b"cpython 3.9")
    with (
        r2d2.Container(image_with(tmp_path, python)) as container,
        pytest.raises(r2d2.ImageError, match=r"python3 is cpython 3\.9; this is"),
    ):
        container.call(os.getpid)


def test_a_broken_python(tmp_path: Path) -> None:
    with (
        r2d2.Container(image_with(tmp_path, "#!/bin/sh\nexit 9\n")) as container,
        pytest.raises(r2d2.ImageError, match="python3 ends with 9"),
    ):
        container.call(os.getpid)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("letter", [b"P", b"R", b"E", b"L", b"U", b"Z"])
def test_a_hostile_interpreter_cannot_run_code_here(letter: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    evil = pickle.dumps(Evil(mark))
    with r2d2.Container(
        image_with(tmp_path, "#!/bin/sh\n" + frame(b"H", HERE) + frame(letter, evil))
    ) as container:
        with pytest.raises(r2d2.CallError, match="no answer"):
            container.call(os.getpid)
        assert not mark.exists()
    if letter == b"P":  # the test's own proof: trusted, it does
        with (
            r2d2.Container(container.image) as container,
            pytest.raises(TypeError),
        ):
            container.caller(trust=True)(os.getpid)
        assert mark.exists()


@pytest.mark.parametrize("size", [1 << 62, 1 << 31])
def test_a_hostile_length_costs_nothing(size: int, tmp_path: Path) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in b"R" + struct.pack("<Q", size))
    python = "#!/bin/sh\n" + frame(b"H", HERE) + f"printf '{octal}xx' >> /proc/self/fd/$5\n"
    with (
        r2d2.Container(image_with(tmp_path, python)) as container,
        pytest.raises(r2d2.CallError, match="exit status 0"),
    ):
        container.call(os.getpid)


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    python = "#!/bin/sh\n" + frame(b"H", HERE) + "cat /dev/zero > /proc/self/fd/$5\n"
    with (
        r2d2.Container(image_with(tmp_path, python)) as container,
        pytest.raises(r2d2.CallError, match="max_result"),
    ):
        container.caller(max_result=1 << 20)(os.getpid)


def test_a_python_of_a_minimal_image() -> None:
    """Only the interpreter and its standard library: cloudpickle is sent along."""
    python = os.path.realpath(sys.executable)
    stdlib = sysconfig.get_paths()["stdlib"]
    mounts = [r2d2.Mount(stdlib, stdlib, readonly=True)]
    with r2d2.Container(r2d2.Image.minimal([python]), mounts=mounts) as container:
        caller = container.caller(python=python)
        assert caller(lambda: len([1, 2])) == 2
        with pytest.raises(KeyError):
            caller(lambda: {}["x"])


# The codec alone

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.uuids(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_codec_round_trip(value: Any) -> None:
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is type(value)


@settings(max_examples=500)
@given(st.binary(max_size=200), plain, st.integers(0, 10_000), st.integers(0, 255))
def test_codec_bears_any_bytes(junk: bytes, value: Any, place: int, byte: int) -> None:
    good = bytearray(codec.encode(value))
    good[place % len(good)] = byte
    for data in (junk, bytes(good), bytes(good)[: place % len(good)]):
        with contextlib.suppress(codec.CodecError):
            codec.decode(data)


def test_codec_bears_depth() -> None:
    deep = b"l" + struct.pack("<Q", 1)
    with pytest.raises(codec.CodecError):
        codec.decode(deep * 100_000 + b"N")
    value: list[Any] = []
    for _ in range(codec.MAX_DEPTH - 1):
        value = [value]
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("builtins:eval", ["1"]),
        ("os:system", ["true"]),
        ("fractions:Fraction", ["1e999999999", 1]),
        ("builtins:SystemExit", [1]),
        ("builtins:KeyboardInterrupt", []),
    ],
)
def test_codec_knows_no_other_names(name: str, data: Any) -> None:
    for tag in (b"x", b"e", b"o"):
        with pytest.raises(codec.CodecError):
            codec.decode(tag + struct.pack("<Q", len(name)) + name.encode() + codec.encode(data))
