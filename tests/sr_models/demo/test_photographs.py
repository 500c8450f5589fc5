"""The photographs come out of installed packages, or the missing package is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.demo import photographs
from sr_models.demo.photographs import PHOTOGRAPHS, reduce_photographs, unpack_photographs


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


def save(path: Path, height: int, width: int, level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)
    return path


def test_own_photographs_are_reduced(tmp_path: Path) -> None:
    large, small = save(tmp_path / "in" / "large.png", 500, 1000), save(tmp_path / "in" / "small.bmp", 70, 90)
    other = save(tmp_path / "other" / "small.png", 80, 640)
    folder = reduce_photographs([str(tmp_path / "in"), str(other), str(small)], tmp_path / "out")
    sizes = {path.name: np.array(Image.open(path)).shape[:2] for path in folder.iterdir()}
    assert sizes == {"large.png": (320, 640), "small.png": (70, 90), "small_2.png": (80, 640)}
    # other photographs take the place of these
    reduce_photographs([str(large)], folder)
    assert [path.name for path in folder.iterdir()] == ["large.png"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((63, 200), "at least 64 pixels on either side once its longer side has 640, got 200 x 63"),
        ((640, 6500), "got 6500 x 640"),
    ],
)
def test_own_photographs_that_are_too_small(tmp_path: Path, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reduce_photographs([str(save(tmp_path / "a.png", *size))], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_own_photographs_that_are_damaged_missing_or_many(tmp_path: Path) -> None:
    for number in range(7):
        path = save(tmp_path / "in" / f"{number}.png", 70, 80)
    with pytest.raises(ValueError, match="images must be at most 6, got 7; sr-models sample takes any number"):
        reduce_photographs([str(tmp_path / "in")], tmp_path / "out")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"image .*6.png cannot be used: "):
        reduce_photographs([str(tmp_path / "in")], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        reduce_photographs([str(tmp_path / "nowhere.png")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
