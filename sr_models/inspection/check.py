"""Check of a model's inverse: its round-trip error, and the layers that amplify most."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow import FlowSequential
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.decoding import Place
from sr_models.flow.model import SuperResolutionFlow
from sr_models.randomness import random_stream

__all__ = ["Amplification", "ModelCheck", "check_model"]

_STEP = 1e-6


@dataclass(frozen=True)
class Amplification:
    """Amplification of a small error by the inverse of a layer.

    Attributes:
        level: number of the level, from 1, the finest.
        layer: number of the layer within the level, from 0, in encode order.
        kind: name of the layer's class.
        factor: largest change of an element of the result, relative to a change of random sign of every element given.
    """

    level: int
    layer: int
    kind: str
    factor: float


@dataclass(frozen=True)
class ModelCheck:
    """Result of :func:`check_model`.

    Attributes:
        round_trip: largest difference between an image in [0, 1] and the image decoded from its latents, in the model's
            dtype.
        layers: amplification of every layer, in the order of decoding.
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
        size: side of the low-resolution image, a multiple of ``model.lr_multiple``.
        seed: seed of image and errors, in 0..2^31 - 1.

    Returns:
        The round-trip error, and the amplification of every layer.

    Raises:
        ValueError: a size that the levels cannot halve.
    """
    generator = random_stream(seed, "check")
    coarse = torch.rand(1, 3, 4, 4, generator=generator, dtype=torch.float32, device="cpu")
    lr = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    hr = F.interpolate(lr, scale_factor=model.scale, mode="bicubic")
    hr = (hr + 0.02 * torch.randn(hr.shape, generator=generator, dtype=torch.float32, device="cpu")).clamp(0, 1)
    like = next(model.parameters())
    given = hr.to(like), lr.to(like)
    round_trip = (model.decode(model.encode(*given).latents, given[1]) - given[0]).abs().max()

    exact = copy.deepcopy(model).cpu().double()
    layers: list[Amplification] = []

    def invert(flow: FlowSequential, latents: list[Tensor], context: LevelContext | None, place: Place) -> Tensor:
        x, given = latents.pop(), None if context is None else context.joined()
        for step in flow.walk_inverse(latents):
            moved = [_moved(latent, generator) for latent in (*step.leaving, x)]
            changed, _ = step.layer.inverse(moved if step.leaving else moved[0], given)
            x, _ = step.layer.inverse(step.input(x), given)
            factor = ((changed - x).abs().max() / _STEP).item()
            layers.append(Amplification(place.level, place.before + step.position, type(step.layer).__name__, factor))
        return x

    exact.walk_decode(invert, list(exact.encode(hr.double(), lr.double()).latents), lr.double())
    return ModelCheck(round_trip.item(), layers)


def _moved(latent: Tensor, generator: torch.Generator) -> Tensor:
    """Add a small error of random sign to every element."""
    signs = torch.randn(latent.shape, generator=generator, dtype=latent.dtype, device="cpu").sign()
    return latent + _STEP * signs
