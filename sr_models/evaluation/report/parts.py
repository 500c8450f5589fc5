"""The parts of the demonstration's report, made of pictures and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sr_models.evaluation.metrics import lr_psnr
from sr_models.evaluation.report.page import Picture
from sr_models.evaluation.report.pictures import PhotographPictures, coloured, inconsistency, same_details, spread
from sr_models.evaluation.scores import Scores

__all__ = ["map_part", "overview_row", "photograph_part", "score_part", "sweep_part", "tuned_part"]

#: Samples whose details are shown.
_SHOWN = 2


def overview_row(photograph: PhotographPictures, temperature: float, *, hardest: bool = False) -> dict[str, np.ndarray]:
    """Cut the same detail out of the low resolution, the images made of it, and the truth: label -> image.

    Which one, :func:`same_details` says.
    """
    images = {"low resolution": _enlarged(photograph), "bicubic": photograph.plain["bicubic"]}
    images["encoder's image"] = photograph.plain["encoder's image"]
    for number, sample in enumerate(photograph.samples[temperature][:_SHOWN], 1):
        images[f"sample {number}"] = sample
    return same_details(photograph, {**images, "truth": photograph.hr}, hardest=hardest)


def photograph_part(photograph: PhotographPictures, temperature: float) -> dict[str, Any]:
    """Show a photograph: details side by side, and whole images, of which one is shown at a time."""
    height, width = photograph.lr.shape[:2]
    high, wide = photograph.hr.shape[:2]
    whole = {"low resolution": photograph.lr, "bicubic": photograph.plain["bicubic"], "truth": photograph.hr}
    whole["sample"] = photograph.samples[temperature][0]
    return {
        "name": photograph.name,
        "sizes": f"{width} x {height} to {wide} x {high} pixels",
        "details": _shown_pictures(overview_row(photograph, temperature)),
        "hardest": _shown_pictures(overview_row(photograph, temperature, hardest=True)),
        "whole": _shown_pictures(whole),
    }


def score_part(means: Mapping[str, Scores], distance_name: str, explanation: str) -> dict[str, Any]:
    """Tabulate mean scores: label -> scores; the first label is bicubic interpolation, to which others compare."""
    first = next(iter(means.values()))
    name = _shown(distance_name)
    rows = [["", "PSNR", "SSIM", "LR-PSNR", name, "of bicubic", "diversity"]]
    for label, row in means.items():
        share = f"{row.distance / first.distance:.2f}" if first.distance else ""
        rows.append(
            [
                label,
                f"{row.psnr:.2f}",
                f"{row.ssim:.3f}",
                _decibels(row.lr_psnr),
                f"{row.distance:.4f}",
                share,
                f"{row.diversity:.1f}" if row.diversity else "",
            ]
        )
    return {"rows": rows, "explanation": explanation}


def map_part(photograph: PhotographPictures, temperature: float, exact: np.ndarray) -> dict[str, Any]:
    """Show where samples differ, and how far images are from the low resolution once they are reduced.

    Args:
        photograph: has samples at the temperature.
        temperature: theirs.
        exact: the first of them, changed so that it agrees with the low resolution.
    """
    samples = photograph.samples[temperature]
    deviation = spread(samples)
    images = {"bicubic": photograph.plain["bicubic"], "sample": samples[0], "sample with consistency exact": exact}
    differences = {label: inconsistency(image, photograph.lr) for label, image in images.items()}
    brightest = max(float(values.max()) for values in differences.values())
    pictures = [
        Picture.of(
            coloured(deviation, float(deviation.max())),
            f"standard deviation over {len(samples)} samples",
            f"mean {deviation.mean():.1f}, white {deviation.max():.0f} of 255 grey levels",
        )
    ]
    for label, values in differences.items():
        agreement = _decibels(lr_psnr(images[label], photograph.hr, photograph.scale))
        picture = coloured(values, brightest)
        note = f"LR-PSNR {agreement}, white {brightest:.0f} of 255 grey levels"
        pictures.append(Picture.of(picture, f"{label}: distance to the low resolution", note, pixels=True))
    return {"name": photograph.name, "pictures": pictures}


def sweep_part(
    photograph: PhotographPictures, means: Mapping[float, Scores], distance_name: str, explanation: str
) -> dict[str, Any]:
    """Show a detail of one sample a temperature, and mean scores over all photographs."""
    images = {f"temperature {temperature:g}": photograph.samples[temperature][0] for temperature in means}
    name = _shown(distance_name)
    return {
        "pictures": [Picture.of(image, label) for label, image in same_details(photograph, images).items()],
        "rows": [
            ["temperature", name, "LR-PSNR", "diversity", "PSNR"],
            *(
                [f"{at:g}", f"{row.distance:.4f}", f"{row.lr_psnr:.1f}", f"{row.diversity:.1f}", f"{row.psnr:.2f}"]
                for at, row in means.items()
            ),
        ],
        "explanation": explanation,
    }


def tuned_part(photograph: PhotographPictures, before: np.ndarray, after: np.ndarray, text: str) -> dict[str, Any]:
    """Show a detail of a sample before and after training, beside the truth."""
    images = {"before training": before, "after training": after, "truth": photograph.hr}
    return {
        "pictures": [Picture.of(image, label) for label, image in same_details(photograph, images).items()],
        "text": text,
    }


def _shown_pictures(images: Mapping[str, np.ndarray]) -> list[Picture]:
    return [Picture.of(image, label, pixels=label == "low resolution") for label, image in images.items()]


def _enlarged(photograph: PhotographPictures) -> np.ndarray:
    return photograph.lr.repeat(photograph.scale, 0).repeat(photograph.scale, 1)


def _decibels(value: float) -> str:
    """Format a PSNR; that of images that agree in every value is infinite."""
    return f"{value:.1f}" if math.isfinite(value) else "exact"


def _shown(distance_name: str) -> str:
    return {"lpips": "LPIPS", "mse": "squared error"}.get(distance_name, distance_name)
