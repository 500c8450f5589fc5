"""Photographs that come inside Python packages: enough to train and judge a small model with nothing downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sr_models.io.images import read_image, write_image
from sr_models.io.listing import list_images, one_line
from sr_models.io.resize import imresize

__all__ = ["PHOTOGRAPHS", "Photograph", "reduce_photographs", "unpack_photographs"]

#: Longest side of a user's photograph, in pixels, and shortest: less is no crop of the validation.
_LONGEST, _SHORTEST = 640, 64
#: Number of photographs for which the demonstration takes minutes, not hours.
_MOST = 6


@dataclass(frozen=True)
class Photograph:
    """One photograph in an installed package.

    Attributes:
        name: its name in this demonstration.
        package: import name of the package.
        file: path inside the package.
        train: trained on; otherwise only looked at and scored.
        reduced: JPEG files are reduced by half, so that compression does not become what is learned.
        credit: author and licence.
    """

    name: str
    package: str
    file: str
    train: bool
    reduced: bool
    credit: str

    @property
    def attribution(self) -> str:
        """One line for readers: name, author, licence, package and use."""
        use = "trained on" if self.train else "only tested on"
        return f"{self.name}: {self.credit}; from {self.package}, {use}"


PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("astronaut", "skimage", "data/astronaut.png", True, False, "NASA, public domain"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png", True, False, "Middlebury stereo benchmark 2014"),
    Photograph("rocket", "skimage", "data/rocket.jpg", True, True, "SpaceX, public domain"),
    Photograph("china", "sklearn", "datasets/images/china.jpg", True, True, "danielbuechele, CC BY 2.0"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", True, True, "vultilion, CC BY 2.0"),
    Photograph("chelsea", "skimage", "data/chelsea.png", False, False, "Stefan van der Walt, CC0"),
    Photograph("coffee", "skimage", "data/coffee.png", False, False, "Rachel Michetti, CC0"),
)

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def unpack_photographs(folder: Path) -> tuple[Path, Path]:
    """Write the photographs as PNG below ``folder``.

    Returns:
        The folders ``train`` and ``test``.

    Raises:
        FileNotFoundError: a package that is not installed, or that no longer carries the file.
    """
    sources = [_locate(photograph) for photograph in PHOTOGRAPHS]
    folders = folder / "test", folder / "train"
    for subfolder in folders:
        subfolder.mkdir(parents=True, exist_ok=True)
    for photograph, source in zip(PHOTOGRAPHS, sources, strict=True):
        target = folders[photograph.train] / f"{photograph.name}.png"
        if not target.exists():
            image = read_image(source)
            write_image(target, imresize(image, 0.5) if photograph.reduced else image)
    return folders[1], folders[0]


def reduce_photographs(sources: Sequence[str], folder: Path) -> Path:
    """Write a user's photographs as PNG into a folder, reduced to at most 640 pixels; others there are removed.

    A reduced photograph is sharp, without noise and traces of compression, as the truth should be.

    Args:
        sources: images, or what else :func:`sr_models.io.listing.list_images` takes.
        folder: created if needed.

    Returns:
        ``folder``.

    Raises:
        FileNotFoundError: no such image.
        ValueError: an image that cannot be used, or more than six.
    """
    listings = [list_images(source) for source in sources]
    for entry in (entry for listing in listings for entry in listing.unused if entry.kind == "damaged"):
        raise ValueError(f"image {one_line(entry.path)} cannot be used: {entry.reason}")
    paths = list(dict.fromkeys(path for listing in listings for path in listing.paths))
    if len(paths) > _MOST:
        raise ValueError(f"images must be at most {_MOST}, got {len(paths)}; sr-models sample takes any number")
    images: dict[str, np.ndarray] = {}
    for path in paths:
        image = read_image(path)
        if min(image.shape[:2]) * min(1, _LONGEST / max(image.shape[:2])) < _SHORTEST:
            height, width = image.shape[:2]
            raise ValueError(
                f"image {path} must have at least {_SHORTEST} pixels on either side once its longer side has "
                f"{_LONGEST}, got {width} x {height}"
            )
        name = path.stem if path.stem not in images else f"{path.stem}_{len(images)}"
        images[name] = imresize(image, _LONGEST / max(image.shape[:2])) if max(image.shape[:2]) > _LONGEST else image
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(folder.glob("*.png")) - {folder / f"{name}.png" for name in images}:
        stale.unlink()
    for name, image in images.items():
        write_image(folder / f"{name}.png", image)
    return folder


def _locate(photograph: Photograph) -> Path:
    distribution = _DISTRIBUTIONS[photograph.package]
    spec = importlib.util.find_spec(photograph.package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the photograph {photograph.name} comes with {distribution}, which is not installed: "
            f"pip install 'invflow[demo]'"
        )
    path = Path(spec.origin).parent / photograph.file
    if not path.exists():
        raise FileNotFoundError(f"the installed {distribution} does not carry {photograph.file}")
    return path
