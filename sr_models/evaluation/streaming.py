"""Scoring image by image: what is known is kept at once, and a bad image does not cost the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from sr_models.evaluation.metrics import Distance
from sr_models.evaluation.pairs import Pair
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.scores import Scores
from sr_models.evaluation.scoring import score_samples
from sr_models.io.listing import one_line
from sr_models.memory import is_out_of_memory

__all__ = ["ERRORS_OF_IMAGES", "Drawn", "listed", "reason_of", "refuse", "score_pairs"]

#: Errors that may cost one image only; see :func:`reason_of`.
ERRORS_OF_IMAGES = (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError)

#: Parts of images move the bar between them.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class Drawn:
    """The samples of an image, and what belongs to them.

    Attributes:
        samples: (H, W, 3), uint8.
        hr: the truth, uint8.
        lr: the low-resolution image that they were drawn for, if they were.
        nll: negative log-likelihood of the truth in bits per dimension, NaN if it is not known.
        seconds: time that sampling took, a sample; NaN if it is not known.
    """

    samples: list[np.ndarray]
    hr: np.ndarray
    lr: np.ndarray | None = None
    nll: float = math.nan
    seconds: float = math.nan


def score_pairs(
    pairs: Sequence[Pair],
    unreadable: Mapping[str, str],
    draw: Callable[[Pair, Callable[[float], None]], Drawn],
    *,
    scale: int,
    distance: Distance,
    settings: Mapping[str, Any],
    record: ScoreRecord,
    strict: bool,
    again: Collection[str] = (),
    on_image: Callable[[Pair, Drawn], None] | None = None,
) -> list[Scores]:
    """Score the images that a record does not know yet, with a progress bar.

    Args:
        pairs: the images.
        unreadable: name -> reason of images that cannot be scored.
        draw: returns the samples of an image. It may call its second argument with parts of the work that add up to 1.
        scale: enlargement.
        distance: distance of the diversity score.
        settings: what determines the scores of an image, for the record.
        record: keeps the scores of every image as soon as they are known, and why others have none.
        strict: whether a bad image is an error.
        again: names of images that are scored even if the record knows them.
        on_image: called with every image that is drawn, before its scores are kept.

    Returns:
        One :class:`Scores` an image, in the order of the names.

    Raises:
        ValueError: no image could be scored, or one that could not, if that is an error.
    """
    if strict:
        refuse(unreadable)
    record.begin(settings, pairs, unreadable)
    pending = [pair for pair in pairs if pair.name not in record.rows or pair.name in again]
    known = len(pairs) - len(pending)
    with tqdm(total=len(pairs), initial=known, desc="evaluating", unit="image", bar_format=_BAR) as bar:
        for count, pair in enumerate(pending, known + 1):
            bar.set_description_str(f"evaluating {one_line(pair.hr.name)[:40]}")
            try:
                drawn = draw(pair, bar.update)
                row = score_samples(pair.name, drawn.samples, drawn.hr, scale, distance, drawn.nll, drawn.seconds)
            except ERRORS_OF_IMAGES as error:
                record.fail(pair.name, reason_of(error, strict=strict))
            else:
                if on_image is not None:
                    on_image(pair, drawn)
                record.add(pair, row)
            bar.update(count - bar.n)
    if not record.rows:
        raise ValueError(f"no image could be scored: {listed(record.failures)}")
    return record.ordered()


def reason_of(error: Exception, *, strict: bool) -> str:
    """Return in one line why an image failed.

    Args:
        error: one of :data:`ERRORS_OF_IMAGES`.
        strict: whether a bad image is an error.

    Raises:
        Exception: the error itself, if a bad image is one, or if it is a bug, which torch reports with RuntimeError.
    """
    if strict or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def refuse(unreadable: Mapping[str, str]) -> None:
    """Raise ``ValueError`` that names the first image that cannot be used, if there is one: name -> reason."""
    for name, reason in unreadable.items():
        raise ValueError(f"image {name} cannot be used: {reason}")


def listed(failures: Mapping[str, str]) -> str:
    """Return the first failures in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:5])
