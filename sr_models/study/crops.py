"""The crops that raters see, cut out of the methods' images at the same places."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sr_models.evaluation.sample_folder import find_samples
from sr_models.io.images import read_header, read_image
from sr_models.io.listing import Listing, fingerprint_of, list_images, one_line
from sr_models.study.settings import CROPS, SIDE, Settings, crop_positions

__all__ = ["MAX_METHODS", "Crop", "Source", "cut_crops", "find_source"]

#: Number of the image, number of the method (``None``: the high-resolution image), number of the crop, PNG file.
Crop = tuple[int, int | None, int, bytes]
#: One digit of the keyboard a method.
MAX_METHODS = 9
#: The challenge crops its images to multiples of this.
_MULTIPLE = 8


@dataclass(frozen=True)
class Source:
    """Where the images of a study are.

    Attributes:
        settings: what the study asks.
        references: the high-resolution images.
        files: name of a method -> its images, in the order of the references.
    """

    settings: Settings
    references: Sequence[Path]
    files: Mapping[str, Sequence[Path]]


def find_source(
    images: str | os.PathLike[str],
    methods: Mapping[str, str | os.PathLike[str]],
    *,
    seed: int = 0,
    reference: bool = True,
) -> Source:
    """Find the images of a study and check their sizes, without decoding them.

    Of a method's samples the first counts. :func:`sr_models.evaluation.sample_folder.find_samples` tells their names.

    Args:
        images: the high-resolution images, as :func:`sr_models.io.listing.list_images` takes them.
        methods: name -> folder; two to nine.
        seed: decides the places of the crops and all orders.
        reference: whether raters see the high-resolution image.

    Raises:
        FileNotFoundError: a folder or an image that is missing.
        ValueError: too few or too many methods, images that cannot be used, or sizes that do not fit.
    """
    if not 2 <= len(methods) <= MAX_METHODS:
        raise ValueError(f"a study compares 2 to {MAX_METHODS} methods, got {len(methods)}; name each with --method")
    high = list_images(images, smallest=SIDE, strict=True)
    files, fingerprints = {}, [high.fingerprint]
    for name, folder in methods.items():
        files[name] = _first_samples(name, folder, high)
        fingerprints.append(fingerprint_of(high.names, [path.stat().st_size for path in files[name]]))
    settings = Settings(tuple(methods), tuple(map(one_line, high.names)), tuple(fingerprints), seed, reference)
    return Source(settings, high.paths, files)


def _fits(length: int, reference: int) -> bool:
    return reference - reference % _MULTIPLE <= length <= reference


def _first_samples(method: str, folder: str | os.PathLike[str], high: Listing) -> list[Path]:
    """Return a method's image for each high-resolution one."""
    samples = find_samples(folder, high.names)
    if samples.failures:
        name, reason = next(iter(samples.failures.items()))
        others = f"; {len(samples.failures)} of {len(high)} images lack it" if len(samples.failures) > 1 else ""
        raise ValueError(f"method {method}, image {one_line(name)}: {reason}{others}")
    paths = [samples.files[name][0] for name in high.names]
    for path, original, (height, width) in zip(paths, high.paths, high.sizes, strict=True):
        header = read_header(path)
        if not _fits(header.height, height) or not _fits(header.width, width):
            raise ValueError(
                f"method {method}: {one_line(path)} is {header.width} x {header.height} pixels, and "
                f"{one_line(original)} {width} x {height}: they must be equal, or cropped to multiples of {_MULTIPLE}"
            )
    return paths


def cut_crops(source: Source, done: Callable[[], object] = lambda: None) -> Iterator[Crop]:
    """Decode the images one after another, and cut the crops out.

    Args:
        source: what :func:`find_source` returns.
        done: called after every image.

    Yields:
        The crops. All their files are of one size, which tells nothing of the method.

    Raises:
        ValueError: an image that is damaged.
    """
    methods = list(enumerate(source.files[name] for name in source.settings.methods))
    for image, path in enumerate(source.references):
        pictures: list[tuple[int | None, np.ndarray]] = [(None, read_image(path))]
        pictures += [(method, read_image(files[image])) for method, files in methods]
        height = min(picture.shape[0] for _, picture in pictures)
        width = min(picture.shape[1] for _, picture in pictures)
        places = crop_positions(height, width, image, source.settings.seed)
        assert len(places) == CROPS
        for method, picture in pictures:
            for crop, (row, column) in enumerate(places):
                yield image, method, crop, _stored_png(picture[row : row + SIDE, column : column + SIDE])
        done()


def _stored_png(image: np.ndarray) -> bytes:
    """Encode without compression: a smooth picture is to give as many bytes as a rough one."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
