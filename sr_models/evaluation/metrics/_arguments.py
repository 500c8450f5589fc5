"""The argument check that all metrics share."""

import numpy as np

from sr_models.io.images import check_rgb


def check_same_rgb(sr: np.ndarray, hr: np.ndarray) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless both images are uint8 arrays (H, W, 3) of the same shape."""
    check_rgb("sr", sr)
    check_rgb("hr", hr)
    if sr.shape != hr.shape:
        raise ValueError(f"sr and hr must have the same shape, got {sr.shape} and {hr.shape}")
