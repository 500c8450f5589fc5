"""Diversity of a set of samples by the formula of the NTIRE challenges."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sr_models.evaluation.metrics._arguments import check_same_rgb
from sr_models.evaluation.metrics.distances import Distance, against
from sr_models.io.images import check_rgb


@dataclass(frozen=True)
class DiversityResult:
    """Result of :func:`diversity_score`.

    Attributes:
        score: ``100 * (global_best - local_best) / global_best``, in percent.
        mean_distance: Mean distance to the truth over samples and pixels.
        global_best: Mean distance of the best sample.
        local_best: Mean distance if the best sample could be chosen anew for every pixel.
        distances: Mean distance of each sample.
        nearest: ``local_best`` of the first sample, of the first two, and so on.
    """

    score: float
    mean_distance: float
    global_best: float
    local_best: float
    distances: tuple[float, ...] = ()
    nearest: tuple[float, ...] = ()


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
    measure = against(distance, hr)

    def maps() -> Iterable[np.ndarray]:
        for sample in samples:
            check_same_rgb(sample, hr)
            map_ = np.asarray(measure(sample), dtype=np.float64)
            if map_.shape != hr.shape[:2]:
                raise ValueError(f"distance must return a map of shape {hr.shape[:2]}, got {map_.shape}")
            yield map_

    return diversity_of_maps(maps())


def diversity_of_maps(maps: Iterable[np.ndarray]) -> DiversityResult:
    """Measure diversity as :func:`diversity_score` does, by the distance maps of the samples, all of one shape."""
    distances, nearest = [], []
    best: np.ndarray | None = None
    for map_ in maps:
        best = map_ if best is None else np.minimum(best, map_)
        distances.append(float(map_.mean()))
        nearest.append(float(best.mean()))
    return DiversityResult(
        diversity_percent(distances, nearest),
        float(np.mean(distances)),
        min(distances),
        nearest[-1],
        tuple(distances),
        tuple(nearest),
    )


def diversity_percent(distances: Sequence[float], nearest: Sequence[float]) -> float:
    """Return the score of as many samples as there are distances.

    Args:
        distances: mean distance of each sample.
        nearest: ``local_best`` of the first sample, of the first two, and so on; there may be more than distances.
    """
    best = min(distances)
    return 100 * (best - nearest[len(distances) - 1]) / best if best > 0 else 0.0
