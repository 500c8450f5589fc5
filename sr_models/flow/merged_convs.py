"""The features' part of several networks' first convolutions as one convolution.

Networks of a level that see the same features differ in their weights only. One convolution with all their outputs
takes fewer launches and fills an accelerator better. Its gradient with respect to the features is one convolution too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from invflow import AffineCoupling, AffineInjector, FlowSequential
from invflow.layers.conditioning import takes_shared

__all__ = ["MergedConvs", "networks_of"]

#: One convolution has about this many results, so that those that wait for their network do not fill the memory.
_RESULTS = 2**26

_Split = tuple[Tensor, Tensor, Tensor | None]
#: ``parts(net)``: the weight of the passed channels (out, C, 3, 3), that of the features (out, F, 3, 3) and the bias
#: (out,) of the network's first convolution; ``None`` if the network cannot be split now.
Parts = Callable[[nn.Module], _Split | None]


def networks_of(layer: nn.Module, channels: int) -> Iterator[nn.Module]:
    """Yield the networks of couplings and injectors that will ask for the features' part of their first convolution.

    Args:
        layer: layer of a flow. What is inside a layer whose calls are watched is given the joined context, and what is
            reconstructed in the backward pass evaluates its networks twice.
        channels: channels of the features.
    """
    if isinstance(layer, AffineCoupling | AffineInjector):
        if takes_shared(layer) and layer.context_channels == channels:
            yield layer.net
    elif takes_shared(layer):
        flow = layer if isinstance(layer, FlowSequential) else None
        if flow is not None and flow.memory == "invert" and torch.is_grad_enabled():
            return
        for part in layer.children() if flow is None else flow:
            yield from networks_of(part, channels)


class MergedConvs:
    """First convolutions of networks, computed several at a time when the first of them is asked for.

    Args:
        networks: networks in the order in which they will ask.
        parts: splits a network's first convolution.
        conv: convolution of the features with weight and bias.
        pixels: pixels of all images of a batch.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        parts: Parts,
        conv: Callable[[Tensor, Tensor | None], Tensor],
        pixels: int,
    ) -> None:
        self._waiting = list(networks)
        self._parts, self._conv, self._pixels = parts, conv, pixels
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def take(self, net: nn.Module) -> tuple[Tensor, Tensor] | None:
        """Return the weight of a network's passed channels and its convolution of the features, once.

        Returns:
            ``None`` for a network that was not announced, was asked for before, or cannot be split.
        """
        if id(net) not in self._found and any(net is other for other in self._waiting):
            self._compute(net)
        return self._found.pop(id(net), None)

    def _compute(self, first: nn.Module) -> None:
        """Compute the convolution of a network and of those that come after, as many as fit."""
        while self._waiting[0] is not first:  # those that did not ask
            self._waiting.pop(0)
        nets: list[nn.Module] = []
        parts: list[_Split] = []
        outputs = 0
        while self._waiting and (not nets or outputs * self._pixels < _RESULTS):
            net = self._waiting.pop(0)
            found = self._parts(net)
            if found is not None and (not parts or _alike(found, parts[0])):
                nets.append(net)
                parts.append(found)
                outputs += len(found[1])
        if not nets:
            return
        biases = [bias for _, _, bias in parts if bias is not None]
        joined = torch.cat([weight for _, weight, _ in parts])
        y = self._conv(joined, torch.cat(biases) if biases else None)
        results = y.split([len(weight) for _, weight, _ in parts], 1)
        for net, (of_passed, _, _), result in zip(nets, parts, results, strict=True):
            self._found[id(net)] = of_passed, result


def _alike(one: _Split, other: _Split) -> bool:
    """Return whether two convolutions can be one."""
    return (
        one[1].shape[1] == other[1].shape[1]
        and one[1].dtype == other[1].dtype
        and one[1].device == other[1].device
        and type(one[1]) is type(other[1])
        and (one[2] is None) == (other[2] is None)
    )
