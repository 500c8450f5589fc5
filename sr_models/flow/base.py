"""The image that a flow of the residual adds to what it models."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

__all__ = ["BASES", "Base", "add_base", "check_base", "enlarge_bicubic"]

#: What the flow leaves to a plain function of the low resolution: nothing, its bicubic enlargement, or the encoder's
#: image.
Base: TypeAlias = Literal["none", "bicubic", "image"]
BASES: tuple[str, ...] = get_args(Base)

#: The cubic kernel is 0 at distances of 2 and more: five pixels are within its reach from anywhere in the middle one.
_REACH = 2


def check_base(base: str) -> None:
    """Raise ``ValueError`` unless ``base`` is one of :data:`BASES`."""
    if base not in BASES:
        raise ValueError(f"base must be one of {', '.join(map(repr, BASES))}, got {base!r}")


def enlarge_bicubic(image: Tensor, scale: int) -> Tensor:
    """Enlarge images as MATLAB's ``imresize`` does, but neither clip nor round.

    It agrees with :func:`sr_models.io.resize.imresize` on floating-point images. It is differentiable, on any device,
    and computes in the dtype of the images under autocast too.

    Args:
        image: (B, C, h, w), floating point.
        scale: enlargement, a whole number of at least 1.

    Returns:
        (B, C, scale h, scale w).
    """
    weights = _phase_weights(scale, image)
    return _enlarge_rows(_enlarge_rows(image, weights).mT, weights).mT


def add_base(images: Tensor, base: Tensor) -> Tensor:
    """Add the base of B images to M successive samples (B M, 3, H, W) of each, in place where no gradient flows."""
    base = base[:, None]
    samples = images.unflatten(0, (len(base), len(images) // max(len(base), 1)))
    return (samples + base if torch.is_grad_enabled() else samples.add_(base)).flatten(0, 1)


def _enlarge_rows(image: Tensor, weights: Tensor) -> Tensor:
    count = image.shape[2]
    # pixels beyond the border mirror those within, the border pixel being repeated
    mirrored = torch.arange(-_REACH, count + _REACH, device=image.device) % (2 * count)
    rows = image[:, :, torch.minimum(mirrored, 2 * count - 1 - mirrored)]
    parts = [
        rows[:, :, tap : tap + count, None] * taps[:, None] for tap, taps in enumerate(weights.unbind(1))
    ]  # no convolution, which autocast would compute in half precision
    return torch.stack(parts).sum(0).flatten(2, 3)


def _phase_weights(scale: int, image: Tensor) -> Tensor:
    """Return the weights (scale, 5) of the five nearest pixels for every one of the pixels that replace a pixel."""
    # computed on the device: a copy to it would wait, and cannot be part of a CUDA graph
    dtype = torch.promote_types(image.dtype, torch.float32)
    phases = torch.arange(scale, dtype=dtype, device=image.device)
    taps = torch.arange(-_REACH, _REACH + 1, dtype=dtype, device=image.device)
    d = ((phases[:, None] + 0.5) / scale - 0.5 - taps).abs()
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return torch.where(d <= 1, near, torch.where(d <= 2, far, torch.zeros_like(d))).to(image.dtype)
