"""Fine-tune a model on low-resolution images as users bring them, within a given time, on a CPU or a GPU.

``python -m recipes.robust MODEL PHOTOGRAPHS --output FOLDER`` goes on from MODEL, of which only name and weights count:
the architecture is the preset ``tiny`` of that name, whose limits MODEL may lack. Most of the crops stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import sr_models
from recipes.clock import Schedule, train_by_clock
from recipes.crops import DeviceCrops, read_photographs
from recipes.degraded import Degrading
from recipes.noise import likelihood, noisy
from sr_models.checkpoints.files import load_model, read_weights, save_model
from sr_models.flow.model import SuperResolutionFlow

__all__ = ["finetune"]

_DECAY = 0.998
_WARMUP = 50
#: Crops of the batch from which actnorms that have no values take them.
_FIRST = 32


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
    frozen: bool = False,
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
        frozen: the encoder stays as it is, which makes steps cheaper.
    """
    torch.manual_seed(0)
    device = torch.device("cpu")
    crops = DeviceCrops(read_photographs(photographs, reduced_above=crop + 32), crop=crop, scale=4, device=device)
    degrading = Degrading(scale=4, share=share)
    model = _preset(start).to(memory_format=torch.channels_last)

    def batches(count: int = batch) -> tuple[Tensor, Tensor, Tensor | None]:
        pair = degrading(*crops(count))
        return noisy(model, *(part.contiguous(memory_format=torch.channels_last) for part in pair))

    with torch.no_grad():
        model.encode(*batches(_FIRST))
    for parameter in model.parameters_of_parts()[0].values():
        parameter.requires_grad_(not frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{model.name}-tiny.safetensors"
    train_by_clock(
        model, likelihood(model), batches, trained, Schedule(lr, 0.01, _WARMUP, 60 * minutes), file, decay=_DECAY
    )
    return file


def _preset(start: str) -> SuperResolutionFlow:
    """Return the preset ``tiny`` of a model's name with the model's weights, in float32."""
    model = sr_models.create(load_model(start).name, preset="tiny")
    model.load_state_dict({name: tensor.float() for name, tensor in read_weights(start).tensors.items()})
    return model.train()


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
    parser.add_argument("--frozen", action="store_true", help="leave the encoder as it is")
    parser.add_argument("--blend", type=float, default=0.7, help="share of the result; the rest is MODEL's")
    given = vars(parser.parse_args())
    share = given.pop("blend")
    file = finetune(**given)
    blend(given["start"], file, share)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
