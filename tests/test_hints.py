"""Advice: every failure made real raises the typed error with the hint for its cause (``_broken.py``)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import string
from pathlib import Path
from typing import Any

import pytest

import r2d2
from _needs import needs
from r2d2 import hints, surroundings
from test_doctor import ALONE, AS_ROOT, MOUNTS, PROCESSES, broken

DENIED = "SetupPermissionError"
CASES = [
    ("no_user_namespaces", AS_ROOT, "SetupError", errno.ENOSPC, "user.max_user_namespaces is 0"),
    ("no_net_namespaces", AS_ROOT, "SetupError", errno.ENOSPC, "user.max_net_namespaces is 0"),
    ("policy_clone", ALONE, DENIED, errno.EPERM, "a seccomp filter"),
    ("policy_mount", ALONE, DENIED, errno.EPERM, "a seccomp filter"),
    ("policy_memfd_and_nowhere_to_write", MOUNTS, None, None, "memfd_noexec"),
    ("few_descriptors", ALONE, None, None, "RLIMIT_NOFILE"),
    ("covered_proc", PROCESSES, DENIED, errno.EPERM, 'proc="auto"'),
    ("unmapped", ["unshare", "-U"], DENIED, errno.EPERM, "does not map"),
    ("old_kernel", ["setarch", "--uname-2.6"], "UnsupportedError", errno.ENOSYS, "5.12"),
    ("no_newuidmap", ALONE, "UnsupportedError", errno.ENOENT, 'userns="single"'),
    ("upper_on_overlay", MOUNTS, "SetupError", errno.EINVAL, "lies on overlay"),
    ("upper_left_volatile", MOUNTS, "SetupError", None, "volatile"),
    ("lower_in_upper", MOUNTS, "SetupError", errno.ELOOP, "overlap"),
    ("upper_and_work_apart", MOUNTS, "SetupError", errno.EINVAL, "one mount"),
    ("upper_read_only", MOUNTS, None, None, "mounted read-only"),
    ("full_tmpfs", ALONE, "SetupError", errno.ENOSPC, "tmpfs_size"),
    ("bind_nothing", ALONE, "SetupNotFoundError", errno.ENOENT, "must exist"),
    ("bind_kinds", ALONE, None, None, "a file on a file|a file can be mounted"),
    ("without_proc", MOUNTS, None, None, "/proc"),
]


@needs("unshare")
@pytest.mark.parametrize(
    ("name", "wrapper", "kind", "number", "hint"), CASES, ids=lambda case: str(case)[:24]
)
def test_start_says_why(
    name: str, wrapper: list[str], kind: str | None, number: int | None, hint: str
) -> None:
    """The exception's class, errno and hint."""
    raised = broken(name, wrapper)["raised"]
    assert raised, "nothing was raised"
    assert kind is None or raised["type"] == kind, raised
    assert number is None or raised["errno"] == number, raised
    assert any(part in (raised["hint"] or "") for part in hint.split("|")), raised


@needs("unshare")
def test_proc_falls_back_where_the_outer_one_is_covered() -> None:
    """``proc="auto"`` starts with the outer /proc, read-only, and says so; the next start knows."""
    result = broken("covered_proc_auto", PROCESSES)
    assert result["raised"] == {}, result["raised"]
    assert "the host's, read-only" in result["stderr"]
    assert result["checks"]["a container"]["status"] == "ok"


@pytest.mark.parametrize("proc", ["mount", "bind"])
def test_a_timeout_ends_all_that_was_started_whatever_proc_shows(proc: str) -> None:
    """The outer /proc counts pids otherwise; the subreaper goes by descriptors."""
    mark = f"{os.getpid()}{len(proc)}"
    with r2d2.Container(proc=proc) as c:
        with pytest.raises(r2d2.CommandTimeout):
            c.run(["sh", "-c", f"(setsid sleep {mark} &); sleep {mark}"], timeout=0.5)
        running = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                running.append(entry.read_bytes())
        assert f"sleep\0{mark}\0".encode() not in running


@needs("user")
def test_limits_without_a_cgroup() -> None:
    raised = broken("undelegated_limit", ALONE)["raised"]
    if raised:
        assert raised["type"] == "UnsupportedError"
        assert "best_effort" in raised["hint"]


@needs("user")
def test_no_user_namespace_for_an_ordinary_user() -> None:
    raised = broken("host_without_capabilities", ALONE)["raised"]
    assert raised["type"] == DENIED
    assert "auto" in raised["hint"]


def test_programs_that_do_not_start(tmp_path: Path) -> None:
    """Each errno of execve(2), and of what comes before it."""
    share = tmp_path / "share"
    share.mkdir()
    for name, text, mode in (
        ("data", "no program", 0o755), ("plain", "#!/bin/sh\n", 0o644),
        ("lost", "#!/no/such/interpreter\n", 0o755),
    ):  # fmt: skip
        (share / name).write_text(text)
        (share / name).chmod(mode)
    (share / "loop").symlink_to("loop")

    def hint(args: list[str], **keywords: Any) -> str:
        with pytest.raises(r2d2.R2d2Error) as caught:
            r2d2.namespace.unshare(args, uts=True, **keywords)
        return caught.value.hint or ""

    assert "PATH" in hint(["no-such-program"])
    assert "its interpreter" in hint([str(share / "data")])
    assert "may not be executed" in hint([str(share / "plain")])
    assert "interpreter" in hint([str(share / "lost")])
    assert "symbolic links" in hint([str(share / "loop")])
    assert "pass the data as input" in hint(["echo", "x" * 200_000])
    assert "working directory" in hint(["true"], cwd="/no/such/directory")
    with (share / "busy").open("wb") as file:
        file.write(b"#!/bin/sh\n")
        (share / "busy").chmod(0o755)
        assert "open for writing" in hint([str(share / "busy")])
    for stage, number, part in (
        ("setresuid", errno.EINVAL, "no such id"), ("setresuid", errno.EPERM, "setgroups"),
        ("ioctl(TIOCSCTTY)", errno.EPERM, "tty=True"), ("chdir", errno.EACCES, "may not enter"),
        ("execve", errno.ETXTBSY, "open for writing"), ("execve", errno.ENOMEM, "memory"),
        ("fork", errno.EAGAIN, "limits pids"), ("setns", errno.EPERM, "entered"),
    ):  # fmt: skip
        assert part in (hints.hint_for_program(stage, number, "x") or ""), stage


def test_every_hint_can_be_said() -> None:
    """No rule names a hint that is not there, and no hint is never said."""
    import inspect

    source = inspect.getsource(hints)
    rules = source[source.index("# Conditions.") :]
    elsewhere = "".join(path.read_text() for path in Path(hints.__file__).parent.glob("*.py"))
    for _, numbers, hint, _condition in (*hints._RULES, *hints._PROGRAM_RULES):
        assert hint == "" or hint in hints.HINTS, hint
        assert all(getattr(errno, number, None) for number in numbers.split()), numbers
    for name, text in hints.HINTS.items():
        family = name.rsplit(".", 1)[0]
        assert f'"{name}"' in rules or f'"{family}.{{' in rules or f'HINTS["{name}"]' in elsewhere, name
        assert "sudo" not in text
        assert text == text.strip()
        assert not text.endswith("."), name
        list(string.Formatter().parse(text))


#: Causes that this kernel does not have: the rule must find them by what such a host's files say.
CLONE = "clone into new namespaces (user)"
ELSEWHERE = [
    ({"sysctl:kernel.unprivileged_userns_clone": "0"}, CLONE, "clone", "EPERM", "userns_clone=1"),
    ({"apparmor_restricts": True}, "mount tmpfs on /tmp", "fsmount", "EPERM", "venv --copies"),
    ({"apparmor_restricts": True}, "write the id maps (…)", "write", "EPERM", "userns,"),
    ({"apparmor_restricts": True}, "bring up lo", "ioctl", "EPERM", "userns,"),
    ({}, "make the veth pair", "netlink", "EOPNOTSUPP", "modprobe veth"),
    ({}, "make the firewall's table", "netlink", "EOPNOTSUPP", "nft_chain_nat"),
    ({"selinux_enforces": True}, CLONE, "clone", "EACCES", "ausearch"),
    ({"imitation": "gvisor"}, "make all mounts private", "mount_setattr", "ENOSYS", "gVisor"),
    ({"imitation": "wsl1"}, CLONE, "clone", "EINVAL", "set-version"),
    ({"filtered": True, "engine": "kubernetes"}, CLONE, "clone", "EPERM", "seccompProfile: {type"),
    ({"filtered": True, "engine": "podman"}, CLONE, "clone", "EPERM", "Podman"),
    ({"filtered": True, "engine": None}, "unshare the time namespace", "unshare", "EPERM", "systemd unit"),
    ({"chrooted": True}, CLONE, "clone", "EPERM", "chroot"),
    ({"release": (5, 10)}, "mount overlay on /x", "fsconfig", "EPERM", "5.11"),
    ({}, "mount overlay on /x", "fsopen", "ENODEV", "modprobe overlay"),
    ({}, "mount overlay on /x", "fsconfig", "ESTALE", "other lower layers"),
    ({}, "mount overlay on /x", "fsconfig", "EBUSY", "its own"),
    ({}, "pivot_root into the new root", "pivot_root", "EINVAL", "initramfs"),
    ({}, "prepare PID 1", "memfd_create", "EMFILE", "RLIMIT_NOFILE"),
    ({}, CLONE, "clone", "ENOMEM", "memory"),
    ({}, CLONE, "clone", "EUSERS", "32"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "op", "syscall", "number", "hint"), ELSEWHERE)
def test_causes_of_other_hosts(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], op: str, syscall: str, number: str, hint: str
) -> None:
    """Debian's and Ubuntu's switches, other engines, other kernels: by the facts alone."""
    for name, value in facts.items():
        kind, _, key = name.partition(":")
        if kind == "sysctl":
            monkeypatch.setattr(
                surroundings, "sysctl", lambda asked, key=key, value=value: value if asked == key else None
            )
            monkeypatch.setattr(surroundings, "privileged", lambda _capability=21: False)
        else:
            monkeypatch.setattr(surroundings, name, lambda value=value: value)
    said = hints.hint_for("step", f"step 1 of 9, {op}", syscall, getattr(errno, number), None)
    assert hint in (said or ""), said


def test_log_of_the_kernel_decides() -> None:
    """What fsopen(2)'s log said is worth more than the errno."""
    step = "step 9 of 60, mount overlay on /tmp/root/usr"
    said = hints.hint_for("step", step, "fsconfig", errno.EINVAL, "overlay: failed to clone lowerpath")
    assert "mounts lie below" in (said or "")


def test_an_image_is_no_control_group() -> None:
    """What was refused without a step is not taken for something else with the same errno."""
    assert hints.hint_for("image", None, None, errno.EACCES, None, None, "/x: a layer cannot be read") is None


def test_surroundings_of_this_machine() -> None:
    assert surroundings.release() >= (5, 12)
    assert surroundings.filesystem("/proc/self") == "proc"
    assert surroundings.imitation() is None
    assert not surroundings.unmapped()
    assert surroundings.privileged() == (os.geteuid() == 0)
    assert stat.S_ISDIR(os.stat("/").st_mode)
    assert surroundings.sysctl("no.such") is None
