"""The photographs come out of installed packages, or the missing package is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.demo import photographs
from sr_models.demo.photographs import PHOTOGRAPHS, unpack_photographs


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
