"""The batch from which the actnorms of a flow initialise: blank crops would leave them scales that fit nothing else."""

from __future__ import annotations

from torch import Tensor

from sr_models.randomness import random_stream
from sr_models.training.data import RandomCrops

__all__ = ["varied_batch"]

#: Standard deviation of a colour, images in [0, 1], with which a batch is varied enough. Photographs have 0.2 or more.
_ENOUGH = 0.1
#: Number of further crops that are tried.
_TRIES = 256


def varied_batch(batch: dict[str, Tensor], data: RandomCrops) -> dict[str, Tensor]:
    """Replace crops that hardly vary until the batch as a whole varies like photographs.

    A batch of photographs stays as it is. Otherwise up to 256 further crops are tried, each in the place of the crop
    that varies least, and only if it varies more. They are functions of the run's seed.

    Args:
        batch: ``hr`` (B, 3, H, W) and ``lr`` (B, 3, h, w).
        data: further crops of the same sizes.

    Returns:
        A batch of the same shapes, on the same device.
    """
    hr, lr = batch["hr"].clone(), batch["lr"].clone()
    variation = _variation(hr)
    for attempt in range(_TRIES):
        if bool((hr.std((0, 2, 3), correction=0) >= _ENOUGH).all()):
            break
        pair = data.draw(random_stream(data.seed, "initialization", attempt))
        found, least = _variation(pair["hr"][None].to(hr))[0], int(variation.argmin())
        if found > variation[least]:
            hr[least], lr[least], variation[least] = pair["hr"], pair["lr"], found
    return {"hr": hr, "lr": lr}


def _variation(hr: Tensor) -> Tensor:
    """Measure each crop: sum over its colours of the standard deviation, as far as it counts."""
    return hr.std((2, 3), correction=0).clamp(max=_ENOUGH).sum(1)
