"""Pairs of images to score: found and checked before anything is scored, then read one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from sr_models.data.layouts import find_high, find_low, pair_names, size_problem
from sr_models.evaluation.scoring import CROP_MULTIPLE
from sr_models.io.images import check_pair, crop_to_multiple, read_image
from sr_models.io.listing import Listing, Unused, list_images, one_line
from sr_models.io.resize import imresize

__all__ = ["Pair", "find_pairs", "load_pair", "names_in_order"]

#: Kinds of unused files that are a fault of the image itself, or of who named it.
_UNREADABLE = ("damaged", "too small", "missing", "dangling links")
_NAMED = 5


@dataclass(frozen=True)
class Pair:
    """An image to score.

    Attributes:
        name: the file's path below the folder that was named.
        hr: high-resolution image.
        lr: low-resolution image; ``None``: the high-resolution image is reduced.
        samples: files to score, if they are not drawn from a model.
    """

    name: str
    hr: Path
    lr: Path | None = None
    samples: tuple[Path, ...] = ()

    def digest(self) -> str:
        """Hash the bytes of the files to 32 hexadecimal digits.

        Raises:
            OSError: a file that cannot be read.
        """
        digest = hashlib.sha256()
        for path in (self.hr, *([self.lr] if self.lr else []), *self.samples):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]


def find_pairs(
    images: str | os.PathLike[str], scale: int, lr_images: str | os.PathLike[str] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """Find images, and their low-resolution images, and check that they fit each other, without decoding them.

    Args:
        images: what :func:`sr_models.io.listing.list_images` takes, or the folder of a data set with a known layout.
        scale: enlargement.
        lr_images: likewise; the low-resolution image of ``0801.png`` is ``0801`` or ``0801x4``, with any suffix. None:
            they are made by reduction.

    Returns:
        At least one pair, and name -> reason of images that cannot be read or are smaller than 8 x 8 pixels.

    Raises:
        FileNotFoundError: no image, or images without a low-resolution one; all are counted, the first five named.
        ValueError: no image that can be used, or pairs whose sizes do not fit.
    """
    source = find_high(images, split="valid")
    high = list_images(source, smallest=CROP_MULTIPLE)
    failures = {_name(entry.path, high.root): entry.reason for entry in high.unused if entry.kind in _UNREADABLE}
    if lr_images is None:
        return [Pair(name, path) for name, path in zip(high.names, high.paths, strict=True)], failures
    low = list_images(find_low(lr_images, scale=scale, split="valid", sub=source.name.endswith("_sub")))
    found, unused = pair_names(high, low, scale)
    faults = _faults(low)
    missing: list[Unused] = []
    for entry in unused:
        stems = (entry.path.stem, f"{entry.path.stem}x{scale}")
        reason = next((faults[stem] for stem in stems if stem in faults), None)
        if reason is None:
            missing.append(entry)
        else:
            failures[_name(entry.path, high.root)] = reason
    if missing:
        lines = [f"{one_line(entry.path)}: {entry.reason}" for entry in missing[:_NAMED]]
        more = f"; and {len(missing) - _NAMED} more" if missing[_NAMED:] else ""
        absent = all(entry.kind.startswith("without") for entry in missing)
        error = FileNotFoundError if absent else ValueError
        raise error(f"lr_images do not fit {len(missing)} of {len(high)} images: {'; '.join(lines)}{more}")
    if not found:
        raise ValueError(f"no image can be used: {_first(failures)}")
    return [Pair(high.names[index], high.paths[index], low.paths[other]) for index, other in found], failures


def names_in_order(pairs: Iterable[Pair], failures: Iterable[str]) -> list[str]:
    """Sort the names of all images, with those that cannot be read, by folder and name.

    The place of a name is its number in the files of the challenge.
    """
    return sorted({*(pair.name for pair in pairs), *failures}, key=lambda name: PurePath(name).parts)


def load_pair(hr_path: Path, scale: int, lr_path: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a high-resolution image and its low-resolution image, both whole.

    Args:
        hr_path: high-resolution image.
        scale: enlargement.
        lr_path: low-resolution image, of 1 / scale of the rows and columns, rounded down or up. ``None``: the
            high-resolution image is reduced, without the last rows and columns if ``scale`` does not divide them.

    Returns:
        lr (h, w, 3) and hr (H, W, 3), uint8. H and W are at most ``scale`` h and ``scale`` w, and smaller only if the
        low-resolution image is rounded up.

    Raises:
        FileNotFoundError: a file that is missing.
        ValueError: an unreadable file, or sizes that do not fit.
    """
    hr = read_image(hr_path)
    if min(hr.shape[:2]) < CROP_MULTIPLE:
        raise ValueError(
            f"image {hr_path} must be at least {CROP_MULTIPLE} x {CROP_MULTIPLE} pixels, "
            f"got {hr.shape[1]} x {hr.shape[0]}"
        )
    if lr_path is None:
        hr = np.ascontiguousarray(crop_to_multiple(hr, scale))
        return imresize(hr, 1 / scale), hr
    lr = read_image(lr_path)
    if size_problem(hr.shape[:2], lr.shape[:2], scale):
        check_pair(lr, hr, scale)
    return lr, np.ascontiguousarray(hr[: scale * lr.shape[0], : scale * lr.shape[1]])


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _faults(low: Listing) -> dict[str, str]:
    """Return stem -> reason of low-resolution images that cannot be read."""
    return {
        entry.path.stem: f"{one_line(entry.path)}: {entry.reason}" for entry in low.unused if entry.kind in _UNREADABLE
    }


def _first(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:_NAMED])
