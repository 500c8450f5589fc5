"""A headless Chromium for tests of pages: fixtures ``browser`` and ``page``, which skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

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


def _foreign(url: str) -> list[str]:
    local = ("http://127.0.0.1:", "http://localhost:", "file:", "data:", "blob:", "about:")
    return [] if url.startswith(local) else [f"asked for {url}"]
