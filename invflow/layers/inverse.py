"""The inverse of a layer as a module that exporters and tracers can call."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from invflow.layers.protocol import InvertibleLayer

__all__ = ["Inverse"]


class Inverse(nn.Module):
    """Module whose ``forward`` is the ``inverse`` of a layer: exporters and tracers call no other method.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.

    Shape:
        z and context as in the layer's ``inverse`` -> x (B, C, *), log_det (B,).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training

    def forward(self, z: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return cast(InvertibleLayer, self.layer).inverse(z, context)
