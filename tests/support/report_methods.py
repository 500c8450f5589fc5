"""Methods with scores for tests of reports: a baseline, and a model that is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sr_models.evaluation.report.method import Method
from sr_models.evaluation.scores import Scores


def rows(distances: Sequence[float], **figures: float) -> list[Scores]:
    given = {"nll": math.nan, "psnr": 25.123, "ssim": 0.5, "lr_psnr": 40.04, "lr_psnr_worst": 39.0, "diversity": 0.0}
    return [
        Scores(f"{number}.png", **{**given, **figures, "distance": distance})
        for number, distance in enumerate(distances)
    ]


def bicubic(distances: Sequence[float] = (0.4, 0.41, 0.42, 0.39, 0.38), **figures: float) -> Method:
    return Method("bicubic", rows(distances, **figures), "lpips", baseline=True)


def model(distances: Sequence[float] = (0.1, 0.12, 0.11, 0.1, 0.12), name: str = "m", **figures: float) -> Method:
    return Method(name, rows(distances, **{"diversity": 9.46, "lr_psnr": math.inf, **figures}), "lpips", n=10)
