"""Coverage, ranks, widths and CRPS: exact for exchangeable values, however many are alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.evaluation.uncertainty import coverage
from sr_models.evaluation.uncertainty.coverage import IntervalScores, pool, score_intervals, score_values
from sr_models.evaluation.uncertainty.order_statistics import intervals, nominal_levels


def each_as_truth(values: np.ndarray) -> IntervalScores:
    """Scores in which each of the n + 1 values (n + 1, ...) is the truth once, and the others are its samples."""
    samples = np.stack([np.delete(values, index, axis=0) for index in range(len(values))], axis=1)
    return score_values(samples, values)


@settings(max_examples=50)
@given(st.integers(2, 25), st.integers(1, 60), st.integers(0, 2**16))
def test_exchangeable_values_are_covered_exactly_whatever_is_alike(n: int, different: int, seed: int) -> None:
    """Few different values: most are ties, many of them several."""
    values = np.random.default_rng(seed).integers(0, different, (n + 1, 4), dtype=np.uint8)
    scores = each_as_truth(values)
    np.testing.assert_allclose(scores.ranks, 1 / (n + 1), atol=1e-12)
    np.testing.assert_allclose(scores.coverage(), nominal_levels(n), atol=1e-12)
    # counted both ways, ties lie on both sides
    assert (np.array(scores.with_ends) >= nominal_levels(n) - 1e-12).all()
    assert (np.array(scores.without_ends) <= nominal_levels(n) + 1e-12).all()
    for level in (0.01, (n - 1) / (n + 1) / 2, (n - 1) / (n + 1)):
        assert scores.coverage_at(level) == pytest.approx(level)


@settings(max_examples=50)
@given(st.integers(2, 12), st.integers(1, 30), st.integers(0, 2**16))
def test_ends_and_widths_are_those_of_the_intervals(n: int, different: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, truth = rng.integers(0, different, (n, 3, 5)), rng.integers(0, different + 3, (3, 5))
    scores = score_values(samples, truth)
    for k, level in enumerate(nominal_levels(n)):
        lower, upper = intervals(samples, float(level))
        assert scores.with_ends[k] == pytest.approx(((lower <= truth) & (truth <= upper)).mean())
        assert scores.without_ends[k] == pytest.approx(((lower < truth) & (truth < upper)).mean())
        assert scores.width[k] == scores.width_at(float(level)) == pytest.approx((upper - lower).mean())
        assert scores.without_ends[k] - 1e-12 <= scores.coverage()[k] <= scores.with_ends[k] + 1e-12
    assert scores.tied == pytest.approx((samples == truth).any(0).mean())
    between = float(nominal_levels(n)[:2].mean())
    if n > 3:
        lower, upper = intervals(samples, between)
        assert scores.width_at(between) == pytest.approx((upper - lower).mean())
        assert scores.coverage_at(between) == pytest.approx(scores.coverage()[:2].mean())


def test_ties_count_for_every_rank_they_may_have() -> None:
    scores = score_values(np.array([[3], [5], [5]]), np.array([5]))
    assert scores.ranks == pytest.approx((0, 1 / 3, 1 / 3, 1 / 3))
    assert (scores.coverage(), scores.with_ends, scores.without_ends) == (pytest.approx([2 / 3]), (1,), (0,))
    saturated = score_values(np.full((4, 10), 255), np.full(10, 255))
    assert saturated.ranks == pytest.approx([0.2] * 5)
    assert saturated.coverage() == pytest.approx([0.6, 0.2])
    assert saturated.with_ends == (1, 1)
    assert saturated.crps == saturated.width[0] == 0


def test_crps_is_the_mean_over_pairs_without_bias() -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(7, 50)), rng.normal(size=50)
    pairs = np.abs(samples[:, None] - samples).sum((0, 1)) / (7 * 6)
    expected = (np.abs(samples - truth).mean(0) - pairs / 2).mean()
    assert score_values(samples, truth).crps == pytest.approx(expected)
    # that of N(0, 1) about a truth of its own is 1 / sqrt(pi), for any n
    for n in (2, 30):
        normal = score_values(rng.normal(size=(n, 60_000)), rng.normal(size=60_000))
        assert normal.crps == pytest.approx(np.pi**-0.5, abs=0.01)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.integers(0, 9, (5, 23)), rng.integers(0, 9, 23)
    expected = score_values(samples, truth)
    monkeypatch.setattr(coverage, "_BLOCK", 7)
    found = score_values(samples, truth)
    assert found.crps == pytest.approx(expected.crps)
    assert (found.ranks, found.with_ends, found.width) == (expected.ranks, expected.with_ends, expected.width)


def test_pooled_scores_are_those_of_all_values_together() -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.integers(0, 9, (6, 40)), rng.integers(0, 9, 40)
    together, parts = (
        score_values(samples, truth),
        [score_values(samples[:, s], truth[s]) for s in np.split(np.arange(40), [5, 22])],
    )
    found = pool(parts)
    assert found.values == 40
    assert found.crps == pytest.approx(together.crps)
    assert found.tied == pytest.approx(together.tied)
    for name in ("ranks", "with_ends", "without_ends", "width"):
        assert getattr(found, name) == pytest.approx(getattr(together, name))
    for wrong in ([], [together, score_values(samples[:3], truth)]):
        with pytest.raises(ValueError, match=r"scores must be of one number of samples, got \["):
            pool(wrong)


def test_images_are_scored_by_texture() -> None:
    rng = np.random.default_rng(0)
    lr = np.full((6, 6, 3), 100, dtype=np.uint8)
    lr[:, 3:] = 200
    hr = rng.integers(90, 110, (24, 24, 3), dtype=np.uint8)
    samples = rng.integers(90, 110, (5, 24, 24, 3), dtype=np.uint8)
    scores = score_intervals([*samples], hr, lr)
    assert list(scores) == ["all", "flat", "edges"]
    # the edge is in the neighbourhood of two columns of pixels
    assert scores["edges"] == score_values(samples[:, :, 8:16], hr[:, 8:16])
    assert scores["flat"].values == 3 * 24 * 16
    assert scores["all"].ranks == pytest.approx(score_values(samples, hr).ranks)


def test_a_truth_that_covers_a_part() -> None:
    """The low-resolution image may be rounded up."""
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    samples, hr = (
        rng.integers(90, 99, (4, 12, 16, 3), dtype=np.uint8),
        rng.integers(90, 99, (11, 14, 3), dtype=np.uint8),
    )
    scores = score_intervals([*samples], hr, lr)["all"]
    assert scores.ranks == pytest.approx(score_values(samples[:, :11, :14], hr).ranks)


def test_images_that_do_not_fit() -> None:
    hr, lr = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((2, 2, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="n must be at least 2, since one sample has no interval, got 1"):
        score_intervals([hr], hr, lr)
    with pytest.raises(ValueError, match=r"samples must have one shape, a multiple of lr's \(2, 2\), got \(4, 4, 3\)"):
        score_intervals([hr, np.zeros((4, 4, 3), dtype=np.uint8)], hr, lr)
    with pytest.raises(ValueError, match=r"a multiple of lr's \(3, 2\), got \(8, 8, 3\)"):
        score_intervals([hr, hr], hr, np.zeros((3, 2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"hr must be at most as large as the samples of \(8, 8\), got \(8, 9\)"):
        score_intervals([hr, hr], np.zeros((8, 9, 3), dtype=np.uint8), lr)
    with pytest.raises(TypeError, match="sample must be a uint8"):
        score_intervals([hr, hr / 255], hr, lr)
    with pytest.raises(ValueError, match=r"samples must be n times \(3,\), and not empty, got \(2, 4\)"):
        score_values(np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="and not empty"):
        score_values(np.zeros((2, 0)), np.zeros(0))
