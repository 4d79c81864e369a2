"""Rows 10 to 13: layers, and all primitives together."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from _proc import mounts
from r2d2 import Container
from r2d2.chroot import Rootfs
from r2d2.overlay import Overlay

if TYPE_CHECKING:
    from pathlib import Path


def prepare(top: Path) -> None:
    """`mkdir lower upper work merged`, and the three files."""
    for name in ("lower", "upper", "work", "merged"):
        (top / name).mkdir()
    (top / "lower/in_lower.txt").write_text("lower\n")
    (top / "upper/in_upper.txt").write_text("upper\n")
    (top / "lower/in_both.txt").write_text("from lower\n")
    (top / "upper/in_both.txt").write_text("from upper\n")


def overlay(top: Path) -> Overlay:
    """The mount of the sheet."""
    return Overlay(top / "lower", top / "upper", top / "work", top / "merged")


def tree(top: Path) -> dict[str, Any]:
    """Every path below with what it holds."""
    return {
        str(path.relative_to(top)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(top.rglob("*"))
    }


def is_whiteout(path: Path) -> bool:
    """A character device 0,0, or an empty file with the mark (overlayfs, "whiteouts")."""
    info = path.lstat()
    if stat.S_ISCHR(info.st_mode):
        return info.st_rdev == 0
    marks = set(os.listxattr(path))
    return info.st_size == 0 and bool(marks & {"user.overlay.whiteout", "trusted.overlay.whiteout"})


def test_row_10_prepare_directories(tmp_path: Path) -> None:
    prepare(tmp_path)
    described = overlay(tmp_path)
    assert [str(path) for path in described.lower] == [f"{tmp_path}/lower"]
    assert described.upper == tmp_path / "upper"
    assert described.work == tmp_path / "work"
    assert described.inside == tmp_path / "merged"
    assert not described.mounted
    assert described.diff() != [], "what lies in upper already is a change: seen before anything is mounted"
    assert sorted(os.listdir(tmp_path / "lower")) == ["in_both.txt", "in_lower.txt"]
    assert sorted(os.listdir(tmp_path / "upper")) == ["in_both.txt", "in_upper.txt"]
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "merged") == []


def test_row_11_merged_like_two_slides(tmp_path: Path) -> None:
    prepare(tmp_path)
    before = mounts()
    with overlay(tmp_path) as ov:
        assert sorted(os.listdir(ov.merged)) == ["in_both.txt", "in_lower.txt", "in_upper.txt"]
        assert (ov.merged / "in_both.txt").read_text() == "from upper\n", "seen from above"
        assert (ov.merged / "in_lower.txt").read_text() == "lower\n"
        assert (ov.merged / "in_upper.txt").read_text() == "upper\n"
        # The same through a program that knows nothing of us, under the sheet's own path.
        done = ov.run(["cat", f"{tmp_path}/merged/in_both.txt"], capture_output=True, text=True, check=True)
        assert done.stdout == "from upper\n"
        line = next(line for line in mounts(ov.pid) if line.split()[4] == f"{tmp_path}/merged")
        assert " - overlay " in line
        assert mounts() == before, "the machine knows nothing of it"
        assert os.listdir(tmp_path / "merged") == []
    assert os.listdir(tmp_path / "merged") == []


def test_row_12_write_append_delete(tmp_path: Path) -> None:
    prepare(tmp_path)
    lower = tree(tmp_path / "lower")
    with overlay(tmp_path) as ov:
        (ov.merged / "new.txt").write_text("new\n")
        assert (tmp_path / "upper/new.txt").read_text() == "new\n", "lands in upper"
        with open(ov.merged / "in_lower.txt", "a") as file:
            file.write("appended\n")
        assert (tmp_path / "upper/in_lower.txt").read_text() == "lower\nappended\n", "copied up"
        assert tree(tmp_path / "lower") == lower
        assert ov.run(["rm", "in_lower.txt", "in_both.txt"]).returncode == 0
        assert sorted(os.listdir(ov.merged)) == ["in_upper.txt", "new.txt"]
        assert is_whiteout(tmp_path / "upper/in_lower.txt")
        assert is_whiteout(tmp_path / "upper/in_both.txt")
        assert tree(tmp_path / "lower") == lower
        changes = {change.path: change.kind for change in ov.diff()}
    expected = {
        "new.txt": "added",
        "in_upper.txt": "added",
        "in_lower.txt": "deleted",
        "in_both.txt": "deleted",
    }
    assert changes == expected
    assert {change.path: change.kind for change in overlay(tmp_path).diff()} == expected, "it stays"


def test_row_13_all_together(tmp_path: Path) -> None:
    lower = tmp_path / "rootfs"
    Rootfs(lower).install(["sh", "hostname", "ps", "cat", "ls", "rm"])
    script = "echo $0 > /etc/who; rm /etc/motd; hostname; cat /proc/net/dev; ls -d /proc/[0-9]*"
    (lower / "etc/motd").write_text("below\n")
    before = tree(lower)
    places: list[dict[str, Path]] = []
    for name in ("one", "two"):
        places.append({kind: tmp_path / name / kind for kind in ("upper", "work")})
        for path in places[-1].values():
            path.mkdir(parents=True)
    with (
        Container(lower, hostname="one", **places[0]) as one,
        Container(lower, hostname="two", **places[1]) as two,
    ):
        for container, name in ((one, "one"), (two, "two")):
            done = container.run(["sh", "-c", script, name], capture_output=True, text=True, check=True)
            hostname, *rest = done.stdout.split("\n")
            assert hostname == name, "a host name of its own"
            interfaces = [line.split(":")[0].strip() for line in rest if ":" in line and "|" not in line]
            assert interfaces == ["lo"], "a network of its own, with nothing in it but lo"
            assert "/proc/1" in rest
            assert f"/proc/{os.getpid()}" not in rest, "process ids of its own"
        kinds = ("mnt", "pid", "uts", "net", "ipc")
        assert all(one.namespaces[kind] != two.namespaces[kind] for kind in kinds)
        for container, name in ((one, "one"), (two, "two")):
            done = container.run(["cat", "/etc/who"], capture_output=True, text=True, check=True)
            assert done.stdout == f"{name}\n", "each sees its own writes"
        assert tree(lower) == before, "the one lower layer serves both"
    for place, name in zip(places, ("one", "two"), strict=True):
        assert (place["upper"] / "etc/who").read_text() == f"{name}\n", "its writes are in its upper layer"
        assert is_whiteout(place["upper"] / "etc/motd")
    assert tree(lower) == before
