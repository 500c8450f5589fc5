"""Crops of photographs with their low-resolution images: random ones for training, fixed ones for validation."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sr_models.data.kept import DISK_CACHE
from sr_models.data.memory import Memory
from sr_models.data.photographs import Photographs, UnreadableImage
from sr_models.degradations import degrade
from sr_models.io.images import to_tensor
from sr_models.randomness import random_stream
from sr_models.seeds import check_seed

__all__ = ["CropError", "FixedCrops", "RandomCrops"]

Source = str | os.PathLike[str]
Item = dict[str, Any]
#: Images that are tried for one crop before the data count as lost.
_TRIES = 100


class CropError(ValueError):
    """No image can be read any more. The message is one line, also when it comes from a loader's worker process."""

    def __init__(self, message: str) -> None:
        # a loader makes the exception anew, from the worker's whole traceback
        super().__init__(message.rstrip().splitlines()[-1].removeprefix(f"{__name__}.CropError: "))


class RandomCrops(Dataset[Item]):
    """Random square crops of photographs, flipped and turned.

    Without low-resolution images, a crop is reduced by ``degradation``: crop first, then reduce, as in the published
    recipe. With them, crops begin at whole low-resolution pixels, and both images are flipped and turned alike.

    Crop ``i`` is a function of ``seed`` and ``i`` alone, so that a resumed run sees what an unbroken one would have,
    with any number of workers. A file that has become unreadable is replaced by another image, drawn from the same
    stream.

    Args:
        images: a folder, also of a known layout (:mod:`sr_models.data.layouts`), an image, a pattern or a list of
            images (:func:`sr_models.io.listing.list_images`). Images without room for a crop are not used.
        scale: enlargement.
        crop: side of the high-resolution crop in pixels, a multiple of ``scale``.
        length: number of crops.
        seed: in 0..2^31 - 1.
        lr_images: low-resolution images of the same names; none: they are made from ``images``.
        degradation: name of the registered degradation that makes them.
        rotate: turn crops by 0, 90, 180 or 270 degrees, besides flips from left to right.
        strict: an image that cannot be used is an error.
        disk_cache: GB of decoded images that are kept on the disk if there are many
            (:class:`sr_models.data.kept.KeptImages`); 0: none. Crops do not depend on it.

    Attributes:
        listing: the images, and what is not used.
        notes: lines that say the same to the user.
        fingerprint: of the images' names and sizes in bytes.

    Items:
        ``{"hr": (3, crop, crop), "lr": (3, crop / scale, crop / scale), "path": str, "failed": str}``. Images are
        float32 in [0, 1]. ``path`` is the file used. ``failed`` has a line ``path: reason`` for each file that could
        not be read; it is empty otherwise.

    Raises:
        FileNotFoundError: no such images.
        ValueError: no image that can be used, a crop that the scale does not divide, or a name of an image that fits
            two low-resolution ones.
        CropError: from items, when no image can be read any more.
    """

    def __init__(
        self,
        images: Source,
        *,
        scale: int,
        crop: int,
        length: int,
        seed: int,
        lr_images: Source | None = None,
        degradation: str = "bicubic",
        rotate: bool = True,
        strict: bool = False,
        disk_cache: float = DISK_CACHE,
    ) -> None:
        _check(crop, scale, lr_images, degradation)
        self.scale, self.crop, self.length, self.seed = scale, crop, length, check_seed(seed)
        self.degradation, self.rotate = degradation, rotate
        self._photographs = Photographs(images, scale=scale, crop=crop, lr_images=lr_images, strict=strict)
        self.listing = self._photographs.listing
        self.notes = self._photographs.notes + self._photographs.keep_decoded(disk_cache)
        self.fingerprint = self._photographs.fingerprint
        self._memory = Memory()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        return self.draw(random_stream(self.seed, "crops", index))

    def draw(self, stream: torch.Generator) -> Item:
        """Draw a crop from a random stream; the result is an item."""
        failed: list[str] = []
        for _ in range(_TRIES):
            index = _below(len(self._photographs), stream)
            try:
                high, *given = self._memory.get(index, partial(self._photographs.read, index))
            except UnreadableImage as error:
                failed.append(str(error))
                continue
            # positions on the grid of low-resolution pixels if there are such pixels
            grid = self.scale if given else 1
            top, left = (grid * _below((side - self.crop) // grid + 1, stream) for side in high.shape[:2])
            flip = bool(_below(2, stream))
            turns = _below(4, stream) if self.rotate else 0
            hr = _oriented(_window(high, top, left, self.crop), flip, turns)
            if given:
                lr = _oriented(_window(given[0], top // grid, left // grid, self.crop // grid), flip, turns)
            else:
                lr = degrade(self.degradation)(hr, self.scale, stream)
            return _item(hr, lr, self.listing.paths[index], failed)
        raise CropError(f"no image could be read in {_TRIES} tries; the last one: {failed[-1]}")


class FixedCrops(Dataset[Item]):
    """Up to four crops of every image, from the middle of its quarters: the same in every run.

    Crops of an image that has become unreadable are replaced by those of the next one.

    Items, arguments and exceptions are those of :class:`RandomCrops`.
    """

    def __init__(
        self,
        images: Source,
        *,
        scale: int,
        crop: int,
        lr_images: Source | None = None,
        degradation: str = "bicubic",
    ) -> None:
        _check(crop, scale, lr_images, degradation)
        self.scale, self.crop, self.degradation = scale, crop, degradation
        self._photographs = Photographs(images, scale=scale, crop=crop, lr_images=lr_images, split="valid")
        self.listing, self.notes = self._photographs.listing, self._photographs.notes
        self.fingerprint = self._photographs.fingerprint
        counts = [len(_quarters(*size, crop)) for size in self.listing.sizes]
        self._places = [(index, number) for index, count in enumerate(counts) for number in range(count)]
        self._memory = Memory()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        image, number = self._places[index]
        failed: list[str] = []
        for _ in range(len(self._photographs)):
            try:
                crops = self._memory.get(image, partial(self._cut, image))
            except UnreadableImage as error:
                failed.append(str(error))
                image = (image + 1) % len(self._photographs)
                continue
            # another image, or one that was written anew, may have fewer crops
            first = 2 * (number % (len(crops) // 2))
            return _item(crops[first], crops[first + 1], self.listing.paths[image], failed)
        raise CropError(f"no image can be read any more; the last one: {failed[-1]}")

    def _cut(self, image: int) -> tuple[np.ndarray, ...]:
        """Cut the crops of an image: high, low, high, low, ..."""
        high, *given = self._photographs.read(image)
        crops: list[np.ndarray] = []
        for number, (top, left) in enumerate(_quarters(high.shape[0], high.shape[1], self.crop)):
            if given:
                top, left = top - top % self.scale, left - left % self.scale
                low = _window(given[0], top // self.scale, left // self.scale, self.crop // self.scale)
            hr = _window(high, top, left, self.crop)
            if not given:
                low = degrade(self.degradation)(hr, self.scale, random_stream(0, "crops", image, number))
            # copies, so that the whole image need not stay in memory
            crops += [hr.copy(), low.copy()]
        return tuple(crops)


def _quarters(height: int, width: int, crop: int) -> list[tuple[int, int]]:
    """Return the corners of crops in the middle of an image's quarters."""
    tops, lefts = (sorted({(side - crop) // 4, 3 * (side - crop) // 4}) for side in (height, width))
    return [(top, left) for top in tops for left in lefts]


def _window(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _oriented(image: np.ndarray, flip: bool, turns: int) -> np.ndarray:
    """Flip from left to right, then turn anticlockwise by quarters."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if flip else image, turns))


def _item(hr: np.ndarray, lr: np.ndarray, path: os.PathLike[str], failed: list[str]) -> Item:
    return {"hr": to_tensor(hr), "lr": to_tensor(lr), "path": os.fspath(path), "failed": "\n".join(failed)}


def _below(bound: int, stream: torch.Generator) -> int:
    """Draw a number in 0..bound - 1."""
    return int(torch.randint(bound, (), generator=stream, device="cpu"))


def _check(crop: int, scale: int, lr_images: Source | None, degradation: str) -> None:
    if crop < scale or crop % scale:
        raise ValueError(f"crop must be a positive multiple of the scale {scale}, got {crop}")
    degrade(degradation)
    if lr_images is not None and degradation != "bicubic":
        raise ValueError(f"degradation must be 'bicubic' (the default) with lr_images, got {degradation!r}")
