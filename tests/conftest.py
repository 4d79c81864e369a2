"""What every test has: an image, compiled programs, and the proof that it left nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import r2d2
from _guest import namespace
from _needs import needs
from _proc import cgroups, children, mounts, processes, strange, until
from r2d2 import _core, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _host import Host
    from r2d2 import slirp


def pytest_configure() -> None:
    """Signals that nohup(1), or a shell's ``&``, left ignored would be ignored by all programs, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # caught: execve(2) makes the default of it


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> r2d2.Image:
    """The minimal image: busybox, /etc and nothing else."""
    store = tmp_path_factory.mktemp("images")
    return r2d2.Image.from_dir(r2d2.chroot.build_minimal(store, [], busybox=True))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Compiles a C program, statically: its path. The test must need gcc."""
    directory = tmp_path_factory.mktemp("compiled")
    made: dict[str, str] = {}

    def build(source: str) -> str:
        if source not in made:
            path = str(directory / f"program{len(made)}")
            command = ["gcc", "-O1", "-static", "-pthread", "-w", "-x", "c", "-o", path, "-"]
            subprocess.run(command, input=source.encode(), check=True)
            made[source] = path
        return made[source]

    return build


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return found


def _files() -> set[str]:
    """Where r2d2 keeps what lives as long as a container: the runtime directory, upper layers on disk."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"))
    cache = Path(os.environ["R2D2_CACHE"])
    return {str(path) for path in (*runtime.glob("r2d2*/**/*"), *cache.glob("upper/*"))}


@pytest.fixture(scope="session", autouse=True)
def _warm(image: r2d2.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of our own; and what r2d2 opens once for good is open before anybody counts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("R2D2_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("VIRTUAL_ENV", raising=False)  # perhaps another one than this, which IPython warns of
    r2d2.run(["true"], image=image, stdin=subprocess.DEVNULL)
    process._null()
    with pytest.raises(r2d2.SetupError):
        _core.Network("nonsense", [])
    yield
    patch.undo()


def _ours(before: set[int]) -> dict[int, str]:
    """New processes that are our children, or r2d2's and without a parent."""
    return {
        pid: f"{name} {state}"
        for pid, (name, state, parent) in processes().items()
        if pid not in before
        and (
            parent == os.getpid()
            or (parent == 1 and name.startswith("r2d2-") and state != "Z" and not strange(pid))
        )
    }


@pytest.fixture(autouse=True)
def leaks(_warm: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing of a test is left: processes, zombies, mounts, cgroups, files, descriptors."""
    gc.collect()
    before = set(processes())
    mine = f"r2d2-*{os.getpid()}*"
    state = (mounts(), cgroups(mine), _files(), set(_descriptors()))
    yield
    request.node.funcargs.clear()  # objects of fixtures that hold descriptors until they are collected
    gc.collect()
    until(lambda: not _ours(before), 2)
    assert not _ours(before), "processes left"
    assert mounts() == state[0], "mounts left"
    until(lambda: cgroups(mine) <= state[1], 2)
    assert cgroups(mine) <= state[1], "cgroups left"
    assert _files() <= state[2], "files left"
    now = _descriptors()
    assert not {n: now[n] for n in now if n not in state[3]}, "descriptors left"


@pytest.fixture
def sealed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for all that a kernel writes: its temporary files, IPython's profile, Jupyter's runtime."""
    place = tmp_path_factory.mktemp("nb")
    for variable, name in (("TMPDIR", "t"), ("IPYTHONDIR", "i"), ("JUPYTER_RUNTIME_DIR", "j")):
        (place / name).mkdir()
        monkeypatch.setenv(variable, str(place / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, at a path that no socket address could hold."""
    path = tmp_path / ("long" * 40) / "runtime"
    path.parent.mkdir(mode=0o700)
    monkeypatch.setenv("R2D2_RUNTIME", str(path))
    yield path
    for each in r2d2.Detached.list(all=True):  # a test that failed half-way leaves no processes to the others
        each.remove(force=True)
    # Children of ours that are nobody's are reaped whenever a detached container is looked for.
    assert until(lambda: _core.find(-1, 0, 0) is None and not children(), 5)


@pytest.fixture
def guest() -> Iterator[int]:
    """A process in a user and a network namespace of its own."""
    with namespace() as pid:
        yield pid


@pytest.fixture(params=[pytest.param("tap", marks=needs("tun")), "packet"])
def device(request: pytest.FixtureRequest) -> slirp.Device:
    """Both kinds of a user-mode network's interface."""
    return cast("slirp.Device", request.param)


@pytest.fixture(scope="module")
def _namespaces() -> Iterator[Host]:
    from _host import Host

    made = Host()
    yield made
    made.end()


@pytest.fixture
def host(_namespaces: Host) -> Iterator[Host]:
    """This thread is in a network namespace that plays the host; nothing is left in it."""
    with _namespaces.entered() as entered:
        assert not entered.left()
        yield entered
        assert until(lambda: not entered.left(), 2), entered.left()
