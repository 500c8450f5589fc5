"""8-bit images whose reduction equals a given 8-bit low-resolution image in every value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_models.flow.projection import Reduction, approach, exact_dtype, reduction_for
from sr_models.flow.repair import repair
from sr_models.io.resize import imresize

__all__ = ["Exact", "exact", "levels_of"]

#: Projections of an image that saturates in many places; others need a few.
_PASSES = 120
#: Reduced values are brought as near to the wanted ones, in grey levels, before pixels are rounded.
_TOLERANCE = 0.3
#: If no more than this part of the values differ in the end, all is tried again from there with half the tolerance,
#: down to the least.
_NEARLY, _LEAST_TOLERANCE = 1e-3, 0.05
#: Corrections of all values that rounding made wrong, before single pixels are tried.
_CORRECTIONS = 6
#: Part of a wrong value's distance that a correction moves it. Half a grey level may remain.
_GAIN = 0.7


class Exact(NamedTuple):
    """An image of 8 bits, and how far it is from the aim.

    Attributes:
        image: (3, scale h, scale w), multiples of 1/255.
        differing: number of values of the reduced image that differ from those wanted.
    """

    image: Tensor
    differing: int


@torch.no_grad()
def exact(image: Tensor, lr: Tensor) -> Exact:
    """Change an image until the saved 8-bit image, reduced as MATLAB does, equals the low-resolution image.

    The image is projected, clamped and rounded. Then the few reduced values that rounding made wrong are corrected, by
    steps of the pixels around them. Values that differ are left if no 8-bit image reduces to the low-resolution image.

    Args:
        image: (3, scale h, scale w) in [0, 1].
        lr: (3, h, w), multiples of 1/255 in [0, 1].

    Raises:
        ValueError: a low-resolution image that is none of 8 bits, or sizes of which one is no multiple of the other.

    Example:
        >>> lr = torch.randint(100, 156, (3, 8, 8)) / 255
        >>> exact(torch.rand(3, 32, 32), lr).differing
        0
    """
    levels = levels_of(lr)
    best, tolerance = _attempt(image, lr, levels, _TOLERANCE), _TOLERANCE
    while 0 < best.differing <= _NEARLY * lr.numel() and tolerance > _LEAST_TOLERANCE:
        tolerance /= 2
        found = _attempt(best.image, lr, levels, tolerance)
        best = found if found.differing < best.differing else best
    return best


def _attempt(image: Tensor, lr: Tensor, levels: Tensor, tolerance: float) -> Exact:
    near = approach(image, lr, tolerance=tolerance / 255, passes=_PASSES)
    a = reduction_for(near, levels, exact_dtype(near))
    rounded = _round(near.to(a.dtype) * 255, levels.to(a.dtype), a)
    pixels, wanted = (values.to("cpu", torch.uint8).numpy() for values in (rounded, levels))
    scale = pixels.shape[1] // wanted.shape[1]
    pixels = repair(pixels, wanted, scale)
    reduced = imresize(np.ascontiguousarray(pixels.transpose(1, 2, 0)), 1 / scale).transpose(2, 0, 1)
    return Exact(torch.from_numpy(pixels).to(image) / 255, int((reduced != wanted).sum()))


def levels_of(lr: Tensor) -> Tensor:
    """Return the grey levels 0..255 of a low-resolution image, in its dtype.

    Raises:
        ValueError: values that are no multiples of 1/255 in [0, 1].
    """
    levels = (lr * 255).round()
    if lr.numel() and (bool(((lr * 255 - levels).abs() > 1e-3).any()) or bool(((levels < 0) | (levels > 255)).any())):
        raise ValueError(
            "lr must have 8-bit values, multiples of 1/255 in [0, 1], for consistency 'exact'; "
            "round it, or choose consistency 'project'"
        )
    return levels


def _round(images: Tensor, levels: Tensor, a: Reduction) -> Tensor:
    """Round images in grey levels so that few reduced values differ; all arguments in the same dtype."""
    best, fewest = images.round(), None
    for _ in range(_CORRECTIONS):
        rounded = images.round()
        reduced = a.columns(a.rows(rounded).round_().clamp_(0, 255))
        wrong = reduced.round().clamp_(0, 255) != levels
        count = int(wrong.sum())
        if fewest is not None and count >= fewest:
            break
        best, fewest = rounded, count
        if not count:
            break
        images = a.lift(torch.where(wrong, _GAIN * (levels - reduced), 0)).add_(images).clamp_(0, 255)
    return best
