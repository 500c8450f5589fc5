"""Photographs that come inside Python packages: enough to train and judge a small model with nothing downloaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from sr_models.io.images import read_image, write_image
from sr_models.io.resize import imresize

__all__ = ["PHOTOGRAPHS", "Photograph", "unpack_photographs"]


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
