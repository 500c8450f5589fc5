"""Agreement of samples with the low-resolution image that they were drawn for."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Consistency", "ConsistencyWarning", "check_consistency", "make_consistent"]

Consistency = Literal["none", "project", "exact"]

#: Projections end when the reduced sample is this near to the low-resolution image, in [0, 1], or after so many.
_TOLERANCE, _PASSES = 0.25 / 255, 20


class ConsistencyWarning(UserWarning):
    """Samples whose reduction differs from the low-resolution image although consistency ``"exact"`` was asked for.

    Attributes:
        differing: (B, n), int64: number of reduced values of each sample that differ.
    """

    def __init__(self, differing: Tensor, values: int) -> None:
        count, worst = int((differing > 0).sum()), int(differing.max())
        super().__init__(
            f"{count} of {differing.numel()} samples do not reduce to the low-resolution image exactly: "
            f"up to {worst} of {values} values differ, because no 8-bit image was found that reduces to all of them"
        )
        self.differing = differing


def check_consistency(consistency: str, lr: Tensor | None = None) -> None:
    """Check the argument of that name, and the image that samples shall agree with.

    Raises:
        ValueError: another value, or ``"exact"`` for an image (B, 3, h, w) that is none of 8 bits.
    """
    if consistency not in get_args(Consistency):
        choices = ", ".join(map(repr, get_args(Consistency)))
        raise ValueError(f"consistency must be one of {choices}, got {consistency!r}")
    if consistency == "exact" and lr is not None:
        from sr_models.flow.exact import levels_of

        levels_of(lr)


@torch.no_grad()
def make_consistent(samples: Tensor, lr: Tensor, consistency: Consistency) -> Tensor:
    """Change samples in place so that they reduce to their low-resolution image.

    Args:
        samples: (B, n, 3, scale h, scale w) in [0, 1].
        lr: (B, 3, h, w).
        consistency: as for :meth:`sr_models.SuperResolutionFlow.sample`.

    Returns:
        ``samples``.

    Warns:
        ConsistencyWarning: samples that are not exact; the warning says how many values differ.

    Raises:
        ValueError: as :func:`check_consistency`.
    """
    check_consistency(consistency, lr)
    if consistency == "none" or not samples.numel():
        return samples
    # SciPy comes with them: only what needs it loads it
    from sr_models.flow.exact import exact
    from sr_models.flow.projection import approach

    differing = torch.zeros(samples.shape[:2], dtype=torch.int64)
    # one by one: what a projection computes then fits into a cache, and takes the memory of one sample
    for image, low in enumerate(lr):
        for number, sample in enumerate(samples[image]):
            if consistency == "project":
                sample.copy_(approach(sample, low, tolerance=_TOLERANCE, passes=_PASSES))
            else:
                found = exact(sample, low)
                sample.copy_(found.image)
                differing[image, number] = found.differing
    if differing.any():
        warnings.warn(ConsistencyWarning(differing, lr[0].numel()), stacklevel=2)
    return samples
