"""The pages: their lines are short, and they document everything that is public."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE
from torch import nn

import invflow
from sr_models.io.images import write_image

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


def test_every_layer_has_a_formula_and_an_example() -> None:
    page = (ROOT / "docs" / "layer-reference.md").read_text()
    public = {name: getattr(invflow, name) for name in invflow.__all__}
    layers = {
        name
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, nn.Module) and hasattr(value, "inverse")
    }
    assert {"ActNorm", "Logit", "SplineCoupling"} <= layers
    assert not layers - set(re.findall(r"\binvflow\.(\w+)\(", page))


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files or headings that do not exist."""
    broken = []
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert not broken_links(page, page.read_text())


def test_what_is_a_broken_link() -> None:
    text = "[a](README.md#speed) [b](README.md#other) [c](README.md) [d](none.md) [e](https://example.org)"
    assert broken_links(ROOT / "page.md", text) == ["README.md#other", "none.md"]


def test_every_environment_variable_is_documented() -> None:
    """The table has all variables that Python or C++ reads, and no others."""
    read = re.compile(
        r"""(?:environ(?:\.get)?[(\[]|getenv\()["'](INVFLOW_\w+)|["'](INVFLOW_\w+)["'] (?:not )?in os\.environ"""
    )
    folders = ("invflow", "sr_models", "csrc", "tests", "benchmarks", "recipes", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".cpp", ".h")]
    files = [*files, ROOT / "setup.py"]
    names = {name for file in files for found in read.findall(file.read_text()) for name in found if name}
    table = re.findall(r"^\| `(INVFLOW_\w+)` \|", (ROOT / "docs" / "backends.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(names)


@pytest.mark.parametrize("file", ["one_level_flow.py", "pyproject.toml"])
def test_the_tutorial_shows_the_package_that_is_tested(file: str) -> None:
    source = (ROOT / "tests" / "data" / "plugin_example" / file).read_text()
    assert f"\n{source.rstrip()}\n```" in (ROOT / "docs" / "own-model.md").read_text()


def test_commands_print_what_the_first_page_says(tmp_path: Path) -> None:
    """Folders and seconds differ."""
    rows, columns = np.mgrid[:75, :112]
    write_image(tmp_path / "photo.png", np.stack([3 * rows, 2 * columns, rows + columns], 2).astype(np.uint8))
    text = (ROOT / "docs" / "getting-started.md").read_text()
    blocks = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    sessions = re.findall(r"^\$ sr-models (.*)\n((?:[^$].*\n)*)", blocks, re.MULTILINE)
    assert len(sessions) == 3
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command, expected in sessions:
        call = [sys.executable, "-m", "sr_models.cli", *command.split()]
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        printed = done.stdout.replace(str(tmp_path), "/tmp/start")
        assert re.sub(r"[\d.]+ s$", "# s", printed, flags=re.M) == re.sub(r"[\d.]+ s$", "# s", expected, flags=re.M)


def test_pages_load_nothing_from_a_network(tmp_path: Path) -> None:
    """Formulas, fonts, styles and the search are part of the pages."""
    (tmp_path / "pages").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "pages")
    shutil.copy(ROOT / "docs" / "layer-reference.md", tmp_path / "pages" / "index.md")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(tmp_path / "pages"), str(tmp_path / "built")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=True)
    page = (tmp_path / "built" / "index.html").read_text()
    assert "<math " in page
    assert "documentation_options.js" in page
    assert (tmp_path / "built" / "searchindex.js").exists()
    pages = [file.read_text() for file in (tmp_path / "built").rglob("*.html")]
    styles = [file.read_text() for file in (tmp_path / "built").rglob("*.css")]
    loaded = r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    assert not re.findall(loaded, "".join(pages))
    assert not re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", "".join(styles))
