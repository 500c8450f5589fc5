"""Pictures that compare images of a photograph with each other and with the truth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sr_models.io.resize import imresize

__all__ = [
    "PhotographPictures",
    "coloured",
    "draw_overview",
    "encode_figure",
    "inconsistency",
    "same_details",
    "spread",
]

# Part of a photograph that is shown enlarged: (height, width) in pixels.
_DETAIL = (96, 128)


@dataclass
class PhotographPictures:
    """A photograph that was not trained on, and what was made of it. Images are (H, W, 3) uint8.

    Attributes:
        name: name of the photograph.
        lr: low-resolution image, which the model saw.
        hr: the truth.
        plain: label -> image that was made without latents: bicubic interpolation, the encoder's image.
        samples: temperature -> samples.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray
    plain: dict[str, np.ndarray]
    samples: dict[float, list[np.ndarray]] = field(default_factory=dict)

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
    lost = np.abs(hr - photograph.plain["bicubic"])
    height, width = hr.shape[:2]
    corners = [
        (top, left)
        for top in range(0, max(height - _DETAIL[0], 0) + 1, 16)
        for left in range(0, max(width - _DETAIL[1], 0) + 1, 16)
    ]

    def part(image: np.ndarray, top: int, left: int) -> np.ndarray:
        return image[top : top + _DETAIL[0], left : left + _DETAIL[1]]

    corner = max(corners, key=lambda c: part(lost, *c).mean() if hardest else part(hr, *c).std())
    return {label: part(image, *corner) for label, image in images.items()}


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
