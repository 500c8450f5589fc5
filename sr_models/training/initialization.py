"""The batch from which the actnorms of a flow initialise: blank crops would leave them scales that fit nothing else."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sr_models.data.crops import RandomCrops
from sr_models.randomness import random_stream

__all__ = ["varied_batch"]

#: Standard deviation within the crops, images in [0, 1], with which a batch varies enough. Photographs have 0.1 to 0.3.
_ENOUGH = 0.05
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
    spread = _spread(hr, data.scale)
    for attempt in range(_TRIES):
        if bool((spread.square().mean(0).sqrt() >= _ENOUGH).all()):
            break
        pair = data.draw(random_stream(data.seed, "initialization", attempt))
        found, present = _spread(pair["hr"][None].to(hr), data.scale)[0], spread.clamp(max=_ENOUGH).sum(1)
        least = int(present.argmin())
        if found.clamp(max=_ENOUGH).sum() > present[least]:
            hr[least], lr[least], spread[least] = pair["hr"], pair["lr"], found
    return {"hr": hr, "lr": lr}


def _spread(hr: Tensor, scale: int) -> Tensor:
    """Return the standard deviation (B, 3 scale^2) of every channel that a squeeze to the low resolution makes.

    Not of the colours: a crop that is blank but for its last column leaves half of the channels blank.
    """
    return F.pixel_unshuffle(hr, scale).std((2, 3), correction=0)
