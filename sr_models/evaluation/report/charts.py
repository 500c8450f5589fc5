"""Curves as SVG: what the page's template draws, in the coordinates of the drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

__all__ = ["Curve", "LineChart", "Tick", "line_chart"]

#: Width and height of a drawing, and the borders of its field: left, right, top, bottom.
WIDTH, HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 328, 12, 188


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line of a drawing.

    Attributes:
        label: name in the legend.
        style: number of its colour, dash and mark.
        points: (x, y) in the drawing, with the text of the values.
        ringed: number of the point that is emphasised; -1: none.
    """

    label: str
    style: int
    points: tuple[tuple[float, float, str], ...]
    ringed: int = -1

    @property
    def path(self) -> str:
        """The line as an SVG path."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class LineChart:
    """A drawing of curves over a common axis.

    Attributes:
        title: what it shows.
        note: which way is better.
        x_label: name of the horizontal axis.
        curves: at least one.
        levels: horizontal lines: (y, label, number of the colour).
        x_ticks: marks of the horizontal axis.
        y_ticks: marks of the vertical axis.
        diagonal: where measured equals nominal: (x1, y1, x2, y2).
        description: the drawing in words, for those who do not see it.
        field: left, right, top and bottom of the field.
    """

    title: str
    note: str
    x_label: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[float, str, int], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    diagonal: tuple[float, float, float, float] | None
    description: str
    size: tuple[int, int] = (WIDTH, HEIGHT)
    field: tuple[int, int, int, int] = (_LEFT, _RIGHT, _TOP, _BOTTOM)


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    note: str = "",
    digits: int = 3,
    levels: Mapping[str, float] | None = None,
    ringed: Mapping[str, float] | None = None,
    diagonal: bool = False,
    styles: Mapping[str, int] | None = None,
) -> LineChart | None:
    """Lay out curves.

    Args:
        title: what the vertical axis shows.
        series: label -> points (x, y). Those that are not finite are left out.
        x_label: name of the horizontal axis.
        note: which way is better.
        digits: decimals of the values.
        levels: label -> y of a horizontal line.
        ringed: label of a series -> x of the point to emphasise.
        diagonal: draw y = x, on axes from 0 to 1.
        styles: label -> number of colour and mark; default: in their order.

    Returns:
        The drawing; ``None`` if no point is finite.
    """
    finite = {
        label: sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
        for label, points in series.items()
    }
    finite = {label: points for label, points in finite.items() if points}
    if not finite:
        return None
    flat = {label: y for label, y in (levels or {}).items() if math.isfinite(y)}
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points] + list(flat.values())
    x_low, x_high = (0.0, 1.0) if diagonal else (min(xs), max(xs))
    y_values = [0.0, 1.0] if diagonal else _ticks(min(ys), max(ys))
    across = _Axis(x_low, x_high, _LEFT + 8, _RIGHT - 8)
    up = _Axis(y_values[0], y_values[-1], _BOTTOM, _TOP)
    numbers = styles or {label: number for number, label in enumerate(series)}
    curves = tuple(
        Curve(
            label,
            numbers[label],
            tuple((across(x), up(y), f"{label}: {title} {y:.{digits}f} at {x_label} {x:g}") for x, y in points),
            next((at for at, (x, _) in enumerate(points) if x == (ringed or {}).get(label)), -1),
        )
        for label, points in finite.items()
    )
    words = "; ".join(
        f"{label} from {points[0][1]:.{digits}f} at {points[0][0]:g} to {points[-1][1]:.{digits}f} at {points[-1][0]:g}"
        for label, points in finite.items()
    )
    x_ticks = [x_low + (x_high - x_low) * step / 5 for step in range(6)] if diagonal else sorted({*xs})
    return LineChart(
        title=title,
        note=note,
        x_label=x_label,
        curves=curves,
        levels=tuple((up(y), label, numbers.get(label, -1)) for label, y in flat.items()),
        x_ticks=tuple(Tick(across(x), f"{x:g}") for x in _thinned(x_ticks, x_low, x_high)),
        y_ticks=tuple(Tick(up(y), f"{y:g}") for y in (x_ticks if diagonal else y_values)),
        diagonal=(across(0), up(0), across(1), up(1)) if diagonal else None,
        description=f"{title} against {x_label}: {words}",
    )


@dataclass(frozen=True)
class _Axis:
    """Maps values to places of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _ticks(low: float, high: float) -> list[float]:
    if high == low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    return [round(float(value), 12) for value in MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _thinned(values: Sequence[float], low: float, high: float) -> list[float]:
    """Leave out values whose labels would touch their neighbours'."""
    kept: list[float] = []
    for value in values:
        if not kept or value - kept[-1] >= 0.09 * (high - low):
            kept.append(value)
    return kept
