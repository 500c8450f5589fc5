"""The parts of a report that are made of scores: key figures and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sr_models.evaluation.bootstrap import mean_interval
from sr_models.evaluation.ranking import LEAST_LR_PSNR
from sr_models.evaluation.report.figures import Figure, figures_of
from sr_models.evaluation.report.method import Method, models_of, reference_of, styles

__all__ = ["FEWEST", "cost_part", "glance_part", "image_part", "score_part"]

#: Images below which resampling them says nothing.
FEWEST = 5
#: Images of which single scores are listed.
_LISTED = 200


def glance_part(methods: Sequence[Method]) -> dict[str, Any]:
    """Choose the key figures: the best values of methods that are no baselines, and what to compare them with.

    Args:
        methods: of the same images; at least one is no baseline.
    """
    reference = reference_of(methods)
    models = models_of(methods)
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


def cost_part(methods: Sequence[Method]) -> dict[str, Any] | None:
    """Tabulate weights and time; ``None`` if nothing is known of either."""
    rows = [
        [
            method.name,
            f"{method.parameters:,}" if method.parameters else "",
            f"{seconds:.2f}" if math.isfinite(seconds := method.mean.seconds) else "",
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
        return f"the challenge asks for {LEAST_LR_PSNR:g} dB" + ("" if value >= LEAST_LR_PSNR else ", not reached")
    if figure.key == "diversity":
        return "0 for samples all alike"
    if reference is None:
        return ""
    other = getattr(reference.mean, figure.key)
    text = f"{reference.name} {figure.text(other)}"
    if figure.key == "distance" and other > 0 and math.isfinite(value):
        text += f", of which it is {value / other:.2f}"
    return text
