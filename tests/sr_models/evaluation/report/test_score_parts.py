"""The figures of the report are those of the record, with intervals where there are enough images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from sr_models.evaluation.report.method import Method, on_common_images
from sr_models.evaluation.report.score_parts import (
    cost_part,
    coverage_part,
    glance_part,
    image_part,
    legend,
    ranking_part,
    score_part,
    styles,
    sweep_charts,
)
from sr_models.evaluation.scores import Scores, mean_scores


def rows(distances: Sequence[float], **figures: float) -> list[Scores]:
    given = {"nll": math.nan, "psnr": 25.123, "ssim": 0.5, "lr_psnr": 40.04, "lr_psnr_worst": 39.0, "diversity": 0.0}
    return [
        Scores(f"{number}.png", **{**given, **figures, "distance": distance})
        for number, distance in enumerate(distances)
    ]


def bicubic(distances: Sequence[float] = (0.4, 0.41, 0.42, 0.39, 0.38), **figures: float) -> Method:
    return Method("bicubic", rows(distances, **figures), "lpips", baseline=True)


def model(distances: Sequence[float] = (0.1, 0.12, 0.11, 0.1, 0.12), name: str = "m", **figures: float) -> Method:
    return Method(name, rows(distances, **{"diversity": 9.46, "lr_psnr": math.inf, **figures}), "lpips", n=10)


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
    assert tiles[1]["compared"] == "the challenge asks for 45 dB, which is not reached"
    assert tiles[0]["compared"] == ""


def test_curves_are_of_the_models_and_the_level_is_the_first_baselines() -> None:
    sweep = {at: rows([0.3 - 0.1 * at] * 5) for at in (0.0, 1.0)}
    swept = dataclasses.replace(model(), temperature=1.0, sweep=sweep)
    methods = [bicubic(), model(name="unswept"), swept]
    charts = sweep_charts(methods)
    assert [chart.title for chart in charts] == ["LPIPS", "LR-PSNR, dB", "Diversity, %"]
    [curve] = charts[0].curves
    assert [text for *_, text in curve.points] == [
        "m: LPIPS 0.300 at temperature 0",
        "m: LPIPS 0.200 at temperature 1",
    ]
    assert curve.ringed == 1
    assert [[label for _, label, _ in chart.levels] for chart in charts] == [["bicubic"], ["bicubic"], []]
    assert styles(methods) == {"bicubic": 0, "unswept": 1, "m": 2}
    assert curve.style == 2
    assert legend(methods, swept=True) == [("m", 2, False), ("bicubic", 0, True)]
    assert sweep_charts([bicubic()]) == []


def test_coverage_is_drawn_if_it_was_measured() -> None:
    assert coverage_part([bicubic(), model()]) is None
    part = coverage_part([bicubic(), dataclasses.replace(model(), coverage=[(0.5, 0.4), (0.9, 0.8)])])
    assert part is not None
    [chart] = part["charts"]
    assert [text for *_, text in chart.curves[0].points] == [
        "m: measured 0.400 at nominal 0.5",
        "m: measured 0.800 at nominal 0.9",
    ]


def test_ranks_are_ours_and_the_published_ones_among_themselves() -> None:
    part = ranking_part([bicubic(), model(), model([0.09] * 5, "n", diversity=8.0), model([math.nan] * 5, "nan")], 4)
    assert part is not None
    ours = [row for row in part["rows"] if not row["published"]]
    assert [(row["name"], *row["cells"]) for row in ours] == [
        ("n", "0.090", "exact", "8.00", "", "yes", "1", "2", ""),
        ("m", "0.110", "exact", "9.46", "", "yes", "2", "1", ""),
        ("bicubic", "0.400", "40.04", "0.00", "", "no", "", "", ""),
    ]
    published = {row["name"]: row["cells"] for row in part["rows"] if row["published"]}
    assert published["NCSR"] == ["0.117", "50.54", "26.04", "4.372", "yes", "1", "2", "1"]
    assert published["ESRGAN"][4:] == ["no", "", "", ""]
    assert len(part["headings"]) == 1 + len(published["NCSR"])
    assert "Lugmayr" in part["explanation"]
    alone = ranking_part([model()], 3)
    assert alone is not None
    assert [row["name"] for row in alone["rows"]] == ["m"]
    assert "Published" not in alone["explanation"]
    assert ranking_part([dataclasses.replace(model(), distance_name="mse")], 4) is None


def test_cost_is_of_one_sample() -> None:
    known = dataclasses.replace(model(seconds=5.0), parameters=2900299, machine="cpu")
    part = cost_part([bicubic(), known])
    assert part is not None
    assert part["rows"][1:] == [["m", "2,900,299", "0.50", "cpu"]]
    assert cost_part([bicubic(), model()]) is None


def test_every_image_has_a_row_up_to_a_limit() -> None:
    part = image_part([bicubic(), model([0.1, math.nan, 0.2, 0.3, 0.4])])
    assert part["rows"][1] == {"image": "1.png", "cells": ["0.410", "\N{EN DASH}", "40.0", "exact"]}
    assert part["left"] == 0
    many = image_part([bicubic([0.1] * 203)])
    assert (len(many["rows"]), many["left"]) == (200, 3)


def test_methods_are_compared_on_the_images_that_all_have() -> None:
    fewer = dataclasses.replace(model(), rows=model().rows[:0:-1])
    first, second = on_common_images([bicubic(), fewer])
    assert [row.image for row in first.rows] == [row.image for row in second.rows] == [f"{n}.png" for n in (1, 2, 3, 4)]
    assert second.rows[0].distance == 0.12


def test_methods_that_cannot_be_compared_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one method, got none"):
        on_common_images([])
    with pytest.raises(ValueError, match="got 'm' twice"):
        on_common_images([model(), model()])
    with pytest.raises(ValueError, match="bicubic was with lpips, m with mse; score one again"):
        on_common_images([bicubic(), dataclasses.replace(model(), distance_name="mse")])
    other = dataclasses.replace(model(), rows=[dataclasses.replace(model().rows[0], image="other.png")])
    with pytest.raises(ValueError, match="an image in common, got none that all of bicubic, m have"):
        on_common_images([bicubic(), other])
