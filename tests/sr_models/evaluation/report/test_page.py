"""The page says what it is given and what is missing, and holds every picture itself."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from PIL import Image

from sr_models.evaluation.report import page
from sr_models.evaluation.report.charts import line_chart
from sr_models.evaluation.report.figures import figures_of
from sr_models.evaluation.report.page import PARTS, Picture, Report

RNG = np.random.default_rng(0)
FACTS: dict[str, Any] = {
    "title": "Cats & dogs",
    "summary": "Two of them.",
    "notes": ["one <b> exploded"],
    "commands": [("enlarge yours", "sr-models sample photo.jpg && echo '<done>'")],
    "credits": ["cat: by A <a@b>", "dog: by C"],
}


def picture(caption: str, note: str = "", *, pixels: bool = False) -> Picture:
    return Picture.of(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), caption, note, pixels=pixels)


FIGURE = figures_of("lpips")[0]
CELL = {"text": "0.25", "interval": "0.2 to 0.3", "best": True, "certain": True, "at": 50.0, "span": (40.0, 60.0)}
CHART = line_chart("LPIPS", {"a <b>": [(0.0, 1.0), (1.0, 2.0)]}, x_label="t")

CONTENT: dict[str, Any] = {
    "glance": {
        "tiles": [{"figure": FIGURE, "value": "0.1", "unit": "dB", "name": "<model>", "compared": "bicubic 0.4"}]
    },
    "pictures": [
        {
            "name": name,
            "sizes": "2 x 2 to 8 x 8",
            "details": [picture("d")] * 3,
            "hardest": [picture("h")] * 4,
            "whole": [picture("w")] * 2,
            "chosen": 1,
            "part": "Some of it.",
        }
        for name in ("cat", "dog")
    ],
    "scores": {
        "columns": [FIGURE],
        "rows": [{"name": "bi<cubic>", "style": 0, "baseline": True, "cells": [CELL]}],
        "explanation": "Means.",
        "count": 2,
        "intervals": True,
        "fewest": 5,
    },
    "ranking": {
        "headings": [("Method", ""), ("LPIPS", "lower")],
        "rows": [{"name": "a <b>", "published": True, "cells": ["0.1"]}],
        "explanation": "Ours and others.",
    },
    "maps": [{"name": "cat", "pictures": [picture("deviation", "mean 3", pixels=True)]}],
    "coverage": {"charts": [CHART], "legend": [("a <b>", 1, False)], "explanation": "Of 90 %."},
    "sweep": {
        "pictures": [picture("t")],
        "rows": [["temperature"], ["0.5"]],
        "charts": [CHART],
        "legend": [("a <b>", 1, False), ("bicubic", 0, True)],
        "explanation": "Five samples.",
    },
    "cost": {"rows": [["method", "seconds"], ["a", "1.5"]], "explanation": "Seconds."},
    "images": {"figures": [FIGURE], "names": ["a"], "rows": [{"image": "<i>", "cells": ["0.1"]}], "left": 3},
    "training": {"text": "Step 3 of 4 <of> many.", "curve": "<svg><path d='M0 0'/></svg>"},
    "tuned": {"pictures": [picture("after")], "text": "Anew."},
}


class _Balanced(HTMLParser):
    """Raise where a tag is closed that is not the innermost open one."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # links lead to parts of the page itself
        self.sources += [str(value) for name, value in attrs if name in ("src", "href") and value[:1] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Elements of SVG that close themselves."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> _Balanced:
    parser = _Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("state", ["working", "interrupted", "finished"])
@pytest.mark.parametrize("count", range(len(PARTS) + 1))
def test_a_page_of_any_parts_is_whole(tmp_path: Path, state: Any, count: int) -> None:
    report = Report(tmp_path / "report.html", FACTS)
    given = list(PARTS)[:count]
    report.put(**{name: CONTENT[name] for name in given})
    report.write(state)
    text = report.path.read_text()
    sources = parsed(text).sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert len(sources) == sum((0, 2 * (3 + 4 + 2), 0, 0, 1, 0, 1, 0, 0, 0, 1)[:count])
    for source in sources:
        assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (8, 6)
    # only a page that will change loads itself again
    assert ('http-equiv="refresh"' in text) == (state == "working")
    missing = [description for name, description in PARTS.items() if name not in given]
    said = re.search(r"Missing(?: so far)?: ([^.]*)\.", text)
    assert (said is not None) == (state != "finished")
    if said and missing:
        assert " ".join(said[1].split()) == ", ".join(missing)


def test_what_is_given_is_text_and_no_html(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.html", FACTS)
    report.put(**CONTENT)
    text = report.path.read_text()
    for part in (
        "<h1>Cats &amp; dogs</h1>",
        "one &lt;b&gt; exploded",
        "<li>cat: by A &lt;a@b&gt;</li>",
        "&amp;&amp; echo &#39;&lt;done&gt;&#39;",
        "Step 3 of 4 &lt;of&gt; many.",
        "<svg><path d='M0 0'/></svg>",
        "&lt;model&gt;; bicubic 0.4",
        'span class="swatch"></span>bi&lt;cubic&gt;',
        'aria-label="LPIPS against t: a &lt;b&gt; from 1.000 at 0 to 2.000 at 1"',
        '<th scope="row">&lt;i&gt;</th><td>0.1</td>',
        "And 3 more, which are in the CSV file.",
    ):
        assert part in text, part


def test_the_page_grows_and_names_only_what_will_come(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.html", FACTS, ["pictures", "scores"])
    assert "Missing so far: the enlarged photographs, the scores." in " ".join(report.path.read_text().split())
    report.put(pictures=CONTENT["pictures"])
    assert "Missing so far: the scores." in " ".join(report.path.read_text().split())
    report.put(scores=CONTENT["scores"], summary="All of them.")
    text = report.path.read_text()
    assert "All of them." in text
    assert "Two of them." not in text


def test_a_fact_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="credits"):
        Report(tmp_path / "report.html", {name: value for name, value in FACTS.items() if name != "credits"})


def test_a_picture_is_kept_to_the_last_bit() -> None:
    image = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = Picture.of(image, "noise", "a note", pixels=True)
    assert (found.caption, found.note, found.size, found.pixels) == ("noise", "a note", (7, 5), True)
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(found.source.partition(",")[2])))), image)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2, of #rrggbb."""
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_curves_stand_out_in_light_and_in_dark() -> None:
    """By WCAG 2, level AA: 4.5 for text, 3 for what is drawn."""
    style = Path(page.__file__).with_name("page.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        assert len(colours) == 14
        for name, colour in colours.items():
            if name in ("line", "page", "card"):
                continue
            least = 3 if re.fullmatch(r"c\d", name) else 4.5
            for ground in ("page", "card"):
                assert contrast(colour, colours[ground]) >= least, (name, ground)
