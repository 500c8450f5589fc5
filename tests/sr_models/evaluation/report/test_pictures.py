"""Details are the same part of every image, and the maps show where samples differ and agree."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sr_models.evaluation.report.pictures import (
    PhotographPictures,
    coloured,
    draw_overview,
    encode_figure,
    inconsistency,
    same_details,
    spread,
)
from sr_models.io.resize import imresize


def photograph(height: int, width: int) -> PhotographPictures:
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PhotographPictures("a", imresize(hr, 1 / 4), hr, {"bicubic": hr.copy()})


@pytest.mark.parametrize("hardest", [False, True])
def test_details_show_one_part_of_every_image(hardest: bool) -> None:
    """That with the most contrast, or that where bicubic interpolation is farthest from the truth."""
    pictures = photograph(160, 200)
    pictures.hr[:] = 100
    pictures.hr[32 : 32 + 96, 16 : 16 + 128 : 2] = 200
    pictures.plain["bicubic"] = pictures.hr.copy()
    pictures.plain["bicubic"][:96, 64 : 64 + 128] += 50
    top, left = (0, 64) if hardest else (32, 16)
    other = np.random.default_rng(1).integers(0, 256, pictures.hr.shape, dtype=np.uint8)
    details = same_details(pictures, {"other": other, "truth": pictures.hr}, hardest=hardest)
    assert list(details) == ["other", "truth"]
    for label, whole in (("other", other), ("truth", pictures.hr)):
        assert np.array_equal(details[label], whole[top : top + 96, left : left + 128])


@pytest.mark.parametrize("size", [(40, 64), (40, 200), (200, 64)])
def test_a_small_photograph_is_its_own_detail(size: tuple[int, int]) -> None:
    pictures = photograph(*size)
    detail = same_details(pictures, {"truth": pictures.hr})["truth"]
    assert detail.shape == (min(size[0], 96), min(size[1], 128), 3)


def test_spread_is_the_standard_deviation_over_samples() -> None:
    samples = [np.full((2, 3, 3), value, np.uint8) for value in (10, 14)]
    samples[1][0, 0] = 10
    assert np.array_equal(spread(samples), [[0, 2, 2], [2, 2, 2]])


def test_inconsistency_is_the_difference_of_the_reduced_image() -> None:
    image = np.full((8, 12, 3), 100, np.uint8)
    lr = np.full((2, 3, 3), 100, np.uint8)
    assert not inconsistency(image, lr).any()
    lr[1, 2] = (100, 103, 94)
    assert np.array_equal(inconsistency(image, lr), [[0, 0, 0], [0, 0, 3]])


def test_colours_go_from_black_to_the_brightest() -> None:
    picture = coloured(np.array([[0.0, 1.0, 2.0, 5.0]]), 2.0)
    assert (picture.shape, picture.dtype) == ((1, 4, 3), np.uint8)
    light = picture[0].astype(int).sum(-1)
    assert light[0] < 20 < light[1] < light[2] == light[3]
    assert coloured(np.zeros((2, 3)), 0.0).max() < 20


def test_overview_has_a_row_a_photograph() -> None:
    images = {label: np.full((96, 128, 3), 50, np.uint8) for label in ("low resolution", "bicubic", "truth")}
    figure = draw_overview([images, images])
    assert len(figure.axes) == 2 * 3
    assert [axes.get_title() for axes in figure.axes] == ["low resolution", "bicubic", "truth", "", "", ""]
    assert np.array(Image.open(io.BytesIO(encode_figure(figure)))).std() > 1
