"""3x3 convolutions of the networks, by :func:`invflow.ops.conv3x3` unless somebody looks on at their calls."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow.layers.protocol import is_watched, watches_all
from invflow.layers.zero_conv import is_3x3
from invflow.ops import conv3x3
from invflow.ops._transforms import needs_reference

__all__ = ["SLOPE", "conv3x3_layer", "evaluate", "is_looked_at", "is_plain_conv", "leaky"]

#: Slope of the encoder's activation below zero.
SLOPE = 0.2


def conv3x3_layer(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def leaky(x: Tensor) -> Tensor:
    """Apply the encoder's activation; not in place, since a backward hook of a convolution hands on a view."""
    return F.leaky_relu(x, SLOPE)


def evaluate(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer; the faster operator takes the place of a plain 3x3 convolution."""
    if x.dim() != 4 or not is_plain_conv(layer) or is_looked_at():
        return cast(Tensor, layer(x))
    conv = cast(nn.Conv2d, layer)
    return conv3x3(x, conv.weight, conv.bias)


def is_plain_conv(layer: nn.Module) -> bool:
    """Return whether a layer's call is a 3x3 convolution that keeps the size, and no more."""
    if type(layer) is not nn.Conv2d or is_watched(layer):
        return False
    return "forward" not in layer.__dict__ and "_conv_forward" not in layer.__dict__ and is_3x3(layer)


def is_looked_at() -> bool:
    """Return whether a compiler, a tracer, a transform or global hooks look on at the calls of modules."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or needs_reference() or watches_all()
