"""Intervals of one width for all pixels, to hold those of samples against.

``python -m recipes.constant_width MODEL PHOTOGRAPHS`` adds quantiles of the errors of ``PHOTOGRAPHS/train`` to an image
and prints how often such intervals hold the values of ``PHOTOGRAPHS/crops``, overall and by texture. Images are the
bicubic enlargement, the image of the model's encoder and its sample of temperature 0.

The CRPS is that of the prediction with all these errors for its distribution. Further rows take the errors from the
crops themselves, which makes the coverage right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import sr_models
from sr_models.evaluation.uncertainty.texture import TEXTURES, textures
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, to_tensor
from sr_models.io.listing import list_images
from sr_models.io.resize import imresize

__all__ = ["Predicted", "constant_intervals", "crps_of_errors", "predict"]

#: Number of quantiles that stand for a distribution.
_QUANTILES = 999
#: Side of the middle of a photograph that is looked at.
_SIDES = {"train": 128, "crops": 512}


class Predicted(NamedTuple):
    """One image and what was predicted of it.

    Attributes:
        image: (H, W, 3), prediction in grey levels, not rounded.
        truth: (H, W, 3), uint8.
        kinds: (H, W), indices into :data:`TEXTURES`.
    """

    image: np.ndarray
    truth: np.ndarray
    kinds: np.ndarray


@torch.no_grad()
def predict(model: SuperResolutionFlow, hr: np.ndarray) -> dict[str, Predicted]:
    """Return label -> prediction of an image (H, W, 3), uint8, from its bicubic reduction."""
    lr = imresize(hr, 1 / model.scale)
    x = to_tensor(lr)[None]
    images = {
        "bicubic": imresize(lr.astype(np.float64), model.scale).astype(np.float32),
        "the encoder's image": 255 * model.image(x)[0].permute(1, 2, 0).numpy(),
        "temperature 0": 255 * model.sample(x, temperature=0)[0, 0].permute(1, 2, 0).numpy(),
    }
    return {label: Predicted(image.clip(0, 255), hr, textures(lr, model.scale)) for label, image in images.items()}


def constant_intervals(found: Sequence[Predicted], low: float, high: float) -> tuple[float, float, dict[str, float]]:
    """Measure intervals from a prediction plus ``low`` to the prediction plus ``high``.

    Returns:
        Coverage, mean width in grey levels within 0..255, and coverage by texture.
    """
    ends = [((one.image + low).clip(0, 255), (one.image + high).clip(0, 255)) for one in found]
    held = [(lower <= one.truth) & (one.truth <= upper) for one, (lower, upper) in zip(found, ends, strict=True)]
    width = np.concatenate([(upper - lower).ravel() for lower, upper in ends]).mean()
    by_texture = {}
    for index, name in enumerate(TEXTURES):
        chosen = np.concatenate([each[one.kinds == index].ravel() for one, each in zip(found, held, strict=True)])
        by_texture[name] = float(chosen.mean())
    return float(np.concatenate([each.ravel() for each in held]).mean()), float(width), by_texture


def crps_of_errors(assumed: np.ndarray, errors: np.ndarray) -> float:
    """Compute the mean CRPS of a prediction whose errors are assumed to be distributed as others are.

    Args:
        assumed: errors whose distribution, by 999 of its quantiles, is predicted for every value.
        errors: those that came about.
    """
    quantiles = np.quantile(assumed, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    sums = np.concatenate([[0], np.cumsum(quantiles)])
    below = np.searchsorted(quantiles, errors)
    distance = (2 * below - _QUANTILES) * errors.astype(np.float64) + sums[-1] - 2 * sums[below]
    spread = (2 * np.arange(1, _QUANTILES + 1) - _QUANTILES - 1) @ quantiles / _QUANTILES
    return float((distance.mean() - spread) / _QUANTILES)


def _errors(found: Iterable[Predicted]) -> np.ndarray:
    return np.concatenate([(one.truth - one.image).ravel() for one in found])


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
    crop = image[top : top + side, left : left + side]
    return np.ascontiguousarray(crop[: crop.shape[0] // 8 * 8, : crop.shape[1] // 8 * 8])


def _print_table(
    train: Mapping[str, Sequence[Predicted]], test: Mapping[str, Sequence[Predicted]], levels: Sequence[float]
) -> None:
    print("image, quantiles of, level: coverage %, width, coverage % by texture")
    for label, found in test.items():
        for source, errors in (("train", _errors(train[label])), ("crops", _errors(found))):
            quantiles = np.quantile(
                errors, [[(1 - level) / 2 for level in levels], [(1 + level) / 2 for level in levels]]
            )
            for level, low, high in zip(levels, *quantiles, strict=True):
                covered, width, parts = constant_intervals(found, low, high)
                kinds = ", ".join(f"{name} {100 * part:.1f}" for name, part in parts.items())
                print(f"{label}, {source}, {level:g}: {100 * covered:.1f}, {width:.1f}, {kinds}", flush=True)
            print(f"{label}, {source}: CRPS {crps_of_errors(errors, _errors(found)):.2f}", flush=True)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of a model of the package, or its file")
    parser.add_argument("photographs", type=Path, help="folder with train and crops")
    given = parser.parse_args()
    model = sr_models.load(given.model)
    predicted: dict[str, dict[str, list[Predicted]]] = {}
    for split, side in _SIDES.items():
        for path in list_images(given.photographs / split).paths:
            for label, one in predict(model, _middle(read_image(path), side)).items():
                predicted.setdefault(split, {}).setdefault(label, []).append(one)
    _print_table(predicted["train"], predicted["crops"], (0.5, 0.8, 0.9))


if __name__ == "__main__":
    main()
