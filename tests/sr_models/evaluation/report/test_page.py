"""The page says what it is given, and holds every picture itself."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

from sr_models.evaluation.report.curve import TrainingCurve
from sr_models.evaluation.report.page import write_report
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.scores import Scores


def test_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lr, *images = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (8, 32, 32, 32, 32, 32))
    photograph = PhotographPictures("cat", lr, images[0], images[1], {"cold": [images[2]], "warm": images[3:]})
    scores = {
        "bicubic": Scores("", math.nan, 25.123, 0.5, 40, 39, 0, 0),
        "warm": Scores("", 1.25, 24, 0.4, 45, 44, 9, 1),
    }
    path = write_report(
        tmp_path / "report.html",
        heading="Cats & dogs",
        curve=TrainingCurve([], [(0, 4.0), (10, 2.0)], [(0, 4.5), (10, 2.25)]),
        pictures=[photograph],
        scores=scores,
        distance_name="<mse>",
        steps=10,
        seconds=90,
        threads=2,
        credits=["cat: by A <a@b>", "dog: by C"],
    )
    text = path.read_text()
    for part in (
        "<h1>Cats &amp; dogs</h1>",
        "<h2>Likelihood of unseen photographs</h2>",
        "<figcaption>Training curve</figcaption>",
        "10 training steps in all; this run took 1.5 minutes",
        "2 CPU threads",
        "4.500 bits per dimension after initialisation, 2.250 after training: 2.250 bits per dimension less",
        "diversity (&lt;mse&gt;)",
        "<tr><td>bicubic</td><td></td><td>25.12</td><td>0.500</td><td>40.00</td><td>0.00</td><td>0.0000</td></tr>",
        "<tr><td>warm</td><td>1.250</td>",
        "over 2 samples at warm",
        "<li>cat: by A &lt;a@b&gt;</li><li>dog: by C</li>",
    ):
        assert part in text, part
    pictures = [
        np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"src='data:image/png;base64,([^']+)'", text)
    ]
    # overview, curve, 4 whole, 6 details, the map
    assert len(pictures) == 2 + 4 + 6 + 1
    for shown, whole in zip(pictures[2:6], (lr, images[0], images[2], images[1]), strict=True):
        assert np.array_equal(shown, whole)
    assert (tmp_path / "overview.png").read_bytes() == base64.b64decode(re.findall(r"base64,([^']+)'", text)[0])
