"""Scores of intervals against the truth: coverage, rank histogram, width and CRPS of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_models.evaluation.uncertainty.order_statistics import check_level, nominal_levels, sort_samples
from sr_models.evaluation.uncertainty.texture import TEXTURES, textures
from sr_models.io.images import check_rgb

__all__ = ["IntervalScores", "pool", "score_intervals", "score_values"]

#: Values that are looked at together.
_BLOCK = 2**18


@dataclass(frozen=True)
class IntervalScores:
    """Ranks of the truth among n samples, over many values, and scores of the intervals.

    A value of the truth that equals m samples has m + 1 possible ranks, and counts for each of them with 1 / (m + 1).
    Samples that are exchangeable with the truth then have a flat rank histogram and nominal coverage, however many
    values are alike.

    Attributes:
        values: number of values: three a pixel.
        ranks: share of values with 0 .. n samples below the truth; the sum is 1.
        with_ends: coverage of k = 1 .. n // 2 if an end that equals the truth holds it. Users see this.
        without_ends: likewise if it does not.
        width: mean distance between the ends for each k, in the unit of the samples.
        crps: mean continuous ranked probability score, in that unit, without bias by n. It is the mean absolute error
            of a single image.
        tied: share of values that equal at least one sample.
    """

    values: int
    ranks: tuple[float, ...]
    with_ends: tuple[float, ...]
    without_ends: tuple[float, ...]
    width: tuple[float, ...]
    crps: float
    tied: float

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.ranks) - 1

    def nominal(self) -> np.ndarray:
        """Return the levels of k = 1 .. n // 2; see :func:`nominal_levels`."""
        return nominal_levels(self.n)

    def coverage(self) -> np.ndarray:
        """Return the measured coverage of k = 1 .. n // 2."""
        cumulative = np.cumsum(self.ranks)
        k = np.arange(1, self.n // 2 + 1)
        return cumulative[self.n - k] - cumulative[k - 1]

    def coverage_at(self, level: float) -> float:
        """Return the measured coverage at a nominal level, interpolated between those of whole k.

        This is the coverage of an interval that is chosen at random between the two neighbours, with chances that
        make its nominal coverage the level.

        Raises:
            ValueError: a level that n samples cannot reach.
        """
        return self._at(level, self.coverage())

    def width_at(self, level: float) -> float:
        """Return the mean width at a nominal level, likewise."""
        return self._at(level, np.asarray(self.width))

    def _at(self, level: float, values: np.ndarray) -> float:
        position = check_level(level, self.n)
        k = np.arange(1, len(values) + 1, dtype=np.float64)
        # both ends meet in the middle
        return float(np.interp(position, [*k, (self.n + 1) / 2], [*values, 0.0]))


def score_intervals(samples: Sequence[np.ndarray], hr: np.ndarray, lr: np.ndarray) -> dict[str, IntervalScores]:
    """Compare the samples of an image with the truth, value by value.

    Every value of every colour counts, as an interval holds it or not. All images have 8 bits, as their files have:
    samples are rounded as the truth was.

    Args:
        samples: at least two arrays (scale h, scale w, 3), uint8.
        hr: the truth (H, W, 3), uint8, at most as large. The part of the samples counts that it covers.
        lr: its low-resolution image (h, w, 3), uint8, which tells the :func:`textures`.

    Returns:
        Scores in grey levels under ``"all"``, and of every kind of :data:`TEXTURES` that is there.

    Raises:
        TypeError, ValueError: fewer than two samples, or images of other kinds or sizes.
    """
    check_rgb("hr", hr)
    check_rgb("lr", lr)
    nominal_levels(len(samples))
    scale = len(samples[0]) // len(lr)
    wanted = (scale * lr.shape[0], scale * lr.shape[1], 3)
    for sample in samples:
        check_rgb("sample", sample)
        if sample.shape != wanted:
            raise ValueError(f"samples must have one shape, a multiple of lr's {lr.shape[:2]}, got {sample.shape}")
    height, width = hr.shape[:2]
    if height > wanted[0] or width > wanted[1]:
        raise ValueError(f"hr must be at most as large as the samples of {wanted[:2]}, got {hr.shape[:2]}")
    kinds = textures(lr, scale)[:height, :width]
    array = np.stack([sample[:height, :width] for sample in samples])
    found = {}
    for index, name in enumerate(TEXTURES):
        chosen = kinds == index
        if chosen.any():
            found[name] = score_values(array[:, chosen], hr[chosen])
    return {"all": pool(list(found.values())), **found}


def score_values(samples: np.ndarray, truth: np.ndarray) -> IntervalScores:
    """Compare samples with the truth, value by value, of any shape and unit.

    Luminance, or another function of the pixels, has coverage of its own: give its maps.

    Args:
        samples: (n, ...), n at least 2.
        truth: (...), not empty.

    Raises:
        ValueError: other shapes, or NaN.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores = score_values(rng.normal(size=(19, 10000)), rng.normal(size=10000))
        >>> round(scores.coverage_at(0.9), 2), round(scores.width_at(0.9), 1)
        (0.9, 3.7)
    """
    samples, truth = np.asarray(samples), np.asarray(truth)
    if samples.shape[1:] != truth.shape or not truth.size:
        raise ValueError(f"samples must be n times {truth.shape}, and not empty, got {samples.shape}")
    n = len(samples)
    k = np.arange(1, len(nominal_levels(n)) + 1)
    flat, wanted = samples.reshape(n, -1), truth.ravel()
    # number of values with so many samples below, and so many equal
    table = np.zeros((n + 1, n + 1))
    width, error = np.zeros(len(k)), 0.0
    for start in range(0, wanted.size, _BLOCK):
        ordered, y = sort_samples(flat[:, start : start + _BLOCK]), wanted[start : start + _BLOCK]
        below, equal = (ordered < y).sum(0), (ordered == y).sum(0)
        table += np.bincount(below * (n + 1) + equal, minlength=table.size).reshape(table.shape)
        sums = ordered.sum(1, dtype=np.float64)
        width += sums[n - k] - sums[k - 1]
        # the mean distance to the truth, less half of that between two samples
        error += np.abs(ordered.astype(np.float64) - y).sum() / n
        error -= (2 * np.arange(1, n + 1) - n - 1) @ sums / (n * (n - 1))
    return _of_table(table, width / wanted.size, float(error / wanted.size))


def _of_table(table: np.ndarray, width: np.ndarray, crps: float) -> IntervalScores:
    """Make scores of the number of values ``table[samples below, samples equal]``."""
    n, values = len(table) - 1, table.sum()
    below, equal = np.indices(table.shape)
    ranks = np.zeros(n + 1)
    for number, ties in zip(below.ravel(), equal.ravel(), strict=True):
        if table[number, ties]:
            ranks[number : number + ties + 1] += table[number, ties] / (ties + 1)

    def share(chosen: np.ndarray) -> float:
        return float(table[chosen].sum() / values)

    within = below + equal
    ks = range(1, n // 2 + 1)
    return IntervalScores(
        values=int(values),
        ranks=tuple((ranks / values).tolist()),
        with_ends=tuple(share(np.asarray((below <= n - k) & (within >= k))) for k in ks),
        without_ends=tuple(share(np.asarray((below >= k) & (within <= n - k))) for k in ks),
        width=tuple(width.tolist()),
        crps=crps,
        tied=share(np.asarray(equal > 0)),
    )


def pool(scores: Sequence[IntervalScores]) -> IntervalScores:
    """Join scores of images, or of parts of one, as if their values had been compared together.

    Raises:
        ValueError: no scores, or those of different numbers of samples.
    """
    if len({one.n for one in scores}) != 1:
        raise ValueError(f"scores must be of one number of samples, got {[one.n for one in scores]}")
    weights = np.array([one.values for one in scores], dtype=np.float64)

    def mean(figures: Sequence[float] | Sequence[Sequence[float]]) -> list[float]:
        return np.atleast_1d(np.average(figures, axis=0, weights=weights)).tolist()

    return IntervalScores(
        values=int(weights.sum()),
        ranks=tuple(mean([one.ranks for one in scores])),
        with_ends=tuple(mean([one.with_ends for one in scores])),
        without_ends=tuple(mean([one.without_ends for one in scores])),
        width=tuple(mean([one.width for one in scores])),
        crps=mean([one.crps for one in scores])[0],
        tied=mean([one.tied for one in scores])[0],
    )
