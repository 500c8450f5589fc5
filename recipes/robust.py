"""Fine-tune a model on low-resolution images as users bring them, within a given time, on a CPU or a GPU.

``python -m recipes.robust MODEL PHOTOGRAPHS --output FOLDER`` goes on from MODEL, of which only the weights count: the
architecture is the preset ``tiny``, whose limits MODEL may lack. Most of the crops stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import monotonic

import torch

import sr_models
from recipes.crops import DeviceCrops, read_photographs
from recipes.degraded import Degrading
from recipes.train import Schedule
from sr_models.checkpoints.files import load_model, read_weights, save_model
from sr_models.registry import recipe_of
from sr_models.training.device_step import DeviceStep, fused_adam

__all__ = ["finetune"]

_DECAY = 0.998
_CLIP = 2.0
_WARMUP = 50


def finetune(
    start: str,
    photographs: Path,
    output: Path,
    *,
    minutes: float,
    batch: int,
    crop: int,
    lr: float,
    share: float,
) -> Path:
    """Train for some minutes and return the path of the model, whose weights are a moving average.

    Args:
        start: a file, or the name of a model that comes with the package.
        photographs: folder of PNG files.
        output: folder for the model, written once a minute.
        minutes: duration, but for reading.
        batch: crops a step.
        crop: side of the crops.
        lr: largest learning rate.
        share: share of the crops that is changed by :class:`recipes.degraded.Degrading`.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "srflow-da-tiny.safetensors"
    device = torch.device("cpu")
    torch.manual_seed(0)
    crops = DeviceCrops(read_photographs(photographs, reduced_above=crop + 32), crop=crop, scale=4, device=device)
    degrading = Degrading(scale=4, share=share)
    model = sr_models.create("srflow-da", preset="tiny")
    model.load_state_dict({name: tensor.float() for name, tensor in read_weights(start).tensors.items()})
    model = model.train().to(memory_format=torch.channels_last)
    std = recipe_of("srflow-da", preset="tiny").noise_std

    def nll(hr: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        return model.encode(hr + std * torch.randn_like(hr), lr).bits_per_dim.mean()

    trained = list(model.parameters())
    optimizer = fused_adam([trained])
    average = [parameter.detach().clone() for parameter in trained]
    step = DeviceStep(nll, optimizer, average=average, averaged=trained, clip=_CLIP)
    schedule = Schedule(lr, 0.01, _WARMUP, 60 * minutes)
    begin = written = monotonic()
    done, losses = 0, list[float]()
    while (elapsed := monotonic() - begin) < schedule.seconds:
        pair = [part.contiguous(memory_format=torch.channels_last) for part in degrading(*crops(batch))]
        outcome = step([pair], [schedule(done, elapsed)], 1 - min(_DECAY, (1 + done) / (10 + done)))
        losses.append(float(outcome.loss))
        done += 1
        if monotonic() - written > 60:
            print(f"{elapsed:.0f} s: step {done}, mean loss {sum(losses) / len(losses):.4f}", flush=True)
            losses = []
            write_average(model, average, file)
            written = monotonic()
    write_average(model, average, file)
    print(f"{done} steps in {schedule.seconds:.0f} s", flush=True)
    return file


def blend(start: str, file: Path, share: float) -> None:
    """Replace the weights of a file by means of them and of those of its start, in float16.

    Between two models of one origin lie models that have most of what both have learned.

    Args:
        start: as of :func:`finetune`.
        file: what :func:`finetune` wrote.
        share: what the file contributes, in 0..1.
    """
    model, old = load_model(file).float(), read_weights(start).tensors
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(old[name].float(), 1 - share)
    save_model(model.half(), file)


def write_average(model: sr_models.SuperResolutionFlow, average: list[torch.Tensor], file: Path) -> None:
    """Write the model with other values of its parameters, which it does not keep."""
    with torch.no_grad():
        own = [parameter.clone() for parameter in model.parameters()]
        for values in (average, own):
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.copy_(value)
            if values is average:
                save_model(model, file)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", help="model to go on from")
    parser.add_argument("photographs", type=Path, help="folder of PNG files")
    parser.add_argument("--output", type=Path, default=Path("runs/robust"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--lr", type=float, default=8e-5)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--blend", type=float, default=0.7, help="share of the result; the rest is MODEL's")
    given = vars(parser.parse_args())
    share = given.pop("blend")
    file = finetune(**given)
    blend(given["start"], file, share)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
