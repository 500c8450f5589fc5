"""The examples of the page on other flow libraries run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "interop.md"
LIBRARIES = ("FrEIA", "nflows", "normflows", "pyro", "zuko")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def library_of(example: str) -> str:
    imported = re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE)
    return next((name for name in LIBRARIES if name in imported), "torch")


def test_every_library_has_an_example() -> None:
    assert {library_of(example) for example in EXAMPLES} == {*LIBRARIES, "torch"}


@pytest.mark.parametrize("example", EXAMPLES, ids=library_of)
def test_examples(example: str) -> None:
    name = library_of(example)
    pytest.importorskip(name, reason=f"{name} is not installed: make peers")
    exec(compile(example, str(PAGE), "exec"), {})
