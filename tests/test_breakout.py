"""The classic way out of a chroot: it works against `chroot`, and against nothing else of ours."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from _needs import needs
from r2d2 import Container, Image, chroot
from r2d2.errors import CommandError, CommandTimeout, ImageError, SetupNotFoundError, SetupPermissionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Whoever is root stands outside his root directory once that is moved below him, and walks up from there.
BREAK_OUT = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char text[4096];
    mkdir("hole", 0755);
    if (chroot("hole")) { perror("chroot"); return 2; }
    for (int i = 0; i < 200; i++) if (chdir("..")) { perror("chdir"); return 3; }
    if (chroot(".")) { perror("chroot ."); return 4; }
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) { perror(argv[1]); return 5; }
    ssize_t n = read(fd, text, sizeof text);
    if (n > 0) fwrite(text, 1, n, stdout);
    return 0;
}
"""
TEXT: dict[str, Any] = {"capture_output": True, "text": True}
#: An ordinary user has a user namespace in any case.
USER = [True, False] if os.geteuid() == 0 else [True]


@pytest.fixture
def root(tmp_path: Path, compiled: Callable[[str], str]) -> Path:
    directory = tmp_path / "rootfs"
    chroot.Rootfs(directory).install([(compiled(BREAK_OUT), "/breakout")])
    (tmp_path / "canary").write_text("a file of the host's\n")
    return directory


@needs("gcc")
@pytest.mark.parametrize("user", USER)
def test_chroot_is_no_prison(root: Path, user: bool) -> None:
    canary = str(root.parent / "canary")
    done = chroot.chroot(root, ["/breakout", canary], user=user, **TEXT)
    assert (done.stdout, done.stderr) == ("a file of the host's\n", "")


@needs("gcc")
@pytest.mark.parametrize("user", USER)
def test_pivot_root_leaves_nothing_to_break_out_to(root: Path, user: bool) -> None:
    canary = str(root.parent / "canary")
    done = chroot.pivot_root(root, ["/breakout", canary], user=user, **TEXT)
    assert (done.returncode, done.stdout) == (5, "")
    assert f"{canary}: No such file or directory" in done.stderr
    assert chroot.pivot_root(root, ["/breakout", "/canary"], user=user, **TEXT).returncode == 5


@needs("gcc")
@pytest.mark.parametrize("keywords", [{}, {"cap_add": ["ALL"], "no_new_privs": False}])
def test_nor_does_a_container(root: Path, keywords: dict[str, Any]) -> None:
    canary = str(root.parent / "canary")
    with Container(Image.from_dir(root), **keywords) as container:
        done = container.run(["/breakout", canary], **TEXT)
        assert (done.returncode, done.stdout) == (5, "")
        assert "No such file or directory" in done.stderr


@pytest.mark.parametrize("run", [chroot.chroot, chroot.pivot_root])
def test_both_run_as_subprocess_does(tmp_path: Path, run: Callable[..., Any]) -> None:
    rootfs = chroot.Rootfs(tmp_path / "rootfs")
    rootfs.install(["sh", "cat", "sleep"])
    outside = os.stat("/"), os.getcwd()
    script = "cat; echo $VALUE; pwd; cat /proc/self/stat; echo err >&2; exit 4"
    env = {"PATH": "/usr/bin:/bin", "VALUE": "v"}
    done = run(rootfs, ["sh", "-c", script], input="in\n", env=env, cwd="/usr", **TEXT)
    assert (done.returncode, done.stdout) == (4, "in\nv\n/usr\n")
    assert done.stderr.endswith("err\n")
    assert run(rootfs, ["sh", "-c", "kill -9 $$"], env=env).returncode == -9
    with pytest.raises(CommandError):
        run(rootfs, ["sh", "-c", "exit 1"], env=env, check=True)
    with pytest.raises(CommandTimeout):
        run(rootfs, ["sleep", "1000"], env=env, timeout=0.3)
    done = run(rootfs, ["sh", "-c", "echo only"], env=env, stdout=subprocess.PIPE)
    assert done.stdout == b"only\n"
    assert (os.stat("/"), os.getcwd()) == outside, "the interpreter is where it was"
    assert sorted(os.listdir(tmp_path)) == ["rootfs"]


@pytest.mark.parametrize("run", [chroot.chroot, chroot.pivot_root])
def test_what_cannot_start_says_why(tmp_path: Path, run: Callable[..., Any]) -> None:
    root = tmp_path / "rootfs"
    rootfs = chroot.Rootfs(root)
    rootfs.install(["sh"])
    (root / "script").write_text("#!/bin/nothing -x\n")
    (root / "plain").write_text("echo hello\n")
    os.symlink("/nowhere", root / "dangling")
    os.chmod(root / "script", 0o755)
    with pytest.raises(SetupNotFoundError) as missing:
        run(root, ["/script"])
    assert "interpreter of its first line (#! /bin/nothing)" in (missing.value.hint or "")
    with pytest.raises(SetupNotFoundError) as missing:
        run(root, ["/dangling"])
    assert "symlink to /nowhere" in (missing.value.hint or "")
    with pytest.raises(SetupPermissionError) as denied:
        run(root, ["/plain"])
    assert "no x in its mode" in (denied.value.hint or "")
    with pytest.raises(SetupNotFoundError) as missing:
        run(root, ["nothing-of-this-name"])
    assert "loader" not in (missing.value.hint or "")
    with pytest.raises(SetupNotFoundError):
        run(root, ["sh"], cwd="/no/such/directory")
    for wrong in (tmp_path / "nowhere", root / "plain"):
        with pytest.raises(ImageError, match="the new root"):
            run(wrong, ["sh"])
