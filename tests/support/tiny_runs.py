"""A tiny model, and the checkpoints of a run that trains it."""

from __future__ import annotations

import json
from typing import Any

import torch

import sr_models
from sr_models.checkpoints.files import describe_file

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


def tiny_model(seed: int = 0, **changes: Any) -> sr_models.SuperResolutionFlow:
    """A tiny SRFlow-DA whose actnorms are initialised and whose weights are those of the seed."""
    torch.manual_seed(seed)
    model = sr_models.create("srflow-da", scale=4, **{**TINY, **changes})
    model.train().encode(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4))
    return model.eval()


def content_of(model: sr_models.SuperResolutionFlow, step: int = 3, *, average: bool = True) -> dict[str, Any]:
    """The content of a checkpoint of training after ``step`` steps.

    ``model`` gives the averaged weights; those of the last step are one larger.
    """
    averaged = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    state = {name: tensor + 1 if name in averaged else tensor for name, tensor in model.state_dict().items()}
    return {
        "format": 1,
        "step": step,
        "description": json.dumps(describe_file(model)),
        "model": state if average else model.state_dict(),
        "average": averaged if average else None,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "skipped": 0,
    }
