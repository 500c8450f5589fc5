"""The report of an evaluation: methods beside each other, as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sr_models.evaluation.report.curve_parts import coverage_part
from sr_models.evaluation.report.figures import figures_of, shown_distance
from sr_models.evaluation.report.method import Method, models_of, on_common_images
from sr_models.evaluation.report.page import MOST_LAYERS, write_page
from sr_models.evaluation.report.parts import map_part, photograph_part, sweep_part
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.report.ranking_part import ranking_part
from sr_models.evaluation.report.score_parts import cost_part, glance_part, image_part, score_part

__all__ = ["MOST_PHOTOGRAPHS", "shown_images", "write_report"]

#: Photographs that a report shows, so that it stays small.
MOST_PHOTOGRAPHS = 3
#: Images without scores that are named.
_NAMED = 10


def shown_images(method: Method) -> dict[str, str]:
    """Choose the images that a report shows: those with the lowest, the middle and the highest distance to the truth.

    Returns:
        Name of an image -> why it was chosen, in the order of the distances; all images if there are at most three.
    """
    rows = sorted(method.rows, key=lambda row: row.distance)
    name = shown_distance(method.distance_name)
    if len(rows) <= MOST_PHOTOGRAPHS:
        return {row.image: "" for row in rows}
    chosen = {"lowest": rows[0], "middle": rows[len(rows) // 2], "highest": rows[-1]}
    return {
        row.image: f"The {which} {name} of {method.name} among {len(rows)} images." for which, row in chosen.items()
    }


def write_report(
    path: str | os.PathLike[str],
    methods: Sequence[Method],
    scale: int,
    *,
    photographs: Sequence[PhotographPictures] = (),
    sweep_images: Mapping[str, np.ndarray] | None = None,
    commands: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a page that compares methods, atomically.

    It has everything in it and asks no other machine for anything. Scores are means over the images that all methods
    have.

    Args:
        path: HTML file; its folder exists.
        methods: at least one, baselines first. Names, distances and images are checked.
        scale: enlargement.
        photographs: what :func:`shown_images` chose, with samples under the methods' names. Each takes about 3 MB.
        sweep_images: label -> image of the first photograph, one a temperature.
        commands: comment and command, for readers who go on.
        notes: what the reader must know.

    Raises:
        ValueError: methods that cannot be compared.
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    methods = on_common_images(methods)
    models = models_of(methods)
    count = len(methods[0].rows)
    images = f"{count} image{'s' if count > 1 else ''}"
    facts = {
        "title": f"{_listed([method.name for method in models])}: images enlarged {scale} times",
        "summary": f"{images}, scored as the NTIRE challenge on learning the super-resolution space does. "
        + " ".join(_setting(method) for method in models),
        "notes": [*notes, *_notes(methods)],
        "commands": commands,
        "credits": [],
    }
    parts: dict[str, Any] = {
        "glance": glance_part(methods),
        "scores": score_part(methods, f"Means over {images}."),
        "ranking": ranking_part(methods, scale),
        "cost": cost_part(methods),
        "coverage": coverage_part(methods),
        "images": image_part(methods),
    }
    if photographs:
        remarks = shown_images(models[0])
        parts["pictures"] = [
            photograph_part(
                each,
                *_sampled(each, models),
                notes=_distances(each.name, methods),
                remark=remarks.get(each.name, ""),
            )
            for each in photographs
        ]
        parts["maps"] = [map_part(each, *_sampled(each, models)) for each in photographs]
    if any(method.sweep for method in methods):
        parts["sweep"] = sweep_part(
            photographs[0] if photographs else None,
            sweep_images or {},
            methods,
            f"Means over {images}. A ring marks the temperature of the scores above; at temperature 0 there is one "
            "sample.",
        )
    write_page(Path(path), facts, {name: part for name, part in parts.items() if part is not None})


def _sampled(photograph: PhotographPictures, models: Sequence[Method]) -> list[str]:
    return [method.name for method in models if photograph.samples.get(method.name)][: MOST_LAYERS - 3]


def _setting(method: Method) -> str:
    samples = f"{method.n} sample{'s' if method.n > 1 else ''} an image"
    return f"{method.name}: {samples}{'' if method.temperature is None else f' at temperature {method.temperature:g}'}."


def _notes(methods: Sequence[Method]) -> list[str]:
    notes = []
    for method in methods:
        failed = list(method.failures.items())
        notes += [f"{method.name} has no scores of {image}: {reason}" for image, reason in failed[:_NAMED]]
        if failed[_NAMED:]:
            notes.append(f"{method.name} has no scores of {len(failed) - _NAMED} more images.")
    return notes


def _distances(image: str, methods: Sequence[Method]) -> dict[str, str]:
    """Return label of a picture -> the distance to the truth of the image that it shows."""
    figure = figures_of(methods[0].distance_name)[0]
    several = len([method for method in methods if not method.baseline]) > 1
    found: dict[str, float] = {}
    for method in methods:
        row = next((row for row in method.rows if row.image == image), None)
        if row is None:
            continue
        singles = row.sample_distances or ((row.distance,) if method.n == 1 else ())
        alone = not method.baseline and not several
        labels = [f"sample {number}" for number in range(1, len(singles) + 1)] if alone else [method.name]
        found.update(zip(labels, singles, strict=False))
    return {label: f"{figure.label} {figure.text(value)}" for label, value in found.items()}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
