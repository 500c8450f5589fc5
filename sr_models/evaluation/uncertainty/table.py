"""A calibration as a text table for people."""

from __future__ import annotations

import math

import numpy as np

from sr_models.evaluation.uncertainty.calibration import Calibration
from sr_models.evaluation.uncertainty.texture import TEXTURES
from sr_models.io.text_tables import align_columns

__all__ = ["calibration_table", "describe_calibration"]

#: Levels that the table always shows, if there are enough samples.
_LEVELS = (0.5, 0.8)


def calibration_table(calibration: Calibration) -> str:
    """Format a calibration as an aligned text table, one row a temperature, coverage in percent.

    Columns are the coverage at the nominal levels 50, 80 and that of the calibration; its bootstrap interval; its value
    if ties with an end of the interval count as held, and if not; the mean width in grey levels; the coverage by
    texture; and the CRPS in grey levels.
    """
    level = calibration.level
    widest = calibration.pooled(next(iter(calibration.rows))).nominal()[0]
    levels = sorted({level, *(other for other in _LEVELS if other <= widest)})
    ends = ["", "with ends", "without", "width"]
    rows = [["temperature", *map(_percent, levels), *ends, *TEXTURES, "CRPS"]]
    for temperature in sorted(calibration.rows):
        scores = calibration.pooled(temperature)
        low, high = calibration.coverage_interval(temperature, level)
        ties = [
            float(np.interp(level, scores.nominal()[::-1], values[::-1]))
            for values in (scores.with_ends, scores.without_ends)
        ]
        parts = calibration.by_texture(temperature)
        rows.append(
            [
                f"{temperature:g}",
                *(f"{100 * scores.coverage_at(each):.1f}" for each in levels),
                "" if math.isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]",
                *(f"{100 * each:.1f}" for each in ties),
                f"{scores.width_at(level):.1f}",
                *(f"{100 * parts[name].coverage_at(level):.1f}" if name in parts else "" for name in TEXTURES),
                f"{scores.crps:.2f}",
            ]
        )
    return align_columns(rows)


def describe_calibration(calibration: Calibration) -> str:
    """Say in one line at which temperature the coverage is the level, or that it is nowhere."""
    tried, level = sorted(calibration.rows), _percent(calibration.level)
    covered = {each: 100 * calibration.pooled(each).coverage_at(calibration.level) for each in tried}
    images = len(calibration.rows[tried[0]])
    if calibration.temperature is None:
        if len(tried) == 1:
            return f"coverage {covered[tried[0]]:.1f} %, nominal {level}; give several temperatures to calibrate"
        above = covered[tried[0]] / 100 > calibration.level
        end = tried[0] if above else tried[-1]
        return (
            f"no temperature in {tried[0]:g}..{tried[-1]:g} has a coverage of {level}: it is {covered[end]:.1f} % at "
            f"{end:g}; give {'lower' if above else 'higher'} temperatures"
        )
    first, second = calibration.bracket or (tried[0], tried[0])
    low, high = calibration.interval
    about = f"{images} images" if math.isfinite(low) else "one image"
    if math.isfinite(low):
        about = f"95 % interval {low:.2f} to {high:.2f}, {about}"
    return (
        f"calibrated temperature for {level}: {calibration.temperature:.3f} ({about}), between {first:g} "
        f"({covered[first]:.1f} %) and {second:g} ({covered[second]:.1f} %)"
    )


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
