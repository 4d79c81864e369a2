"""A kernel provisioner: the kernel of a notebook is a program in a container of its own.

Jupyter's server asks for a kernel by its kernelspec; one that ``r2d2 kernel install`` wrote names this class
as its provisioner (entry point group ``jupyter_client.kernel_provisioners``) and holds the container's
options.

The server and the kernel speak through Unix sockets (ZeroMQ's ``ipc``), so that the container needs no
network: they lie, with the connection file, in a directory of the user's own that is mounted into it. It is
short, for their paths may have 107 bytes (unix(7)); it stays through a restart, since clients know it, and
goes with the kernel. Everything else of the container ends with the kernel, or with the server.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict

from r2d2.container import Container
from r2d2.spec import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2d2.process import Process

__all__ = ["ContainerProvisioner", "container_of", "hidden_python"]

_PREFIX = "r2d2-kernel-"
#: What the host image shows nothing of: the container has its own (``src/overlay/layout.rs``).
_PRIVATE = ("/tmp", "/run", "/dev", "/proc", "/sys")  # noqa: S108 - they are looked for, not written to
#: What a kernel needs to know of the server's variables. Its tokens and parent's pid are none of it.
_PASSED = frozenset({"JPY_SESSION_NAME", "LANG", "LANGUAGE", "MPLBACKEND", "TERM", "TZ"})
#: And what is true only where the host's files are.
_OF_THE_HOST = frozenset({"HOME", "IPYTHONDIR", "LOGNAME", "PATH", "USER", "VIRTUAL_ENV"})


class ContainerProvisioner(LocalProvisioner):
    """Starts the kernel in a container.

    Attributes:
        options: keywords of ``r2d2.Container`` as JSON has them, from the kernelspec.
        container: the container; None while there is no kernel.
    """

    options: Any = Dict(help="keywords of r2d2.Container").tag(config=True)
    container: Container | None = None
    process: Process | None = None
    _directory: str | None = None
    _lock: int = -1

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Chooses the sockets; the rest is as everywhere."""
        manager: Any = self.parent
        if self._directory is None:
            self._directory, self._lock = _make_directory()
        manager.transport = "ipc"
        manager.ip = os.path.join(self._directory, "socket")
        return dict(await super().pre_launch(**kwargs))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Starts the container and the kernel in it. If that fails nothing of it is left.

        Raises:
            What ``Container`` raises; SetupNotFoundError: its image has no such Python.
        """
        try:
            return self._launch(cmd, kwargs)
        except BaseException:
            self._stop()
            self._forget()
            raise

    def _launch(self, cmd: list[str], kwargs: dict[str, Any]) -> Any:
        manager: Any = self.parent
        directory = str(self._directory)
        own = os.path.join(directory, "connection.json")
        shutil.copyfile(manager.connection_file, own)
        os.chmod(own, 0o600)
        given = {**os.environ, **(kwargs.get("env") or {})}
        passed = _PASSED | _OF_THE_HOST if self.options.get("image", "host") == "host" else _PASSED
        env = {name: value for name, value in given.items() if name in passed or name.startswith("LC_")}
        env |= {**self.kernel_spec.env, "JPY_PARENT_PID": "1"}  # so it is, in there
        self.container = container = container_of(self.options, [(directory, directory)])
        cwd = _directory(kwargs.get("cwd"))
        container.start()
        if not container.path(cwd).is_dir():
            self.log.warning("%s is not in the container: the kernel starts in /", cwd)
            cwd = "/"
        self.process = container.popen(
            [own if word == manager.connection_file else word for word in cmd],
            stdin=subprocess.DEVNULL,
            stdout=kwargs.get("stdout"),
            stderr=kwargs.get("stderr"),
            env={**container._environ(), **env},
            cwd=cwd,
        )
        self.pid = self.process.pid
        self.pgid = None
        self.cwd = cwd
        return self.connection_info

    async def send_signal(self, signum: int) -> None:
        """To the kernel, or by SIGINT also to what it runs, as a terminal does."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        try:
            if signum == signal.SIGINT and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signum)
                return
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended; or it runs as somebody whom only the container's root may signal
        process.send_signal(signum)

    async def wait(self) -> int | None:
        """Waits for the kernel's end; the container ends with it."""
        code = await super().wait()
        self._stop()
        return code

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT002 - as it is called
        """Removes everything but, before a restart, the directory of the sockets."""
        self._stop()
        if not restart:
            self._forget()
        await super().cleanup(restart)

    def _forget(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)
            self._directory = None

    def _stop(self) -> None:
        if self.container is not None:
            self.container.stop()
            self.container = None


def _make_directory() -> tuple[str, int]:
    """A directory for sockets, and a descriptor that locks it; those of killed servers are removed."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    place = runtime if runtime and os.access(runtime, os.W_OK) else tempfile.gettempdir()
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if name.startswith(_PREFIX) and _owner(path) == os.geteuid():
            lock = _locked(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
    while True:
        made = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        lock = _locked(made)
        if lock is not None and os.path.isdir(made):
            return made, lock
        if lock is not None:  # another server took it for one that was left, and removed it
            os.close(lock)


def _owner(path: str) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None


def _locked(directory: str) -> int | None:
    """A descriptor with the directory's lock (flock(2)); None if another process has it, or it is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _directory(given: Any) -> str:
    """Where the kernel is to start; the server's own directory where nothing is said."""
    return os.path.abspath(os.fspath(given or os.getcwd()))


def container_of(options: dict[str, Any], mounts: Iterable[tuple[Any, ...]] = ()) -> Container:
    """The container of a kernelspec.

    Args:
        options: as the kernelspec has them: keywords of ``Container``, with limits as an object.
        mounts: more of them.
    """
    given = dict(options)
    image = given.pop("image", "host")
    limits = dict(given.pop("limits", {}))
    if "rlimits" in limits:
        limits["rlimits"] = tuple((name, value) for name, value in limits["rlimits"])
    wanted = [*given.pop("mounts", ()), *mounts]
    return Container(image, mounts=wanted, limits=Limits(**limits), **given)


def hidden_python() -> list[str]:
    """Directories of this Python that the host image does not show: a virtual environment in /tmp."""
    found: list[str] = []
    for path in sorted({sys.prefix, sys.base_prefix, *filter(None, sys.path)}):
        inside = any(path == other or path.startswith(other + "/") for other in found)
        if path.startswith(tuple(f"{place}/" for place in _PRIVATE)) and os.path.isdir(path) and not inside:
            found.append(path)
    return found
