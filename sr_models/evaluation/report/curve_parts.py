"""The parts of a report that are made of curves: over temperatures, and of the coverage of intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sr_models.evaluation.report.charts import LineChart, line_chart
from sr_models.evaluation.report.figures import Figure, figures_of
from sr_models.evaluation.report.method import Method, at_temperature, reference_of, styles

__all__ = ["SWEPT", "coverage_part", "legend", "sweep_charts"]

#: Figures that are drawn against the temperature; the table of numbers has the PSNR too.
_DRAWN, SWEPT = ("distance", "lr_psnr", "diversity"), ("distance", "lr_psnr", "diversity", "psnr")


def sweep_charts(methods: Sequence[Method]) -> list[LineChart]:
    """Draw every figure against the temperature, beside the first baseline's; a ring marks a method's own temperature.

    Args:
        methods: of the same images; those without a sweep have no curve.
    """
    charts = []
    reference = reference_of(methods)
    for figure in figures_of(methods[0].distance_name):
        if figure.key not in _DRAWN:
            continue
        series = {
            method.name: [(at, getattr(at_temperature(method, at).mean, figure.key)) for at in sorted(method.sweep)]
            for method in methods
            if method.sweep
        }
        levels = {}
        if reference is not None and figure.key != "diversity":
            levels[reference.name] = getattr(reference.mean, figure.key)
        chart = line_chart(
            _with_unit(figure),
            series,
            x_label="temperature",
            note=f"{figure.better} is better",
            digits=figure.digits,
            levels=levels,
            ringed={method.name: method.temperature for method in methods if method.temperature is not None},
            styles=styles(methods),
        )
        if chart is not None:
            charts.append(chart)
    return charts


def legend(methods: Sequence[Method], *, swept: bool = False) -> list[tuple[str, int, bool]]:
    """List the entries of a legend: label, number of the colour, and whether it is a level instead of a curve."""
    numbers = styles(methods)
    curves = [
        (method.name, numbers[method.name], False) for method in methods if (method.sweep if swept else method.coverage)
    ]
    reference = reference_of(methods)
    if swept and reference is not None:
        curves.append((reference.name, 0, True))
    return curves


def coverage_part(methods: Sequence[Method]) -> dict[str, Any] | None:
    """Draw nominal against measured coverage; ``None`` if no method has measured it."""
    chart = line_chart(
        "measured",
        {method.name: method.coverage for method in methods if method.coverage},
        x_label="nominal",
        note="on the diagonal is best",
        diagonal=True,
        styles=styles(methods),
    )
    if chart is None:
        return None
    explanation = (
        "At every pixel the samples give an interval. Of intervals of 90 % (nominal), 90 % should hold the truth "
        "(measured). A curve below the diagonal is of a model that is too sure of itself, one above of a model that is "
        "too careful. "
        + " ".join(
            f"{method.name} was measured on {method.covered} of {len(method.rows)} images."
            for method in methods
            if method.coverage
        )
    )
    return {"charts": [chart], "legend": legend(methods), "explanation": explanation}


def _with_unit(figure: Figure) -> str:
    return f"{figure.label}, {figure.unit}" if figure.unit else figure.label
