"""Curves are laid out where their values are, and what has no value is left out."""

from __future__ import annotations

import math

import pytest

from sr_models.evaluation.report.charts import line_chart


def test_points_stand_where_their_values_are() -> None:
    series = {"a": [(1.0, 0.4), (0.0, 0.2), (0.5, 0.3)], "b": [(0.0, 0.25)]}
    chart = line_chart("LPIPS", series, x_label="t", levels={"c": 0.4}, ringed={"a": 0.5})
    assert chart is not None
    a, b = chart.curves
    left, right, top, bottom = chart.field
    (x0, y0, _), (x1, y1, text), (x2, y2, _) = a.points
    assert left <= x0 < x1 < x2 <= right
    assert bottom >= y0 > y1 > y2 >= top
    assert (x1, y1) == (pytest.approx((x0 + x2) / 2), pytest.approx((y0 + y2) / 2))
    assert text == "a: LPIPS 0.300 at t 0.5"
    assert (a.ringed, b.ringed) == (1, -1)
    assert chart.levels == ((y2, "c", -1),)
    # the marks of an axis stand where the values do
    by_label = {tick.label: tick.at for tick in chart.y_ticks}
    assert by_label["0.2"] == pytest.approx(y0)
    assert [tick.label for tick in chart.x_ticks] == ["0", "0.5", "1"]
    assert chart.x_ticks[1].at == x1
    assert chart.description == "LPIPS against t: a from 0.200 at 0 to 0.400 at 1; b from 0.250 at 0 to 0.250 at 0"


def test_what_has_no_value_is_left_out() -> None:
    nan, inf = math.nan, math.inf
    chart = line_chart("y", {"a": [(0, nan), (1, 2), (2, inf)], "b": [(0, nan)]}, x_label="x", levels={"c": inf})
    assert chart is not None
    [curve] = chart.curves
    assert [text for *_, text in curve.points] == ["a: y 2.000 at x 1"]
    assert chart.levels == ()
    assert all(math.isfinite(value) for value in curve.points[0][:2])
    assert line_chart("y", {"a": [(0, nan)], "b": []}, x_label="x") is None


def test_a_diagonal_has_both_axes_from_0_to_1() -> None:
    chart = line_chart("y", {"a": [(0.5, 0.5)]}, x_label="x", diagonal=True)
    assert chart is not None
    assert chart.diagonal is not None
    x1, y1, x2, y2 = chart.diagonal
    assert chart.curves[0].points[0][:2] == (pytest.approx((x1 + x2) / 2), pytest.approx((y1 + y2) / 2))
    assert [tick.label for tick in chart.x_ticks] == [tick.label for tick in chart.y_ticks]


def test_labels_do_not_touch() -> None:
    chart = line_chart("y", {"a": [(x, x) for x in (0, 0.01, 0.02, 0.5, 1)]}, x_label="x")
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["0", "0.5", "1"]
    assert len(chart.curves[0].points) == 5
