"""The figures of a report: their names, which way is better, and how they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Figure", "figures_of", "shown_distance"]


@dataclass(frozen=True)
class Figure:
    """One of the figures of :class:`sr_models.evaluation.scores.Scores`.

    Attributes:
        key: its field.
        label: its name for readers.
        better: which values are better.
        digits: decimals that are shown.
        unit: follows the number.
        meaning: one sentence for readers.
    """

    key: str
    label: str
    better: Literal["lower", "higher"]
    digits: int
    unit: str
    meaning: str

    def text(self, value: float) -> str:
        """Format a value: a dash for NaN, and ``exact`` for infinite decibels."""
        if math.isnan(value):
            return "\N{EN DASH}"
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "exact"


_LR_PSNR = Figure(
    "lr_psnr",
    "LR-PSNR",
    "higher",
    1,
    "dB",
    "agreement with the low resolution, once the image is reduced again. The challenge asks for 45 dB",
)
_DIVERSITY = Figure(
    "diversity",
    "Diversity",
    "higher",
    1,
    "%",
    "how much nearer to the truth one gets by choosing among the samples at every pixel",
)
_PSNR = Figure("psnr", "PSNR", "higher", 2, "dB", "closeness to the truth, pixel by pixel. It rewards blur")
_SSIM = Figure("ssim", "SSIM", "higher", 3, "", "similarity of local structure to the truth. It rewards blur too")
_NLL = Figure("nll", "NLL", "lower", 3, "b/dim", "negative log-likelihood of the truth, in bits per dimension")
_DISTANCES = {
    "lpips": ("LPIPS", "perceptual distance to the truth, by a network that was fitted to people's judgement"),
    "mse": ("squared error", "mean squared error, in the place of LPIPS, whose weights are not on this machine"),
}


def shown_distance(distance_name: str) -> str:
    """Return the name of a distance for readers."""
    return _DISTANCES.get(distance_name, (distance_name, ""))[0]


def figures_of(distance_name: str) -> tuple[Figure, ...]:
    """Return the figures of a table of scores, the perceptual ones first."""
    meaning = _DISTANCES.get(distance_name, ("", "distance to the truth"))[1]
    distance = Figure(
        "distance", shown_distance(distance_name), "lower", 3 if distance_name == "lpips" else 4, "", meaning
    )
    return distance, _LR_PSNR, _DIVERSITY, _PSNR, _SSIM, _NLL
