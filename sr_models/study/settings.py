"""What a study asks: methods, images and how they are mixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch

from sr_models.io.json_text import parse_json
from sr_models.randomness import random_stream

__all__ = ["CROPS", "SIDE", "Settings", "crop_positions", "image_order", "method_order"]

#: Crops of an image, and their height and width in pixels: those of the challenge.
CROPS = 3
SIDE = 80
#: First index of the random streams: what is drawn.
_CROP_POSITIONS, _IMAGE_ORDER, _METHOD_ORDER = range(3)
_TRIES = 100


@dataclass(frozen=True)
class Settings:
    """Settings of a study, which never change once it has begun.

    Attributes:
        methods: their names.
        images: names of the images.
        fingerprints: hash of the files' names and sizes, of the images and of each method.
        seed: decides the places of the crops, and the orders of images and methods.
        reference: whether raters see the high-resolution image.
    """

    methods: tuple[str, ...]
    images: tuple[str, ...]
    fingerprints: tuple[str, ...]
    seed: int = 0
    reference: bool = True

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what :meth:`to_json` returns."""
        content = parse_json(text)
        methods, images, fingerprints = (tuple(content[name]) for name in ("methods", "images", "fingerprints"))
        if not all(isinstance(text, str) for text in (*methods, *images, *fingerprints)):
            raise ValueError("methods, images and fingerprints must be texts")
        return cls(methods, images, fingerprints, int(content["seed"]), bool(content["reference"]))

    def changes(self, given: Settings) -> list[str]:
        """Say what is different in other settings, a clause each."""
        changed = []
        for name in (field.name for field in fields(self)):
            before, now = getattr(self, name), getattr(given, name)
            if before == now:
                continue
            if name == "methods":
                changed.append(f"methods were {', '.join(before)}, now {', '.join(now)}")
            elif name == "images":
                changed.append(f"there were {len(before)} images, now {len(now)}, or their names are others")
            elif name == "fingerprints":
                pairs = zip(("images", *self.methods), before, now, strict=False)
                whose = [label for label, former, latter in pairs if former != latter]
                if given.methods == self.methods and given.images == self.images:
                    changed.append(f"files of {', '.join(whose)} are others")
            else:
                changed.append(f"{name} was {before}, now {now}")
        return changed


def crop_positions(height: int, width: int, image: int, seed: int) -> list[tuple[int, int]]:
    """Draw where the crops of an image begin, uniformly; where there is room they do not overlap.

    Args:
        height: rows of the image, at least :data:`SIDE`.
        width: columns, likewise.
        image: number of the image.
        seed: of the study.

    Returns:
        Row and column of each.
    """
    stream = random_stream(seed, "study", _CROP_POSITIONS, image)
    best: list[tuple[int, int]] = []
    for _ in range(_TRIES):
        rows = torch.randint(height - SIDE + 1, (CROPS,), generator=stream, device="cpu").tolist()
        columns = torch.randint(width - SIDE + 1, (CROPS,), generator=stream, device="cpu").tolist()
        best = list(zip(rows, columns, strict=True))
        if not any(
            abs(best[i][0] - best[j][0]) < SIDE and abs(best[i][1] - best[j][1]) < SIDE
            for i in range(CROPS)
            for j in range(i)
        ):
            break
    return best


def image_order(settings: Settings, rater: int) -> list[int]:
    """Return the order in which a rater gets the images, by their numbers."""
    return _permutation(len(settings.images), settings.seed, _IMAGE_ORDER, rater)


def method_order(settings: Settings, rater: int, image: int) -> list[int]:
    """Return the order in which a rater sees the methods of an image: place on the page -> number of the method."""
    return _permutation(len(settings.methods), settings.seed, _METHOD_ORDER, rater, image)


def _permutation(count: int, seed: int, *indices: int) -> list[int]:
    numbers: Sequence[int] = torch.randperm(
        count, generator=random_stream(seed, "study", *indices), device="cpu"
    ).tolist()
    return list(numbers)
