"""Intervals for every value of an image, from samples by their order, without an assumption on their distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["check_level", "intervals", "nominal_levels", "sort_samples"]


def nominal_levels(n: int) -> np.ndarray:
    r"""List the coverage of the intervals between the k-th smallest and the k-th largest of ``n`` samples.

    If truth and samples are exchangeable, the truth takes each of the n + 1 ranks with the same probability:

    .. math:: P(x_{(k)} \le y \le x_{(n + 1 - k)}) = \frac{n + 1 - 2 k}{n + 1}

    Args:
        n: number of samples, at least 2.

    Returns:
        Levels of k = 1 .. n // 2, the widest interval first.

    Raises:
        ValueError: fewer than two samples.

    Example:
        >>> nominal_levels(9)
        array([0.8, 0.6, 0.4, 0.2])
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, since one sample has no interval, got {n}")
    return (n + 1 - 2 * np.arange(1, n // 2 + 1)) / (n + 1)


def check_level(level: float, n: int) -> float:
    """Return the position k = (n + 1) (1 - level) / 2 of an interval's lower end among ``n`` sorted samples, from 1.

    It need not be whole.

    Raises:
        ValueError: fewer than two samples, or a level that is not between 0 and (n - 1) / (n + 1).
    """
    widest = float(nominal_levels(n)[0])
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    position = (n + 1) * (1 - level) / 2
    if position < 1 - 1e-9:
        needed = int(np.ceil(2 / (1 - level) - 1 - 1e-9))
        raise ValueError(
            f"level must be at most {widest:.4g} with n = {n} samples, got {level}; it needs n of at least {needed}"
        )
    # a level such as 0.9 is no binary fraction
    return float(np.round(position)) if abs(position - np.round(position)) < 1e-9 else position


def sort_samples(samples: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Sort samples value by value.

    Args:
        samples: (n, ...), or n arrays of one shape.

    Returns:
        (n, ...), of the same dtype, ascending along the first axis.

    Raises:
        ValueError: fewer than two samples, different shapes, or NaN.
    """
    if len({np.shape(sample) for sample in samples}) > 1:
        raise ValueError(f"samples must have one shape, got {sorted({np.shape(sample) for sample in samples})}")
    nominal_levels(len(samples))
    array = np.sort(np.asarray(samples), axis=0)
    # they are sorted to the end
    if array.dtype.kind == "f" and np.isnan(array[-1]).any():
        raise ValueError(f"samples must be numbers, got NaN at {int(np.isnan(array[-1]).sum())} values")
    return array


def intervals(samples: np.ndarray | Sequence[np.ndarray], level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    r"""Compute for every value the interval that holds the truth with a probability, if samples are as the truth is.

    The ends are the k-th smallest and the k-th largest sample with :math:`k = (n + 1)(1 - \mathrm{level}) / 2`, see
    :func:`nominal_levels`. Between two samples they are interpolated linearly; the coverage then lies between those of
    the neighbouring k. 19 samples reach 0.5, 0.8 and 0.9 exactly.

    The values of an image depend on each other. The level is that of one value, not of all at once.

    Args:
        samples: (n, ...), or n arrays of one shape: images (H, W, 3), of any unit.
        level: nominal coverage, above 0 and at most (n - 1) / (n + 1).

    Returns:
        Lower and upper ends: arrays (...) in the samples' unit, float64.

    Raises:
        ValueError: fewer than two samples, different shapes, NaN, or a level that n samples cannot reach.

    Example:
        >>> samples = np.arange(1, 20)[:, None, None] * np.ones((2, 2))
        >>> lower, upper = intervals(samples, 0.8)
        >>> lower[0, 0], upper[0, 0]
        (np.float64(2.0), np.float64(18.0))
    """
    position = check_level(level, len(samples))
    ordered = sort_samples(samples)
    whole = int(position)
    share = position - whole

    def end(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (1 - share) * first.astype(np.float64) + share * second.astype(np.float64)

    return end(ordered[whole - 1], ordered[whole]), end(ordered[-whole], ordered[-whole - 1])
