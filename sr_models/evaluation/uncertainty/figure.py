"""Pictures of coverage: nominal against measured, and ranks of the truth among the samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sr_models.evaluation.transparent_axes import GREY, style_axes
from sr_models.evaluation.uncertainty.coverage import IntervalScores
from sr_models.io.files import write_bytes

__all__ = ["check_figure", "draw_coverage", "write_figure"]

_SUFFIXES = (".png", ".svg", ".pdf")


def draw_coverage(scores: Mapping[str, IntervalScores]) -> Figure:
    """Draw the coverage of intervals on the left, and rank histograms on the right.

    The background is transparent and all lines are grey or coloured, so that the drawing suits a page of any colour.

    Args:
        scores: label -> scores, for instance of several temperatures in ascending order.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("scores must hold at least one entry, got none")
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2)
    left.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="as it should be")
    right.axhline(1, color=GREY, linestyle="--")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(scores)))
    for (label, one), colour in zip(scores.items(), colours, strict=True):
        left.plot(100 * one.nominal(), 100 * one.coverage(), color=colour, marker="o", markersize=3, label=label)
        ranks = np.asarray(one.ranks) * len(one.ranks)
        right.stairs(ranks, np.arange(len(ranks) + 1) / len(ranks), color=colour)
    left.set(title="intervals", xlabel="nominal level, %", ylabel="holds the truth, % of values")
    right.set(title="rank of the truth among the samples", xlabel="rank, from lowest to highest", ylabel="frequency")
    right.set_ylim(bottom=0)
    left.legend(framealpha=0, labelcolor=GREY, loc="lower right", fontsize="small")
    style_axes((left, right))
    return figure


def check_figure(path: Path) -> None:
    """Check the name of a file for a drawing, before the work is done that it shows.

    Raises:
        ValueError: another suffix than .png, .svg or .pdf.
        FileNotFoundError: the folder does not exist.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"figure must end in {', '.join(_SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder of figure {path} does not exist")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a drawing atomically, in the format of the file's suffix: .png, .svg or .pdf."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=110)
    write_bytes(path, buffer.getvalue())
