"""Couplings of two halves: the channels that they transform, and the call of their network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from invflow.layers._checks import check_channels, check_output_channels, check_shared_channels
from invflow.layers._layouts import evaluate
from invflow.layers.conditioning import over_pixels, repeat_context
from invflow.layers.protocol import Context, SharedContext, is_shared

__all__ = ["Halves", "WithNetwork", "call_network", "check_output", "halves_of", "shared_network"]


class Halves(NamedTuple):
    """Channels ``start`` to ``stop`` of a state are transformed; the others, all before or all after, pass.

    Attributes:
        start: the first channel that is transformed.
        stop: the channel after the last one.
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of channels that are transformed."""
        return self.stop - self.start

    def passed(self, x: Tensor) -> Tensor:
        """Return the channels that pass."""
        start, stop = self
        # half the time of a slice
        return x.narrow(1, 0, start) if start else x.narrow(1, stop, x.shape[1] - stop)

    def changed(self, x: Tensor) -> Tensor:
        """Return the channels that are transformed."""
        return x[:, self.start : self.stop]

    def in_order(self, passed: Tensor, changed: Tensor) -> list[Tensor]:
        """Return both in the order of their channels."""
        return [passed, changed] if self.start else [changed, passed]


def halves_of(layer: object, channels: int, start: int | None, stop: int | None) -> Halves:
    """Return the halves that a layer's arguments name; the last C - C // 2 channels are transformed by default.

    Raises:
        ValueError: fewer than 2 channels, or channels that are neither the first nor the last ones.
    """
    name = type(layer).__name__
    if check_channels(layer, channels) < 2:
        raise ValueError(f"{name}: channels must be at least 2, got {channels}")
    if start is None:
        start = channels // 2 if stop is None else 0
    stop = channels if stop is None else stop
    if not 0 <= start < stop <= channels or (start == 0) == (stop == channels):
        raise ValueError(
            f"{name}: channels start to stop must be the first or the last of {channels}, and not all: "
            f"give start in 1..{channels - 1} or stop in 1..{channels - 1}, got start={start}, stop={stop}"
        )
    return Halves(start, stop)


class WithNetwork(Protocol):
    """A layer with a network that sees a part of the state and, with ``context_channels``, a context."""

    context_channels: int
    net: nn.Module


def call_network(layer: WithNetwork, passed: Tensor, context: Context) -> Tensor:
    """Return the output of a layer's network.

    Args:
        layer: the layer.
        passed: the part of the state that the network sees.
        context: the context, in one tensor or shared; ignored by a layer without context channels.
    """
    if not layer.context_channels:
        return evaluate(layer, passed)
    if is_shared(context):
        return context.network(layer.net)(passed, slice(None))
    assert isinstance(context, Tensor)
    return evaluate(layer, passed, over_pixels(repeat_context(context, passed.shape[0]), passed))


def shared_network(layer: WithNetwork, context: SharedContext) -> Callable[[Tensor, slice], Tensor]:
    """Evaluate what depends on the context only, and return ``output(passed, part)``, the rest of the network."""
    if not layer.context_channels:
        return lambda passed, part: evaluate(layer, passed)
    check_shared_channels(layer, context, layer.context_channels)
    network, pixels = context.network(layer.net), tuple(context.shape[2:])

    def output(passed: Tensor, part: slice) -> Tensor:
        if tuple(passed.shape[2:]) != pixels:
            raise ValueError(
                f"{type(layer).__name__}: context must have the spatial dimensions of the state, "
                f"{tuple(passed.shape[2:])}, got shape {tuple(context.shape)}"
            )
        return network(passed, part)

    return output


def check_output(layer: WithNetwork, h: Tensor, channels: int, x: Tensor, detail: str = "") -> None:
    """Raise ``ValueError`` unless ``h`` is an output (B, channels, *) of the layer's network for ``x`` (B, C, *)."""
    check_output_channels(layer, h, channels, detail)
    if torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
        return
    expected = (x.shape[0], channels, *x.shape[2:])
    if h.shape != expected:
        raise ValueError(f"{type(layer).__name__}: net must return shape {expected}, got {tuple(h.shape)}")
