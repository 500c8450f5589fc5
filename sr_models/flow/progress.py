"""Progress of decoding, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from invflow import FlowSequential
from invflow.layers.protocol import Shape

__all__ = ["progress_of"]


def progress_of(
    levels: Sequence[FlowSequential], shape: Shape, images: float, on_progress: Callable[[float], None]
) -> Callable[[int], None]:
    """Return a function that turns the pixels a layer has made into a part of all work.

    Args:
        levels: levels in encode order.
        shape: (3, H, W) of a decoded image.
        images: number of decoded images, parts that are decoded twice counted twice.
        on_progress: called with the part of all work, a negative number for work that is done again.
    """
    pixels = 0
    for level in levels:
        for _, shapes in level.walk_shapes(shape):
            pixels += shape[1] * shape[2]
            shape = shapes[-1]
    return lambda made: on_progress(made / (pixels * images))
