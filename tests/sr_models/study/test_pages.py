"""The pages of a study in a browser: by mouse, by keyboard only, on a phone, and while the server is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests_of_studies import IMAGES, METHODS, running

from sr_models.study.crops import cut_crops, find_source
from sr_models.study.database import Database
from sr_models.study.settings import image_order, method_order

pytestmark = pytest.mark.browser


@pytest.fixture
def expect() -> Any:
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def port(study: Database) -> Iterator[int]:
    with running(study) as number:
        yield number


def to_the_name(page: Any, port: int) -> None:
    """Open the first page; the browser puts the focus on the name a moment after it has loaded."""
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#name:focus")


def begin(page: Any, port: int) -> None:
    to_the_name(page, port)
    page.keyboard.type("anna")
    page.keyboard.press("Enter")
    page.wait_for_url("**/rate/*/")


def shown_ranks(page: Any) -> list[str]:
    return [text.replace("\N{EN DASH}", "-") for text in page.locator("button.card .rank").all_inner_texts()]


def stored(study: Database, task: int, rater: int = 1) -> list[int] | None:
    """Places on the page in the order that is stored."""
    image = image_order(study.settings, rater)[task]
    order = method_order(study.settings, rater, image)
    answer = study.answers(rater).get(image)
    return None if answer is None else [order.index(method) for method in answer.ranking]


def test_by_mouse(page: Any, port: int, study: Database, expect: Any) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("#name").fill("anna")
    page.get_by_role("button", name="Begin").click()
    cards, save = page.locator("button.card"), page.get_by_role("button", name="Save and go on")
    expect(page.locator("#title")).to_have_text("Image 1 of 4")
    expect(save).to_be_disabled()
    cards.nth(2).click()
    assert shown_ranks(page) == ["-", "-", "1"]
    cards.nth(2).click()
    assert shown_ranks(page) == ["-", "-", "-"]
    page.get_by_role("button", name="Undo").click()
    cards.nth(0).click()
    # the last one has no choice
    assert shown_ranks(page) == ["2", "3", "1"]
    save.dblclick()
    expect(page.locator("#status")).to_have_text("Saved ✓ 1 of 4")
    expect(page.locator("#title")).to_have_text("Image 2 of 4")
    assert (stored(study, 0), stored(study, 1)) == ([2, 0, 1], None)
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#title")).to_have_text("Image 1 of 4")
    assert shown_ranks(page) == ["2", "3", "1"]
    for place in (2, 0, 1):
        cards.nth(place).click()
    for place in (1, 0):
        cards.nth(place).click()
    save.click()
    expect(page.locator("#title")).to_have_text("Image 2 of 4")
    assert stored(study, 0) == [1, 0, 2]
    for task in range(1, IMAGES):
        expect(page.locator("#title")).to_have_text(f"Image {task + 1} of 4")
        cards.nth(task % 3).click()
        cards.nth((task + 1) % 3).click()
        save.click()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert [stored(study, task) for task in range(1, IMAGES)] == [[1, 2, 0], [2, 0, 1], [0, 1, 2]]
    page.reload()
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


def test_by_keyboard_only(page: Any, port: int, study: Database, expect: Any) -> None:
    begin(page, port)
    expect(page.get_by_role("button", name="Candidate A: no rank yet")).to_be_focused()
    # the focus can be seen
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("3")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("3")
    assert shown_ranks(page) == ["-", "3", "-"]
    page.keyboard.press("Backspace")
    assert shown_ranks(page) == ["3", "-", "-"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    assert shown_ranks(page) == ["3", "2", "1"]
    page.keyboard.press("9")
    page.keyboard.press("2")
    assert shown_ranks(page) == ["3", "1", "2"]
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Image 2 of 4")
    assert stored(study, 0) == [1, 2, 0]
    # incomplete: nothing is saved
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.keyboard.press("PageUp")
    expect(page.locator("#title")).to_have_text("Image 1 of 4")
    assert shown_ranks(page) == ["3", "1", "2"]
    for _ in range(IMAGES):
        title = page.locator("#title").inner_text()
        for rank in ("1", "2", "3"):
            page.keyboard.press(rank)
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).not_to_have_text(title)
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    assert [stored(study, task) for task in range(IMAGES)] == [[0, 1, 2]] * IMAGES


def test_pixels_are_squares_and_all_fits(page: Any, port: int, expect: Any) -> None:
    begin(page, port)
    expect(page.locator("button.card")).to_have_count(3)
    for width, height, factor in ((1280, 800, 2), (1920, 1080, 3), (390, 844, 2), (360, 640, 2), (320, 568, 1)):
        page.set_viewport_size({"width": width, "height": height})
        # the page hears of the new size a moment later
        expect(page.locator("#cards img").last).to_have_css("height", f"{80 * factor}px")
        sizes = page.locator("#cards img").evaluate_all("images => images.map(image => [image.width, image.height])")
        assert sizes == [[80 * factor, 80 * factor]] * 12, (width, height)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width > 1000:
            assert page.evaluate("document.documentElement.scrollHeight") <= height
    assert page.locator("#cards img").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_a_server_that_comes_back_gets_the_answer(page: Any, study: Database, expect: Any) -> None:
    with running(study) as port:
        begin(page, port)
        expect(page.locator("button.card")).to_have_count(3)
        page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Not saved yet: the server does not answer. Trying again")
    time.sleep(0.1)
    assert not study.all_answers()
    with running(study, port=port):
        expect(page.locator("#title")).to_have_text("Image 2 of 4", timeout=20_000)
        assert stored(study, 0) == [0, 1, 2]


def test_two_windows_of_one_rater(page: Any, port: int, study: Database, expect: Any) -> None:
    begin(page, port)
    other = page.context.new_page()
    begin(other, port)
    assert other.url == page.url
    for window in (page, other):
        expect(window.locator("button.card")).to_have_count(3)
    for rank in ("1", "2", "3"):
        page.keyboard.press(rank)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Image 2 of 4")
    for rank in ("3", "2", "1"):
        other.keyboard.press(rank)
        other.keyboard.press("ArrowRight")
    other.keyboard.press("Enter")
    expect(other.locator("#status")).to_have_text("this image was answered in another window; its answer is shown now")
    assert shown_ranks(other) == ["1", "2", "3"]
    assert stored(study, 0) == [0, 1, 2]


def test_a_name_that_cannot_be_is_told_on_the_page(page: Any, port: int, study: Database, expect: Any) -> None:
    to_the_name(page, port)
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("1 to 40 printable characters")
    expect(page.locator("#name")).to_be_focused()
    assert not study.raters()


def test_without_the_reference(page: Any, folders: Any, tmp_path: Any, expect: Any) -> None:
    source = find_source(folders / "truth", {name: folders / name for name in METHODS}, reference=False)
    study = Database.create(tmp_path / "blind.db", source.settings, cut_crops(source))
    with running(study) as port:
        begin(page, port)
        expect(page.locator("button.card")).to_have_count(3)
        assert page.locator("#cards img").count() == 9
        assert page.request.get(f"{page.url}images/0/reference/0.png").status == 404
    study.close()
