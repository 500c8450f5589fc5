"""The networks inside couplings and injectors.

Each is called ``net(x)`` or, inside a conditional coupling, ``net(x, context)`` on the concatenated channels. It is a
convolution, ``net.first_conv``, and everything after it, ``net.rest``: what the context contributes to the first
convolution does not depend on the state (see :mod:`sr_models.flow.condition_sharing`).
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from invflow.layers import ActNorm, ZeroConv2d

__all__ = ["ConvActNorm", "DeepConvNet", "ResidualNet", "ResidualUnitNet", "ShallowNet"]


class ConvActNorm(nn.Conv2d):
    r"""Convolution without bias, followed by an actnorm: :math:`y = (\operatorname{conv}(x) + b) \, e^{s}` (Glow's
    convolution, Kingma & Dhariwal, 2018). Padding keeps the size.

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
        if self.actnorm.initializes_from(x):
            with torch.no_grad():
                self.actnorm.initialize(super().forward(x))
        return self._conv_forward(x, *self.folded())

    def waits(self) -> bool:
        """Whether the next batch will initialise the actnorm."""
        return self.actnorm.initializes_from(self.weight)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that this is: scales the few weights instead of the many results."""
        scale = self.actnorm.log_scale.exp()
        return self.weight * scale[:, None, None, None], self.actnorm.bias * scale


class ShallowNet(nn.Module):
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
            nn.ReLU(inplace=True),
            ConvActNorm(hidden_channels, hidden_channels, 1),
            nn.ReLU(inplace=True),
            ZeroConv2d(hidden_channels, out_channels),
        )

    @property
    def first_conv(self) -> nn.Conv2d:
        """Sees x and the context."""
        return cast(nn.Conv2d, self.layers[0])

    def rest(self, h: Tensor) -> Tensor:
        """From the result of ``first_conv`` to that of the network; may overwrite ``h``."""
        return _after_first(self.layers, h)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.rest(self.first_conv(_joined(x, context)))


class DeepConvNet(nn.Module):
    """SRFlow-DA's deep convolutional block: six 3x3 convolutions, the last one zero-initialised, receptive field 13
    (Jo et al., SRFlow-DA, 2021, section 3.1).

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the five hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(4) for layer in _conv_and_relu(hidden_channels, hidden_channels)]
        self.layers = nn.Sequential(
            *_conv_and_relu(in_channels, hidden_channels), *hidden, ZeroConv2d(hidden_channels, out_channels)
        )

    @property
    def first_conv(self) -> nn.Conv2d:
        """Sees x and the context."""
        return cast(nn.Conv2d, self.layers[0])

    def rest(self, h: Tensor) -> Tensor:
        """From the result of ``first_conv`` to that of the network; may overwrite ``h``."""
        return _after_first(self.layers, h)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.rest(self.first_conv(_joined(x, context)))


class ResidualNet(nn.Module):
    """SRFlow-DA-R's network: that of :class:`DeepConvNet` with a skip connection around the four middle convolutions.

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the five hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv_and_relu(in_channels, hidden_channels))
        self.body = nn.Sequential(
            *(layer for _ in range(4) for layer in _conv_and_relu(hidden_channels, hidden_channels))
        )
        self.last = nn.Sequential(ZeroConv2d(hidden_channels, out_channels))

    @property
    def first_conv(self) -> nn.Conv2d:
        """Sees x and the context."""
        return cast(nn.Conv2d, self.first[0])

    def rest(self, h: Tensor) -> Tensor:
        """From the result of ``first_conv`` to that of the network; may overwrite ``h``."""
        h = _after_first(self.first, h)
        return self.last(self.body(h) + h)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.rest(self.first_conv(_joined(x, context)))


class ResidualUnitNet(nn.Module):
    """SRFlow-DA-D's network: a convolution, 18 residual units of two convolutions, a zero-initialised convolution.

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the hidden layers.
        out_channels: channels of the result.
        units: number of residual units.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, units: int = 18) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv_and_relu(in_channels, hidden_channels))
        self.body = nn.Sequential(*(_ResidualUnit(hidden_channels) for _ in range(units)))
        self.last = nn.Sequential(ZeroConv2d(hidden_channels, out_channels))

    @property
    def first_conv(self) -> nn.Conv2d:
        """Sees x and the context."""
        return cast(nn.Conv2d, self.first[0])

    def rest(self, h: Tensor) -> Tensor:
        """From the result of ``first_conv`` to that of the network; may overwrite ``h``."""
        return self.last(self.body(_after_first(self.first, h)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.rest(self.first_conv(_joined(x, context)))


class _ResidualUnit(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(*_conv_and_relu(channels, channels), *_conv_and_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _after_first(layers: nn.Sequential, h: Tensor) -> Tensor:
    for layer in itertools.islice(layers, 1, None):
        h = layer(h)
    return h


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context], 1)


def _conv_and_relu(inputs: int, outputs: int) -> tuple[nn.Conv2d, nn.ReLU]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.05)
    nn.init.zeros_(conv.bias)
    return conv, nn.ReLU(inplace=True)
