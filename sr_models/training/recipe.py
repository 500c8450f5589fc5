"""Training settings that a preset brings, unless the user gives others."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["PAPER_NOISE_STD", "Recipe"]

#: Dequantisation noise of the SRFlow paper: N(0, (4 / sqrt 3)^2) on the 0..255 scale.
PAPER_NOISE_STD = 4 / math.sqrt(3) / 255


@dataclass(frozen=True)
class Recipe:
    """Training settings that belong to a preset; the defaults are SRFlow-DA's at 4x.

    Attributes:
        steps: training steps.
        batch_size: crops a training step.
        lr: learning rate of Adam.
        encoder_frozen: share of the likelihood steps during which the encoder stays as it is.
        noise_std: standard deviation of the Gaussian noise added to high-resolution images in [0, 1]. A model that is
            conditioned on noise draws its own instead.
    """

    steps: int = 200_000
    batch_size: int = 12
    lr: float = 2e-4
    encoder_frozen: float = 0.5
    noise_std: float = PAPER_NOISE_STD
