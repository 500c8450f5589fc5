"""Networks of couplings for inference: actnorms are part of the convolutions, and weights have the networks' dtype.

A layer's networks are evaluated for one chunk of samples after the other. What depends on their weights only is done
once for all chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor, nn

from invflow._numerics import state_format
from invflow.layers import ZeroConv2d
from invflow.layers.protocol import is_watched, supports
from invflow.layers.zero_conv import is_3x3
from invflow.ops._finished_conv3x3 import Finish, Pointwise, finished, finished_conv3x3
from sr_models.networks.coupling import ConvActNorm, CouplingNet, Residual
from sr_models.networks.precision import half_precision, uses_matrix_units

__all__ = ["PreparedRest", "prepared_rest", "prepared_weight"]

Map = Callable[[Tensor], Tensor]
#: Methods of a convolution that its instances may have of their own.
_CALLED = ("forward", "_conv_forward")


class PreparedRest:
    """A network's layers after its first convolution. The first of them may be computed together with it.

    Attributes:
        slope: of the activation of the first convolution's result; 1 if there is none.
        pointwise: the 1x1 convolution that follows, and its activation; ``None`` if there is none.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        waiting = deque(layers)
        self.slope, self.pointwise = _take_tail(waiting)
        self._maps = _prepared(waiting, torch.contiguous_format)

    def __call__(self, h: Tensor) -> Tensor:
        """Compute the network's result from that of the first convolution; may overwrite ``h``."""
        return self.others(finished(h, Finish(slope=self.slope), self.pointwise))

    def others(self, h: Tensor) -> Tensor:
        """Compute the network's result from that of the first convolution, its activation and ``pointwise``."""
        return _apply(self._maps, h)

    def after_conv(self, x: Tensor, weight: Tensor, shared: Tensor) -> Tensor:
        """Compute the network's result, the first convolution being ``conv3x3(x, weight) + shared``.

        Args:
            x: (B M, C, H, W), as many successive ones of every image.
            weight: (O, C, 3, 3).
            shared: (B, O, H, W).
        """
        finish = Finish(shared, slope=self.slope)
        layout = state_format(shared)
        h = finished_conv3x3(x, weight, finish=finish, pointwise=self.pointwise, memory_format=layout)
        return self.others(h)


def prepared_rest(net: CouplingNet) -> PreparedRest | Map:
    """Return ``net.rest`` with the present weights, without a graph.

    Networks and layers of kinds that are not known here, and layers that hooks watch, are called as they are.
    """
    if not supports(net, "in_order", ("forward", "rest", "first_conv")):
        return net.rest
    _, *layers = net.in_order()
    return PreparedRest(layers)


def prepared_weight(weight: Tensor) -> Tensor:
    """Return a weight in the dtype of the networks and, if it has four dimensions, in the layout of fast convolutions.

    The layout is channels_last in half precision on a CPU and on a GPU's matrix units. There it decides that of the
    results too, whatever that of the input is. Other convolutions of a GPU are slower in it, and the CPU's kernel reads
    the nine weights of a pair side by side.
    """
    dtype = half_precision(weight.device) if weight.dtype is torch.float32 else None
    last = weight.dim() == 4 and (dtype is not None if weight.is_cpu else uses_matrix_units(weight.device))
    layout = torch.channels_last if last else torch.contiguous_format
    return weight.detach().to(dtype or weight.dtype).contiguous(memory_format=layout)


def _prepared(waiting: deque[nn.Module], last: torch.memory_format | None = None) -> list[Map]:
    """Return the maps of layers, which are taken off; activations belong to the convolution before them.

    Args:
        waiting: layers.
        last: preferred memory format of the last result; ``None`` is that of the input.
    """
    maps: list[Map] = []
    while waiting:
        layer = waiting.popleft()
        parameters = _parameters_of(layer)
        if type(layer) is Residual and not is_watched(layer) and supports(layer, "forward", ("forward",)):
            maps.append(partial(_with_skip, _prepared(deque(layer))))
        elif parameters is None:
            maps.append(layer)
        elif is_3x3(cast(nn.Conv2d, layer)):
            weight, bias = parameters
            slope, pointwise = _take_tail(waiting)
            layout = None if waiting else last
            maps.append(partial(_conv3x3, weight, bias, Finish(slope=slope), pointwise, layout))
        else:
            weight, bias = parameters
            maps.append(partial(cast(nn.Conv2d, layer)._conv_forward, weight=weight, bias=bias))
    return maps


def _take_tail(waiting: deque[nn.Module]) -> tuple[float, Pointwise | None]:
    """Take off an activation, and a 1x1 convolution with its activation, which belong to the convolution before."""
    slope = _take_activation(waiting)
    if not waiting or not _is_pointwise(waiting[0]):
        return slope, None
    parameters = _parameters_of(waiting[0])
    if parameters is None:
        return slope, None
    waiting.popleft()
    return slope, Pointwise(*parameters, _take_activation(waiting))


def _take_activation(waiting: deque[nn.Module]) -> float:
    """Take off a ReLU and return its slope below zero; without one return 1."""
    if not waiting or type(waiting[0]) is not nn.ReLU or is_watched(waiting[0]):
        return 1.0
    if not supports(waiting[0], "forward", ("forward",)):
        return 1.0
    waiting.popleft()
    return 0.0


def _is_pointwise(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")


def _parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the prepared weight and bias of a convolution; ``None`` if its call may do more than they say."""
    if is_watched(layer):
        return None
    if isinstance(layer, ConvActNorm | ZeroConv2d) and supports(layer, "merged", ("forward",)):
        if isinstance(layer, ConvActNorm) and not layer.merges():
            return None
        weight, bias = layer.merged()
    elif type(layer) is nn.Conv2d and layer.bias is not None and supports(layer, "_conv_forward", _CALLED):
        weight, bias = layer.weight, layer.bias
    else:
        return None
    return prepared_weight(weight), prepared_weight(bias)


def _conv3x3(
    weight: Tensor,
    bias: Tensor,
    finish: Finish,
    pointwise: Pointwise | None,
    memory_format: torch.memory_format | None,
    h: Tensor,
) -> Tensor:
    return finished_conv3x3(h, weight, bias, finish=finish, pointwise=pointwise, memory_format=memory_format)


def _apply(layers: Iterable[Map], h: Tensor) -> Tensor:
    return reduce(lambda x, layer: layer(x), layers, h)


def _with_skip(layers: Iterable[Map], h: Tensor) -> Tensor:
    return h + _apply(layers, h)
