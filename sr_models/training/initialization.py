"""The initialisation of a flow's actnorms from a batch that varies: a blank one would leave scales that fit nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from sr_models.data.crops import RandomCrops
from sr_models.data.sampler import crops_of_step
from sr_models.randomness import random_stream
from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective
from sr_models.training.state import Content, gather, model_of

__all__ = ["initialize_flow", "varied_batch", "whole_batch"]

#: Standard deviation within the crops, images in [0, 1], with which a batch varies enough. Photographs have 0.1 to 0.3.
_ENOUGH = 0.05
#: Number of further crops that are tried.
_TRIES = 256


def whole_batch(
    step: int, config: TrainingConfig, data: RandomCrops, device: torch.device
) -> tuple[range, dict[str, Tensor]]:
    """Return the indices of a step's crops, over all processes and parts, and their ``hr`` and ``lr`` on a device."""
    crops = crops_of_step(step, config.recipe.batch_size)
    batch = default_collate([data[crop] for crop in crops])
    return crops, {name: batch[name].to(device) for name in ("hr", "lr")}


@torch.no_grad()
def initialize_flow(content: Content, config: TrainingConfig, data: RandomCrops, device: torch.device) -> Content:
    """Let the actnorms that are fresh take their values from the whole batch of the first likelihood step.

    What Adam knows of the gradients of the pretraining is forgotten: those of the likelihood are of another size.

    Args:
        content: state of the run before that step.
        config: settings of the run.
        data: crops of the run.
        device: computes the batch.

    Returns:
        The parts of the state that are others than before: ``model``, ``average`` and ``optimizer``.
    """
    model = model_of(content, average=False).train().to(device)
    crops, batch = whole_batch(content["step"], config, data, device)
    batch = varied_batch(batch, data)
    Objective(model, config)(batch["hr"], batch["lr"], crops, "nll")
    average = content["average"]
    if average is not None:
        # what the flow was before it had begun is nothing to average with
        average = {**average, **gather(model.parameters_of_parts()[1])}
    return {"model": gather(model.state_dict()), "average": average, "optimizer": {}}


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
