"""Kinds of places in an image, by what the low-resolution image shows there."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from sr_models.io.images import check_rgb

__all__ = ["TEXTURES", "textures"]

#: Kinds of places, and the standard deviation of the luminance, in grey levels, from which on one is of that kind.
TEXTURES = {"flat": 0.0, "texture": 2.0, "edges": 10.0}
#: Side in low-resolution pixels of the neighbourhood.
_SIDE = 3


def textures(lr: np.ndarray, scale: int) -> np.ndarray:
    """Sort the pixels of an enlarged image by the local contrast of the low-resolution image.

    The truth has no part in this, on purpose. Where the truth chooses the pixels, even a perfect model misses its
    nominal coverage: among pixels of rare values, samples are rarely beyond.

    Args:
        lr: (h, w, 3), uint8.
        scale: enlargement.

    Returns:
        (scale h, scale w): indices into :data:`TEXTURES`, by the standard deviation of the luminance among 3 x 3
        low-resolution pixels.
    """
    check_rgb("lr", lr)
    luminance = lr.astype(np.float64) @ (0.299, 0.587, 0.114)
    variance = uniform_filter(luminance**2, _SIDE) - uniform_filter(luminance, _SIDE) ** 2
    deviation = np.sqrt(np.maximum(variance, 0))
    kinds = np.searchsorted(list(TEXTURES.values()), deviation, side="right") - 1
    return kinds.repeat(scale, axis=0).repeat(scale, axis=1)
