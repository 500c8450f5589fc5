"""nflows: transforms of nflows as layers. Our layers need no adapter there.

``nflows.flows.Flow(layer, distribution)`` takes any invflow layer of one latent as its transform. Layers of several
latents are joined by :class:`invflow.interop.Flat`: ``Flow(Flat(layer, event_shape), StandardNormal([D]))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from invflow.interop._contract import missing_library, one_a_sample
from invflow.layers.protocol import InvertibleLayer, Shape

try:
    from nflows.transforms.base import MultiscaleCompositeTransform, Transform
except ModuleNotFoundError as error:
    raise missing_library(error, "nflows") from None

__all__ = ["layer_of"]


def layer_of(transform: nn.Module, output_shape: Sequence[int] | None = None) -> nn.Module:
    """Return a layer that computes a transform of nflows; its context is the transform's.

    Args:
        transform: maps data to latents.
        output_shape: shape of one latent, where the transform changes it. That of ``SqueezeTransform`` and
            ``MultiscaleCompositeTransform`` is known.

    Raises:
        TypeError: not a transform of nflows.
    """
    if not isinstance(transform, Transform):
        raise TypeError(f"layer_of: transform must be one of nflows, got {type(transform).__name__}")
    return _TransformLayer(transform, output_shape)


class _TransformLayer(nn.Module):
    """A transform as a layer."""

    def __init__(self, transform: nn.Module, output_shape: Sequence[int] | None) -> None:
        super().__init__()
        self.transform = transform
        self.output_shape = None if output_shape is None else tuple(output_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.transform(x, context)
        return z, one_a_sample(log_det, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = cast(InvertibleLayer, self.transform).inverse(z, context)
        return x, one_a_sample(log_det, z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        if self.output_shape is not None:
            return [self.output_shape]
        if isinstance(self.transform, MultiscaleCompositeTransform):
            return [(math.prod(shape),)]
        own: Any = getattr(self.transform, "get_output_shape", None)
        return [tuple(shape) if own is None else tuple(own(*shape))]
