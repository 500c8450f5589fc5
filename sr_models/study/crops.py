"""The crops that raters see, cut out of the methods' images at the same places."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sr_models.io.images import read_image
from sr_models.io.listing import Listing, list_images, one_line
from sr_models.study.settings import CROPS, SIDE, Settings, crop_positions

__all__ = ["MAX_METHODS", "Crop", "Source", "cut_crops", "find_source"]

#: Number of the image, number of the method (``None``: the high-resolution image), number of the crop, PNG file.
Crop = tuple[int, int | None, int, bytes]
#: One digit of the keyboard a method.
MAX_METHODS = 9
#: The challenge crops its images to multiples of this.
_MULTIPLE = 8
_SAMPLE = re.compile(r"(?P<name>.*?)_sample0+")


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

    The first sample of an image ``0801.png`` is ``0801.png`` or ``0801_sample000.png`` in the method's folder. In the
    challenge's naming it is ``000000_sample00000.png`` or ``000000.png``: the number of the image, from 0.

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
    listings = {name: list_images(folder) for name, folder in methods.items()}
    files = {}
    for name, listing in listings.items():
        chosen = _first_samples(name, listing, high)
        sizes = dict(zip(listing.paths, listing.sizes, strict=True))
        for path, (height, width), reference_path in zip(chosen, high.sizes, high.paths, strict=True):
            rows, columns = sizes[path]
            if not _fits(rows, height) or not _fits(columns, width):
                raise ValueError(
                    f"method {name}: {one_line(path)} is {columns} x {rows} pixels, and {one_line(reference_path)} "
                    f"{width} x {height}: they must be equal, or cropped to multiples of {_MULTIPLE}"
                )
        files[name] = chosen
    settings = Settings(
        tuple(methods),
        tuple(map(one_line, high.names)),
        (high.fingerprint, *(listing.fingerprint for listing in listings.values())),
        seed,
        reference,
    )
    return Source(settings, high.paths, files)


def _fits(length: int, reference: int) -> bool:
    return reference - reference % _MULTIPLE <= length <= reference


def _first_samples(method: str, listing: Listing, high: Listing) -> list[Path]:
    """Return a method's image for each high-resolution one: by name, or else by number."""
    by_name: dict[str, Path] = {}
    for name, path in zip(listing.names, listing.paths, strict=True):
        stem = name.removesuffix(path.suffix)
        match = _SAMPLE.fullmatch(stem)
        # a file of the image's own name wins over a sample
        by_name[match["name"] if match else stem] = by_name.get(stem, path) if match else path
    wanted = [name.removesuffix(path.suffix) for name, path in zip(high.names, high.paths, strict=True)]
    numbered = [f"{number:06d}" for number in range(len(wanted))]
    for names in (wanted, numbered):
        if all(name in by_name for name in names):
            return [by_name[name] for name in names]
    missing = [name for name in wanted if name not in by_name]
    raise FileNotFoundError(
        f"method {method}: {one_line(listing.root)} has no image for {len(missing)} of {len(wanted)} images, such as "
        f"{one_line(missing[0])}.png or {one_line(missing[0])}_sample000.png; in the challenge's naming: "
        f"{numbered[0]}_sample00000.png to {numbered[-1]}_sample00000.png"
    )


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
