"""The photographs of a report: read, enlarged by the baselines, and cut to the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sr_models.evaluation.report.pictures import IntervalMaps, PhotographPictures
from sr_models.evaluation.scoring import CROP_MULTIPLE

__all__ = ["compared"]

#: Samples below which intervals say little.
_FEWEST = 5


def compared(
    name: str,
    lr: np.ndarray,
    hr: np.ndarray,
    scale: int,
    plain: Mapping[str, np.ndarray],
    samples: Mapping[str, Sequence[np.ndarray]],
) -> PhotographPictures:
    """Gather images of a photograph, cut to what all of them cover, and make the intervals of samples.

    Args:
        name: of the photograph.
        lr: (h, w, 3), uint8.
        hr: the truth, uint8, of about ``scale`` times the size.
        scale: enlargement.
        plain: label -> image made without latents; one is bicubic interpolation.
        samples: name of a method -> its samples.
    """
    sides = [min(high, scale * low) for high, low in zip(hr.shape[:2], lr.shape[:2], strict=True)]
    multiple = math.lcm(CROP_MULTIPLE, scale)
    if min(sides) < multiple:
        multiple = scale
    height, width = (side - side % multiple for side in sides)

    def cut(image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image[:height, :width])

    hr = cut(hr)
    photograph = PhotographPictures(
        name,
        np.ascontiguousarray(lr[: height // scale, : width // scale]),
        hr,
        {label: cut(image) for label, image in plain.items()},
        {method: [cut(sample) for sample in some] for method, some in samples.items()},
    )
    for method in samples:
        some = photograph.samples[method]
        if len(some) >= _FEWEST:
            low, high = np.min(some, 0), np.max(some, 0)
            outside = (hr < low) | (hr > high)
            photograph.intervals[method] = IntervalMaps(
                (len(some) - 1) / (len(some) + 1), (high.astype(np.float64) - low).mean(-1), outside.mean(-1)
            )
    return photograph
