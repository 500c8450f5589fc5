"""The demonstration in small: a real run of a few steps, and the report that it writes."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.demo.run import run_demo


@pytest.mark.slow
def test_report(tmp_path: Path) -> None:
    report = run_demo(tmp_path, steps=20, seed=1, samples=2)
    text = report.read_text()
    assert "bits per dimension after initialisation" in text
    pictures = re.findall(r"src='data:image/png;base64,([^']+)'", text)
    # overview and curve, and for both photographs 4 whole, 8 details and the map
    assert len(pictures) == 2 + 2 * (4 + 8 + 1)
    for picture in pictures:
        assert np.array(Image.open(io.BytesIO(base64.b64decode(picture)))).std() > 1
    for label in (
        "bicubic",
        "bicubic, back-projected",
        "temperature 0",
        "temperature 0.5",
        "temperature 0.9",
        "diversity (",
    ):
        assert label in text
    assert (tmp_path / "pictures" / "chelsea_t0.9_sample001.png").exists()
    assert (tmp_path / "overview.png").exists()
    assert (tmp_path / "scores.csv").read_text().count("\n") == 6
