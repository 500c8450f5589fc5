"""Progress of decoding, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from invflow import FlowSequential
from invflow.layers.protocol import Shape

__all__ = ["layer_pixels", "progress_of"]


def layer_pixels(flows: Sequence[FlowSequential], shape: Shape) -> int:
    """Count the pixels that the inverses of all layers make for one image.

    Args:
        flows: flows in encode order, each of the state that the former hands on.
        shape: (C, H, W) of the first one's input.
    """
    pixels = 0
    for flow in flows:
        for _, shapes in flow.walk_shapes(shape):
            pixels += shape[1] * shape[2]
            shape = shapes[-1]
    return pixels


def progress_of(pixels: float, on_progress: Callable[[float], None]) -> Callable[[int], None]:
    """Return a function that turns the pixels a layer has made into a part of all work.

    Args:
        pixels: pixels that all layers make for all images, parts that are decoded twice counted twice.
        on_progress: called with the part of all work, a negative number for work that is done again.
    """
    return lambda made: on_progress(made / pixels)
