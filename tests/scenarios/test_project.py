"""A project of infrastructure tests as README teaches them, run by two workers as its owner would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _needs import needs

PROJECT = Path(__file__).with_name("project")


@needs("redis")
@needs("nginx")
@pytest.mark.timeout(600)
def test_the_example_project_is_green_on_two_workers(tmp_path: Path) -> None:
    project = shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "pytest.ini").write_text("[pytest]\nfilterwarnings = error::pytest.PytestWarning\n")
    command = [sys.executable, "-mpytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    command += ["-p", "no:testinfra", f"--basetemp={tmp_path / 'base'}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "25 passed" in done.stdout
    assert "skipped" not in done.stdout
    assert "warning" not in done.stdout
