"""Adapters import their library when they are imported themselves, and say in one line that it is missing."""

from __future__ import annotations

import subprocess

import pytest
from missing_packages import run_without

from invflow.interop._contract import missing_library

LIBRARIES = {"normflows": "normflows", "nflows": "nflows", "freia": "FrEIA", "zuko": "zuko", "pyro": "pyro"}

CODE = """
import invflow, invflow.interop, invflow.interop.distributions
for name in {names!r}:
    try:
        __import__(f"invflow.interop.{{name}}")
    except ModuleNotFoundError as error:
        print(name, error.name, error, sep="|")
"""


@pytest.fixture(scope="module")
def without_libraries() -> subprocess.CompletedProcess[str]:
    return run_without(LIBRARIES.values(), CODE.format(names=[*LIBRARIES]))


def test_the_package_imports_no_other_library(without_libraries: subprocess.CompletedProcess[str]) -> None:
    assert without_libraries.returncode == 0, without_libraries.stderr


def test_a_missing_library_is_one_line(without_libraries: subprocess.CompletedProcess[str]) -> None:
    lines = dict(line.split("|", 1) for line in without_libraries.stdout.splitlines())
    for name, package in LIBRARIES.items():
        distribution = "pyro-ppl" if name == "pyro" else package
        expected = f"{package} is not installed, and this adapter needs it: pip install {distribution}"
        assert lines.pop(name) == f"{package}|{expected}"
    assert not lines


def test_what_else_a_library_misses_is_its_own_error() -> None:
    error = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    assert missing_library(error, "FrEIA") is error
