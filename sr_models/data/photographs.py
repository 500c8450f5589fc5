"""Photographs of a data set: where they are, how large they are, and how one is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sr_models.data.kept import KeptImages
from sr_models.data.layouts import find_high, find_low, pair_names, size_problem
from sr_models.data.packing import open_images, packing_hint
from sr_models.io.images import read_image
from sr_models.io.listing import Listing, check_unused, fingerprint_of, one_line

__all__ = ["Photographs", "UnreadableImage"]


class UnreadableImage(ValueError):
    """A file that was fine when it was listed can no longer be used. The message is one line, ``path: reason``."""


class Photographs:
    """Images that are large enough for crops, alone or with their low-resolution images.

    Args:
        images: a pack, what :func:`sr_models.io.listing.list_images` takes, or the folder of a data set with a known
            layout.
        scale: enlargement.
        crop: rows and columns that an image must have.
        lr_images: the low-resolution images; none: they are made from ``images``.
        split: ``train`` or ``valid``, of a data set that has both.
        strict: an image that cannot be used is an error.

    Attributes:
        listing: the images, and what is not used.
        fingerprint: of names and sizes in bytes, low-resolution images included.
        notes: lines for the user: how many images there are, and what is not used.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        *,
        scale: int,
        crop: int,
        lr_images: str | os.PathLike[str] | None = None,
        split: str = "train",
        strict: bool = False,
    ) -> None:
        self.scale, self.crop = scale, crop
        source = find_high(images, split=split)
        self._read_high: Callable[[Path], np.ndarray]
        self.listing, self._read_high = open_images(source, smallest=crop, strict=strict)
        self.fingerprint = self.listing.fingerprint
        self.low: Listing | None = None
        self._read_low: Callable[[Path], np.ndarray] = read_image
        self.notes = self.listing.summary()
        if lr_images is not None:
            sub = any(part.endswith("_sub") for part in source.parts)
            self._pair(find_low(lr_images, scale=scale, split=split, sub=sub), strict)

    def keep_decoded(self, limit: float) -> list[str]:
        """Keep decoded images on the disk, :class:`sr_models.data.kept.KeptImages`. Packs need no copy.

        Args:
            limit: GB that they may take; 0: none.

        Returns:
            Lines that say to the user what is kept, and what decoding costs otherwise.
        """
        listings = [self.listing] if self._read_high is read_image else []
        if self.low is not None and self._read_low is read_image:
            listings.append(self.low)
        kept = KeptImages(listings, limit)
        if not kept.active:
            return kept.notes + (packing_hint(self.listing) if self.listing in listings else [])
        if self._read_high is read_image:
            self._read_high = kept.read
        if self.low is not None and self._read_low is read_image:
            self._read_low = kept.read
        return kept.notes

    def _pair(self, low_source: Path, strict: bool) -> None:
        low, self._read_low = open_images(low_source, strict=strict)
        self.fingerprint = fingerprint_of([self.fingerprint, low.fingerprint], [0, 0])
        pairs, unused = pair_names(self.listing, low, self.scale)
        # the listing's own faults were judged before
        check_unused(one_line(self.listing.root), len(pairs), unused, strict)
        self.listing = self.listing.select([high for high, _ in pairs], unused)
        left = len(low) - len(pairs)
        self.low = low.select([index for _, index in pairs], [])
        self.notes = [
            *self.listing.summary(),
            *low.summary(),
            *([f"not used: {left} low-resolution images without a high-resolution one"] if left else []),
        ]

    def __len__(self) -> int:
        return len(self.listing)

    def read(self, index: int) -> tuple[np.ndarray, ...]:
        """Read an image, and its low-resolution image if there is one.

        Returns:
            ``(H, W, 3)``, and of pairs also ``(h, w, 3)``, uint8, not to be written to. Of pairs, the part is
            returned that both cover: ``H = scale * h``.

        Raises:
            UnreadableImage: the file has become unreadable, or too small, since it was listed.
        """
        path = self.listing.paths[index]
        try:
            high = self._read_high(path)
            low = self._read_low(self.low.paths[index]) if self.low is not None else None
        except (OSError, ValueError) as error:
            # messages name the file once, but for a low-resolution image
            reason = str(error).replace(f"cannot read image {path}: ", "").replace(f"image {path} ", "")
            raise UnreadableImage(f"{one_line(path)}: {' '.join(reason.split())}") from error
        height, width = high.shape[:2]
        if min(height, width) < self.crop:
            raise UnreadableImage(
                f"{one_line(path)}: must be at least {self.crop} x {self.crop} pixels, got {height} x {width}"
            )
        if low is None:
            return (high,)
        rows, columns = low.shape[:2]
        if problem := size_problem((height, width), (rows, columns), self.scale):
            raise UnreadableImage(f"{one_line(path)}: {problem}")
        rows, columns = min(rows, height // self.scale), min(columns, width // self.scale)
        return high[: rows * self.scale, : columns * self.scale], low[:rows, :columns]
