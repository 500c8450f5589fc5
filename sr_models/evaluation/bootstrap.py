"""Confidence intervals by drawing images again, with replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sr_models.randomness import random_stream

__all__ = ["draw_again", "mean_interval"]

#: Draws of all images; with more, intervals stay the same to a percent of their width.
_DRAWS = 2000


def draw_again(count: int, *numbers: int) -> np.ndarray:
    """Draw so many of ``count`` images with replacement, 2000 times, always the same.

    Args:
        count: how many there are.
        numbers: other numbers give other draws, independent of these, for what is drawn beside the images.

    Returns:
        (2000, count): how often each image is among those drawn.
    """
    stream = random_stream(0, "bootstrap", count, *numbers)
    chosen = torch.randint(count, (_DRAWS, count), generator=stream, device="cpu").numpy()
    rows = np.arange(_DRAWS)[:, None] * count
    return np.bincount((chosen + rows).ravel(), minlength=_DRAWS * count).reshape(_DRAWS, count)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean over images.

    Pixels of an image depend on each other, so that images are drawn and not pixels. Of ten images or fewer the
    interval is too narrow: it holds the mean of all images less often than it says.

    Args:
        values: one an image.
        weights: weights of the images in the mean, all alike by default.
        confidence: share of the draws whose means are in the interval.

    Returns:
        Lower and upper end; both NaN for fewer than two images.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float("nan"), float("nan")
    weighted = draw_again(len(array)) * (1 if weights is None else np.asarray(weights, dtype=np.float64))
    means = weighted @ array / weighted.sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
