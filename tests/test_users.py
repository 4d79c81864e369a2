"""Who user=… is: the container's own /etc/passwd decides, and is not trusted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from r2d2 import users

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1000:Alice:/home/alice:/bin/sh
bob:x:1001:100::/home/bob:/bin/sh
4242:x:7:7::/:/bin/sh
"""
GROUP = """\
root:x:0:
users:x:100:alice
alice:x:1000:
wheel:x:10:root,alice
"""


@pytest.fixture
def c(image: r2d2.Image) -> Iterator[r2d2.Container]:
    with r2d2.Container(image) as container:
        container.path("/etc/passwd").unlink(missing_ok=True)
        container.path("/etc/passwd").write_text(PASSWD)
        container.path("/etc/group").unlink(missing_ok=True)
        container.path("/etc/group").write_text(GROUP)
        yield container


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", (1000, 1000, [1000, 100, 10], "/home/alice", "alice")),
        ("1000", (1000, 1000, [1000, 100, 10], "/home/alice", "alice")),
        (1000, (1000, 1000, [1000, 100, 10], "/home/alice", "alice")),
        ("bob", (1001, 100, [100], "/home/bob", "bob")),
        ("root", (0, 0, [0, 10], "/root", "root")),
        (0, (0, 0, [0, 10], "/root", "root")),
        ("alice:wheel", (1000, 10, [], "/home/alice", "alice")),
        ("alice:55", (1000, 55, [], "/home/alice", "alice")),
        ("77:88", (77, 88, [], "/", None)),
        ("77", (77, 0, [], "/", None)),
        (77, (77, 0, [], "/", None)),
        ("4242", (7, 7, [7], "/", "4242")),
        (4242, (4242, 0, [], "/", None)),
    ],
    ids=repr,
)
def test_the_rules_are_dockers(c: r2d2.Container, user: str | int, expected: tuple[object, ...]) -> None:
    assert tuple(users.lookup(c, user)) == expected


@pytest.mark.parametrize(
    "user",
    [
        "carol",
        "alice:nogroup",
        "",
        ":",
        "alice:",
        ":100",
        "-1",
        -1,
        2**32,
        "4294967295",
        True,
        "\uff11\uff12",
        "0x0",
        "a\0b",
        " 0",
        "+1",
    ],
    ids=repr,
)
def test_what_is_nobody(c: r2d2.Container, user: str | int) -> None:
    with pytest.raises(r2d2.SpecError):
        users.lookup(c, user)


def test_hostile_databases(c: r2d2.Container) -> None:
    lines = [
        b"",
        b":",
        b":::::",
        b"alice",
        b"alice:x:",
        b"alice:x:-1:0",
        b"alice:x:99999999999:0",
        b"alice:x: 0:0",
        b"\xff\xfe:x:5:5::/\xff:",
        b"alice:x:0x0:0",
        b"alice:x:12:34:::",
        b"alice:x:0:0",
    ]
    c.path("/etc/passwd").write_bytes(b"\n".join(lines) + b"\0" * 1000)
    assert users.lookup(c, "alice")[:4] == (12, 34, [34, 100, 10], "/")
    assert users.lookup(c, "\udcff\udcfe").home == "/\udcff"
    for make in (
        lambda p: p.unlink(),
        lambda p: p.mkdir(),
        lambda p: (p.rmdir(), p.symlink_to("/dev/zero")),
        lambda p: (p.unlink(), p.symlink_to("/proc/self/fd/0")),
        lambda p: (p.unlink(), p.symlink_to("passwd")),
        lambda p: (p.unlink(), p.touch(), p.truncate(1 << 40)),
        lambda p: (p.unlink(), c.run(["mkfifo", "/etc/passwd"], check=True)),
    ):
        make(c.path("/etc/passwd"))
        assert users.lookup(c, 5) == (5, 0, [], "/", None)
        with pytest.raises(r2d2.SpecError):
            users.lookup(c, "alice")


def test_a_link_of_the_image_reads_its_own_passwd(c: r2d2.Container) -> None:
    c.path("/etc/passwd").unlink()
    c.path("/etc/passwd").symlink_to("../../../../../../etc/real")
    c.path("/etc/real").write_text("inside:x:3:3::/:\n")
    assert users.lookup(c, "inside").uid == 3
    with pytest.raises(r2d2.SpecError):
        users.lookup(c, "daemon")


def test_root_by_name(c: r2d2.Container) -> None:
    done = c.run(["sh", "-c", "id -u; echo $HOME"], user="root", capture_output=True, text=True, check=True)
    assert done.stdout == "0\n/root\n"


@needs("root")
def test_programs_run_as_the_user(c: r2d2.Container) -> None:
    script = "id -u; id -g; id -G; echo $HOME"
    done = c.run(["sh", "-c", script], user="alice", capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n1000\n1000 10 100\n/home/alice\n"
    done = c.run(["sh", "-c", script], user="77:88", capture_output=True, text=True, check=True)
    assert done.stdout == "77\n88\n88\n/\n"
    c.path("/private").write_text("x")
    c.path("/private").chmod(0o600)
    assert c.run(["cat", "/private"], user="alice", capture_output=True).returncode == 1


@needs("root")
def test_run_takes_a_user(image: r2d2.Image) -> None:
    done = r2d2.run(["sh", "-c", "id -u; echo $HOME"], image=image, user=1000, capture_output=True, text=True)
    assert done.stdout == "1000\n/\n"
    done = r2d2.run(
        ["sh", "-c", "echo $HOME"], image=image, user=1000, env={"HOME": "/x"}, capture_output=True
    )
    assert done.stdout == b"/x\n"


@needs("root")
def test_the_containers_user_is_the_default(image: r2d2.Image) -> None:
    with r2d2.Container(image, user=5) as c:
        assert c.run(["id", "-u"], capture_output=True, text=True).stdout == "5\n"
        assert c.run(["id", "-u"], user=6, capture_output=True, text=True).stdout == "6\n"


def test_an_id_that_is_not_mapped(image: r2d2.Image) -> None:
    with r2d2.Container(image, userns="single") as c:
        for user in (1000, "77:88", "0:5"):
            with pytest.raises(r2d2.UnsupportedError, match="does not exist in this container") as caught:
                c.run(["id"], user=user)
            assert "userns='subuid'" in str(caught.value.hint)
        done = c.run(["id", "-u"], user=0, capture_output=True, text=True)
        assert done.stdout == "0\n"


@needs("subuid")
def test_subordinate_ids(image: r2d2.Image, tmp_path: object) -> None:
    """Files of ids that are nobody to the caller: read, written, made, copied and compared."""
    with r2d2.Container(image, userns="subuid") as c:
        assert c.run(["id", "-u"], user=1000, capture_output=True, text=True).stdout == "1000\n"
        c.path("/home").mkdir(exist_ok=True)
        c.path("/home").chmod(0o1777)
        script = "umask 077; mkdir /home/u; echo mine >/home/u/f; mkdir /home/u/d; echo x >/home/u/d/g"
        c.run(["sh", "-euc", script], user=1000, check=True)
        f = c.path("/home/u/f")
        assert f.read_text() == "mine\n"
        assert (f.stat().st_uid, f.stat().st_mode & 0o777) == (1000, 0o600)
        f.write_text("changed")
        assert c.run(["cat", "/home/u/f"], user=1000, capture_output=True, text=True).stdout == "changed"
        (c.path("/home/u") / "new").mkdir()
        f.chmod(0o640)
        f.chown(1001, 1002)
        assert (f.stat().st_uid, f.stat().st_gid) == (1001, 1002)
        out = c.copy_out("/home/u", str(tmp_path))
        assert (out / "d/g").read_text() == "x\n"
        assert (out / "f").stat().st_uid == os.geteuid()
        c.copy_in(out / "d/g", "/home/u/d/h")
        assert sorted(p.name for p in c.path("/home/u/d").iterdir()) == ["g", "h"]
        assert "home/u/d/h" in [change.path for change in c.diff()]
