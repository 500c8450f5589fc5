"""The crops that raters see, cut out of the methods' images at the same places."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.sample_folder import find_samples
from sr_models.evaluation.scoring import CROP_MULTIPLE
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import crop_to_multiple, read_header, read_image
from sr_models.io.listing import Listing, fingerprint_of, list_images, one_line
from sr_models.io.resize import imresize
from sr_models.study.settings import CROPS, SIDE, Settings, crop_positions

__all__ = ["BASELINES", "MAX_METHODS", "Crop", "Source", "cut_crops", "find_source"]

#: Number of the image, number of the method (``None``: the high-resolution image), number of the crop, PNG file.
Crop = tuple[int, int | None, int, bytes]
#: Methods that need no folder.
BASELINES = ("bicubic", "encoder's image")
#: One digit of the keyboard a method.
MAX_METHODS = 9


@dataclass(frozen=True)
class Source:
    """Images of a study: files, and a model that makes more.

    Attributes:
        settings: what the study asks.
        references: the high-resolution images.
        files: name of a method -> its images, in the order of the references.
        model: bicubic interpolation and this model's encoder are two more methods.
    """

    settings: Settings
    references: Sequence[Path]
    files: Mapping[str, Sequence[Path]]
    model: SuperResolutionFlow | None = None


def find_source(
    images: str | os.PathLike[str],
    methods: Mapping[str, str | os.PathLike[str]],
    *,
    baselines: SuperResolutionFlow | None = None,
    seed: int = 0,
    reference: bool = True,
) -> Source:
    """Find the images of a study and check their sizes, without decoding them.

    Of a method's samples the first counts. :func:`sr_models.evaluation.sample_folder.find_samples` tells their names.

    Args:
        images: the high-resolution images, as :func:`sr_models.io.listing.list_images` takes them.
        methods: name -> folder; two to nine.
        baselines: bicubic interpolation and the image of this model's encoder are two of the methods.
        seed: decides the places of the crops and all orders.
        reference: whether raters see the high-resolution image.

    Raises:
        FileNotFoundError: a folder or an image that is missing.
        ValueError: too few or too many methods, images that cannot be used, or sizes that do not fit.
    """
    if baselines is not None and baselines.encoder is None:
        raise ValueError(f"baselines must be a model with an encoder, got {baselines.name}, which has none")
    names = (*methods, *(BASELINES if baselines is not None else ()))
    if not 2 <= len(names) <= MAX_METHODS:
        raise ValueError(f"a study compares 2 to {MAX_METHODS} methods, got {len(names)}; name each with --method")
    if taken := [name for name in BASELINES if names.count(name) > 1]:
        raise ValueError(f"method {taken[0]!r} is one of the baselines; name the folder otherwise")
    high = list_images(images, smallest=SIDE, strict=True)
    files, fingerprints = {}, [high.fingerprint]
    for name, folder in methods.items():
        files[name] = _first_samples(name, folder, high)
        fingerprints.append(fingerprint_of(high.names, [path.stat().st_size for path in files[name]]))
    if baselines is not None:
        fingerprints += [f"x{baselines.scale}", _weights_of(baselines)]
    settings = Settings(names, tuple(map(one_line, high.names)), tuple(fingerprints), seed, reference)
    return Source(settings, high.paths, files, baselines)


def _weights_of(model: SuperResolutionFlow) -> str:
    """Hash a model's weights."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _fits(length: int, reference: int) -> bool:
    return reference - reference % CROP_MULTIPLE <= length <= reference


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
                f"method {method}: {one_line(path)} is {header.width} x {header.height} pixels, "
                f"and {one_line(original)} {width} x {height}: they must be equal, or "
                f"cropped to multiples of {CROP_MULTIPLE}"
            )
    return paths


def cut_crops(source: Source, done: Callable[[], object] | None = None) -> Iterator[Crop]:
    """Decode the images one after another, and cut the crops out.

    Args:
        source: what :func:`find_source` returns.
        done: called after every image.

    Yields:
        The crops. All their files are of one size, which tells nothing of the method.

    Raises:
        ValueError: an image that is damaged.
    """
    for image, path in enumerate(source.references):
        truth = read_image(path)
        found = {name: read_image(files[image]) for name, files in source.files.items()}
        if source.model is not None:
            reduced = imresize(crop_to_multiple(truth, CROP_MULTIPLE), 1 / source.model.scale)
            found |= baseline_images(reduced, source.model.scale, source.model)
        pictures: list[tuple[int | None, np.ndarray]] = [(None, truth)]
        pictures += [(number, found[name]) for number, name in enumerate(source.settings.methods)]
        height = min(picture.shape[0] for _, picture in pictures)
        width = min(picture.shape[1] for _, picture in pictures)
        places = crop_positions(height, width, image, source.settings.seed)
        assert len(places) == CROPS
        for method, picture in pictures:
            for crop, (row, column) in enumerate(places):
                yield image, method, crop, _stored_png(picture[row : row + SIDE, column : column + SIDE])
        if done is not None:
            done()


def _stored_png(image: np.ndarray) -> bytes:
    """Encode without compression: a smooth picture is to give as many bytes as a rough one."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
