"""Rows of make check-package are those that the workflows and the documentation name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import invflow
from tests.gates.package_matrix import ROWS

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[1]
NAMES = [*(row.name for row in ROWS), "clang"]


def workflow(name: str) -> dict[str, dict[str, dict[str, dict[str, dict[str, list[str]]]]]]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())  # type: ignore[no-any-return]


def test_the_workflow_has_every_row_that_needs_no_nvcc() -> None:
    rows = workflow("tests")["jobs"]["package"]["strategy"]["matrix"]["row"]
    assert rows == [name for name in NAMES if name != "cuda"]


def test_the_lowest_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = next(row for row in ROWS if row.name == "lowest")
    assert project["requires-python"] == f">={lowest.python}"
    bounds = dict(re.fullmatch(r"(\w+)>=([\d.]+)", bound).groups() for bound in project["dependencies"])  # type: ignore[union-attr]
    for name, tried in (("torch", lowest.torch), ("numpy", lowest.numpy)):
        assert f"{tried}.".startswith(f"{bounds[name]}."), name


def test_the_documentation_has_a_result_of_every_row() -> None:
    table = (ROOT / "docs" / "installation.md").read_text()
    for name in NAMES:
        assert re.search(rf"^\| {name} \|.*\| \d+ \|$", table, re.MULTILINE), name
    assert "FAILED" not in table


def test_an_unknown_row_is_one_line() -> None:
    command = [sys.executable, "tests/gates/package_matrix.py", "oldest"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rows must be some of lowest" in done.stderr.splitlines()[-1]


def test_the_changelog_begins_with_what_is_not_released_or_this_version() -> None:
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1].split()[0] in ("Unreleased", invflow.__version__)
