"""Training data: random crops of the photographs in a folder, with their low-resolution images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sr_models.io.images import find_images, read_image, to_tensor
from sr_models.io.resize import imresize
from sr_models.randomness import random_stream
from sr_models.seeds import check_seed

__all__ = ["FixedCrops", "RandomCrops", "StepSampler"]

# Decoded photographs kept in memory; a folder that is larger is partly read again for every crop.
_CACHE_BYTES = 2**30


class RandomCrops(Dataset[dict[str, Tensor]]):
    """Random square crops of the images in a folder, flipped left to right half of the time.

    The low-resolution image is the crop reduced by :func:`sr_models.io.resize.imresize`: crop first, then reduce, as in
    the published recipe.

    Crop ``i`` is a function of ``seed`` and ``i`` alone, so that a resumed run sees what an unbroken one would have.

    Args:
        folder: with at least one image; every image is at least ``crop`` pixels high and wide.
        scale: reduction.
        crop: side of the high-resolution crop in pixels, a multiple of ``scale``.
        length: number of crops.
        seed: in 0..2^31 - 1.

    Items:
        ``{"hr": (3, crop, crop), "lr": (3, crop / scale, crop / scale)}``, float32 in [0, 1].

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder, or no image in it.
        ValueError: an unreadable image, one that is too small, or a crop that the scale does not divide.
    """

    def __init__(self, folder: str | os.PathLike[str], *, scale: int, crop: int, length: int, seed: int) -> None:
        _check_crop(crop, scale)
        self.paths = _large_images(folder, crop)
        self.scale, self.crop, self.length, self.seed = scale, crop, length, check_seed(seed)
        self._cache: dict[int, np.ndarray] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.draw(random_stream(self.seed, "crops", index))

    def draw(self, stream: torch.Generator) -> dict[str, Tensor]:
        """Draw a crop from a random stream; the result is an item."""
        image = self._image(_below(len(self.paths), stream))
        top = _below(image.shape[0] - self.crop + 1, stream)
        left = _below(image.shape[1] - self.crop + 1, stream)
        crop = image[top : top + self.crop, left : left + self.crop]
        if _below(2, stream):
            crop = crop[:, ::-1]
        return _pair(crop, self.scale)

    def _image(self, index: int) -> np.ndarray:
        if index not in self._cache:
            image = read_image(self.paths[index])
            if self._cached_bytes + image.nbytes > _CACHE_BYTES:
                return image
            self._cache[index] = image
            self._cached_bytes += image.nbytes
        return self._cache[index]


class StepSampler(Sampler[list[int]]):
    """Batches of consecutive indices, from that of the present step on, so that training can be resumed.

    Args:
        batch_size: indices a batch.
        steps: number of batches of a whole run.
        current_step: called whenever iteration begins.
    """

    def __init__(self, batch_size: int, steps: int, current_step: Callable[[], int]) -> None:
        self.batch_size, self.steps, self.current_step = batch_size, steps, current_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.current_step(), self.steps):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.steps


class FixedCrops(Dataset[dict[str, Tensor]]):
    """Up to four crops of every image in a folder, from the middle of its quarters: the same in every run.

    Items, arguments and exceptions are those of :class:`RandomCrops`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, scale: int, crop: int) -> None:
        _check_crop(crop, scale)
        self.pairs = []
        for path in _large_images(folder, crop):
            image = read_image(path)
            tops, lefts = (sorted({(side - crop) // 4, 3 * (side - crop) // 4}) for side in image.shape[:2])
            self.pairs += [_pair(image[y : y + crop, x : x + crop], scale) for y in tops for x in lefts]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.pairs[index]


def _large_images(folder: str | os.PathLike[str], crop: int) -> list[Path]:
    """List the images in a folder, and check from their headers that each has room for a crop."""
    paths = find_images(folder)
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception as error:
            raise ValueError(f"cannot read image {path}: {error}") from error
        if min(width, height) < crop:
            raise ValueError(f"image {path} must be at least {crop} x {crop} pixels for crops, got {width} x {height}")
    return paths


def _below(bound: int, stream: torch.Generator) -> int:
    """Draw a number in 0..bound - 1."""
    return int(torch.randint(bound, (), generator=stream, device="cpu"))


def _pair(hr: np.ndarray, scale: int) -> dict[str, Tensor]:
    hr = np.ascontiguousarray(hr)
    return {"hr": to_tensor(hr), "lr": to_tensor(imresize(hr, 1 / scale))}


def _check_crop(crop: int, scale: int) -> None:
    if crop < scale or crop % scale:
        raise ValueError(f"crop must be a positive multiple of the scale {scale}, got {crop}")
