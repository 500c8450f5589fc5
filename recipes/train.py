"""Train a tiny model within a given time, on one GPU: ``python -m recipes.train PHOTOGRAPHS --output FOLDER``.

All photographs lie on the GPU, and a training step is one CUDA graph, so that the processor has next to nothing to do.
Learning rates follow the clock. The first part of the time trains the encoder's image with L1, the rest the flow. The
file is written once a minute. ``sr-models train --config recipes/srflow-da-tiny.yaml`` trains the same model on any
machine, in steps instead of minutes, and goes on after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sr_models
from recipes.clock import Schedule, train_by_clock
from recipes.crops import DeviceCrops, read_photographs
from recipes.noise import likelihood, noisy

__all__ = ["train"]

_DECAY = 0.999
_BETAS = (0.9, 0.99)
_WARMUP = 400


def train(
    photographs: Path,
    output: Path,
    *,
    minutes: float,
    batch: int,
    crop: int,
    lr: float,
    device: torch.device,
    name: str = "srflow-da",
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Train for some minutes and return the path of the model, whose weights are a moving average.

    Args:
        photographs: folder of PNG files.
        output: folder for the model.
        minutes: duration, but for reading and the first steps.
        batch: crops a step.
        crop: side of the crops.
        lr: largest learning rate.
        device: trains.
        name: a model that has a preset ``tiny``.
        overrides: fields of the architecture.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{name}-tiny.safetensors"
    crops = DeviceCrops(read_photographs(photographs, reduced_above=crop + 32), crop=crop, scale=4, device=device)
    model = sr_models.create(name, preset="tiny", **(overrides or {})).to(device)
    model = model.to(memory_format=torch.channels_last)

    def l1(hr: Tensor, lr: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return (model.image(lr) - hr).abs().mean()

    bits = likelihood(model)

    def nll(hr: Tensor, lr: Tensor, noise: Tensor | None) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return bits(hr, lr, noise)

    def noisy_crops() -> tuple[Tensor, Tensor, Tensor | None]:
        return noisy(model, *crops(batch))

    first, second = (Schedule(lr, floor, _WARMUP, 60 * minutes * share) for floor, share in ((0.3, 0.18), (0.01, 0.82)))
    encoder = list(model.parameters_of_parts()[0].values())
    train_by_clock(model, l1, lambda: crops(batch), encoder, first, file, decay=_DECAY, betas=_BETAS)
    with torch.no_grad():
        model.encode(*noisy_crops())  # the actnorms take their values
    every = list(model.parameters())
    train_by_clock(model, nll, noisy_crops, every, second, file, decay=_DECAY, betas=_BETAS)
    return file


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, help="folder of PNG files")
    parser.add_argument("--model", dest="name", default="srflow-da", help="srflow-da or ncsr")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    print(f"wrote {train(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    main()
