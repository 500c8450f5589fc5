"""The outcome of a study: mean opinion ranks with intervals, and how far raters agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_models.evaluation.bootstrap import draw_again

__all__ = ["Agreement", "MethodRank", "agreement", "mean_opinion_ranks", "rank_array", "ranks_csv", "ranks_table"]

#: Raters are drawn independently of images.
_RATERS = 1


@dataclass(frozen=True)
class MethodRank:
    """Mean opinion rank of a method.

    Attributes:
        method: its name.
        mor: mean rank over all answers; 1 is best.
        low: lower end of the 95 % interval.
        high: upper end.
        answers: number of answers.
    """

    method: str
    mor: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Agreement:
    """Agreement of raters.

    Attributes:
        w: Kendall's W of an image, mean over images with two raters or more; 0 to 1. NaN: there is no such image.
        chance: its expectation for raters who order at random.
        images: number of these images.
    """

    w: float
    chance: float
    images: int


def rank_array(answers: Sequence[tuple[int, int, tuple[int, ...]]], images: int, methods: int) -> np.ndarray:
    """Turn answers into ranks.

    Args:
        answers: rater, number of the image, numbers of the methods with the best first.
        images: number of images.
        methods: number of methods.

    Returns:
        Array (raters, images, methods), float64; NaN where there is no answer.
    """
    raters = sorted({rater for rater, _, _ in answers})
    ranks = np.full((len(raters), images, methods), np.nan)
    for rater, image, ranking in answers:
        for rank, method in enumerate(ranking, start=1):
            ranks[raters.index(rater), image, method] = rank
    return ranks


def mean_opinion_ranks(ranks: np.ndarray, methods: Sequence[str]) -> list[MethodRank]:
    """Compute the mean opinion rank of each method, with a 95 % bootstrap interval.

    The bootstrap draws raters and images, both with replacement: the interval is for other raters and other images.
    Of 2000 draws the 2.5 % lowest and the 2.5 % highest are cut off.

    Args:
        ranks: what :func:`rank_array` returns.
        methods: names.

    Returns:
        The methods, the best first. Answers for fewer than two images give no intervals, but NaN.

    Raises:
        ValueError: no answers.
    """
    answered = ~np.isnan(ranks[..., 0])
    if not answered.any():
        raise ValueError("the study has no answers yet")
    means = np.nanmean(ranks, axis=(0, 1))
    replicates = _replicates(np.nan_to_num(ranks), answered)
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    if answered.any(axis=0).sum() < 2:
        low = high = np.full(len(methods), np.nan)
    results = [
        MethodRank(name, float(means[index]), float(low[index]), float(high[index]), int(answered.sum()))
        for index, name in enumerate(methods)
    ]
    return sorted(results, key=lambda result: result.mor)


def _replicates(ranks: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Return the mean ranks of raters and images drawn again, (draws, methods)."""
    # images that nobody has answered are not drawn
    there = answered.any(axis=0)
    ranks, answered = ranks[:, there], answered[:, there].astype(float)
    raters, images = answered.shape
    of_raters, of_images = draw_again(raters, _RATERS), draw_again(images)
    counts = ((of_raters @ answered) * of_images).sum(axis=1)
    sums = [((of_raters @ ranks[:, :, method]) * of_images).sum(axis=1) for method in range(ranks.shape[2])]
    # raters drawn may have answered none of the images drawn
    return np.stack(sums, axis=1)[counts > 0] / counts[counts > 0, None]


def agreement(ranks: np.ndarray) -> Agreement:
    """Compute Kendall's coefficient of concordance, W, of each image, and its mean.

    With m raters and n methods, ``W = 12 S / (m^2 (n^3 - n))``, where S is the sum of squared deviations of the
    methods' rank sums from their mean. Raters who order at random have 1 / m on average.

    Args:
        ranks: what :func:`rank_array` returns.
    """
    methods = ranks.shape[2]
    values, chances = [], []
    for image in range(ranks.shape[1]):
        of_image = ranks[:, image]
        of_image = of_image[~np.isnan(of_image[:, 0])]
        if (raters := len(of_image)) >= 2:
            sums = of_image.sum(axis=0)
            values.append(12 * ((sums - sums.mean()) ** 2).sum() / (raters**2 * (methods**3 - methods)))
            chances.append(1 / raters)
    if not values:
        return Agreement(float("nan"), float("nan"), 0)
    return Agreement(float(np.mean(values)), float(np.mean(chances)), len(values))


def ranks_csv(results: Sequence[MethodRank]) -> str:
    """Return the ranks as CSV: method, mor, mor_low, mor_high, answers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "mor", "mor_low", "mor_high", "answers"])
    for row in results:
        writer.writerow([row.method, f"{row.mor:.6f}", f"{row.low:.6f}", f"{row.high:.6f}", row.answers])
    return buffer.getvalue()


def ranks_table(results: Sequence[MethodRank], agreed: Agreement, raters: int) -> str:
    """Return the ranks as text."""
    width = max(len("method"), *(len(row.method) for row in results))
    lines = [f"{'method':<{width}}  mean opinion rank  95 % interval"]
    intervals = ["-" if np.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}" for row in results]
    lines += [
        f"{row.method:<{width}}  {row.mor:>17.3f}  {interval}" for row, interval in zip(results, intervals, strict=True)
    ]
    answers = results[0].answers
    lines.append(f"{answers} answer{'s' * (answers != 1)} of {raters} rater{'s' * (raters != 1)}")
    if raters == 1:
        lines.append("the intervals are for other images; of other raters one rater tells nothing")
    if agreed.images:
        lines.append(
            f"agreement of raters: Kendall's W {agreed.w:.3f}, mean of {agreed.images} images with two raters or more "
            f"(1: the same order; {agreed.chance:.3f}: order by chance)"
        )
    return "\n".join(lines)
