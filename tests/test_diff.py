"""Container.diff: what the container changed, and nothing that r2d2 did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import r2d2
from _proc import children, until
from r2d2 import _core

if TYPE_CHECKING:
    from pathlib import Path


def told(c: r2d2.Container) -> list[str]:
    return [str(change) for change in c.diff()]


def change(c: r2d2.Container, script: str) -> list[str]:
    c.run(["sh", "-euc", script], check=True)
    return told(c)


@pytest.mark.parametrize("kind", ["host", "minimal", "scratch"])
@pytest.mark.parametrize("storage", ["tmpfs", "disk"])
def test_nothing_is_changed_at_first(kind: str, storage: str, image: r2d2.Image, tmp_path: Path) -> None:
    if kind == "scratch" and storage == "disk":
        storage = "auto"
    mounts = [
        (tmp_path, "/data/deep/mount"),
        r2d2.Mount(None, "/data/other", type="tmpfs"),
        (__file__, "/etc/bound.py"),
    ]
    given = image if kind == "minimal" else kind
    with r2d2.Container(given, mounts=mounts, storage=storage, extra_hosts={"db": "10.0.0.2"}) as c:
        assert told(c) == []
        c.path("/data/deep/new").write_text("x")
        c.path("/data/other/not-looked-into").write_text("x")
        assert told(c) == ["A /data/deep/new"]


def test_layers(image: r2d2.Image) -> None:
    with r2d2.Container(image) as c:
        found = change(c, "echo x >/new; mkdir -p /d/e; rm /bin/sh; echo y >>/etc/hosts; chmod 700 /etc")
        assert found == ["A /d", "A /d/e", "C /etc", "C /etc/hosts", "A /new", "D /usr/bin/sh"]


def test_all_of_etc_removed(tmp_path: Path, image: r2d2.Image) -> None:
    (tmp_path / "mark").touch()
    with r2d2.Container(r2d2.Image.from_dir(tmp_path)) as c:
        for name in ("hosts", "hostname"):
            c.path("/etc", name).unlink()
        c.path("/etc").rmdir()
        assert told(c) == ["D /etc"]
    with r2d2.Container(image) as c:
        assert change(c, "rm -rf /etc; rm /bin") == ["D /bin", "D /etc"]


def test_two_layers(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/conf").write_text("1")
    with r2d2.Container(r2d2.Image.from_dir([tmp_path, *image.layers])) as c:
        assert told(c) == []
        assert change(c, "echo 2 >/etc/conf; echo 1 >/etc/other") == ["C /etc/conf", "A /etc/other"]
        before = next(change.before for change in c.diff() if change.path == "etc/conf")
        assert before is not None
        assert before.size == 1


def test_the_hosts_image() -> None:
    with r2d2.Container("host") as c:
        script = """
            echo x >/usr/local/r2d2-new; mkdir -p /r2d2-top/d; echo y >/tmp/t; ln -s a /run/l; touch /etc/r2d2
            rm -f /bin; ln -s elsewhere /bin
        """
        found = change(
            c, script.replace("rm -f /bin", "/usr/bin/rm -f /bin").replace("ln -s e", "/usr/bin/ln -s e")
        )
        assert found == [
            "C /bin", "A /etc/r2d2", "A /r2d2-top", "A /r2d2-top/d", "A /run/l", "A /tmp/t",
            "A /usr/local/r2d2-new",
        ]  # fmt: skip
        after = {change.path: change.after for change in c.diff()}["etc/r2d2"]
        assert after is not None
        assert (after.uid, after.gid, after.type) == (0, 0, "file")


def test_scratch() -> None:
    with r2d2.Container("scratch") as c:
        c.path("/d/e").mkdir(parents=True)
        c.path("/d/f").write_text("x")
        c.path("/etc/hosts").write_text("other")
        c.path("/etc/hostname").unlink()
        assert told(c) == ["A /d", "A /d/e", "A /d/f", "D /etc/hostname", "C /etc/hosts"]


def test_a_directory_has_no_upper_layer(tmp_path: Path) -> None:
    for name in ("proc", "sys", "dev"):
        (tmp_path / name).mkdir()
    with (
        r2d2.Container(r2d2.Image.from_dir(tmp_path, writable=True)) as c,
        pytest.raises(r2d2.SpecError, match="no upper layer"),
    ):
        c.diff()


def test_an_upper_layer_of_the_callers(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    (tmp_path / "w").mkdir()
    with r2d2.Container(image, upper=tmp_path / "u", work=tmp_path / "w") as c:
        assert told(c) == []
        assert change(c, "echo x >/new; echo y >/etc/added") == ["A /etc/added", "A /new"]
    with r2d2.Container(image, upper=tmp_path / "u", work=tmp_path / "w") as c:
        assert told(c) == ["A /etc/added", "A /new"]


def test_strange_names(image: r2d2.Image) -> None:
    with r2d2.Container(image) as c:
        for name in ("new\nline", "\udcff", "…"):
            c.path("/", name).touch()
        assert [change.path for change in c.diff()] == ["new\nline", "…", "\udcff"]


def test_after_the_end(image: r2d2.Image) -> None:
    with r2d2.Container(image) as c:
        pass
    with pytest.raises(r2d2.ContainerClosed):
        c.diff()


def test_one_that_was_found_again(image: r2d2.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D2_RUNTIME", str(tmp_path / "runtime"))
    with r2d2.Detached.start(image=image, name="diffed") as detached, detached.attach() as c:
        assert told(c) == []
        c.path("/new").write_text("x")
        c.path("/etc/hosts").write_text("y")
        assert told(c) == ["C /etc/hosts", "A /new"]
        assert c.path("/new").stat().st_uid == 0
    # Its PID 1 is a child of ours that is reaped when a detached container is looked for.
    assert until(lambda: _core.find(-1, 0, 0) is None and not children())
