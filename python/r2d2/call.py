"""``Container.call``: a function of this interpreter, run in a container by a fresh one.

The function travels by cloudpickle (extra ``[call]``), with what it needs of the caller's own modules;
nothing of this interpreter is forked or shared. What comes back comes from inside a container and is not
believed: results are read by ``codec``, which can name no code. ``trust=True`` reads them by pickle instead,
which lets the container run anything *here*; that is for images and functions that are the caller's own.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from .codec import CodecError, UnknownClassError, decode, exception, qualified
from .errors import (
    CallError,
    CommandTimeout,
    ContainerClosed,
    ImageError,
    ImageNotFound,
    R2d2Error,
    RemoteTraceback,
    SetupNotFoundError,
    SetupPermissionError,
    SpecError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

    from .container import Container
    from .process import Process
    from .spec import StrPath

__all__ = ["Caller"]

#: Runs in whatever Python there is: tells its version, and goes on only if it is the right one.
_BOOT = """\
import os, struct, sys
name = getattr(getattr(sys, "implementation", None), "name", "cpython")
have = "%s %d.%d" % ((name,) + sys.version_info[:2])
data = have.encode("ascii")
os.write(int(sys.argv[2]), b"H" + struct.pack("<Q", len(data)) + data)
if have == sys.argv[3]:
    with open(int(sys.argv[1]), "rb", closefd=False, buffering=0) as file:
        source = file.read(int(sys.argv[4]))
    scope = {"__name__": "r2d2_remote"}
    exec(compile(source, "<r2d2>", "exec"), scope)
    scope["main"](int(sys.argv[1]), int(sys.argv[2]))
"""

_FRAME = struct.Struct("<cQ")
_PICKLING = threading.Lock()


class Caller:
    """Calls functions in a container; made by :meth:`Container.caller`.

    Args:
        container: where.
        timeout: seconds; then the interpreter and all that it started is killed.
        trust: read the result by pickle: any object, but the container can run code in this process.
        allow: classes of the caller's whose instances may come back: dataclasses, named tuples, enums,
            exceptions. python: the interpreter, a name or path inside; None finds it. python_path:
            directories inside that are put before ``sys.path``. max_result: bytes that may come back.
            **keywords: as :meth:`Container.popen`: user, env, cwd, stdin, stdout, stderr.
    """

    def __init__(
        self,
        container: Container,
        *,
        timeout: float | None = None,
        trust: bool = False,
        allow: Iterable[type] = (),
        python: StrPath | None = None,
        python_path: Iterable[StrPath] = (),
        max_result: int = 1 << 30,
        **keywords: Any,
    ) -> None:
        if isinstance(python_path, str | bytes):
            raise SpecError(f"python_path={python_path!r}: a list of directories, not one string")
        self._container = container
        self._timeout = timeout
        self._trust = trust
        self._allow = tuple(allow)
        self._python = python
        self._path = [os.fspath(path) for path in python_path]
        self._max = max_result
        self._keywords = {"stdin": subprocess.DEVNULL, **keywords}

    def __call__(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Calls ``function(*args, **keywords)`` in the container and returns what it returns.

        Raises:
            Exception: what the function raised, if its class is built in or allowed; its traceback is the
                cause. CallError: it raised something else, ended the interpreter, or returned what cannot be
                sent. CommandTimeout: (a subprocess.TimeoutExpired) its time was over. SpecError: the
                function or an argument cannot be pickled. ImageNotFound: (a LookupError) the image has no
                Python. ImageError: its Python is of another version than this one. ContainerClosed: the
                container does not run, or ended meanwhile. UnsupportedError: cloudpickle is not installed.
        """
        name = getattr(function, "__qualname__", None) or repr(function)
        if not callable(function):
            raise SpecError(f"call: {name} is not a function")
        self._container._running()
        data = _send(name, (function, args, keywords), self._path, trust=self._trust)
        try:
            code, frames = self._run(data.fd, data.size, name)
        finally:
            os.close(data.fd)
        for letter, payload in frames:
            if letter != b"H":
                return self._result(name, letter, payload)
        if code is None or not self._container.running:
            raise ContainerClosed(f"the container ended while {name} ran")
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        raise CallError(f"{name}: the interpreter ended {how} before the function returned")

    # Starting

    def _candidates(self) -> list[str]:
        if self._python is not None:
            return [os.fspath(self._python)]
        names = [f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python"]
        if self._container.image.kind == "host" and sys.executable:
            names.insert(0, sys.executable)
        return names

    def _run(self, fd: int, size: int, name: str) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        """The exit status (None: lost with the container) and answer of the first interpreter that fits."""
        want = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
        others = []
        for python in self._candidates():
            reading, writing = os.pipe()
            try:
                os.lseek(fd, 0, os.SEEK_SET)
                _widen(reading)
                args = [python, "-P", "-c", _BOOT, str(fd), str(writing), want, str(size)]
                process = self._container.popen(args, pass_fds=(fd, writing), tree=True, **self._keywords)
            except (SetupNotFoundError, SetupPermissionError) as error:
                os.close(reading)
                if error.syscall not in {None, "execve"}:
                    raise
                continue
            except BaseException:
                os.close(reading)
                raise
            finally:
                os.close(writing)
            try:
                with process:
                    frames = list(_frames(self._read(process, reading, name)))
            finally:
                os.close(reading)
            hello = next((payload for letter, payload in frames if letter == b"H"), None)
            have = None if hello is None else hello[:100].decode("ascii", "replace")
            if have == want or (have is None and not self._container.running):
                lost = process.returncode == -9 and process._usage == (0, 0, 0)  # PID 1 took it along
                return (None if lost else process.returncode), frames
            others.append(
                f"{python} ends with {process.returncode}" if have is None else f"{python} is {have}"
            )
        image = self._container.image.name
        if others:
            raise ImageError(
                f"image {image} has no Python that can run it: {', '.join(others)}; this is {want}"
            ).with_hint(
                "what cloudpickle writes is read by the same minor version only: use an image that has it"
            )
        looked = ", ".join(self._candidates())
        raise ImageNotFound(f"image {image} has no Python interpreter ({looked})").with_hint(
            "call() needs one of the same minor version inside: Image.host() has this one"
        )

    def _read(self, process: Process, reading: int, name: str) -> bytearray:
        """All that it answers, until it has ended."""
        import select
        import time

        os.set_blocking(reading, False)
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(process.fileno(), select.POLLIN)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        data = bytearray()
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = dict(poll.poll(None if left is None else left * 1000))
                if not ready and left == 0:
                    raise CommandTimeout(f"call {name}", self._timeout or 0)  # noqa: TRY301 - it is killed below
                if reading in ready and not _drain(reading, data, self._max + 4096):
                    poll.unregister(reading)
                if len(data) > self._max + 4096:
                    raise CallError(f"{name}: more than {self._max} bytes came back (max_result)")  # noqa: TRY301
                if process.fileno() in ready:
                    _drain(reading, data, self._max + 4096)
                    process.wait()
                    return data
        except BaseException:
            process.kill_tree()
            process.wait()
            raise

    # Ending

    def _result(self, name: str, letter: bytes, payload: bytes) -> Any:
        if letter == b"P" and self._trust:
            import pickle

            good, value, about = pickle.loads(payload)  # noqa: S301 - the caller said trust=True
            if good:
                return value
            raise value from RemoteTraceback(decode(about)["traceback"])
        try:
            if letter == b"R":
                return decode(payload, self._allow)
            about = decode(payload)
            told = {key: str(about[key]) for key in ("class", "text", "traceback")}
            args, notes = about["args"], [str(note) for note in about["notes"]]
        except UnknownClassError as error:
            raise CallError(f"{name} returned {error}, which is not read from a container").with_hint(
                "allow=[CLASS] for a dataclass, named tuple or enum; trust=True if the image is trusted"
            ) from None
        except (CodecError, LookupError, TypeError) as error:
            raise CallError(f"{name}: what came back is no answer: {error}") from None
        cause = RemoteTraceback(told["traceback"])
        if letter == b"E" and (raised := self._exception(told["class"], args)) is not None:
            for note in notes:
                raised.add_note(note)
            raise raised from cause
        raise _failure(name, letter, told) from cause

    def _exception(self, name: str, args: Any) -> BaseException | None:
        """The exception itself, if its class is known here and takes these arguments."""
        try:
            return exception(name, args, {qualified(cls): cls for cls in self._allow})
        except Exception:  # noqa: BLE001 - anything may be among the arguments
            return None


def _failure(name: str, letter: bytes, told: dict[str, str]) -> R2d2Error:
    """What is raised where the function's own exception cannot be."""
    told["class"] = told["class"].replace("builtins:", "").replace(":", ".")
    text = told["text"]
    if letter == b"L":
        return CallError(f"{name} could not be loaded in the container: {text}", told)
    if letter == b"U":
        return CallError(f"{name} returned what cannot be sent: {text}", told).with_hint(
            "return numbers, text, bytes, dates, paths and containers of them; or trust=True"
        )
    if letter != b"E":
        return CallError(f"{name}: what came back is no answer")
    if told["class"] == "SystemExit":
        return CallError(f"{name} called sys.exit({text})", told)
    return CallError(f"{name} raised {told['class']}: {text}", told)


def _drain(reading: int, data: bytearray, most: int) -> bool:
    """Reads what is there; false at the end."""
    while len(data) <= most:
        try:
            piece = os.read(reading, 1 << 20)
        except BlockingIOError:
            return True
        if not piece:
            return False
        data += piece
    return True


def _frames(data: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Letters and their bytes; what is cut off is not there."""
    at = 0
    view = memoryview(data)
    while len(data) - at >= _FRAME.size:
        letter, size = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if size > len(data) - at:
            return
        yield letter, bytes(view[at : at + size])
        at += size


def _widen(pipe: int) -> None:
    """A pipe of 1 MiB: a large result needs fewer turns."""
    import fcntl

    try:
        fcntl.fcntl(pipe, 1031, 1 << 20)  # F_SETPIPE_SZ
    except OSError:
        return  # more than this user may have


class _Sent:
    """A sealed memfd with the source of the far side, then two pickles."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size


def _send(name: str, call: tuple[Any, ...], path: list[str], *, trust: bool) -> _Sent:
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnsupportedError("call() needs cloudpickle, which is not installed").with_hint(
            "pip install 'r2d2-containers[call]'"
        ) from error
    import fcntl
    import pickle

    source = _source("_remote.py")
    modules = {"r2d2_codec": _source("codec.py").decode(), **_sources()}
    fd = os.memfd_create("r2d2-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(source)
            lines = _lines(call[0])
            pickle.dump({"path": path, "modules": modules, "trust": trust, "lines": lines}, file)
            with _PICKLING, _by_value(cloudpickle, path):
                try:
                    _pickler(cloudpickle)(file).dump(call)
                except Exception as error:
                    raise SpecError(f"call: {_culprit(cloudpickle, name, call)}: {error}") from error
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return _Sent(fd, len(source))


class _Code:
    """What cloudpickle makes of a code object."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __reduce__(self) -> Any:
        return self._made


def _pickler(cloudpickle: Any) -> Any:
    """cloudpickle's, but code keeps its file, where newer ones write ``<dynamic-code>``."""
    from collections import ChainMap
    from operator import methodcaller
    from types import CodeType

    table = cloudpickle.CloudPickler.dispatch_table

    def reduce(code: CodeType) -> Any:
        return methodcaller("replace", co_filename=code.co_filename), (_Code(table[CodeType](code)),)

    return type(
        "Pickler", (cloudpickle.CloudPickler,), {"dispatch_table": ChainMap({CodeType: reduce}, table)}
    )


def _source(name: str) -> bytes:
    import pkgutil

    data = pkgutil.get_data("r2d2", name)
    if data is None:
        raise UnsupportedError(f"call() needs the file {name} of r2d2, which is not there")
    return data


def _lines(function: Any) -> dict[str, list[str]]:
    """The source of a function's file, for tracebacks: inside it may not be there."""
    import linecache

    while hasattr(function, "func"):  # functools.partial
        function = function.func
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return {} if code is None else {code.co_filename: linecache.getlines(code.co_filename)}


def _sources() -> dict[str, str]:
    """The source of cloudpickle; the far side fills the package from the module."""
    import inspect

    inner = sys.modules["cloudpickle.cloudpickle"]
    return {"cloudpickle": "", "cloudpickle.cloudpickle": inspect.getsource(inner)}


def _culprit(cloudpickle: Any, name: str, call: tuple[Any, ...]) -> str:
    """Which part cannot be pickled."""
    function, args, keywords = call
    parts = [(f"function {name}", function)]
    parts += [(f"argument {i + 1} of {name}", arg) for i, arg in enumerate(args)]
    parts += [(f"argument {key}= of {name}", arg) for key, arg in keywords.items()]
    for what, part in parts:
        try:
            cloudpickle.dumps(part)
        except Exception:  # noqa: BLE001 - pickling runs anybody's code
            return f"{what} cannot be pickled"
    return f"{name} with these arguments cannot be pickled"


class _by_value:  # noqa: N801 - a context manager is used like a function
    """The caller's own modules travel with the function.

    These are all that lie outside the standard library and site-packages (and ``python_path``): the far side
    would not find them.
    """

    def __init__(self, cloudpickle: Any, path: list[str]) -> None:
        import sysconfig

        self._cloudpickle = cloudpickle
        paths = sysconfig.get_paths()
        installed = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")} | set(path)
        installed |= {
            entry for entry in sys.path if entry.rstrip("/").endswith(("site-packages", "dist-packages"))
        }
        self._installed = tuple(os.path.join(os.path.realpath(entry), "") for entry in installed)
        self._registered: list[ModuleType] = []

    def __enter__(self) -> None:
        known = self._cloudpickle.list_registry_pickle_by_value()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or name in known or name == "__main__":
                continue
            if name.partition(".")[0] == "r2d2" or os.path.realpath(file).startswith(self._installed):
                continue
            if getattr(module, "__name__", None) == name:
                self._cloudpickle.register_pickle_by_value(module)
                self._registered.append(module)

    def __exit__(self, *_: object) -> None:
        for module in self._registered:
            self._cloudpickle.unregister_pickle_by_value(module)
