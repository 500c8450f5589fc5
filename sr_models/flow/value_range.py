"""Noticing images in 0..255 where images in [0, 1] are meant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invflow._numerics import reads_freely
from invflow.ops._transforms import has_values, is_intercepted

__all__ = ["check_range", "check_range_once"]

#: No image in [0, 1] comes near it, noise included. Only an almost black image in 0..255 stays below.
LARGEST = 16.0


def check_range(image: Tensor, name: str, *, finite: bool = False) -> None:
    """Check that an image is roughly in [0, 1].

    Slightly larger values are fine, since images with noise are encoded in training. Values that are not finite are
    left to others. Nothing is checked while a compiler, tracer or transform looks on, or a CUDA graph is captured.

    Args:
        image: a tensor of any shape. Its values are waited for if it is on an accelerator.
        name: name in the message.
        finite: check also that all values are finite.

    Raises:
        ValueError: values that only images in 0..255 have, or that are not finite.
    """
    if torch.compiler.is_compiling() or is_intercepted() or not has_values(image) or not image.numel():
        return
    if image.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    # joined, so that an accelerator is waited for once
    low, high = torch.stack(list(torch.aminmax(image.detach()))).tolist()
    if finite and not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if LARGEST < max(-low, high) < math.inf:
        raise ValueError(
            f"{name} must have values in [0, 1], got values in {low:.4g}..{high:.4g}; divide 8-bit values by 255"
        )


def check_range_once(image: Tensor, name: str, looked_at: set[str]) -> None:
    """Check as :func:`check_range`, on an accelerator only the first image of a name.

    Waiting for an accelerator at every training step would be dear, and one look finds images in 0..255.

    Args:
        image, name: as there.
        looked_at: names of images that were looked at on an accelerator; this one is added.

    Raises:
        ValueError: as there.
    """
    if reads_freely(image):
        check_range(image, name)
    elif not torch.compiler.is_compiling() and name not in looked_at:
        check_range(image, name)
        looked_at.add(name)
