"""Scores of the samples of one image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sr_models.evaluation.metrics import (
    Distance,
    diversity_of_maps,
    diversity_score,
    psnr,
    psnr_y,
    ssim,
    window_errors,
)
from sr_models.evaluation.scores import Scores, mean_decibels
from sr_models.io.images import crop_to_multiple
from sr_models.io.resize import imresize

__all__ = ["CROP_MULTIPLE", "crop_alike", "score_samples"]

#: The challenge crops to multiples of 8 at every scale.
CROP_MULTIPLE = 8


def crop_alike(sample: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Cut rows off the bottom and columns off the right of a sample until it has the size of the truth.

    Raises:
        ValueError: the sample is smaller than the truth.
    """
    height, width = hr.shape[:2]
    if sample.shape[0] < height or sample.shape[1] < width:
        raise ValueError(
            f"samples must have at least the {width} x {height} pixels of the truth, cropped to multiples of "
            f"{CROP_MULTIPLE}, got {sample.shape[1]} x {sample.shape[0]}"
        )
    return np.ascontiguousarray(sample[:height, :width])


def score_samples(
    image: str,
    samples: Sequence[np.ndarray],
    hr: np.ndarray,
    scale: int,
    distance: Distance,
    nll: float = math.nan,
    seconds: float = math.nan,
) -> Scores:
    """Score the samples of one image against the truth, as the challenge does.

    The truth is cropped to multiples of 8, and the samples to the truth.

    Args:
        image: file name, for the result.
        samples: (H, W, 3), uint8, at least as large as the cropped truth.
        hr: the truth, uint8, at least 8 pixels high and wide.
        scale: enlargement.
        distance: distance of the diversity score.
        nll: negative log-likelihood of the truth, for the result.
        seconds: time that sampling took, a sample, for the result.

    Raises:
        ValueError: a sample that is too small, or no sample.
    """
    hr = np.ascontiguousarray(crop_to_multiple(hr, CROP_MULTIPLE))
    samples = [crop_alike(sample, hr) for sample in samples]
    diversity = diversity_score(samples, hr, distance)
    errors = diversity_of_maps(window_errors(sample, hr) for sample in samples)
    low = imresize(hr, 1 / scale)
    lr_psnrs = [psnr(imresize(sample, 1 / scale), low) for sample in samples]
    psnrs = [psnr(sample, hr) for sample in samples]
    return Scores(
        image=image,
        nll=nll,
        psnr=mean_decibels(psnrs),
        ssim=float(np.mean([ssim(sample, hr) for sample in samples])),
        lr_psnr=mean_decibels(lr_psnrs),
        lr_psnr_worst=float(np.min(lr_psnrs)),
        diversity=diversity.score,
        distance=diversity.mean_distance,
        psnr_y=mean_decibels([psnr_y(sample, hr, scale) for sample in samples]),
        seconds=seconds,
        sample_distances=diversity.distances,
        nearest_distances=diversity.nearest,
        sample_lr_psnrs=tuple(lr_psnrs),
        sample_psnrs=tuple(psnrs),
        sample_errors=errors.distances,
        nearest_errors=errors.nearest,
    )
