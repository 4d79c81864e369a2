"""Images of Debian packages: installed ones, .deb files, and files that only look like some."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import needs
from r2d2 import Container, Image, dpkg, packages, snapshot
from r2d2.testing import Nginx, PostgreSQL, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)
TEXT: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
CONTROL = """Package: {name}
Version: 1.0-1
Architecture: all
Maintainer: X <x@example.org>
{more}Description: X
"""


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """One for all tests, so that what they share is copied once."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r2d2-packages-") as base:
        patch.setenv("R2D2_CACHE", base)
        yield
        for layer in snapshot.stored():
            Image("layers", [layer]).remove()


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is installed."""
    directory = tmp_path / "dpkg"
    (directory / "info").mkdir(parents=True)
    (directory / "status").touch()
    monkeypatch.setattr(dpkg, "DATABASE", str(directory))
    return directory


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info, content


def ar(**members: bytes) -> bytes:
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name.replace('__', '-').replace('_', '.'):<16}0           0     0     100644  ".encode()
        archive += f"{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return archive


def deb(path: Path, *data: tuple[Any, bytes], more: str = "", suffix: str = "gz") -> str:
    """An archive as dpkg-deb makes them, by hand: it would not make the bad ones."""
    control = tar(member("./control", CONTROL.format(name=path.stem, more=more).encode()))
    plain = tar(*data, mode="w" if suffix == "zst" else f"w:{suffix}")
    if suffix == "zst":
        plain = subprocess.run(["zstd", "-cq"], input=plain, capture_output=True, check=True).stdout
    path.write_bytes(ar(debian__binary=b"2.0\n", control_tar_gz=control, **{f"data_tar_{suffix}": plain}))
    return str(path)


# Real servers


@needs("redis")
def test_redis() -> None:
    import redis

    image = Image.from_packages(["redis-server"])
    with Redis(image) as server, redis.from_url(server.url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
        # Nothing of it is the host's: that has a Python, which no essential package needs.
        assert os.path.exists("/usr/bin/python3")
        assert not server.container.path("/usr/bin/python3").exists()
    assert Image.from_packages(["redis-server"]) == image
    names = [name for name, _, _ in packages.contents(image)["packages"]]
    assert {"redis-server", "redis-tools", "libc6", "coreutils"} <= set(names)
    assert len(names) == len(set(names))


@needs("nginx")
def test_nginx(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    with Nginx(Image.from_packages(["nginx"]), root=tmp_path) as server:
        with urllib.request.urlopen(server.url, timeout=20) as answer:
            assert answer.read() == b"hello"
        assert not server.container.path("/usr/bin/python3").exists()


@needs("postgresql")
def test_postgresql() -> None:
    from urllib.parse import urlparse

    import pg8000.native

    package = next(each.name for each in dpkg.installed() if each.name.startswith("postgresql-1"))
    with PostgreSQL(PostgreSQL.prepare(Image.from_packages([package]))) as server:
        url = urlparse(server.url)
        client = pg8000.native.Connection(
            url.username or "", host=url.hostname or "", port=url.port or 0, password=url.password,
            database="postgres",
        )  # fmt: skip
        try:
            assert client.run("select 40 + 2") == [[42]]
        finally:
            client.close()
        assert not server.container.path("/usr/bin/python3").exists()


@needs("dpkg")
def test_what_scripts_would_have_made() -> None:
    image = Image.from_packages(["bash"])
    script = "awk 'BEGIN { print 6 * 7 }'; ls -ld /tmp /bin; id -un; getent passwd www-data | cut -d: -f1"
    with Container(image) as container:
        lines = container.run(["/bin/sh", "-c", script], **TEXT).stdout.splitlines()
    assert lines[0] == "42"  # a link of update-alternatives
    assert lines[1].startswith("lrwx")
    assert lines[2].startswith("drwxrwxrwt")
    assert lines[3:] == ["root", "www-data"]
    layer = Path(image.layers[0])
    assert not (layer / "etc/shadow").exists()
    assert not [path for path in (layer / "usr/share/doc").rglob("*") if path.is_file()]


@needs("user")
def test_what_may_not_be_read_is_left_out_and_said(database: Path, tmp_path: Path) -> None:
    readable, secret = tmp_path / "readable", tmp_path / "secret"
    readable.write_text("1")
    secret.write_text("2")
    secret.chmod(0)
    (database / "status").write_text(
        "Package: one\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n"
    )
    (database / "info" / "one.list").write_text(f"/.\n{readable}\n{secret}\n{tmp_path}/gone\n")
    image = Image.from_packages(["one"])
    left_out = packages.contents(image)["left_out"]
    assert left_out == {str(secret): "Permission denied", f"{tmp_path}/gone": "No such file or directory"}
    assert Path(image.layers[0] + str(readable)).read_text() == "1"
    image.remove()


# Archives


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", pytest.param("zst", marks=needs("zstd"))])
def test_an_archive(suffix: str, database: Path, tmp_path: Path) -> None:
    del database
    path = deb(
        tmp_path / "one.deb",
        member("./bin", kind=tarfile.DIRTYPE),
        member("./bin/tool", b"text"),
        member("./usr/bin/other", kind=tarfile.LNKTYPE, link="./bin/tool"),
        member("./etc/link", kind=tarfile.SYMTYPE, link="/nowhere"),
        suffix=suffix,
    )
    image = Image.from_packages([path])
    layer = Path(image.layers[0])
    assert (layer / "usr/bin/tool").read_text() == "text"
    assert (layer / "usr/bin/other").samefile(layer / "usr/bin/tool")
    assert os.readlink(layer / "etc/link") == "/nowhere"
    assert Image.from_packages([path]) == image
    deb(tmp_path / "one.deb", member("./bin/tool", b"other text"), suffix=suffix)
    again = Image.from_packages([path])
    assert again.layers != image.layers, "built again when the file changes"
    image.remove()
    again.remove()


@needs("dpkg")
def test_a_real_archive_with_its_dependencies_from_here(tmp_path: Path) -> None:
    source = tmp_path / "tool"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN/control").write_text(CONTROL.format(name="tool", more="Depends: gzip (>= 1.0)\n"))
    (source / "etc").mkdir()
    (source / "etc/only-here").write_text("yes")
    (source / "usr/bin").mkdir(parents=True)
    (source / "usr/bin/tool").write_text("#!/bin/sh\necho hello | gzip | gzip -d\n")
    (source / "usr/bin/tool").chmod(0o755)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(source), str(tmp_path / "tool.deb")]
    subprocess.run(command, check=True, capture_output=True)
    with Container(Image.from_packages([str(tmp_path / "tool.deb")])) as container:
        assert container.run(["tool"], **TEXT).stdout == "hello\n"


def test_zstd_that_nothing_reads(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del database
    path = deb(tmp_path / "one.deb")
    data = tar(member("./control", CONTROL.format(name="one", more="").encode()))
    Path(path).write_bytes(ar(debian__binary=b"2.0\n", control_tar_gz=data, data_tar_zst=b"\x28\xb5\x2f\xfd"))
    monkeypatch.setenv("PATH", "/nowhere")
    for module in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(r2d2.UnsupportedError, match="nothing here reads zstd") as told:
        Image.from_packages([path])
    assert "apt install zstd" in (told.value.hint or "")


HOSTILE = {
    "up": ([member("../../outside", b"x")], "leaves the root"),
    "up in the middle": ([member("./usr/../../outside", b"x")], "leaves the root"),
    "device": ([member("./dev/sda", kind=tarfile.BLKTYPE)], "device or pipe"),
    "pipe": ([member("./run/pipe", kind=tarfile.FIFOTYPE)], "device or pipe"),
    "hard link out": ([member("./x", kind=tarfile.LNKTYPE, link="../../../etc/passwd")], "leaves the root"),
    "hard link to nothing": ([member("./x", kind=tarfile.LNKTYPE, link="etc/nothing")], "no file of the"),
    "loop": (
        [member("./a", kind=tarfile.SYMTYPE, link="b"), member("./b", kind=tarfile.SYMTYPE, link="a"),
         member("./a/file", b"x")],
        "too many symbolic links",
    ),
    "long": ([member("./" + "x" * 300, b"x")], "a path of 300 bytes"),
    "below a file": ([member("./etc/file", b"x"), member("./etc/file/below", b"x")], "is no directory"),
    "file over a directory": ([member("./usr", b"x")], "in one place"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(name: str, database: Path, tmp_path: Path) -> None:
    del database
    data, message = HOSTILE[name]
    path = deb(tmp_path / "one.deb", *data)
    store = Path(os.environ["R2D2_CACHE"], "snapshots")
    with pytest.raises(r2d2.ImageError, match=message) as told:
        Image.from_packages([path])
    assert path in str(told.value)
    assert not [each for each in os.listdir(store) if each.startswith(".new-")], "nothing is left"
    assert not [each for each in (tmp_path / "outside", tmp_path.parent / "outside") if each.exists()]


def test_links_are_the_roots_own(database: Path, tmp_path: Path) -> None:
    del database
    outside = tmp_path / "outside"
    outside.mkdir()
    up = "../" * 20
    path = deb(
        tmp_path / "one.deb",
        member("./absolute", kind=tarfile.SYMTYPE, link=str(outside)),
        member("./absolute/file", b"x"),
        member("./relative", kind=tarfile.SYMTYPE, link=f"{up}{outside}"),
        member("./relative/other", b"y"),
        member("./target", kind=tarfile.SYMTYPE, link=str(outside / "through")),
        member("./target", b"z"),
    )
    image = Image.from_packages([path])
    layer = Path(image.layers[0])
    assert os.listdir(outside) == []
    assert Path(f"{layer}{outside}/file").read_bytes() == b"x"
    assert Path(f"{layer}{outside}/other").read_bytes() == b"y"
    assert (layer / "target").read_bytes() == b"z", "a file takes the place of a link"
    image.remove()


def test_damaged_archives(database: Path, tmp_path: Path) -> None:
    del database
    whole = Path(deb(tmp_path / "one.deb", member("./etc/file", os.urandom(4096)))).read_bytes()
    Image.from_packages([str(tmp_path / "one.deb")]).remove()  # the control: as it is, it is good
    bad = tmp_path / "bad.deb"
    for length in (0, 5, 8, 40, 100, len(whole) // 2, len(whole) - 100):
        bad.write_bytes(whole[:length])
        with pytest.raises(r2d2.ImageError, match=r"bad\.deb"):
            Image.from_packages([str(bad)])
    control = tar(member("./control", CONTROL.format(name="x", more="").encode()))
    for content, message in (
        (b"PK\3\4" + bytes(100), "ar archive"),
        (ar(debian__binary=b"3.0\n"), "debian-binary"),
        (ar(debian__binary=b"2.0\n", data_tar_gz=tar()), "no control.tar"),
        (ar(debian__binary=b"2.0\n", control_tar_gz=tar()), "no control file"),
        (ar(debian__binary=b"2.0\n", control_tar_gz=tar(member("./control", b"Package: x\n"))), "Version"),
        (ar(debian__binary=b"2.0\n", control_tar_gz=control), "no data.tar"),
        (ar(debian__binary=b"2.0\n", control_tar_gz=control, data_tar_xz=b"no xz at all"), "data.tar.xz"),
        (ar(debian__binary=b"2.0\n", control_tar_gz=control, data_tar_rar=b""), "unknown compression"),
    ):
        bad.write_bytes(content)
        with pytest.raises(r2d2.ImageError, match=message):
            Image.from_packages([str(bad)])
    with pytest.raises(r2d2.ImageError, match="directory"):
        Image.from_packages([str(tmp_path)])
    with pytest.raises(r2d2.ImageNotFound, match=r"nothing\.deb"):
        Image.from_packages([str(tmp_path / "nothing.deb")])


# What is needed


@needs("dpkg")
def test_names_that_are_none() -> None:
    with pytest.raises(r2d2.ImageNotFound, match=r"coreutil'.*there is coreutils") as told:
        Image.from_packages(["coreutil"])
    assert "apt-get download coreutil" in (told.value.hint or "")
    for bad in ("no such package", "../x:y;", ""):
        with pytest.raises(r2d2.ImageNotFound):
            dpkg.Known([]).named(bad)
    with pytest.raises(r2d2.SpecError, match="a list"):
        Image.from_packages("bash")
    with pytest.raises(r2d2.SpecError, match="no package"):
        Image.from_packages([])


def test_dependencies(database: Path, tmp_path: Path) -> None:
    del database
    one = deb(
        tmp_path / "one.deb", more="Depends: two (>= 1.0), mail-agent | nothing\nPre-Depends: two:any\n"
    )
    two = deb(tmp_path / "two.deb", more="Depends: one\nProvides: mail-agent (= 3)\n")  # a cycle
    image = Image.from_packages([one, two])
    assert [name for name, _, _ in packages.contents(image)["packages"]] == ["two", "one"]
    image.remove()
    with pytest.raises(r2d2.ImageNotFound, match=r"one needs two \(>= 1\.0\).*one needs mail-agent") as told:
        Image.from_packages([one])
    assert "apt-get download two mail-agent" in (told.value.hint or "")
    late = deb(tmp_path / "late.deb", more="Depends: two (>> 1.0-1)\n")
    with pytest.raises(r2d2.ImageNotFound, match=r"two \(>> 1.0-1\)"):
        Image.from_packages([late, two, one])
    odd = deb(tmp_path / "odd.deb", more="Depends: two (~ 1)\n")
    with pytest.raises(r2d2.ImageError, match="malformed"):
        Image.from_packages([odd, two, one])
    with pytest.raises(r2d2.ImageError, match="not made by"):
        packages.contents(Image.scratch())


def test_versions() -> None:
    pairs = [
        ("1.0~rc1", "1.0"), ("2", "1:1"), ("1.2-1", "1.10-1"), ("1.0a", "1.0+"), ("1.0-1", "1.0-1+b1"),
        ("1.0", "1.0."), ("1.0~~", "1.0~"), ("7.0.15-1~deb12u9", "7.0.15-1~deb12u10"),
    ]  # fmt: skip
    for smaller, larger in pairs:
        assert dpkg.compare(smaller, larger) == -1
        assert dpkg.compare(larger, smaller) == 1
        if shutil.which("dpkg"):
            subprocess.run(["dpkg", "--compare-versions", smaller, "lt", larger], check=True)
    assert dpkg.compare("1.0-01", "1.0-1") == dpkg.compare("1.0", "1.0-0") == 0
