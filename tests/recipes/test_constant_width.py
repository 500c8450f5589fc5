"""Intervals of one width hold what the quantiles say, and are measured by texture."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.constant_width import Predicted, constant_intervals, crps_of_errors, predict
from sr_models.io.images import to_tensor, to_uint8
from sr_models.io.resize import imresize
from tests.support.gaussian_model import gaussian_model


def test_coverage_is_that_of_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    kinds = np.zeros((40, 50), dtype=np.int64)
    kinds[20:] = 2
    kinds[0] = 1
    image = rng.uniform(60, 200, (40, 50, 3))
    truth = (image + rng.normal(size=image.shape) * np.where(kinds == 2, 20, 5)[..., None]).round().astype(np.uint8)
    found = [Predicted(image, truth, kinds)]
    low, high = np.quantile(truth - image, (0.1, 0.9))
    covered, width, parts = constant_intervals(found, low, high)
    assert covered == pytest.approx(0.8, abs=0.001)
    assert width == pytest.approx(high - low)
    assert parts["flat"] == pytest.approx(parts["texture"], abs=0.05)
    assert parts["flat"] > 0.9 > 0.7 > parts["edges"]
    # beyond 255 nothing is
    bright = [
        Predicted(np.full((4, 4, 3), 255.0), np.full((4, 4, 3), 255, dtype=np.uint8), np.arange(16).reshape(4, 4) % 3)
    ]
    assert constant_intervals(bright, -10, 10)[:2] == (1, 10)


def test_crps_is_the_mean_distance_less_half_the_spread() -> None:
    rng = np.random.default_rng(0)
    assumed, errors = rng.normal(1, 2, 3000), rng.normal(0, 3, 400)
    expected = np.abs(assumed[:, None] - errors).mean() - np.abs(assumed[:, None] - assumed).mean() / 2
    assert crps_of_errors(assumed, errors) == pytest.approx(expected, rel=2e-3)
    assert crps_of_errors(np.zeros(5), errors) == pytest.approx(np.abs(errors).mean())


def test_predictions_are_of_the_reduced_image() -> None:
    model = gaussian_model(0.1)
    hr = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    lr = imresize(hr, 1 / 4)
    found = predict(model, hr)
    assert list(found) == ["bicubic", "the encoder's image", "temperature 0"]
    # whole images are rounded after each axis
    assert np.abs(found["bicubic"].image - imresize(lr, 4)).max() <= 1.01
    expected = model.sample(to_tensor(lr)[None], temperature=0)[0, 0]
    assert np.abs(found["temperature 0"].image.round() - to_uint8(expected)).max() == 0
    assert all(one.truth is hr and one.kinds.shape == (16, 24) for one in found.values())
