"""What every super-resolution flow is: an encoder and levels of invertible layers that encode, decode and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow import FlowSequential, bits_per_dim, standard_normal_log_prob
from sr_models.encoder import RRDBEncoder

__all__ = ["Encoding", "SuperResolutionFlow"]


@dataclass(frozen=True)
class Encoding:
    """A batch of images as a flow sees them.

    Attributes:
        latents: in encode order, standardised: their prior is N(0, I).
        log_det: (B,), pure log |det| of the map from image to latents.
        log_prior: (B,), log N(latents; 0, I).
        dims: number of elements of one image.
    """

    latents: list[Tensor]
    log_det: Tensor
    log_prior: Tensor
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """(B,), log-density of the images (scaled to [0, 1]) given their low-resolution images."""
        return self.log_det + self.log_prior

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,), negative log-likelihood in bits per dimension of images scaled to [0, 1]; a third of the bits per pixel
        that the SR-flow papers' code reports. For 8-bit values add 8."""
        return bits_per_dim(self.log_prob, self.dims)


class SuperResolutionFlow(nn.Module):
    r"""Conditional flow p(hr | lr): an encoder computes features of the low-resolution image, and level l of the flow
    works at 1 / 2^l of the high resolution with the features of that resolution as context
    (Lugmayr et al., SRFlow, 2020, figure 2).

    Args:
        scale: enlargement, a power of two.
        encoder: features of the low-resolution image.
        levels: one :class:`invflow.FlowSequential` a level, each beginning with a squeeze by 2.

    Attributes:
        name: of the registered model, set by :func:`sr_models.create`.
        config: of the registered model, set by :func:`sr_models.create`.
    """

    name: str
    config: Any

    def __init__(self, scale: int, encoder: RRDBEncoder, levels: Sequence[FlowSequential]) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = encoder
        self.levels = nn.ModuleList(levels)

    def _levels(self) -> list[FlowSequential]:
        return [cast(FlowSequential, level) for level in self.levels]

    def contexts(self, lr: Tensor) -> list[Tensor]:
        """The features that condition each level, from first to last: (B, context channels, H/2^l, W/2^l)."""
        factors = [self.scale // 2 ** (position + 1) for position in range(len(self.levels))]
        maps = self.encoder(lr, factors)
        return [maps[factor] for factor in factors]

    def encode(self, hr: Tensor, lr: Tensor) -> Encoding:
        """Latents and likelihood of high-resolution images.

        Args:
            hr: (B, 3, scale h, scale w) in [0, 1].
            lr: (B, 3, h, w) in [0, 1].

        Raises:
            ValueError: shapes that do not fit each other, or a size that the levels cannot halve.
            TypeError: a dtype other than the model's.
        """
        self._check(lr, "lr")
        self._check(hr, "hr")
        expected = (lr.shape[0], 3, lr.shape[2] * self.scale, lr.shape[3] * self.scale)
        if hr.shape != expected:
            raise ValueError(
                f"hr must have shape {expected} for lr of shape {tuple(lr.shape)} at scale {self.scale}, "
                f"got {tuple(hr.shape)}"
            )
        latents: list[Tensor] = []
        log_det = hr.new_zeros(hr.shape[0])
        x = hr
        for level, context in zip(self._levels(), self.contexts(lr), strict=True):
            z, level_log_det = level(x, context)
            log_det = log_det + level_log_det
            *factored, x = z if isinstance(z, list) else [z]
            latents += factored
        latents.append(x)
        return Encoding(latents, log_det, standard_normal_log_prob(latents), hr[0].numel() if len(hr) else 0)

    def decode(self, latents: Sequence[Tensor], lr: Tensor) -> Tensor:
        """The image (B, 3, scale h, scale w), unclamped, of the given latents (in encode order).

        Raises:
            ValueError: latents of the wrong number or shape.
        """
        self._check(lr, "lr")
        shapes = self.latent_shapes(lr.shape[2], lr.shape[3])
        expected = [(lr.shape[0], *shape) for shape in shapes]
        if [tuple(latent.shape) for latent in latents] != expected:
            raise ValueError(f"latents must have shapes {expected}, got {[tuple(z.shape) for z in latents]}")
        return self._decode(latents, self.contexts(lr))

    def _decode(self, latents: Sequence[Tensor], contexts: Sequence[Tensor]) -> Tensor:
        *rest, x = latents
        for level, context in zip(reversed(self._levels()), reversed(contexts), strict=True):
            extra = level.num_latents - 1
            rest, factored = rest[: len(rest) - extra], rest[len(rest) - extra :]
            x, _ = level.inverse([*factored, x], context)
        return x

    def latent_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Shapes (C, H, W) of the latents, in encode order, for a low-resolution image of this size."""
        channels, height, width = 3, height * self.scale, width * self.scale
        shapes = []
        for level in self._levels():
            channels, height, width = channels * 4, height // 2, width // 2
            if level.num_latents > 1:
                factored = round(channels / 2)
                shapes.append((factored, height, width))
                channels -= factored
        return [*shapes, (channels, height, width)]

    @torch.no_grad()
    def sample(self, lr: Tensor, n: int = 1, *, temperature: float = 0.9, seed: int = 0) -> Tensor:
        """Samples of p(hr | lr), clamped to [0, 1].

        The latents of sample j depend on ``seed``, j and the image's size only, not on the batch: the same image gives
        the same samples alone and in a batch.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            n: samples an image, at least 1.
            temperature: standard deviation of the latents, at least 0; 0 gives the image of the zero latents.
            seed: in 0..2^31 - 1.

        Returns:
            (B, n, 3, scale h, scale w).
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed must be in 0..2^31 - 1, got {seed}")
        self._check(lr, "lr")
        contexts = self.contexts(lr)
        shapes = self.latent_shapes(lr.shape[2], lr.shape[3])
        samples = []
        for index in range(n):
            # one stream a sample; its number is mixed into the seed by arithmetic that never collides
            generator = torch.Generator().manual_seed(seed * 2**20 + index)
            latents = [
                (temperature * torch.randn(shape, generator=generator)).to(lr).expand(len(lr), *shape)
                for shape in shapes
            ]
            samples.append(self._decode(latents, contexts).clamp(0, 1))
        return torch.stack(samples, 1)

    def _check(self, image: Tensor, name: str) -> None:
        if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[1] != 3:
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"{name} must have shape (batch, 3, height, width), got {given}")
        dtype = self.encoder.conv_first.weight.dtype
        if image.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} like the model, got {image.dtype}")
