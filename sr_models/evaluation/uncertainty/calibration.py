"""Calibrating the temperature of samples: the one at which their intervals hold the truth as often as they say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from tqdm import tqdm

from sr_models.evaluation.bootstrap import draw_again, mean_interval
from sr_models.evaluation.pairs import Pair, find_pairs, load_pair
from sr_models.evaluation.sampling import check_sampling, draw_samples, sampling_settings
from sr_models.evaluation.streaming import ERRORS_OF_IMAGES, listed, reason_of, refuse
from sr_models.evaluation.uncertainty.coverage import IntervalScores, pool, score_intervals
from sr_models.evaluation.uncertainty.order_statistics import check_level
from sr_models.evaluation.uncertainty.record import CoverageRecord, ImageCoverage
from sr_models.evaluation.uncertainty.texture import TEXTURES
from sr_models.flow.consistency import Consistency
from sr_models.flow.explosions import OnExplode
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.precision import Precision, network_dtype, resolved

__all__ = ["TEMPERATURES", "Calibration", "calibrate_model", "find_temperature"]

#: Stands for a coverage of 1, which no temperature has if errors are normal.
_SURE = 1 - 1e-6
#: Temperatures that are tried unless others are given.
TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


@dataclass(frozen=True)
class Calibration:
    """Coverage of a model at several temperatures, and the temperature at which it is as it should be.

    Attributes:
        level: nominal level of the calibration.
        rows: temperature -> name of an image -> scores of all values, and by texture. The images are the same for every
            temperature.
        temperature: where the measured coverage is the level, between two of those tried; ``None`` if it is nowhere.
        interval: 95 % bootstrap interval of ``temperature`` over images. An end that equals the least or largest
            temperature tried says: there or beyond.
    """

    level: float
    rows: dict[float, dict[str, ImageCoverage]]
    temperature: float | None
    interval: tuple[float, float]

    def pooled(self, temperature: float) -> IntervalScores:
        """Join the scores of all images at one of the temperatures in ``rows``."""
        return pool([parts["all"] for parts in self.rows[temperature].values()])

    def by_texture(self, temperature: float) -> dict[str, IntervalScores]:
        """Join the scores of all images at a temperature for every texture that is in one of them."""
        images = self.rows[temperature].values()
        found = {name: [parts[name] for parts in images if name in parts] for name in TEXTURES}
        return {name: pool(scores) for name, scores in found.items() if scores}

    def coverage_interval(self, temperature: float, level: float) -> tuple[float, float]:
        """Return the 95 % bootstrap interval over images of the coverage at a temperature; NaN for one image."""
        images = [parts["all"] for parts in self.rows[temperature].values()]
        return mean_interval([one.coverage_at(level) for one in images], [one.values for one in images])

    @property
    def bracket(self) -> tuple[float, float] | None:
        """The neighbouring temperatures that were tried; ``None`` without a ``temperature``."""
        if self.temperature is None:
            return None
        tried = np.array(sorted(self.rows))
        index = max(int(np.searchsorted(tried, self.temperature)), min(1, len(tried) - 1))
        return float(tried[max(index - 1, 0)]), float(tried[index])

    def summary(self) -> dict[str, Any]:
        """Return what a file or a report says of it: plain values by name."""
        return {
            "level": self.level,
            "calibrated": None
            if self.temperature is None
            else {
                "temperature": self.temperature,
                # JSON has no NaN
                "interval": None if np.isnan(self.interval).any() else self.interval,
                "between": self.bracket,
            },
            "temperatures": [self._summary_at(temperature) for temperature in sorted(self.rows)],
        }

    def _summary_at(self, temperature: float) -> dict[str, Any]:
        scores = self.pooled(temperature)
        nominal = scores.nominal().tolist()
        ends = [self.coverage_interval(temperature, level) for level in nominal]
        return {
            "temperature": temperature,
            "images": len(self.rows[temperature]),
            "nominal": nominal,
            "measured": scores.coverage().tolist(),
            "interval": None if np.isnan(ends).any() else ends,
            "with_ends": scores.with_ends,
            "without_ends": scores.without_ends,
            "width": scores.width,
            "crps": scores.crps,
            "tied": scores.tied,
            "ranks": scores.ranks,
            "textures": {
                name: {"values": one.values, "measured": one.coverage().tolist(), "width": one.width, "crps": one.crps}
                for name, one in self.by_texture(temperature).items()
            },
        }


@torch.no_grad()
def calibrate_model(
    model: SuperResolutionFlow,
    images: str | os.PathLike[str],
    *,
    lr_images: str | os.PathLike[str] | None = None,
    level: float = 0.9,
    samples: int = 19,
    temperatures: Sequence[float] | None = None,
    seed: int = 0,
    on_explode: OnExplode = "resample",
    tile: int | None = None,
    precision: Precision = "fp32",
    consistency: Consistency = "none",
    record: CoverageRecord | None = None,
) -> Calibration:
    """Measure the coverage of a model's intervals on photographs at several temperatures, with a progress bar.

    Sample j of an image has the same latents at every temperature, but for their scale. Differences between
    temperatures are thus not of the draw. Every value of every colour counts, after rounding to 8 bits. One image with
    its samples is in memory at a time.

    Args:
        model: in evaluation mode.
        images, lr_images: as for :func:`sr_models.evaluation.evaluate.evaluate_model`. They should be photographs that
            the model was not trained on.
        level: nominal level that the calibrated temperature reaches.
        samples: samples an image and temperature. n of them reach levels up to (n - 1) / (n + 1); 19 reach 0.5, 0.8
            and 0.9 exactly.
        temperatures: those that are tried, at least one; the calibrated one lies between two of them. Default:
            :data:`TEMPERATURES` and the model's own.
        seed: determines the samples.
        on_explode, tile, precision, consistency: as for :meth:`SuperResolutionFlow.sample`.
        record: keeps the scores of every image and temperature as soon as they are known; what it knows already is not
            sampled again. An image that cannot be read or sampled at one of the temperatures is noted there, and left
            out at all of them. None: it is an error.

    Returns:
        Coverage of all images that could be sampled at every temperature.

    Raises:
        FileNotFoundError, NotADirectoryError: images that are missing.
        ValueError: arguments out of range, images that do not fit, or none that could be sampled.
        ExplosionError: a sample that exploded, without a record.
    """
    check_level(level, samples)
    tried = sorted(
        {float(each) for each in ((*TEMPERATURES, model.temperature) if temperatures is None else temperatures)}
    )
    if not tried:
        raise ValueError("temperatures must hold at least one, got none")
    for temperature in tried:
        check_sampling(model, samples, temperature, seed, on_explode, tile, consistency)
    like = next(model.parameters())
    dtype = network_dtype(precision, like.device, like.dtype)
    pairs, unreadable = find_pairs(images, model.scale, lr_images)
    strict = record is None
    if strict:
        refuse(unreadable)
    record = record or CoverageRecord()
    settings = {
        **sampling_settings(model, samples, seed, on_explode, tile, lr_images),
        "precision": "fp32" if dtype is None else resolved(precision, like.device),
        "consistency": consistency,
    }
    record.begin(settings, pairs)
    for name, reason in unreadable.items():
        record.fail(name, reason)

    def score(pair: Pair, temperature: float) -> ImageCoverage:
        lr, hr = load_pair(pair.hr, model.scale, pair.lr)
        drawn = draw_samples(
            model,
            lr,
            samples,
            temperature=temperature,
            seed=seed,
            on_explode=on_explode,
            tile=tile,
            precision=precision,
            consistency=consistency,
        )
        return score_intervals(drawn, hr, lr)

    pending = {pair: [each for each in tried if each not in record.rows.get(pair.name, {})] for pair in pairs}
    total = len(pairs) * len(tried)
    with tqdm(total=total, initial=total - sum(map(len, pending.values())), desc="calibrating", unit="image") as bar:
        for pair, missing in pending.items():
            for temperature in missing:
                try:
                    scores = score(pair, temperature)
                except ERRORS_OF_IMAGES as error:
                    record.fail(pair.name, f"at temperature {temperature:g}: {reason_of(error, strict=strict)}")
                    break
                record.add(pair, temperature, scores)
                bar.update()
    names = [pair.name for pair in pairs if {*tried} <= record.rows.get(pair.name, {}).keys()]
    if not names:
        raise ValueError(f"no image could be sampled at every temperature: {listed(record.failures)}")
    calibration = _calibration(
        level, {temperature: {name: record.rows[name][temperature] for name in names} for temperature in tried}
    )
    record.finish(calibration.summary())
    return calibration


def find_temperature(temperatures: Sequence[float], coverage: Sequence[float], level: float) -> float | None:
    r"""Find the temperature at which coverage is a level, by interpolation between temperatures that were tried.

    Coverage c grows with the temperature T. Where measured values fall nevertheless, the largest so far counts. Linear
    in T is :math:`\Phi^{-1}((1 + c) / 2)`, as it is for normal errors: c itself is curved.

    Args:
        temperatures: ascending.
        coverage: measured at each.
        level: wanted.

    Returns:
        The least such temperature; ``None`` if the level is beyond what was measured.

    Example:
        >>> round(find_temperature([0.8, 0.9, 1.0], [0.84, 0.88, 0.96], 0.9), 3)
        0.918
    """
    rising = np.maximum.accumulate(coverage)
    if not rising[0] <= level <= rising[-1]:
        return None
    index = int(np.searchsorted(rising, level))
    if rising[index] == level:
        return float(temperatures[index])
    low, wanted, high = ndtri((1 + np.minimum([rising[index - 1], level, rising[index]], _SURE)) / 2)
    share = (wanted - low) / (high - low)
    return float(temperatures[index - 1] + share * (temperatures[index] - temperatures[index - 1]))


def _calibration(level: float, rows: dict[float, dict[str, ImageCoverage]]) -> Calibration:
    tried = sorted(rows)
    images = [[parts["all"] for parts in rows[temperature].values()] for temperature in tried]
    values = np.array([one.values for one in images[0]], dtype=np.float64)
    coverage = np.array([[one.coverage_at(level) for one in row] for row in images])
    found = find_temperature(tried, (coverage @ values / values.sum()).tolist(), level)
    if found is None or len(values) < 2:
        return Calibration(level, rows, found, (float("nan"), float("nan")))
    weights = draw_again(len(values)) * values
    means = weights @ coverage.T / weights.sum(1, keepdims=True)
    drawn = []
    for row in np.maximum.accumulate(means, axis=1):
        crossing = find_temperature(tried, row, level)
        drawn.append(crossing if crossing is not None else tried[0] if row[0] > level else tried[-1])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Calibration(level, rows, found, (float(low), float(high)))
