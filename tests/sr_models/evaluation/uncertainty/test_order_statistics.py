"""Intervals have the level that they say, exactly, and say which levels there are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.evaluation.uncertainty.order_statistics import check_level, intervals, nominal_levels


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(0, 2**16))
def test_the_truth_is_held_as_often_as_the_level_says(n: int, seed: int) -> None:
    """Each of n + 1 different values is the truth once, the others are its samples: exchangeable, without chance."""
    values = np.random.default_rng(seed).permutation(n + 1) * 3.0
    for k, level in enumerate(nominal_levels(n), start=1):
        held = 0
        for index, truth in enumerate(values):
            lower, upper = intervals(np.delete(values, index)[:, None], float(level))
            held += bool(lower[0] <= truth <= upper[0])
        assert held == n + 1 - 2 * k
        assert level == pytest.approx(held / (n + 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_ends_are_samples_or_between_two(dtype: type) -> None:
    ranks = np.random.default_rng(0).permuted(np.arange(1, 10)[:, None] * np.ones((9, 12)), axis=0)
    samples: np.ndarray = ranks.astype(dtype)
    for level, expected in ((0.8, (1, 9)), (0.6, (2, 8)), (0.7, (1.5, 8.5)), (0.75, (1.25, 8.75)), (0.1, (4.5, 5.5))):
        lower, upper = intervals(samples, level)
        assert lower.dtype == upper.dtype == np.float64
        np.testing.assert_allclose([lower, upper], [[end] * 12 for end in expected])
    # the middle of an even number of samples
    np.testing.assert_allclose(
        intervals(samples[:2], 0.2), np.sort(samples[:2], 0) * 0.8 + np.sort(samples[:2], 0)[::-1] * 0.2
    )


def test_intervals_of_images_are_those_of_their_values() -> None:
    samples = np.random.default_rng(1).integers(0, 256, (19, 5, 4, 3), dtype=np.uint8)
    lower, upper = intervals(samples)
    assert lower.shape == upper.shape == (5, 4, 3)
    assert (lower == samples.min(0)).all()
    assert (upper == samples.max(0)).all()
    again = intervals([*samples], 0.9)
    assert np.array_equal(again, (lower, upper))
    assert samples.flags.writeable
    assert not np.array_equal(samples, np.sort(samples, 0)), "samples stay as they were"


@pytest.mark.parametrize(("level", "n", "needed"), [(0.9, 18, 19), (0.95, 19, 39), (0.99, 19, 199), (0.34, 2, 3)])
def test_levels_that_n_cannot_reach(level: float, n: int, needed: int) -> None:
    with pytest.raises(ValueError, match=rf"level must be at most {(n - 1) / (n + 1):.4g} with n = {n} samples, got"):
        check_level(level, n)
    with pytest.raises(ValueError, match=rf"it needs n of at least {needed}$"):
        intervals(np.zeros((n, 2)), level)
    assert check_level(level, needed) >= 1
    with pytest.raises(ValueError, match="level must be at most"):
        check_level(level, needed - 1)


def test_levels_that_are_whole_are_taken_as_whole() -> None:
    for n in range(2, 150):
        for k in range(1, n // 2 + 1):
            assert check_level((n + 1 - 2 * k) / (n + 1), n) == k
            # written with few digits, as users do
            assert check_level(float(f"{(n + 1 - 2 * k) / (n + 1):.12f}"), n) == k


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 90.0, math.nan])
def test_no_levels(level: float) -> None:
    with pytest.raises(ValueError, match=rf"level must be between 0 and 1, got {level}"):
        intervals(np.zeros((9, 2)), level)


def test_no_samples() -> None:
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"n must be at least 2, since one sample has no interval, got {count}"):
            intervals(np.zeros((count, 2)))
    with pytest.raises(ValueError, match=r"samples must have one shape, got \[\(2,\), \(3,\)\]"):
        intervals([np.zeros(2), np.zeros(3)], 0.3)
    with pytest.raises(ValueError, match="samples must be numbers, got NaN at 1 values"):
        intervals(np.array([[0, 1], [math.nan, 1], [2.0, 3.0]]), 0.5)
