"""Details are the same part of every image, and the spread map shows where samples differ."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sr_models.evaluation.report.pictures import (
    PhotographPictures,
    draw_overview,
    encode_figure,
    same_details,
    spread,
    spread_map,
)


def photograph(height: int, width: int) -> PhotographPictures:
    rng = np.random.default_rng(0)

    def image(factor: int = 1) -> np.ndarray:
        return rng.integers(0, 256, (height // factor, width // factor, 3), dtype=np.uint8)

    samples = {"temperature 0": [image()], "temperature 0.9": [image(), image(), image()]}
    return PhotographPictures("a", image(4), image(), image(), samples)


def test_details_show_the_busiest_part_of_every_image() -> None:
    pictures = photograph(160, 200)
    pictures.hr[:] = 100
    pictures.hr[32 : 32 + 96, 16 : 16 + 128][::2] = 0  # one candidate alone holds all of it
    details = same_details(pictures, samples=2)
    assert list(details) == [
        "low resolution",
        "bicubic",
        "temperature 0",
        "temperature 0.9, sample 1",
        "temperature 0.9, sample 2",
        "truth",
    ]
    for label, whole in (("bicubic", pictures.bicubic), ("temperature 0", pictures.samples["temperature 0"][0])):
        assert np.array_equal(details[label], whole[32 : 32 + 96, 16 : 16 + 128])
    assert np.array_equal(details["low resolution"][::4, ::4], pictures.lr[8 : 8 + 24, 4 : 4 + 32])


def test_a_small_photograph_is_its_own_detail() -> None:
    pictures = photograph(40, 64)
    assert np.array_equal(same_details(pictures, samples=1)["truth"], pictures.hr)


def test_spread_is_the_standard_deviation_over_samples() -> None:
    samples = [np.full((2, 3, 3), value, np.uint8) for value in (10, 14)]
    samples[1][0, 0] = 10
    values = spread(samples)
    assert np.array_equal(values, [[0, 2, 2], [2, 2, 2]])
    picture = spread_map(values)
    assert (picture.shape, picture.dtype) == ((2, 3, 3), np.uint8)
    assert picture[0, 0].sum() < 20 < 600 < picture[0, 1].sum()
    assert spread_map(np.zeros((2, 3))).max() < 20


def test_overview_has_a_row_a_photograph() -> None:
    figure = draw_overview([photograph(160, 200), photograph(96, 128)])
    assert len(figure.axes) == 2 * 5
    assert [axes.get_title() for axes in figure.axes[:2]] == ["low resolution", "bicubic"]
    assert np.array(Image.open(io.BytesIO(encode_figure(figure)))).std() > 1
