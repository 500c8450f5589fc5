"""Look of all drawings: transparent, with grey lines and text, for pages of any colour."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes

__all__ = ["GREY", "style_axes"]

#: Legible on white and on black.
GREY = "#888888"


def style_axes(parts: Iterable[Axes]) -> None:
    """Make the backgrounds of axes transparent, and their frames, ticks, labels and titles grey."""
    for axes in parts:
        axes.patch.set_alpha(0)
        axes.grid(alpha=0.3)
        axes.tick_params(colors=GREY)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(GREY)
        axes.spines[:].set_color(GREY)
