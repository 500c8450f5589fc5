"""The layout in which the networks inside layers are fastest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import state_format
from invflow.ops._transforms import is_exported, needs_reference, saving_is_watched

__all__ = ["evaluate"]

#: Below this number of pixels little is gained.
_LEAST_PIXELS = 64
_PLAIN_TYPES = (Tensor, nn.Parameter)
#: Packages whose modules take images of any layout.
_WELL_KNOWN = ("torch.nn.modules.", "invflow.layers.")


def evaluate(layer: Any, *inputs: Tensor) -> Tensor:
    """Evaluate the network of a layer, in the layout that is fastest.

    On a CPU, float32 images go in channels_last to a network that has an ``nn.Conv2d``. Its convolutions take up to 1.6
    times as long otherwise, and turning the few channels of the input takes a fiftieth of the network's time. The state
    itself stays as it is, since the kernels prefer the other layout.

    A network that takes no channels_last image, since it calls ``view`` across channels and pixels, is given its inputs
    as they are from then on. The call that finds this out leaves nothing behind but what hooks have seen. A compiled
    graph cannot find it out: it turns inputs of a network of well-known modules, or that was seen to take them.

    Args:
        layer: has the network as its attribute ``net``.
        inputs: what the network is called with.
    """
    net: nn.Module = layer.net
    if not _wants_channels_last(net, inputs[0]):
        return net(*inputs)
    takes = layer.__dict__.get("_takes_channels_last")
    if takes is None and torch.compiler.is_compiling():
        takes = all(type(part).__module__.startswith(_WELL_KNOWN) for part in net.modules())
    if takes is None:
        return _try(layer, net, inputs)
    return net(*map(_channels_last, inputs)) if takes else net(*inputs)


def _try(layer: Any, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Evaluate the network, and note whether it takes channels_last."""
    undo = _undoing(net)
    # activation checkpointing counts what is saved, so it must not see a try that fails
    apart = saving_is_watched()
    try:
        with torch.no_grad() if apart else nullcontext():
            y = net(*map(_channels_last, inputs))
        layer._takes_channels_last = True
        if not apart:
            return y
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        layer._takes_channels_last = False
    undo()
    return evaluate(layer, *inputs)


def _undoing(net: nn.Module) -> Callable[[], None]:
    """Return a function that brings random numbers and the network's buffers back to where they are now."""
    state = torch.get_rng_state()
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def undo() -> None:
        torch.set_rng_state(state)
        for owner, name, buffer, copy in buffers:
            # a version does not tell: batch norm changes its buffers without a new one
            if not torch.equal(buffer, copy):
                with torch.no_grad():
                    buffer.copy_(copy)
            owner[name] = buffer

    return undo


def _wants_channels_last(net: nn.Module, x: Tensor) -> bool:
    shape = x.shape
    if len(shape) != 4:
        return False
    # one graph of a compiler serves all sizes
    if not torch.compiler.is_compiling() and shape[2] * shape[3] < _LEAST_PIXELS:
        return False
    if type(x) not in _PLAIN_TYPES or not x.is_cpu or x.dtype != torch.float32:
        return False
    if needs_reference() or is_exported():
        return False
    return any(isinstance(part, nn.Conv2d) for part in net.modules())


def _channels_last(x: Tensor) -> Tensor:
    # some channels of a channels_last tensor are as good; numbers that all pixels share are in no layout
    is_last = state_format(x) == torch.channels_last and x.stride(3) != 0
    return x if is_last else x.contiguous(memory_format=torch.channels_last)
