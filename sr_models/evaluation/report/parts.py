"""The parts of a report that are made of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sr_models.evaluation.metrics import lr_psnr
from sr_models.evaluation.report.curve_parts import SWEPT, legend, sweep_charts
from sr_models.evaluation.report.figures import figures_of
from sr_models.evaluation.report.method import Method, at_temperature
from sr_models.evaluation.report.page import MOST_LAYERS, Picture
from sr_models.evaluation.report.pictures import (
    PhotographPictures,
    Samples,
    coloured,
    inconsistency,
    mean_error,
    same_details,
    spread,
    viewed_part,
)

__all__ = ["map_part", "overview_row", "photograph_part", "sweep_part", "tuned_part"]

#: Seen in the viewer only: it hardly differs from bicubic interpolation.
_VIEWER_ONLY = ("bicubic, back-projected",)
#: Samples of one method that are shown; of several methods one is.
_SHOWN = 2


def overview_row(photograph: PhotographPictures, *of: Samples, hardest: bool = False) -> dict[str, np.ndarray]:
    """Cut the same detail out of the low resolution, the images made of it, and the truth: label -> image.

    Args:
        photograph: has samples of all that are named.
        of: what the samples belong to. Of one, two samples are shown, of several one each, under their names.
        hardest: which detail, see :func:`same_details`.
    """
    images = {label: image for label, image in _images(photograph, of).items() if label not in _VIEWER_ONLY}
    return same_details(photograph, images, hardest=hardest)


def photograph_part(
    photograph: PhotographPictures, *of: Samples, notes: Mapping[str, str] | None = None, remark: str = ""
) -> dict[str, Any]:
    """Show a photograph: large, one image at a time, and details side by side.

    Args:
        photograph, of: as for :func:`overview_row`.
        notes: label -> figures that belong to an image.
        remark: a sentence about the photograph.
    """
    height, width = photograph.lr.shape[:2]
    high, wide = photograph.hr.shape[:2]
    images = _images(photograph, of)
    rows, columns = viewed_part(photograph)
    shown = ""
    if (rows.stop - rows.start, columns.stop - columns.start) != (high, wide):
        shown = (
            f"Shown are the {columns.stop - columns.start} x {rows.stop - rows.start} pixels with the most contrast, "
            f"from column {columns.start} and row {rows.start} on, of {wide} x {high}."
        )
    return {
        "name": photograph.name,
        "sizes": f"{width} x {height} to {wide} x {high} pixels",
        "whole": _pictures({label: image[rows, columns] for label, image in images.items()}, notes),
        # the first sample, which flickers with the truth
        "chosen": len(images) - 1 - len(_sample_images(photograph, of)),
        "part": f"{remark} {shown}".strip(),
        "details": _pictures(overview_row(photograph, *of)),
        "hardest": _pictures(overview_row(photograph, *of, hardest=True)),
    }


def map_part(photograph: PhotographPictures, *of: Samples, exact: np.ndarray | None = None) -> dict[str, Any]:
    """Show where samples differ, where they are wrong, and how far they are from the low resolution once reduced.

    Args:
        photograph: has samples of all that are named; its intervals are shown too.
        of: what the samples belong to.
        exact: the first sample, changed so that it agrees with the low resolution.
    """
    rows, columns = viewed_part(photograph)
    scale = photograph.scale
    low = slice(rows.start // scale, rows.stop // scale), slice(columns.start // scale, columns.stop // scale)
    names = {each: f"{each}, " if len(of) > 1 else "" for each in of}
    bicubic = photograph.plain["bicubic"]
    errors = {f"{names[each]}error": mean_error(photograph.samples[each], photograph.hr) for each in of}
    errors["bicubic, error"] = mean_error([bicubic], photograph.hr)
    several = {each: samples for each in of if len(samples := photograph.samples[each]) > 1}
    deviations = {
        f"{names[each]}standard deviation over {len(samples)} samples": spread(samples)
        for each, samples in several.items()
    }
    agreements = [
        _agreement(values, errors[f"{names[each]}error"])
        for each, values in zip(several, deviations.values(), strict=True)
    ]
    reduced = {"bicubic": bicubic}
    for each in of:
        reduced[f"{each}" if len(of) > 1 else "sample"] = photograph.samples[each][0]
    if exact is not None:
        reduced["sample with consistency exact"] = exact
    distances = {
        f"{label}: distance to the low resolution": inconsistency(image, photograph.lr)
        for label, image in reduced.items()
    }
    decibels = [f"LR-PSNR {_decibels(lr_psnr(image, photograph.hr, scale))}" for image in reduced.values()]
    pictures = _maps(deviations, (rows, columns), agreements)
    for name, maps in photograph.intervals.items():
        label = f"{name}, " if len(photograph.intervals) > 1 else ""
        pictures += _maps({f"{label}width of the {100 * maps.level:.0f} % intervals": maps.width}, (rows, columns))
        note = f"{100 * float(maps.outside.mean()):.0f} % of all values, {100 * (1 - maps.level):.0f} % expected"
        pictures.append(Picture.of(coloured(maps.outside[rows, columns], 1.0), f"{label}truth outside of them", note))
    pictures += _maps(errors, (rows, columns))
    pictures += _maps(distances, low, decibels, pixels=True)
    return {"name": photograph.name, "pictures": pictures}


def sweep_part(
    photograph: PhotographPictures | None,
    images: Mapping[str, np.ndarray],
    methods: Sequence[Method],
    explanation: str,
) -> dict[str, Any]:
    """Show a detail of one sample a temperature, and mean scores over all photographs as curves and as a table.

    Args:
        photograph: the one whose detail is shown; ``None``: none is.
        images: label -> image of the photograph.
        methods: some have a sweep.
        explanation: what the means are over.
    """
    figures = [figure for figure in figures_of(methods[0].distance_name) if figure.key in SWEPT]
    swept = [method for method in methods if method.sweep]
    return {
        "pictures": _pictures(same_details(photograph, images)) if photograph else [],
        "charts": sweep_charts(methods),
        "legend": legend(methods, swept=True),
        "rows": [
            ["temperature", *(figure.label for figure in figures)],
            *(
                [
                    f"{method.name}, {at:g}" if len(swept) > 1 else f"{at:g}",
                    *(figure.text(getattr(at_temperature(method, at).mean, figure.key)) for figure in figures),
                ]
                for method in swept
                for at in sorted(method.sweep)
            ),
        ],
        "explanation": explanation,
    }


def tuned_part(photograph: PhotographPictures, before: np.ndarray, after: np.ndarray, text: str) -> dict[str, Any]:
    """Show a detail of a sample before and after training, beside the truth."""
    images = {"before training": before, "after training": after, "truth": photograph.hr}
    return {"pictures": _pictures(same_details(photograph, images)), "text": text}


def _images(photograph: PhotographPictures, of: Sequence[Samples]) -> dict[str, np.ndarray]:
    """Return what is compared: label -> image of the size of the truth."""
    samples = _sample_images(photograph, of)
    plain = dict(list(photograph.plain.items())[: MOST_LAYERS - 2 - len(samples)])
    low = photograph.lr.repeat(photograph.scale, 0).repeat(photograph.scale, 1)
    return {"low resolution": low, **plain, **samples, "truth": photograph.hr}


def _sample_images(photograph: PhotographPictures, of: Sequence[Samples]) -> dict[str, np.ndarray]:
    if len(of) == 1:
        return {f"sample {number}": image for number, image in enumerate(photograph.samples[of[0]][:_SHOWN], 1)}
    return {str(each): photograph.samples[each][0] for each in list(of)[: MOST_LAYERS - 3]}


def _pictures(images: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None) -> list[Picture]:
    return [
        Picture.of(image, label, (notes or {}).get(label, ""), pixels=label == "low resolution")
        for label, image in images.items()
    ]


def _maps(
    maps: Mapping[str, np.ndarray], part: tuple[slice, slice], notes: Sequence[str] = (), *, pixels: bool = False
) -> list[Picture]:
    """Colour maps of one kind: label -> (H, W); they have one scale of colours."""
    brightest = max((float(values.max()) for values in maps.values()), default=0.0)
    pictures = []
    for number, (label, values) in enumerate(maps.items()):
        note = f"mean {values.mean():.1f}, white {brightest:.0f} of 255 grey levels"
        if number < len(notes) and notes[number]:
            note = f"{notes[number]}, {note}"
        pictures.append(Picture.of(coloured(values[part], brightest), label, note, pixels=pixels))
    return pictures


def _agreement(deviation: np.ndarray, error: np.ndarray) -> str:
    """Say how alike two maps are; nothing of a map that is the same everywhere."""
    if min(deviation.std(), error.std()) == 0:
        return ""
    return f"correlation with the error {np.corrcoef(deviation.ravel(), error.ravel())[0, 1]:.2f}"


def _decibels(value: float) -> str:
    """Format a PSNR; that of images that agree in every value is infinite."""
    return f"{value:.1f}" if math.isfinite(value) else "exact"
