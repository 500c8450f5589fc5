"""Networks of couplings for inference: actnorms are part of the convolutions, and weights have the networks' dtype.

A layer's networks are evaluated for one chunk of samples after the other. What depends on their weights only is done
once for all chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, reduce

import torch
from torch import Tensor, nn

from invflow.layers import ZeroConv2d
from invflow.layers.protocol import is_watched, supports
from invflow.layers.zero_conv import is_3x3
from invflow.ops import conv3x3
from sr_models.networks.coupling import ConvActNorm, CouplingNet, Residual
from sr_models.networks.precision import half_precision, uses_matrix_units

__all__ = ["prepared_rest", "prepared_weight"]

Map = Callable[[Tensor], Tensor]


def prepared_rest(net: CouplingNet) -> Map:
    """Return ``net.rest`` with the present weights, without a graph.

    Layers of kinds that are not known here, and layers that hooks watch, are called as they are.
    """
    if not supports(net, "in_order", ("forward", "rest", "first_conv")):
        return net.rest
    _, *layers = net.in_order()
    return partial(_apply, list(map(_prepared, layers)))


def prepared_weight(weight: Tensor) -> Tensor:
    """Return a weight in the dtype of the networks and, if it has four dimensions, in the layout of fast convolutions.

    The layout is channels_last on a CPU and on a GPU's matrix units. There it decides that of the results too, whatever
    that of the input is. Other convolutions of a GPU are slower in it.
    """
    dtype = half_precision(weight.device) if weight.dtype is torch.float32 else None
    last = weight.dim() == 4 and (weight.is_cpu or uses_matrix_units(weight.device))
    layout = torch.channels_last if last else torch.contiguous_format
    return weight.detach().to(dtype or weight.dtype).contiguous(memory_format=layout)


def _prepared(layer: nn.Module) -> Map:
    if is_watched(layer):
        return layer
    if type(layer) is Residual:
        return partial(_with_skip, list(map(_prepared, layer)))
    if isinstance(layer, ConvActNorm | ZeroConv2d) and supports(layer, "merged", ("forward",)):
        if isinstance(layer, ZeroConv2d) or layer.merges():
            return _conv(layer, *layer.merged())
    elif type(layer) is nn.Conv2d and layer.bias is not None:
        return _conv(layer, layer.weight, layer.bias)
    return layer


def _conv(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> Map:
    convolve = conv3x3 if is_3x3(layer) else layer._conv_forward
    return partial(convolve, weight=prepared_weight(weight), bias=prepared_weight(bias))


def _apply(layers: Iterable[Map], h: Tensor) -> Tensor:
    return reduce(lambda x, layer: layer(x), layers, h)


def _with_skip(layers: Iterable[Map], h: Tensor) -> Tensor:
    return h + _apply(layers, h)
