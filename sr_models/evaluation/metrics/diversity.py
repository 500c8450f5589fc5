"""Diversity of a set of samples by the formula of the NTIRE challenges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sr_models.evaluation.metrics._arguments import check_same_rgb
from sr_models.evaluation.metrics.distances import Distance
from sr_models.io.images import check_rgb


@dataclass(frozen=True)
class DiversityResult:
    """Result of :func:`diversity_score`.

    Attributes:
        score: ``100 * (global_best - local_best) / global_best``, in percent.
        mean_distance: Mean distance to the truth over samples and pixels.
        global_best: Mean distance of the best sample.
        local_best: Mean distance if the best sample could be chosen anew for every pixel.
    """

    score: float
    mean_distance: float
    global_best: float
    local_best: float


def diversity_score(samples: Sequence[np.ndarray], hr: np.ndarray, distance: Distance) -> DiversityResult:
    r"""Measure how much closer to the truth one gets by choosing among the samples pixel by pixel.

    .. math:: \mathrm{score} = 100 \, \frac{G - L}{G}, \qquad
              G = \min_i \mathrm{mean}_x\, d_i(x), \qquad L = \mathrm{mean}_x \min_i d_i(x)

    with the distance map :math:`d_i` of sample :math:`i`. A single sample, or samples all alike, score 0. If one sample
    has no distance to the truth anywhere, :math:`G = L = 0` and the score is defined as 0: choosing gains nothing.

    References:
        Lugmayr, Danelljan, Timofte, *NTIRE 2021 learning the super-resolution space challenge*, CVPR Workshops 2021.
        The challenge uses ten samples, LPIPS, and images cropped to multiples of 8.

    Args:
        samples: At least one array (H, W, 3), uint8.
        hr: The truth, array (H, W, 3), uint8.
        distance: Maps a sample and the truth to non-negative distances (H, W).

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If there are no samples, the shapes do not match, or ``distance`` returns another shape.
    """
    check_rgb("hr", hr)
    if len(samples) == 0:
        raise ValueError("samples must hold at least one image, got none")
    means = []
    nearest = np.full(hr.shape[:2], np.inf)
    for sample in samples:
        check_same_rgb(sample, hr)
        map_ = np.asarray(distance(sample, hr), dtype=np.float64)
        if map_.shape != nearest.shape:
            raise ValueError(f"distance must return a map of shape {nearest.shape}, got {map_.shape}")
        means.append(float(map_.mean()))
        nearest = np.minimum(nearest, map_)
    global_best, local_best = min(means), float(nearest.mean())
    score = 100 * (global_best - local_best) / global_best if global_best > 0 else 0.0
    return DiversityResult(score, float(np.mean(means)), global_best, local_best)
