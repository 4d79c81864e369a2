"""The state directory of detached containers: see ``detached``.

Everything here is relative to descriptors that were checked (owner, mode, no symbolic link), and what is read
is data of unknown origin: bounded in size, and every field of the type that it must have.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from .errors import ContainerClosed, ImageNotFound, R2d2Error, SpecError, setup_error
from .spec import check_name
from .state import State

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A state is a few kilobytes; a thousand mounts are still far below.
_LIMIT = 1 << 20
#: How old a directory without a state must be to count as left behind by a starter that was killed.
_STALE = 10.0


def base_path() -> str:
    """Where the directories are."""
    uid = os.geteuid()
    if path := os.environ.get("R2D2_RUNTIME"):
        return os.path.abspath(path)
    for runtime in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"):
        # sudo(8) may leave the variable of somebody else.
        with suppress(OSError):
            if runtime and os.stat(runtime).st_uid == uid:
                return os.path.join(os.path.abspath(runtime), "r2d2")
    return f"/tmp/r2d2-{uid}"  # noqa: S108 - owner and mode are checked before use


def path(name: str) -> str:
    """The directory of one container."""
    return os.path.join(base_path(), name)


def _checked(fd: int, what: str) -> int:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        error = setup_error(1, os.strerror(1), what)
        error.message = f"{what}: must belong to uid {os.geteuid()} with mode 0700"
        raise error.with_hint("set R2D2_RUNTIME to a directory of your own")
    return fd


def _base(*, make: bool = False) -> int | None:
    """A descriptor of the directory of all; None where it does not exist."""
    where = base_path()
    if make:
        with suppress(FileExistsError):
            os.mkdir(where, 0o700)
    try:
        return _checked(os.open(where, _DIRECTORY), where)
    except FileNotFoundError:
        if make:
            raise
        return None


@contextmanager
def _directory(name: str) -> Iterator[int]:
    """A descriptor of one container's directory.

    Raises:
        ImageNotFound: there is none.
    """
    base = _base()
    fd = None
    if base is not None:
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                fd = _checked(os.open(check_name(name), _DIRECTORY, dir_fd=base), path(name))
        finally:
            os.close(base)
    if fd is None:
        raise ImageNotFound(f"container {name!r}: there is none of this name").with_hint(
            "`r2d2 ps -a` lists them all"
        )
    try:
        yield fd
    finally:
        os.close(fd)


def free_name(image: str) -> str:
    """A name that nobody has: the image's and four digits."""
    import re
    import secrets

    stem = re.sub(r"[^A-Za-z0-9_.-]", "", os.path.basename(image.rstrip("/")))[:32].lstrip("_.-") or "r2d2"
    return f"{stem}-{secrets.token_hex(2)}"


class Place:
    """A container's directory while it is being started; nobody else touches it meanwhile (flock(2))."""

    def __init__(self, name: str, fd: int, stack: ExitStack) -> None:
        self.path = path(name)
        self._fd = fd
        self.listen = stack.enter_context(self.listening("control")).fileno()
        create = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.log = os.open("log", create | os.O_WRONLY | os.O_APPEND, 0o600, dir_fd=fd)
        stack.callback(os.close, self.log)
        self.exit = os.open("exit", create | os.O_RDWR, 0o600, dir_fd=fd)
        stack.callback(os.close, self.exit)

    def listening(self, name: str) -> socket.socket:
        """A socket of this name, on which connections are taken."""
        import socket

        listen = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # The path may be longer than the 107 bytes of an address (unix(7)); this one is short.
            listen.bind(f"/proc/self/fd/{self._fd}/{name}")
            listen.listen(16)
        except BaseException:
            listen.close()
            raise
        return listen

    def write(self, state: State) -> None:
        """Writes the state, whole or not at all."""
        import json

        fd = os.open("state.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump({"version": 1, **state._asdict()}, file)
        os.rename("state.new", "state.json", src_dir_fd=self._fd, dst_dir_fd=self._fd)


@contextmanager
def create(name: str) -> Iterator[Place]:
    """Makes a container's directory; removes it if the body raises.

    Raises:
        SpecError: the name is taken.
    """
    with ExitStack() as stack:
        for attempt in range(10):
            base = None
            try:
                base = _base(make=True)
                os.mkdir(name, 0o700, dir_fd=base)
                fd = os.open(name, _DIRECTORY, dir_fd=base)
                break
            except FileExistsError:
                raise SpecError(f"name {name!r} is taken").with_hint(
                    f"remove the other container (r2d2 rm {name}), or choose another name"
                ) from None
            except FileNotFoundError:
                # The last container was removed at this very moment, and the directory with it.
                if attempt == 9:
                    raise
            finally:
                if base is not None:
                    os.close(base)
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield Place(name, fd, stack)
        except BaseException:
            remove(name)
            raise


def _read(fd: int, name: str, limit: int) -> bytes | None:
    """A regular file of the directory; None if it is not there."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"{name} is no file")
        data = os.read(file, limit + 1)
        if len(data) > limit:
            raise ValueError(f"{name} is over {limit} bytes")
        return data
    finally:
        os.close(file)


def _load(fd: int, name: str) -> State | None:
    text = _read(fd, "state.json", _LIMIT)
    if text is None:
        return None
    try:
        return State.parse(name, text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{error}") from error


def _stale(fd: int) -> bool:
    """Whether a directory without a state belongs to nobody: its starter holds a lock on it."""
    if time.time() - os.fstat(fd).st_mtime < _STALE:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def states() -> list[State]:
    """Those of all containers, oldest first.

    What cannot be read is passed over; what a starter that was killed left behind is removed.
    """
    base = _base()
    if base is None:
        return []
    try:
        names = os.listdir(base)
    finally:
        os.close(base)
    found = []
    for name in names:
        with suppress(R2d2Error, OSError, ValueError), _directory(name) as fd:
            state = _load(fd, name)
            if state is not None:
                found.append(state)
            elif _stale(fd):
                remove(name)
    return sorted(found, key=lambda state: (state.created, state.name))


def find(name: str) -> State:
    """The state of the container of this name, or with the only name that begins so.

    Raises:
        ImageNotFound: there is none, or it is just being started.
        SpecError: more than one name begins so.
        R2d2Error: its state cannot be read.
    """
    if not name or "/" in name:
        raise SpecError(f"container {name!r}: not a name")
    try:
        with _directory(name) as fd:
            state = _load(fd, name)
    except ValueError as error:
        raise R2d2Error(f"container {name}: its state cannot be read: {error}").with_hint(
            f"remove the directory {path(name)}"
        ) from None
    except ImageNotFound:
        begin = [state for state in states() if state.name.startswith(name)]
        if len(begin) > 1:
            raise SpecError(
                f"container {name!r}: {', '.join(state.name for state in begin)} begin so"
            ) from None
        if not begin:
            raise
        return begin[0]
    if state is None:
        raise ImageNotFound(f"container {name} is just being started")
    return state


def remove(name: str) -> None:
    """Removes the directory; fine if it is gone."""
    with suppress(ImageNotFound, FileNotFoundError), _directory(name) as fd:
        for entry in os.listdir(fd):
            with suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=fd)
        os.rmdir(path(name))
    # The directory of all, if that was the last.
    with suppress(OSError):
        os.rmdir(base_path())


def connect(name: str, to: str = "control") -> socket.socket:
    """A connection to PID 1, or to the engine of its ``network``."""
    import socket

    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Not settimeout(): that would not wait behind others who are waiting, but fail (connect(2)).
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
        with _directory(name) as fd:
            control.connect(f"/proc/self/fd/{fd}/{to}")
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    except (ConnectionError, FileNotFoundError):
        control.close()
        raise ContainerClosed(f"container {name} has ended") from None
    except BaseException:
        control.close()
        raise
    return control


@contextmanager
def exit_status(name: str, file: int | None = None) -> Iterator[Callable[[], int]]:
    """A function that tells how its main program ended: -9 unless PID 1 wrote it down.

    It does so also when the directory is gone by then.
    """
    with ExitStack() as stack:
        if file is None:
            file = -1
            with suppress(ImageNotFound, OSError), _directory(name) as fd:
                file = os.open("exit", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
                stack.callback(os.close, file)

        def status() -> int:
            data = os.pread(file, 5, 0) if file >= 0 else b""
            if len(data) != 4:
                return -9
            return os.waitstatus_to_exitcode(int.from_bytes(data, "little") & 0xFF7F)

        yield status


def open_log(name: str) -> int:
    """A descriptor to read the log from."""
    with _directory(name) as fd:
        return os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)


def log_size(name: str) -> int:
    """Bytes in the log."""
    try:
        with _directory(name) as fd:
            return os.stat("log", dir_fd=fd, follow_symlinks=False).st_size
    except (ImageNotFound, FileNotFoundError):
        return 0
