"""Scores of images: their means, a table for people, and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from sr_models.io.files import write_text

__all__ = ["Scores", "mean_decibels", "mean_scores", "read_scores", "scores_table", "write_scores"]

#: Figures that are infinite for images without an error.
_DECIBELS = ("psnr", "lr_psnr", "lr_psnr_worst")


@dataclass(frozen=True)
class Scores:
    """Figures that are reported for one image, or their means over images.

    Attributes:
        image: file name, with the folders below the one that was named.
        nll: negative log-likelihood of the truth, in bits per dimension of [0, 1] images: a third of the bits per pixel
            that the papers' code reports. A model that noise conditions sees noise zero. NaN if there is no flow.
        psnr: dB, mean over samples, by :func:`mean_decibels`.
        ssim: mean over samples.
        lr_psnr: dB between the reduced sample and the reduced truth, likewise.
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


def mean_decibels(values: Sequence[float]) -> float:
    """Average decibels: infinite if all are, otherwise the mean of those that are finite; NaN if one is.

    One perfect image among others thus does not hide them.
    """
    array = np.asarray(values, dtype=np.float64)
    kept = array[array != np.inf]
    return float(np.mean(kept if len(kept) else array))


def mean_scores(scores: Sequence[Scores], name: str = "mean") -> Scores:
    """Average every figure over images, decibels by :func:`mean_decibels`; the result bears the given name."""
    means = {}
    for field in fields(Scores):
        if field.name != "image":
            values = [getattr(row, field.name) for row in scores]
            means[field.name] = mean_decibels(values) if field.name in _DECIBELS else float(np.mean(values))
    return Scores(image=name, **means)


def scores_table(scores: Sequence[Scores], distance_name: str, baselines: Sequence[Scores] = ()) -> str:
    """Format scores as an aligned text table: one row an image, their mean, and the means of baselines."""
    header = ["image", "NLL b/dim", "PSNR", "SSIM", "LR-PSNR", "worst", f"diversity({distance_name})", distance_name]
    rows = [header] + [
        [
            row.image,
            "" if np.isnan(row.nll) and row in baselines else f"{row.nll:.3f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.lr_psnr:.2f}",
            f"{row.lr_psnr_worst:.2f}",
            f"{row.diversity:.2f}",
            f"{row.distance:.4f}",
        ]
        for row in [*scores, mean_scores(scores), *baselines]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def write_scores(path: Path, scores: Sequence[Scores], distance_name: str) -> None:
    """Write the scores as CSV, atomically; the distance's name stands in the headings."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_headings(distance_name).values())
    writer.writerows(asdict(row).values() for row in scores)
    write_text(path, text.getvalue())


def read_scores(path: Path, distance_name: str) -> list[Scores]:
    """Read what :func:`write_scores` wrote, to the last digit.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another kind of file, or scores under another distance.
    """
    headings = _headings(distance_name)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != [*headings.values()]:
            raise ValueError(f"{path} does not hold scores with the distance {distance_name}")
        try:
            return [
                Scores(row["image"], *(float(row[heading]) for name, heading in headings.items() if name != "image"))
                for row in reader
            ]
        except (csv.Error, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error} in line {reader.line_num}") from error


def _headings(distance_name: str) -> dict[str, str]:
    renamed = {"diversity": f"diversity_{distance_name}", "distance": f"distance_{distance_name}"}
    return {field.name: renamed.get(field.name, field.name) for field in fields(Scores)}
