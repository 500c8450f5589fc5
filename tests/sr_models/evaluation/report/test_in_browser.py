"""The report of the models that come with the package, in a browser: by mouse, by keyboard and without scripts.

With INVFLOW_PICTURES=docs/images the photographs are larger, and the pictures of the documentation are made.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_models.cli import main
from sr_models.demo.photographs import unpack_photographs
from sr_models.io.images import read_image, write_image

pytestmark = pytest.mark.browser

PICTURES = os.environ.get("INVFLOW_PICTURES")
MODELS = ("srflow-da-tiny", "ncsr-tiny")
#: What the stage shows: the caption of the image that is visible, and the transformation of all of them.
SEEN = """() => {
    const images = [...document.querySelectorAll(".viewer:first-of-type .stack img")].slice(0, 99);
    const stack = images[0].parentElement;
    const visible = [...stack.children].filter((image) => getComputedStyle(image).visibility === "visible");
    return [visible.map((image) => image.alt.split(", ").slice(1).join(", ")).join("|"), stack.style.transform];
}"""


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of both models, their baselines and samples, on parts of photographs that come with packages."""
    folder = tmp_path_factory.mktemp("report")
    height, width, count = (192, 256, 7) if PICTURES else (64, 80, 5)
    images = folder / "photographs"
    images.mkdir()
    found = sorted(path for part in unpack_photographs(folder / "whole") for path in part.iterdir())
    for path in found[:count]:
        whole = read_image(path)
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        write_image(images / path.name, np.ascontiguousarray(whole[top : top + height, left : left + width]))
    for name in MODELS:
        arguments = ["evaluate", "--checkpoint", name, "--images", str(images), "--n", "5" if PICTURES else "2"]
        arguments += ["--output", str(folder / f"{name}.csv"), "--save_samples", str(folder / name)]
        assert main([*arguments, "--report", str(folder / f"{name}.html"), "--temperatures", "[0]"]) == 0
    scores = [str(folder / f"{name}.csv") for name in MODELS]
    assert main(["report", *scores, "--output", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture
def opened(page: Any, report: Path) -> Iterator[Any]:
    """The page, with all its pictures, after which nothing may have been said on the console."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(report.as_uri())
    page.evaluate("() => { for (const image of document.images) image.loading = 'eager'; }")
    page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth)")
    yield page
    assert not said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_screens_of_any_size(opened: Any, width: int, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("() => document.documentElement.scrollWidth") == width
    background = opened.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 18, 22)")
    # what is to be held is large enough for fingers
    assert opened.locator(".hold").first.bounding_box()["height"] >= 36


def test_by_keyboard(opened: Any) -> None:
    opened.locator(".stage").first.focus()
    assert opened.evaluate(SEEN)[0] == "srflow-da-tiny"
    opened.keyboard.down(" ")
    assert opened.evaluate(SEEN)[0] == "truth"
    assert opened.locator(".seen").first.inner_text() == "truth"
    opened.keyboard.up(" ")
    assert opened.evaluate(SEEN)[0] == "srflow-da-tiny"
    opened.keyboard.press("2")
    assert opened.evaluate(SEEN)[0] == "bicubic"
    opened.keyboard.press("+")
    zoomed = opened.evaluate(SEEN)[1]
    assert "scale(2)" in zoomed
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate(SEEN)[1] != zoomed
    opened.keyboard.press("0")
    assert "scale(1)" in opened.evaluate(SEEN)[1]
    # another image to flicker with, from the list, and the button that is held
    opened.locator("select").first.select_option(label="low resolution")
    opened.locator(".hold").first.focus()
    opened.keyboard.down(" ")
    assert opened.evaluate(SEEN)[0] == "low resolution"
    opened.keyboard.up(" ")
    assert opened.evaluate(SEEN)[0] == "bicubic"
    # a flicker ends when the focus leaves
    opened.locator(".stage").first.focus()
    opened.keyboard.down(" ")
    opened.keyboard.press("Tab")
    assert opened.evaluate(SEEN)[0] == "bicubic"


def test_by_mouse(opened: Any) -> None:
    opened.locator(".layer", has_text="encoder's image").first.click()
    assert opened.evaluate(SEEN)[0].startswith("encoder's image")
    opened.locator(".hold").first.hover()
    opened.mouse.down()
    assert opened.evaluate(SEEN)[0] == "truth"
    opened.mouse.up()
    assert opened.evaluate(SEEN)[0].startswith("encoder's image")
    opened.locator(".zooms button", has_text="4").first.click()
    before = opened.evaluate(SEEN)[1]
    assert "scale(4)" in before
    box = opened.locator(".stage").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(x + 40, y + 30)
    opened.mouse.up()
    # the image follows the pointer
    left, top = (float(part.strip(" px")) for part in before[before.index("(") + 1 : before.index(")")].split(","))
    after = opened.evaluate(SEEN)[1]
    moved = [float(part.strip(" px")) for part in after[after.index("(") + 1 : after.index(")")].split(",")]
    assert moved == [pytest.approx(left + 40, abs=0.5), pytest.approx(top + 30, abs=0.5)]
    opened.mouse.dblclick(x, y)
    assert "scale(1)" in opened.evaluate(SEEN)[1]


def test_without_scripts(browser: Any, report: Path) -> None:
    plain = browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    page.goto(report.as_uri())
    shown = page.locator(".viewer").first.locator(".stack img")
    assert shown.nth(1).is_hidden()
    page.locator(".viewer").first.get_by_text("bicubic", exact=False).first.click()
    assert shown.nth(1).is_visible()
    assert page.locator(".hold").first.is_hidden()
    plain.close()


def test_pictures_of_the_documentation(opened: Any, tmp_path: Path) -> None:
    folder = Path(PICTURES) if PICTURES else tmp_path
    opened.evaluate("() => document.querySelector('nav').style.position = 'static'")
    for name, first, last in (("report.png", "header", ".viewer"), ("report-scores.png", "#scores", "#scores")):
        top = opened.locator(first).first.bounding_box()["y"]
        end = opened.locator(last).first.bounding_box()
        clip = {"x": 40, "y": top, "width": 1200, "height": end["y"] + end["height"] - top + 24}
        shot = Image.open(io.BytesIO(opened.screenshot(full_page=True, clip=clip))).convert("RGB")
        # a palette makes a third of the size
        palette = shot.quantize(256)
        shot.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(folder / name)
        assert np.asarray(shot.convert("L")).std() > 10
        assert (folder / name).stat().st_size < 400_000
