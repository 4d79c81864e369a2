"""Surroundings in which something is refused, made real: it breaks one thing, then asks r2d2.

``python _broken.py NAME`` prints JSON: the doctor's report and what starting a container raised.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NR = {
    "clone": 56, "mount": 165, "unshare": 272, "memfd_create": 319, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "clone3": 435, "mount_setattr": 442, "pivot_root": 155,
    "socket": 41,
}  # fmt: skip
CLONE_NEWUSER = 0x1000_0000
NAMESPACES = 0x7E02_0000


def refuse(*names: str, number: int = errno.EPERM) -> None:
    """A seccomp filter of this process and its children: these calls fail; clone only for namespaces."""
    load = lambda offset: struct.pack("HBBI", 0x20, 0, 0, offset)  # noqa: E731 - seccomp_data: nr at 0, arg 0 at 16
    allow, deny = (struct.pack("HBBI", 6, 0, 0, verdict) for verdict in (0x7FFF_0000, 0x0005_0000 | number))
    program = b""
    for name in names:
        inner = (load(16) + struct.pack("HBBI", 0x45, 0, 1, NAMESPACES) if name == "clone" else b"") + deny
        program += load(0) + struct.pack("HBBI", 0x15, 0, len(inner) // 8, NR[name]) + inner
    program += allow
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, filters, 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def shell(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)


def scratch(**keywords: Any) -> Callable[[], None]:
    def start() -> None:
        from r2d2 import Container

        with Container("scratch", **keywords):
            pass

    return start


def no_user_namespaces() -> Any:
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    return scratch()


def no_net_namespaces() -> Any:
    Path("/proc/sys/user/max_net_namespaces").write_text("0")
    return scratch()


def policy_clone() -> Any:
    refuse("clone", "unshare")
    return scratch()


def policy_mount() -> Any:
    refuse("mount", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr", "pivot_root")
    return scratch()


def policy_memfd() -> Any:
    refuse("memfd_create")
    return scratch()


def policy_memfd_and_nowhere_to_write() -> Any:
    # Read-only as they are: this very program may lie in one of them.
    shell("for d in /tmp /var/tmp /dev/shm; do mount --bind $d $d; mount -o remount,bind,ro $d; done")
    os.environ["XDG_RUNTIME_DIR"] = "/tmp"
    refuse("memfd_create")
    return scratch()


def few_descriptors() -> Any:
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 4096))
    return scratch()


def few_processes() -> Any:
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    return scratch()


def full_cgroup() -> Any:
    group = Path(os.environ["R2D2_TEST_CGROUP"])
    (group / "pids.max").write_text("1")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return scratch()


def covered_proc() -> Any:
    shell("mount --bind /proc/sys /proc/sys")
    return scratch(proc="mount")


def covered_proc_auto() -> Any:
    shell("mount -t tmpfs none /proc/acpi || mount --bind /proc/sys /proc/sys")

    def start() -> None:
        import r2d2

        said = r2d2.run(
            ["sh", "-c", "cat /proc/self/comm; echo x > /proc/self/comm"], capture_output=True, text=True
        )
        assert said.stdout == "cat\n", said
        assert "Read-only" in said.stderr, said
        with r2d2.Container("scratch") as again:
            print(json.dumps({"notes": again._running().notes()}), file=sys.stderr)

    return start


def unmapped() -> Any:
    return scratch()


def old_kernel() -> Any:
    return scratch()


def no_newuidmap() -> Any:
    os.environ["PATH"] = "/nonexistent"
    return scratch(userns="subuid")


def no_home() -> Any:
    os.environ.update(HOME="/proc/none", XDG_CACHE_HOME="/proc/none/cache", XDG_RUNTIME_DIR="/proc/none")
    return scratch()


def no_tun() -> Any:
    shell("mount --bind /dev/null /dev/net/tun")
    return scratch()


def host_without_capabilities() -> Any:
    return scratch(userns="host")


def undelegated_limit() -> Any:
    return scratch(limits={"memory": "64m"})


def _layers(upper: str, work: str, lower: str) -> Any:
    import r2d2

    image = r2d2.Image.from_dir(lower)

    def start() -> None:
        with r2d2.Container(image, upper=upper, work=work):
            pass

    return start


def _tmpfs(options: str = "mode=0755") -> str:
    """The root of a tmpfs that goes with this mount namespace."""
    at = "/media" if os.path.isdir("/media") else "/srv"
    shell(f"mount -t tmpfs -o {options} none {at}")
    return at


def upper_on_overlay() -> Any:
    at = _tmpfs()
    shell(
        f"cd {at}; mkdir a b u w m; mount -t overlay -o userxattr,lowerdir=a,upperdir=u,workdir=w none m;"
        "mkdir m/upper m/work"
    )
    return _layers(f"{at}/m/upper", f"{at}/m/work", f"{at}/b")


def upper_left_volatile() -> Any:
    at = _tmpfs()
    shell(
        f"cd {at}; mkdir a u w m;"
        "mount -t overlay -o userxattr,volatile,lowerdir=a,upperdir=u,workdir=w none m; umount m"
    )
    return _layers(f"{at}/u", f"{at}/w", f"{at}/a")


def lower_in_upper() -> Any:
    at = _tmpfs()
    shell(f"cd {at}; mkdir -p u/a w")
    return _layers(f"{at}/u", f"{at}/w", f"{at}/u/a")


def upper_and_work_apart() -> Any:
    at = _tmpfs()
    shell(f"cd {at}; mkdir a u w; mount -t tmpfs none w")
    return _layers(f"{at}/u", f"{at}/w", f"{at}/a")


def upper_read_only() -> Any:
    at = _tmpfs()
    shell(f"cd {at}; mkdir a u w; mount -o remount,ro,bind {at}")
    return _layers(f"{at}/u", f"{at}/w", f"{at}/a")


def full_tmpfs() -> Any:
    return scratch(tmpfs_size=4096)


def bind_nothing() -> Any:
    return scratch(mounts=["/nonexistent-r2d2:/x"])


def bind_kinds() -> Any:
    return scratch(mounts=["/etc/passwd:/proc"])


def without_proc() -> Any:
    shell("mount -t tmpfs none /proc")
    return scratch()


def main() -> None:
    """Breaks, then asks."""
    name = sys.argv[1]
    ask = globals()[name]()
    import r2d2
    from r2d2.errors import R2d2Error

    raised: dict[str, Any] = {}
    try:
        ask()
    except R2d2Error as error:
        raised = {
            "type": type(error).__name__,
            "errno": getattr(error, "errno", None),
            "step": error.step,
            "hint": error.hint,
            "text": str(error),
        }
    report = r2d2.doctor()
    print(json.dumps({"raised": raised, "report": json.loads(report.to_json()), "text": str(report)}))


if __name__ == "__main__":
    main()
