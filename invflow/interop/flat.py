"""Flat: all latents of a flow as one vector, for libraries whose latents are one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow.interop._contract import check_layer
from invflow.layers.protocol import InvertibleLayer, Shape, checked_latents, output_shapes_of

__all__ = ["Flat"]


class Flat(nn.Module):
    """A layer whose latents are one vector (B, D): those of the given layer, flattened and joined in encode order.

    Other libraries expect one latent of a flow. :class:`invflow.Split` makes two.

    >>> import torch, invflow
    >>> from invflow.interop import Flat
    >>> layer = Flat(invflow.FlowSequential([invflow.Squeeze(), invflow.Split(4)]), (1, 4, 4))
    >>> z, log_det = layer(torch.randn(2, 1, 4, 4))
    >>> z.shape, layer.inverse(z)[0].shape
    (torch.Size([2, 16]), torch.Size([2, 1, 4, 4]))

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        event_shape: shape (C, *) of one sample. Samples of other sizes are refused.

    Attributes:
        latent_shapes: shapes of the layer's latents, in encode order.

    Raises:
        TypeError: no layer.
        ValueError: a shape that the layer does not take.

    Shape:
        x (B, C, *) -> z (B, D) with D elements a sample, log_det (B,).
    """

    def __init__(self, layer: nn.Module, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.layer = check_layer("Flat", layer)
        self.event_shape = tuple(event_shape)
        self.latent_shapes = output_shapes_of(layer, self.event_shape)

    def forward(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"Flat: x must have shape (B, *{self.event_shape}), got {tuple(x.shape)}")
        z, log_det = self.layer(x, context)
        return torch.cat([latent.flatten(1) for latent in checked_latents(z, self.layer, "Flat")], 1), log_det

    def inverse(self, z: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        sizes = [math.prod(shape) for shape in self.latent_shapes]
        if z.dim() != 2 or z.shape[1] != sum(sizes):
            raise ValueError(f"Flat: z must have shape (B, {sum(sizes)}), got {tuple(z.shape)}")
        parts = z.split(sizes, 1)
        latents = [part.reshape(len(z), *shape) for part, shape in zip(parts, self.latent_shapes, strict=True)]
        layer = cast(InvertibleLayer, self.layer)
        return layer.inverse(latents if len(latents) > 1 else latents[0], context)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        if tuple(shape) != self.event_shape:
            raise ValueError(f"Flat: samples must have shape {self.event_shape}, got {tuple(shape)}")
        return [(math.prod(self.event_shape),)]

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}"
