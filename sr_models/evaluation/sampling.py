"""Samples of a model for its evaluation: their settings, and the images that files would hold."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from sr_models.checkpoints.files import weights_fingerprint
from sr_models.flow.consistency import check_consistency
from sr_models.flow.explosions import check_on_explode
from sr_models.flow.latents import temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.tiling import check_tile
from sr_models.io.images import to_tensor, to_uint8
from sr_models.seeds import check_seed

__all__ = ["check_sampling", "draw_samples", "sampling_settings"]


@torch.no_grad()
def draw_samples(model: SuperResolutionFlow, lr: np.ndarray, n: int, **options: Any) -> list[np.ndarray]:
    """Draw samples of an image.

    Args:
        model: in evaluation mode.
        lr: (h, w, 3), uint8.
        n: their number.
        options: those of :meth:`SuperResolutionFlow.sample`.

    Returns:
        (scale h, scale w, 3), uint8, each.
    """
    like = next(model.parameters())
    return [to_uint8(sample) for sample in model.sample(to_tensor(lr)[None].to(like), n, **options)[0]]


def sampling_settings(
    model: SuperResolutionFlow,
    samples: int,
    seed: int,
    on_explode: str,
    tile: int | None,
    lr_images: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """Return what determines samples at a temperature, for a file that keeps what they gave: plain values by name."""
    return {
        "model": model.name,
        "weights": weights_fingerprint(model),
        "scale": model.scale,
        "n": samples,
        "seed": seed,
        "on_explode": on_explode,
        "tile": tile,
        "lr_images": "reduced" if lr_images is None else "given",
    }


def check_sampling(
    model: SuperResolutionFlow,
    samples: int,
    temperature: float,
    seed: int,
    on_explode: str,
    tile: int | None,
    consistency: str,
) -> None:
    """Check the arguments of all samples, so that a mistake in them is not taken for a fault of an image."""
    if samples < 1:
        raise ValueError(f"n must be at least 1, got {samples}")
    temperatures_of(temperature, len(model.drawn_shapes(model.lr_multiple, model.lr_multiple)))
    check_seed(seed)
    check_on_explode(on_explode)
    check_consistency(consistency)
    check_tile(tile, None)
