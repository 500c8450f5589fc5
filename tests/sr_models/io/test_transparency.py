"""Colours beneath transparent pixels, and alpha that is enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.io.reading import read_image, read_image_with_alpha
from sr_models.io.transparency import enlarge_alpha, fill_transparent


def test_the_nearest_visible_colour() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    alpha = np.zeros((4, 6), np.uint8)
    image[0, 0], alpha[0, 0] = (10, 20, 30), 1
    image[3, 5], alpha[3, 5] = (40, 50, 60), 255
    filled = fill_transparent(image, alpha)
    assert tuple(filled[0, 1]) == (10, 20, 30)
    assert tuple(filled[3, 3]) == (40, 50, 60)
    assert {tuple(colour) for colour in filled.reshape(-1, 3)} == {(10, 20, 30), (40, 50, 60)}


def test_nothing_or_all_visible() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert (fill_transparent(image, np.zeros((4, 6), np.uint8)) == 255).all()
    assert np.array_equal(fill_transparent(image, np.ones((4, 6), np.uint8)), image)


def test_alpha_stays_in_range() -> None:
    alpha = np.zeros((6, 6), np.uint8)
    alpha[:, 3:] = 255
    enlarged = enlarge_alpha(alpha, 24, 24)
    assert enlarged.shape == (24, 24)
    assert enlarged.min() == 0
    assert enlarged.max() == 1
    assert (np.diff(enlarged[12, 6:18]) >= 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_kind_of_transparency(tmp_path: Path, mode: str, orientation: int) -> None:
    alpha = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    image = Image.fromarray(np.dstack([np.full((2, 3, 3), 77, np.uint8), alpha]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "P":
        image = Image.fromarray(np.where(alpha > 0, 1, 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 77, 77, 77])
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", exif=exif)
    colours, found = read_image_with_alpha(tmp_path / "a.png")
    assert found is not None
    expected = alpha if orientation == 1 else np.rot90(alpha, -1)
    assert np.array_equal(found, expected)
    assert (colours[expected > 0] == 77).all()
    assert (read_image(tmp_path / "a.png")[expected == 0] == 255).all()


def test_opaque_images_have_no_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (1, 2, 3, 255)).save(tmp_path / "a.png")
    colours, alpha = read_image_with_alpha(tmp_path / "a.png")
    assert alpha is None
    assert (colours == (1, 2, 3)).all()
