"""Bad input: a typed error that names the thing, nothing started, nothing left; or it simply works.

That nothing is left, and that no process was started, is looked after by ``conftest.leaks``.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import needs

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = "x" * 64


NEVER: list[tuple[dict[str, Any], str]] = [
    ({"hostname": "h" * 65}, "hostname of 65 bytes: at most 64"),
    ({"hostname": "a b"}, "hostname 'a b'"),
    ({"hostname": "a\nb"}, "hostname"),
    ({"hostname": "-a"}, "hostname '-a'"),
    ({"name": ""}, "name ''"),
    ({"name": "../x"}, r"name '\.\./x'"),
    ({"name": "a/b"}, "name 'a/b'"),
    ({"name": "x" * 65}, "at most 64"),
    ({"name": ".hidden"}, r"name '\.hidden'"),
    ({"env": {"": "x"}}, "env name ''"),
    ({"env": {"A=B": "x"}}, "env name 'A=B'"),
    ({"env": {"A": "x\0y"}}, "env name 'A'.*zero byte"),
    ({"env": {"A": 1}}, "env 'A': 1"),
    ({"mounts": ["/etc"]}, "mount '/etc': not SRC:DST"),
    ({"mounts": ["/a:b:/c:d"]}, r"mount '/a:b:/c:d'.*r2d2\.Mount"),
    ({"mounts": "/etc:/etc"}, "a list of mounts"),
    ({"mounts": [5]}, "mount 5"),
    ({"mounts": [("/etc", "/a/../../b")]}, r"mount target /a/\.\./\.\./b: \.\. is not allowed"),
    ({"mounts": [("/etc", "relative")]}, "mount target relative: not an absolute path"),
    ({"mounts": [("/etc", "/")]}, "mount target /: the root directory comes from the image"),
    ({"mounts": [(None, "/x")]}, "mount on /x: a bind mount needs a source"),
    ({"mounts": [r2d2.Mount("/etc", "/x", type="nfs")]}, "mount of type .*nfs"),
    ({"mounts": [r2d2.Mount("/e\0tc", "/x")]}, "zero byte|null byte"),
    ({"mounts": [r2d2.Mount("/etc", "/x\0y")]}, "zero byte|null byte"),
    ({"limits": {"memory": "lots"}}, "memory='lots': not an amount"),
    ({"limits": {"memory": "-1"}}, "memory='-1'"),
    ({"limits": {"memory": True}}, "memory=True"),
    ({"limits": {"mem": 1}}, "fields are memory"),
    ({"limits": {"rlimits": {"no such": 1}}}, "rlimit 'no such'"),
    ({"limits": {"rlimits": {"nofile": "many"}}}, "rlimit 'nofile'='many'"),
    ({"limits": {"pids": 0}}, "pids=0"),
    ({"limits": {"cpus": 0}}, "cpus=0"),
    ({"limits": {"cpus": -1.0}}, "cpus=-1"),
    ({"limits": {"cpuset": "a"}}, "cpuset=.*a"),
    ({"limits": 5}, "limits=5"),
    ({"network": "bridge of sighs"}, "network='bridge of sighs'"),
    ({"workdir": "relative"}, "workdir='relative': an absolute path"),
    ({"upper": "/tmp"}, "upper and work go together"),
    ({"cap_add": "CAP_KILL"}, "cap_add='CAP_KILL': a list"),
    ({"cap_add": ["CAP_NOSUCH"]}, "CAP_NOSUCH"),
    ({"userns": "no such"}, "userns .*no such"),
    ({"proc": "some"}, "proc .*some"),
    ({"tmpfs_size": "big"}, "tmpfs_size='big'"),
]


@pytest.mark.parametrize(("keywords", "message"), NEVER, ids=map(str, range(len(NEVER))))
def test_arguments_that_can_never_work(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(r2d2.SpecError, match=message) as caught:
        r2d2.Container("host", **keywords).start()
    assert isinstance(caught.value, ValueError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize("args", ["ls -l", b"ls", Path("/bin/ls"), [], [""]], ids=repr)
def test_a_command_that_is_no_list(args: Any, image: r2d2.Image) -> None:
    with pytest.raises(r2d2.SpecError, match="args"):
        r2d2.run(args, image=image)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"shell": True}, "sh.*-c"),
        ({"preexec_fn": print}, "preexec_fn"),
        ({"executable": "/bin/sh"}, "executable"),
    ],
)
def test_keywords_that_have_no_meaning(keywords: dict[str, Any], message: str, image: r2d2.Image) -> None:
    with pytest.raises(r2d2.SpecError, match=message):
        r2d2.run(["true"], image=image, **keywords)


def test_unknown_images(tmp_path: Path) -> None:
    for name in ("debian:latest", "nosuch"):
        with pytest.raises(r2d2.ImageNotFound, match=name) as caught:
            r2d2.Container(name)
        assert isinstance(caught.value, LookupError)
        assert "minimal" in caught.value.hint
    with pytest.raises(r2d2.ImageNotFound, match="nothing here"):
        r2d2.Container(tmp_path / "nothing here")
    (tmp_path / "file").touch()
    with pytest.raises(r2d2.ImageError, match="file: an image must be a directory"):
        r2d2.Container(tmp_path / "file")
    with pytest.raises(r2d2.ImageNotFound, match="no-such-program"):
        r2d2.Image.minimal(["no-such-program"])


def test_an_image_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    container = r2d2.Container(tmp_path / "layer")
    (tmp_path / "layer").rmdir()
    with pytest.raises(r2d2.ImageError, match="layer"):
        container.start()
    (tmp_path / "layer").touch()
    with pytest.raises(r2d2.ImageError, match="must be a directory"):
        container.start()
    (tmp_path / "layer").unlink()
    (tmp_path / "layer").mkdir()
    with container:  # a start that failed does not use the object up
        assert container.running


def test_a_mount_whose_source_is_missing(image: r2d2.Image, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        r2d2.Container(image, mounts=[(tmp_path / "missing", "/mnt")]).start()
    assert isinstance(caught.value, r2d2.SetupError)
    assert "/mnt" in str(caught.value)
    assert caught.value.filename == str(tmp_path / "missing")


def test_a_file_where_a_directory_is_needed(image: r2d2.Image, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(r2d2.SetupError, match=r"step \d+ of \d+, bind .*file on ROOT/bin") as caught:
        r2d2.Container(image, mounts=[(file, "/bin")]).start()
    assert caught.value.steps is not None
    assert caught.value.step.endswith(caught.value.steps[int(caught.value.step.split()[1]) - 1].title)
    assert pickle.loads(pickle.dumps(caught.value)).steps == caught.value.steps
    with pytest.raises(r2d2.SetupError, match="/bin/busybox") as caught:
        r2d2.Container(image, mounts=[(tmp_path, "/bin/busybox")]).start()
    with pytest.raises(r2d2.SetupError, match="ENOTDIR"):
        r2d2.Container(image, mounts=[(tmp_path, "/bin/busybox/below")]).start()
    (tmp_path / "work").mkdir()
    with pytest.raises(r2d2.ImageError, match="upper layer must be a directory"):
        r2d2.Container(image, upper=file, work=tmp_path / "work").start()


def test_missing_programs(image: r2d2.Image) -> None:
    with pytest.raises(FileNotFoundError, match="no-such") as caught:
        r2d2.run(["no-such"], image=image)
    assert isinstance(caught.value, r2d2.R2d2Error)
    with r2d2.Container(image) as container:
        with pytest.raises(FileNotFoundError) as caught:
            container.run(["/no/such"])
        assert caught.value.filename == "/no/such"
        with pytest.raises(PermissionError):
            container.run(["/etc"])
        with pytest.raises(FileNotFoundError, match="/no/such/dir"):
            container.run(["true"], cwd="/no/such/dir")
        assert container.run(["true"]).returncode == 0


def test_a_program_without_its_libraries(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = shutil.which("ls")
    assert program
    shutil.copy(program, tmp_path / "bin/ls")
    (tmp_path / "bin/script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bin/script").chmod(0o755)
    with r2d2.Container(tmp_path) as container:
        with pytest.raises(FileNotFoundError) as caught:
            container.run(["/bin/ls"])
        assert "loader" in caught.value.hint or "ld-" in caught.value.hint
        with pytest.raises(FileNotFoundError) as caught:
            container.run(["/bin/script"])
        assert "/no/such/interpreter" in caught.value.hint


def test_full_and_read_only_uppers(image: r2d2.Image) -> None:
    with r2d2.Container(image, tmpfs_size="1m") as container:
        full = container.run(
            ["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=8"], capture_output=True, text=True
        )
        assert full.returncode != 0
        assert "No space left" in full.stderr
    with r2d2.Container(image, readonly=True) as container:
        refused = container.run(["touch", "/x"], capture_output=True, text=True)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr


def test_an_upper_that_may_not_be_written(image: r2d2.Image, tmp_path: Path) -> None:
    """The kernel would mount such a one read-only, without a word."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    # /sys/kernel: a file system that takes no files; for an ordinary user somebody else's directory.
    for upper, work in (
        ("/sys/kernel", "/sys/fs"),
        (tmp_path / "upper", "/sys/fs"),
        ("/proc/1", tmp_path / "work"),
    ):
        with pytest.raises(
            (r2d2.ImageError, r2d2.SetupError), match=r"cannot be written|mount overlay"
        ) as caught:
            r2d2.Container(image, upper=upper, work=work).start()
        assert str(caught.value)
    (tmp_path / "work").chmod(0o555)
    with r2d2.Container(image, upper=tmp_path / "upper", work=tmp_path / "work") as container:
        container.run(["touch", "/x"], check=True)  # modes do not bind the container's root
    assert (tmp_path / "upper/x").exists()


@needs("user")
def test_somebody_elses_upper(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for upper, work in (("/usr", tmp_path / "mine"), (tmp_path / "mine", "/usr")):
        with pytest.raises(r2d2.ImageError, match=r"/usr: .* cannot be written: Permission denied"):
            r2d2.Container(image, upper=upper, work=work).start()


@pytest.mark.parametrize("word", ["stdin", "stdout", "bufsize", "pass_fds", "cwd"])
def test_what_goes_wrong_while_the_container_is_made(word: str, image: r2d2.Image) -> None:
    """A program is prepared beside the start of its container: what is wrong with it ends both."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((TypeError, AttributeError, ValueError)):
        r2d2.run(["true"], image=image, **{word: object()})
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert r2d2.run(["true"], image=image).returncode == 0


@pytest.mark.filterwarnings("error")
def test_a_program_whose_container_is_refused(image: r2d2.Image) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(r2d2.SetupError, match=r"step \d+ of \d+"):
            r2d2.run(
                ["true"], image=image, capture_output=True, input=b"x", mounts=["/dev/null:/etc/hosts/x"]
            )
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_lives(image: r2d2.Image) -> None:
    container = r2d2.Container(image)
    for use in uses(container):
        with pytest.raises(r2d2.ContainerClosed, match="was not started"):
            use()
    with container:
        with pytest.raises(r2d2.ContainerClosed, match="one life"), container:
            pass
        assert container.run(["true"]).returncode == 0, "the second with must not have ended it"
    for use in uses(container):
        with pytest.raises(r2d2.ContainerClosed, match="has ended"):
            use()
    with pytest.raises(r2d2.ContainerClosed), container:
        pass
    container.stop()
    container.close()


def uses(container: r2d2.Container) -> list[Callable[[], object]]:
    return [
        lambda: container.run(["true"]),
        lambda: container.popen(["true"]),
        lambda: container.pid,
        lambda: container.namespaces,
        container.kill,
        container.pause,
        container.stats,
        lambda: container.wait(0),
        lambda: container.path("/").iterdir().__next__(),
        lambda: container.call(os.getpid),
    ]


def test_a_container_cannot_be_pickled_but_its_spec_can(image: r2d2.Image) -> None:
    container = r2d2.Container(image, env={"A": "b"}, mounts=["/etc:/mnt:ro"])
    with pytest.raises(TypeError, match="spec"):
        pickle.dumps(container)
    assert pickle.loads(pickle.dumps(container.spec)) == container.spec


def in_a_fork(container: r2d2.Container) -> list[str]:
    """What a forked process gets from each use."""
    told = []
    for use in uses(container):
        try:
            use()
        except r2d2.ContainerClosed as error:
            told.append("closed" if "fork" in str(error) else str(error))
        except BaseException as error:  # noqa: BLE001 - told to the parent
            told.append(repr(error))
        else:
            told.append("worked")
    container.stop()
    return told


#: uses() that change or ask the container; pid and namespaces only say what is known.
ASKED = [0, 1, 4, 5, 6, 8, 9]


WORDS: list[dict[str, Any]] = [
    {},
    {"hostname": "other"},
    {"env": {"A": "1"}},
    {"env": {"A": "2"}},
    {"workdir": "/tmp"},
    {"readonly": True},
    {"readonly": 1},
    {"tmpfs_size": "1m"},
    {"tmpfs_size": 1},
    {"cap_add": ["NET_ADMIN"]},
    {"cap_drop": ["ALL"]},
    {"no_new_privs": False},
    {"clock_offsets": 5},
    {"clock_offsets": (5, 6)},
    {"extra_hosts": {"db": "10.0.0.2"}},
    {"proc": "none"},
    {"network": "host"},
    {"mounts": ["/etc:/x"]},
    {"limits": {"rlimits": {"nofile": 64}}},
    {"limits": {"rlimits": {"nofile": 65}}},
]


def test_what_is_remembered_is_what_would_be_worked_out(image: r2d2.Image) -> None:
    """The words of a container are checked once for all containers of the same words."""
    first = [r2d2.Container(image, name="one", **words) for words in WORDS]
    worked_out = [container.explain() for container in first]
    for _ in range(2):
        for words, container, steps in zip(WORDS, first, worked_out, strict=True):
            again = r2d2.Container(image, name="one", **words)
            assert again.spec == container.spec
            assert [type(word) for word in again.spec] == [type(word) for word in container.spec]
            # A cgroup's name is each container's own.
            assert [step.title for step in again.explain()] == [step.title for step in steps]
    assert len({repr(container.spec) for container in first}) == len(WORDS)


def test_words_that_change_are_read_again(image: r2d2.Image) -> None:
    env, hosts, drop = {"A": "1"}, {"db": "10.0.0.2"}, ["NET_RAW"]
    keywords: dict[str, Any] = {"env": env, "extra_hosts": hosts, "cap_drop": drop}
    before = r2d2.Container(image, **keywords).spec
    env["A"], hosts["db"] = "2", "10.0.0.3"
    drop.append("CHOWN")
    after = r2d2.Container(image, **keywords).spec
    assert (before.env, before.extra_hosts, before.cap_drop) == (
        (("A", "1"),),
        (("db", "10.0.0.2"),),
        ("NET_RAW",),
    )
    assert (after.env, after.extra_hosts, after.cap_drop) == (
        (("A", "2"),),
        (("db", "10.0.0.3"),),
        ("NET_RAW", "CHOWN"),
    )


def test_the_ids_of_another_user_namespace(image: r2d2.Image) -> None:
    """Whoever changes the user namespace between two containers has other ids for the second."""
    here = r2d2.Container(image, userns="single")._resolve().idmap()
    assert here == ([(0, os.geteuid(), 1)], [(0, os.getegid(), 1)])
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
            ids = (os.geteuid(), os.getegid())
            there = r2d2.Container(image, userns="single")._resolve().idmap()
            os.write(writer, repr((ids, there)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        (uid, gid), there = ast.literal_eval(file.read())
    assert there == ([(0, uid, 1)], [(0, gid, 1)])


def test_a_fork_of_the_caller(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.write(writing, "\n".join(in_a_fork(container)).encode())
                del container
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading) as file:
            told = file.read().split("\n")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [told[i] for i in ASKED] == ["closed"] * len(ASKED), told
        assert container.run(["true"]).returncode == 0


def worker(queue: Any) -> None:
    queue.put(in_a_fork(CURRENT[0]))


CURRENT: list[r2d2.Container] = []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork in a process with threads, Python 3.12
def test_a_multiprocessing_worker(image: r2d2.Image) -> None:
    context = multiprocessing.get_context("fork")
    with r2d2.Container(image) as container:
        CURRENT[:] = [container]
        queue = context.SimpleQueue()
        process = context.Process(target=worker, args=(queue,))
        process.start()
        told = queue.get()
        process.join()
        CURRENT.clear()
        assert process.exitcode == 0
        process.close()
        queue.close()
        assert [told[i] for i in ASKED] == ["closed"] * len(ASKED), told
        assert container.run(["true"]).returncode == 0


def test_a_fork_can_have_its_own(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with r2d2.Container(image) as own:
                    status = own.run(["sh", "-c", "exit 5"]).returncode
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert container.run(["true"]).returncode == 0


def test_a_large_environment(image: r2d2.Image) -> None:
    value = "x" * 70_000
    with r2d2.Container(image, env={"BIG": value}) as container:
        echo = container.run(["sh", "-c", "echo $BIG"], capture_output=True, text=True)
        assert echo.stdout == value + "\n"
    many = {f"NAME{i}": "y" * 100 for i in range(700)}
    count = r2d2.run(
        ["sh", "-c", "env | grep -c ^NAME"], image=image, env=many, capture_output=True, text=True
    )
    assert count.stdout == "700\n"
    with pytest.raises(r2d2.R2d2Error, match=r"E2BIG|too long"):
        r2d2.run(["true"], image=image, env={"BIG": "x" * 4_000_000})


@pytest.mark.parametrize("prefix", ["", "a rather long name of a directory, with a comma: and a colon "])
def test_five_hundred_layers(image: r2d2.Image, tmp_path: Path, prefix: str) -> None:
    layers = []
    for number in range(498):
        layer = tmp_path / f"{prefix}{number}"
        layer.mkdir()
        (layer / f"file{number}").touch()
        layers.append(layer)
    many = r2d2.Image.from_dir([*layers, image.layers[0]])
    count = r2d2.run(["sh", "-c", "ls -d /file* | wc -l"], image=many, capture_output=True, text=True)
    assert count.stdout == "498\n"
    more = tmp_path / "more"
    more.mkdir()
    with pytest.raises(r2d2.SpecError, match="501 layers; the kernel's limit is 500"):
        r2d2.Container(r2d2.Image.from_dir([*layers, more, image.layers[0]])).start()


ODD = ["a,b:c", "new\nline", "back\\slash", "quote'\"", "ü", "\udcff\udcfe", " ", "=", "-o", "*?[", "x" * 250]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_paths_with_any_characters(name: str, image: r2d2.Image, tmp_path: Path) -> None:
    odd = tmp_path / name
    layer, shared = odd / "layer", odd / "shared"
    layer.mkdir(parents=True)
    shared.mkdir()
    (layer / "of the layer").touch()
    (shared / "of the mount").touch()
    for directory in ("upper", "work"):
        (odd / directory).mkdir()
    container = r2d2.Container(
        r2d2.Image.from_dir([layer, image.layers[0]]),
        mounts=[r2d2.Mount(shared, f"/mnt/{name}/deep", readonly=True)],
        upper=odd / "upper",
        work=odd / "work",
        workdir=f"/mnt/{name}",
    )
    with container:
        seen = container.run(
            ["sh", "-c", "ls /; ls deep; touch /written"], capture_output=True, text=True, check=True
        )
    assert "of the layer\n" in seen.stdout
    assert seen.stdout.endswith("of the mount\n")
    assert (odd / "upper/written").exists()


def test_symlinks_in_an_image_lead_nowhere_outside(image: r2d2.Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = tmp_path / "layer"
    (layer / "real").mkdir(parents=True)
    for name, target in {"abs": str(outside), "up": "../" * 20 + str(outside)[1:], "dev": "/etc"}.items():
        (layer / name).symlink_to(target)
    odd = r2d2.Image.from_dir([layer, image.layers[0]])
    for name in ("abs", "up"):
        with pytest.raises(r2d2.SetupError, match=f"ROOT/{name}"):
            r2d2.Container(odd, mounts=[("/etc", f"/{name}/inside")]).start()
    assert os.listdir(outside) == []
    with r2d2.Container(odd) as container:  # /dev is ours, whatever the image has there
        assert container.run(["sh", "-c", "echo x > /dev/null && [ ! -L /dev ]"]).returncode == 0


def test_a_zero_byte_in_arguments(image: r2d2.Image) -> None:
    with pytest.raises(r2d2.SpecError, match=r"zero byte|null byte"):
        r2d2.run(["a\0b"], image=image)


@needs("user")
def test_what_only_root_may(image: r2d2.Image) -> None:
    for userns in ("host", "identity"):
        with pytest.raises((r2d2.UnsupportedError, r2d2.SetupPermissionError)) as caught:
            r2d2.Container(image, userns=userns).start()
        assert str(caught.value)
