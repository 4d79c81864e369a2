"""What `OverlayOptions` plans, carried out; and the kernel's rules that it relies on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from _overlay import (
    CREATE,
    FSCONFIG,
    FSMOUNT,
    FSOPEN,
    MODES,
    SET_FD,
    configure,
    in_namespace,
    mount,
    mount_calls,
    rootless,
    syscall,
    umount,
    with_descriptors,
    workplace,
)
from r2d2 import _core

#: Every byte that some layer of the way takes for its own.
NASTY = [
    b"a,b",
    b"a:b",
    b"a\\b",
    b"a\\:b",
    b"a\\,b",
    b"a\nb",
    b"\xff\xfe",
    b" a\t",
    b"it's",
    b'q"',
    b'"q,"',
    b"$HOME",
    b"`id`",
    b"back\\",
    b"-o",
    b"a=b",
    b"*",
    b"#",
    b"\\054",
    b"upperdir=x",
]
RELEASES = ["6.18.0", "6.1.0"]


def make(*paths: str) -> list[str]:
    """Directories, each with a file called after its number."""
    made = []
    for i, path in enumerate(paths):
        os.makedirs(path)
        Path(path, f"in{i}").write_text(path if os.fsencode(path).isascii() else "")
        made.append(os.path.abspath(path))
    return made


def options(lowers: list[str], upper: str | None = "upper", **more: Any) -> _core.OverlayOptions:
    work = None
    if upper is not None:
        work = os.path.abspath(f"{upper}.w{len(os.listdir('.'))}")
        os.makedirs(upper, exist_ok=True)
        os.makedirs(work)
        upper = os.path.abspath(upper)
    more = {"userxattr": rootless(), "user_namespace": rootless(), **more}
    return _core.OverlayOptions(lowers, upper, work, **more)


def see(planned: _core.OverlayOptions, way: str, count: int, *, writable: bool = True) -> None:
    """Mounts in this way; every layer must be there, and a write must be possible."""
    os.makedirs("merged", exist_ok=True)
    if way == "mount2":
        data, opens = planned.data(900)
        with_descriptors(opens, lambda: mount(b"overlay", "merged", b"overlay", 0, data))
    elif way == "line":
        done = subprocess.run(
            ["sh", "-c", planned.line("merged")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (planned.line("merged"), done.stderr)
    else:
        calls, opens = planned.calls(way, 900)
        if not calls:
            return see(planned, "mount2", count, writable=writable)
        mount_calls(calls, opens, "merged")
    try:
        assert {f"in{i}" for i in range(count)} <= set(os.listdir("merged"))
        if writable:
            Path("merged/written").touch()
            os.unlink("merged/written")
    finally:
        umount("merged")


def check_nasty() -> None:
    workplace()
    for number, name in enumerate(NASTY):
        os.mkdir(f"case{number}")
        os.chdir(f"case{number}")
        nasty = os.fsdecode(name)
        lowers = make(f"lower/{nasty}", "plain", f"{nasty}/below")
        for way in [*RELEASES, "mount2", "line"]:
            planned = options(lowers, upper=f"upper {way} {nasty}")
            see(planned, way, 3)
        os.chdir("..")


@pytest.mark.parametrize("mode", MODES)
def test_any_byte_goes_in_by_every_way(mode: str) -> None:
    in_namespace(check_nasty, mode)


def check_long() -> None:
    workplace()
    for length in (200, 254, 255, 256, 257, 1000, 3900):
        os.mkdir(f"case{length}")
        os.chdir(f"case{length}")
        path = os.getcwd()
        while len(path) < length:
            rest = length - len(path) - 1
            path += "/" + "l" * (rest if rest <= 200 else min(200, rest - 2))
        lowers = make(path, "plain")
        assert len(lowers[0]) == max(length, len(os.getcwd()))
        for way in [*RELEASES, "mount2", "line"]:
            see(options(lowers, upper=f"upper{way}"), way, 2)
        os.chdir("..")
    # Commas double in mount(2)'s string: 2500 bytes do not fit as they are.
    path = "/".join(["," * 250] * 10)
    for way in [*RELEASES, "mount2", "line"]:
        see(options(make(f"commas{way}/{path}", f"plain{way}"), upper=f"upper{way}"), way, 2)


@pytest.mark.parametrize("mode", MODES)
def test_paths_of_any_length_go_in_by_every_way(mode: str) -> None:
    in_namespace(check_long, mode)


def check_many() -> None:
    workplace()
    lowers = make(*(f"layers/{i:03}" for i in range(500)))
    for path in lowers:
        Path(path, "same").write_text(os.path.basename(path))
    calls, opens = options(lowers).calls("6.18", 900)
    mount_calls(calls, opens, make("merged")[0])
    assert Path("merged/same").read_text() == "000", "the first is on top"
    umount("merged")
    see(options(lowers), "6.18", 500)
    see(options(lowers[:120]), "mount2", 120)
    see(options(lowers[:120]), "6.1", 120)
    see(options(lowers[:2], upper=None), "6.18", 2, writable=False)
    see(options(lowers[:2], upper=None), "line", 2, writable=False)
    see(options(lowers[:2], volatile=True, upper="v"), "6.18", 2)
    see(options(lowers[:2], volatile=True, upper="v2"), "line", 2)
    with pytest.raises(ValueError, match="the kernel's limit is 500"):
        options([*lowers, "/one-more"])


@pytest.mark.parametrize("mode", MODES)
def test_five_hundred_layers(mode: str) -> None:
    in_namespace(check_many, mode)


def test_what_no_kernel_takes_is_a_value_error() -> None:
    for lowers, upper, work, argument in [
        ([], "/u", "/w", "lower"),
        (["/a"], None, None, "lower"),
        (["/a", "/a"], None, None, "lower"),
        (["/a"], "/u", None, "work"),
        (["/a"], None, "/w", "upper"),
        (["/" + "x" * 4095], "/u", "/w", "lower"),
        ([""], "/u", "/w", "lower"),
    ]:
        with pytest.raises(ValueError, match=argument):
            _core.OverlayOptions(lowers, upper, work)


# --- rules of the kernel that the plan relies on: if one falls, the plan can be simpler ---------


def refused(calls: list[tuple[str, bytes | None]], fds: list[tuple[str, int]] | None = None) -> int:
    """The errno of a mount, 0 where it works."""
    context = syscall(FSOPEN, b"overlay", 0)
    try:
        for key, fd in fds or []:
            syscall(FSCONFIG, context, SET_FD, key.encode(), None, fd)
        for key, value in calls:
            configure(context, key, value)
        syscall(FSCONFIG, context, CREATE, None, None, 0)
        os.close(syscall(FSMOUNT, context, 0, 0))
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(context)
    return 0


def check_rules() -> None:
    import errno

    outside = os.open("/usr", os.O_PATH)
    assert libc_unshare() == 0
    workplace()
    os.mkdir("work")
    lower, upper, long = (p.encode() for p in make("lower", "upper", "l" * 240 + "/" + "m" * 240))
    base: list[tuple[str, bytes | None]] = [
        ("lowerdir+", lower),
        ("upperdir", upper),
        ("workdir", os.path.abspath("work").encode()),
    ]
    user: list[tuple[str, bytes | None]] = [*base, ("userxattr", None)]
    assert refused(user) == 0
    assert refused([*user, ("lowerdir+", long)]) == errno.EINVAL, "256 bytes are too many"
    assert refused([*user, ("redirect_dir", b"on")]) == errno.EINVAL
    assert refused([*user, ("redirect_dir", b"off")]) == errno.EINVAL
    assert refused([*user, ("metacopy", b"on")]) == errno.EINVAL
    foreign = errno.EPERM if rootless() else 0
    assert refused([*base, ("redirect_dir", b"off")]) == foreign
    assert refused([*base, ("metacopy", b"on")]) == foreign
    assert refused(user[:1]) == errno.EINVAL, "one layer alone"
    assert refused([*user, ("lowerdir+", lower)]) == errno.ELOOP
    inside = os.open("/usr", os.O_PATH)
    assert refused(user, [("lowerdir+", inside)]) == 0
    assert refused(user, [("lowerdir+", outside)]) == errno.EINVAL, "from before the unshare"
    by_path = b"/proc/self/fd/%d" % outside
    assert refused([("lowerdir+", by_path), *user]) == errno.EINVAL
    # Overlays of overlays: two, not three.
    below = "lower"
    for depth in range(3):
        top = f"depth{depth}"
        for directory in (top, f"{top}.u", f"{top}.w"):
            os.mkdir(directory)
        calls, opens = options([os.path.abspath(below)], upper=f"{top}.u").calls("6.18", 900)
        if depth < 2:
            mount_calls(calls, opens, top)
        else:
            assert refused(calls) == errno.EINVAL
        below = top


def libc_unshare() -> int:
    from _overlay import libc

    return int(libc.unshare(0x00020000))


@pytest.mark.parametrize("mode", MODES)
def test_the_kernels_rules_still_hold(mode: str) -> None:
    in_namespace(check_rules, mode)
