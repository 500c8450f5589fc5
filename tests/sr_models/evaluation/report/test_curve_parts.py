"""Curves are those of the scores, in the colours of the methods."""

from __future__ import annotations

import dataclasses

from report_methods import bicubic, model, rows

from sr_models.evaluation.report.curve_parts import coverage_part, legend, sweep_charts
from sr_models.evaluation.report.method import styles


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
