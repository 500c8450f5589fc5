"""The figures of the report are those of the record, with intervals where there are enough images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from report_methods import bicubic, model

from sr_models.evaluation.report.method import Method
from sr_models.evaluation.report.score_parts import cost_part, glance_part, image_part, score_part
from sr_models.evaluation.scores import mean_scores


def test_numbers_are_those_of_the_record() -> None:
    methods = [bicubic(), model()]
    part = score_part(methods, "Means.")
    assert [figure.label for figure in part["columns"]] == ["LPIPS", "LR-PSNR", "Diversity", "PSNR", "SSIM"]
    texts = [[cell["text"] for cell in row["cells"]] for row in part["rows"]]
    assert texts == [["0.400", "40.0", "0.0", "25.12", "0.500"], ["0.110", "exact", "9.5", "25.12", "0.500"]]
    for row, method in zip(part["rows"], methods, strict=True):
        mean = mean_scores(method.rows)
        for figure, cell in zip(part["columns"], row["cells"], strict=True):
            assert cell["text"] == figure.text(getattr(mean, figure.key))
    assert [[cell["best"] for cell in row["cells"]] for row in part["rows"]] == [
        [False, False, False, True, True],
        [True, True, True, True, True],
    ]


def test_intervals_hold_the_mean_and_are_always_the_same() -> None:
    values = np.random.default_rng(0).uniform(0.1, 0.4, 40)
    first, second = (score_part([model(values)])["rows"][0]["cells"][0] for _ in range(2))
    assert first == second
    low, high = map(float, first["interval"].split(" to "))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert first["span"][0] < first["at"] < first["span"][1]


@pytest.mark.parametrize("distances", [(0.1,), (0.1, 0.2, 0.3, 0.4), (0.1, 0.1, 0.1, 0.1, 0.1), (0.1, math.nan) * 3])
def test_there_is_no_interval_of_few_images_or_of_no_number(distances: Sequence[float]) -> None:
    part = score_part([model(distances)])
    cell = part["rows"][0]["cells"][0]
    assert (cell["interval"], cell["span"]) == ("", None)
    assert part["intervals"] == (len(distances) >= 5)


def test_a_method_is_certainly_better_if_it_is_image_by_image() -> None:
    """Though the images differ more than the methods do."""
    hard = np.linspace(0.1, 0.9, 8)

    def certain(*methods: Method) -> list[bool]:
        return [row["cells"][0]["certain"] for row in score_part(methods)["rows"]]

    assert certain(bicubic(hard), model(hard - 0.01)) == [False, True]
    mixed = hard + np.where(np.arange(8) % 2, 0.02, -0.021)
    assert certain(bicubic(hard), model(mixed)) == [False, False]
    assert certain(bicubic(hard[:4]), model(hard[:4] - 0.01)) == [False, False]
    assert certain(bicubic(hard), model(hard - 0.01), model(hard - 0.02, "n")) == [False, False, True]


def test_key_figures_are_the_best_models() -> None:
    part = glance_part([bicubic(diversity=50.0), model(), model([0.2] * 5, "n", lr_psnr=40.0, diversity=12.0)])
    tiles = [(tile["figure"].label, tile["value"], tile["name"], tile["compared"]) for tile in part["tiles"]]
    assert tiles == [
        ("LPIPS", "0.110", "m", "bicubic 0.400, of which it is 0.28"),
        ("LR-PSNR", "exact", "m", "the challenge asks for 45 dB"),
        ("Diversity", "12.0", "n", "0 for samples all alike"),
        ("PSNR", "25.12", "m", "bicubic 25.12"),
    ]
    tiles = glance_part([model(lr_psnr=44.9, name="alone")])["tiles"]
    assert [tile["name"] for tile in tiles] == [""] * 4
    assert tiles[1]["compared"] == "the challenge asks for 45 dB, not reached"
    assert tiles[0]["compared"] == ""


def test_cost_is_of_one_sample() -> None:
    known = dataclasses.replace(model(seconds=5.0), parameters=2900299, machine="cpu")
    part = cost_part([bicubic(), known])
    assert part is not None
    assert part["rows"][1:] == [["m", "2,900,299", "5.00", "cpu"]]
    assert cost_part([bicubic(), model()]) is None


def test_every_image_has_a_row_up_to_a_limit() -> None:
    part = image_part([bicubic(), model([0.1, math.nan, 0.2, 0.3, 0.4])])
    assert part["rows"][1] == {"image": "1.png", "cells": ["0.410", "\N{EN DASH}", "40.0", "exact"]}
    assert part["left"] == 0
    many = image_part([bicubic([0.1] * 203)])
    assert (len(many["rows"]), many["left"]) == (200, 3)
