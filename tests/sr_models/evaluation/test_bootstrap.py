"""Intervals over images: those of draws with replacement, always the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from sr_models.evaluation.bootstrap import draw_again, mean_interval


def test_draws_are_of_all_images_alike() -> None:
    drawn = draw_again(6)
    assert drawn.shape == (2000, 6)
    assert (drawn.sum(1) == 6).all()
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(drawn.var(0), 1 - 1 / 6, rtol=0.15)
    assert np.array_equal(drawn, draw_again(6))


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_of_many_values_are_those_of_the_normal_distribution(confidence: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = mean_interval(values, confidence=confidence)
    half = norm.ppf((1 + confidence) / 2) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_weights() -> None:
    values = [1.0, 2.0, 10.0]
    assert mean_interval(values, [1, 1, 1e-9], confidence=0.9) == pytest.approx((1, 2))
    assert mean_interval(values, confidence=0.9)[1] > 7
    assert mean_interval(values, [5, 5, 5]) == pytest.approx(mean_interval(values))


def test_few_images() -> None:
    assert mean_interval([2.0, 2.0]) == (2, 2)
    assert all(math.isnan(end) for end in mean_interval([2.0]))
