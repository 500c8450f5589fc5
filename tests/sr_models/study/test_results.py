"""Mean opinion ranks, their intervals, and the agreement of raters."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from sr_models.study.results import Agreement, agreement, mean_opinion_ranks, rank_array, ranks_csv, ranks_table


def random_ranks(raters: int, images: int, methods: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(1.0, methods + 1), (raters, images, 1)), axis=2)


def test_ranks_of_answers() -> None:
    ranks = rank_array([(7, 0, (2, 0, 1)), (3, 1, (0, 1, 2))], images=2, methods=3)
    np.testing.assert_array_equal(ranks[1, 0], [2, 3, 1])
    np.testing.assert_array_equal(ranks[0, 1], [1, 2, 3])
    assert np.isnan(ranks[0, 0]).all()
    results = mean_opinion_ranks(ranks, ["a", "b", "c"])
    assert [(row.method, row.mor, row.answers) for row in results] == [("a", 1.5, 2), ("c", 2.0, 2), ("b", 2.5, 2)]


def test_intervals_are_those_of_the_theory() -> None:
    """Answers independent of raters and images: crossed draws give three times the variance of the mean at most."""
    ranks = random_ranks(12, 30, 4)
    error = np.sqrt(ranks.var(axis=(0, 1)).mean() / (12 * 30))
    for row in mean_opinion_ranks(ranks, list("abcd")):
        assert row.low < row.mor < row.high
        assert 0.9 < (row.high - row.low) / (2 * 1.96 * error) < 1.2 * 3**0.5


def test_intervals_know_that_raters_and_images_differ() -> None:
    """All of a rater's answers alike: only the raters count, however many images there are; and so for images."""
    of_raters, of_images = random_ranks(15, 1, 3), random_ranks(1, 15, 3)
    by_rater = mean_opinion_ranks(np.repeat(of_raters, 40, axis=1), list("abc"))
    by_image = mean_opinion_ranks(np.repeat(of_images, 40, axis=0), list("abc"))
    for row in by_rater:
        error = of_raters[:, 0, "abc".index(row.method)].std() / 15**0.5
        assert (row.high - row.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)
    for row in by_image:
        error = of_images[0, :, "abc".index(row.method)].std() / 15**0.5
        assert (row.high - row.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_equal_numbers_of_raters_and_images_are_drawn_independently() -> None:
    # rater i answers image i only: drawn alike, every draw would have as many answers as raters
    ranks = np.full((20, 20, 2), np.nan)
    ranks[np.arange(20), np.arange(20)] = np.tile([[1.0, 2.0], [2.0, 1.0]], (10, 1))
    row = mean_opinion_ranks(ranks, ["a", "b"])[0]
    assert row.answers == 20
    assert row.high - row.low > 2 * 1.96 * 0.5 / 20**0.5 * 1.1


def test_one_image_makes_no_interval_and_no_answers_no_ranks() -> None:
    ranks = rank_array([(1, 1, (1, 0)), (2, 1, (0, 1))], images=3, methods=2)
    results = mean_opinion_ranks(ranks, ["a", "b"])
    assert [row.mor for row in results] == [1.5, 1.5]
    assert all(np.isnan([row.low, row.high]).all() for row in results)
    with pytest.raises(ValueError, match="the study has no answers yet"):
        mean_opinion_ranks(rank_array([], images=3, methods=2), ["a", "b"])


def test_agreement_is_kendalls_w() -> None:
    ranks = random_ranks(6, 3, 5)
    ranks[4, 1] = ranks[2, 1] = np.nan
    expected = []
    for image in range(3):
        there = ranks[:, image][~np.isnan(ranks[:, image, 0])]
        expected.append(friedmanchisquare(*there.T).statistic / (len(there) * 4))
    agreed = agreement(ranks)
    assert agreed.w == pytest.approx(np.mean(expected))
    assert agreed.chance == pytest.approx((1 / 6 + 1 / 4 + 1 / 6) / 3)
    assert agreed.images == 3


def test_agreement_at_its_ends() -> None:
    same = rank_array([(rater, 0, (1, 2, 0)) for rater in range(4)], images=2, methods=3)
    assert agreement(same).w == pytest.approx(1)
    opposed = rank_array([(1, 0, (0, 1, 2)), (2, 0, (2, 1, 0)), (1, 1, (0, 1, 2))], images=2, methods=3)
    assert (agreement(opposed).w, agreement(opposed).images) == (0, 1)
    assert agreement(opposed[:1]).images == 0
    by_chance = agreement(random_ranks(5, 2000, 4))
    assert by_chance.w == pytest.approx(by_chance.chance, abs=0.01)


def test_the_tables() -> None:
    ranks = rank_array([(1, image, (1, 0)) for image in range(3)], images=3, methods=2)
    results = mean_opinion_ranks(ranks, ["bicubic, 4x", "flow"])
    rows = list(csv.DictReader(io.StringIO(ranks_csv(results))))
    assert rows[1] == {
        "method": "bicubic, 4x", "mor": "2.000000", "mor_low": "2.000000", "mor_high": "2.000000", "answers": "3",
    }  # fmt: skip
    lines = ranks_table(results, agreement(ranks), raters=1).splitlines()
    assert lines[1].split() == ["flow", "1.000", "1.000", "to", "1.000"]
    assert lines[3:] == [
        "3 answers of 1 rater",
        "the intervals are for other images; of other raters one rater tells nothing",
    ]
    table = ranks_table(results, Agreement(0.75, 0.5, 3), raters=2)
    assert "Kendall's W 0.750, mean of 3 images with two raters or more (1: the same order; 0.500: order" in table
