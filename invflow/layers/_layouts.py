"""The layout in which the networks inside layers are fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import state_format
from invflow.ops._transforms import needs_reference

__all__ = ["evaluate"]

#: Below this number of pixels little is gained.
_LEAST_PIXELS = 64
_PLAIN_TYPES = (Tensor, nn.Parameter)


def evaluate(layer: Any, *inputs: Tensor) -> Tensor:
    """Evaluate the network of a layer, in the layout that is fastest.

    On a CPU, float32 images go in channels_last to a network that has an ``nn.Conv2d``. Its convolutions take up to 1.6
    times as long otherwise, and turning the few channels of the input takes a fiftieth of the network's time. The state
    itself stays as it is, since the kernels prefer the other layout.

    A network that takes no channels_last image, since it calls ``view`` across channels and pixels, is given its inputs
    as they are from then on.

    Args:
        layer: has the network as its attribute ``net``.
        inputs: what the network is called with.
    """
    net: nn.Module = layer.net
    if not _wants_channels_last(net, inputs[0]) or "_takes_no_channels_last" in layer.__dict__:
        return net(*inputs)
    turned = [_channels_last(x) for x in inputs]
    if torch.compiler.is_compiling():
        return net(*turned)
    try:
        return net(*turned)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
    layer._takes_no_channels_last = True
    return net(*inputs)


def _wants_channels_last(net: nn.Module, x: Tensor) -> bool:
    shape = x.shape
    if len(shape) != 4:
        return False
    # one graph of a compiler serves all sizes
    if not torch.compiler.is_compiling() and shape[2] * shape[3] < _LEAST_PIXELS:
        return False
    if type(x) not in _PLAIN_TYPES or not x.is_cpu or x.dtype != torch.float32:
        return False
    if needs_reference() or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    return any(isinstance(part, nn.Conv2d) for part in net.modules())


def _channels_last(x: Tensor) -> Tensor:
    # some channels of a channels_last tensor are as good; numbers that all pixels share are in no layout
    is_last = state_format(x) == torch.channels_last and x.stride(3) != 0
    return x if is_last else x.contiguous(memory_format=torch.channels_last)
