"""Training settings that a preset brings, unless the user gives others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["PAPER_NOISE_STD", "Recipe"]

#: Dequantisation noise of the SRFlow paper: N(0, (4 / sqrt 3)^2) on the 0..255 scale.
PAPER_NOISE_STD = 4 / math.sqrt(3) / 255


def _usual_milestones() -> list[float]:
    return [0.5, 0.75, 0.9, 0.95]


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
        milestones: shares of the likelihood steps at which the learning rate halves, ascending, each in 0..1.
        beta2: Adam's decay of the squared gradient.
        noise_width: width of the noise that is added in place of ``noise_std``, uniform from 0 on; 0: none.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        value_clip: largest absolute element of the gradient, limited before its norm; 0 for no limit.
        nll_weight: weight of the negative log-likelihood in bits per dimension.
        pixel_weight: weight of the L1 distance of images decoded from zeros; 0 leaves it out.
        feature_weight: weight of the L1 distance of VGG features of samples; 0 leaves it out.
        adversarial_weight: weight of the loss that a discriminator gives samples; 0 leaves it out.
        carry_gradient: add the clipped gradient of ``pixel_weight`` to that of the next step's likelihood.
    """

    steps: int = 200_000
    batch_size: int = 12
    lr: float = 2e-4
    encoder_frozen: float = 0.5
    noise_std: float = PAPER_NOISE_STD
    milestones: list[float] = field(default_factory=_usual_milestones)
    beta2: float = 0.999
    noise_width: float = 0.0
    gradient_clip: float = 10.0
    value_clip: float = 0.0
    nll_weight: float = 1.0
    pixel_weight: float = 0.0
    feature_weight: float = 0.0
    adversarial_weight: float = 0.0
    carry_gradient: bool = False

    @property
    def sees_samples(self) -> bool:
        """Whether a loss looks at samples."""
        return bool(self.feature_weight or self.adversarial_weight)

    @property
    def is_plain(self) -> bool:
        """Whether a step is one update by the likelihood alone, whose gradient only its norm limits."""
        return self.nll_weight == 1 and not (self.value_clip or self.pixel_weight or self.sees_samples)
