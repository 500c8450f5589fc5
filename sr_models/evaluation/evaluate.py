"""Scoring a model as the NTIRE "Learning the Super-Resolution Space" challenge does, and by its likelihood."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sr_models.checkpoints.files import weights_fingerprint
from sr_models.evaluation.metrics import Distance, best_available_distance, diversity_score, lr_psnr, psnr, ssim
from sr_models.evaluation.pairs import find_pairs, load_pair
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.scores import Scores, mean_decibels
from sr_models.flow.consistency import Consistency, check_consistency
from sr_models.flow.explosions import OnExplode, check_on_explode
from sr_models.flow.latents import temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import clean_condition
from sr_models.flow.tiling import LEAST_TILE
from sr_models.io.images import to_tensor, to_uint8
from sr_models.networks.precision import Precision, network_dtype, network_precision, resolved
from sr_models.seeds import check_seed

__all__ = ["evaluate_model", "score_samples"]


def score_samples(
    image: str, samples: Sequence[np.ndarray], hr: np.ndarray, scale: int, distance: Distance, nll: float = float("nan")
) -> Scores:
    """Score the samples of one image against the truth.

    Args:
        image: file name, for the result.
        samples: (H, W, 3), uint8.
        hr: the truth (H, W, 3), uint8.
        scale: enlargement.
        distance: distance of the diversity score.
        nll: negative log-likelihood of the truth, for the result.
    """
    lr_psnrs = [lr_psnr(sample, hr, scale) for sample in samples]
    diversity = diversity_score(samples, hr, distance)
    return Scores(
        image=image,
        nll=nll,
        psnr=mean_decibels([psnr(sample, hr) for sample in samples]),
        ssim=float(np.mean([ssim(sample, hr) for sample in samples])),
        lr_psnr=mean_decibels(lr_psnrs),
        lr_psnr_worst=float(np.min(lr_psnrs)),
        diversity=diversity.score,
        distance=diversity.mean_distance,
    )


@torch.no_grad()
def evaluate_model(
    model: SuperResolutionFlow,
    images: str | os.PathLike[str],
    *,
    lr_images: str | os.PathLike[str] | None = None,
    samples: int = 10,
    temperature: float = 0.9,
    seed: int = 0,
    distance: Distance | None = None,
    on_explode: OnExplode = "resample",
    tile: int | None = None,
    precision: Precision = "fp32",
    consistency: Consistency = "none",
    record: ScoreRecord | None = None,
    on_image: Callable[[Path, np.ndarray, list[np.ndarray], np.ndarray], None] | None = None,
) -> list[Scores]:
    """Sample and score every image in a folder, with a progress bar.

    All pairs are found and compared before the first one is scored.

    Args:
        model: in evaluation mode.
        images: folder of high-resolution images, or what else :func:`sr_models.io.listing.list_images` takes.
        lr_images: folder of low-resolution images, see :func:`sr_models.evaluation.pairs.find_pairs`; none: they are
            made by reduction.
        samples: samples an image; the challenge takes 10.
        temperature: standard deviation of the latents; 0.9 is published.
        seed: determines the samples.
        distance: distance for the diversity; default LPIPS if its weights are here, else the squared error.
        on_explode: as for :meth:`SuperResolutionFlow.sample`.
        tile: as for :meth:`SuperResolutionFlow.sample`. The likelihood is that of the whole image nevertheless, and NaN
            if that does not fit into memory.
        precision: as for :meth:`SuperResolutionFlow.sample`, for the likelihood too.
        consistency: as for :meth:`SuperResolutionFlow.sample`.
        record: keeps the scores of every image as soon as they are known. Images that it knows already are not scored
            again. An image that cannot be read, that explodes or that does not fit into memory is noted there. None: it
            is an error.
        on_image: called with path, lr, samples and hr of every image that is scored, to show or keep them.

    Returns:
        One :class:`Scores` an image, in the order of the file names.

    Raises:
        FileNotFoundError, NotADirectoryError: images that are missing.
        ValueError: arguments out of range, images that do not fit, or none that could be scored.
        ExplosionError: a sample that exploded, without a record.
    """
    _check_sampling(model, samples, temperature, seed, on_explode, tile, consistency)
    like = next(model.parameters())
    dtype = network_dtype(precision, like.device, like.dtype)
    pairs, unreadable = find_pairs(images, model.scale, lr_images)
    strict = record is None
    if strict and unreadable:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(f"image {name} cannot be used: {reason}")
    distance_name, distance = best_available_distance() if distance is None else ("given", distance)
    record = record or ScoreRecord(distance_name=distance_name)
    settings = {
        "model": model.name,
        "weights": weights_fingerprint(model),
        "scale": model.scale,
        "n": samples,
        "temperature": temperature,
        "seed": seed,
        "on_explode": on_explode,
        "tile": tile,
        "lr_images": "reduced" if lr_images is None else "given",
        # a record in float32, and without consistency, says nothing of it, as records before there was a choice
        **({} if dtype is None else {"precision": resolved(precision, like.device)}),
        **({} if consistency == "none" else {"consistency": consistency}),
    }
    record.begin(settings, pairs)
    for name, reason in unreadable.items():
        record.fail(name, reason)
    pending = [pair for pair in pairs if pair.name not in record.rows]
    with tqdm(total=len(pairs), initial=len(pairs) - len(pending), desc="evaluating", unit="image") as bar:
        for pair in pending:
            try:
                lr, hr = load_pair(pair.hr, model.scale, pair.lr)
                lr_tensor = to_tensor(lr)[None].to(like)
                with network_precision(dtype, like.device):
                    nll = _likelihood(model, to_tensor(hr)[None].to(lr_tensor), lr_tensor, tiled=tile is not None)
                batch = model.sample(
                    lr_tensor,
                    samples,
                    temperature=temperature,
                    seed=seed,
                    on_explode=on_explode,
                    tile=tile,
                    precision=precision,
                    consistency=consistency,
                )[0]
                drawn = [to_uint8(sample) for sample in batch]
                row = score_samples(pair.name, drawn, hr, model.scale, distance, nll)
            except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
                if strict or not _is_of_image(error):
                    raise
                record.fail(pair.name, " ".join(str(error).split()) or type(error).__name__)
            else:
                record.add(pair, row)
                if on_image is not None:
                    on_image(pair.hr, lr, drawn, hr)
            bar.update()
    if not record.rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(record.failures.items())[:5])
        raise ValueError(f"no image could be scored: {reasons}")
    return record.ordered()


def _check_sampling(
    model: SuperResolutionFlow,
    samples: int,
    temperature: float,
    seed: int,
    on_explode: str,
    tile: int | None,
    consistency: str,
) -> None:
    """Check the arguments of all samples, so that a mistake in them is not taken for a fault of an image."""
    if samples < 1:
        raise ValueError(f"n must be at least 1, got {samples}")
    temperatures_of(temperature, len(model.latent_shapes(model.lr_multiple, model.lr_multiple)))
    check_seed(seed)
    check_on_explode(on_explode)
    check_consistency(consistency)
    if tile is not None and tile < LEAST_TILE:
        raise ValueError(f"tile must be at least {LEAST_TILE}, got {tile}")


def _is_of_image(error: Exception) -> bool:
    """Tell whether an error costs one image only: all but bugs, which torch reports with RuntimeError."""
    return not isinstance(error, RuntimeError) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _likelihood(model: SuperResolutionFlow, hr: Tensor, lr: Tensor, *, tiled: bool) -> float:
    try:
        return _bits_per_dim(model, hr, lr)
    except (RuntimeError, MemoryError) as error:
        if tiled and _is_out_of_memory(error):
            return math.nan
        raise


def _bits_per_dim(model: SuperResolutionFlow, hr: Tensor, lr: Tensor) -> float:
    """Bits per dimension of one image, cropped to a size that the model accepts; NaN if nothing remains."""
    height, width = (side - side % model.lr_multiple for side in lr.shape[2:])
    if not height * width:
        return math.nan
    hr, lr = hr[..., : height * model.scale, : width * model.scale], lr[..., :height, :width]
    return model.encode(hr, lr, clean_condition(model, hr)).bits_per_dim.item()
