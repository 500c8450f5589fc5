"""Pictures that compare samples of photographs with each other and with the truth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

__all__ = ["PhotographPictures", "draw_overview", "encode_figure", "same_details", "spread", "spread_map"]

# Part of a photograph that is shown enlarged: (height, width) in pixels.
_DETAIL = (96, 128)


@dataclass
class PhotographPictures:
    """A photograph that was not trained on, and what was made of it. Images are (H, W, 3) uint8.

    Attributes:
        name: name of the photograph.
        lr: low-resolution image, which the model saw.
        bicubic: ``lr`` enlarged without a model.
        hr: the truth.
        samples: label of a temperature -> samples.
    """

    name: str
    lr: np.ndarray
    bicubic: np.ndarray
    hr: np.ndarray
    samples: dict[str, list[np.ndarray]]


def same_details(photograph: PhotographPictures, *, samples: int) -> dict[str, np.ndarray]:
    """Cut the same part out of every image of a photograph.

    Args:
        photograph: its images.
        samples: how many samples of a temperature are shown, at most.

    Returns:
        Label -> image (96, 128, 3) uint8, or smaller where the photograph is; from the low resolution to the truth.
    """
    scale = photograph.hr.shape[0] // photograph.lr.shape[0]
    images = {"low resolution": photograph.lr.repeat(scale, 0).repeat(scale, 1), "bicubic": photograph.bicubic}
    for label, drawn in photograph.samples.items():
        for index, sample in enumerate(drawn[:samples]):
            images[f"{label}, sample {index + 1}" if min(samples, len(drawn)) > 1 else label] = sample
    images["truth"] = photograph.hr
    top, left = _busiest(photograph.hr)
    return {label: image[top : top + _DETAIL[0], left : left + _DETAIL[1]] for label, image in images.items()}


def _busiest(image: np.ndarray) -> tuple[int, int]:
    """Top and left of the part with the most contrast among a grid of candidates."""
    height, width = image.shape[:2]
    candidates = [
        (top, left)
        for top in range(0, max(height - _DETAIL[0], 0) + 1, 16)
        for left in range(0, max(width - _DETAIL[1], 0) + 1, 16)
    ]
    return max(candidates, key=lambda c: image[c[0] : c[0] + _DETAIL[0], c[1] : c[1] + _DETAIL[1]].std())


def draw_overview(pictures: Sequence[PhotographPictures]) -> Figure:
    """Draw one detail of every photograph, a row each."""
    rows = [same_details(photograph, samples=1) for photograph in pictures]
    figure = Figure(figsize=(2.2 * len(rows[0]), 1.9 * len(rows)), layout="constrained")
    for line, (axes_of_row, row) in enumerate(
        zip(figure.subplots(len(rows), len(rows[0]), squeeze=False), rows, strict=True)
    ):
        for axes, (label, image) in zip(axes_of_row, row.items(), strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            if line == 0:
                axes.set_title(label, fontsize=10)
    return figure


def spread(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of every pixel over samples (H, W, 3) uint8: (H, W) float64, mean over the colours."""
    return np.stack(samples).astype(np.float64).std(0).mean(-1)


def spread_map(values: np.ndarray) -> np.ndarray:
    """Colour a map (H, W) of values that are at least 0: (H, W, 3) uint8, the largest value brightest."""
    scaled = values / max(float(values.max()), 1e-12)
    return (matplotlib.colormaps["magma"](scaled)[..., :3] * 255).round().astype(np.uint8)


def encode_figure(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
