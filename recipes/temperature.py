"""Choose the temperature of samples on training photographs: ``python -m recipes.temperature MODEL PHOTOGRAPHS``.

The one whose samples have the least mean LPIPS is written into the JSON file of MODEL, where it becomes the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recipes.crops import DeviceCrops, read_photographs
from sr_models.checkpoints.files import load_model, save_model
from sr_models.evaluation.metrics import LPIPSDistance
from sr_models.evaluation.metrics.distances import Distance
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import to_uint8

__all__ = ["best_temperature"]

TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)


@torch.no_grad()
def best_temperature(
    model: SuperResolutionFlow,
    photographs: Path,
    distance: Distance,
    *,
    crops: int = 16,
    crop: int = 256,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """Return the temperature of the least mean distance between samples and photographs, and print all of them.

    Args:
        model: samples each crop once a temperature.
        photographs: folder of PNG files.
        distance: LPIPS.
        crops: number of random crops.
        crop: their side.
        temperatures: what is tried.
    """
    torch.manual_seed(0)
    images = read_photographs(photographs, reduced_above=crop)
    images = [image for image in images if min(image.shape[:2]) >= crop]
    hr, lr = DeviceCrops(images, crop=crop, scale=model.scale, device=torch.device("cpu"))(crops)
    means = []
    for temperature in temperatures:
        found = []
        for seed, (high, low) in enumerate(zip(hr, lr, strict=True)):
            sample = model.sample(low[None], temperature=temperature, seed=seed)[0, 0]
            found.append(distance(to_uint8(sample), to_uint8(high)).mean())
        means.append(float(np.mean(found)))
        print(f"temperature {temperature:g}: LPIPS {means[-1]:.4f}", flush=True)
    return temperatures[int(np.argmin(means))]


def main() -> None:
    """Read the command line, and write the temperature into the model's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="file to choose for, which ends in .safetensors")
    parser.add_argument("photographs", type=Path, help="folder of PNG files")
    given = parser.parse_args()
    model = load_model(given.model)
    dtype = next(model.parameters()).dtype
    model.temperature = best_temperature(model.float(), given.photographs, LPIPSDistance.from_local_files())
    save_model(model.to(dtype), given.model)
    print(f"temperature {model.temperature:g}, written into {given.model}")


if __name__ == "__main__":
    main()
