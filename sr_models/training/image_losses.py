"""Losses of images that a model decodes in training: of pixels, of features of a network, and of a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sr_models.evaluation.metrics.vgg import VGGFeatures, load_vgg
from sr_models.training.adversary import Adversary
from sr_models.training.config import TrainingConfig

__all__ = ["ImageLosses"]


class ImageLosses:
    """Losses of decoded images beside the likelihood. Each takes an update of its own, as in HCFlow's training.

    Args:
        config: settings of the run.
        device: where they compute.
        state: what :meth:`state` returned; ``None`` at the start.

    Attributes:
        names: those that the settings ask for, in order: ``"pixel"``, of images decoded from zeros, and ``"sample"``.

    Raises:
        FileNotFoundError: no weights of VGG16, where they are needed.
        ValueError: weights that cannot be read.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, state: dict[str, Any] | None = None) -> None:
        recipe = config.recipe
        self._recipe = recipe
        self.names = ["pixel"] * bool(recipe.pixel_weight) + ["sample"] * recipe.sees_samples
        self._features: VGGFeatures | None = None
        if recipe.feature_weight:
            self._features = VGGFeatures(load_vgg(config.feature_weights)).to(device)
        self.adversary: Adversary | None = None
        if recipe.adversarial_weight:
            self.adversary = Adversary(config.crop, config.seed, device, state)

    def __call__(self, name: str, images: Tensor, hr: Tensor) -> Tensor:
        """Return the weighted loss of decoded images (B, 3, H, W) in [0, 1] of the crops ``hr``, a scalar."""
        recipe = self._recipe
        if name == "pixel":
            return recipe.pixel_weight * (images - hr).abs().mean()
        total = images.new_zeros(())
        if self._features is not None:
            with torch.no_grad():
                wanted = self._features(hr)
            total = total + recipe.feature_weight * (self._features(images) - wanted).abs().mean()
        if self.adversary is not None:
            total = total + recipe.adversarial_weight * self.adversary.loss(images)
        return total

    def state(self) -> dict[str, Any] | None:
        """Return all that changes in training, on the CPU; ``None`` if nothing does."""
        return None if self.adversary is None else self.adversary.state()
