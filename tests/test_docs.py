"""The pages: their lines are short, and they document everything that is public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def long_lines(text: str) -> list[str]:
    """Lines of prose over 120 characters: not code, not tables, not lines that end in an address."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [
        line
        for line in without_code.splitlines()
        if len(line) > 120 and not line.startswith("|") and "://" not in line.split()[-1]
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page: Path) -> None:
    assert not long_lines(page.read_text())


def test_what_is_a_long_line() -> None:
    prose = "word " * 30
    assert long_lines(f"{prose}\n\n```sh\n{prose}\n```\n\n| {prose} |\n\n{prose}") == [prose, prose]
    assert not long_lines(f"{prose}https://example.org")


@pytest.mark.parametrize("package", ["invflow", "sr_models"])
def test_public_names_are_documented(package: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api" / package).rglob("*.md"))
    documented = set(re.findall(r"^\.\. auto(?:class|data|function):: (\w+)$", pages, re.MULTILINE))
    assert not set(importlib.import_module(package).__all__) - documented
