"""Intervals of means over images, by resampling the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["mean_interval"]

_RESAMPLES = 2000


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean; the same values always give the same interval.

    Args:
        values: finite, one an image.
        confidence: share of such intervals that hold the mean.
    """
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
