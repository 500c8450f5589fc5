"""A training process of its own: ``python _process.py '{"config": ..., "output": ..., ...}'``, also under torchrun.

With ``"spoil": {rank: step}`` the loss of this process in this step is NaN.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective
from sr_models.training.run import train_model


def record_gradients(output: Path) -> Callable[[int, Objective], None]:
    """A callback that keeps the gradients of every step, after clipping, in ``gradients.pt``."""
    steps: list[dict[str, torch.Tensor]] = []

    def record(step: int, objective: Objective) -> None:
        gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
        steps.append({n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in gradients.items()})
        if not torch.distributed.is_initialized() or not torch.distributed.get_rank():
            torch.save(steps, output / "gradients.pt")

    return record


def spoil(step: int) -> None:
    forward, calls = Objective.forward, []

    def forward_or_nan(objective: Objective, *arguments: object) -> Tensor:
        loss = forward(objective, *arguments)
        if loss.requires_grad:
            calls.append(1)
            loss = loss * (math.nan if len(calls) == step + 1 else 1.0)
        return loss

    Objective.forward = forward_or_nan


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    spoiled = given.pop("spoil", {})
    if os.environ["RANK"] in spoiled:
        spoil(spoiled[os.environ["RANK"]])
    callbacks = [record_gradients(Path(given["output"]))]
    train_model(TrainingConfig(**given.pop("config")), accelerator="cpu", callbacks=callbacks, **given)
