"""The demonstration in small: a real run of a few steps, and the report that it writes."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.demo import photographs
from sr_models.demo.photographs import PHOTOGRAPHS, unpack_photographs
from sr_models.demo.run import run_demo


def test_photographs_come_out_of_their_packages(tmp_path: Path) -> None:
    train, test = unpack_photographs(tmp_path)
    assert {path.stem for path in train.iterdir()} == {p.name for p in PHOTOGRAPHS if p.train}
    assert {path.stem for path in test.iterdir()} == {p.name for p in PHOTOGRAPHS if not p.train}
    for path in [*train.iterdir(), *test.iterdir()]:
        image = np.array(Image.open(path))
        assert min(image.shape[:2]) >= 200
        assert image.std() > 20


def test_a_package_without_its_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = photographs.Photograph("gone", "skimage", "data/gone.png", True, False, "")
    missing = photographs.Photograph("missing", "no_such_package", "x.png", True, False, "")
    monkeypatch.setitem(photographs._DISTRIBUTIONS, "no_such_package", "no-such-package")
    for photograph, message in ((gone, "scikit-image does not carry data/gone.png"), (missing, "pip install")):
        monkeypatch.setattr(photographs, "PHOTOGRAPHS", (photograph,))
        with pytest.raises(FileNotFoundError, match=message):
            unpack_photographs(tmp_path)


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
    for label in ("bicubic", "temperature 0", "temperature 0.5", "temperature 0.9", "diversity ("):
        assert label in text
    assert (tmp_path / "pictures" / "chelsea_t0.9_sample001.png").exists()
    assert (tmp_path / "overview.png").exists()
    assert (tmp_path / "scores.csv").read_text().count("\n") == 5
