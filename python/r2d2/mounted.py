"""``Overlay``: what ``mount -t overlay`` does, for everybody and without a trace on the host.

The mount lives in the mount namespace of a small process of its own (our PID 1, about 100 kB). The host's
mount table does not change; whoever may look into that process sees the mount below ``/proc/PID/root``; it
ends with that process, and the process ends with ours, however that ends. There is no unmount to forget.

Real root goes the same way, although it could mount on the host: one way is one behaviour to learn and to
test, a mount on the host outlives a killed program, and one that somebody else keeps busy cannot be removed
at all.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from . import _core, layers
from .container import _capture, _finish
from .errors import ContainerClosed, SetupError, SpecError, unsupported_error
from .namespace import plain_spec, start
from .process import CompletedProcess, Process
from .resolve import CoreMount, id_map

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Self, TypeAlias

    from .explain import Explanation
    from .overlay import Changes

    AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

__all__ = ["Overlay"]

#: Directories that may serve as the mount point where none is given: covered in the holder's namespace alone.
_POINTS = (b"/mnt", b"/media", b"/srv", b"/opt", b"/home", b"/var/tmp", b"/tmp")


def _is_empty(directory: bytes) -> bool:
    try:
        return not os.listdir(directory)
    except OSError:
        return False


class Overlay:
    """An overlay mount: read-only layers seen through one upper layer that takes all writes.

    >>> with Overlay("lower", "upper") as ov:
    ...     (ov.merged / "new.txt").write_text("lands in upper")
    ...     ov.run(["ls"])
    ...     print(ov.diff())

    Args:
        lower: a directory, or several of them, the topmost first (at most 500).
        upper: the directory that takes the writes. None: a read-only view, which needs at least two lower
            layers.
        work: an empty directory of overlayfs's own on the file system of ``upper``. None: one is made beside
            ``upper`` and removed afterwards.
        merged: an existing directory to mount on, as seen by the programs of :meth:`run`; for the rest of the
            machine it stays as it is. None: some directory that holds none of the layers.
        volatile: never sync ``upper`` to disk, for layers that need not outlive a crash of the machine (Linux
            5.10).
        userns: ``"auto"``, ``"single"``, ``"subuid"`` or ``"identity"``, as of :class:`r2d2.Container`.

    Raises:
        SpecError: arguments that can never work: a layer named twice or inside another, one lower layer
            alone.

    Source: mount(8), https://docs.kernel.org/filesystems/overlayfs.html.
    """

    def __init__(
        self,
        lower: AnyPath | Iterable[AnyPath],
        upper: AnyPath | None = None,
        work: AnyPath | None = None,
        merged: AnyPath | None = None,
        *,
        volatile: bool = False,
        userns: str = "auto",
    ) -> None:
        lowers = [lower] if isinstance(lower, str | bytes | os.PathLike) else list(lower)
        self._lower = [layers.real(layer, "lower") for layer in lowers]
        self._upper = None if upper is None else layers.real(upper, "upper")
        self._work = None if work is None else layers.real(work, "work")
        self._point = None if merged is None else layers.real(merged, "merged")
        self._volatile = volatile
        self._userns = userns
        self._made: bytes | None = None
        self._claim: int | None = None
        self._handle: _core.Handle | None = None
        self._closed = False
        self._lock = threading.Lock()
        if volatile and upper is None:
            raise SpecError("volatile: without an upper layer there is nothing to sync")
        if userns == "host":
            raise SpecError("userns='host': an Overlay always has a user namespace (see r2d2.mounted)")
        # A work directory that is yet to be made counts as there.
        work = self._work or self._planned_work()
        try:
            _core.OverlayOptions(
                [os.fsdecode(path) for path in self._lower],
                None if self._upper is None else os.fsdecode(self._upper),
                None if work is None else os.fsdecode(work),
            )
        except ValueError as error:
            raise SpecError(str(error)) from None
        layers.check_nesting(self._all())

    # The layers

    def _all(self) -> list[tuple[str, bytes]]:
        pairs = [("lower", path) for path in self._lower]
        pairs += [
            (what, path) for what, path in (("upper", self._upper), ("work", self._work)) if path is not None
        ]
        return pairs

    @property
    def lower(self) -> list[Path]:
        """The lower layers, the topmost first."""
        return [layers.path(path) for path in self._lower]

    @property
    def upper(self) -> Path | None:
        """The upper layer; it stays."""
        return None if self._upper is None else layers.path(self._upper)

    @property
    def work(self) -> Path | None:
        """The directory of overlayfs's own; None before the mount if it is yet to be made."""
        work = self._work or self._made
        return None if work is None else layers.path(work)

    @property
    def mounted(self) -> bool:
        """Whether it is mounted now."""
        return self._handle is not None and not self._closed and self._handle.wait(0) is None

    @property
    def merged(self) -> Path:
        """The merged directory, for any code of this user, in this process or another: open, list, write.

        The path leads through ``/proc/PID/root``: valid while this is mounted. An absolute symbolic link in
        it is resolved as everywhere, from the *caller's* root directory.

        Raises:
            ContainerClosed: it is not mounted.
        """
        return layers.path(b"/proc/%d/root%s" % (self._running().pid, self._target()))

    @property
    def inside(self) -> Path:
        """The merged directory as the programs of :meth:`run` see it."""
        return layers.path(self._target())

    @property
    def pid(self) -> int:
        """The pid of the process that holds the mount."""
        return self._running().pid

    def diff(self) -> Changes:
        """What the upper layer changed (:func:`r2d2.overlay.diff`); also before the mount and after it."""
        from .overlay import Changes, diff

        return Changes() if self._upper is None else diff(self._upper, self._lower)

    # Life

    def mount(self) -> Self:
        """Mounts it; returns itself.

        Raises:
            ContainerClosed: it was mounted before.
            SetupNotFoundError: a directory is not there, or is none.
            SetupError: EBUSY: another overlay has this upper layer (two of them would corrupt it); or what
                the kernel refused, with its own words.
            UnsupportedError: overlayfs takes no upper layer on that file system, or no such layer in a user
                namespace.
        """
        with self._lock:
            if self._handle is not None:
                raise ContainerClosed(
                    "this overlay was mounted before: an Overlay object is good for one life"
                )
            self._claim = layers.claim(self._all(), self._target())
            try:
                if self._upper is not None and self._work is None:
                    self._made = layers.make_work(self._upper)
                self._handle = self._start()
            except BaseException:
                self._clean()
                raise
        return self

    def unmount(self) -> None:
        """Ends the programs of :meth:`run` and the mount with them. Idempotent."""
        with self._lock:
            if self._handle is None or self._closed or not self._handle.is_ours():
                return
            self._handle.stop()
            self._closed = True
            self._clean()

    close = unmount

    def __enter__(self) -> Self:
        return self.mount()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and not self._closed and handle.is_ours():
            import warnings

            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.unmount()

    def __reduce__(self) -> Any:
        raise TypeError("an Overlay is a mount and cannot be pickled: send its layers")

    def __repr__(self) -> str:
        state = "new" if self._handle is None else "mounted" if self.mounted else "unmounted"
        upper = "read-only" if self._upper is None else repr(os.fsdecode(self._upper))
        return f"<r2d2.Overlay {upper} over {len(self._lower)} lower, {state}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter."""
        from .jupyter import reprs

        del include, exclude
        return reprs.overlay(self)

    def _running(self) -> _core.Handle:
        if self._handle is None:
            raise ContainerClosed("the overlay is not mounted").with_hint(
                "use it in a with statement, or call mount()"
            )
        if self._closed:
            raise ContainerClosed("the overlay was unmounted")
        return self._handle

    # Programs

    def popen(self, args: Any, *, cwd: AnyPath | None = None, **keywords: Any) -> Process:
        """Starts a program where the overlay is mounted; ``subprocess.Popen``'s keywords.

        It sees the caller's own tree with the overlay on :attr:`inside`, which is its working directory by
        default, is root there (over the caller's files alone), and has a PID namespace of its own.
        """
        handle = self._running()
        return Process(
            handle.exec,
            lambda process, signal, tree: handle.signal(process, signal, tree=tree),
            args,
            environ=os.environ,
            workdir=None,
            identity=None,
            explain=lambda program: None,
            cancel=handle.abandon,
            cwd=os.fsdecode(self._target() if cwd is None else cwd),
            **keywords,
        )

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
        """Runs a program to its end, as :meth:`popen` starts it; ``subprocess.run``'s keywords and behaviour.

        Raises:
            SetupNotFoundError: no such program.
            CommandTimeout, CommandError: as ``subprocess.run``.
            ContainerClosed: the overlay is not mounted.
        """
        _capture(keywords, input, capture_output)
        created: list[Process] = []
        try:
            process = self.popen(args, tree=timeout is not None, confirm=False, created=created, **keywords)
            return _finish(process, args, input, timeout, check)
        except BaseException:
            # A signal handler may raise at any instant, also before the process was handed to us.
            for process in created:
                process.abandon()
            raise

    def explain(self) -> Explanation:
        """The steps that mounting it takes; once it is mounted, with what each took. ``print`` it.

        Its ``script()`` mounts the same by hand.
        """
        from .explain import _Script, explain_plan

        plan = self._spec("mount") if self._handle is None else self._handle
        # Not the whole environment: a script is there to be shown.
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM") if name in os.environ}
        script = _Script(plan, env, os.fsdecode(self._target()), None)
        return explain_plan("overlay", plan, script)

    # The way there

    def _target(self) -> bytes:
        """Where it is mounted, in the holder's namespace."""
        if self._point is None:
            paths = [path for _, path in self._all()]
            free = [
                point
                for point in _POINTS
                if os.path.isdir(point) and os.path.realpath(point) == point
                if not any(path == point or path.startswith(point + b"/") for path in paths)
            ]
            if not free:
                raise unsupported_error(errno.EBUSY, "no directory is free to mount on").with_hint(
                    "name an existing directory: Overlay(..., merged=DIRECTORY)"
                )
            # Best one that hides nothing from the programs of `run`.
            self._point = next((point for point in free if _is_empty(point)), free[0])
        return self._point

    def _spec(self, proc: str) -> _core.Spec:
        mount = CoreMount(
            kind="overlay",
            source=None,
            target=self._target(),
            readonly=False,
            recursive=False,
            size=None,
            keep=[],
            lower=self._lower,
            upper=self._upper,
            work=self._work or self._made or self._planned_work(),
            volatile=self._volatile,
        )
        kinds = ["user", "mount", "pid"]
        return plain_spec(kinds, proc=proc, idmap=id_map(self._userns), mounts=[mount], name="overlay")

    def _planned_work(self) -> bytes | None:
        return None if self._upper is None else self._upper + b".work"

    def _start(self) -> _core.Handle:
        try:
            return _core.start(self._spec("mount"))
        except SetupError as error:
            if not (error.step or "").endswith("mount proc on /proc"):
                raise self._worded(error) from None
        # Where a new procfs may not be mounted (inside many containers) programs see the caller's; a timeout
        # then ends the program alone.
        try:
            return _core.start(self._spec("none"))
        except SetupError as error:
            raise self._worded(error) from None

    def _worded(self, error: SetupError) -> SetupError:
        if "stacking depth" in error.message:
            error.with_hint("a layer is an overlay on an overlay already; copy it to another file system")
        return error

    def _clean(self) -> None:
        """Remove what overlayfs leaves: ``work/work`` (mode 000), with ``volatile`` a mark in it."""
        try:
            if self._made is not None:
                self._remove(self._made)
            elif self._volatile and self._work is not None:
                self._remove(os.path.join(self._work, b"work"))
        finally:
            self._made = None
            if self._claim is not None:
                layers.release(self._claim)
                self._claim = None

    def _remove(self, work: bytes) -> None:
        try:
            layers.remove_tree(work)
        except PermissionError:
            # A killed copy-up of another id's file (userns="subuid"): only root in there may remove it.
            spec = plain_spec(["user"], idmap=id_map(self._userns))
            start(spec, ["rm", "-rf", "--", work]).wait()
