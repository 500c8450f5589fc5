"""The best figure of a run so far, which decides whose weights are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["better"]


def better(best: dict[str, Any] | None, figure: str, figures: Mapping[str, float], step: int) -> dict[str, Any] | None:
    """Return the better of the best figure so far and that of a step; the earlier one of two that are equal.

    Args:
        best: ``figure``, ``value`` and ``step`` of the best so far.
        figure: name of the figure; of ``val_nll`` less is better, of others more.
        figures: those of the step. They may lack the figure.
        step: number of finished steps.
    """
    value = figures.get(figure)
    if value is None or not math.isfinite(value):
        return best
    sign = -1 if figure == "val_nll" else 1
    if best is None or best["figure"] != figure or sign * value > sign * best["value"]:
        return {"figure": figure, "value": value, "step": step}
    return best
