"""Pictures that compare images of a photograph with each other and with the truth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sr_models.io.resize import imresize

__all__ = [
    "IntervalMaps",
    "PhotographPictures",
    "Samples",
    "coloured",
    "draw_overview",
    "encode_figure",
    "inconsistency",
    "mean_error",
    "same_details",
    "spread",
    "viewed_part",
]

#: Part of a photograph that is shown enlarged, and that which a viewer shows: (height, width) in pixels.
_DETAIL, _VIEWED = (96, 128), (384, 512)
#: Parts begin at multiples of so many pixels.
_STEP = 16

#: What samples belong to: a temperature, or a method's name.
Samples: TypeAlias = "float | str"


@dataclass(frozen=True)
class IntervalMaps:
    """Intervals of the samples of a photograph.

    Attributes:
        level: share of values that they should hold.
        width: their widths in grey levels, mean over the colours: (H, W).
        outside: share of the colours of a pixel of which they do not hold the truth: (H, W).
    """

    level: float
    width: np.ndarray
    outside: np.ndarray


@dataclass
class PhotographPictures:
    """A photograph that was not trained on, and what was made of it. Images are (H, W, 3) uint8.

    Attributes:
        name: name of the photograph.
        lr: low-resolution image, which the model saw.
        hr: the truth.
        plain: label -> image that was made without latents: bicubic interpolation, the encoder's image.
        samples: temperature, or name of a method -> samples.
        intervals: name of a method -> :class:`IntervalMaps`.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray
    plain: dict[str, np.ndarray]
    samples: dict[Samples, list[np.ndarray]] = field(default_factory=dict)
    intervals: dict[str, IntervalMaps] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """Enlargement."""
        return self.hr.shape[0] // self.lr.shape[0]


def same_details(
    photograph: PhotographPictures, images: Mapping[str, np.ndarray], *, hardest: bool = False
) -> dict[str, np.ndarray]:
    """Cut the same part out of images of a photograph.

    Args:
        photograph: its truth says which part: the one with the most contrast.
        images: label -> image of the size of the truth.
        hardest: take the part where bicubic interpolation is farthest from the truth instead.

    Returns:
        Label -> image (96, 128, 3) uint8, or smaller where the photograph is.
    """
    hr = photograph.hr.astype(np.float64)
    part = _highest_mean(np.abs(hr - photograph.plain["bicubic"])) if hardest else _most_contrast(hr, _DETAIL)
    return {label: image[part] for label, image in images.items()}


def viewed_part(photograph: PhotographPictures) -> tuple[slice, slice]:
    """Return rows and columns of what a viewer shows: 384 x 512 pixels with the most contrast, or all there are."""
    return _most_contrast(photograph.hr.astype(np.float64), _VIEWED)


def _highest_mean(values: np.ndarray) -> tuple[slice, slice]:
    return _best_part(_window_sums(values, _DETAIL), values, _DETAIL)


def _most_contrast(values: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    count = min(size[0], values.shape[0]) * min(size[1], values.shape[1]) * values.shape[2]
    # the variance: of values around 0, so that little is lost in the difference
    values = values - values.mean()
    return _best_part(_window_sums(values**2, size) - _window_sums(values, size) ** 2 / count, values, size)


def _window_sums(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sum values (H, W, 3) over all windows that begin at multiples of the step."""
    height, width = min(size[0], values.shape[0]), min(size[1], values.shape[1])
    sums = np.pad(values.sum(-1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top = np.arange(0, values.shape[0] - height + 1, _STEP)[:, None]
    left = np.arange(0, values.shape[1] - width + 1, _STEP)
    return sums[top + height, left + width] - sums[top, left + width] - sums[top + height, left] + sums[top, left]


def _best_part(scores: np.ndarray, values: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    top, left = (int(index) * _STEP for index in np.unravel_index(scores.argmax(), scores.shape))
    return slice(top, top + min(size[0], values.shape[0])), slice(left, left + min(size[1], values.shape[1]))


def draw_overview(rows: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Draw images side by side, a row for each mapping of labels to images; all rows have the first one's labels."""
    figure = Figure(figsize=(2.2 * len(rows[0]), 1.75 * len(rows) + 0.15), layout="constrained")
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


def mean_error(samples: Sequence[np.ndarray], hr: np.ndarray) -> np.ndarray:
    """Absolute difference of samples (H, W, 3) uint8 to the truth: (H, W) float64, mean over samples and colours."""
    return np.mean([np.abs(sample.astype(np.float64) - hr).mean(-1) for sample in samples], 0)


def inconsistency(image: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Compare an image, reduced as MATLAB does, with its low-resolution image.

    Args:
        image: (scale h, scale w, 3) uint8.
        lr: (h, w, 3) uint8.

    Returns:
        (h, w) float64: the absolute difference in grey levels, mean over the colours.
    """
    reduced = imresize(image, lr.shape[0] / image.shape[0])
    return np.abs(reduced.astype(np.float64) - lr).mean(-1)


def coloured(values: np.ndarray, brightest: float) -> np.ndarray:
    """Colour a map (H, W) of values that are at least 0: (H, W, 3) uint8, black for 0, white from ``brightest`` on."""
    scaled = np.minimum(values / max(brightest, 1e-12), 1)
    return (matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8)


def encode_figure(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
