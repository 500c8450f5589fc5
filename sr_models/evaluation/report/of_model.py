"""The report of one evaluated model: its baselines, other temperatures, pictures and coverage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.evaluate import evaluate_model
from sr_models.evaluation.metrics import Distance
from sr_models.evaluation.pairs import Pair, find_pairs, load_pair
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.report.gallery import compared
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.report.stored import keep_coverage, sweep_file, write_baselines
from sr_models.evaluation.report.write import shown_images, write_report
from sr_models.evaluation.sampling import draw_samples
from sr_models.evaluation.scores import Scores
from sr_models.evaluation.uncertainty.coverage import IntervalScores, pool, score_intervals
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow

__all__ = ["CoverageOfImages", "report_model"]


class CoverageOfImages:
    """Coverage of the intervals of samples, image by image; call it with every image that is scored."""

    def __init__(self) -> None:
        self._scores: dict[str, IntervalScores] = {}

    def __call__(self, path: Path, lr: np.ndarray, samples: Sequence[np.ndarray], hr: np.ndarray) -> None:
        if len(samples) > 1:
            self.add(compared(str(path), lr, hr, samples[0].shape[0] // lr.shape[0], {}, {"": samples}))

    def add(self, photograph: PhotographPictures) -> None:
        """Take the samples of a photograph into account; those of one that is known are not taken again."""
        [samples] = photograph.samples.values()
        if len(samples) > 1 and photograph.name not in self._scores:
            self._scores[photograph.name] = score_intervals(samples, photograph.hr, photograph.lr)["all"]

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Nominal and measured coverage of all values of all images, both in 0..1; empty if there is no image."""
        if not self._scores:
            return []
        scores = pool(list(self._scores.values()))
        return list(zip(scores.nominal().tolist(), scores.coverage().tolist(), strict=True))


def report_model(
    path: str | os.PathLike[str],
    model: SuperResolutionFlow,
    method: Method,
    images: str,
    *,
    lr_images: str | None,
    baselines: Mapping[str, Sequence[Scores]],
    coverage: CoverageOfImages,
    temperatures: Sequence[float],
    output: str | os.PathLike[str] | None,
    distance: Distance,
    overwrite: bool,
    **sampling: Any,
) -> None:
    """Score a model at other temperatures, draw what the page shows, and write it.

    Args:
        path: HTML file; its folder exists.
        model: in evaluation mode.
        method: the model's scores at its temperature.
        images, lr_images: as they were scored.
        baselines: label -> one :class:`Scores` an image.
        coverage: what :func:`evaluate_model` called for every image that it scored now. If others were scored before,
            the curve is of fewer images, of those that the page shows at least.
        temperatures: those of the curves, besides the model's own; none: there are no curves.
        output: the CSV file of the scores. What the page needs besides is written beside it, for
            :func:`sr_models.evaluation.report.of_files.report_files`. None: nothing is kept.
        distance: distance to the truth.
        overwrite: score at the other temperatures again, whatever was kept.
        sampling: seed, on_explode, tile, precision and consistency, as they were scored.
    """
    others = sorted({*map(float, temperatures)} - {method.temperature})
    sweep, notes = _score_sweep(
        model, images, others, output, method, lr_images=lr_images, distance=distance, overwrite=overwrite, **sampling
    )
    if sweep and method.temperature is not None:
        sweep[method.temperature] = list(method.rows)
    photographs = _draw_photographs(model, images, lr_images, method, "encoder's image" in baselines, sampling)
    for pair, photograph in photographs:
        coverage.add(replace(photograph, name=str(pair.hr)))
    method = replace(method, sweep=sweep, coverage=coverage.curve, covered=len(coverage))
    if output is not None:
        write_baselines(output, baselines, method.distance_name)
        method = keep_coverage(output, method)
    drawn = {}
    for at in sorted(sweep):
        # one that explodes here was resampled there, or costs the picture only
        with contextlib.suppress(ExplosionError):
            drawn[f"temperature {at:g}"] = draw_samples(model, photographs[0][1].lr, 1, temperature=at, **sampling)[0]
    plain = [Method(label, rows, method.distance_name, baseline=True) for label, rows in baselines.items()]
    shown = [photograph for _, photograph in photographs]
    write_report(path, [*plain, method], model.scale, photographs=shown, sweep_images=drawn, notes=notes)


def _score_sweep(
    model: SuperResolutionFlow,
    images: str,
    temperatures: Sequence[float],
    output: str | os.PathLike[str] | None,
    method: Method,
    *,
    overwrite: bool,
    **settings: Any,
) -> tuple[dict[float, list[Scores]], list[str]]:
    """Score at every temperature, each in a file of its own; and say at which no image could be sampled."""
    swept, notes = {}, []
    for at in temperatures:
        file = None if output is None else sweep_file(output, at)
        record = ScoreRecord(file, distance_name=method.distance_name, overwrite=overwrite)
        # at temperature 0 all samples are the same
        samples = method.n if at else 1
        try:
            swept[at] = evaluate_model(model, images, samples=samples, temperature=at, record=record, **settings)
        except ValueError as error:
            if record.rows or not record.failures:
                raise
            notes.append(f"At temperature {at:g} {error}")
    return swept, notes


def _draw_photographs(
    model: SuperResolutionFlow,
    images: str,
    lr_images: str | None,
    method: Method,
    encoder: bool,
    sampling: Mapping[str, Any],
) -> list[tuple[Pair, PhotographPictures]]:
    """Draw the samples of the images that are shown again, as they were when they were scored."""
    pairs = {pair.name: pair for pair in find_pairs(images, model.scale, lr_images)[0]}
    photographs = []
    for name in shown_images(method):
        pair = pairs[name]
        lr, hr = load_pair(pair.hr, model.scale, pair.lr)
        plain = baseline_images(lr, model.scale, model if encoder else None)
        samples = draw_samples(model, lr, method.n, temperature=method.temperature, **sampling)
        photographs.append((pair, compared(name, lr, hr, model.scale, plain, {method.name: samples})))
    return photographs
