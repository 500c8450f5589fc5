"""The parts of the report show the right images with the right figures."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from sr_models.evaluation.metrics import lr_psnr
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.report.page import Picture
from sr_models.evaluation.report.parts import map_part, overview_row, photograph_part, sweep_part, tuned_part
from sr_models.evaluation.report.pictures import IntervalMaps, PhotographPictures
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
    assert list(whole) == ["low resolution", "bicubic", "bicubic, back-projected", *labels[2:]]
    assert np.array_equal(whole["low resolution"][::4, ::4], photograph.lr)
    assert np.array_equal(whole["sample 1"], photograph.samples[0.5][0])
    # the first sample is seen, and flickers with the last image, the truth
    assert list(whole)[part["chosen"]] == "sample 1"
    assert part["part"] == ""


def test_a_large_photograph_is_shown_in_part() -> None:
    rng = np.random.default_rng(0)
    hr = np.full((480, 624, 3), 100, np.uint8)
    hr[:16, 600:620] = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    lr = imresize(hr, 1 / 4)
    photograph = PhotographPictures("a", lr, hr, {"bicubic": imresize(lr, 4)}, {"m": [hr, hr]})
    part = photograph_part(photograph, "m", notes={"sample 2": "LPIPS 0.1", "m": "none"})
    *_, sample, other, truth = part["whole"]
    assert np.array_equal(pixels(truth), hr[:384, 112:624])
    assert (sample.note, other.note) == ("", "LPIPS 0.1")
    assert part["part"] == (
        "Shown are the 512 x 384 pixels with the most contrast, from column 112 and row 0 on, of 624 x 480."
    )
    # the maps are of the same part
    sizes = {picture.size for picture in map_part(photograph, "m")["pictures"]}
    assert sizes == {(512, 384), (128, 96)}


def test_several_methods_have_one_sample_each_under_their_names(photograph: PhotographPictures) -> None:
    photograph.samples["<a>"] = photograph.samples[0.5][:2]
    photograph.samples["b"] = photograph.samples[0.5][2:]
    part = photograph_part(photograph, "<a>", "b")
    labels = [picture.caption for picture in part["whole"]]
    assert labels[-3:] == ["<a>", "b", "truth"]
    assert labels[part["chosen"]] == "<a>"
    outside = (np.arange(32 * 48).reshape(32, 48) % 4 == 0).astype(float)
    photograph.intervals["b"] = IntervalMaps(0.8, np.full((32, 48), 3.0), outside)
    captions = {picture.caption: picture.note for picture in map_part(photograph, "<a>", "b")["pictures"]}
    assert list(captions) == [
        "<a>, standard deviation over 2 samples",
        "width of the 80 % intervals",
        "truth outside of them",
        "<a>, error",
        "b, error",
        "bicubic, error",
        "bicubic: distance to the low resolution",
        "<a>: distance to the low resolution",
        "b: distance to the low resolution",
    ]
    assert captions["truth outside of them"] == "25 % of all values, 20 % expected"
    assert captions["width of the 80 % intervals"] == "mean 3.0, white 3 of 255 grey levels"


def test_a_viewer_has_a_bounded_number_of_images(photograph: PhotographPictures) -> None:
    names = [f"m{number}" for number in range(20)]
    photograph.samples.update(dict.fromkeys(names, photograph.samples[0.0]))
    labels = [picture.caption for picture in photograph_part(photograph, *names)["whole"]]
    assert labels == ["low resolution", "bicubic", *names[:9], "truth"]


def test_maps_have_their_figures(photograph: PhotographPictures) -> None:
    part = map_part(photograph, 0.5, exact=photograph.hr)
    deviation, sample_error, bicubic_error, *distances = part["pictures"]
    assert deviation.caption == "standard deviation over 3 samples"
    assert deviation.size == (48, 32)
    assert deviation.note.startswith("correlation with the error ")
    assert [sample_error.caption, bicubic_error.caption] == ["error", "bicubic, error"]
    error = np.abs(photograph.plain["bicubic"].astype(float) - photograph.hr).mean()
    assert bicubic_error.note.startswith(f"mean {error:.1f}, white ")
    # one scale of colours: noise is farther from the truth
    assert pixels(bicubic_error).mean() < pixels(sample_error).mean()
    names = ["bicubic", "sample", "sample with consistency exact"]
    assert [picture.caption for picture in distances] == [f"{name}: distance to the low resolution" for name in names]
    for picture, image in zip(distances, (photograph.plain["bicubic"], photograph.samples[0.5][0]), strict=False):
        assert picture.size == (12, 8)
        assert picture.note.startswith(f"LR-PSNR {lr_psnr(image, photograph.hr, 4):.1f}, mean ")
        assert picture.pixels
    assert distances[2].note.startswith("LR-PSNR exact, mean 0.0, white ")
    # one scale of colours for all: noise is far from the low resolution, bicubic interpolation near, the truth there
    bicubic, sample, exact = (pixels(picture).mean() for picture in distances)
    assert exact < bicubic < sample / 2


def test_every_temperature_has_a_picture_and_a_row(photograph: PhotographPictures) -> None:
    sweep = {at: [Scores("", math.nan, 20 + at, 0.5, 40, 39, 10 * at, 0.25 + at)] for at in (0.0, 0.5)}
    method = Method("m", sweep[0.5], "lpips", temperature=0.5, sweep=sweep)
    images = {f"temperature {at:g}": photograph.samples[at][0] for at in sweep}
    part = sweep_part(photograph, images, [method], "Three samples.")
    assert [picture.caption for picture in part["pictures"]] == ["temperature 0", "temperature 0.5"]
    assert np.array_equal(pixels(part["pictures"][1]), photograph.samples[0.5][0])
    assert part["rows"] == [
        ["temperature", "LPIPS", "LR-PSNR", "Diversity", "PSNR"],
        ["0", "0.250", "40.0", "0.0", "20.00"],
        ["0.5", "0.750", "40.0", "5.0", "20.50"],
    ]
    assert [chart.title for chart in part["charts"]] == ["LPIPS", "LR-PSNR, dB", "Diversity, %"]
    both = sweep_part(None, {}, [method, Method("n", sweep[0.5], "lpips", sweep=sweep)], "")
    assert [row[0] for row in both["rows"]] == ["temperature", "m, 0", "m, 0.5", "n, 0", "n, 0.5"]


def test_before_and_after_training(photograph: PhotographPictures) -> None:
    before, after = photograph.samples[0.5][:2]
    part = tuned_part(photograph, before, after, "Better.")
    shown = {picture.caption: pixels(picture) for picture in part["pictures"]}
    assert list(shown) == ["before training", "after training", "truth"]
    for image, expected in zip(shown.values(), (before, after, photograph.hr), strict=True):
        assert np.array_equal(image, expected)
