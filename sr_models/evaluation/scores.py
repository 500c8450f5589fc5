"""Scores of images: their means, a table for people, and a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sr_models.io.files import write_bytes
from sr_models.io.listing import one_line
from sr_models.io.text_tables import align_columns

__all__ = ["Scores", "mean_decibels", "mean_scores", "read_scores", "scores_table", "write_scores"]

#: Figures that are infinite for images without an error.
_DECIBELS = ("psnr", "psnr_y", "lr_psnr", "lr_psnr_worst")
#: What older versions did not write.
_ADDED = "psnr_y"


@dataclass(frozen=True)
class Scores:
    """Figures that are reported for one image, or their means over images.

    Two are equal if their figures are, however long sampling took.

    Attributes:
        image: file name, with the folders below the one that was named.
        nll: negative log-likelihood of the truth, in bits per dimension of [0, 1] images: a third of the bits per pixel
            that the papers' code reports. A model that noise conditions sees noise zero. NaN if there is no flow.
        psnr: dB over all values of R, G and B, mean over samples, by :func:`mean_decibels`.
        ssim: mean over samples.
        lr_psnr: dB between the reduced sample and the reduced truth, likewise.
        lr_psnr_worst: dB, its minimum over samples.
        diversity: the challenge's score in percent, under the named distance.
        distance: mean distance to the truth, under the named distance.
        psnr_y: dB of the luma without a border of ``scale`` pixels, as in classical tables, mean over samples. NaN if
            the border leaves nothing.
        seconds: time that sampling took, a sample. NaN if nothing was sampled.
        sample_distances: distance to the truth, one a sample.
        nearest_distances: mean distance if the best of the first 1, 2, ... samples could be chosen for every pixel.
        sample_lr_psnrs: LR-PSNR in dB, one a sample.
        sample_psnrs: PSNR in dB, one a sample.
        sample_errors: squared error of windows of 16 x 16 pixels, one a sample; see
            :func:`sr_models.evaluation.metrics.window_errors`.
        nearest_errors: as ``nearest_distances``, of these errors.
    """

    image: str
    nll: float
    psnr: float
    ssim: float
    lr_psnr: float
    lr_psnr_worst: float
    diversity: float
    distance: float
    psnr_y: float = math.nan
    seconds: float = field(default=math.nan, compare=False)
    sample_distances: tuple[float, ...] = ()
    nearest_distances: tuple[float, ...] = ()
    sample_lr_psnrs: tuple[float, ...] = ()
    sample_psnrs: tuple[float, ...] = ()
    sample_errors: tuple[float, ...] = ()
    nearest_errors: tuple[float, ...] = ()

    def figures(self) -> dict[str, float]:
        """Return the figures of all samples together, by name, with infinities and NaN."""
        return {name: getattr(self, name) for name in _FIGURES}


_NAMES = [each.name for each in fields(Scores)]
_SAMPLE_FIGURES = [each.name for each in fields(Scores) if each.default == ()]
_FIGURES = [name for name in _NAMES if name != "image" and name not in _SAMPLE_FIGURES]


def mean_decibels(values: Sequence[float]) -> float:
    """Average decibels: infinite if all are, otherwise the mean of those that are finite; NaN if one is.

    One perfect image among others thus does not hide them.
    """
    array = np.asarray(values, dtype=np.float64)
    kept = array[array != np.inf]
    return float(np.mean(kept if len(kept) else array))


def mean_scores(scores: Sequence[Scores], name: str = "mean") -> Scores:
    """Average every figure over images, decibels by :func:`mean_decibels`; the result bears the given name.

    Figures of single samples are left out.
    """
    means: dict[str, Any] = {}
    for figure in _FIGURES:
        values = [getattr(row, figure) for row in scores]
        means[figure] = mean_decibels(values) if figure in _DECIBELS else float(np.mean(values))
    return Scores(image=name, **means)


def scores_table(scores: Sequence[Scores], distance_name: str, baselines: Sequence[Scores] = ()) -> str:
    """Format scores as an aligned text table: one row an image, their mean, and the means of baselines."""
    header = ["image", "NLL b/dim", "PSNR", "PSNR-Y", "SSIM", "LR-PSNR", "worst", f"diversity({distance_name})"]
    rows = [[*header, distance_name]] + [
        [
            one_line(row.image),
            "" if np.isnan(row.nll) and row in baselines else f"{row.nll:.3f}",
            f"{row.psnr:.2f}",
            f"{row.psnr_y:.2f}",
            f"{row.ssim:.4f}",
            f"{row.lr_psnr:.2f}",
            f"{row.lr_psnr_worst:.2f}",
            f"{row.diversity:.2f}",
            f"{row.distance:.4f}",
        ]
        for row in [*scores, mean_scores(scores), *baselines]
    ]
    return align_columns(rows)


def write_scores(path: Path, scores: Sequence[Scores], distance_name: str) -> None:
    """Write the scores as CSV, atomically.

    The distance's name stands in the headings. Figures of single samples stand in one cell, with spaces between them.
    A name that is not UTF-8 has its bytes in the file as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_headings(distance_name).values())
    for row in scores:
        writer.writerow(
            " ".join(map(repr, getattr(row, name))) if name in _SAMPLE_FIGURES else getattr(row, name)
            for name in _NAMES
        )
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))


def read_scores(path: Path, distance_name: str) -> list[Scores]:
    """Read what :func:`write_scores` wrote, to the last digit.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another kind of file, scores under another distance, or those of an older version, which had fewer
            figures.
    """
    headings = _headings(distance_name)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        found = list(reader.fieldnames or ())
        if found == [*headings.values()][: _NAMES.index(_ADDED)]:
            raise ValueError(
                f"{path} was written by an older version, which did not keep the figures of each sample; "
                "replace it with --overwrite, or choose another output"
            )
        if found != [*headings.values()]:
            raise ValueError(f"{path} does not hold scores with the distance {distance_name}")
        try:
            return [
                Scores(**{name: _value(name, row[heading]) for name, heading in headings.items()}) for row in reader
            ]
        except (csv.Error, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error} in line {reader.line_num}") from error


def _headings(distance_name: str) -> dict[str, str]:
    renamed = {"diversity": f"diversity_{distance_name}", "distance": f"distance_{distance_name}"}
    return {name: renamed.get(name, name) for name in _NAMES}


def _value(name: str, cell: str) -> Any:
    if name in _SAMPLE_FIGURES:
        return tuple(map(float, cell.split()))
    return cell if name == "image" else float(cell)
