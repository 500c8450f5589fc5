"""Train a tiny model within a given time, on one GPU: ``python -m recipes.train PHOTOGRAPHS --output FOLDER``.

All photographs lie on the GPU, and a training step is one CUDA graph, so that the processor has next to nothing to do.
Learning rates follow the clock. The first part of the time trains the encoder's image with L1, the rest the flow. The
file is written once a minute. ``sr-models train --config recipes/srflow-da-tiny.yaml`` trains the same model on any
machine, in steps instead of minutes, and goes on after an interruption.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

import sr_models
from recipes.crops import DeviceCrops, read_photographs
from sr_models.checkpoints.files import save_model
from sr_models.flow.model import SuperResolutionFlow
from sr_models.registry import recipe_of
from sr_models.training.device_step import DeviceStep, fused_adam

__all__ = ["Schedule", "train"]

_DECAY = 0.999
_CLIP = 2.0
_BETAS = (0.9, 0.99)
#: Steps whose launches may wait in the queue of the device: the clock then speaks for the device.
_AHEAD = 25


class Schedule:
    """Learning rate of a phase: a linear warm-up in steps, then a half cosine in time.

    Args:
        peak: largest rate.
        floor: share of it that is left at the end.
        warmup: steps.
        seconds: duration of the phase.
    """

    def __init__(self, peak: float, floor: float, warmup: int, seconds: float) -> None:
        self._peak, self._floor, self._warmup, self.seconds = peak, floor, warmup, seconds

    def __call__(self, step: int, elapsed: float) -> float:
        """Return the rate of a step, counted from 0, that begins so many seconds after the phase."""
        fallen = 0.5 * (1 + math.cos(math.pi * min(elapsed / self.seconds, 1.0)))
        return self._peak * min(1.0, (step + 1) / self._warmup) * (self._floor + (1 - self._floor) * fallen)


def train(
    photographs: Path,
    output: Path,
    *,
    minutes: float,
    batch: int,
    crop: int,
    lr: float,
    device: torch.device,
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
        overrides: fields of the architecture.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "srflow-da-tiny.safetensors"
    crops = DeviceCrops(read_photographs(photographs, reduced_above=crop + 32), crop=crop, scale=4, device=device)
    model = sr_models.create("srflow-da", preset="tiny", **(overrides or {})).to(device)
    model = model.to(memory_format=torch.channels_last)
    std = recipe_of("srflow-da", preset="tiny").noise_std

    def l1(hr: Tensor, lr: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return (model.image(lr) - hr).abs().mean()

    def nll(hr: Tensor, lr: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model.encode(hr + std * torch.randn_like(hr), lr).bits_per_dim.mean()

    _phase(model, l1, crops, batch, list(model.encoder.parameters()), Schedule(lr, 0.3, 400, 60 * minutes * 0.18), file)
    with torch.no_grad():
        model.encode(*crops(batch))  # the actnorms take their values
    _phase(model, nll, crops, batch, list(model.parameters()), Schedule(lr, 0.01, 400, 60 * minutes * 0.82), file)
    return file


def _phase(
    model: SuperResolutionFlow,
    loss: Callable[[Tensor, Tensor], Tensor],
    crops: DeviceCrops,
    batch: int,
    trained: list[torch.nn.Parameter],
    schedule: Schedule,
    file: Path,
) -> None:
    """Train for the time of a schedule, and leave the averaged weights in the model and in the file."""
    device = trained[0].device
    optimizer = fused_adam([trained])
    for group in optimizer.param_groups:
        group["betas"] = _BETAS
    average = [parameter.detach().clone() for parameter in trained]
    graph = device.type == "cuda"
    step = DeviceStep(loss, optimizer, average=average, averaged=trained, clip=_CLIP, graph=graph)
    begin = written = monotonic()
    done = 0
    while (elapsed := monotonic() - begin) < schedule.seconds:
        # the first steps forget faster, as in sr_models.training.average
        decay = min(_DECAY, (1 + done) / (10 + done))
        outcome = step([crops(batch)], [schedule(done, elapsed)], 1 - decay)
        done += 1
        if done % _AHEAD == 0 and graph:
            torch.cuda.synchronize()
        if monotonic() - written > 60:
            print(f"{elapsed:.0f} s: step {done}, loss {float(outcome.loss):.4f}", flush=True)
            _write(model, trained, average, file)
            written = monotonic()
    print(f"{done} steps in {schedule.seconds:.0f} s", flush=True)
    with torch.no_grad():
        for parameter, mean in zip(trained, average, strict=True):
            parameter.copy_(mean)
    save_model(model, file)


def _write(model: SuperResolutionFlow, trained: list[torch.nn.Parameter], average: list[Tensor], file: Path) -> None:
    """Write the model with averaged weights, which it does not keep."""
    with torch.no_grad():
        own = [parameter.clone() for parameter in trained]
        for parameter, mean in zip(trained, average, strict=True):
            parameter.copy_(mean)
        save_model(model, file)
        for parameter, value in zip(trained, own, strict=True):
            parameter.copy_(value)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, help="folder of PNG files")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    print(f"wrote {train(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    main()
