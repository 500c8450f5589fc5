"""Our layers as flows of normflows, and its flows as layers."""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import Tensor, nn

from invflow.interop._contract import check_one_latent, missing_library, one_a_sample
from invflow.layers.protocol import InvertibleLayer, Shape

try:
    import normflows
except ModuleNotFoundError as error:
    raise missing_library(error, "normflows") from None

__all__ = ["FlowLayer", "LayerFlow", "layer_of"]


class LayerFlow(normflows.flows.Flow):
    """An invflow layer of one latent as a flow of ``normflows.NormalizingFlow`` and the like.

    Layers of several latents are joined by :class:`invflow.interop.Flat`. ``normflows.MultiscaleFlow`` splits itself.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`. Its context is that of a ``ConditionalNormalizingFlow``.

    Raises:
        TypeError: no layer.
        ValueError: a layer of several latents.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = check_one_latent("LayerFlow", layer)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the data of latents (B, ...), and log_det (B,)."""
        return cast(InvertibleLayer, self.layer).inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the latents of data (B, ...), and log_det (B,)."""
        z, log_det = self.layer(x, context)
        return z, log_det


def layer_of(flow: nn.Module) -> nn.Module:
    """Return a layer that is the inverse of a flow: its ``forward`` takes data and returns latents.

    The layer's context goes to a flow that has an argument ``context`` or ``y``; any other flow ignores it.

    Args:
        flow: one of normflows that maps a tensor to a tensor.

    Raises:
        TypeError: not a flow of normflows.
        ValueError: ``Split`` or ``Merge``, which map to or from two tensors.
    """
    if not isinstance(flow, normflows.flows.Flow):
        raise TypeError(f"layer_of: flow must be a normflows.flows.Flow, got {type(flow).__name__}")
    if isinstance(flow, normflows.flows.Split):
        raise ValueError(f"layer_of: flow must map a tensor to a tensor, got {type(flow).__name__}")
    return FlowLayer(flow)


class FlowLayer(nn.Module):
    """A flow from latents to data as a layer from data to latents; made by :func:`layer_of`."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        named = inspect.signature(flow.forward).parameters
        self.condition = next((name for name in ("context", "y") if name in named), None)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.flow.inverse, x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.flow, z, context)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        if not isinstance(self.flow, normflows.flows.Squeeze):
            return [shape]
        channels, height, width = shape
        return [(4 * channels, height // 2, width // 2)]

    def _run(self, function: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det = function(x) if self.condition is None else function(x, **{self.condition: context})
        return y, one_a_sample(log_det, x)
