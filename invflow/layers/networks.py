"""Networks that are given to layers: as modules, or as factories that are told the numbers of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["NetFactory", "network_of"]

#: ``net(in_channels, out_channels)`` returns a new network. A class such as :class:`invflow.ZeroConv2d` is one, too.
NetFactory = Callable[[int, int], nn.Module]


class _Joined(nn.Module):
    """A network of one input that is called with two, which it is given joined along the channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat([x, context.to(x.dtype)], 1))


def network_of(
    layer: object, net: nn.Module | NetFactory, in_channels: int, out_channels: int, *, context_channels: int = 0
) -> nn.Module:
    """Return the network of a layer: ``net`` itself, or what it makes if it is a factory.

    Args:
        layer: the layer, for messages.
        net: a network, or ``net(in_channels, out_channels)``, which returns one.
        in_channels: channels of the state that the network sees.
        out_channels: channels that the network must return.
        context_channels: channels of the context, if the layer calls ``net(x, context)``. A factory is told the sum of
            both, and its network gets state and context joined along the channels.

    Raises:
        ValueError: fewer than 0 context channels.
        TypeError: neither a network nor a factory of networks.
    """
    name = type(layer).__name__
    if context_channels < 0:
        raise ValueError(f"{name}: context_channels must be at least 0, got {context_channels}")
    if isinstance(net, nn.Module):
        return net
    if not callable(net):
        raise TypeError(
            f"{name}: net must be a torch.nn.Module or a factory net(in_channels, out_channels), "
            f"got {type(net).__name__}"
        )
    made = net(in_channels + context_channels, out_channels)
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name}: the factory net must return a torch.nn.Module, got {type(made).__name__}")
    return _Joined(made) if context_channels else made
