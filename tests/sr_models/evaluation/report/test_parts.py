"""The parts of the report show the right images with the right figures."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from sr_models.evaluation.metrics import lr_psnr
from sr_models.evaluation.report.page import Picture
from sr_models.evaluation.report.parts import (
    map_part,
    overview_row,
    photograph_part,
    score_part,
    sweep_part,
    tuned_part,
)
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.scores import Scores
from sr_models.io.resize import imresize


def pixels(picture: Picture) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))))


@pytest.fixture
def photograph() -> PhotographPictures:
    rng = np.random.default_rng(0)

    def image() -> np.ndarray:
        return rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)

    hr = image()
    lr = imresize(hr, 1 / 4)
    plain = {"bicubic": imresize(lr, 4), "bicubic, back-projected": image(), "encoder's image": image()}
    return PhotographPictures("cat", lr, hr, plain, {0.0: [image()], 0.5: [image() for _ in range(3)]})


def test_a_photograph_is_shown_from_the_low_resolution_to_the_truth(photograph: PhotographPictures) -> None:
    part = photograph_part(photograph, 0.5)
    assert (part["name"], part["sizes"]) == ("cat", "12 x 8 to 48 x 32 pixels")
    labels = ["low resolution", "bicubic", "encoder's image", "sample 1", "sample 2", "truth"]
    assert [picture.caption for picture in part["details"]] == labels
    assert list(overview_row(photograph, 0.5)) == labels
    assert [picture.pixels for picture in part["details"]] == [True, False, False, False, False, False]
    enlarged, bicubic, encoder, first, second, truth = map(pixels, part["details"])
    assert np.array_equal(enlarged[::4, ::4], photograph.lr)
    for shown, image in (
        (bicubic, photograph.plain["bicubic"]),
        (encoder, photograph.plain["encoder's image"]),
        (first, photograph.samples[0.5][0]),
        (second, photograph.samples[0.5][1]),
        (truth, photograph.hr),
    ):
        assert np.array_equal(shown, image)
    assert [picture.caption for picture in part["hardest"]] == labels
    whole = {picture.caption: pixels(picture) for picture in part["whole"]}
    assert list(whole) == ["low resolution", "bicubic", "truth", "sample"]
    assert np.array_equal(whole["low resolution"], photograph.lr)
    assert np.array_equal(whole["sample"], photograph.samples[0.5][0])


def test_scores_are_compared_with_the_first(photograph: PhotographPictures) -> None:
    means = {
        "bicubic": Scores("", math.nan, 25.123, 0.5, 40.04, 39, 0, 0.4),
        "samples": Scores("", math.nan, 24, 0.4567, math.inf, math.inf, 9.46, 0.1),
    }
    part = score_part(means, "lpips", "Means over cats.")
    assert part["rows"] == [
        ["", "PSNR", "SSIM", "LR-PSNR", "LPIPS", "of bicubic", "diversity"],
        ["bicubic", "25.12", "0.500", "40.0", "0.4000", "1.00", ""],
        ["samples", "24.00", "0.457", "exact", "0.1000", "0.25", "9.5"],
    ]
    assert part["explanation"] == "Means over cats."
    assert score_part(means, "mse", "")["rows"][0][4] == "squared error"


def test_maps_have_their_figures(photograph: PhotographPictures) -> None:
    part = map_part(photograph, 0.5, photograph.hr)
    deviation, *distances = part["pictures"]
    assert deviation.caption == "standard deviation over 3 samples"
    assert deviation.size == (48, 32)
    names = ["bicubic", "sample", "sample with consistency exact"]
    assert [picture.caption for picture in distances] == [f"{name}: distance to the low resolution" for name in names]
    for picture, image in zip(distances, (photograph.plain["bicubic"], photograph.samples[0.5][0]), strict=False):
        assert picture.size == (12, 8)
        assert picture.note.startswith(f"LR-PSNR {lr_psnr(image, photograph.hr, 4):.1f}, white ")
        assert picture.pixels
    assert distances[2].note.startswith("LR-PSNR exact, white ")
    # one scale of colours for all: noise is far from the low resolution, bicubic interpolation near, the truth there
    bicubic, sample, exact = (pixels(picture).mean() for picture in distances)
    assert exact < bicubic < sample / 2


def test_every_temperature_has_a_picture_and_a_row(photograph: PhotographPictures) -> None:
    means = {at: Scores("", math.nan, 20 + at, 0.5, 40, 39, 10 * at, 0.25 + at) for at in (0.0, 0.5)}
    part = sweep_part(photograph, means, "lpips", "Three samples.")
    assert [picture.caption for picture in part["pictures"]] == ["temperature 0", "temperature 0.5"]
    assert np.array_equal(pixels(part["pictures"][1]), photograph.samples[0.5][0])
    assert part["rows"][1:] == [["0", "0.2500", "40.0", "0.0", "20.00"], ["0.5", "0.7500", "40.0", "5.0", "20.50"]]


def test_before_and_after_training(photograph: PhotographPictures) -> None:
    before, after = photograph.samples[0.5][:2]
    part = tuned_part(photograph, before, after, "Better.")
    shown = {picture.caption: pixels(picture) for picture in part["pictures"]}
    assert list(shown) == ["before training", "after training", "truth"]
    for image, expected in zip(shown.values(), (before, after, photograph.hr), strict=True):
        assert np.array_equal(image, expected)
