"""Files of a running container from outside: every path stays inside, whatever the container put there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

import r2d2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2d2.files import ContainerPath

IMAGES = ["host", "minimal", "scratch", "directory"]


@pytest.fixture
def c(image: r2d2.Image) -> Iterator[r2d2.Container]:
    with r2d2.Container(image) as container:
        yield container


@pytest.fixture(params=IMAGES)
def each(request: pytest.FixtureRequest, image: r2d2.Image, tmp_path: Path) -> Iterator[r2d2.Container]:
    for name in ("proc", "sys", "dev", "tmp"):
        (tmp_path / "root" / name).mkdir(parents=True)
    images = {
        "host": r2d2.Image.host(),
        "minimal": image,
        "scratch": r2d2.Image.scratch(),
        "directory": r2d2.Image.from_dir(tmp_path / "root", writable=True),
    }
    with r2d2.Container(images[request.param]) as container:
        yield container


def sh(c: r2d2.Container, script: str) -> str:
    return c.run(["sh", "-euc", script], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory of the host that no operation may read from or write to."""
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "file").write_text("host")
    yield directory
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert (directory / "file").read_text() == "host"


# Single operations


def test_a_path_is_pathlibs(c: r2d2.Container) -> None:
    p = c.path("/etc/a.tar.gz")
    assert (p.name, p.stem, p.suffix, p.suffixes) == ("a.tar.gz", "a.tar", ".gz", [".tar", ".gz"])
    assert p.parent == c.path("/etc")
    assert [str(above) for above in p.parents] == ["/etc", "/"]
    assert p.parent / "b" == c.path("/etc", "b") == p.with_name("b")
    assert str(p.with_suffix(".x")) == "/etc/a.tar.x"
    assert str(p.with_stem("y")) == "/etc/y.gz"
    assert p.relative_to("/etc") == PurePosixPath("a.tar.gz")
    assert p.is_relative_to(c.path("/etc"))
    assert p.match("*.gz")
    assert c.path("x") == c.path("/x")
    assert len({c.path("/x"), c.path("x")}) == 1
    assert sorted([c.path("/b"), c.path("/a")]) == [c.path("/a"), c.path("/b")]
    with pytest.raises(TypeError):
        os.fspath(p)  # type: ignore[call-overload] # open(p) must not open the host's


def test_relative_paths_count_from_the_workdir(image: r2d2.Image) -> None:
    with r2d2.Container(image, workdir="/tmp") as c:
        c.path("here").write_text("x")
        assert sh(c, "cat /tmp/here") == "x"


def test_read_and_write(each: r2d2.Container) -> None:
    p = each.path("/file")
    assert not p.exists()
    assert p.write_text("grüße\n", encoding="utf-8") == 6
    assert p.read_bytes() == "grüße\n".encode()
    assert p.write_bytes(b"1\n2\n") == 4
    with p.open("a") as file:
        file.write("3\n")
    with p.open() as file:
        assert [*file] == ["1\n", "2\n", "3\n"]
    with p.open("r+b") as file:
        file.seek(2)
        file.write(b"X")
    assert p.read_text() == "1\nX\n3\n"
    with pytest.raises(FileExistsError):
        p.open("x")
    p.truncate(1)
    assert p.stat().st_size == 1
    p.unlink()
    p.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        p.read_text()
    assert caught.value.filename == "/file"


def test_what_is_written_is_there_inside(c: r2d2.Container) -> None:
    c.path("/out").write_text("from outside")
    assert sh(c, "cat /out; stat -c ' %u:%g %a' /out") == "from outside 0:0 644\n"
    sh(c, "echo inside >/in; chmod 600 /in")
    p = c.path("/in")
    assert p.read_text() == "inside\n"
    assert stat.S_IMODE(p.stat().st_mode) == 0o600
    assert (p.stat().st_uid, p.stat().st_gid) == (0, 0)


def test_directories(each: r2d2.Container) -> None:
    p = each.path("/d/e/f")
    with pytest.raises(FileNotFoundError):
        p.mkdir()
    p.mkdir(parents=True)
    p.mkdir(exist_ok=True)
    each.path("/").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        p.mkdir()
    (p / "x").touch()
    with pytest.raises(OSError, match="not empty"):
        p.rmdir()
    with pytest.raises(IsADirectoryError):
        p.read_text()
    with pytest.raises(NotADirectoryError):
        (p / "x" / "y").read_text()
    assert not (p / "x" / "y").exists()
    assert [child.name for child in p.iterdir()] == ["x"]
    assert [(str(d), ds, fs) for d, ds, fs in each.path("/d").walk()] == [
        ("/d", ["e"], []), ("/d/e", ["f"], []), ("/d/e/f", [], ["x"]),
    ]  # fmt: skip
    assert [str(d) for d, _, _ in each.path("/d").walk(top_down=False)] == ["/d/e/f", "/d/e", "/d"]
    (p / "x").unlink()
    p.rmdir()
    assert not p.exists()


def test_glob(c: r2d2.Container) -> None:
    for name in ("a/1.txt", "a/b/2.txt", "a/b/3.md", "z.txt"):
        p = c.path("/g", name)
        p.parent.mkdir(parents=True, exist_ok=True)
        p.touch()
    top = c.path("/g")
    (top / "loop").symlink_to(".")

    def found(paths: Iterator[ContainerPath]) -> list[str]:
        return sorted(str(path.relative_to("/g")) for path in paths)

    assert found(top.glob("*.txt")) == ["z.txt"]
    assert found(top.glob("a/*/*")) == ["a/b/2.txt", "a/b/3.md"]
    assert found(top.rglob("*.txt")) == ["a/1.txt", "a/b/2.txt", "z.txt"]
    assert found(top.glob("**")) == [".", "a", "a/b"]
    assert found(top.glob("?/[0-9].txt")) == ["a/1.txt"]
    assert found(top.glob("a/b/3.md")) == ["a/b/3.md"]
    assert found(top.glob("none/*")) == []
    with pytest.raises(ValueError, match="relative"):
        next(top.glob("/etc/*"))


def test_links_modes_and_times(each: r2d2.Container) -> None:
    p, link = each.path("/f"), each.path("/l")
    p.write_text("x")
    link.symlink_to("f")
    assert link.readlink() == PurePosixPath("f")
    assert link.is_symlink()
    assert link.is_file()
    assert link.samefile(p)
    with pytest.raises(OSError, match="Invalid") as caught:
        p.readlink()
    assert caught.value.errno == errno.EINVAL
    link.write_text("through")
    assert p.read_text() == "through"
    link.chmod(0o640)
    assert stat.S_IMODE(p.stat().st_mode) == 0o640
    link.utime((1_000_000_001, 2_000_000_002))
    assert (p.stat().st_atime_ns, p.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert link.lstat().st_mtime_ns != 2_000_000_002
    assert p.rename("g") == each.path("/g")
    assert not link.exists()
    assert link.exists(follow_symlinks=False)
    link.touch()  # as open(2) does: the target is made, inside
    assert p.is_file()
    link.unlink()
    assert each.path("/g").exists()


def test_owners_are_ids_inside(c: r2d2.Container) -> None:
    c.path("/f").touch()
    c.path("/f").chown(0, 0)
    assert (c.path("/f").stat().st_uid, c.path("/f").stat().st_gid) == (0, 0)


def test_strange_names(c: r2d2.Container) -> None:
    names = ["new\nline", "tab\t", " ", "-rf", "'\"", "\udcff\udcfe", "…", "a" * 255]
    for name in names:
        c.path("/n").mkdir(exist_ok=True)
        (c.path("/n") / name).write_text(name, errors="surrogateescape")
    assert sorted(p.name for p in c.path("/n").iterdir()) == sorted(names)
    assert sh(c, "ls -a /n | wc -l") != "0"
    assert (c.path("/n") / "\udcff\udcfe").read_bytes() == b"\xff\xfe"
    with pytest.raises(OSError, match="too long"):
        (c.path("/n") / ("a" * 256)).touch()
    with pytest.raises(OSError, match=r"Invalid|null") as caught:
        (c.path("/n") / "a\0b").stat()
    assert caught.value.errno == errno.EINVAL


# Hostile


def test_symlinks_end_inside(c: r2d2.Container, secret: Path) -> None:
    up = "/.." * 20
    for i, target in enumerate(
        [f"{secret}", f"../../../..{secret}", f"{up}{secret}", f"l0/../../..{secret}"]
    ):
        link = c.path(f"/l{i}")
        link.symlink_to(target)
        for attempt in (
            lambda p: (p / "file").read_text(),
            lambda p: (p / "new").write_text("x"),
            lambda p: (p / "new").mkdir(),
            lambda p: (p / "file").unlink(),
            lambda p: (p / "file").chmod(0o777),
            lambda p: (p / "file").truncate(0),
            lambda p: (p / "new").symlink_to("x"),
            lambda p: (p / "file").rename("/stolen"),
            lambda p: p.rmdir(),
            lambda p: list(p.iterdir()),
        ):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                attempt(link)
    assert not c.path(f"{up}{secret}/file").exists()


def test_magic_links_are_refused(c: r2d2.Container) -> None:
    for path in ("/proc/1/root/etc/passwd", "/proc/self/fd/0", "/proc/1/cwd/etc", "/proc/self/exe"):
        c.path("/magic").unlink(missing_ok=True)
        c.path("/magic").symlink_to(path)
        for p in (c.path(path), c.path("/magic")):
            with pytest.raises(OSError) as caught:
                p.read_bytes()
            assert caught.value.errno in {errno.ELOOP, errno.ENOENT, errno.EACCES}, path


def test_endless_symlinks(c: r2d2.Container) -> None:
    c.path("/a").symlink_to("b")
    c.path("/b").symlink_to("a")
    assert not c.path("/a").exists()
    with pytest.raises(OSError) as caught:
        c.path("/a").read_text()
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError):
        c.path("/a").write_text("x")


@pytest.mark.timeout(20)
def test_fifos_devices_and_sockets_never_block(c: r2d2.Container, tmp_path: Path) -> None:
    sh(c, "mkfifo /fifo; ln -s fifo /link; ln -s /dev/zero /zero")
    for path in ("/fifo", "/link", "/zero", "/dev/null", "/dev/tty", "/dev/ptmx"):
        for mode in ("rb", "wb", "ab", "r+b"):
            with pytest.raises(OSError) as caught:
                c.path(path).open(mode)
            assert caught.value.errno == errno.EINVAL, path
    assert c.path("/fifo").is_fifo()
    assert c.path("/zero").is_char_device()
    assert c.path("/fifo").stat().st_size == 0
    with pytest.raises(OSError) as caught:
        c.copy_out("/fifo", tmp_path)
    assert caught.value.errno == errno.EINVAL
    c.path("/d").mkdir()
    sh(c, "mv /fifo /d; echo x >/d/file")
    with pytest.warns(UserWarning, match="'fifo' \\(a FIFO\\)"):
        c.copy_out("/d", tmp_path)
    assert os.listdir(tmp_path / "d") == ["file"]


def test_a_fifo_racing_with_a_file(c: r2d2.Container) -> None:
    """Peers row 14: what was a file when looked at is a FIFO when opened."""
    script = "mkfifo /p; echo x >/q; while :; do mv /p /f; mv /q /f; mkfifo /p; echo x >/q; done"
    flip = c.popen(["sh", "-c", script])
    seen: set[int | None] = set()
    try:
        for _ in range(500):
            try:
                c.path("/f").read_bytes()
                c.path("/f").write_bytes(b"y")
            except OSError as error:
                seen.add(error.errno)
    finally:
        flip.kill()
        flip.wait()
    assert seen <= {errno.EINVAL, errno.ENOENT}


@pytest.fixture
def racing(c: r2d2.Container, secret: Path) -> Iterator[r2d2.Container]:
    """A process inside turns /race/x from a directory into a symlink to the secret and back, all the time."""
    script = f"""
        mkdir -p /race/real; ln -s {secret} /race/evil
        while :; do
            mv /race/real /race/x; mv /race/x /race/real
            mv -T /race/evil /race/x 2>/dev/null || mv /race/evil /race/x; mv /race/x /race/evil
        done
    """
    flip = c.popen(["sh", "-c", script], stderr=subprocess.DEVNULL)
    try:
        yield c
    finally:
        flip.kill()
        flip.wait()


@pytest.mark.timeout(120)
def test_a_racing_symlink_never_leads_out(racing: r2d2.Container, secret: Path, tmp_path: Path) -> None:
    """Peers rows 8, 9, 14: 1,000 writes and copies while the path flips."""
    source = tmp_path / "payload"
    source.write_text("payload")
    done = 0
    for i in range(1000):
        for attempt in (
            lambda i: racing.path("/race/x", f"w{i}").write_text("w"),
            lambda i: racing.path("/race/x", f"d{i}").mkdir(),
            lambda i: racing.copy_in(source, f"/race/x/c{i}"),
            lambda i: racing.path("/race/x/file").unlink(missing_ok=True),
        ):
            with contextlib.suppress(OSError):
                attempt(i)
                done += 1
        out = tmp_path / "out"
        with contextlib.suppress(OSError):
            racing.copy_out("/race/x", out)
        if out.is_symlink():
            out.unlink()  # a link copied as a link
        elif out.exists():
            assert not (out / "file").exists()
            shutil.rmtree(out)
    assert done > 100  # the race was on, and sometimes the path was ours
    assert (secret / "file").read_text() == "host"


def test_copy_out_follows_no_planted_link(c: r2d2.Container, secret: Path, tmp_path: Path) -> None:
    """A link of the first copy must not lead the second one out."""
    out = tmp_path / "out"
    out.mkdir()
    c.path("/d").mkdir()
    c.path("/d/sub").symlink_to(secret)
    c.copy_out("/d", out)
    assert os.readlink(out / "d/sub") == str(secret)
    c.path("/d/sub").unlink()
    c.path("/d/sub").mkdir()
    c.path("/d/sub/file").write_text("from the container")
    with pytest.raises(FileExistsError) as caught:
        c.copy_out("/d", out)
    assert caught.value.filename == str(out / "d/sub")
    c.path("/file").write_text("new")
    (out / "file").symlink_to(secret / "file")
    c.copy_out("/file", out)  # replaces the link
    assert (out / "file").read_text() == "new"
    assert not (out / "file").is_symlink()


def test_copy_out_to_what_the_container_can_write(image: r2d2.Image, secret: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with r2d2.Container(image, mounts=[(shared, "/shared")]) as c:
        c.path("/d/sub").mkdir(parents=True)
        c.path("/d/sub/file").write_text("x")
        script = f"""
            cd /shared; ln -s {secret} evil; mkdir -p d/sub
            while :; do mv d/sub d/y; mv evil d/sub; mv d/sub evil; mv d/y d/sub; done
        """
        flip = c.popen(["sh", "-c", script], stderr=subprocess.DEVNULL)
        for _ in range(300):
            with contextlib.suppress(OSError):
                c.copy_out("/d", shared)
        flip.kill()
        flip.wait()


def test_setuid_bits_do_not_come_out(c: r2d2.Container, tmp_path: Path) -> None:
    sh(c, "echo x >/s; chmod 6755 /s; mkdir /d; chmod 7777 /d")
    c.copy_out("/s", tmp_path)
    c.copy_out("/d", tmp_path)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777


# Copies


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub/empty").mkdir(parents=True)
    (top / "file").write_text("file")
    (top / "sub/script").write_text("#!/bin/sh\n")
    (top / "sub/script").chmod(0o751)
    (top / "sub/link").symlink_to("script")
    (top / "dangling").symlink_to("/no/such")
    (top / "bytes\udcff\n").write_bytes(b"\0")
    (top / "sub/empty").chmod(0o500)
    os.utime(top / "file", ns=(10**9, 2 * 10**9))
    os.utime(top / "sub", ns=(10**9, 3 * 10**9))
    os.utime(top / "dangling", ns=(10**9, 4 * 10**9), follow_symlinks=False)
    return top


def described(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        info = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        mode = 0 if path.is_symlink() else info.st_mode
        found[str(path.relative_to(top))] = (mode, info.st_mtime_ns, content)
    return found


def test_there_and_back(each: r2d2.Container, tree: Path, tmp_path: Path) -> None:
    assert str(each.copy_in(tree, "/copy")) == "/copy"
    assert each.copy_out("/copy", tmp_path / "back") == tmp_path / "back"
    assert described(tmp_path / "back") == described(tree)


def test_where_it_goes_is_docker_cps(c: r2d2.Container, tree: Path, tmp_path: Path) -> None:
    c.path("/d").mkdir()
    assert str(c.copy_in(tree / "file", "/new")) == "/new"
    assert str(c.copy_in(tree / "file", "/d")) == "/d/file"
    assert str(c.copy_in(tree / "file", "/d/")) == "/d/file"
    assert str(c.copy_in(tree, "/d")) == "/d/tree"
    assert str(c.copy_in(tree, "/d")) == "/d/tree"  # merged
    assert str(c.copy_in(f"{tree}/.", "/d")) == "/d"
    assert sh(c, "ls /d/sub") == "empty\nlink\nscript\n"
    with pytest.raises(NotADirectoryError):
        c.copy_in(tree, "/new")
    with pytest.raises(FileNotFoundError) as caught:
        c.copy_in(tree / "file", "/no/where")
    assert caught.value.filename == "/no/where"
    with pytest.raises(NotADirectoryError):
        c.copy_in(tree / "file", "/none/")
    with pytest.raises(FileNotFoundError) as caught:
        c.copy_in(tree / "none", "/d")
    assert caught.value.filename == str(tree / "none")
    with pytest.raises(FileNotFoundError):
        c.copy_out("/none", tmp_path)
    c.path("/d/file").unlink()
    c.path("/d/file").mkdir()
    with pytest.raises(IsADirectoryError):
        c.copy_in(tree / "file", "/d")


def test_a_link_is_copied_as_one(c: r2d2.Container, tree: Path) -> None:
    c.copy_in(tree / "sub/link", "/link")
    assert str(c.path("/link").readlink()) == "script"
    c.copy_in(tree / "sub/link", "/file", follow_symlinks=True)
    assert c.path("/file").read_text() == "#!/bin/sh\n"
    assert not c.path("/file").is_symlink()
    c.path("/to").symlink_to("/link")  # in the way: replaced, not followed
    c.copy_in(tree / "file", "/to")
    assert c.path("/to").read_text() == "file"
    c.path("/dir").mkdir()
    c.path("/dlink").symlink_to("/dir")
    assert str(c.copy_in(tree / "file", "/dlink")) == "/dlink/file"
    assert c.path("/dir/file").exists()


def test_relative_paths_of_the_host(c: r2d2.Container, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    c.path("/d").mkdir()
    c.copy_in("file", "/d")
    c.copy_in(".", "/d")
    assert c.path("/d/sub/script").exists()
    c.copy_out("/d/file", "..")
    assert (tree.parent / "file").read_text() == "file"


def test_what_replaces_is_whole_or_absent(c: r2d2.Container, tmp_path: Path) -> None:
    """A reader sees the old file, the new one, or none; never a part, never another name."""
    size = 1 << 20
    for letter in "ab":
        (tmp_path / letter).write_bytes(letter.encode() * size)
    c.path("/dir").mkdir()
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.update(p.name for p in c.path("/dir").iterdir())
            try:
                content = c.path("/dir/f").read_bytes()
            except FileNotFoundError:
                continue
            assert len(content) == size
            assert len(set(content)) == 1

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        c.copy_in(tmp_path / "ab"[i % 2], "/dir/f")
    stop.set()
    reader.join()
    assert seen == {"f"}


@pytest.mark.parametrize("out", [False, True])
def test_sigkill_leaves_no_temporary_file(image: r2d2.Image, tmp_path: Path, out: bool) -> None:
    """What a killed copy leaves is whole files under their names, and nothing else."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "to").mkdir()
    size = 30 << 20
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * (size >> 20))
    there = "/mnt" if out else "/shared"
    script = f"""
import r2d2, sys
image = r2d2.Image.from_dir({image.layers!r})
with r2d2.Container(image, mounts=[({str(tmp_path / "shared")!r}, "/shared")]) as c:
    c.path("/mnt").mkdir(exist_ok=True)
    c.copy_in({str(tmp_path / "large")!r}, "{there}/f")
    print("ready", flush=True)
    for i in range(1000):
        if {out}:
            c.copy_out("{there}/f", {str(tmp_path / "to")!r} + f"/{{i % 3}}")
        else:
            c.copy_in({str(tmp_path / "large")!r}, f"/shared/{{i % 3}}")
"""
    for delay in (0.01, 0.03, 0.05, 0.08):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            threading.Event().wait(delay)  # the moment of the blow, not a wait for anything
            process.kill()
        for directory in (tmp_path / "to", tmp_path / "shared"):
            for path in directory.iterdir():
                assert path.name in {"0", "1", "2", "f"}
                assert path.stat().st_size == size


def test_a_mount_point_is_overwritten(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "bound").write_text("old, and longer")
    (tmp_path / "new").write_text("new")
    with r2d2.Container(image, mounts=[(tmp_path / "bound", "/bound")]) as c:
        c.copy_in(tmp_path / "new", "/bound")
        assert c.path("/bound").read_text() == "new"
        assert c.run(["cat", "/bound"], capture_output=True, text=True).stdout == "new"
        for attempt in (
            lambda: c.path("/bound").unlink(),
            lambda: c.path("/bound").rename("/x"),
            lambda: c.path("/new").rename("/bound"),
            lambda: c.path("/proc").rmdir(),
        ):
            c.path("/new").touch()
            with pytest.raises(OSError) as caught:  # from outside the kernel would take the mount away
                attempt()
            assert caught.value.errno == errno.EBUSY
    assert (tmp_path / "bound").read_text() == "new"


def test_large_and_sparse_files(c: r2d2.Container, tmp_path: Path) -> None:
    large, sparse = tmp_path / "large", tmp_path / "sparse"
    block = os.urandom(1 << 20)
    large.write_bytes(block * 100)
    with sparse.open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
        file.truncate(2 << 30)
    for path in (large, sparse):
        c.copy_in(path, "/f")
        assert c.path("/f").stat().st_size == path.stat().st_size
        c.copy_out("/f", tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == 2 << 30
    assert (tmp_path / "back").stat().st_blocks < 1 << 16
    assert c.path("/f").stat().st_blocks < 1 << 16
    with (tmp_path / "back").open("rb") as file:
        file.seek(1 << 30)
        assert file.read(4) == b"end\0"
    c.copy_in(large, "/f")
    c.copy_out("/f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == block * 100


def test_a_growing_file_ends(c: r2d2.Container, tmp_path: Path) -> None:
    grow = c.popen(["sh", "-c", "while :; do echo more >>/log; done"])
    try:
        for _ in range(20):
            if c.path("/log").exists():
                c.copy_out("/log", tmp_path / "log")
    finally:
        grow.kill()
        grow.wait()


def test_deep_trees(c: r2d2.Container, tmp_path: Path) -> None:
    """Deeper than PATH_MAX and than the limit of open files."""
    third = "/deep" * 700
    for i in (1, 2, 3):
        c.path(f"/t{i}{third}").mkdir(parents=True)
    c.path(f"/t1{third}/file").write_text("bottom")
    c.path("/t1").rename(f"/t2{third}/deep")
    c.path("/t2").rename(f"/t3{third}/deep")

    def bottom(top: Path) -> str:
        fd = os.open(top, os.O_PATH)
        for _ in range(2102):
            below = os.open("deep", os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
            os.close(fd)
            return file.read()

    c.copy_out("/t3", tmp_path / "out")
    assert bottom(tmp_path / "out") == "bottom"
    c.copy_in(tmp_path / "out", "/again")
    subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)
    c.copy_out("/again", tmp_path / "out")
    assert bottom(tmp_path / "out") == "bottom"
    subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)


def test_the_kernels_file_systems_are_left_out(c: r2d2.Container, tmp_path: Path) -> None:
    c.path("/mark").write_text("x")
    with pytest.warns(UserWarning, match="a file system of the kernel's"):
        c.copy_out("/", tmp_path / "all")
    assert (tmp_path / "all/mark").exists()
    assert not (tmp_path / "all/proc").exists()
    c.copy_out("/proc/version", tmp_path)  # by name it can be had, though it says that it is empty
    assert "Linux" in (tmp_path / "version").read_text()


def test_a_copy_into_itself_ends(image: r2d2.Image, tmp_path: Path) -> None:
    with r2d2.Container(image, mounts=[(tmp_path, "/host")]) as c:
        (tmp_path / "file").write_text("x")
        with pytest.warns(UserWarning, match="the target of the copy"):
            c.copy_out("/host", tmp_path / "out")
        assert (tmp_path / "out/file").exists()
        assert not (tmp_path / "out/out").exists()


# Refusals


def test_a_read_only_root(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with r2d2.Container(image, readonly=True) as c:
        for attempt in (
            lambda: c.path("/x").touch(),
            lambda: c.path("/x").mkdir(),
            lambda: c.path("/etc/hosts").write_text(""),
            lambda: c.path("/etc/hosts").unlink(),
            lambda: c.copy_in(tmp_path / "f", "/f"),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        assert c.path("/etc/hosts").read_text()


def test_a_full_tmpfs(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 4096 * 8)
    with r2d2.Container(image, tmpfs_size="4m", storage="tmpfs") as c:
        with pytest.raises(OSError) as caught:
            c.copy_in(tmp_path / "large", "/large")
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == "/large"
        assert not c.path("/large").exists()
        c.path("/small").write_text("there is room again")


def test_what_only_root_inside_may(c: r2d2.Container, tmp_path: Path) -> None:
    """An ordinary user's own rights end at modes; the container's root goes on."""
    sh(c, "mkdir -p /shut/in; echo x >/shut/in/file; chmod 0 /shut/in/file /shut/in /shut")
    assert c.path("/shut/in/file").read_text() == "x\n"
    c.path("/shut/in/file").write_text("changed")
    c.path("/shut/in/new").mkdir()
    assert sorted(p.name for p in c.path("/shut/in").iterdir()) == ["file", "new"]
    assert stat.S_IMODE(c.path("/shut/in/new").stat().st_mode) == 0o777 & ~_umask()
    c.path("/shut/in/file").chmod(0o600)
    c.path("/shut/in/file").rename("/shut/moved")
    (tmp_path / "f").write_text("f")
    c.copy_in(tmp_path / "f", "/shut/in")
    c.copy_out("/shut", tmp_path / "out")
    os.chmod(tmp_path / "out", 0o700)
    assert (tmp_path / "out/moved").read_text() == "changed"
    os.chmod(tmp_path / "out/in", 0o700)
    assert sh(c, "cat /shut/in/f") == "f"
    assert "r2d2-files" not in sh(c, "ps")


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)


def test_after_the_end(image: r2d2.Image) -> None:
    with r2d2.Container(image) as c:
        p = c.path("/f")
        p.write_text("x")
    with pytest.raises(r2d2.ContainerClosed):
        p.read_text()
    with pytest.raises(r2d2.ContainerClosed):
        c.path("/f").exists()
    with pytest.raises(r2d2.ContainerClosed):
        r2d2.Container(image).path("/").exists()


def test_the_root_of_a_dead_container_can_be_read(image: r2d2.Image) -> None:
    c = r2d2.Container(image).start()
    c.path("/f").write_text("x")
    c.kill()
    c.wait(10)
    assert c.path("/f").read_text() == "x"
    c.stop()


def test_many_threads(c: r2d2.Container) -> None:
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(50):
                p = c.path(f"/t{n}/{i}")
                p.parent.mkdir(exist_ok=True)
                p.write_text(str(i))
                assert p.read_text() == str(i)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that asserts shall see it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Programs that cannot be executed


def test_why_a_program_does_not_start(c: r2d2.Container) -> None:
    def why(program: str) -> str:
        with pytest.raises(OSError) as caught:
            c.run([program])
        return str(caught.value.hint)

    assert "is in none of the directories of PATH (/usr/" in why("nonesuch")
    assert "/bin/nonesuch is not in the image" in why("/bin/nonesuch")
    c.path("/bin/script").write_text("#!/no/such/interpreter\n")
    c.path("/bin/script").chmod(0o755)
    assert "interpreter of its first line (#! /no/such/interpreter) is not inside" in why("script")
    shutil_ls = shutil.which("ls")
    assert shutil_ls
    c.copy_in(shutil_ls, "/bin/dynamic", follow_symlinks=True)
    c.path("/usr/lib/none").mkdir(parents=True, exist_ok=True)
    if not c.path("/lib64/ld-linux-x86-64.so.2").exists():
        assert "loader that it names (PT_INTERP /lib64/ld-linux-x86-64.so.2)" in why("dynamic")
    c.path("/bin/plain").write_text("x")
    assert "nobody may execute it" in why("plain")


def test_why_also_after_the_end(image: r2d2.Image) -> None:
    for each in (
        image,
        r2d2.Image.host(),
        r2d2.Image.from_dir([*image.layers, "/etc"]),
        r2d2.Image.scratch(),
    ):
        with pytest.raises(r2d2.SetupNotFoundError) as caught:
            r2d2.run(["nonesuch"], image=each)
        assert "PATH" in str(caught.value.hint)
