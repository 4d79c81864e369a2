"""Wrong answers: for each notebook one that a student might give, and what its check must say to it."""

from __future__ import annotations

TRANSLATE = """
def to_host(uid_map, inside):
    first, outside, count = map(int, uid_map.split()[:3])
    return outside + inside - first if first <= inside < first + count else None
"""

SEEN = """
def seen(root):
    return [f"/proc/{pid}" for pid in os.listdir("/proc") if pid.isdigit()]
"""

UNDELETE = """
def undelete(upper, name):
    (Path(upper) / name).unlink()
    (Path(upper) / name).write_text("mine")
"""

#: Notebook -> exercise, answer, a part of the hint.
BROKEN: dict[str, tuple[str, str, str]] = {
    "01-what-a-container-is": ("same-kernel", 'command = ["uname", "-n"]', "an option for the release"),
    "02-namespaces": (
        "parse",
        'def parse(link):\n    return link[:3], int(link.strip("]").rpartition("[")[2])',
        "not all names have three letters",
    ),
    "03-hostname": ("names", "def named(names):\n    return names[:1]", "sh(f'hostname {name}; hostname'"),
    "04-pids": ("alone", 'keywords = {"pid": True, "fork": True, "mount": True}', "still the machine's"),
    "05-user-namespaces": (
        "translate",
        TRANSLATE,
        "outside + (inside - first)",
    ),
    "06-network": ("publish", "ports = {0: 80}", "the guest listens on 8000"),
    "07-chroot": ("programs", 'programs = ["sh", "cat"]', "ls is a program of its own"),
    "08-breaking-out": (
        "seen",
        SEEN,
        "pid=True, fork=True, mount_proc=True",
    ),
    "09-busybox": ("passwd", 'line = "root:x:1:0:root:/root:/bin/sh"', "the uid third"),
    "10-overlay": (
        "undelete",
        UNDELETE,
        "the lower layer's file",
    ),
    "11-cgroups": (
        "rlimit",
        "def open_files(number):\n    return 500",
        "the number is the argument",
    ),
    "12-all-together": ("readonly", 'keywords = {"hostname": "web"}', "readonly=True"),
    "13-a-hundred-lines": ("readonly", "flags = 32 | 4096", "MS_RDONLY, 1, is missing"),
    "14-docker-run": (
        "translate",
        'keywords = {"hostname": "build", "env": {"LANG": "C"}, "workdir": "/src", "mounts": [".:/src"]}',
        ":ro at the end",
    ),
}
