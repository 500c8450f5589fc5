"""``sr-models train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["add_arguments", "run"]


def run(output: str, accelerator: str, workers: int, config: Any, **settings: Any) -> None:
    """Train a model on a folder of photographs, or go on with the interrupted run in OUTPUT.

    OUTPUT receives the settings, logs for TensorBoard, checkpoints and, at the end, model.safetensors with model.json.
    The same command takes an interrupted run up where it stopped; other settings are refused.

    Example:
        sr-models train --model srflow-da --images photographs/train --val_images photographs/val --output runs/mine
        sr-models train --config run.yaml --overrides '{hidden_channels: 32}'
    """
    from sr_models.training.config import TrainingConfig
    from sr_models.training.run import train_model

    # what is in the files of --config stands among the settings
    path = train_model(TrainingConfig(**settings), output, accelerator=accelerator, workers=workers)
    print(f"wrote {path}")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the settings of a training run and where and how it runs."""
    from sr_models.training.config import TrainingConfig

    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--output", type=str, required=True, help="folder of the run, created if needed")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, gpu, ... (Lightning's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare crops")
    parser.add_class_arguments(TrainingConfig)
