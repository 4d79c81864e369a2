"""Rows 6 to 9: a root file system from the host's own programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from _needs import needs
from r2d2 import namespace
from r2d2.chroot import Rootfs, chroot
from r2d2.errors import SetupNotFoundError

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


def loader_of(program: str | Path) -> str:
    """PT_INTERP, as pyelftools reads it."""
    with open(program, "rb") as file:
        segments = ELFFile(file).iter_segments()
        return next(s.get_interp_name() for s in segments if isinstance(s, InterpSegment))


def inside(root: Path, *args: str) -> str:
    """What the program prints in the root; it must succeed."""
    return chroot(root, args, env=ENV, capture_output=True, text=True, check=True).stdout


def test_row_06_prepare_the_directory(tmp_path: Path) -> None:
    root = tmp_path / "r2d2" / "rootfs"
    root.parent.mkdir()
    assert Rootfs(root).path == str(root)
    for name in ("bin", "dev", "etc", "lib", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"):
        assert (root / name).is_dir(), name
        assert (root / name).stat().st_uid == os.geteuid()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert not [path for path in root.rglob("*") if path.is_file()], "directories and symlinks alone"


def test_row_07_system_files(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    shell = os.path.realpath(shutil.which("sh") or "/bin/sh")
    shutil.copy(shell, root / "bin" / "sh")
    with pytest.raises(SetupNotFoundError) as caught:
        chroot(root, ["/bin/sh", "-c", "echo hello"])
    assert isinstance(caught.value, FileNotFoundError), "ENOENT, although bin/sh is there ..."
    assert (root / "bin" / "sh").is_file()
    assert caught.value.hint is not None
    assert f"PT_INTERP {loader_of(shell)}" in caught.value.hint, "... and which file is really missing"

    files = Rootfs(root).install([(shell, "/bin/sh")])
    name = os.path.basename(loader_of(shell))
    assert name in {os.path.basename(file.path) for file in files}, "found from the ELF file"
    assert inside(root, "/bin/sh", "-c", f"test -e {loader_of(shell)} && echo there").strip() == "there"
    assert inside(root, "/bin/sh", "-c", "echo hello").strip() == "hello"
    # `chown -R root:root` of the sheet: in there the files are root's, whoever we are.
    assert inside(root, "/bin/sh", "-c", "test -O /bin/sh && echo root").strip() == "root"


@needs("musl")
def test_musl_system_files(tmp_path: Path) -> None:
    """The sheet's machine is Alpine: there the loader and the library are one file."""
    source, program, root = tmp_path / "sh.c", tmp_path / "sh", tmp_path / "rootfs"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello from musl"); return 0; }\n')
    subprocess.run(["musl-gcc", "-o", program, source], check=True)
    assert loader_of(program) == "/lib/ld-musl-x86_64.so.1"
    (root / "bin").mkdir(parents=True)
    shutil.copy(program, root / "bin" / "sh")
    with pytest.raises(SetupNotFoundError) as caught:
        chroot(root, ["/bin/sh"])
    assert "PT_INTERP /lib/ld-musl-x86_64.so.1" in (caught.value.hint or "")
    (root / "lib").mkdir()
    shutil.copy("/lib/ld-musl-x86_64.so.1", root / "lib")
    assert inside(root, "/bin/sh") == "hello from musl\n", "the two copies of the sheet are all it takes"
    clean = Rootfs(tmp_path / "clean")
    files = clean.install([(program, "/bin/sh")])
    assert "ld-musl-x86_64.so.1" in {os.path.basename(file.path) for file in files}
    assert inside(Path(clean.path), "/bin/sh") == "hello from musl\n"


def test_row_08_pids_and_chroot(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    Rootfs(root).install(["sh", "hostname"])
    before = socket.gethostname()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with namespace.popen(
        ["sh"],
        pid=True,
        fork=True,
        mount_proc=True,
        uts=True,
        root=root,
        text=True,
        bufsize=1,
        env=ENV,
        **pipes,
    ) as process:
        process.stdin.write("echo /proc/[0-9]*\n")
        assert process.stdout.readline() == "/proc/1\n", "nobody but the shell"
        process.stdin.write("hostname r2d2; hostname\n")
        assert process.stdout.readline() == "r2d2\n"
        assert socket.gethostname() == before
        assert os.listdir(root / "proc") == [], "outside it stays empty ..."
        through = Path(f"/proc/{process.pid}/root/proc")
        assert (through / "1").is_dir(), "... while the container's own mount namespace has it"
        process.communicate("exit 3\n")
        assert process.returncode == 3
    assert os.listdir(root / "proc") == []


@needs("busybox")
def test_row_09_busybox(tmp_path: Path) -> None:
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) > 200, "about 270"
    root = tmp_path / "rootfs"
    rootfs = Rootfs(root)
    rootfs.install_busybox()
    commands = {"busybox"}
    for directory in ("", "bin", "sbin", "usr/bin", "usr/sbin"):
        commands |= set(os.listdir(root / directory))
    assert set(listed) <= commands, sorted(set(listed) - commands)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return namespace.unshare(
            args,
            pid=True,
            fork=True,
            mount_proc=True,
            uts=True,
            root=root,
            env=ENV,
            capture_output=True,
            text=True,
        )

    assert {"bin", "etc", "proc"} <= set(run("ls", "/").stdout.split())
    assert [line.split()[0] for line in run("ps").stdout.splitlines()] == ["PID", "1"]
    assert " on /proc type proc " in run("mount").stdout
    assert run("sh", "-c", "hostname r2d2; hostname").stdout == "r2d2\n"
    unknown = run("whoami")
    assert unknown.returncode != 0
    assert "unknown uid 0" in unknown.stderr
    rootfs.minimal_etc()
    assert "root:" in (root / "etc" / "passwd").read_text()
    assert run("whoami").stdout == "root\n"
