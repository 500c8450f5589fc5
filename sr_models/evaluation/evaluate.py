"""Scoring a model as the NTIRE "Learning the Super-Resolution Space" challenge does, and by its likelihood."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sr_models.evaluation.metrics import Distance, best_available_distance, diversity_score, lr_psnr, psnr, ssim
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import clean_condition
from sr_models.io.files import write_text
from sr_models.io.images import check_pair, crop_to_multiple, find_images, read_image, to_tensor, to_uint8
from sr_models.io.resize import imresize

__all__ = ["Scores", "evaluate_model", "load_pair", "mean_scores", "score_samples", "scores_table", "write_scores"]

# The challenge crops to multiples of 8 at every scale.
_CROP_MULTIPLE = 8


@dataclass(frozen=True)
class Scores:
    """Figures that are reported for one image, or their means over images.

    Attributes:
        image: file name.
        nll: negative log-likelihood of the truth, in bits per dimension of [0, 1] images: a third of the bits per pixel
            that the papers' code reports. A model that noise conditions sees noise zero. NaN if there is no flow.
        psnr: dB, mean over samples.
        ssim: mean over samples.
        lr_psnr: dB between the reduced sample and the reduced truth, mean over samples.
        lr_psnr_worst: dB, its minimum over samples.
        diversity: the challenge's score in percent, under the named distance.
        distance: mean distance to the truth, under the named distance.
    """

    image: str
    nll: float
    psnr: float
    ssim: float
    lr_psnr: float
    lr_psnr_worst: float
    diversity: float
    distance: float


def load_pair(hr_path: Path, scale: int, lr_folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a high-resolution image, cropped to multiples of 8, and its low-resolution image.

    Args:
        hr_path: high-resolution image.
        scale: enlargement.
        lr_folder: folder with a low-resolution image of the same name; ``None``: the high-resolution image is reduced.

    Returns:
        lr (h, w, 3) and hr (scale h, scale w, 3), uint8.

    Raises:
        FileNotFoundError: no low-resolution file of that name.
        ValueError: an unreadable file, or sizes that do not fit.
    """
    hr = read_image(hr_path)
    if min(hr.shape[:2]) < _CROP_MULTIPLE:
        raise ValueError(
            f"image {hr_path} must be at least {_CROP_MULTIPLE} x {_CROP_MULTIPLE} pixels, "
            f"got {hr.shape[1]} x {hr.shape[0]}"
        )
    if lr_folder is None:
        hr = np.ascontiguousarray(crop_to_multiple(hr, _CROP_MULTIPLE))
        return imresize(hr, 1 / scale), hr
    matches = [path for path in find_images(lr_folder) if path.stem == hr_path.stem]
    if not matches:
        raise FileNotFoundError(f"folder {lr_folder} has no low-resolution image named {hr_path.stem}")
    lr = read_image(matches[0])
    check_pair(lr, hr, scale)
    hr = np.ascontiguousarray(crop_to_multiple(hr, _CROP_MULTIPLE))
    return np.ascontiguousarray(lr[: hr.shape[0] // scale, : hr.shape[1] // scale]), hr


def score_samples(
    image: str, samples: Sequence[np.ndarray], hr: np.ndarray, scale: int, distance: Distance, nll: float = float("nan")
) -> Scores:
    """Score the samples of one image against the truth.

    Args:
        image: file name, for the result.
        samples: (H, W, 3), uint8.
        hr: the truth (H, W, 3), uint8.
        scale: enlargement.
        distance: distance of the diversity score.
        nll: negative log-likelihood of the truth, for the result.
    """
    lr_psnrs = [lr_psnr(sample, hr, scale) for sample in samples]
    diversity = diversity_score(samples, hr, distance)
    return Scores(
        image=image,
        nll=nll,
        psnr=float(np.mean([psnr(sample, hr) for sample in samples])),
        ssim=float(np.mean([ssim(sample, hr) for sample in samples])),
        lr_psnr=float(np.mean(lr_psnrs)),
        lr_psnr_worst=float(np.min(lr_psnrs)),
        diversity=diversity.score,
        distance=diversity.mean_distance,
    )


@torch.no_grad()
def evaluate_model(
    model: SuperResolutionFlow,
    images: str | os.PathLike[str],
    *,
    lr_images: str | os.PathLike[str] | None = None,
    samples: int = 10,
    temperature: float = 0.9,
    seed: int = 0,
    distance: Distance | None = None,
    on_image: Callable[[Path, np.ndarray, list[np.ndarray], np.ndarray], None] | None = None,
) -> list[Scores]:
    """Sample and score every image in a folder, with a progress bar.

    Args:
        model: in evaluation mode.
        images: folder of high-resolution images.
        lr_images: folder of low-resolution images of the same names; none: they are made by reduction.
        samples: samples an image; the challenge takes 10.
        temperature: standard deviation of the latents; 0.9 is published.
        seed: determines the samples.
        distance: distance for the diversity; default LPIPS if its weights are here, else the squared error.
        on_image: called with path, lr, samples and hr of every image, to show or keep them.

    Returns:
        One :class:`Scores` an image, in the order of the file names.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: images that are missing, unreadable or do not fit.
    """
    distance = best_available_distance()[1] if distance is None else distance
    lr_folder = None if lr_images is None else Path(lr_images)
    like = next(model.parameters())
    results = []
    for path in tqdm(find_images(images), desc="evaluating", unit="image"):
        lr, hr = load_pair(path, model.scale, lr_folder)
        lr_tensor = to_tensor(lr)[None].to(like)
        nll = _bits_per_dim(model, to_tensor(hr)[None].to(like), lr_tensor)
        batch = model.sample(lr_tensor, samples, temperature=temperature, seed=seed)[0]
        drawn = [to_uint8(sample) for sample in batch]
        results.append(score_samples(path.name, drawn, hr, model.scale, distance, nll))
        if on_image is not None:
            on_image(path, lr, drawn, hr)
    return results


def _bits_per_dim(model: SuperResolutionFlow, hr: Tensor, lr: Tensor) -> float:
    """Bits per dimension of one image, cropped to a size that the model accepts; NaN if nothing remains."""
    height, width = (side - side % model.lr_multiple for side in lr.shape[2:])
    if not height * width:
        return math.nan
    hr, lr = hr[..., : height * model.scale, : width * model.scale], lr[..., :height, :width]
    return model.encode(hr, lr, clean_condition(model, hr)).bits_per_dim.item()


def mean_scores(scores: Sequence[Scores], name: str = "mean") -> Scores:
    """Average every figure over images; the result bears the given name."""
    names = [field.name for field in fields(Scores) if field.name != "image"]
    means = {name: float(np.mean([getattr(row, name) for row in scores])) for name in names}
    return Scores(image=name, **means)


def scores_table(scores: Sequence[Scores], distance_name: str) -> str:
    """Format the scores as an aligned text table with their mean in the last row."""
    header = ["image", "NLL b/dim", "PSNR", "SSIM", "LR-PSNR", "worst", f"diversity({distance_name})", distance_name]
    rows = [header] + [
        [
            row.image,
            f"{row.nll:.3f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.lr_psnr:.2f}",
            f"{row.lr_psnr_worst:.2f}",
            f"{row.diversity:.2f}",
            f"{row.distance:.4f}",
        ]
        for row in [*scores, mean_scores(scores)]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def write_scores(path: Path, scores: Sequence[Scores], distance_name: str) -> None:
    """Write the scores as CSV, atomically; the distance's name stands in the headings."""
    renamed = {"diversity": f"diversity_{distance_name}", "distance": f"distance_{distance_name}"}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(renamed.get(field.name, field.name) for field in fields(Scores))
    writer.writerows(asdict(row).values() for row in scores)
    write_text(path, text.getvalue())
