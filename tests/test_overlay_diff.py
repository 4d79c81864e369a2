"""`r2d2.overlay.diff` on layers that the kernel wrote."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from _overlay import MODES, in_namespace, mount_calls, rootless, snapshot, umount, workplace
from r2d2 import _core
from r2d2.overlay import Change, FileInfo, diff


def overlay(lowers: list[str], upper: str, merged: str, **options: Any) -> None:
    """Mounts with what fits the child; `work` is made beside `upper`."""
    here = os.getcwd()
    work = f"{here}/{upper}.work"
    for directory in (upper, work, merged):
        os.makedirs(directory, exist_ok=True)
    options = {"userxattr": rootless(), "user_namespace": rootless(), **options}
    extra = options.pop("extra", [])
    planned = _core.OverlayOptions([f"{here}/{x}" for x in lowers], f"{here}/{upper}", work, **options)
    calls, opens = planned.calls(os.uname().release, 900)
    calls = [call for call in calls if call[0] not in {key for key, _ in extra}]
    mount_calls(calls + extra, opens, merged)


def marks() -> Any:
    return "user" if rootless() else "trusted"


# --- random histories -------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "\udcff\n"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.sampled_from([b"old", b"new", b"", b"longer"])
STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, DATA),
    st.tuples(st.just("append"), PATHS, DATA),
    st.tuples(st.just("truncate"), PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("rmtree"), PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("renew"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("symlink"), PATHS, NAMES),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o644, 0o755, 0o4755])),
    st.tuples(st.just("utime"), PATHS, st.integers(0, 2)),
    st.tuples(st.just("setxattr"), PATHS, DATA),
    st.tuples(st.just("fifo"), PATHS),
)
HISTORY = st.lists(STEPS, max_size=12)
#: Something to change: without it most steps of a random history have no object.
GROUND: list[tuple[Any, ...]] = [
    *(("mkdir", path) for path in ("a", "a/b", "a/b/c", "c")),
    *(("write", path, b"old") for path in ("a/a", "a/b/a", "a/b/b", "a/b/c/a", "b", "c/a")),
    *(("setxattr", path, b"old") for path in ("a/b", "a/b/b", "b")),
    *(("utime", path, 1) for path in ("a/a", "a/b/a", "a/b/b", "a/b/c/a", "b", "c/a")),
]


def carry_out(top: str, steps: list[tuple[Any, ...]]) -> None:
    """Each step as far as the file system allows: refusals are part of a history."""
    for verb, path, *rest in steps:
        full = os.path.join(top, path)
        try:
            if verb in {"write", "append"}:
                flags = os.O_TRUNC | os.O_CREAT if verb == "write" else os.O_APPEND
                fd = os.open(full, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
                try:
                    os.write(fd, rest[0])
                finally:
                    os.close(fd)
            elif verb == "truncate":
                os.truncate(full, 0)
            elif verb == "unlink":
                os.unlink(full)
            elif verb == "rmdir":
                os.rmdir(full)
            elif verb in {"rmtree", "renew"} and not stat.S_ISDIR(os.lstat(full).st_mode):
                pass  # rmtree opens what it is given, and a FIFO waits for a writer
            elif verb == "rmtree":
                shutil.rmtree(full)
            elif verb == "mkdir":
                os.mkdir(full)
            elif verb == "renew":
                shutil.rmtree(full)
                os.mkdir(full)
            elif verb in {"rename", "link"}:
                getattr(os, verb)(full, os.path.join(top, rest[0]))
            elif verb == "symlink":
                os.symlink(rest[0], full)
            elif verb == "chmod":
                os.chmod(full, rest[0] | 0o700 if os.path.isdir(full) else rest[0])
            elif verb == "utime":
                os.utime(full, (rest[0], rest[0]), follow_symlinks=False)
            elif verb == "setxattr":
                os.setxattr(full, "user.note", rest[0], follow_symlinks=False)
            elif verb == "fifo":
                os.mkfifo(full)
        except OSError:
            pass


def expected(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """What a comparison of two whole trees says, in the words of `Change.kind`."""
    changes = {}
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            changes[path] = "added"
        elif path in after:
            if before[path][0] != after[path][0]:
                changes[path] = "modified"
            elif before[path][1] != after[path][1]:
                changes[path] = "metadata"
        else:
            above = os.path.dirname(path)
            # Told once for a tree: at the topmost path that is gone, or by what replaced the directory.
            if not above or (above in after and after[above][0] == before[above][0]):
                changes[path] = "deleted"
    return changes


def compare(upper: str, lowers: list[str], before: dict[str, Any], after: dict[str, Any]) -> None:
    changes = diff(upper, lowers, marks=marks())
    assert [os.fsencode(c.path) for c in changes] == sorted(os.fsencode(c.path) for c in changes)
    wanted = expected(before, after)
    for change in changes:
        # A directory removed and made again is `modified` even where it looks as before.
        if change.opaque:
            assert change.kind == "modified"
            assert before[change.path][0] == after[change.path][0]
            wanted[change.path] = "modified"
    assert {change.path: change.kind for change in changes} == wanted
    for change in changes:
        assert (change.before is None) == (change.path not in before)
        assert (change.after is None) == (change.path not in after)
        for side, tree in ((change.before, before), (change.after, after)):
            if side is not None:
                assert (side.mode, side.uid, side.gid) == tree[change.path][1][:3]


def check_histories(examples: str) -> None:
    workplace()
    number = 0

    @settings(
        max_examples=int(examples),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    # Rare in a random history: a directory made anew below one made anew, and both as lower layers.
    @example(
        [],
        [("renew", "a"), ("mkdir", "a/b"), ("write", "a/b/b", b"old"), ("renew", "c")],
        [
            ("write", "a/b/a", b"new"),
            ("write", "a/a", b"old"),
            ("mkdir", "a/b/c"),
            ("write", "c/a", b"old"),
        ],
    )
    @given(HISTORY, HISTORY, HISTORY)
    def check(lower: Any, first: Any, second: Any) -> None:
        nonlocal number
        number += 1
        place = f"run{number}"
        os.mkdir(place)
        os.mkdir(f"{place}/lower")
        carry_out(f"{place}/lower", GROUND + lower)
        merged = f"{place}/merged"
        # The first upper is the second's middle layer: whiteouts and opaque directories among the lowers.
        for upper, lowers, steps in (
            ("one", [f"{place}/lower"], first),
            ("two", [f"{place}/one", f"{place}/lower"], second),
        ):
            overlay(lowers, f"{place}/{upper}", merged)
            try:
                before = snapshot(merged)
                carry_out(merged, steps)
                after = snapshot(merged)
                compare(f"{place}/{upper}", lowers, before, after)
            finally:
                umount(merged)
        shutil.rmtree(place)

    check()


@pytest.mark.parametrize("mode", MODES)
def test_random_histories_are_told_as_two_snapshots_tell_them(mode: str) -> None:
    in_namespace(check_histories, mode, os.environ.get("R2D2_EXAMPLES", "150"))


# --- marks that a random history does not make -------------------------------------------------


def check_attribute_whiteouts() -> None:
    workplace()
    prefix = "user" if rootless() else "trusted"
    for name in ("lower/d/gone", "lower/d/kept", "middle/d/.keep", "upper/d/.keep"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Path(name).touch()
    for layer in ("middle", "upper"):
        os.mkdir(f"{layer}.w")
        shutil.copytree(layer, f"{layer}.marked")
        Path(f"{layer}.marked/d/gone").touch()
        os.setxattr(f"{layer}.marked/d/gone", f"{prefix}.overlay.whiteout", b"y")
        os.setxattr(f"{layer}.marked/d", f"{prefix}.overlay.opaque", b"x")
    # In the upper: a deletion. The kernel agrees that the name is not there.
    overlay(["lower"], "upper.marked", "merged")
    assert not os.path.exists("merged/d/gone")
    umount("merged")
    kinds = {c.path: c.kind for c in diff("upper.marked", ["lower"], marks=marks())}
    assert kinds == {"d/.keep": "added", "d/gone": "deleted"}
    # In a lower layer: the name was not there to begin with.
    overlay(["middle.marked", "lower"], "upper", "merged")
    assert sorted(os.listdir("merged/d")) == [".keep", "kept"]
    Path("merged/d/gone").touch()
    umount("merged")
    kinds = {c.path: c.kind for c in diff("upper", ["middle.marked", "lower"], marks=marks())}
    assert kinds == {"d/gone": "added"}


@pytest.mark.parametrize("mode", MODES)
def test_whiteouts_by_attribute_count_in_every_layer(mode: str) -> None:
    in_namespace(check_attribute_whiteouts, mode)


def check_redirects() -> None:
    workplace()
    for name in ("lower/old/kept", "lower/old/changed", "lower/old/sub/deep", "lower/x/dir/file"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Path(name).write_text("before")
    overlay(["lower"], "upper", "merged", redirect=True)
    os.rename("merged/old", "merged/new")
    Path("merged/new/changed").write_text("after!")
    os.rename("merged/new/sub", "merged/new/sub2")
    os.rename("merged/x/dir", "merged/x/dir2")
    os.unlink("merged/new/kept")
    before = snapshot("lower")
    changes = {c.path: c for c in diff("upper", ["lower"], marks="trusted")}
    assert {p: (c.kind, c.renamed_from) for p, c in changes.items()} == {
        "new": ("renamed", "old"),
        "new/changed": ("modified", None),
        "new/kept": ("deleted", None),
        "new/sub2": ("renamed", "old/sub"),
        "x/dir2": ("renamed", "x/dir"),
    }
    assert str(changes["new"]) == "R /old -> /new"
    # The redirects as a middle layer: what they show is not a change of the next.
    umount("merged")
    overlay(["upper", "lower"], "next", "merged", redirect=True)
    assert Path("merged/new/sub2/deep").read_text() == "before"
    Path("merged/new/sub2/deep").write_text("before")
    os.utime("merged/new/sub2/deep", ns=(0, before["old/sub/deep"][1][3]))
    Path("merged/x/dir2/file").write_text("b e f o r e")
    assert [(c.path, c.kind) for c in diff("next", ["upper", "lower"])] == [("x/dir2/file", "modified")]


def check_metacopy() -> None:
    workplace()
    os.makedirs("lower/d")
    for name in ("touched", "rewritten", "d/moved"):
        Path("lower", name).write_bytes(b"x" * 5000)
    overlay(["lower"], "upper", "merged", extra=[("metacopy", b"on"), ("redirect_dir", b"on")])
    os.chmod("merged/touched", 0o600)
    os.chmod("merged/rewritten", 0o600)
    Path("merged/rewritten").write_bytes(b"y" * 5000)
    os.rename("merged/d/moved", "merged/moved2")
    assert os.getxattr("upper/touched", "trusted.overlay.metacopy") == b""
    kinds = {c.path: (c.kind, c.renamed_from) for c in diff("upper", ["lower"])}
    assert kinds == {
        "touched": ("metadata", None),
        "rewritten": ("modified", None),
        "moved2": ("renamed", "d/moved"),
    }
    # As a middle layer its bytes are the lower's.
    umount("merged")
    overlay(["upper", "lower"], "next", "merged", extra=[("metacopy", b"on"), ("redirect_dir", b"on")])
    same = os.stat("merged/moved2").st_mtime_ns
    Path("merged/moved2").write_bytes(b"x" * 5000)
    os.utime("merged/moved2", ns=(0, same))
    Path("merged/touched").write_bytes(b"z" * 5000)
    assert [(c.path, c.kind) for c in diff("next", ["upper", "lower"])] == [("touched", "modified")]


if "root" in MODES:  # trusted.* attributes are real root's alone: without it there is nothing to test

    def test_a_redirected_directory_is_renamed() -> None:
        in_namespace(check_redirects, "root")

    def test_a_metacopy_has_the_bytes_of_its_lower() -> None:
        in_namespace(check_metacopy, "root")


# --- somebody else is busy in the layer ---------------------------------------------------------


def check_race() -> None:
    workplace()
    os.makedirs("lower/d/e")
    for i in range(20):
        Path(f"lower/d/{i}").write_text("x")
    overlay(["lower"], "upper", "merged")
    over = threading.Event()

    def churn() -> None:
        i = 0
        while not over.is_set():
            i += 1
            carry_out(
                "merged",
                [("rmtree", "d/e"), ("symlink", "d/e", "/etc"), ("unlink", "d/e"), ("fifo", "d/e")],
            )
            carry_out("merged", [("unlink", "d/e"), ("mkdir", "d/e"), ("write", f"d/e/{i % 7}", b"x")])
            carry_out("merged", [("unlink", f"d/{i % 20}"), ("write", f"d/{i % 20}", b"x")])

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(300):
            for change in diff("upper", ["lower"]):
                assert change.path == "d" or change.path.startswith("d/")
    finally:
        over.set()
        writer.join()


@pytest.mark.parametrize("mode", MODES)
def test_a_busy_layer_is_read_without_error_or_escape(mode: str) -> None:
    in_namespace(check_race, mode)


# --- Python's side ------------------------------------------------------------------------------


def test_a_change_is_plain_data(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / os.fsdecode(b"\xff")).write_text("abc")
    (change,) = diff(tmp_path / "upper", [tmp_path / "lower"], prefix="etc")
    assert os.fsencode(change.path) == b"etc/\xff"
    assert change.kind == "added"
    assert change.before is None
    assert isinstance(change.after, FileInfo)
    assert (change.after.type, change.after.size, change.after.uid) == ("file", 3, os.geteuid())
    assert change.after.mtime_ns == (tmp_path / "upper" / os.fsdecode(b"\xff")).stat().st_mtime_ns
    assert pickle.loads(pickle.dumps(change)) == change
    assert "kind='added'" in repr(change)
    with pytest.raises(AttributeError):
        change.kind = "deleted"  # type: ignore[misc]
    assert str(Change("etc/motd", "deleted")) == "D /etc/motd"
    assert str(Change("etc/motd", "metadata")) == "C /etc/motd"


def test_descriptors_stay_the_callers(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        before = os.listdir("/proc/self/fd")
        assert diff(fd, [tmp_path]) == []
        assert os.listdir("/proc/self/fd") == before
        os.fstat(fd)
    finally:
        os.close(fd)


def test_mistakes_are_typed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        diff(tmp_path / "missing", [tmp_path])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        diff(tmp_path, [tmp_path / "file"])
    with pytest.raises(OSError):
        diff(999999, [tmp_path])
    with pytest.raises(ValueError, match="marks"):
        diff(tmp_path, [tmp_path], marks="any")  # type: ignore[arg-type]
