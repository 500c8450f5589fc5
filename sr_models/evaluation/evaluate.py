"""Scoring a model as the NTIRE "Learning the Super-Resolution Space" challenge does, and by its likelihood."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from sr_models.evaluation.kept_samples import KeptSamples, check_outside
from sr_models.evaluation.metrics import Distance, best_available_distance
from sr_models.evaluation.pairs import Pair, find_pairs, load_pair, names_in_order
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.sampling import check_sampling, draw_samples, sampling_settings
from sr_models.evaluation.scores import Scores
from sr_models.evaluation.streaming import Drawn, score_pairs
from sr_models.flow.consistency import Consistency
from sr_models.flow.explosions import OnExplode
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import clean_condition
from sr_models.io.images import to_tensor
from sr_models.memory import is_out_of_memory
from sr_models.networks.precision import Precision, network_dtype, network_precision, resolved

__all__ = ["evaluate_model"]


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
    save_samples: str | os.PathLike[str] | None = None,
    on_image: Callable[[Path, np.ndarray, list[np.ndarray], np.ndarray], None] | None = None,
) -> list[Scores]:
    """Sample and score every image in a folder, with a progress bar.

    All pairs are found and compared before the first one is scored. The model sees whole low-resolution images; truth
    and samples are cropped afterwards, as :func:`sr_models.evaluation.scoring.score_samples` does.

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
        save_samples: folder for the samples, created if needed, under the names of the challenge
            (``000000_sample00000.png``). Samples that are missing there are drawn again, for images that the record
            knows too.
        on_image: called with path, lr, samples and hr of every image that is scored, to show or keep them. Samples and
            hr are whole.

    Returns:
        One :class:`Scores` an image, in the order of the file names.

    Raises:
        FileNotFoundError, NotADirectoryError: images that are missing.
        ValueError: arguments out of range, images that do not fit, none that could be scored, or other files where
            samples are to be saved.
        ExplosionError: a sample that exploded, without a record.
    """
    check_sampling(model, samples, temperature, seed, on_explode, tile, consistency)
    like = next(model.parameters())
    dtype = network_dtype(precision, like.device, like.dtype)
    pairs, unreadable = find_pairs(images, model.scale, lr_images)
    strict = record is None
    distance_name, distance = best_available_distance() if distance is None else ("given", distance)
    record = record or ScoreRecord(distance_name=distance_name)
    settings = {
        **sampling_settings(model, samples, seed, on_explode, tile, lr_images),
        "temperature": temperature,
        # a record in float32, and without consistency, says nothing of it, as records before there was a choice
        **({} if dtype is None else {"precision": resolved(precision, like.device)}),
        **({} if consistency == "none" else {"consistency": consistency}),
    }

    def draw(pair: Pair, advance: Callable[[float], None]) -> Drawn:
        lr, hr = load_pair(pair.hr, model.scale, pair.lr)
        lr_tensor = to_tensor(lr)[None].to(like)
        with network_precision(dtype, like.device):
            nll = _likelihood(model, to_tensor(hr)[None].to(lr_tensor), lr_tensor, tiled=tile is not None)
        begun = monotonic()
        drawn = draw_samples(
            model,
            lr,
            samples,
            temperature=temperature,
            seed=seed,
            on_explode=on_explode,
            tile=tile,
            precision=precision,
            consistency=consistency,
            on_progress=advance,
        )
        return Drawn(drawn, hr, lr, nll, (monotonic() - begun) / samples)

    kept = None
    if save_samples is not None:
        check_outside(save_samples, images, pairs)
        names = names_in_order(pairs, unreadable)
        kept = KeptSamples(save_samples, pairs, names, samples, settings, overwrite=record.overwrite)

    def keep(pair: Pair, drawn: Drawn) -> None:
        if kept is not None:
            kept.write(pair, drawn.samples)
        if on_image is not None:
            assert drawn.lr is not None
            on_image(pair.hr, drawn.lr, drawn.samples, drawn.hr)

    return score_pairs(
        pairs,
        unreadable,
        draw,
        scale=model.scale,
        distance=distance,
        settings=settings,
        record=record,
        strict=strict,
        again=kept.missing if kept else (),
        on_image=keep,
    )


def _likelihood(model: SuperResolutionFlow, hr: Tensor, lr: Tensor, *, tiled: bool) -> float:
    try:
        return _bits_per_dim(model, hr, lr)
    except (RuntimeError, MemoryError) as error:
        if tiled and is_out_of_memory(error):
            return math.nan
        raise


def _bits_per_dim(model: SuperResolutionFlow, hr: Tensor, lr: Tensor) -> float:
    """Bits per dimension of one image, cropped to a size that the model accepts; NaN if nothing remains."""
    sides = (min(low, high // model.scale) for low, high in zip(lr.shape[2:], hr.shape[2:], strict=True))
    height, width = (side - side % model.lr_multiple for side in sides)
    if not height * width:
        return math.nan
    hr, lr = hr[..., : height * model.scale, : width * model.scale], lr[..., :height, :width]
    return model.encode(hr, lr, clean_condition(model, hr)).bits_per_dim.item()
