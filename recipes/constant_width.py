"""Intervals of one width for all pixels, to hold those of samples against.

``python -m recipes.constant_width MODEL PHOTOGRAPHS`` adds quantiles of the errors of ``PHOTOGRAPHS/train`` to an image
and prints how often such intervals hold the values of ``PHOTOGRAPHS/crops``, overall and by texture. Images are the
bicubic enlargement, the image of the model's encoder and its sample of temperature 0.

The second row of each image takes the quantiles from the crops themselves, which makes the coverage right.
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

__all__ = ["Predicted", "constant_intervals", "predict"]

#: Side of the middle of a training photograph that is looked at.
_CROP = 256


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
        "bicubic": imresize(lr.astype(np.float64), model.scale),
        "the encoder's image": 255 * model.image(x)[0].permute(1, 2, 0).double().numpy(),
        "temperature 0": 255 * model.sample(x, temperature=0)[0, 0].permute(1, 2, 0).double().numpy(),
    }
    return {label: Predicted(image.clip(0, 255), hr, textures(lr, model.scale)) for label, image in images.items()}


def constant_intervals(
    found: Sequence[Predicted], errors: np.ndarray, level: float
) -> tuple[float, float, dict[str, float]]:
    """Measure intervals from a prediction plus the lower to the prediction plus the upper quantile of errors.

    Args:
        found: predictions that are measured.
        errors: truth less prediction, of any images.
        level: share of the errors between the quantiles.

    Returns:
        Coverage, mean width in grey levels within 0..255, and coverage by texture.
    """
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2])
    ends = [((one.image + low).clip(0, 255), (one.image + high).clip(0, 255)) for one in found]
    held = [(lower <= one.truth) & (one.truth <= upper) for one, (lower, upper) in zip(found, ends, strict=True)]
    width = np.concatenate([(upper - lower).ravel() for lower, upper in ends]).mean()
    by_texture = {}
    for index, name in enumerate(TEXTURES):
        chosen = np.concatenate([each[one.kinds == index].ravel() for one, each in zip(found, held, strict=True)])
        by_texture[name] = float(chosen.mean())
    return float(np.concatenate([each.ravel() for each in held]).mean()), float(width), by_texture


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
            for level in levels:
                covered, width, parts = constant_intervals(found, errors, level)
                kinds = ", ".join(f"{name} {100 * part:.1f}" for name, part in parts.items())
                print(f"{label}, {source}, {level:g}: {100 * covered:.1f}, {width:.1f}, {kinds}", flush=True)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of a model of the package, or its file")
    parser.add_argument("photographs", type=Path, help="folder with train and crops")
    given = parser.parse_args()
    model = sr_models.load(given.model)
    predicted: dict[str, dict[str, list[Predicted]]] = {}
    for split, side in (("train", _CROP), ("crops", 2 * _CROP)):
        for path in list_images(given.photographs / split).paths:
            for label, one in predict(model, _middle(read_image(path), side)).items():
                predicted.setdefault(split, {}).setdefault(label, []).append(one)
    _print_table(predicted["train"], predicted["crops"], (0.5, 0.8, 0.9))


if __name__ == "__main__":
    main()
