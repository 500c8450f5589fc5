"""Measure how tiles of a program agree: ``python recipes/tiles.py`` prints the table of docs/sr-tools.md.

For two photographs: the largest difference between a tile and the whole image, in grey levels, by the distance from the
tile's border in low-resolution pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from sklearn.datasets import load_sample_image
from torch import Tensor

import sr_models
from sr_models.interop.local_noise import sample_locally
from sr_models.io.images import to_tensor
from sr_models.io.resize import imresize

#: First column of the tile, in low-resolution pixels.
_START = 64


def largest_difference(enlarge: Callable[[Tensor], Tensor], lr: Tensor, distance: int, scale: int) -> float:
    """Return the largest difference in grey levels.

    Args:
        enlarge: (1, 3, h, w) -> (1, 3, scale h, scale w), in [0, 1].
        lr: (1, 3, h, w).
        distance: from the tile's left border, in pixels of ``lr``.
        scale: enlargement.
    """
    tile, whole = enlarge(lr[..., _START:]), enlarge(lr)
    return 255 * float((tile[..., distance * scale :] - whole[..., (_START + distance) * scale :]).abs().max())


def main() -> None:
    """Print the table."""
    model = sr_models.load("srflow-da-tiny")
    images = [
        to_tensor(imresize(load_sample_image(name)[:424, :640], 1 / 4))[None] for name in ("flower.jpg", "china.jpg")
    ]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "temperature 0": lambda lr: model.sample(lr, 1, temperature=0.0)[:, 0],
        "0.9": partial(sample_locally, model, temperature=0.9, seed=0),
        "0.9, noise of `sample`": lambda lr: model.sample(lr, 1, temperature=0.9)[:, 0],
    }
    print(f"| low-resolution pixels from the border | {' | '.join(ways)} |")
    print(f"|{' --- |' * (len(ways) + 1)}")
    for distance in (0, 8, 16):
        worst = [max(largest_difference(way, lr, distance, model.scale) for lr in images) for way in ways.values()]
        print(f"| {distance} | {' | '.join(f'{value:.2f}' for value in worst)} |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
