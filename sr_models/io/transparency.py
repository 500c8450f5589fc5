"""Transparency of an image, which is enlarged beside its colours."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from sr_models.io.resize import imresize

__all__ = ["enlarge_alpha", "fill_transparent"]


def fill_transparent(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give pixels that are fully transparent the colour of the nearest one that is not.

    What is stored there is arbitrary, often black, and a network would draw it into the edges of what is visible.

    Args:
        image: (H, W, 3), uint8.
        alpha: (H, W), uint8; 0 is transparent.

    Returns:
        (H, W, 3), uint8; all white if nothing is visible.
    """
    hidden = alpha == 0
    if hidden.all():
        return np.full_like(image, 255)
    if not hidden.any():
        return image
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return np.ascontiguousarray(image[rows, columns])


def enlarge_alpha(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge transparency by bicubic interpolation.

    Args:
        alpha: (h, w), uint8.
        height, width: of the result.

    Returns:
        (H, W), float64, in [0, 1].
    """
    return np.clip(imresize(alpha / 255.0, size=(height, width)), 0, 1)
