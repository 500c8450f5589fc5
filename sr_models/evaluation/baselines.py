"""Images that need no latents, to hold the scores of samples against."""

from __future__ import annotations

import os
from collections.abc import Collection

import numpy as np
import torch
from tqdm import tqdm

from sr_models.evaluation.metrics import Distance
from sr_models.evaluation.pairs import find_pairs, load_pair
from sr_models.evaluation.scores import Scores
from sr_models.evaluation.scoring import score_samples
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import to_tensor, to_uint8
from sr_models.io.resize import imresize

__all__ = ["back_projected", "baseline_images", "score_baselines"]

#: Number of passes: after so many, the reduced image hardly changes.
_PASSES = 8


def back_projected(image: np.ndarray, lr: np.ndarray, scale: int, passes: int = _PASSES) -> np.ndarray:
    r"""Make an image agree with its low-resolution image: :math:`x \leftarrow x + \uparrow(lr - \downarrow x)`.

    Both ways are bicubic (Irani and Peleg, 1991). The values are rounded once, at the end.

    Args:
        image: (scale h, scale w, 3), uint8.
        lr: (h, w, 3), uint8.
        scale: enlargement.
        passes: number of repetitions.

    Returns:
        (scale h, scale w, 3), uint8.
    """
    x, low = image.astype(np.float64), lr.astype(np.float64)
    for _ in range(passes):
        x += imresize(low - imresize(x, 1 / scale), scale)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


@torch.no_grad()
def baseline_images(lr: np.ndarray, scale: int, model: SuperResolutionFlow | None = None) -> dict[str, np.ndarray]:
    """Enlarge an image without latents: by bicubic interpolation, without and with back-projection, and by an encoder.

    Args:
        lr: (h, w, 3), uint8.
        scale: enlargement.
        model: the image of its low-resolution encoder alone is one more, if it has an encoder.

    Returns:
        Label -> image (scale h, scale w, 3), uint8.
    """
    bicubic = imresize(lr, scale)
    images = {"bicubic": bicubic, "bicubic, back-projected": back_projected(bicubic, lr, scale)}
    if model is not None and model.encoder is not None:
        like = next(model.parameters())
        images["encoder's image"] = to_uint8(model.image(to_tensor(lr)[None].to(like))[0])
    return images


def score_baselines(
    images: str | os.PathLike[str],
    scale: int,
    distance: Distance,
    *,
    lr_images: str | os.PathLike[str] | None = None,
    names: Collection[str] | None = None,
    model: SuperResolutionFlow | None = None,
) -> dict[str, list[Scores]]:
    """Score :func:`baseline_images` of every image, with a progress bar.

    Args:
        images, lr_images: as for :func:`sr_models.evaluation.evaluate.evaluate_model`.
        scale: enlargement.
        distance: distance to the truth.
        names: names of the images to score, as in :class:`Scores`; ``None``: all.
        model: as for :func:`baseline_images`.

    Returns:
        Label -> one :class:`Scores` an image.
    """
    found: dict[str, list[Scores]] = {}
    pairs, _ = find_pairs(images, scale, lr_images)
    chosen = [pair for pair in pairs if names is None or pair.name in names]
    for pair in tqdm(chosen, desc="baselines", unit="image"):
        lr, hr = load_pair(pair.hr, scale, pair.lr)
        for label, image in baseline_images(lr, scale, model).items():
            found.setdefault(label, []).append(score_samples(pair.name, [image], hr, scale, distance))
    return found
