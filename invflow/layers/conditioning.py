"""Inverses for many samples of one context: context-only work is done once."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from invflow.layers.protocol import (
    Conditionable,
    ConditionedInverse,
    InvertibleLayer,
    SharedContext,
    is_shared,
    is_watched,
    supports,
)

__all__ = ["condition", "context_for", "over_pixels", "repeat_context", "takes_shared", "without_context"]

#: Methods of layers that are handed a context. Who overrides one must say again that it takes a shared one.
_TAKE_CONTEXT = ("forward", "inverse", "raw_output", "pending")


def condition(layer: InvertibleLayer | nn.Module, context: SharedContext) -> ConditionedInverse:
    """Return the layer's inverse with everything computed that depends on the context only.

    A layer that is not :class:`~invflow.layers.Conditionable` is given the joined context, one for every state.

    Args:
        layer: the layer to invert.
        context: samples of a context, each of which serves many states.

    Returns:
        ``inverse(z, part)``, which returns the states without their log_det.
    """
    if supports(layer, "conditioned_inverse"):
        return cast(Conditionable, layer).conditioned_inverse(context)
    joined, plain = context.joined(), cast(InvertibleLayer, layer)

    def inverse(z: Any, part: slice) -> Tensor:
        states = len(z if isinstance(z, Tensor) else z[-1])
        return plain.inverse(z, repeat_context(joined[part], states))[0]

    return inverse


def context_for(layer: nn.Module | InvertibleLayer, context: Any) -> Any:
    """Return the context that a layer is called with: a shared one joined, unless the layer takes it as it is."""
    if context is None or isinstance(context, Tensor) or not is_shared(context) or takes_shared(layer):
        return context
    return context.joined()


def takes_shared(layer: nn.Module | InvertibleLayer) -> bool:
    """Return whether the layer's methods take a :class:`~invflow.layers.SharedContext` as context.

    A layer whose calls are watched is given the joined context: hooks expect tensors.
    """
    return supports(layer, "takes_shared_context", _TAKE_CONTEXT) and not is_watched(cast(nn.Module, layer))


def without_context(layer: InvertibleLayer) -> ConditionedInverse:
    """Return the inverse of a layer that ignores any context."""
    return lambda z, part: layer.inverse(z)[0]


def repeat_context(context: Tensor, states: int) -> Tensor:
    """Return the context (B', K, *) of every one of ``states`` states; B' divides their number."""
    count = context.shape[0]
    return context if count in (0, states) else context.repeat_interleave(states // count, 0)


def over_pixels(context: Any, x: Tensor) -> Any:
    """Return a context as the networks of a layer see it: a vector (B', K) expanded to the pixels of ``x`` (B, C, *).

    Any other context is returned as it is.
    """
    if not isinstance(context, Tensor) or context.dim() != 2 or x.dim() == 2:
        return context
    # a view
    return context.view(*context.shape, *(1,) * (x.dim() - 2)).expand(*context.shape, *x.shape[2:])
