"""Shapes of states and latents in the levels of a super-resolution flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from invflow import FlowSequential
from invflow.layers.protocol import Shape

__all__ = ["LevelShapes", "level_shapes", "smallest_shapes"]

#: Beyond this, no multiple of a low-resolution image's sides is tried.
_LARGEST_MULTIPLE = 256


class LevelShapes(NamedTuple):
    """Shapes (C, H, W) in one level of a flow.

    Attributes:
        state: shape after the first layer that changes the resolution, or of the level's input if no layer does. The
            level's context has its height and width.
        leaving: shapes of the latents that leave the level, in encode order.
        rest: shape of the state that goes on, which is the last latent after the last level.
    """

    state: Shape
    leaving: list[Shape]
    rest: Shape


def level_shapes(levels: Sequence[FlowSequential], shape: Shape) -> list[LevelShapes]:
    """Return the shapes in every level, from first to last.

    Args:
        levels: levels in encode order.
        shape: (C, H, W) of the first level's input.

    Raises:
        TypeError: a layer of several latents without a method ``output_shapes``.
        ValueError: a size that a layer does not take, or layers that do not fit each other.
    """
    found: list[LevelShapes] = []
    rest = shape
    for number, level in enumerate(levels, 1):
        given = state = rest
        leaving: list[Shape] = []
        try:
            for _, shapes in level.walk_shapes(given):
                leaving += shapes[:-1]
                rest = shapes[-1]
                state = rest if state[1:] == given[1:] else state
        except ValueError as error:
            raise ValueError(f"level {number}: {error}") from error
        except TypeError as error:
            raise TypeError(f"level {number}: {error}") from error
        found.append(LevelShapes(given if state[1:] == given[1:] else state, leaving, rest))
    return found


def smallest_shapes(shapes: Callable[[int, int], list[LevelShapes]]) -> tuple[int, list[LevelShapes]]:
    """Return the side of the smallest low-resolution image that every level can halve, and its shapes.

    Args:
        shapes: ``shapes(height, width)`` for a low-resolution image of this size.

    Raises:
        TypeError, ValueError: as ``shapes``, for layers that do not fit each other.
    """
    for side in range(1, _LARGEST_MULTIPLE):
        try:
            return side, shapes(side, side)
        except ValueError:
            continue
    return _LARGEST_MULTIPLE, shapes(_LARGEST_MULTIPLE, _LARGEST_MULTIPLE)
