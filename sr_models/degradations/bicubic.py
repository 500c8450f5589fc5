"""Bicubic reduction as benchmarks define it."""

from __future__ import annotations

import numpy as np
import torch

from sr_models.degradations.registry import register_degradation
from sr_models.io.resize import imresize

__all__ = ["bicubic"]


@register_degradation("bicubic")
def bicubic(hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
    """Bicubic reduction that agrees with MATLAB's ``imresize`` to the last bit.

    It draws no random numbers. See :func:`sr_models.io.resize.imresize`.
    """
    return imresize(hr, size=(hr.shape[0] // scale, hr.shape[1] // scale))
