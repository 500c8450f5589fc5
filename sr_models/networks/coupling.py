"""The networks inside couplings and injectors.

Each is called ``net(x)`` or, inside a conditional coupling, ``net(x, context)`` on the concatenated channels. It is a
convolution, ``net.first_conv``, and everything after it, ``net.rest``. This separation lets samples of one image share
the context's part of the first convolution, which does not depend on the state (see
:mod:`sr_models.flow.condition_sharing`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from invflow import AffineForm
from invflow.layers import ActNorm, ZeroConv2d
from invflow.layers._current import current
from invflow.layers.folding import check_initialized, folding, plain_conv
from invflow.layers.protocol import is_watched, supports
from invflow.layers.zero_conv import is_3x3
from invflow.ops import conv3x3
from sr_models.networks.convolution import evaluate

__all__ = [
    "ConvActNorm",
    "CouplingNet",
    "DeepConvNet",
    "OutputLimit",
    "Residual",
    "ResidualNet",
    "ResidualUnitNet",
    "ShallowNet",
    "limited",
]


class ConvActNorm(nn.Conv2d):
    r"""Convolution without bias, followed by an actnorm: :math:`y = (\operatorname{conv}(x) + b) \, e^{s}` (Glow's
    convolution; Kingma & Dhariwal, 2018). Padding keeps the size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.actnorm = ActNorm(out_channels)
        nn.init.normal_(self.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        if not self.merges():
            return self.actnorm(super().forward(x))[0]
        if self.actnorm.initializes_from(x):
            with torch.no_grad():
                self.actnorm.initialize(super().forward(x))
        return self._conv_forward(x, *self.merged())

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_3x3(self) and input.dim() == 4:
            return conv3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    def merges(self) -> bool:
        """Tell whether a call of the actnorm does no more than its parameters say, so that it may be left out."""
        actnorm = self.actnorm
        return not is_watched(actnorm) and supports(actnorm, "_parameters_as", ("forward", "log_det"))

    def waits(self) -> bool:
        """Tell whether the next batch will initialise the actnorm."""
        return self.actnorm.initializes_from(self.weight)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one equal convolution. It scales the few weights, not the many results."""
        scale = current(self.actnorm, "log_scale").exp()
        return current(self, "weight") * scale[:, None, None, None], current(self.actnorm, "bias") * scale

    @folding
    def folded(self) -> nn.Conv2d:
        """Return the one equal convolution as a copy: see :class:`~invflow.layers.Foldable`."""
        check_initialized(self.actnorm)
        return plain_conv(self, *self.merged())


class CouplingNet(nn.Module):
    """Base of the networks: layers one after the other, of which the first is a convolution of x and the context.

    A subclass keeps its layers under the names that its published files have, and lists them in :meth:`in_order`.
    """

    def in_order(self) -> Iterable[nn.Module]:
        """List the layers in the order of evaluation; the first is a convolution."""
        raise NotImplementedError

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees x and the context."""
        return cast(nn.Conv2d, next(iter(self.in_order())))

    def rest(self, h: Tensor) -> Tensor:
        """Compute the network's result from that of ``first_conv``; may overwrite ``h``."""
        for layer in itertools.islice(self.in_order(), 1, None):
            h = evaluate(layer, h)
        return h

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.rest(evaluate(self.first_conv, x if context is None else torch.cat([x, context], 1)))


class ShallowNet(CouplingNet):
    """SRFlow's network: 3x3 and 1x1 convolution with actnorm and ReLU, then a zero-initialised 3x3 convolution
    (Lugmayr et al., SRFlow, 2020, section 3.4).

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the two hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvActNorm(in_channels, hidden_channels, 3),
            nn.ReLU(),
            ConvActNorm(hidden_channels, hidden_channels, 1),
            nn.ReLU(),
            ZeroConv2d(hidden_channels, out_channels),
        )

    def in_order(self) -> Iterable[nn.Module]:
        return self.layers


class DeepConvNet(CouplingNet):
    """SRFlow-DA's deep convolutional block: six 3x3 convolutions, the last one zero-initialised, receptive field 13
    (Jo et al., SRFlow-DA, 2021, section 3.1).

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the five hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        # their weights are drawn first, which decides what a seed gives
        hidden = _convs_and_relus(hidden_channels, hidden_channels, 4)
        self.layers = nn.Sequential(
            *_convs_and_relus(in_channels, hidden_channels), *hidden, ZeroConv2d(hidden_channels, out_channels)
        )

    def in_order(self) -> Iterable[nn.Module]:
        return self.layers


class ResidualNet(CouplingNet):
    """SRFlow-DA-R's network: that of :class:`DeepConvNet` with a skip connection around the four middle convolutions.

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the five hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convs_and_relus(in_channels, hidden_channels))
        self.body = Residual(*_convs_and_relus(hidden_channels, hidden_channels, 4))
        self.last = nn.Sequential(ZeroConv2d(hidden_channels, out_channels))

    def in_order(self) -> Iterable[nn.Module]:
        return *self.first, self.body, self.last


class ResidualUnitNet(CouplingNet):
    """SRFlow-DA-D's network: a convolution, 18 residual units of two convolutions, a zero-initialised convolution.

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the hidden layers.
        out_channels: channels of the result.
        units: number of residual units.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, units: int = 18) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convs_and_relus(in_channels, hidden_channels))
        self.body = nn.Sequential(
            *(Residual(*_convs_and_relus(hidden_channels, hidden_channels, 2)) for _ in range(units))
        )
        self.last = nn.Sequential(ZeroConv2d(hidden_channels, out_channels))

    def in_order(self) -> Iterable[nn.Module]:
        return *self.first, self.body, self.last


class Residual(nn.Sequential):
    """Layers with a skip connection around them; the first must not overwrite its input."""

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self:
            h = evaluate(layer, h)
        return x + h


def _convs_and_relus(inputs: int, outputs: int, repeats: int = 1) -> list[nn.Module]:
    """List 3x3 convolutions, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(repeats):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        assert conv.bias is not None
        nn.init.normal_(conv.weight, std=0.05)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    return layers


class OutputLimit(nn.Module):
    """Limit what a network makes of states that it has not seen, so that inverses cannot feed each other's errors.

    The limits are of the default :class:`invflow.AffineForm`. A coupling with them is as invertible as one without.

    Args:
        channels: channels of the network's output: shifts in even channels, raw scales in odd ones.
        gain: the most by which an inverse amplifies, more than 1.
        shift: the largest absolute shift.
    """

    low: Tensor
    high: Tensor

    def __init__(self, channels: int, gain: float, shift: float) -> None:
        super().__init__()
        least = 1 / gain - AffineForm().eps
        raw = math.log(least / (1 - least)) - 2.0
        low, high = torch.tensor([-shift, raw]), torch.tensor([shift, math.inf])
        # they follow from the config: no file holds them
        self.register_buffer("low", low.repeat(channels // 2)[:, None, None], persistent=False)
        self.register_buffer("high", high.repeat(channels // 2)[:, None, None], persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return h.clamp(self.low.to(h.dtype), self.high.to(h.dtype))


def limited(net: type[CouplingNet], gain: float, shift: float) -> Callable[[int, int, int], CouplingNet]:
    """Return a function that builds networks of a class whose outputs :class:`OutputLimit` limits.

    Args:
        net: class of the networks.
        gain, shift: as of :class:`OutputLimit`.
    """

    def build(in_channels: int, hidden_channels: int, out_channels: int) -> CouplingNet:
        network = net(in_channels, hidden_channels, out_channels)
        *_, last = network.children()
        cast(nn.Sequential, last).append(OutputLimit(out_channels, gain, shift))
        return network

    return build
