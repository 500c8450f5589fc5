"""Detection of samples that explode: a layer's inverse may amplify up to 1 / eps of its coupling, 10^4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from invflow._numerics import reads_freely

__all__ = ["LIMIT", "Explosion", "ExplosionError", "OnExplode", "Watch", "check_on_explode"]

#: The largest trusted activation: beyond it, float32 rounds by more than a grey level of 8 bits.
LIMIT = 1e5

OnExplode = Literal["error", "resample", "clamp"]


class ExplosionError(FloatingPointError):
    """A sample whose activations exceeded :data:`LIMIT` or were not finite."""


class Explosion(NamedTuple):
    """The place where the activations of a sample first exceeded :data:`LIMIT`.

    Attributes:
        level: number of the level, from 1, the finest.
        layer: number of the layer within the level, from 0, in encode order.
        largest: absolute activation after the layer's inverse; NaN if there was a NaN.
    """

    level: int
    layer: int
    largest: float

    def __str__(self) -> str:
        return f"level {self.level}, layer {self.layer}: largest activation {self.largest:.3g} exceeds {LIMIT:.0e}"


class Watch:
    """Look at every layer's result while decoding, in one pass over the state, without waiting for its device.

    Args:
        clamp: limit the activations to :data:`LIMIT`, or to the largest number of their dtype if that is less, and put
            0 for NaN.
        on_layer: called after every layer with the number of pixels that it made.

    Attributes:
        seen: for every state that was looked at, in order: its layer, and its largest activation on its device.
        pixels: number of pixels that all layers have made.
    """

    def __init__(self, *, clamp: bool = False, on_layer: Callable[[int], None] | None = None) -> None:
        self.clamp = clamp
        self.on_layer = on_layer
        self.seen: list[Seen] = []
        self.pixels = 0

    def __call__(self, state: Tensor, first: int, level: int, layer: int) -> Tensor:
        """Note the largest activations, and return the states to go on with.

        Args:
            state: (B, C, H, W), after the layer's inverse.
            first: number of the first of the B states.
            level, layer: as in :class:`Explosion`.
        """
        if not state.numel():
            return state
        self._count(state[:, 0].numel())
        values = state.detach()
        # in float32, because the limit is infinite in float16
        largest = torch.maximum(values.amax((1, 2, 3)), -values.amin((1, 2, 3)))
        largest = largest if largest.dtype == torch.float64 else largest.float()
        self.seen.append(Seen(first, level, layer, largest))
        if not self.clamp or (reads_freely(largest) and bool((largest <= LIMIT).all())):
            return state
        limit = min(LIMIT, torch.finfo(state.dtype).max)
        return state.nan_to_num(0.0).clamp_(-limit, limit)

    def add(self, seen: Iterable[Seen], pixels: int) -> None:
        """Note what was seen elsewhere, when the same layers made so many pixels."""
        self.seen += seen
        self._count(pixels)

    def _count(self, pixels: int) -> None:
        self.pixels += pixels
        if self.on_layer is not None:
            self.on_layer(pixels)

    @property
    def found(self) -> dict[int, Explosion]:
        """Return the first explosion of every state that has one, by its number. This waits for the device."""
        found: dict[int, Explosion] = {}
        if self.seen:
            values = iter(torch.cat([each.largest for each in self.seen]).tolist())
            for first, level, layer, largest in self.seen:
                for index in range(first, first + len(largest)):
                    value = next(values)
                    if not value <= LIMIT:
                        found.setdefault(index, Explosion(level, layer, value))
        return found


class Seen(NamedTuple):
    """Largest activations that a layer has made of some states.

    Attributes:
        first: number of the first of them.
        level, layer: as in :class:`Explosion`.
        largest: their largest absolute activations, NaN for a state with a NaN.
    """

    first: int
    level: int
    layer: int
    largest: Tensor


def check_on_explode(on_explode: str) -> None:
    """Raise ``ValueError`` unless it is one of "error", "resample" and "clamp"."""
    if on_explode not in get_args(OnExplode):
        choices = ", ".join(map(repr, get_args(OnExplode)))
        raise ValueError(f"on_explode must be one of {choices}, got {on_explode!r}")
