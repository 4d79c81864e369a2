"""Snapshots: what a container changed is what containers of the image see."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

import r2d2
from _needs import needs
from _proc import until
from r2d2 import snapshot

SHELL = ["sh", "-c"]


def sh(container: r2d2.Container, script: str, **keywords: object) -> str:
    done = container.run([*SHELL, script], check=True, capture_output=True, text=True, **keywords)
    return done.stdout


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("R2D2_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["layers", "host", "scratch"])
def base(request: pytest.FixtureRequest, image: r2d2.Image) -> r2d2.Image | str:
    return image if request.param == "layers" else request.param


def frozen(base: r2d2.Image | str, script: str, **keywords: object) -> r2d2.Image:
    with r2d2.Container(base, **keywords) as container:
        if base == "scratch":
            container.copy_in("/bin/busybox", "/busybox")
            container.run(["/busybox", "sh", "-c", script], check=True)
        else:
            sh(container, script)
        return container.snapshot()


def seen(image: r2d2.Image, script: str) -> str:
    with r2d2.Container(image) as container:
        busybox = container.path("/busybox").exists()
        args = ["/busybox", "sh"] if busybox else ["sh"]
        return container.run([*args, "-c", script], check=True, capture_output=True, text=True).stdout


WRITE = """
PATH=$PATH:/; alias mkdir='busybox mkdir' ln='busybox ln' chmod='busybox chmod' touch='busybox touch'
mkdir -p /data/deep/er /tmp/kept; echo one > /data/file; chmod 640 /data/file; ln /data/file /data/hard
ln -s /etc/passwd /data/link; ln -s ../../../../../../etc/shadow /data/deep/out
touch -d '2001-02-03 04:05:06' /data/file
echo two > /tmp/kept/two; chmod 000 /data/deep/er; echo top > /top
"""
READ = """
PATH=$PATH:/
cat /data/file /tmp/kept/two /top; busybox stat -c '%a %h %Y' /data/file; busybox readlink /data/link
busybox stat -c %a /data/deep/er; [ /data/file -ef /data/hard ] && echo same
"""


def test_kept_below_a_directory_that_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``~/.cache`` lies below the home directory that a container writes to."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        monkeypatch.setenv("R2D2_CACHE", f"{place}/cache")
        Path(place, "host").write_text("the host's")
        Path(place, "gone").write_text("the host's")
        image = frozen("host", f"echo changed > {place}/new; rm {place}/gone; echo more >> {place}/host")
        script = f"cd {place}; cat new host; ls; echo mine > new; cat new"
        assert seen(image, script).split() == ["changed", "the", "host'smore", "cache", "host", "new", "mine"]
        assert sorted(os.listdir(place)) == ["cache", "gone", "host"]


@needs("busybox")
def test_new_files_are_seen_with_their_metadata(base: r2d2.Image | str) -> None:
    image = frozen(base, WRITE, env={"TZ": "UTC"})
    lines = seen(image, READ).split("\n")
    assert lines[:3] == ["one", "two", "top"]
    assert lines[3] == "640 2 981173106"
    assert lines[4:7] == ["/etc/passwd", "0", "same"]
    # The first image has none of it, and writes to the second stay in their container.
    if base != "scratch":
        assert (
            seen(base if isinstance(base, r2d2.Image) else r2d2.Image.host(), "ls -d /data || echo no")
            == "no\n"
        )
    seen(image, "echo changed > /data/file")
    assert seen(image, "PATH=$PATH:/; cat /data/file") == "one\n"


def test_deletions_and_replaced_directories(image: r2d2.Image) -> None:
    first = frozen(image, "mkdir -p /a/b /c; touch /a/1 /a/b/2 /c/old; echo gone > /f")
    second = frozen(first, "rm -r /a/b; rm /f; rm -r /c; mkdir /c; touch /c/new; rm -r /bin/ls || true")
    assert seen(second, "echo /a/* /c/*; [ -e /f ] || echo no").split() == ["/a/1", "/c/new", "no"]
    assert seen(first, "echo /a/* /c/*; cat /f").split() == ["/a/1", "/a/b", "/c/old", "gone"]
    assert len(second.layers) == len(image.layers) + 2


def test_host_parts_deletions_and_new_top_directories() -> None:
    first = frozen(
        "host",
        "mkdir -p /usr/share/r2d2/deep; touch /usr/share/r2d2/old; mkdir -p /new/dir; echo n > /new/dir/n\n"
        "ln -s new /newlink; echo e > /etc/mine; echo changed > /etc/hosts; rm /usr/bin/env",
    )
    out = seen(
        first, "ls /usr/share/r2d2; cat /new/dir/n /newlink/dir/n /etc/mine; grep -c changed /etc/hosts || :"
    )
    assert out.split() == ["deep", "old", "n", "n", "e", "0"]
    assert seen(first, "ls /usr/bin/env 2>&1 || echo $?").split()[-1] == "2"
    assert not Path("/new").exists()
    # An opaque directory, and deletions below and beside what the host has.
    script = "rm -r /usr/share/r2d2 /new/dir /newlink; mkdir /usr/share/r2d2; touch /usr/share/r2d2/only"
    second = frozen(first, script)
    out = seen(second, "ls -A /usr/share/r2d2 /new; ls -d /newlink 2>/dev/null; cat /etc/mine")
    assert out.split() == ["/new:", "/usr/share/r2d2:", "only", "e"]
    with r2d2.Container(second) as container:
        assert container.diff() == []
        sh(container, "echo y > /new/y; rm /usr/share/r2d2/only")
        assert [str(change) for change in container.diff()] == ["A /new/y", "D /usr/share/r2d2/only"]


def test_a_snapshot_of_nothing_changed_is_empty(image: r2d2.Image) -> None:
    for base in (image, "host"):
        with r2d2.Container(base, mounts=[f"{os.getcwd()}:/src:ro"]) as container:
            made = container.snapshot()
        assert os.listdir(made.layers[0]) == []
        assert seen(made, "echo fine") == "fine\n"


def test_wherever_the_upper_layer_is(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    own = {"upper": tmp_path / "upper", "work": tmp_path / "work"}
    script = (
        "mkdir /d; echo x > /d/f; echo y > /mounted/host; rm /etc/passwd; touch -d '2001-02-03 04:05:06' /d/f"
    )
    (tmp_path / "host").mkdir()
    mounts = [f"{tmp_path}/host:/mounted"]
    made = {frozen(image, script, mounts=mounts, **keywords) for keywords in ({}, {"storage": "disk"}, own)}
    assert len(made) == 1
    assert seen(made.pop(), "cat /d/f; ls -A /mounted /etc/passwd 2>&1 | grep -c 'No such'") == "x\n2\n"
    assert (tmp_path / "host/host").read_text() == "y\n"
    assert frozen("host", "echo x > /etc/f", storage="disk").kind == "host"


def test_explain_and_script_name_the_layer(image: r2d2.Image) -> None:
    made = frozen("host", "mkdir /new")
    steps = r2d2.Container(made).explain()
    assert made.layers[0] in steps.script()
    assert any("/new" in step.title for step in steps)
    del image


def test_the_layer_is_shared_and_named_by_content(image: r2d2.Image) -> None:
    script = "mkdir /d; echo x > /d/f; touch -d '2001-02-03 04:05:06' /d/f"
    first, second = frozen(image, script), frozen(image, script)
    assert first == second
    assert frozen(image, script + "; chmod 600 /d/f") != first
    assert len(snapshot.stored()) == 2
    with r2d2.Container(first) as one, r2d2.Container(first) as two:
        sh(one, "echo 1 > /d/f")
        assert sh(two, "cat /d/f") == "x\n"


def test_it_pickles_and_is_removed(image: r2d2.Image) -> None:
    made = frozen(image, "mkdir -p /d/e; echo x > /d/f; chmod 0 /d/e /d")
    assert pickle.loads(pickle.dumps(made)) == made
    assert seen(pickle.loads(pickle.dumps(made)), "cat /d/f") == "x\n"
    made.remove()
    assert snapshot.stored() == []
    assert os.listdir(os.path.join(os.environ["R2D2_CACHE"], "snapshots")) == []
    made.remove()
    with pytest.raises(r2d2.ImageNotFound, match="layer of the image"):
        r2d2.Container(made).start()
    with pytest.raises(r2d2.SpecError, match="no snapshot"):
        image.remove()


def test_symbolic_links_lead_nowhere(image: r2d2.Image, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    script = f"""
    mkdir /d; ln -s {victim} /d/out; ln -s {victim}/file /d/file; ln -s / /d/root; ln -s /proc/self /d/self
    rm -rf /etc; ln -s {victim} /etc; mkfifo /d/fifo
    """
    made = frozen(image, script)
    assert os.readlink(os.path.join(made.layers[0], "d/out")) == str(victim)
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "mine"
    assert seen(made, "ls /d/fifo; ls /d/out 2>&1 | wc -l; readlink /d/file").split() == [
        "/d/fifo", "1", f"{victim}/file",
    ]  # fmt: skip
    over = frozen(made, "rm /d/out; mkdir /d/out; echo in > /d/out/file")
    assert seen(over, "cat /d/out/file") == "in\n"
    assert (victim / "file").read_text() == "mine"


def test_marks_that_a_program_made_do_not_count() -> None:
    """In a plain tmpfs directory anybody can write overlayfs' marks."""
    script = """
import os
os.makedirs("/tmp/d/below")
for name, value in (("opaque", b"y"), ("redirect", b"/etc"), ("whiteout", b"y")):
    try: os.setxattr("/tmp/d", "user.overlay." + name, value)
    except OSError: pass
os.setxattr("/tmp/d", "user.mine", b"1")
os.mknod("/tmp/d/null", 0o020000, 0)
open("/tmp/d/file", "w").write("x")
"""
    with r2d2.Container("host") as container:
        container.run(["python3", "-c", script], check=True)
        made = container.snapshot()
    layer = Path(made.layers[0])
    assert sorted(os.listdir(layer / "tmp/d")) == ["below", "file"]
    assert os.listxattr(layer / "tmp/d") == ["user.mine"]


def test_holes_stay_holes(image: r2d2.Image) -> None:
    made = frozen(image, "dd if=/dev/zero of=/sparse bs=1 count=1 seek=200M 2>/dev/null; echo a > /small")
    stat = os.stat(os.path.join(made.layers[0], "sparse"))
    assert stat.st_size == (200 << 20) + 1
    assert stat.st_blocks * 512 < 1 << 20
    assert seen(made, "stat -c %s /sparse") == f"{stat.st_size}\n"


def test_unreadable_files_are_kept(image: r2d2.Image) -> None:
    made = frozen(image, "mkdir -m 0 /shut; echo x > /shut/f; echo y > /none; chmod 0 /none /shut/f")
    assert seen(made, "cat /none /shut/f; stat -c %a /none /shut /shut/f").split() == [
        "y",
        "x",
        "0",
        "0",
        "0",
    ]


def test_the_container_goes_on_and_is_not_left_paused(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        with container.popen([*SHELL, "while read x; do echo $x > /f; echo $x; done"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop:  # fmt: skip
            loop.stdin.write("1\n")
            loop.stdin.flush()
            assert loop.stdout.readline() == "1\n"
            made = container.snapshot()
            loop.stdin.write("2\n")
            loop.stdin.flush()
            assert loop.stdout.readline() == "2\n"
            loop.stdin.close()
        assert sh(container, "cat /f") == "2\n"
    assert seen(made, "cat /f") == "1\n"


def test_one_that_was_paused_stays_so(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        beat = container.popen([*SHELL, "while usleep 10000; do date +%s%N > /beat; done"])
        assert until(lambda: container.path("/beat").exists(), 30)
        container.pause()
        container.snapshot()
        before = container.path("/beat").read_text()
        assert not until(lambda: container.path("/beat").read_text() != before, 0.2)
        container.resume()
        assert until(lambda: container.path("/beat").read_text() != before, 30)
        beat.kill()
        beat.wait()


def test_deep_and_unreadable(image: r2d2.Image) -> None:
    """Also where a process in the container's user namespace has to read it."""
    with r2d2.Container(image) as container:
        sh(container, "mkdir -m 0 /a; for i in $(seq 300); do mkdir d && cd d; done", cwd="/tmp")
        with pytest.raises(r2d2.ImageError, match="deeper than 256"):
            container.snapshot()


def test_what_cannot_be_frozen_is_said(image: r2d2.Image, tmp_path: Path) -> None:
    container = r2d2.Container(image)
    with pytest.raises(r2d2.ContainerClosed):
        container.snapshot()
    with r2d2.Container(r2d2.Image.from_dir(image.layers[0])) as container:
        container.stop()
        with pytest.raises(r2d2.ContainerClosed):
            container.snapshot()
    for directory in ("proc", "sys", "dev", "etc"):
        (tmp_path / "root" / directory).mkdir(parents=True)
    with (
        r2d2.Container(r2d2.Image.from_dir(tmp_path / "root", writable=True)) as container,
        pytest.raises(r2d2.SpecError, match="no upper layer"),
    ):
        container.snapshot()
    with r2d2.Container(image) as container:
        sh(container, "for i in $(seq 300); do mkdir d && cd d; done", cwd="/tmp")
        with pytest.raises(r2d2.ImageError, match="deeper than 256"):
            container.snapshot()
    store = os.path.join(os.environ["R2D2_CACHE"], "snapshots")
    assert os.listdir(store) == []


def test_many_at_once_agree(image: r2d2.Image) -> None:
    script = "mkdir /d; for i in $(seq 200); do echo $i > /d/$i; touch -d '2001-02-03 04:05:06' /d/$i; done"
    made: list[r2d2.Image] = []
    threads = [threading.Thread(target=lambda: made.append(frozen(image, script))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1
    assert seen(made[0], "cat /d/200") == "200\n"
    assert len(os.listdir(os.path.join(os.environ["R2D2_CACHE"], "snapshots"))) == 1


def test_what_a_killed_builder_left_is_removed(image: r2d2.Image) -> None:
    frozen(image, "mkdir /d")
    store = os.path.join(os.environ["R2D2_CACHE"], "snapshots")
    left = os.path.join(store, ".new-1-1")
    os.makedirs(os.path.join(left, "layer", "half"))
    busy = os.path.join(store, ".new-2-1")
    os.makedirs(os.path.join(busy, "layer"))
    import fcntl

    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    frozen(image, "mkdir /e")
    assert not os.path.exists(left)
    assert os.path.exists(busy)
    os.close(lock)


def _build(arguments: tuple[str, str, str]) -> r2d2.Image:
    layer, log, key = arguments

    def build() -> r2d2.Image:
        with open(log, "a") as file:
            file.write("built\n")
        return frozen(r2d2.Image.from_dir(layer), "echo x > /f")

    return snapshot.cached(["test", Path(key)], build)


def test_one_builder_however_many_want_it(image: r2d2.Image, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("1")
    log = tmp_path / "log"
    arguments = (image.layers[0], str(log), str(key))
    pool = multiprocessing.get_context("fork").Pool(3)
    made = pool.map(_build, [arguments] * 3)
    pool.close()
    pool.join()
    assert len(set(made)) == 1
    assert log.read_text() == "built\n"
    key.write_text("2")
    _build(arguments)
    assert log.read_text() == "built\nbuilt\n"
    for each in snapshot.stored():
        r2d2.Image("layers", [each]).remove()
    assert seen(_build(arguments), "cat /f") == "x\n"
    assert log.read_text() == "built\n" * 3


def test_a_build_that_fails_is_tried_again(image: r2d2.Image) -> None:
    def broken() -> r2d2.Image:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        snapshot.cached(["k"], broken)
    assert snapshot.cached(["k"], lambda: image) == image


@needs("root")
def test_owners_are_kept(image: r2d2.Image) -> None:
    script = "mkdir /srv1; echo x > /srv1/f; chown -R 1000:1001 /srv1; chmod 700 /srv1"
    for base in (image, "host"):
        made = frozen(base, script)
        assert seen(made, "stat -c %u:%g /srv1 /srv1/f; stat -c %a /srv1").split() == ["1000:1001"] * 2 + [
            "700"
        ]
        with r2d2.Container(made, user="1000:1001") as container:
            assert sh(container, "cat /srv1/f") == "x\n"


@needs("root")
def test_without_a_user_namespace(image: r2d2.Image) -> None:
    first = frozen(image, "mkdir -p /a/b; touch /a/b/1", userns="host")
    second = frozen(first, "rm -r /a; mkdir /a; touch /a/2", userns="host")
    for userns in ("host", "auto"):
        with r2d2.Container(second, userns=userns) as container:
            assert sh(container, "ls /a") == "2\n"
