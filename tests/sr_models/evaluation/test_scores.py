"""Means of scores of which some are infinite."""

from __future__ import annotations

import math

import pytest

from sr_models.evaluation.scores import Scores, mean_decibels, mean_scores, scores_table


def test_a_perfect_value_does_not_hide_the_others() -> None:
    assert mean_decibels([math.inf, math.inf]) == math.inf
    assert mean_decibels([40.0, math.inf, 50.0]) == 45.0
    assert mean_decibels([40.0, 50.0]) == 45.0
    assert math.isnan(mean_decibels([math.nan, math.inf, 50.0]))


def test_means_over_images() -> None:
    rows = [
        Scores("a", -4.0, math.inf, 1.0, math.inf, 60.0, 1.0, 0.1, 31.0),
        Scores("b", -2.0, 30.0, 0.8, 50.0, 40.0, 3.0, 0.3, 33.0),
    ]
    mean = mean_scores(rows)
    assert mean == Scores("mean", -3.0, 30.0, 0.9, 50.0, 50.0, 2.0, pytest.approx(0.2), 32.0)
    assert mean_scores(rows[:1]).lr_psnr == math.inf
    assert scores_table(rows[:1], "mse").splitlines()[-1].split()[2:7] == ["inf", "31.00", "1.0000", "inf", "60.00"]
