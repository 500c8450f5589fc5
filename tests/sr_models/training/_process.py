"""A training process of its own: ``python _process.py '{"config": ..., "output": ..., ...}'``, also under torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
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


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    callbacks = [record_gradients(Path(arguments["output"]))]
    train_model(TrainingConfig(**arguments.pop("config")), accelerator="cpu", callbacks=callbacks, **arguments)
