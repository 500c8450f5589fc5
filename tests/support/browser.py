"""A headless Chromium for tests of pages: its fixtures skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

#: Commands that may be a Chromium. The headless shell, which Debian has as a package, is the smallest.
_COMMANDS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_HINT = "run `make browser` as root on Debian, or set INVFLOW_TEST_BROWSER to the program of a Chromium"


def browser_program() -> str | None:
    """Return the path of a Chromium: INVFLOW_TEST_BROWSER's, or the first that is installed."""
    given = os.environ.get("INVFLOW_TEST_BROWSER")
    if given and not shutil.which(given):
        raise FileNotFoundError(f"INVFLOW_TEST_BROWSER names no program: {given}")
    return given or next(filter(None, map(shutil.which, _COMMANDS)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running headless Chromium, as Playwright's ``Browser``."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'invflow[test]'")
    program = browser_program()
    if program is None:
        pytest.skip(f"no Chromium on this machine: {_HINT}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 1280 x 800 pixels in a fresh profile.

    The test fails if a script of the page raised an error, or if the page asked another machine for anything.
    """
    with_profile = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    opened = with_profile.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    with_profile.on("request", lambda request: errors.extend(_foreign(request.url)))
    yield opened
    with_profile.close()
    assert not errors


@pytest.fixture
def screenshot(page: Any, tmp_path: Path) -> Callable[..., Path]:
    """A function that takes a screenshot for the documentation, and returns the PNG file.

    The file goes into the folder of INVFLOW_SCREENSHOTS, as ``make screenshots`` sets it; otherwise it is temporary.
    """

    def take(name: str, **options: Any) -> Path:
        file = Path(os.environ.get("INVFLOW_SCREENSHOTS") or tmp_path) / f"{name}.png"
        page.screenshot(path=file, **options)
        # few colours, and the same ones at every run, where nobody looks at single pixels
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
        assert file.stat().st_size < 200_000
        return file

    return take


def _foreign(url: str) -> list[str]:
    local = ("http://127.0.0.1:", "http://localhost:", "file:", "data:", "blob:", "about:")
    return [] if url.startswith(local) else [f"asked for {url}"]
