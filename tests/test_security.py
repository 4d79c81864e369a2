"""The failures of other runtimes (CVE numbers beside the tests), each tried against r2d2, with a control.

The number in a test's name is that of the failure in the project's list; 28 is in ``test_lifetime.py``, 29 in
``test_limits.py``, 31 in ``test_threads.py``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pty
import re
import secrets
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import needs
from _proc import mounts, until
from r2d2 import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
TEXT: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
HOSTILE = Path(__file__).with_name("hostile.c")
#: How real root may run a container beyond what an ordinary user may.
USERNS = [None, pytest.param("host", marks=needs("root"))]


def shell(container: r2d2.Container, script: str, **keywords: Any) -> str:
    done = container.run(["sh", "-c", script], **{**TEXT, **keywords})
    return str(done.stdout + done.stderr)


def keywords_of(userns: str | None) -> dict[str, Any]:
    return {} if userns is None else {"userns": userns}


@pytest.fixture
def rootfs(image: r2d2.Image, tmp_path: Path) -> Path:
    """A copy of the minimal image, to be made hostile."""
    path = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", image.layers[0], path], check=True)
    for name in ("proc", "sys", "dev", "tmp", "mnt"):
        (path / name).mkdir(exist_ok=True)
        (path / name).chmod(0o755)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host that no container has any business in."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "file").write_text("untouched")
    return path


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# Memory


class Secret:
    """In the heap and the environment of this process."""

    def __init__(self) -> None:
        self.bytes = secrets.token_hex(24).encode()
        self.copies = [bytes(bytearray(self.bytes)) for _ in range(100)]
        os.environ["R2D2_TEST_SECRET"] = self.bytes.decode()
        self.key = bytes(byte ^ 0x5A for byte in self.bytes).hex()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ["R2D2_TEST_SECRET"]


@pytest.fixture
def hostile(compiled: Callable[[str], str]) -> str:
    return compiled(HOSTILE.read_text())


def _found(output: str) -> set[str]:
    return {line for line in output.splitlines() if line.startswith("FOUND")}


@contextlib.contextmanager
def _looking(container: r2d2.Container, secret: Secret, place: Path) -> Iterator[Path]:
    """Looks for the secret all the time; at the end what it says is in the file, for a pipe might be full."""
    with (place / "said").open("w") as file:
        scanner = container.popen(["/hostile", secret.key, "loop"], stdin=-1, stdout=file)
    try:
        assert until(lambda: "looking" in (place / "said").read_text())
        yield place / "said"
    finally:
        scanner.communicate(b"")


@needs("gcc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("capabilities", [(), ("ALL",)], ids=["default", "all-capabilities"])
def test_00_no_secret_within_reach_of_two_thousand_execs(
    image: r2d2.Image, hostile: str, capabilities: tuple[str, ...], tmp_path: Path
) -> None:
    with (
        Secret() as secret,
        r2d2.Container(image, mounts=[(hostile, "/hostile")], cap_add=capabilities) as container,
    ):
        with _looking(container, secret, tmp_path) as said:
            for _ in range(2000):
                container.run(["true"], **QUIET)
        output = said.read_text()
        assert _found(output) == set()
        assert int(re.findall(r"rounds (\d+)", output)[0]) > 20
        if not capabilities:
            assert not re.search(r"^(READ|TRACED) 1 ", output, re.MULTILINE), "PID 1 is out of reach"
        # It does find what is there to be found.
        decoy = container.popen(
            ["sleep", "900"], env={"SECRET": secret.bytes.decode(), "PATH": "/bin"}, **QUIET
        )
        once = container.run(["/hostile", secret.key, "once"], **TEXT).stdout
        assert any("sleep environ" in line for line in _found(once)), once
        assert any("sleep mem" in line for line in _found(once)), once
        assert re.search(r"^TRACED \d+ sleep", once, re.MULTILINE), once
        decoy.kill()
        decoy.wait()


@needs("gcc")
@pytest.mark.timeout(300)
def test_00_no_secret_within_reach_of_two_thousand_starts(
    image: r2d2.Image, hostile: str, tmp_path: Path
) -> None:
    # A hostile program is the first of each container; another, with all capabilities, looks from next door.
    mount = [(hostile, "/hostile")]
    with (
        Secret() as secret,
        r2d2.Container(image, mounts=mount, cap_add=["ALL"]) as neighbour,
        _looking(neighbour, secret, tmp_path) as said,
    ):
        for number in range(2000):
            capabilities = ["ALL"] if number % 2 else []
            done = r2d2.run(
                ["/hostile", secret.key, "once"], image=image, mounts=mount, cap_add=capabilities, **TEXT
            )
            assert "rounds 1" in done.stdout
            assert _found(done.stdout) == set()
    assert re.search(r"^rounds \d+", said.read_text(), re.MULTILINE)
    assert _found(said.read_text()) == set()


@needs("gcc")
def test_30_environment_and_arguments_of_the_host_stay_outside(image: r2d2.Image) -> None:
    with Secret() as secret, r2d2.Container(image, env={"GIVEN": "yes"}) as container:
        text = secret.bytes.decode()
        program = container.popen(["sleep", "900"], **QUIET)
        inside = shell(container, "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'")
        assert text not in inside
        assert "GIVEN=yes" in inside
        assert text not in repr(container.spec)
        for pid in (container.pid, program.pid):
            assert text.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            with contextlib.suppress(PermissionError):
                assert text.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        program.kill()
        program.wait()


# Descriptors and the runtime itself


def test_01_the_runtime_cannot_be_overwritten(image: r2d2.Image, rootfs: Path) -> None:
    # CVE-2019-5736
    extension = _core.__file__
    before = (digest(sys.executable), digest(extension))
    (rootfs / "bin/self").symlink_to("/proc/self/exe")
    (rootfs / "bin/script").write_text("#!/proc/self/exe\n")
    (rootfs / "bin/script").chmod(0o755)
    attack = """
for exe in /proc/[0-9]*/exe; do (echo overwritten > $exe) 2>/dev/null && readlink $exe; done
(echo overwritten > /proc/1/exe) 2>/dev/null && echo WROTE
true
"""
    for capabilities in ((), ("ALL",)):
        with r2d2.Container(r2d2.Image.from_dir(rootfs), cap_add=capabilities) as container:
            for program in ("/proc/self/exe", "self", "script"):
                assert container.run([program], **QUIET).returncode == 125, (
                    "it is PID 1's program, under a wrong name"
                )
            assert "WROTE" not in shell(container, attack)
            if not capabilities:
                assert "denied" in shell(container, "cat /proc/1/maps")
                assert "denied" in shell(container, "ls /proc/1/cwd/")
            if os.geteuid() == 0:
                mapped = set(re.findall(r"/\S+", Path(f"/proc/{container.pid}/maps").read_text()))
                assert mapped == {"/memfd:r2d2-init"}
    assert (digest(sys.executable), digest(extension)) == before
    assert r2d2.run(["true"], image=image, **QUIET).returncode == 0


@needs("root", "unshare")
def test_01_where_memfds_may_not_be_executed(image: r2d2.Image) -> None:
    script = """
import sys, r2d2
image = r2d2.Image.from_dir(sys.argv[1])
with r2d2.Container(image) as container:
    print(container.run(["echo", "one"], capture_output=True, text=True).stdout)
print(r2d2.run(["echo", "two"], image=image, capture_output=True, text=True).stdout)
"""
    inner = 'echo 2 > /proc/sys/vm/memfd_noexec && exec "$@"'
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        inner,
        "sh",
        sys.executable,
        "-c",
        script,
    ]
    done = subprocess.run([*command, image.layers[0]], **TEXT, check=False)
    assert (done.stdout.split(), done.stderr) == (["one", "two"], "")


def test_02_no_descriptor_of_the_parent_comes_along(image: r2d2.Image, tmp_path: Path) -> None:
    # CVE-2024-21626
    leaked = []
    for path in ["/", str(tmp_path), *["/etc/passwd"] * 18]:
        leaked.append(os.open(path, os.O_RDONLY))
        os.set_inheritable(leaked[-1], True)
    try:
        listing = 'for fd in /proc/self/fd/*; do [ -e "$fd" ] && echo "${fd##*/}"; done'
        one_shot = r2d2.run(["sh", "-c", listing], image=image, **TEXT).stdout.split()
        with r2d2.Container(image) as container:
            assert shell(container, listing).split() == one_shot == ["0", "1", "2"]
            tree = container.run(["sh", "-c", listing], timeout=60, **TEXT).stdout.split()
            assert tree == ["0", "1", "2"]
            given = container.run(["sh", "-c", listing], pass_fds=[leaked[3]], **TEXT).stdout.split()
            assert set(given) == {"0", "1", "2", str(leaked[3])}, "but what is asked for does"
            if os.geteuid() == 0:
                links = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{container.pid}/fd")}
                assert not any("passwd" in link or str(tmp_path) in link for link in links), links
            for number in range(3, 64):
                with pytest.raises((r2d2.SetupNotFoundError, r2d2.SetupPermissionError)):
                    container.run(["true"], cwd=f"/proc/self/fd/{number}", **QUIET)
    finally:
        for number in leaked:
            os.close(number)


@pytest.mark.parametrize("userns", USERNS)
def test_02_a_working_directory_that_an_image_chooses(rootfs: Path, victim: Path, userns: str | None) -> None:
    # PID 1 holds descriptors of its own: with upper= one of them is of a directory of the host.
    for name in ("upper", "work"):
        (victim / name).mkdir()
    for number in range(3, 16):
        (rootfs / f"work{number}").symlink_to(f"/proc/self/fd/{number}")
        (rootfs / f"bin/run{number}").symlink_to(f"/proc/self/fd/{number}/../file")
    (victim / "file").chmod(0o755)
    layers = {"upper": victim / "upper", "work": victim / "work"}
    image = r2d2.Image.from_dir(rootfs)
    with r2d2.Container(image, **layers, **keywords_of(userns)) as container:
        for number in range(3, 16):
            for keywords in ({}, {"timeout": 60}):
                with pytest.raises(r2d2.SetupError):
                    container.run(["true"], cwd=f"/work{number}", **QUIET, **keywords)
                with pytest.raises(r2d2.SetupError) as failed:
                    container.run([f"/bin/run{number}"], **QUIET, **keywords)
                assert failed.value.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
    with r2d2.Container(image, **layers, cap_add=["SYS_PTRACE"], **keywords_of(userns)) as container:
        script = (
            "ls /proc/1/fd/ >/dev/null && echo seen; for i in $(seq 3 9); do cat /proc/1/fd/$i/../file; done"
        )
        output = shell(container, script)
        assert "seen" in output, "CAP_SYS_PTRACE sees PID 1's descriptors"
        assert "untouched" not in output, "and none of them leads out"


@needs("unshare")
def test_11_nobody_traces_pid_1(image: r2d2.Image) -> None:
    # CVE-2026-41163; what traces is in the tests 00.
    with r2d2.Container(image) as container:
        for name in ("mem", "maps", "environ", "syscall", "stack", "io", "auxv", "pagemap", "personality"):
            assert shell(container, f"head -c 10 /proc/1/{name}").startswith("head: "), name
        for name in ("root", "cwd", "exe", "fd/3", "fd/4", "ns/user"):
            assert "denied" in shell(container, f"readlink -v /proc/1/{name} || ls -l /proc/1/{name}"), name
        assert "denied" not in shell(container, "cat /proc/self/maps; readlink /proc/self/exe")


# Images


@pytest.mark.parametrize("writable", [False, True])
def test_03_a_false_dev_null(rootfs: Path, victim: Path, writable: bool) -> None:
    # CVE-2025-31133, CVE-2025-62161, CVE-2026-88265
    for name in ("null", "zero", "tty", "ptmx", "stdout", "fd"):
        (rootfs / "dev" / name).symlink_to(victim / "file")
    (rootfs / "file").write_text("untouched")
    image = r2d2.Image.from_dir(rootfs, writable=writable)
    with r2d2.Container(image) as container:
        script = (
            "echo x > /dev/null; echo y > /dev/zero; stat -c '%F %t %T' /dev/null /dev/zero; cat /proc/keys"
        )
        output = shell(container, script)
        assert "character special file 1 3\ncharacter special file 1 5\n" in output
    assert (victim / "file").read_text() == (rootfs / "file").read_text() == "untouched"


#: What a container's first program sees in its first instant: mounts at /, where /.. leads, its rights.
INSTANT = r"""
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
static void show(const char *file, const char *wanted) {
    char line[4096];
    FILE *f = fopen(file, "r");
    for (int n = 0; f && fgets(line, sizeof line, f);)
        if (strncmp(line, wanted, strlen(wanted)) == 0) printf("%s", line);
}
int main(void) {
    struct stat root, above;
    char line[4096];
    int at_root = 0;
    stat("/", &root);
    stat("/..", &above);
    FILE *f = fopen("/proc/self/mountinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *field = line;
        for (int i = 0; i < 4; i++) field = strchr(field, ' ') + 1;
        at_root += strncmp(field, "/ ", 2) == 0;
    }
    printf("%d %d\n", root.st_dev == above.st_dev && root.st_ino == above.st_ino, at_root);
    show("/proc/self/status", "Cap");
    show("/proc/self/status", "SigIgn");
    return 0;
}
"""


@needs("gcc")
@pytest.mark.parametrize("capabilities", [{}, {"cap_add": ["SYS_ADMIN"]}, {"cap_drop": ["ALL"]}], ids=str)
def test_04_the_first_program_comes_when_the_hosts_tree_is_gone(
    image: r2d2.Image, compiled: Callable[[str], str], capabilities: dict[str, Any]
) -> None:
    """PID 1 lets go of the host's tree beside its first program (``helper::letgo``)."""
    mounts_of = [(compiled(INSTANT), "/instant", True)]
    with r2d2.Container(image, mounts=mounts_of, **capabilities) as container:
        wanted = container.run(["/instant"], **TEXT).stdout
    assert wanted.startswith("1 1\n")
    allowed = int(re.search(r"CapBnd:\s+(\w+)", wanted)[1], 16)  # type: ignore[index]
    assert bool(allowed >> 21 & 1) == ("cap_add" in capabilities)
    for cwd in ("/", "/.."):
        for _ in range(100):
            seen = r2d2.run(["/instant"], image=image, mounts=mounts_of, cwd=cwd, **capabilities, **TEXT)
            assert seen.stdout == wanted


@pytest.mark.parametrize("writable", [False, True])
def test_04_a_false_dev_console(rootfs: Path, victim: Path, writable: bool) -> None:
    # CVE-2025-52565, CVE-2026-88264
    (rootfs / "dev/console").symlink_to("../../victim/made")
    (rootfs / "dev/pts").symlink_to(victim)
    (rootfs / "dev/shm").symlink_to("../../victim")
    before = mounts()
    with r2d2.Container(r2d2.Image.from_dir(rootfs, writable=writable)) as container:
        container.popen(["true"], **QUIET).wait()
        assert "not a tty" in shell(container, "tty; echo x > /dev/shm/made; ls /dev/pts")
    assert os.listdir(victim) == ["file"]
    assert mounts() == before


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/tmp", "../victim", "/proc/self/root"])
def test_10_a_mount_point_that_is_a_symlink(rootfs: Path, victim: Path, name: str, target: str) -> None:
    # CVE-2023-27561, GHSA-g2j6
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to(target)
    with r2d2.Container(r2d2.Image.from_dir(rootfs)) as container:
        kinds = {"proc": "proc", "sys": "sysfs", "dev": "tmpfs"}
        assert shell(container, f"stat -f -c %T /{name}; stat -c %F /{name}").split("\n")[1] == "directory"
        assert any(
            line.split()[4] == f"/{name}" and f"- {kinds[name]} " in line for line in mounts(container.pid)
        )
    writable = r2d2.Container(r2d2.Image.from_dir(rootfs, writable=True))
    if name == "sys":  # a container can do without
        with writable:
            assert not any("- sysfs " in line for line in mounts(writable.pid))
    else:
        with pytest.raises(r2d2.SetupError) as failed:
            writable.start()
        assert failed.value.errno == errno.ELOOP
    assert os.listdir(victim) == ["file"]


def test_05_writes_to_proc_reach_proc_alone(rootfs: Path, victim: Path) -> None:
    # CVE-2025-52881, CVE-2025-62596
    for name in ("self/attr", "sys/kernel", "1"):
        (rootfs / "proc" / name).mkdir(parents=True)
    for name in (
        "self/attr/exec",
        "self/uid_map",
        "self/setgroups",
        "sys/kernel/hostname",
        "1/timens_offsets",
    ):
        (rootfs / "proc" / name).symlink_to(victim / "file")
    for writable in (False, True):
        clock = (1000, 1000)
        with r2d2.Container(r2d2.Image.from_dir(rootfs, writable=writable), clock_offsets=clock) as container:
            assert shell(container, "cat /proc/sys/kernel/hostname") == "r2d2\n"
    assert (victim / "file").read_text() == "untouched"


def test_06_a_read_only_root_stays_so(rootfs: Path) -> None:
    # CVE-2026 of crun 1.31: the remount went through /proc/self/fd of the container's making.
    (rootfs / "proc/self").mkdir()
    (rootfs / "proc/self/fd").symlink_to("/tmp")
    for image in (r2d2.Image.from_dir(rootfs), r2d2.Image.from_dir(rootfs, writable=True)):
        with r2d2.Container(image, readonly=True) as container:
            assert "Read-only" in shell(container, "echo x > /made")
            assert "Read-only" in shell(container, "mkdir /etc/made")
            assert not re.search(r"^rw", next(
                line.split()[5] for line in mounts(container.pid) if line.split()[4] == "/"
            ))  # fmt: skip
    assert not (rootfs / "made").exists()
    with r2d2.Container(r2d2.Image.from_dir(rootfs)) as container:
        assert shell(container, "echo x > /made; cat /made") == "x\n"


def test_07_destinations_are_taken_as_they_are(image: r2d2.Image, victim: Path) -> None:
    # CVE-2026-119101, -115520
    for target in ("/a]:b", "/a,b", "/a\\040b", "/with space", "/new\nline"):
        with r2d2.Container(image, mounts=[r2d2.Mount(victim, target)]) as container:
            assert container.run(["cat", f"{target}/file"], **TEXT).stdout == "untouched"
    for target in ("/../victim", "/tmp/../../x", "relative", "/", ""):
        with pytest.raises(r2d2.SpecError):
            r2d2.Container(image, mounts=[r2d2.Mount(victim, target)]).start()


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    "link", ["/oldroot/tmp/p", "../../victim", "{victim}", "/proc/1/root/tmp", "/proc/self/cwd"]
)
def test_08_mount_points_are_made_inside(rootfs: Path, victim: Path, link: str, writable: bool) -> None:
    # CVE-2026-87766
    subprocess.run(["rm", "-r", rootfs / "etc"], check=True)
    (rootfs / "etc").symlink_to(link.format(victim=victim))
    source = rootfs.parent / "source"
    source.mkdir()
    image = r2d2.Image.from_dir(rootfs, writable=writable)
    for target in ("/etc/made", "/etc/made/deeper", "/etc/file"):
        with contextlib.suppress(r2d2.R2d2Error):
            r2d2.Container(image, mounts=[(source, target), ("/etc/passwd", f"{target}.f")]).start().stop()
    assert os.listdir(victim) == ["file"]
    assert not Path("/oldroot").exists()
    assert (victim / "file").read_text() == "untouched"


@pytest.mark.timeout(300)
def test_09_a_symlink_that_changes_all_the_time(rootfs: Path, victim: Path) -> None:
    # CVE-2021-30465
    source = rootfs.parent / "source"
    source.mkdir()
    (rootfs / "mnt/real").mkdir()
    racer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            """
import itertools, os, sys
os.chdir(sys.argv[1])
for i in itertools.count():
    os.symlink(["real", "../../victim", sys.argv[2], "/proc/self/root"][i % 4], "next")
    os.rename("next", "flip")
""",
            str(rootfs / "mnt"),
            str(victim),
        ]
    )
    before = mounts()
    image = r2d2.Image.from_dir(rootfs, writable=True)
    started = 0
    try:
        for _ in range(1000):
            container = r2d2.Container(
                image, mounts=[(source, "/mnt/flip/made"), ("/etc/passwd", "/mnt/flip/f")]
            )
            with contextlib.suppress(r2d2.SetupError), container:
                started += 1
    finally:
        racer.kill()
        racer.wait()
    assert started > 100, "some do start"
    assert os.listdir(victim) == ["file"]
    assert (victim / "file").read_text() == "untouched"
    assert mounts() == before


@needs("root")
def test_26_devices_and_setuid_programs_of_an_image_are_inert(rootfs: Path) -> None:
    os.mknod(rootfs / "disk", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    subprocess.run(["cp", rootfs / "bin/busybox", rootfs / "bin/suid"], check=True)
    (rootfs / "bin/suid").chmod(0o4755)
    for userns in (None, "host"):
        with r2d2.Container(r2d2.Image.from_dir(rootfs), **keywords_of(userns)) as container:
            assert "denied" in shell(container, "head -c 4 /disk")
            made = shell(container, "mknod /tmp/made c 1 5 && head -c 4 /tmp/made")
            assert "denied" in made or "not permitted" in made
            assert "0" in shell(container, "head -c 4 /dev/zero | wc -c; echo 0")
            assert shell(container, "grep NoNewPrivs /proc/self/status").split() == ["NoNewPrivs:", "1"]
            # As an ordinary user, the setuid bit gives nothing.
            drop = (
                "busybox setuidgid 1000:1000 /bin/suid id -u 2>/dev/null || busybox su -s /bin/suid nobody id"
            )
            assert "\n0\n" not in "\n" + shell(container, drop)


# Privileges


@pytest.mark.parametrize("userns", USERNS)
def test_12_no_cgroup_file_system_and_no_release_agent(image: r2d2.Image, userns: str | None) -> None:
    # CVE-2022-0492
    with r2d2.Container(image, **keywords_of(userns)) as container:
        for controller in ("rdma", "memory", "pids", "devices"):
            output = shell(
                container, f"mkdir -p /tmp/c; mount -t cgroup -o {controller} none /tmp/c && echo mounted"
            )
            assert "mounted" not in output
        assert shell(
            container, "find / -xdev -name release_agent; find /sys/fs/cgroup -name release_agent"
        ) in {
            "",
            "find: /sys/fs/cgroup: No such file or directory\n",
        }


def test_17_capabilities_of_init_and_programs(image: r2d2.Image) -> None:
    # CVE-2022-29162
    def of(container: r2d2.Container, which: str) -> dict[str, int]:
        text = shell(container, f"grep ^Cap /proc/{which}/status")
        return {name: int(value, 16) for name, value in (line.split(":\t") for line in text.splitlines())}

    asked: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
        ({}, lambda mask: mask == 0xA80425FB),
        ({"cap_drop": ["ALL"]}, lambda mask: mask == 0),
        ({"cap_drop": ["ALL"], "cap_add": ["CHOWN"]}, lambda mask: mask == 1),
        ({"cap_add": ["ALL"]}, lambda mask: mask >= 0x1FFFFFFFFFF),
    ]
    for keywords, expected in asked:
        with r2d2.Container(image, **keywords) as container:
            for which in ("self", "1"):
                found = of(container, which)
                assert found["CapInh"] == found["CapAmb"] == 0, (which, keywords)
                assert found["CapPrm"] & ~found["CapBnd"] == 0
                if which == "self":
                    assert expected(found["CapBnd"]), (which, keywords, hex(found["CapBnd"]))


def test_18_groups_cannot_be_dropped_with_a_single_id() -> None:
    # CVE-2014-8989
    with r2d2.Container("host", userns="single") as container:
        script = "import os; print(open('/proc/self/setgroups').read().strip()); os.setgroups([])"
        done = container.run(["/usr/bin/python3", "-c", script], **TEXT)
        assert done.stdout == "deny\n"
        assert "PermissionError" in done.stderr


def test_19_abstract_sockets_of_the_host(image: r2d2.Image) -> None:
    # CVE-2020-15257
    del image
    name = f"r2d2-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        script = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}'); print('connected')"
        )
        command = ["/usr/bin/python3", "-c", script]
        for userns, network, expected in ((None, "none", ""), (None, "host", "connected\n")):
            done = r2d2.run(command, image="host", network=network, **keywords_of(userns), **TEXT)
            assert done.stdout == expected, done.stderr


@needs("vsock")
@pytest.mark.xfail(reason="needs the seccomp filter of a later work", strict=True)
def test_20_no_vsock(image: r2d2.Image) -> None:
    del image
    script = "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('made')"
    assert r2d2.run(["/usr/bin/python3", "-c", script], **TEXT).stdout == ""


@pytest.mark.parametrize("userns", USERNS)
def test_22_a_read_only_bind_stays_so_with_all_below(
    image: r2d2.Image, victim: Path, userns: str | None
) -> None:
    binds = [
        r2d2.Mount(victim, "/bound", readonly=True),
        r2d2.Mount("/dev", "/devices", readonly=True),
        (victim, "/free"),
    ]
    with r2d2.Container(image, mounts=binds, **keywords_of(userns)) as container:
        below = [
            line.split()
            for line in mounts(container.pid)
            if line.split()[4].startswith(("/bound", "/devices"))
        ]
        assert len(below) > 2, "/dev has mounts below it"
        assert all(fields[5].startswith("ro,") for fields in below), below
        for remount in ("mount -o remount,rw /bound", "mount -o remount,bind,rw /bound", "umount /bound"):
            assert shell(container, f"{remount} 2>/dev/null && echo done; echo x > /bound/made") != ""
        output = shell(container, "echo x > /bound/made; echo x > /bound/file")
        assert output.count("Read-only") == 2
        if container.image.kind == "layers":
            nested = (
                "unshare -Urm sh -c 'mount -o remount,bind,rw /bound; umount /bound; echo x > /bound/made'"
            )
            shell(container, nested)
        assert shell(container, "echo y > /free/by && cat /bound/by") == "y\n"
    assert sorted(os.listdir(victim)) == ["by", "file"]


def test_23_a_nested_user_namespace_uncovers_nothing() -> None:
    attack = """
umount /proc/sys && echo UNCOVERED; umount /proc/keys && echo UNCOVERED; umount /proc/kcore && echo UNCOVERED
mount -o remount,bind,rw /proc/sys && echo UNCOVERED; mount -o remount,bind,rw /sys && echo UNCOVERED
mkdir -p /tmp/p; mount -t proc proc /tmp/p && cat /tmp/p/keys && echo UNCOVERED
echo reached
"""
    for nested in (["unshare", "-Urm"], ["unshare", "-Urmpf"]):
        done = r2d2.run([*nested, "sh", "-c", attack], image="host", **TEXT)
        assert "UNCOVERED" not in done.stdout, done
        assert "reached" in done.stdout or "unshare" in done.stderr


@pytest.mark.parametrize("userns", USERNS)
def test_24_dangerous_files_of_the_kernel(image: r2d2.Image, userns: str | None) -> None:
    with r2d2.Container(image, **keywords_of(userns)) as container:
        for path in (
            "/proc/sysrq-trigger",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/vm/drop_caches",
            "/proc/irq/default_smp_affinity",
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/sys/power/state",
        ):
            # Opened for writing, nothing is written: should it succeed, the machine is none the worse.
            opened = shell(
                container, f"[ -e {path} ] || exit; (: >> {path}) 2>/dev/null && echo OPENED {path}"
            )
            assert opened == "", path
        for path in (
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/kallsyms",
            "/proc/kmsg",
            "/proc/interrupts",
        ):
            assert shell(container, f"head -c 100 {path} 2>/dev/null | wc -c").strip() == "0", path
        assert shell(container, "ls /sys/firmware 2>/dev/null | wc -l").strip() == "0"
        assert "Linux" in shell(container, "cat /proc/version")
        assert shell(container, "echo x > /proc/self/comm && cat /proc/self/comm") != ""


KEYS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
def key(*args):
    result = libc.syscall(*[ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args])
    return result if result >= 0 else -ctypes.get_errno()
"""


def test_25_the_session_keyring_stays_outside() -> None:
    search = KEYS + "print(key(250, 10, -3, b'user', b'r2d2-test', 0) > 0)"
    owner = (
        KEYS
        + f"""
assert key(250, 1, b"r2d2-test") > 0       # a session keyring of our own
added = key(248, b"user", b"r2d2-test", b"secret", 6, -3)
assert added > 0, added
import subprocess, r2d2
search = {search!r}
print(subprocess.run([sys.executable, "-c", search], capture_output=True, text=True).stdout.strip())
print(r2d2.run(["/usr/bin/python3", "-c", search], capture_output=True, text=True).stdout.strip())
with r2d2.Container("host") as container:
    print(container.run(["/usr/bin/python3", "-c", search], capture_output=True, text=True).stdout.strip())
"""
    )
    done = subprocess.run([sys.executable, "-c", owner], **TEXT, check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "False", "False"], "")


def test_27_a_cache_that_somebody_else_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GHSA-hj8h
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "open"):
        monkeypatch.setenv("R2D2_CACHE", str(tmp_path / name))
        with pytest.raises(r2d2.SetupPermissionError):
            r2d2.Image.minimal()
    assert os.listdir(tmp_path / "real") == os.listdir(tmp_path / "open") == []
    monkeypatch.setenv("R2D2_CACHE", str(tmp_path / "own"))
    r2d2.Image.minimal()
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_27_nothing_is_staged_where_others_see_it(image: r2d2.Image) -> None:
    before = {
        path: sorted(os.listdir(path)) for path in ("/mnt", "/media", "/srv") if os.access(path, os.R_OK)
    }
    with r2d2.Container(image) as container:
        container.run(["sh", "-c", "echo x > /made"], **QUIET)
        assert {path: sorted(os.listdir(path)) for path in before} == before


# Terminals


TIOCSTI = """
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main() {
    char c = 'x', paste[2] = {3, 0};
    int works = 0;
    ioctl(0, TIOCSCTTY, 1);
    for (int fd = 0; fd < 3; fd++) {
        works += ioctl(fd, TIOCSTI, &c) == 0;
        works += ioctl(fd, 0x541C /* TIOCLINUX */, paste) == 0;
    }
    FILE *tty = fopen("/dev/tty", "r+");
    if (tty) works += ioctl(fileno(tty), TIOCSTI, &c) == 0;
    printf("works %d\\n", works);
    return 0;
}
"""


@needs("gcc")
@pytest.mark.parametrize("userns", USERNS)
@pytest.mark.parametrize("one_shot", [True, False])
def test_13_nothing_is_typed_into_our_terminal(
    image: r2d2.Image,
    compiled: Callable[[str], str],
    userns: str | None,
    one_shot: bool,
) -> None:
    # CVE-2017-5226
    program = compiled(TIOCSTI)
    call = (
        f"r2d2.run(['/attack'], image=image, mounts=[({program!r}, '/attack')], **{keywords_of(userns)!r})"
        if one_shot
        else f"c = r2d2.Container(image, mounts=[({program!r}, '/attack')], **{keywords_of(userns)!r});"
        " c.start(); c.run(['/attack']); c.stop()"
    )
    script = f"import r2d2; image = r2d2.Image.from_dir({image.layers[0]!r}); {call}"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    output = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            output += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output
    assert output == b"works 0\r\n"


@needs("gcc", "tiocsti")
def test_13_it_would_show(compiled: Callable[[str], str]) -> None:
    program = compiled(TIOCSTI)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(program, [program])
    output = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            output += chunk
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"works 0" not in output


# Files from outside


@pytest.fixture
def trap(rootfs: Path, victim: Path) -> Iterator[r2d2.Container]:
    """A container full of traps for whoever copies from or to it."""
    links = {
        "abs": str(victim),
        "up": "../../../../../../victim",
        "init": "/proc/1/root",
        "file": f"{victim}/file",
    }
    for name, target in links.items():
        (rootfs / name).symlink_to(target)
    os.mkfifo(rootfs / "fifo")
    with r2d2.Container(r2d2.Image.from_dir(rootfs)) as container:
        yield container


@pytest.mark.skipif(not hasattr(r2d2.Container, "copy_in"), reason="needs copy_in")
def test_14_copies_stay_inside(trap: r2d2.Container, victim: Path, tmp_path: Path) -> None:
    # CVE-2018-15664, CVE-2019-14271, CVE-2019-10152, CVE-2026-42306
    source = tmp_path / "source"
    source.write_text("copied")
    for target in ("/abs/made", "/up/made", "/init/made", "/file", "/../victim/made", "/abs/file", "/fifo"):
        with contextlib.suppress(r2d2.R2d2Error, OSError, ValueError):
            trap.copy_in(source, target)
    assert os.listdir(victim) == ["file"]
    assert (victim / "file").read_text() == "untouched"
    for number, origin in enumerate(
        ("/abs/file", "/up/file", "/file", "/../victim/file", "/fifo", "/init/etc/shadow")
    ):
        out = tmp_path / f"out{number}"
        with contextlib.suppress(r2d2.R2d2Error, OSError, ValueError):
            trap.copy_out(origin, out)
        if out.is_file() and not out.is_symlink():
            assert out.read_text() != "untouched", origin


@pytest.mark.skipif(not hasattr(r2d2.Container, "copy_in"), reason="needs copy_in")
def test_14_a_race_of_links_under_a_copy(rootfs: Path, victim: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("copied")
    (rootfs / "real").mkdir()
    with r2d2.Container(r2d2.Image.from_dir(rootfs)) as container:
        flip = f"while :; do ln -sfn /real /x; ln -sfn {victim} /x; ln -sfn /proc/1/root{victim} /x; done"
        racer = container.popen(["sh", "-c", flip], **QUIET)
        for number in range(300):
            with contextlib.suppress(r2d2.R2d2Error, OSError):
                container.copy_in(source, f"/x/made{number}")
            with contextlib.suppress(r2d2.R2d2Error, OSError):
                container.copy_out("/x/file", tmp_path / "out")
                assert (tmp_path / "out").read_text() != "untouched"
        racer.kill()
        racer.wait()
    assert os.listdir(victim) == ["file"]


# Words


def test_16_options_of_mounts_are_no_free_text(image: r2d2.Image, victim: Path) -> None:
    # CVE-2024-1753, CVE-2024-9407
    for mount in (
        r2d2.Mount(None, "/x", type="tmpfs", size="1m,mode=7777"),
        r2d2.Mount(victim, "/x", type="bind,suid"),
        r2d2.Mount(victim, "/x", type="ext4"),
    ):
        with pytest.raises(r2d2.SpecError):
            r2d2.Container(image, mounts=[mount]).start()
    (victim / "link").symlink_to("/etc")
    with r2d2.Container(image, mounts=[(victim, "/x")]) as container:
        options = next(line.split()[5] for line in mounts(container.pid) if line.split()[4] == "/x")
        assert {"nosuid", "nodev"} <= set(options.split(","))
        assert "passwd" not in shell(container, "ls /x/link/ | grep -x passwd-of-the-host")


def test_32_too_much_of_everything(image: r2d2.Image, tmp_path: Path) -> None:
    # GHSA-v95c
    big = {"BIG": "x" * 70_000}
    assert r2d2.run(["sh", "-c", "echo ${#BIG}"], image=image, env=big, **TEXT).stdout == "70000\n"
    many = {f"V{number}": "x" * 10 for number in range(5000)}
    assert r2d2.run(["sh", "-c", "env | grep -c ^V"], image=image, env=many, **TEXT).stdout == "5000\n"
    with pytest.raises(OSError) as failed:
        r2d2.run(["true"], image=image, env={"HUGE": "x" * 300_000}, **QUIET)
    assert failed.value.errno == errno.E2BIG
    binds = [(tmp_path, f"/many/{number}") for number in range(400)]
    with r2d2.Container(image, mounts=binds) as container:
        assert shell(container, "ls /many | wc -l") == "400\n"
    for wrong in (
        {"mounts": [(tmp_path, "/" + "x" * 5000)]},
        {"mounts": [("/" + "y" * 5000, "/x")]},
        {"workdir": "/" + "z" * 5000},
        {"hostname": "h" * 65},
        {"name": "n" * 300},
    ):
        with pytest.raises((r2d2.R2d2Error, OSError)):
            r2d2.run(["true"], image=image, **wrong, **QUIET)


def test_33_words_do_not_become_lines(image: r2d2.Image) -> None:
    for wrong in (
        {"hostname": "a\n6.6.6.6 evil"},
        {"hostname": "a b"},
        {"name": "../../escape"},
        {"name": "a/b"},
        {"env": {"A=B": "c"}},
        {"env": {"A": "b\0c"}},
        {"extra_hosts": {"evil\n6.6.6.6 bank": "10.0.0.1"}},
        {"extra_hosts": {"bank": "10.0.0.1\n6.6.6.6 bank"}},
    ):
        with pytest.raises(r2d2.SpecError):
            r2d2.Container(image, **wrong)
    with r2d2.Container(image, env={"A": "b\nPATH=/evil"}) as container:
        assert "/evil" not in shell(container, "echo $PATH")


def test_34_the_owner_is_out_of_reach(image: r2d2.Image) -> None:
    del image
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pidfd = libc.syscall(434, 1, 0)
taken = [libc.syscall(438, pidfd, number, 0) for number in range(3, 12)]
print("taken", sum(fd >= 0 for fd in taken))
for fd in taken:
    if fd >= 0:
        of = os.readlink(f"/proc/self/fd/{fd}")
        print("signalled", "pidfd" in of and libc.syscall(424, fd, 0, None, 0) == 0)
        print("stolen", sum(libc.syscall(438, fd, number, 0) >= 0 for number in range(12)))
        print("entered", libc.setns(fd, 0x20000) == 0)
for signal in (9, 19):
    try: os.kill(1, signal)
    except PermissionError: pass
"""
    for capabilities, least in (((), 0), (("SYS_PTRACE", "KILL", "SYS_ADMIN"), 1)):
        with r2d2.Container("host", cap_add=capabilities, cap_drop=()) as container:
            done = container.run(["/usr/bin/python3", "-c", script], **TEXT)
            words = done.stdout.split()
            assert words[0] == "taken", done
            assert int(words[1]) >= least, "with CAP_SYS_PTRACE PID 1's own descriptors can be had"
            assert "signalled True" not in done.stdout
            assert "entered True" not in done.stdout
            assert not re.search(r"stolen [1-9]", done.stdout), done.stdout
            assert container.running
            if not capabilities:
                assert int(words[1]) == 0
