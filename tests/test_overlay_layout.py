"""The host image: every part of `host_layout` is made for real, below a tmpfs, and looked at."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from _overlay import (
    HERE,
    MODES,
    MOUNT_SETATTR,
    MS_BIND,
    in_namespace,
    mount,
    mount_calls,
    rootless,
    syscall,
    workplace,
)
from r2d2 import _core

OPEN_TREE, OPEN_TREE_CLONE, AT_RECURSIVE = 428, 1, 0x8000

Part = tuple[str, int, str, str | None, list[tuple[str, int]]]


def build(parts: list[Part], root: str) -> None:
    """Carries out the plan as its documentation says."""
    for number, (path, mode, kind, target, precreate) in enumerate(parts):
        place = root + path
        if kind == "symlink":
            assert target is not None
            os.symlink(target, place)
        elif kind == "copy":
            Path(place).write_bytes(Path(path).read_bytes())
            os.chmod(place, mode)
        elif kind == "bind":
            Path(place).touch()
            mount(os.fsencode(path), place, None, MS_BIND)
            read_only = struct.pack("=4Q", 1, 0, 0, 0)  # struct mount_attr: set MOUNT_ATTR_RDONLY
            syscall(MOUNT_SETATTR, -100, os.fsencode(place), 0, read_only, len(read_only))
        else:
            os.mkdir(place)
            os.chmod(place, mode)
        if kind == "overlay":
            upper, work = f"{os.getcwd()}/u{number}", f"{os.getcwd()}/w{number}"
            os.mkdir(upper)
            os.mkdir(work)
            os.chmod(upper, mode)
            for relative, bits in precreate:
                os.mkdir(f"{upper}/{relative}")
                os.chmod(f"{upper}/{relative}", bits)
            planned = _core.OverlayOptions(
                [path], upper, work, userxattr=rootless(), user_namespace=rootless(), volatile=True
            )
            calls, opens = planned.calls("6.18", 900)
            try:
                mount_calls(calls, opens, place)
            except OSError as error:
                raise AssertionError(f"{path} is no lower layer: {error}") from error


def check_this_machine() -> None:
    place = workplace()
    # What is mounted on the workplace hides no part of the host.
    parts, notes = _core.host_layout([place], rootless())
    os.mkdir("root")
    build(parts, "root")
    made = {part[0] for part in parts}
    assert {"/usr", "/etc", "/tmp", "/proc", "/dev"} <= made
    noted = {path for path, _ in notes}
    # Nothing of the host's top level is missing without a word.
    assert {f"/{name}" for name in os.listdir("/")} <= made | noted
    for path, mode, kind, target, precreate in parts:
        here = "root" + path
        info = os.lstat(here)
        if kind == "symlink":
            assert os.readlink(here) == os.readlink(path) == target
            continue
        assert stat.S_IMODE(info.st_mode) == mode
        if kind == "overlay":
            assert sorted(os.listdir(here)) == sorted(os.listdir(path)), path
            for relative in ["", *(relative for relative, _ in precreate)]:
                directory = os.path.join(here, relative)
                assert sorted(os.listdir(directory)) == sorted(os.listdir(os.path.join(path, relative)))
                assert os.stat(directory).st_mode == os.stat(os.path.join(path, relative)).st_mode
                writable(directory)
        elif kind == "copy":
            assert Path(here).read_bytes() == Path(path).read_bytes()
        elif kind == "dir" and not any(other.startswith(f"{path}/") for other in made):
            assert os.listdir(here) == []
    # Programs run from it, and what they would change of the system's they can.
    assert subprocess.run(["chroot", "root", "/usr/bin/env", "true"], check=False).returncode == 0
    for path in ("/etc", "/usr/local/bin", "/var/tmp", "/var/log", "/opt"):
        if os.path.isdir(path) and not os.path.islink(path):
            writable("root" + path)
    with pytest.raises(OSError) as caught:
        Path("root/etc/moved").write_text("x")
        os.rename("root/etc/moved", "root/usr/moved")
    assert caught.value.errno == errno.EXDEV


def writable(directory: str) -> None:
    new = os.path.join(directory, "r2d2-was-here")
    Path(new).write_text("x")
    os.rename(new, new + "2")
    os.unlink(new + "2")
    os.mkdir(new)
    os.rmdir(new)


@pytest.mark.parametrize("mode", MODES)
def test_this_machine_mounts_whole(mode: str) -> None:
    in_namespace(check_this_machine, mode)


def check_mounts_below() -> None:
    """A machine with mounts, made here; the container's namespaces are one level further down."""
    mount(b"tmpfs", "/srv", b"tmpfs", 0, b"mode=755")
    os.chdir("/srv")
    for directory in ("data", "plain", "empty", "weird/inner", "secret", "files", "foreign"):
        os.makedirs(f"disk/{directory}")
    for name in ("plain/file", "secret/key", "loose", "files/hosts", "files/other", "foreign/file"):
        Path("disk", name).write_text(name)
    Path("disk/large").write_bytes(b"x" * (1 << 17))
    os.mkfifo("disk/pipe")
    os.symlink("plain", "disk/link")
    mount(b"tmpfs", "disk/data", b"tmpfs", 0, b"mode=750")
    Path("disk/data/file").write_text("mounted")
    mount(b"devpts", "disk/weird/inner", b"devpts", 0, b"newinstance")
    mount(b"/srv/disk/files/other", "disk/files/hosts", None, MS_BIND)
    if not rootless():
        os.chown("disk/foreign", 1234, 1234)
        os.chmod("disk/foreign", 0o700)
    command = [
        "unshare",
        "-Urm",
        sys.executable,
        "-P",
        str(HERE / "_overlay.py"),
        __name__,
        "check_split",
    ]
    env = {
        **os.environ,
        "R2D2_MODE": "rootless",
        "R2D2_OUTSIDE": "rootless" if rootless() else "root",
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_split() -> None:
    parts, notes = _core.host_layout(["/srv/disk/secret"], True)
    place = workplace()
    for directory in ("root", "upper", "work", "merged"):
        os.mkdir(directory)
    # Why it is split at all: the mounts of the namespace above are locked together.
    whole = _core.OverlayOptions(["/srv"], f"{place}/upper", f"{place}/work", userxattr=True)
    with pytest.raises(OSError) as caught:
        mount_calls(*whole.calls("6.18", 900), "merged")
    assert caught.value.errno == errno.EINVAL
    for flags in (MS_BIND, None):
        with pytest.raises(OSError) as caught:
            if flags is None:
                syscall(OPEN_TREE, -100, b"/srv", OPEN_TREE_CLONE)
            else:
                mount(b"/srv", "merged", None, flags)
        assert caught.value.errno == errno.EINVAL
    recursive = syscall(OPEN_TREE, -100, b"/srv", OPEN_TREE_CLONE | AT_RECURSIVE)
    with pytest.raises(OSError):
        calls, opens = _core.OverlayOptions(
            [f"/proc/self/fd/{recursive}"], f"{place}/upper", f"{place}/work", userxattr=True
        ).calls("6.18", 900)
        mount_calls(calls, opens, "merged")

    kinds = {path: kind for path, _, kind, _, _ in parts if path.startswith("/srv")}
    outside = os.environ["R2D2_OUTSIDE"]
    assert kinds == {
        "/srv": "dir",
        "/srv/disk": "dir",
        "/srv/disk/data": "overlay",
        "/srv/disk/empty": "dir",
        "/srv/disk/files": "dir",
        "/srv/disk/files/hosts": "copy",
        "/srv/disk/files/other": "copy",
        "/srv/disk/foreign": "dir" if outside == "root" else "overlay",
        "/srv/disk/large": "bind",
        "/srv/disk/link": "symlink",
        "/srv/disk/loose": "copy",
        "/srv/disk/plain": "overlay",
        "/srv/disk/secret": "dir",
        "/srv/disk/weird": "dir",
        "/srv/disk/weird/inner": "dir",
    }
    why = dict(notes)
    assert why["/srv/disk"].startswith("split")
    assert "devpts" in why["/srv/disk/weird/inner"]
    assert "FIFO" in why["/srv/disk/pipe"]
    assert ("/srv/disk/foreign" in why) == (outside == "root")
    build([part for part in parts if part[0].startswith("/srv")], "root")
    root = Path("root/srv/disk")
    assert (root / "data/file").read_text() == "mounted"
    assert (root / "files/hosts").read_text() == "files/other"
    assert (root / "plain/file").read_text() == "plain/file"
    for directory in ("data", "plain", "empty", "secret", "", "foreign"):
        writable(str(root / directory))
    with pytest.raises(OSError) as caught:
        (root / "large").open("a")
    assert caught.value.errno == errno.EROFS
    (root / "loose").write_text("mine")
    (root / "files/hosts").unlink()
    assert Path("/srv/disk/loose").read_text() == "loose"
    assert Path("/srv/disk/files/hosts").read_text() == "files/other"


@pytest.mark.parametrize("mode", MODES)
def test_mounts_below_a_directory_split_it(mode: str) -> None:
    in_namespace(check_mounts_below, mode)


def test_an_exclusion_must_be_absolute() -> None:
    with pytest.raises(ValueError, match="exclude"):
        _core.host_layout(["relative"], True)
