"""The latents of samples: seeded, so that a sample depends on neither its batch nor the number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_latents", "temperatures_of"]


def temperatures_of(temperature: float | Sequence[float], latents: int) -> list[float]:
    """One temperature for every latent.

    Raises:
        ValueError: a temperature that is negative or not finite, or the wrong number of them.
    """
    given = [float(temperature)] * latents if isinstance(temperature, int | float) else list(temperature)
    if len(given) != latents:
        raise ValueError(f"temperature must be a number or {latents} numbers, one a latent, got {len(given)}")
    for value in given:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {value}")
    return given


def draw_latents(
    shapes: Sequence[tuple[int, int, int]],
    samples: Sequence[int],
    temperature: float | Sequence[float],
    seed: int,
    attempt: int = 0,
) -> list[Tensor]:
    """Latents of samples, (number, C, H, W) each, float32, on the CPU: normal, of the given standard deviation.

    Args:
        shapes: of the latents.
        samples: their indices, from 0, less than 2^20.
        temperature: one number, or one a latent.
        seed: in 0..2^31 - 1.
        attempt: other latents for each, at most 2^10.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in 0..2^31 - 1, got {seed}")
    temperatures = temperatures_of(temperature, len(shapes))
    # one stream a sample; its number is mixed into the seed by arithmetic that never collides
    generators = [torch.Generator().manual_seed(attempt * 2**51 + seed * 2**20 + index) for index in samples]
    return [
        torch.stack([value * torch.randn(shape, generator=generator) for generator in generators])
        for value, shape in zip(temperatures, shapes, strict=True)
    ]
