"""How well a model's inverse inverts, and which layer amplifies most."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional as F

from invflow.layers import InvertibleLayer
from sr_models.flow.model import SuperResolutionFlow

__all__ = ["Amplification", "ModelCheck", "check_model"]

_STEP = 1e-6


@dataclass(frozen=True)
class Amplification:
    """What the inverse of a layer makes of a small error.

    Attributes:
        level: from 1, the finest.
        layer: from 0, in encode order, within the level.
        kind: name of the layer's class.
        factor: largest change of an element of the result, relative to a change of random sign of every element given.
    """

    level: int
    layer: int
    kind: str
    factor: float


@dataclass(frozen=True)
class ModelCheck:
    """What :func:`check_model` found.

    Attributes:
        round_trip: largest difference between an image in [0, 1] and the image decoded from its latents, in the model's
            dtype.
        layers: in the order of decoding.
    """

    round_trip: float
    layers: list[Amplification]

    @property
    def worst(self) -> Amplification:
        """The layer that amplifies most."""
        return max(self.layers, key=lambda layer: layer.factor)


@torch.no_grad()
def check_model(model: SuperResolutionFlow, *, size: int = 8, seed: int = 0) -> ModelCheck:
    """Encode and decode a smooth image with a little noise; measure the layers' inverses in float64 along the way.

    Args:
        model: in evaluation mode.
        size: of the low-resolution image, a multiple of ``model.lr_multiple``.
        seed: of image and errors.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    lr = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    hr = F.interpolate(lr, scale_factor=model.scale, mode="bicubic")
    hr = (hr + 0.02 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    like = next(model.parameters())
    given = hr.to(like), lr.to(like)
    round_trip = (model.decode(model.encode(*given).latents, given[1]) - given[0]).abs().max()

    exact = copy.deepcopy(model).cpu().double()
    latents, contexts = exact.encode(hr.double(), lr.double()).latents, exact.contexts(lr.double())
    x, layers = latents.pop(), []
    for level in reversed(range(len(exact.levels))):
        for position, layer in reversed(list(enumerate(cast(Any, exact.levels[level])))):
            z = [latents.pop(), x] if getattr(layer, "num_latents", 1) == 2 else [x]
            moved = [part + _STEP * torch.randn(part.shape, generator=generator).sign() for part in z]
            inverse = cast(InvertibleLayer, layer).inverse
            x, changed = (inverse(parts if len(parts) > 1 else parts[0], contexts[level])[0] for parts in (z, moved))
            factor = ((changed - x).abs().max() / _STEP).item()
            layers.append(Amplification(level + 1, position, type(layer).__name__, factor))
    return ModelCheck(round_trip.item(), layers)
