"""The examples in docstrings and pages print what they say."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules_with_examples() -> list[str]:
    """Found in the text: importing every module would take longer than the examples."""
    sources = [path for package in ("invflow", "sr_models") for path in sorted((ROOT / package).rglob("*.py"))]
    paths = [path.relative_to(ROOT) for path in sources if ">>> " in path.read_text()]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]


def examples_of(page: Path) -> str:
    """The code of a page that has prompts; all of it is one session."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(block for block in blocks if ">>> " in block)


PAGES = [page for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))] if examples_of(page)]


def test_there_are_examples() -> None:
    assert {"invflow.backends", "invflow.testing", "sr_models.io.resize"} <= set(modules_with_examples())
    assert ROOT / "docs" / "index.md" in PAGES


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_pages(page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(examples_of(page), {}, page.name, str(page), 0)
    assert not doctest.DocTestRunner().run(test).failed
