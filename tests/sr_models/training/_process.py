"""A training process of its own: ``python _process.py '{"config": ..., "output": ..., ...}'``, also under torchrun.

With ``"spoil": [rank, step]`` the loss of this process in this step is NaN.
"""

from __future__ import annotations

import json
import math
import os
import sys

from torch import Tensor

from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective
from sr_models.training.run import train_model


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
    rank, step = given.pop("spoil", (None, None))
    if str(rank) == os.environ["RANK"]:
        spoil(step)
    train_model(TrainingConfig(**given.pop("config")), accelerator="cpu", **given)
