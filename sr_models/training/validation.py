"""Validation during training: likelihood, PSNR and LR-PSNR of fixed crops, and pictures of some of them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.data.crops import FixedCrops
from sr_models.evaluation.metrics import lr_psnr, psnr
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import clean_condition
from sr_models.io.images import to_tensor, to_uint8
from sr_models.io.resize import imresize
from sr_models.seeds import check_seed

__all__ = ["MOST_CROPS", "TEMPERATURE", "Scores", "Validation"]

#: Number of crops that are scored at most, so that a validation costs little more than three training steps.
MOST_CROPS = 32
#: Standard deviation of the latents of the samples whose LR-PSNR is reported.
TEMPERATURE = 0.8
#: Crops that are computed at once, and that the pictures show.
_BATCH = 4
#: PSNR in dB that identical images count as: an infinite one would hide all others in a mean.
_IDENTICAL = 100.0


@dataclass(frozen=True)
class Scores:
    """Result of a validation.

    Attributes:
        figures: means over the crops. ``val_nll``: bits per dimension of the truth, infinite if a crop's likelihood is
            not finite. ``val_psnr``: dB at temperature 0. ``val_lr_psnr``: dB between the reduced sample at
            temperature 0.8 and the reduced truth. Both are of the encoder's image while the encoder is trained alone.
        pictures: (3, H, W) in [0, 1], a column for each of the first four crops.
        rows: what the rows of the pictures show, from top to bottom.
        notes: one line for every kind of failure, with the number of crops that it befell.
    """

    figures: dict[str, float]
    pictures: Tensor
    rows: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Validation:
    """Score a model on fixed crops; the same model always gets the same scores.

    Args:
        images, scale, crop, lr_images, degradation: as for :class:`sr_models.data.crops.FixedCrops`. Of more than 32
            crops, 32 are taken at equal distances.
        seed: determines the samples.

    Attributes:
        crops: ``{"hr": (3, crop, crop), "lr": (3, crop / scale, crop / scale), ...}`` each, kept in memory.
        summary: lines for the user: how many crops there are, and which images are not used.

    Raises:
        FileNotFoundError, ValueError: as :class:`sr_models.data.crops.FixedCrops`, or a seed out of range.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        *,
        scale: int,
        crop: int,
        seed: int,
        lr_images: str | os.PathLike[str] | None = None,
        degradation: str = "bicubic",
    ) -> None:
        self.scale, self.seed = scale, check_seed(seed)
        found = FixedCrops(images, scale=scale, crop=crop, lr_images=lr_images, degradation=degradation)
        count = min(len(found), MOST_CROPS)
        self.crops = _by_turns([found[index * len(found) // count] for index in range(count)])
        failed = dict.fromkeys(line for item in self.crops for line in item["failed"].splitlines())
        first, *others = found.notes
        self.summary = [f"validation: {count} crops of {first}", *others, *(f"not used: {line}" for line in failed)]

    def __call__(self, model: SuperResolutionFlow, device: torch.device, *, encoder_only: bool = False) -> Scores:
        """Score a model, in evaluation mode and float32, and leave it as it was.

        A sample that explodes is clamped and counted; see :attr:`Scores.notes`.

        Args:
            model: its actnorms are initialised, unless only the encoder is scored.
            device: that of the model.
            encoder_only: score the encoder's image, because the flow does not exist yet.
        """
        tally = _Tally(self.scale)
        rows: list[list[Tensor]] = []
        with _evaluating(model), torch.autocast(device.type, enabled=False):
            for first in range(0, len(self.crops), _BATCH):
                batch = self.crops[first : first + _BATCH]
                hr, lr = (torch.stack([item[name] for item in batch]).to(device) for name in ("hr", "lr"))
                images = self._encoder_images(model, lr, tally) if encoder_only else self._samples(model, lr, tally)
                if not encoder_only:
                    tally.add_nll(model.encode(hr, lr, clean_condition(model, hr)).bits_per_dim)
                tally.add_images(images[0], images[-1], hr)
                if not first:
                    rows = [[_bicubic(image, self.scale) for image in lr], *map(list, images), list(hr)]
        labels = ("encoder",) if encoder_only else ("temperature 0", f"temperature {TEMPERATURE}")
        return Scores(tally.figures(), _grid(rows), ("bicubic", *labels, "truth"), tally.notes())

    def _encoder_images(self, model: SuperResolutionFlow, lr: Tensor, tally: _Tally) -> list[Tensor]:
        image = model.image(lr)
        tally.not_finite += int((~image.isfinite()).flatten(1).any(1).sum())
        return [image.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)]

    def _samples(self, model: SuperResolutionFlow, lr: Tensor, tally: _Tally) -> list[Tensor]:
        """Draw one sample an image at temperature 0, and one at 0.8."""
        return [self._sample(model, lr, temperature, tally) for temperature in (0.0, TEMPERATURE)]

    def _sample(self, model: SuperResolutionFlow, lr: Tensor, temperature: float, tally: _Tally) -> Tensor:
        def draw(lr: Tensor, **options: str) -> Tensor:
            return model.sample(lr, temperature=temperature, seed=self.seed, **options)[:, 0]  # type: ignore[arg-type]

        try:
            return draw(lr, on_explode="error")
        except ExplosionError:
            if len(lr) > 1:
                return torch.cat([self._sample(model, one[None], temperature, tally) for one in lr])
            tally.exploded += 1
            return draw(lr, on_explode="clamp")


class _Tally:
    """Figures of the crops that were scored so far."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.nll: list[float] = []
        self.psnr: list[float] = []
        self.lr_psnr: list[float] = []
        self.exploded = 0
        self.not_finite = 0

    def add_nll(self, bits_per_dim: Tensor) -> None:
        self.nll += bits_per_dim.double().tolist()

    def add_images(self, mean: Tensor, sample: Tensor, truth: Tensor) -> None:
        """Compare the images at temperature 0, and the samples, with the truth; all (B, 3, H, W)."""
        for image, drawn, hr in zip(*map(_eight_bit, (mean, sample, truth)), strict=True):
            self.psnr.append(min(psnr(image, hr), _IDENTICAL))
            self.lr_psnr.append(min(lr_psnr(drawn, hr, self.scale), _IDENTICAL))

    def figures(self) -> dict[str, float]:
        figures = {"val_psnr": float(np.mean(self.psnr)), "val_lr_psnr": float(np.mean(self.lr_psnr))}
        if not self.nll:
            return figures
        return {"val_nll": float(np.mean(self.nll)) if all(map(math.isfinite, self.nll)) else math.inf, **figures}

    def notes(self) -> tuple[str, ...]:
        lost = sum(not math.isfinite(value) for value in self.nll)
        lines = [
            (lost, len(self.nll), "crops have no finite likelihood; val_nll counts as infinite"),
            (self.exploded, 2 * len(self.nll), "samples exploded; their activations were clamped"),
            (self.not_finite, len(self.psnr), "images of the encoder are not finite"),
        ]
        return tuple(f"validation: {count} of {total} {what}" for count, total, what in lines if count)


def _by_turns(crops: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort crops so that those of one image do not follow each other: the first ones are shown."""
    seen: Counter[str] = Counter()
    ranks = []
    for crop in crops:
        ranks.append(seen[crop["path"]])
        seen[crop["path"]] += 1
    return [crops[index] for index in sorted(range(len(crops)), key=ranks.__getitem__)]


def _eight_bit(images: Tensor) -> list[np.ndarray]:
    return [to_uint8(image) for image in images]


def _bicubic(lr: Tensor, scale: int) -> Tensor:
    return to_tensor(imresize(to_uint8(lr), scale))


def _grid(rows: list[list[Tensor]]) -> Tensor:
    """Join images of one size to a picture, with white lines between them."""
    framed = [[F.pad(image.cpu(), (1, 1, 1, 1), value=1.0) for image in row] for row in rows]
    return torch.cat([torch.cat(row, 2) for row in framed], 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
