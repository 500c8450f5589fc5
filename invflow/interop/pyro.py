"""pyro: invflow layers as transform modules, and transforms as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Transform

from invflow.interop import distributions
from invflow.interop._contract import missing_library

try:
    from pyro.distributions.conditional import ConditionalTransformModule
    from pyro.distributions.torch_transform import TransformModule
except ModuleNotFoundError as error:
    raise missing_library(error, "pyro", "pyro-ppl") from None

__all__ = ["ConditionalFlowTransform", "FlowTransform", "layer_of"]


class FlowTransform(distributions.FlowTransform, TransformModule):
    """An invflow layer as a transform from latents to data that is a module: ``pyro.module`` registers it.

    Arguments are those of :class:`invflow.interop.distributions.FlowTransform`.
    """


class ConditionalFlowTransform(ConditionalTransformModule):
    """A conditional invflow layer, for ``pyro.distributions.ConditionalTransformedDistribution``.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        event_shape: shape (C, *) of one sample of data.
        context_dim: number of dimensions of one condition: 1 of a vector, 3 of an image.

    Raises:
        TypeError: no layer.
        ValueError: a shape that the layer does not take.
    """

    def __init__(self, layer: nn.Module, event_shape: Sequence[int], *, context_dim: int = 1) -> None:
        super().__init__()
        distributions.FlowTransform(layer, event_shape)  # raises now what a call would
        self.layer, self.event_shape, self.context_dim = layer, tuple(event_shape), context_dim

    def condition(self, context: Tensor) -> distributions.FlowTransform:
        """Return the transform from latents to data for contexts ``(*batch, *one)``."""
        return distributions.FlowTransform(self.layer, self.event_shape, context, context_dim=self.context_dim)


def layer_of(transform: Any) -> nn.Module:
    """Return a layer that is the inverse of a transform: its ``forward`` takes data and returns latents.

    Args:
        transform: maps latents to data. The layer's context conditions a ``ConditionalTransformModule``.

    Raises:
        TypeError: not a transform.
        ValueError: a transform without an inverse.
    """
    if isinstance(transform, ConditionalTransformModule):
        return _ConditionalLayer(transform)
    return distributions.layer_of(transform)


class _ConditionalLayer(nn.Module):
    """A conditional transform from latents to data as a layer from data to latents."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return distributions.to_latents(self._given(context), x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return distributions.to_data(self._given(context), z)

    def _given(self, context: Tensor | None) -> Transform:
        if context is None:
            raise ValueError(f"{type(self.transform).__name__} is conditional: context must not be None")
        given: Transform = self.transform.condition(context)  # type: ignore[operator]
        return given
