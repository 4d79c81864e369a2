"""``Container`` and ``run``: all primitives together."""

from __future__ import annotations

import os
import subprocess
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _core
from .errors import CommandTimeout, ContainerClosed, SetupError, SpecError, command_error
from .image import Image, image_of
from .process import PIPE, CompletedProcess, Process, check_program
from .resolve import fall_back, resolve
from .spec import Limits, Mount, StrPath, check, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from .bridge import Bridge
    from .call import Caller
    from .explain import Explanation
    from .files import ContainerPath
    from .namespace import Namespaces
    from .netspec import Slirp
    from .network import Publish
    from .overlay import Changes
    from .slirp import Network, Port
    from .switch import Network as Switched
    from .switch.member import Interface, Member
    from .users import Identity

    Networked: TypeAlias = Switched | Member

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NETWORKS = ("none", "host", "slirp", "bridge", "slirp4netns", "pasta")
_numbers = count(1)


class Container:
    r"""A Linux container, from its first step to its last.

    >>> with Container("host") as c:
    ...     c.run(["hostname"], capture_output=True, text=True).stdout
    'r2d2\n'

    Starting one takes a list of steps, which ``explain()`` shows; nothing of it outlives this process,
    however that ends. All methods may be called from any thread.

    Args:
        image: an ``Image``, ``"host"``, ``"minimal"``, ``"scratch"`` or the path of a directory.
        name: names its cgroups; ``r2d2-NUMBER`` by default.
        hostname: at most 64 bytes.
        user: default for programs: a name of the image's /etc/passwd, ``"uid"``, ``"uid:gid"`` or a number.
        env: added to the image's variables.
        workdir: default working directory inside.
        network: ``"none"`` (only ``lo``), ``"host"`` (the caller's), or ``"slirp"``: a network of its own
            that reaches what the caller reaches, by ordinary sockets (an ``r2d2.Slirp`` has options).
            ``"bridge"``, for real root only, has the host's kernel do it, by a veth pair and nf_tables (an
            ``r2d2.Bridge`` has options; see `r2d2.bridge`). ``"slirp4netns"`` and ``"pasta"`` have these
            programs do it, where they are installed. Or an ``r2d2.Network`` with other containers, a
            ``Network.member()`` of one, or a list of them.
        ports: with ``"slirp"``, ``"bridge"`` or a ``Network``, ports of the host that lead inside:
            ``{8080: 80}``, or strings such as ``"8080:80"``, ``"0.0.0.0:53:53/udp"``,
            ``"8000-8010:8000-8010"``, or ``"./app.sock:80"`` for a Unix socket. The host's address is
            127.0.0.1 unless given.
        mounts: ``Mount`` objects or ``"SRC:DST[:ro]"`` strings.
        limits: ``Limits`` or a mapping with its fields, such as ``{"memory": "64m", "pids": 100}``.
        readonly: the root file system refuses writes.
        userns: ``"auto"``, ``"single"`` (root inside is the caller), ``"subuid"`` (and the ranges of
            /etc/subuid), ``"identity"`` (real root only) or ``"host"`` (real root only: no user namespace).
        cap_add, cap_drop: capabilities(7) beyond or below Docker's default set; ``"ALL"`` for all.
        no_new_privs: setuid programs and file capabilities give nothing (prctl(2)).
        proc: ``"mount"``, ``"bind"`` (the host's, read-only), ``"none"``, or ``"auto"``: mounted, or the
            host's where the kernel refuses a new one, as it does inside most containers.
        storage: where writes go: ``"tmpfs"`` (memory), ``"disk"`` (the cache directory; removed with the
            container, whatever happens) or ``"auto"``: memory where the kernel's tmpfs can do it (Linux 6.6).
        tmpfs_size: limit of what the container can write, in bytes or as ``"64m"``.
        upper, work: directories of an upper layer that is to stay (overlayfs, kernel documentation).
        clock_offsets: seconds by which the monotonic and the boot-time clock inside are ahead of the host's,
            or behind: one number for both, or (monotonic, boottime), in a time namespace of its own
            (time_namespaces(7)). The wall clock (CLOCK_REALTIME) is the host's always: the kernel has no
            namespace for it.
        extra_hosts: names for /etc/hosts: ``{"db": "10.0.0.2"}``.

    Raises:
        SpecError: an argument that can never work.
        ImageNotFound, ImageError: the image cannot be used.
        UnsupportedError: this host cannot do it.
        SetupError: the kernel refused a step of the start; nothing of it is left.
    """

    _root: _core.Root | None = None
    _paused = False
    _network: Network | None = None
    _network_took: int | None = None

    def __init__(
        self,
        image: Image | StrPath = "host",
        *,
        name: str | None = None,
        hostname: str = "r2d2",
        user: str | int | None = None,
        env: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        workdir: StrPath = "/",
        network: str | Slirp | Bridge | Networked | Iterable[Networked] = "none",
        ports: Mapping[int, int] | Iterable[str] | None = None,
        mounts: Iterable[Mount | str | tuple[Any, ...]] = (),
        limits: Limits | Mapping[str, Any] | None = None,
        readonly: bool = False,
        userns: str = "auto",
        cap_add: Iterable[str] = (),
        cap_drop: Iterable[str] = (),
        no_new_privs: bool = True,
        proc: str = "auto",
        storage: str = "auto",
        tmpfs_size: int | str | None = None,
        upper: StrPath | None = None,
        work: StrPath | None = None,
        clock_offsets: int | tuple[int, int] | None = None,
        extra_hosts: Mapping[str, str] | None = None,
    ) -> None:
        slirp: Slirp | Bridge | None = None
        published: tuple[Publish, ...] = ()
        self._members: tuple[Member, ...] = ()
        if not isinstance(network, str) and not hasattr(network, "cidr"):
            from .network import ports_of
            from .switch.member import members_of

            self._members = members_of(network)
            published = ports_of(ports)
            network = "members"
        elif network not in ("none", "host") or ports:
            from .network import options_of

            slirp, published = options_of(network, ports, _NETWORKS)
            network = "bridge" if hasattr(slirp, "forward") else "slirp"
        checked = check(
            hostname, user, env, workdir, network, None if mounts == () else mounts, limits, readonly, userns,
            None if cap_add == () else cap_add, None if cap_drop == () else cap_drop, no_new_privs, proc,
            storage, tmpfs_size, upper, work, clock_offsets, extra_hosts,
        )  # fmt: skip
        self.spec = checked._replace(
            image=image_of(image),
            name=check_name(name) if name is not None else f"{os.getpid()}-{next(_numbers)}",
            slirp=slirp,
            ports=published,
            resolvers=tuple(str(member.network.resolver) for member in self._members),
        )
        self._resolved: _core.Spec | None = None
        #: What its control groups are called: names repeat, in other processes and in other PID namespaces.
        self._group = f"{self.name}-{os.urandom(4).hex()}"
        self._handle: _core.Handle | None = None
        self._closed = False
        self._interfaces: tuple[Interface, ...] = ()
        self._ours = False  # made by run(): nobody else could close it
        self._lock = threading.Lock()

    # Life

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def image(self) -> Image:
        """Its image."""
        return self.spec.image

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._handle is not None and not self._closed and self._handle.wait(0) is None

    def _resolve(self) -> _core.Spec:
        if self._resolved is None:
            self._resolved = resolve(self.spec, self._group)
        return self._resolved

    def start(self) -> Self:
        """Starts it; returns itself.

        Raises:
            ContainerClosed: it was started before.
            NetworkError: its network, or one of its ports, cannot be had; nothing of it is left.
        """
        if self._members and self._handle is None:
            from .switch import member

            member.reserve(self)
            try:
                self._start()
            except BaseException:
                member.release(self)
                raise
            member.connect(self)
            return self
        if self.spec.slirp is None or self._handle is not None:
            self._start()
            return self
        from .network import connect, spare

        self._resolve()  # what can never work is said before a process is started
        with spare(self.spec.slirp) as engine:
            self._start()
            connect(self, self.spec.slirp, engine)
        return self

    def _start(self, first: Callable[[_core.Starting], None] | None = None) -> None:
        with self._lock:
            if self._handle is not None:
                raise ContainerClosed(
                    f"container {self.name} was started before: a Container object is good for one life"
                ).with_hint("make another one: Container(...) is cheap")
            while True:
                try:
                    self._handle = _core.start(self._resolve(), first)
                except SetupError as error:
                    if fall_back(self.spec, error, error.step):
                        self._resolved = None
                        continue
                    if error.step is not None and error.step.startswith("step "):
                        error.steps = self.explain()
                    raise
                return

    def stop(self) -> None:
        """Ends it and all that runs in it, and waits until nothing is left. Idempotent."""
        if self._handle is not None and not self._closed:
            self._handle.stop()
            self._closed = True
        if self._network is not None:
            self._network.close()
        if self._interfaces:
            from .switch.member import release

            release(self)
        if self._root is not None:  # it would keep the file system alive
            self._root.close()

    close = stop

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end: its exit status.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        status = self._running().wait(timeout)
        if status is None:
            raise TimeoutError(f"container {self.name} still runs after {timeout} s")
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and not self._closed and handle.is_ours() and handle.wait(0) is None:
            if not self._ours:
                import warnings

                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.stop()

    def __reduce__(self) -> Any:
        raise TypeError("a Container is a running thing and cannot be pickled: send its .spec")

    @property
    def _state(self) -> str:
        """For people."""
        return "new" if self._handle is None else "running" if self.running else "ended"

    def __repr__(self) -> str:
        return f"<r2d2.Container {self.name} {self.image.name} {self._state}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.container(self)

    def _running(self) -> _core.Handle:
        if self._handle is None:
            raise ContainerClosed(f"container {self.name} was not started").with_hint(
                "use it in a with statement, or call start()"
            )
        if self._closed:
            raise ContainerClosed(f"container {self.name} has ended")
        return self._handle

    # Programs

    def _environ(self, home: str = "/root") -> dict[str, str]:
        environ = {"PATH": _PATH, "HOME": home, "container": "r2d2"}
        environ.update(self.image.env)
        environ.update(self.spec.env)
        return environ

    def _who(self, user: str | int | None) -> Identity | None:
        user = self.spec.user if user is None else user
        if user is None:
            return None
        from .users import resolve as resolve_user

        return resolve_user(self, user)

    def _process(
        self, args: Any, *, user: str | int | None = None, tty: bool = False, **keywords: Any
    ) -> Process:
        handle = self._running()
        who = self._who(user)
        environ = self._environ() if who is None else self._environ(who.home)
        if tty:
            environ.setdefault("TERM", os.environ.get("TERM", "xterm"))
            from .terminal import attach_terminal

            return attach_terminal(
                handle, keywords, lambda given: self._program(handle, args, environ, who, **given)
            )
        return self._program(handle, args, environ, who, **keywords)

    def _program(
        self,
        handle: _core.Handle,
        args: Any,
        environ: dict[str, str],
        who: Identity | None,
        **keywords: Any,
    ) -> Process:
        return Process(
            handle.exec,
            lambda process, signal, tree: handle.signal(process, signal, tree=tree),
            args,
            environ=environ,
            workdir=self.spec.workdir,
            identity=None if who is None else who[:3],
            explain=self._explain_exec,
            cancel=handle.abandon,
            **keywords,
        )

    def _explain_exec(self, program: bytes) -> str | None:
        """Why a program that is there cannot be executed (its loader is missing, say)."""
        from .files import explain_exec

        return explain_exec(self, program)

    def popen(self, args: Any, **keywords: Any) -> Process:
        """Starts a program; ``subprocess.Popen``'s keywords, and its behaviour.

        Args:
            args: a list; the program is looked up in the container's PATH.
            user: as the container's.
            tty: give it a terminal of the container's as standard input, output and error: ``process.tty`` is
                our end of it (an unbuffered file), ``process.resize(rows, columns)`` sets its size.
            size: (rows, columns) of that terminal; by default those of the caller's.
            stdin, stdout, stderr, text, encoding, errors, bufsize, cwd, env, umask, pass_fds: as
                ``subprocess.Popen``.

        Raises:
            SetupNotFoundError: (a FileNotFoundError) no such program, or its loader is missing.
            SetupPermissionError: (a PermissionError) it may not be executed.
            ContainerClosed: the container does not run.
        """
        return self._process(args, **keywords)

    def run(
        self,
        args: Any,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Any,
    ) -> CompletedProcess:
        """Runs a program to its end; ``subprocess.run``'s keywords, and its behaviour.

        A timeout kills the program and everything that it had started.

        Raises:
            CommandTimeout: (a subprocess.TimeoutExpired) its time was over.
            CommandError: (a subprocess.CalledProcessError) with ``check=True``, its exit status is not 0.
            And what :meth:`popen` raises.
        """
        if keywords.get("tty"):
            raise SpecError("run(tty=True) would have nobody at the terminal: use popen(tty=True) or shell()")
        _capture(keywords, input, capture_output)
        return self._run(args, input, timeout, check, **keywords)

    def _run(
        self, args: Any, input: Any, timeout: float | None, check: bool, **keywords: Any
    ) -> CompletedProcess:
        created: list[Process] = []
        try:
            keywords |= {"tree": timeout is not None, "confirm": False, "created": created}
            process = self._process(args, **keywords)
            return _finish(process, args, input, timeout, check)
        except BaseException:
            for process in created:
                process.abandon()
            raise

    def shell(
        self,
        args: Any = None,
        *,
        user: str | int | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """An interactive shell (or another program) in the caller's terminal, until it ends: its return code.

        The terminal is raw meanwhile: keys act inside, Ctrl-C and Ctrl-Z too. If standard input is no
        terminal, its bytes go to the program as they are.

        Args:
            args: a program instead of the image's bash or sh.
            user, cwd: as :meth:`popen`.
            env: added to the container's variables.

        Raises:
            ImageNotFound: the image has no shell.
            And what :meth:`popen` raises.
        """
        from .terminal import shell

        return shell(self, args, user=user, cwd=cwd, env=env)

    # Files

    def _files(self) -> _core.Root:
        root = self._root
        if root is None or self._closed:
            root = self._root = self._running().files(self._resolve())
        return root

    def path(self, *segments: StrPath | ContainerPath) -> ContainerPath:
        """A path in the container, with ``pathlib.Path``'s methods; relative ones count from ``workdir``.

        Every lookup is the kernel's, inside the container's root directory: neither ``..`` nor a symlink
        leaves it.
        """
        from .files import ContainerPath

        return ContainerPath(self, *segments)

    def copy_in(
        self, source: StrPath, target: StrPath | ContainerPath, *, follow_symlinks: bool = False
    ) -> ContainerPath:
        """Copies a file, directory or symlink of the host into the container, as ``docker cp`` does.

        A target that is a directory is copied into; ``source`` of the form ``DIR/.`` means what is in it.
        Modes, mtimes, holes and symlinks (their text) are kept, owners are the container's root. A file
        appears whole or not at all; what was there under its name is replaced, also where that is a
        symlink. Devices, FIFOs and sockets in a directory are left out with a ``UserWarning``.

        Args:
            follow_symlinks: copy what ``source`` leads to, if it is a symlink itself.

        Returns:
            Where it is now.

        Raises:
            OSError: as ``shutil.copytree`` would, with the path of the side that failed as ``filename``:
            there is no
                such source or no parent of the target, no space, a directory where a file is to go.
        """
        from .files import copy_in

        return copy_in(self, source, target, follow_symlinks=follow_symlinks)

    def copy_out(
        self, source: StrPath | ContainerPath, target: StrPath, *, follow_symlinks: bool = False
    ) -> Path:
        """The same from the container to the host.

        The files belong to the caller; setuid, setgid and sticky bits are dropped. No symlink below
        ``source`` or ``target`` is followed, whatever the container puts there while it is copied.

        Returns:
            Where it is now.
        """
        from .files import copy_out

        return copy_out(self, source, target, follow_symlinks=follow_symlinks)

    def diff(self) -> Changes:
        """What the container changed in its root directory, sorted by path; see ``r2d2.overlay.diff``.

        What r2d2 put there itself (mount points, /etc/hosts) is no change; what is mounted is not looked
        into. Paths are relative to the root, owners are ids inside.

        Raises:
            SpecError: a writable directory is the root: nothing tells what it was before.
            OSError: a layer cannot be read.
        """
        from .changes import diff

        return diff(self)

    def snapshot(self, *, name: str | None = None, pause: bool = True) -> Image:
        """Freezes what the container changed into an image; the container goes on.

        Containers of the new image share the frozen files, read-only, below what they write themselves; a
        snapshot of one of them adds another layer. It lives in the cache, under a name that its content
        decides, until ``Image.remove``. See ``r2d2.snapshot`` for what is kept and what is not.

        Args:
            name: for people; by default the image's, and the beginning of the digest.
            pause: let nothing in the container run meanwhile. One that was paused before goes on for a
                moment, and is paused again. What a program has not written yet is not in the
                snapshot: stop a database first, or let it recover as after a crash.

        Raises:
            SpecError: a writable directory is the root: there is no layer to freeze.
            ContainerClosed: the container does not run.
            ImageError: directories are nested deeper than 256 levels.
            UnsupportedError: the cache is on a file system without extended attributes.
            OSError: a file cannot be read, or the cache is full; nothing is left there.
        """
        from .snapshot import freeze

        return freeze(self, name=name, pause=pause)

    def call(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Calls ``function(*args, **keywords)`` in a fresh Python in the container: its result.

        Needs the extra ``[call]``, and a Python of this minor version inside. What comes back is plain data
        (see ``r2d2.codec``): a container can send a wrong result, but no code. :meth:`caller` has options.

        Raises:
            What :meth:`Caller.__call__` raises.
        """
        return self.caller()(function, *args, **keywords)

    def caller(self, **options: Any) -> Caller:
        """:meth:`call` with options: ``c.caller(timeout=10)(function, x)``; see ``call.Caller``."""
        from .call import Caller

        return Caller(self, **options)

    # The container itself

    @property
    def pid(self) -> int:
        """The pid of its PID 1 on the host."""
        return self._running().pid

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended; it belongs to this object."""
        return self._running().fileno()

    @property
    def namespaces(self) -> Namespaces:
        """Its namespaces: the inode of each link of ``/proc/PID/ns``."""
        from . import namespace

        return namespace.inspect(self.pid)

    @property
    def network(self) -> Network | None:
        """Its way to the outside: counters, flows, ports to add and remove; None with ``none`` and ``host``.

        Of a member of networks of containers, that of the first of them.
        """
        return self._network

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Its interfaces in networks of containers, in their order."""
        return self._interfaces

    @property
    def ports(self) -> tuple[Port, ...]:
        """Ports of the host that lead into it."""
        return () if self._network is None or not self._network.alive else self._network.ports

    def explain(self) -> Explanation:
        """The steps of its start: before it as they would be, afterwards with what each took.

        Raises:
            What starting it raises before the first step.
        """
        from .explain import explain

        return explain(self)

    def kill(self, signal: int = 9) -> None:
        """Sends a signal to its PID 1, which forwards it: to the main program, or to all. SIGKILL ends it."""
        self._running().kill(signal)

    def pause(self) -> None:
        """Stops every process in it: by the freezer of a cgroup where one can be had, else by SIGSTOP."""
        self._running().pause(self._group)
        self._paused = True

    def resume(self) -> None:
        """Lets them go on."""
        self._running().resume()
        self._paused = False

    def stats(self) -> dict[str, int | None]:
        """What it uses: bytes, nanoseconds and counts, each None where no cgroup counts it."""
        return self._running().stats()


def _capture(keywords: dict[str, Any], input: Any, capture_output: bool) -> None:
    """The keywords of ``subprocess.run`` that become those of ``Popen``."""
    if input is not None:
        if keywords.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        keywords["stdin"] = PIPE
    if capture_output:
        if keywords.get("stdout") is not None or keywords.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        keywords["stdout"] = keywords["stderr"] = PIPE


def _finish(process: Process, args: Any, input: Any, timeout: float | None, check: bool) -> CompletedProcess:
    """``subprocess.run`` from the point where the program runs."""
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            process.kill_tree()
            stdout, stderr = process.communicate()
            raise CommandTimeout(args, timeout or expired.timeout, stdout, stderr) from None
        except:
            process.kill_tree()
            raise
    code = process.returncode
    if check and code:
        raise command_error(code, args, stdout, stderr)
    completed = CompletedProcess(args, code, stdout, stderr)
    rss, user, system = process._usage
    completed.max_rss = rss * 1024
    completed.user_time = user / 1e6
    completed.system_time = system / 1e6
    return completed


#: Keywords of ``run`` that belong to the program; all others are the container's.
_PROGRAM = {
    "bufsize", "close_fds", "cwd", "encoding", "errors", "pass_fds", "pipesize", "restore_signals", "stderr",
    "stdin", "stdout", "text", "umask", "universal_newlines", "shell", "preexec_fn", "executable",
}  # fmt: skip


def run(
    args: Any,
    *,
    image: Image | StrPath = "host",
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **keywords: Any,
) -> CompletedProcess:
    """Runs one program in a container of its own, and waits until nothing of it is left.

    Takes the keywords of ``subprocess.run`` for the program and those of :class:`Container` for the
    container; ``env`` and ``user`` are the container's (``env`` adds to the image's variables).

    Raises:
        What :class:`Container` and :meth:`Container.run` raise.
    """
    program = {key: keywords.pop(key) for key in list(keywords) if key in _PROGRAM}
    _capture(program, input, capture_output)
    container = Container(image, **keywords)
    container._ours = True
    if container.spec.user is not None or container.spec.slirp is not None or container._members:
        with container:
            return container._run(args, input, timeout, check, **program)

    programs: list[Process] = []

    def first(starting: _core.Starting) -> None:
        """While the container is made; once more if it is made in another way (``fall_back``)."""
        if programs:
            programs.pop().never_ran()
        programs.append(
            Process(
                starting.exec,
                end,
                args,
                environ=container._environ(),
                workdir=container.spec.workdir,
                identity=None,
                explain=container._explain_exec,
                main=True,
                confirm=False,
                **program,
            )
        )

    def end(process: _core.Process, signal: int, tree: bool) -> None:
        del process, signal, tree
        container.stop()

    check_program(args, program)
    try:
        try:
            container._start(first)
        except BaseException:
            for process in programs:
                process.never_ran()
            raise
        completed = _finish(programs[0], args, input, timeout, check)
        programs.clear()  # its descriptors are closed while the kernel takes the container apart
    finally:
        container.stop()
    return completed
