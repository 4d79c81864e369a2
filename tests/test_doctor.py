"""``r2d2.doctor()`` on this machine, and in surroundings that were broken for it (``_broken.py``)."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import r2d2
from _needs import needs

HERE = Path(__file__).parent
ALONE: list[str] = []
AS_ROOT = ["unshare", "-Ur"]
MOUNTS = ["unshare", "-Urm"]
PROCESSES = ["unshare", "-Urpfm", "--mount-proc"]


def broken(name: str, wrapper: list[str], **environment: str) -> dict[str, Any]:
    """What doctor and a start say in such surroundings."""
    paths = os.pathsep.join([str(Path(r2d2.__file__).parent.parent), str(HERE)])
    done = subprocess.run(
        [*wrapper, sys.executable, str(HERE / "_broken.py"), name],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    result["stderr"] = done.stderr
    result["checks"] = {check["name"]: check for check in result["report"]["checks"]}
    return result


def test_this_machine() -> None:
    """Here containers work, or the suite would not run; all required checks say so."""
    began = time.monotonic()
    report = r2d2.doctor()
    assert time.monotonic() - began < 5
    assert report.exit_code == 0, str(report)
    assert [check.name for check in report if check.required and check.status != "ok"] == []
    assert len({check.name for check in report}) == len(report)
    assert report["user namespace"].needed_for
    with pytest.raises(KeyError):
        report["teleporter"]


def test_report_in_every_form() -> None:
    """Text, JSON, HTML: the same checks, and nothing unescaped."""
    report = r2d2.doctor()
    data = json.loads(report.to_json())
    assert [check["name"] for check in data["checks"]] == [check.name for check in report]
    assert data["exit_code"] == report.exit_code
    for check in report:
        assert check.name in str(report)
        assert html.escape(check.name) in report._repr_html_()
    hostile = type(report)([r2d2.diagnosis.Check("<b>", "&", True, "failed", "<script>", "a < b")])
    assert "<script>" not in hostile._repr_html_()
    assert "<b></td>" not in hostile._repr_html_()
    assert (hostile.exit_code, repr(hostile)) == (2, "<r2d2 doctor: containers do not work here>")


def test_every_failure_here_has_a_hint() -> None:
    """Whatever is not ok on this machine says what to do about it."""
    for check in r2d2.doctor():
        assert check.status == "ok" or check.hint or "stand" in check.fact, check


#: What is broken, in what wrapper, which check shows it and how, and a part of its hint.
CASES = [
    ("no_user_namespaces", AS_ROOT, "user namespace", "failed", "user.max_user_namespaces is 0", 2),
    ("no_net_namespaces", AS_ROOT, "net namespace", "failed", "user.max_net_namespaces is 0", 2),
    ("policy_clone", ALONE, "user namespace", "failed", "a seccomp filter", 2),
    ("policy_mount", ALONE, "mount namespace", "failed", "a seccomp filter", 2),
    ("policy_memfd", ALONE, "memfd", "degraded", "", 1),
    ("policy_memfd_and_nowhere_to_write", MOUNTS, "memfd", "failed", "memfd_noexec", 2),
    ("few_descriptors", ALONE, "open descriptors", "failed", "RLIMIT_NOFILE", 2),
    ("covered_proc", PROCESSES, "proc", "degraded", "/proc/sys", 1),
    ("unmapped", ["unshare", "-U"], "user namespace", "failed", "does not map", 2),
    ("old_kernel", ["setarch", "--uname-2.6"], "kernel", "failed", "5.12", 2),
    ("no_home", ALONE, "cache directory", "degraded", "R2D2_CACHE", 0),
    ("no_newuidmap", ALONE, "subuid", "failed", 'userns="single" does without', 0),
    ("no_tun", MOUNTS, "tap", "degraded", "", 0),
    ("without_proc", MOUNTS, "id map", "failed", "/proc", 2),
]


@needs("unshare")
@pytest.mark.parametrize(
    ("name", "wrapper", "check", "status", "hint", "code"), CASES, ids=lambda case: str(case)[:24]
)
def test_doctor_names_what_is_broken(
    name: str, wrapper: list[str], check: str, status: str, hint: str, code: int
) -> None:
    """The check that fails is the one that was broken, and its hint says so."""
    result = broken(name, wrapper, R2D2_CACHE="") if name == "no_home" else broken(name, wrapper)
    found = result["checks"][check]
    assert found["status"] == status, result["text"]
    assert hint in (found["hint"] or ""), found
    assert result["report"]["exit_code"] == code, result["text"]


@needs("unshare", "user")
def test_process_limit() -> None:
    result = broken("few_processes", ALONE)
    assert "RLIMIT_NPROC" in result["raised"]["hint"], result["raised"]
    assert "RLIMIT_NPROC" in result["checks"]["user namespace"]["hint"]


@needs("cgroup")
def test_process_limit_of_a_cgroup() -> None:
    report = r2d2.doctor()
    parent = Path(report["cgroup pids"].fact.split(", ", 1)[1])
    group = parent / f"r2d2-test-{os.getpid()}"
    group.mkdir()
    try:
        result = broken("full_cgroup", ALONE, R2D2_TEST_CGROUP=str(group))
    finally:
        group.rmdir()
    assert "pids.max" in result["raised"]["hint"], result["raised"]
    assert result["raised"]["errno"] == 11


@needs("user")
def test_an_ordinary_user_has_no_cgroups_here() -> None:
    check = r2d2.doctor()["cgroup memory"]
    if check.status == "ok":
        pytest.skip("needs a user who may write to no cgroup")
    assert "best_effort" in (check.hint or "")
