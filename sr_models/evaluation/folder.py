"""Scoring images that anyone made, by any method, as the NTIRE challenge does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sr_models.evaluation.metrics import Distance, best_available_distance
from sr_models.evaluation.pairs import Pair, find_pairs, names_in_order
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.sample_folder import SampleFiles, find_samples
from sr_models.evaluation.scores import Scores
from sr_models.evaluation.scoring import CROP_MULTIPLE
from sr_models.evaluation.streaming import Drawn, score_pairs
from sr_models.io.images import read_image
from sr_models.io.listing import one_line

__all__ = ["evaluate_samples"]


def evaluate_samples(
    samples: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    scale: int | None = None,
    n: int | None = None,
    first_index: int | None = None,
    distance: Distance | None = None,
    record: ScoreRecord | None = None,
    on_image: Callable[[Path, list[np.ndarray], np.ndarray], None] | None = None,
    on_unused: Callable[[list[Path]], None] | None = None,
) -> list[Scores]:
    """Score the images in a folder against the truth, with a progress bar.

    Truth is cropped to multiples of 8, and samples to the truth.

    Args:
        samples: folder of the images, named as :func:`sr_models.evaluation.sample_folder.find_samples` says.
        images: folder of high-resolution images, or what else :func:`sr_models.io.listing.list_images` takes.
        scale: enlargement, for LR-PSNR and the border of PSNR-Y. ``None``: that of names such as ``0801x4.png``.
        n: samples an image, the first ones are used. ``None``: as many as the image with the most has.
        first_index: number of the first image in the names of the challenge, 0 or such as 901; ``None``: found out.
        distance: distance for the diversity; default LPIPS if its weights are here, else the squared error.
        record: as for :func:`sr_models.evaluation.evaluate.evaluate_model`. None: a bad image is an error.
        on_image: called with path, samples and hr of every image that is scored.
        on_unused: called with the files that belong to no image, if there are some.

    Returns:
        One :class:`Scores` an image, in the order of the file names.

    Raises:
        FileNotFoundError, NotADirectoryError: images that are missing.
        ValueError: arguments out of range, names that are not unique, or no image that could be scored.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    pairs, unreadable = find_pairs(images, scale or 1)
    found = find_samples(samples, names_in_order(pairs, unreadable), first_index=first_index)
    used = _scale(scale, found, samples)
    if found.unused and on_unused is not None:
        on_unused(found.unused)
    count = n or max((len(files) for files in found.files.values()), default=1)
    # a fault of the truth comes first
    failures = {**found.failures, **unreadable}
    usable = []
    for pair in pairs:
        files = found.files.get(pair.name, ())
        if pair.name not in failures and len(files) < count:
            failures[pair.name] = f"{len(files)} samples of {count} in {one_line(samples)}"
        if pair.name not in failures:
            usable.append(replace(pair, samples=files[:count]))
    distance_name, distance = best_available_distance() if distance is None else ("given", distance)

    def draw(pair: Pair, _: Callable[[float], None]) -> Drawn:
        hr = read_image(pair.hr)
        return Drawn([_read_like(path, hr, used) for path in pair.samples], hr)

    def show(pair: Pair, drawn: Drawn) -> None:
        if on_image is not None:
            on_image(pair.hr, drawn.samples, drawn.hr)

    return score_pairs(
        usable,
        failures,
        draw,
        scale=used,
        distance=distance,
        settings={"model": None, "scale": used, "n": count},
        record=record or ScoreRecord(distance_name=distance_name),
        strict=record is None,
        on_image=show,
    )


def _scale(given: int | None, found: SampleFiles, folder: str | os.PathLike[str]) -> int:
    if given is None and found.scale is None:
        raise ValueError(f"scale must be given, 4 for instance: names in {one_line(folder)} do not tell it")
    if None not in (given, found.scale) and given != found.scale:
        raise ValueError(f"scale is {given}, but the names in {one_line(folder)} tell {found.scale}")
    return given or found.scale or 1


def _read_like(path: Path, hr: np.ndarray, scale: int) -> np.ndarray:
    """Read a sample, which may reach beyond the truth by what rounding of its size and crops explain."""
    sample = read_image(path)
    height, width = (side + CROP_MULTIPLE + scale for side in hr.shape[:2])
    if sample.shape[0] >= height or sample.shape[1] >= width:
        raise ValueError(
            f"{one_line(path)} has {sample.shape[1]} x {sample.shape[0]} pixels, the truth only "
            f"{hr.shape[1]} x {hr.shape[0]}: it is another image, or of another scale"
        )
    return sample
