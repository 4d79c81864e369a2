"""`Overlay`: mounted for everybody, seen by ordinary code, gone without a trace."""

from __future__ import annotations

import gc
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from _needs import needs
from _proc import mounts, until
from r2d2 import Container, Image, namespace
from r2d2.errors import (
    CommandTimeout,
    ContainerClosed,
    SetupError,
    SetupNotFoundError,
    SetupPermissionError,
    SpecError,
    UnsupportedError,
)
from r2d2.overlay import Overlay

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.geteuid() == 0
TEXT: dict[str, Any] = {"capture_output": True, "text": True}
#: Every byte that some layer of the way takes for its own.
NASTY = [
    b"a,b", b"a:b", b"a\\b", b"a\\:b", b"a\\,b", b"a\nb", b"\xff\xfe", b" a\t", b"it's", b'q"', b"back\\",
    b"-o", b"a=b", b"*", b"#", b"\\054", b"upperdir=x", b"$HOME", b"`id`", b"n" * 255, b"\\" * 200,
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("lower", "lower2", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("lower")
    (tmp_path / "lower2/other").write_text("lower2")
    return tmp_path


def overlay_options(ov: Overlay) -> str:
    """The options of its mount, as the kernel shows them."""
    return next(line for line in mounts(ov.pid) if " - overlay overlay " in line).rpartition(" ")[2]


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


# The mount


def test_ordinary_code_reads_and_writes(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as ov:
        assert str(ov.merged).startswith(f"/proc/{ov.pid}/root/")
        assert ov.mounted
        assert os.listdir(ov.merged) == ["file"]
        (ov.merged / "directory/inner").mkdir(parents=True)
        (ov.merged / "directory/inner/new").write_bytes(b"x" * 100_000)
        os.rename(ov.merged / "file", ov.merged / "renamed")
        os.symlink("renamed", ov.merged / "link")
        assert (ov.merged / "link").read_text() == "lower"
        os.link(ov.merged / "renamed", ov.merged / "hard")
        os.chmod(ov.merged / "renamed", 0o600)
        assert [(c.kind, c.path) for c in ov.diff()] == [
            ("added", "directory"), ("added", "directory/inner"), ("added", "directory/inner/new"),
            ("deleted", "file"), ("added", "hard"), ("added", "link"), ("added", "renamed"),
        ]  # fmt: skip
        owner = os.geteuid(), os.getegid()
        assert (os.stat(ov.merged / "directory").st_uid, os.stat(ov.merged / "directory").st_gid) == owner
    assert sorted(os.listdir(place / "upper")) == ["directory", "file", "hard", "link", "renamed"]
    assert (place / "lower/file").read_text() == "lower"


def test_another_process_of_the_same_user(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as ov:
        subprocess.run(["sh", "-c", 'cat "$1/file" > "$1/copy"', "sh", ov.merged], check=True)
        assert (place / "upper/copy").read_text() == "lower"


def test_programs_where_it_is_mounted(place: Path) -> None:
    with Overlay(place / "lower", place / "upper", merged=place / "merged") as ov:
        script = "pwd; id -u; cat file; cat; echo written > out; echo $VALUE; exit 3"
        done = ov.run(["sh", "-c", script], input="in", env={**os.environ, "VALUE": "v"}, **TEXT)
        assert (done.returncode, done.stdout) == (3, f"{place}/merged\n0\nlowerinv\n")
        assert (place / "upper/out").read_text() == "written\n"
        assert not os.listdir(place / "merged"), "for the rest of the machine it stays as it is"
        assert ov.run(["pwd"], cwd="/usr", check=True, **TEXT).stdout == "/usr\n"
        with ov.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.communicate("hello")[0] == "hello"
        done = ov.run(["sh", "-c", "ps -e -o comm="], check=True, **TEXT)
        assert done.stdout.split()[0] == "r2d2-init", "a PID namespace of its own"
        with pytest.raises(CommandTimeout):
            ov.run(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.3, **TEXT)
        with pytest.raises(SetupNotFoundError):
            ov.popen(["/no/such/program"])


def test_read_only_view_of_several_layers(place: Path) -> None:
    (place / "lower2/file").write_text("hidden")
    with Overlay([place / "lower", place / "lower2"]) as ov:
        assert sorted(os.listdir(ov.merged)) == ["file", "other"]
        assert (ov.merged / "file").read_text() == "lower", "the first is the topmost"
        with pytest.raises(OSError, match="Read-only file system"):
            (ov.merged / "new").write_text("x")
        assert ov.diff() == []
        assert ov.upper is ov.work is None


def test_layers_of_any_name(place: Path) -> None:
    for i, name in enumerate(NASTY):
        top = os.fsencode(place) + b"/%d" % i
        parts = {
            kind: os.path.join(top, kind, name)
            for kind in (b"lower", b"second", b"upper", b"work", b"merged")
        }
        for part in parts.values():
            os.makedirs(part)
        for part, content in ((b"lower", b"1"), (b"second", b"2")):
            with open(os.path.join(parts[part], content), "wb") as file:
                file.write(content)
        lower = [parts[b"lower"], parts[b"second"]]
        with Overlay(lower, parts[b"upper"], parts[b"work"], parts[b"merged"]) as ov:
            assert sorted(os.listdir(ov.merged)) == ["1", "2"], name
            (ov.merged / "new").write_text("x")
            assert os.listdir(parts[b"upper"]) == [b"new"]
            assert ov.run(["cat", "new"], check=True, **TEXT).stdout == "x"
            with pytest.raises(SetupError, match="Device or resource busy"):
                Overlay(parts[b"second"], parts[b"upper"]).mount()
        with Overlay(lower, parts[b"upper"]) as ov:
            assert sorted(os.listdir(ov.merged)) == ["1", "2", "new"]
        assert os.listdir(os.path.dirname(parts[b"upper"])) == [name], "no work directory left"


def test_five_hundred_layers_and_not_one_more(place: Path) -> None:
    layers = []
    for i in range(501):
        layers.append(place / "many" / f"{i:03}")
        layers[-1].mkdir(parents=True)
        (layers[-1] / f"file{i}").touch()
        (layers[-1] / "top").write_text(str(i))
    with Overlay(layers[:500], place / "upper") as ov:
        assert len(os.listdir(ov.merged)) == 501
        assert (ov.merged / "top").read_text() == "0"
    with pytest.raises(SpecError, match="501 layers"):
        Overlay(layers, place / "upper")


def test_relative_paths_and_symlinks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink("lower", place / "link")
    monkeypatch.chdir(place)
    with Overlay("link", "upper", merged="./merged") as ov:
        assert ov.lower == [place / "lower"]
        assert ov.inside == place / "merged"
        assert os.listdir(ov.merged) == ["file"]


# Its life


def test_a_work_directory_comes_and_goes(place: Path) -> None:
    before = sorted(os.listdir(place))
    overlay = Overlay(place / "lower", place / "upper")
    assert overlay.work is None
    with overlay as ov:
        work = ov.work
        assert work is not None
        assert work.parent == place
        assert stat.S_IMODE(os.stat(work / "work").st_mode) == 0
        (ov.merged / "new").touch()
    assert sorted(os.listdir(place)) == before
    with Overlay(place / "lower", place / "upper", volatile=True) as ov:
        assert "volatile" in overlay_options(ov)
    assert sorted(os.listdir(place)) == before


def test_a_work_directory_of_the_callers_stays(place: Path) -> None:
    for _ in range(3):  # `volatile` leaves a mark that would refuse the second mount
        with Overlay(place / "lower", place / "upper", place / "work", volatile=True) as ov:
            assert ov.work == place / "work"
            (ov.merged / "file").touch()
    assert (place / "work").is_dir()


def test_a_killed_process_leaves_no_mount_and_its_work_directory_goes_next_time(place: Path) -> None:
    script = (
        "import sys, time; from r2d2.overlay import Overlay; ov = Overlay(*sys.argv[1:]).mount(); "
        "print(ov.pid, flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", script, str(place / "lower"), str(place / "upper")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        holder = int(process.stdout.readline())
        left = [name for name in os.listdir(place) if name.startswith(".upper.work-")]
        assert len(left) == 1
        process.kill()
    assert until(lambda: not alive(holder)), "the mount ends with its owner"
    with Overlay(place / "lower", place / "upper") as ov:
        assert os.listdir(ov.merged) == ["file"]
        assert not (place / left[0]).exists()
    assert not [name for name in os.listdir(place) if name.startswith(".")]


def test_unmount_is_idempotent_and_final(place: Path) -> None:
    overlay = Overlay(place / "lower", place / "upper")
    overlay.unmount()
    for use in (lambda: overlay.merged, lambda: overlay.pid, lambda: overlay.run(["true"])):
        with pytest.raises(ContainerClosed, match="not mounted"):
            use()
    overlay.mount()
    with pytest.raises(ContainerClosed, match="before"):
        overlay.mount()
    holder = overlay.pid
    overlay.close()
    overlay.unmount()
    assert not alive(holder)
    assert not overlay.mounted
    with pytest.raises(ContainerClosed, match="unmounted"):
        _ = overlay.merged
    with pytest.raises(ContainerClosed):
        overlay.run(["true"])
    assert "unmounted" in repr(overlay)


def test_a_forgotten_one_warns_and_is_unmounted(place: Path) -> None:
    overlay: Overlay | None = Overlay(place / "lower", place / "upper").mount()
    assert overlay is not None
    holder = overlay.pid
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - both are the one statement
        overlay = None
        gc.collect()
    assert not alive(holder)


def test_a_fork_of_the_owner_does_not_unmount(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as ov:
        child = os.fork()
        if child == 0:
            ov.unmount()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.listdir(ov.merged) == ["file"]


def test_an_open_file_survives_the_mount(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as ov:
        file = open(ov.merged / "file")  # noqa: SIM115
        directory = os.open(ov.merged, os.O_RDONLY)
    with file:
        assert file.read() == "lower"
    assert os.listdir(directory) == ["file"]
    os.close(directory)


def test_killed_from_outside(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as ov:
        os.kill(ov.pid, signal.SIGKILL)
        assert until(lambda: not ov.mounted)
        with pytest.raises(ContainerClosed):
            ov.run(["true"])


@needs("unshare")
def test_explain_shows_the_mount_and_its_script_makes_it(place: Path) -> None:
    overlay = Overlay(place / "lower", place / "upper", place / "work", place / "merged")
    planned = overlay.explain()
    assert f"mount overlay on {place}/merged" in [step.title for step in planned]
    assert planned.total is None
    assert (
        Overlay(place / "lower", place / "upper", merged=place / "merged").explain()[3].title
        == planned[3].title
    )
    with overlay:
        done = overlay.explain()
        assert done == planned
        assert done.total
    script = planned.script(["sh", "-c", f"cd {place}/merged; ls; echo by hand > written"])
    by_hand = subprocess.run(["sh"], input=script, check=False, **TEXT)
    assert by_hand.stdout == "file\n", by_hand.stderr
    assert (place / "upper/written").read_text() == "by hand\n"


# What is refused


@pytest.mark.parametrize(
    ("lower", "keywords", "words"),
    [
        ([], {}, "at least one"),
        (["lower"], {}, "bind mount"),
        (["lower"], {"work": "work"}, "upper"),
        (["lower", "lower"], {"upper": "upper"}, "lower"),
        (["lower"], {"upper": "lower"}, "also lower|twice"),
        (["lower"], {"upper": "upper", "work": "upper"}, "also upper|twice"),
        (["lower"], {"upper": "lower/sub"}, "lies inside lower"),
        (["upper/sub"], {"upper": "upper"}, "lies inside upper"),
        (["lower"], {"upper": "upper", "work": "upper/work"}, "lies inside upper"),
        (["lower", "lower/sub"], {"upper": "upper"}, "lies inside lower"),
        (["/"], {"upper": "upper"}, "lies inside lower /"),
        ([""], {"upper": "upper"}, "no path"),
        (["a\0b"], {"upper": "upper"}, "no path"),
        (["lower", "lower2"], {"volatile": True}, "volatile"),
        (["lower"], {"upper": "upper", "userns": "host"}, "userns"),
    ],
)  # fmt: skip
def test_arguments_that_can_never_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, lower: list[str], keywords: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(place)
    (place / "lower/sub").mkdir()
    (place / "upper/sub").mkdir()
    with pytest.raises(SpecError, match=words):
        Overlay(lower, **keywords)


@pytest.mark.parametrize("what", ["lower", "upper", "work", "merged"])
def test_missing_directories(place: Path, what: str) -> None:
    (place / "file").touch()
    before = sorted(os.listdir(place))
    for wrong, words in (("nothing", "No such file or directory"), ("file", "Not a directory")):
        keywords = {name: place / name for name in ("lower", "upper", "work", "merged")}
        keywords[what] = place / wrong
        with pytest.raises(SetupNotFoundError, match=rf"{what}: .*{words}") as refused:
            Overlay(**keywords).mount()
        assert refused.value.filename == str(place / wrong)
    assert sorted(os.listdir(place)) == before


def test_an_upper_layer_in_use(place: Path) -> None:
    with Overlay(place / "lower", place / "upper") as first:
        with pytest.raises(SetupError, match=f"busy: process {first.pid}") as refused:
            Overlay(place / "lower2", place / "upper", place / "work").mount()
        assert refused.value.errno == 16
        assert refused.value.hint is not None
    with Overlay(place / "lower2", place / "upper"):
        pass


def test_an_upper_layer_in_use_by_a_container(place: Path, image: Image) -> None:
    with (
        Container(image, upper=place / "upper", work=place / "work"),
        pytest.raises(SetupError, match="Device or resource busy"),
    ):
        Overlay(place / "lower", place / "upper").mount()


def test_one_of_many_wins_the_upper_layer(place: Path) -> None:
    won: list[Overlay] = []
    lost: list[int | None] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        overlay = Overlay(place / "lower", place / "upper")
        barrier.wait()
        try:
            won.append(overlay.mount())
        except SetupError as error:
            lost.append(error.errno)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for overlay in won:
        overlay.unmount()
    assert (len(won), lost) == (1, [16] * 7)


def test_an_upper_layer_on_an_overlay(place: Path) -> None:
    script = """
import os, r2d2
from r2d2.overlay import Overlay
os.mkdir("up")
try:
    Overlay("/usr/share", "up").mount()
except r2d2.UnsupportedError as error:
    print(error, error.hint)
"""
    with Overlay(place / "lower", place / "upper") as ov:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = ov.run([sys.executable, "-c", script], env=environ, **TEXT)
        assert "lies on overlay, which overlayfs takes for no upper layer" in done.stdout, done.stderr
        with pytest.raises(UnsupportedError, match="another mount namespace"):
            Overlay(place / "lower2", ov.merged)
        with pytest.raises(UnsupportedError, match="another mount namespace"):
            Overlay([ov.merged, place / "lower2"])


def test_a_layer_that_holds_mounts(place: Path) -> None:
    with pytest.raises(UnsupportedError, match="holds a mount") as refused:
        Overlay("/dev", place / "upper").mount()
    assert str(refused.value).startswith("lower: /dev holds a mount, /dev/")
    assert refused.value.errno == 22


def test_no_directory_is_free_to_mount_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "lower/in").mkdir()
    monkeypatch.setattr("r2d2.mounted._POINTS", (os.fsencode(place), b"/no/such/directory"))
    with pytest.raises(UnsupportedError, match="no directory is free") as refused:
        Overlay(place / "lower", place / "upper").mount()
    assert "merged=" in (refused.value.hint or "")
    # One that hides nothing is preferred.
    monkeypatch.setattr("r2d2.mounted._POINTS", (b"/usr", os.fsencode(place / "merged")))
    assert Overlay(place / "lower", place / "upper").inside == place / "merged"


def test_an_upper_layer_that_may_not_be_written(place: Path) -> None:
    if ROOT:
        with pytest.raises(UnsupportedError, match="lies on proc"):
            Overlay(place / "lower", "/proc/sys").mount()
        return
    os.chmod(place / "upper", 0o555)
    with pytest.raises(SetupPermissionError, match=r"upper: .*Permission denied"):
        Overlay(place / "lower", place / "upper").mount()
    os.chmod(place / "upper", 0o755)
    os.chmod(place / "lower", 0)
    with pytest.raises(SetupPermissionError, match=r"lower: .*Permission denied"):
        Overlay(place / "lower", place / "upper").mount()
    os.chmod(place / "lower", 0o755)
    os.chmod(place, 0o555)
    with pytest.raises(SetupPermissionError, match="work: ") as refused:
        Overlay(place / "lower", place / "upper").mount()
    os.chmod(place, 0o755)
    assert "work directory" in (refused.value.hint or "")


@needs("subuid")
def test_with_ids_of_its_own(place: Path) -> None:
    with Overlay(place / "lower", place / "upper", userns="subuid") as ov:
        script = "touch mine; mkdir -p d; touch d/f; chown -R 1000:1000 d; stat -c %u d/f"
        assert ov.run(["sh", "-c", script], check=True, **TEXT).stdout == "1000\n"
        assert os.stat(ov.merged / "d/f").st_uid not in (1000, os.geteuid())
        assert os.stat(ov.merged / "mine").st_uid == os.geteuid()
    assert not [name for name in os.listdir(place) if name.startswith(".")]
    namespace_root = ["sh", "-c", "rm -rf upper/d"]
    with Overlay(place / "lower", place / "lower2", userns="subuid") as ov:
        ov.run(namespace_root, cwd=place, check=True)


def test_nothing_of_the_caller_changes(place: Path) -> None:
    before = namespace.inspect(), os.getcwd(), os.umask(0o022), mounts()
    os.umask(before[2])
    with Overlay(place / "lower", place / "upper") as ov:
        inside = namespace.inspect(ov.pid)
        changed = {name for name in inside if inside[name] != before[0][name]}
        assert changed == {"user", "mnt", "pid", "pid_for_children"}
        assert mounts() == before[3]
    umask = os.umask(0o022)
    os.umask(umask)
    assert (namespace.inspect(), os.getcwd(), umask, mounts()) == before
    assert re.search(r"r2d2", " ".join(mounts())) is None
