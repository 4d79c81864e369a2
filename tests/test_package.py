"""The package itself: its public names, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import r2d2

TOP = Path(__file__).resolve().parent.parent


def test_every_public_name_has_a_home_and_is_there() -> None:
    assert sorted(r2d2._HOMES) == sorted(r2d2.__all__)
    for name in r2d2.__all__:
        assert getattr(r2d2, name).__doc__, name
    assert set(r2d2.__all__) <= set(dir(r2d2))


def test_import_loads_nothing_heavy() -> None:
    """Measures the fact: the modules that a bare ``import r2d2`` pulls in."""
    code = "import sys; before = set(sys.modules); import r2d2; print(*sorted(set(sys.modules) - before))"
    assert modules(code) == {"__future__", "r2d2"}
    first_use = code.replace("; print", "; r2d2.run; print")
    heavy = {
        "argparse",
        "asyncio",
        "dataclasses",
        "inspect",
        "json",
        "logging",
        "pathlib",
        "socket",
        "tempfile",
    }
    assert not heavy & modules(first_use)


def modules(code: str) -> set[str]:
    command = [sys.executable, "-I", "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(r2d2, "nothing_of_this_name")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms_are_told_in_one_sentence(platform: str) -> None:
    command = [sys.executable, "-c", f"import sys; sys.platform = {platform!r}; import r2d2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: r2d2 needs Linux: use ")


def test_versions_and_licences_agree() -> None:
    cargo = tomllib.loads((TOP / "Cargo.toml").read_text())["package"]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    installed = importlib.metadata.version("r2d2-containers")
    assert {cargo["version"], project["version"], r2d2.__version__} == {installed}
    assert cargo["license"] == project["license"] == "Apache-2.0"
    assert cargo["publish"] is False


def test_nothing_else_is_required() -> None:
    required = importlib.metadata.requires("r2d2-containers") or []
    assert [line for line in required if "extra ==" not in line] == []


def test_the_changelog_knows_this_version() -> None:
    heading = rf"^## \[(Unreleased|{re.escape(r2d2.__version__)})\]"
    assert re.search(heading, (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
