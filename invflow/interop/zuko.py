"""zuko: invflow layers as a lazy transform, and lazy transforms as layers.

Lazy transforms of zuko go from data to latents, as our layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform

from invflow.interop._contract import missing_library, one_a_sample
from invflow.interop.distributions import FlowTransform

try:
    from zuko.lazy import LazyTransform
except ModuleNotFoundError as error:
    raise missing_library(error, "zuko") from None

__all__ = ["LazyFlow", "layer_of"]


class LazyFlow(LazyTransform):
    """An invflow layer for ``zuko.lazy.Flow(LazyFlow(layer, event_shape), base)``.

    The base has one dimension if the layer has several latents: they are one vector (:class:`invflow.interop.Flat`).

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        event_shape: shape (C, *) of one sample of data.

    Raises:
        TypeError: no layer.
        ValueError: a shape that the layer does not take.
    """

    def __init__(self, layer: nn.Module, event_shape: Sequence[int]) -> None:
        super().__init__()
        FlowTransform(layer, event_shape)  # raises now what a call would
        self.layer, self.event_shape = layer, tuple(event_shape)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Return the transform from data to latents.

        Args:
            c: contexts ``(*batch, K)`` of the layer, one vector a sample.
        """
        # not .inv, which the transform would hold: until the garbage collection both would keep their last graph
        return _InverseTransform(FlowTransform(self.layer, self.event_shape, c))


def layer_of(lazy: nn.Module) -> nn.Module:
    """Return a layer that computes a lazy transform; its context (B, K) is the transform's.

    Args:
        lazy: a ``zuko.lazy.LazyTransform``, such as ``flow.transform`` of a ``zuko.lazy.Flow``.

    Raises:
        TypeError: another object.
    """
    if not isinstance(lazy, LazyTransform):
        hint = ": give flow.transform" if hasattr(lazy, "transform") else ""
        raise TypeError(f"layer_of: lazy must be a zuko.lazy.LazyTransform, got {type(lazy).__name__}{hint}")
    return _LazyLayer(lazy)


class _LazyLayer(nn.Module):
    """A lazy transform as a layer."""

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__()
        self.lazy = lazy

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _run(self.lazy(context), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _run(self.lazy(context).inv, z)


def _run(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, log_det = transform.call_and_ladj(x)
    return y, one_a_sample(log_det, x)
