"""A training process of its own: ``python _process.py '{"config": ..., "output": ..., ...}'``, also under torchrun."""

from __future__ import annotations

import json
import sys

from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model

if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    train_model(TrainingConfig(**arguments.pop("config")), accelerator="cpu", **arguments)
