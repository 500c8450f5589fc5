"""A page of any methods: escaped, of bounded size, whole without samples, sweep or LPIPS, and with a single image."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sr_models.evaluation.report import page
from sr_models.evaluation.report.gallery import compared
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.report.write import shown_images, write_report
from sr_models.evaluation.scores import Scores
from sr_models.io.resize import imresize

RNG = np.random.default_rng(0)


def rows(count: int, distance: float, **figures: object) -> list[Scores]:
    names = [f"{number}.png" for number in range(count)]
    return [
        dataclasses.replace(Scores(name, math.nan, 25.0, 0.5, 50.0, 49.0, 12.0, distance + at / 100), **figures)
        for at, name in enumerate(names)
    ]


def method(name: str = "m", count: int = 6, distance: float = 0.1, **facts: object) -> Method:
    return Method(name, rows(count, distance), "lpips", **facts)  # type: ignore[arg-type]


def photograph(name: str, *methods: str, size: tuple[int, int] = (32, 48), n: int = 2) -> PhotographPictures:
    hr = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    lr = imresize(hr, 1 / 4)
    samples = {method: [RNG.integers(0, 256, hr.shape, dtype=np.uint8) for _ in range(n)] for method in methods}
    return compared(name, lr, hr, 4, {"bicubic": imresize(lr, 4)}, samples)


def text_of(path: Path) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(body).split())


def test_all_of_it(tmp_path: Path) -> None:
    sweep = {0.0: rows(6, 0.2), 0.9: rows(6, 0.1)}
    model = method(n=5, temperature=0.9, sweep=sweep, parameters=1234, covered=6, coverage=[(0.5, 0.4)])
    model = dataclasses.replace(model, failures={"bad.png": "not an image"})
    bicubic = method("bicubic", distance=0.4, baseline=True)
    shown = [photograph("0.png", "m", n=5)]
    images = {"temperature 0": shown[0].hr}
    write_report(tmp_path / "r.html", [bicubic, model], 4, photographs=shown, sweep_images=images, notes=["A note."])
    text = text_of(tmp_path / "r.html")
    for part in (
        "m: images enlarged 4 times",
        "6 images, scored as the NTIRE challenge",
        "m: 5 samples an image at temperature 0.9.",
        "A note.",
        "m has no scores of bad.png: not an image",
        "bicubic 0.425, of which it is 0.29",
        "0.125 ★",
        "The lowest LPIPS of m among 6 images.",
        "width of the 67 % intervals",
        "m was measured on 6 of 6 images.",
        "1,234",
        "temperature 0",
    ):
        assert part in text, part


def test_names_are_text(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>"
    model = method(name, 1)
    model = dataclasses.replace(model, rows=[dataclasses.replace(model.rows[0], image=f"{name}.png")])
    model = dataclasses.replace(model, failures={"<b>.png": "<i>"})
    write_report(tmp_path / "r.html", [model], 4, photographs=[photograph(f"{name}.png", name)])
    text = (tmp_path / "r.html").read_text()
    assert text.count("<script>") == 1
    assert "alert('x')" not in text
    for tag in ("<b>.png", "<i>"):
        assert tag not in text
    # the only script that runs is the page's own
    assert re.search(r"default-src 'none'; img-src data:; .*script-src 'sha256-[\w+/]+=*'", text)


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    model = method("m", 1)
    model = dataclasses.replace(model, rows=[dataclasses.replace(model.rows[0], image="latin\udce9.png")])
    write_report(tmp_path / "r.html", [model], 4)
    assert "latin\\udce9.png" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    """One image, no samples, no baseline, no LPIPS, and figures that are no numbers."""
    alone = Method("m", [Scores("a.png", math.nan, math.inf, math.nan, math.inf, math.nan, math.nan, 0.1)], "mse")
    write_report(tmp_path / "r.html", [alone], 4)
    text = text_of(tmp_path / "r.html")
    assert "1 image, scored" in text
    assert "squared error" in text
    assert "Intervals need at least 5 images." in text
    for part in ("nan", "NaN", "inf ", "LPIPS ", "Hold to flicker", "Temperature", "Coverage", "Cost"):
        assert part not in text, part


def test_a_page_of_many_methods_and_large_photographs_is_bounded(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(15)]
    hr = np.zeros((800, 1000, 3), np.uint8)
    lr = hr[::4, ::4]
    shown = compared("0.png", lr, hr, 4, {"bicubic": hr}, {name: [hr] for name in names})
    write_report(tmp_path / "r.html", [method(name, 1, n=1) for name in names], 4, photographs=[shown])
    text = (tmp_path / "r.html").read_text()
    sizes = [(int(width), int(height)) for width, height in re.findall(r'width="(\d+)" height="(\d+)"', text)]
    # the viewer, two details of every image, and two maps a method
    assert len(sizes) == 12 + 2 * 12 + 2 * (9 + 1)
    assert max(sizes) == (512, 384)
    assert "Shown are the 512 x 384 pixels with the most contrast" in text_of(tmp_path / "r.html")


def test_shown_images_are_the_best_the_middle_and_the_worst() -> None:
    model = method(count=7)
    mixed = dataclasses.replace(model, rows=[model.rows[index] for index in (3, 0, 6, 1, 5, 2, 4)])
    assert list(shown_images(mixed)) == ["0.png", "3.png", "6.png"]
    assert shown_images(mixed)["3.png"] == "The middle LPIPS of m among 7 images."
    assert shown_images(method(count=2)) == {"0.png": "", "1.png": ""}


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "r.html"
    target.write_text("old")
    with pytest.raises(ValueError, match="names of their own"):
        write_report(target, [method(), method()], 4)
    written = []
    monkeypatch.setattr(page, "write_text", lambda path, text: written.append(path))
    write_report(target, [method()], 4)
    # once, by the function that writes atomically
    assert written == [target]
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("high", "low", "expected"), [((70, 90), (18, 23), (64, 88)), ((9, 10), (3, 3), (8, 8))])
def test_images_are_cut_to_what_all_cover(
    high: tuple[int, int], low: tuple[int, int], expected: tuple[int, int]
) -> None:
    hr = RNG.integers(0, 256, (*high, 3), dtype=np.uint8)
    lr = RNG.integers(0, 256, (*low, 3), dtype=np.uint8)
    whole = RNG.integers(0, 256, (6, 4 * low[0], 4 * low[1], 3), dtype=np.uint8)
    found = compared("a", lr, hr, 4, {"bicubic": whole[0]}, {"m": list(whole[1:])})
    images = [found.hr, *found.plain.values(), *found.samples["m"]]
    assert {image.shape[:2] for image in images} == {expected}
    assert found.lr.shape[:2] == (expected[0] // 4, expected[1] // 4)
    maps = found.intervals["m"]
    some = whole[1:, : expected[0], : expected[1]].astype(float)
    assert maps.level == pytest.approx(4 / 6)
    assert maps.width.mean() == pytest.approx((some.max(0) - some.min(0)).mean())
    outside = (found.hr > some.max(0)) | (found.hr < some.min(0))
    assert maps.outside.mean() == pytest.approx(outside.mean())
