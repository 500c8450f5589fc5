"""Images and noise that a flow is called with: their checks, and noise of a context's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_image", "check_latents", "check_noise", "check_pair", "resized_noise"]


def check_image(image: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless it is a batch of images, and ``TypeError`` for a dtype other than the model's."""
    if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[1] != 3:
        given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{name} must have shape (batch, 3, height, width), got {given}")
    if image.shape[2] < 1 or image.shape[3] < 1:
        raise ValueError(f"{name} must have at least one pixel, got shape {tuple(image.shape)}")
    if image.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the model, got {image.dtype}")


def check_pair(hr: Tensor, lr: Tensor, scale: int) -> None:
    """Raise ``ValueError`` unless images ``hr`` have the size of ``lr`` (B, 3, h, w) enlarged."""
    expected = (lr.shape[0], 3, lr.shape[2] * scale, lr.shape[3] * scale)
    if hr.shape != expected:
        raise ValueError(
            f"hr must have shape {expected} for lr of shape {tuple(lr.shape)} at scale {scale}, got {tuple(hr.shape)}"
        )


def check_latents(latents: Sequence[Tensor], lr: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ``ValueError`` unless there are as many latents as shapes (C, H, W), one for each image of ``lr``."""
    expected = [(lr.shape[0], *shape) for shape in shapes]
    if [tuple(latent.shape) for latent in latents] != expected:
        raise ValueError(f"latents must have shapes {expected}, got {[tuple(z.shape) for z in latents]}")


def check_noise(noise: Tensor, lr: Tensor, channels: int, scale: int, model: str) -> None:
    """Raise ``ValueError`` unless a model takes noise, and noise of this shape.

    Args:
        noise: the noise.
        lr: (B, 3, h, w).
        channels: number of channels of the noise that the model takes.
        scale: its enlargement.
        model: its name.
    """
    if not channels:
        raise ValueError(f"noise must be None: {model} is not conditioned on noise")
    batch, height, width = lr.shape[0], lr.shape[2] * scale, lr.shape[3] * scale
    allowed = [(batch, 1, 1, 1), (batch, channels, height, width)]
    if tuple(noise.shape) not in allowed:
        raise ValueError(f"noise must have shape {allowed[0]} or {allowed[1]}, got {tuple(noise.shape)}")


def resized_noise(noise: Tensor, context: Tensor, channels: int) -> Tensor:
    """Return noise (B, channels, H, W) of the size of a context, from the noise of images or its standard deviation."""
    size = context.shape[2:]
    if noise.shape[2:] == (1, 1):
        return noise.expand(context.shape[0], channels, *size)
    return F.interpolate(noise, size=size, mode="bicubic")
