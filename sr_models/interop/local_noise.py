r"""Samples whose noise depends on the pixels around, for programs that cut images into tiles and do not say where.

Noise that is drawn in order depends on the size of a tile, and tiles do not fit each other. Here the key of a
low-resolution pixel is a hash of the 8-bit values of the 3 x 3 pixels around it. A latent's element is a normal number
that depends on the seed, on its place within the latents of that pixel, and on the key. Pixels inside two tiles
therefore have the same noise in both. The price: equal surroundings, as in a sky without grain, have equal noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_models.flow.explosions import Watch
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.sampling import draw_samples

__all__ = ["local_latents", "sample_locally"]

#: Odd factors of a multiplicative hash in 64 bits (Steele et al., *Fast Splittable Pseudorandom Number Generators*).
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB)


@torch.no_grad()
def sample_locally(model: SuperResolutionFlow, lr: Tensor, temperature: float, seed: int) -> Tensor:
    """Draw one sample of every image, with the noise of :func:`local_latents`. Activations are limited.

    Args:
        model: in evaluation mode.
        lr: (B, 3, h, w) in [0, 1].
        temperature: standard deviation of the latents.
        seed: in 0..2^31 - 1.

    Returns:
        (B, 3, scale h, scale w), clamped to [0, 1].
    """
    images = draw_samples(
        _LocalNoise(model, temperature, seed),
        lr,
        1,
        temperature=0.0,
        seed=0,
        on_explode="clamp",
        tile=None,
        graph=False,
        precision="fp32",
        consistency="none",
        on_progress=None,
    )
    return images[:, 0]


class _LocalNoise:
    """A decoder that puts its own noise in the place of the latents that it is given."""

    def __init__(self, model: SuperResolutionFlow, temperature: float, seed: int) -> None:
        self.scale, self.lr_multiple = model.scale, model.lr_multiple
        self.drawn_shapes, self.layer_pixels = model.drawn_shapes, model.layer_pixels
        self._model, self._temperature, self._seed = model, temperature, seed

    def decode_samples(self, latents: list[Tensor], lr: Tensor, watch: Watch, graph: bool | None) -> Tensor:
        drawn = local_latents(lr, [tuple(latent.shape[1:]) for latent in latents], self._seed)
        latents[:] = [latent.mul_(self._temperature) for latent in drawn]
        return self._model.decode_samples(latents, lr, watch, graph)


def local_latents(lr: Tensor, shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    """Make standard normal latents that depend on the pixels around only.

    Args:
        lr: (B, 3, h, w) in [0, 1].
        shapes: (C, H, W) of every latent; H is a multiple or a divisor of h, and W of w by the same factor.
        seed: in 0..2^31 - 1.

    Returns:
        (B, C, H, W) in the dtype of ``lr``, for every shape.

    Example:
        >>> whole = torch.rand(1, 3, 8, 8)
        >>> (one,), (other,) = (local_latents(x, [(2, *x.shape[2:])], seed=0) for x in (whole, whole[..., 2:]))
        >>> bool((one[..., 3:] == other[..., 1:]).all())
        True
    """
    keys = _keys(lr)
    height = lr.shape[2]
    latents = []
    for number, (channels, rows, _) in enumerate(shapes):
        stream = (seed * 1024 + number) * 0x632BE5 & 0x7FFFFFFFFFFFFFFF
        if rows >= height:
            factor = rows // height
            places = torch.arange(channels * factor**2, device=lr.device)
            latent = F.pixel_shuffle(_normal(_mixed(keys + stream), places), factor)
        else:
            factor = height // rows
            joined = torch.zeros_like(keys[..., ::factor, ::factor])
            for i in range(factor):
                for j in range(factor):
                    joined = _mixed(joined + keys[..., i::factor, j::factor])
            latent = _normal(_mixed(joined + stream), torch.arange(channels, device=lr.device))
        latents.append(latent.to(lr.dtype))
    return latents


def _keys(lr: Tensor) -> Tensor:
    """Hash the 3 x 3 pixels around every pixel to (B, 1, h, w), int64."""
    height, width = lr.shape[2:]
    values = F.pad((lr.detach().float() * 255).round(), (1, 1, 1, 1), mode="replicate").long()
    keys = torch.zeros_like(values[:, :1, :height, :width])
    for i in range(3):
        for j in range(3):
            for channel in range(3):
                keys = _mixed(keys + values[:, channel : channel + 1, i : i + height, j : j + width])
    return keys


def _mixed(keys: Tensor) -> Tensor:
    """Spread every bit of 64-bit keys over all bits; products wrap around."""
    for factor, shift in zip(_FACTORS, (30, 27, 31), strict=True):
        keys = (keys + 0x1E3779B97F4A7C15) * factor
        # the shift of a negative number brings ones, which are cut off
        keys = keys ^ ((keys >> shift) & ((1 << (64 - shift)) - 1))
    return keys


def _normal(keys: Tensor, places: Tensor) -> Tensor:
    """Return normal numbers (B, places, h, w), float32, of keys (B, 1, h, w), by the method of Box and Muller."""
    mixed = _mixed(keys + places.view(1, -1, 1, 1) * 0x3C6EF372FE94F82B)
    first = ((mixed & 0xFFFFFF).double() + 1) / (1 << 24)
    second = ((mixed >> 32) & 0xFFFFFF).double() / (1 << 24)
    return (torch.sqrt(-2 * first.log()) * torch.cos(2 * math.pi * second)).float()
