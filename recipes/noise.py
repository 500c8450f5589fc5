"""The likelihood of crops with the noise of training, for all models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import noisy_pair
from sr_models.registry import recipe_of

__all__ = ["likelihood", "noisy"]


def noisy(model: SuperResolutionFlow, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the noise of the preset ``tiny`` of a model, and return the arguments of its ``encode``.

    Random numbers come from torch's generator: that of the device, or of the CPU for a noise-conditional model.

    Args:
        model: what is trained.
        hr: (B, 3, H, W) in [0, 1].
        lr: (B, 3, h, w) in [0, 1].
    """
    if not model.noise_channels:
        std = recipe_of(model.name, preset="tiny").noise_std
        return hr + std * torch.randn_like(hr), lr, None
    return noisy_pair(model, hr, lr, 0.0, [torch.default_generator] * len(hr))


def likelihood(model: SuperResolutionFlow) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the loss of noisy crops: mean bits per dimension."""
    return lambda hr, lr, noise: model.encode(hr, lr, noise).bits_per_dim.mean()
