"""The parts of a report that are made of scores: key figures, tables, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sr_models.evaluation import ranking
from sr_models.evaluation.bootstrap import mean_interval
from sr_models.evaluation.published_scores import CHALLENGE_SOURCE, PUBLISHED
from sr_models.evaluation.report.charts import LineChart, line_chart
from sr_models.evaluation.report.figures import Figure, figures_of
from sr_models.evaluation.report.method import Method, at_temperature

__all__ = [
    "FEWEST",
    "SWEPT",
    "cost_part",
    "coverage_part",
    "glance_part",
    "image_part",
    "legend",
    "ranking_part",
    "score_part",
    "sweep_charts",
]

#: Images below which resampling them says nothing.
FEWEST = 5
#: Images of which single scores are listed.
_LISTED = 200
#: Figures that are drawn against the temperature; the table of numbers has the PSNR too.
DRAWN, SWEPT = ("distance", "lr_psnr", "diversity"), ("distance", "lr_psnr", "diversity", "psnr")


def styles(methods: Sequence[Method]) -> dict[str, int]:
    """Number the colours: name -> number. The first baseline is grey (0), then come the methods that are none."""
    reference = _reference(methods)
    ordered = sorted((method for method in methods if method is not reference), key=lambda method: method.baseline)
    numbers = {method.name: number for number, method in enumerate(ordered, 1)}
    return numbers if reference is None else {reference.name: 0, **numbers}


def glance_part(methods: Sequence[Method]) -> dict[str, Any]:
    """Choose the key figures: the best values of methods that are no baselines, and what to compare them with.

    Args:
        methods: of the same images; at least one is no baseline.
    """
    reference = _reference(methods)
    models = [method for method in methods if not method.baseline] or list(methods)
    tiles = []
    for figure in figures_of(methods[0].distance_name)[:4]:
        best = _best(models, figure)
        value = getattr(best.mean, figure.key)
        tiles.append(
            {
                "figure": figure,
                "value": figure.text(value),
                "unit": figure.unit if math.isfinite(value) else "",
                "name": best.name if len(models) > 1 else "",
                "compared": _compared(figure, value, reference),
            }
        )
    return {"tiles": tiles}


def score_part(methods: Sequence[Method], explanation: str = "") -> dict[str, Any]:
    """Tabulate mean scores with the intervals of the means.

    Args:
        methods: of the same images, in the order of the rows.
        explanation: what the reader should know about the means.

    Returns:
        ``columns``: the figures; ``rows``: name, number of the colour and cells of every method.
    """
    figures = [
        figure
        for figure in figures_of(methods[0].distance_name)
        if any(not math.isnan(getattr(method.mean, figure.key)) for method in methods)
    ]
    columns = [_column(methods, figure) for figure in figures]
    numbers = styles(methods)
    rows = [
        {
            "name": method.name,
            "style": numbers[method.name],
            "baseline": method.baseline,
            "cells": [column[number] for column in columns],
        }
        for number, method in enumerate(methods)
    ]
    count = len(methods[0].rows)
    return {
        "columns": figures,
        "rows": rows,
        "explanation": explanation,
        "count": count,
        "intervals": count >= FEWEST,
        "fewest": FEWEST,
    }


def sweep_charts(methods: Sequence[Method]) -> list[LineChart]:
    """Draw every figure against the temperature, beside the first baseline's; a ring marks a method's own temperature.

    Args:
        methods: of the same images; those without a sweep have no curve.
    """
    charts = []
    reference = _reference(methods)
    for figure in figures_of(methods[0].distance_name):
        if figure.key not in DRAWN:
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
    reference = _reference(methods)
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


def ranking_part(methods: Sequence[Method], scale: int) -> dict[str, Any] | None:
    """Rank methods as the challenge does, and the published ones of the same scale among themselves.

    Args:
        methods: of the same images. One whose figures are no numbers has no rank.
        scale: enlargement.

    Returns:
        The table; ``None`` without LPIPS.
    """
    if methods[0].distance_name != "lpips":
        return None
    ours = [
        ranking.Method(method.name, mean.distance, mean.lr_psnr, mean.diversity)
        for method in methods
        if not any(map(math.isnan, ((mean := method.mean).distance, mean.lr_psnr, mean.diversity)))
    ]
    published = ranking.published_methods(scale) if scale in {row.scale for row in PUBLISHED} else []
    rows = [
        {
            "name": row.method.name,
            "published": marked,
            "cells": [
                f"{row.method.lpips:.3f}",
                f"{row.method.lr_psnr:.2f}" if math.isfinite(row.method.lr_psnr) else "exact",
                f"{row.method.diversity:.2f}",
                "" if row.method.opinion is None else f"{row.method.opinion:.3f}",
                "yes" if row.eligible else "no",
                *("" if place is None else str(place) for place in (row.lpips, row.diversity, row.final)),
            ],
        }
        for group, marked in ((ours, False), (published, True))
        if group
        for row in ranking.rank(group)
    ]
    explanation = (
        f"A method is eligible from {ranking.LEAST_LR_PSNR:g} dB of LR-PSNR on; eligible ones are ranked, 1 is best. "
        "The challenge's final rank is that of the mean of two ranks, by the opinion of raters and by the diversity."
    )
    if published:
        explanation += (
            f" Published rows are quoted ({CHALLENGE_SOURCE}) and ranked among themselves: other images, so that their "
            "figures tell the order of magnitude only."
        )
    headings = [
        ("Method", ""),
        ("LPIPS", "lower"),
        ("LR-PSNR", "higher, dB"),
        ("Diversity", "higher, %"),
        ("Opinion", "mean rank, lower"),
        ("Eligible", ""),
        ("Rank", "by LPIPS"),
        ("Rank", "by diversity"),
        ("Final rank", ""),
    ]
    return {"headings": headings, "rows": rows, "explanation": explanation}


def cost_part(methods: Sequence[Method]) -> dict[str, Any] | None:
    """Tabulate weights and time; ``None`` if nothing is known of either."""
    rows = [
        [
            method.name,
            f"{method.parameters:,}" if method.parameters else "",
            f"{seconds:.2f}" if math.isfinite(seconds := method.mean.seconds / method.n) else "",
            method.machine,
        ]
        for method in methods
    ]
    rows = [row for row in rows if row[1] or row[2]]
    if not rows:
        return None
    return {
        "rows": [["method", "weights", "seconds a sample", "machine"], *rows],
        "explanation": "Seconds are means over the images; less is better.",
    }


def image_part(methods: Sequence[Method]) -> dict[str, Any]:
    """List the distance and the LR-PSNR of every image, a row an image, two columns a method."""
    figures = figures_of(methods[0].distance_name)[:2]
    rows = [
        {
            "image": row.image,
            "cells": [
                figure.text(getattr(method.rows[number], figure.key)) for figure in figures for method in methods
            ],
        }
        for number, row in enumerate(methods[0].rows[:_LISTED])
    ]
    return {
        "figures": figures,
        "names": [method.name for method in methods],
        "rows": rows,
        "left": max(len(methods[0].rows) - _LISTED, 0),
    }


def _column(methods: Sequence[Method], figure: Figure) -> list[dict[str, Any]]:
    means = [getattr(method.mean, figure.key) for method in methods]
    intervals = [_interval(method.values(figure.key)) for method in methods]
    edges = [value for value in means if math.isfinite(value)]
    edges += [value for interval in intervals if interval for value in interval]
    low, high = (min(edges), max(edges)) if edges else (0.0, 1.0)
    best = methods.index(_best(methods, figure)) if len(methods) > 1 else -1

    def place(value: float) -> float:
        return 4 + 92 * ((value - low) / (high - low) if high > low else 0.5)

    cells = []
    for number, (mean, interval) in enumerate(zip(means, intervals, strict=True)):
        cells.append(
            {
                "text": figure.text(mean),
                "interval": f"{figure.text(interval[0])} to {figure.text(interval[1])}" if interval else "",
                "best": mean == means[best] if best >= 0 else False,
                "certain": number == best
                and all(
                    _clearly_better(methods[best].values(figure.key), other.values(figure.key), figure)
                    for other in methods
                    if other is not methods[best]
                ),
                "at": place(mean) if math.isfinite(mean) else None,
                "span": (place(interval[0]), place(interval[1])) if interval else None,
            }
        )
    return cells


def _reference(methods: Sequence[Method]) -> Method | None:
    return next((method for method in methods if method.baseline), None)


def _best(methods: Sequence[Method], figure: Figure) -> Method:
    def key(method: Method) -> float:
        value = getattr(method.mean, figure.key)
        if math.isnan(value):
            return math.inf
        return float(value) if figure.better == "lower" else -float(value)

    return min(methods, key=key)


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of a mean; ``None`` for too few images, values all alike, and a NaN."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < FEWEST or any(map(math.isnan, values)) or len(set(finite)) == 1:
        return None
    return mean_interval(finite)


def _clearly_better(values: Sequence[float], others: Sequence[float], figure: Figure) -> bool:
    """Tell whether the mean difference, image by image, lies on the better side beyond the choice of the images."""
    sign = 1 if figure.better == "lower" else -1
    gains = [sign * (other - value) for value, other in zip(values, others, strict=True)]
    interval = _interval(gains)
    return interval is not None and all(map(math.isfinite, gains)) and interval[0] > 0


def _compared(figure: Figure, value: float, reference: Method | None) -> str:
    if figure.key == "lr_psnr":
        return f"the challenge asks for {ranking.LEAST_LR_PSNR:g} dB" + ("" if value >= ranking.LEAST_LR_PSNR else ", which is not reached")
    if figure.key == "diversity":
        return "0 for samples all alike"
    if reference is None:
        return ""
    other = getattr(reference.mean, figure.key)
    text = f"{reference.name} {figure.text(other)}"
    if figure.key == "distance" and other > 0 and math.isfinite(value):
        text += f", of which it is {value / other:.2f}"
    return text


def _with_unit(figure: Figure) -> str:
    return f"{figure.label}, {figure.unit}" if figure.unit else figure.label
