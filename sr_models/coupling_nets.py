"""The networks inside couplings and injectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invflow.layers import ZeroConv2d

__all__ = ["DeepConvNet"]


class DeepConvNet(nn.Module):
    """SRFlow-DA's deep convolutional block: six 3x3 convolutions, the last one zero-initialised, receptive field 13
    (Jo et al., SRFlow-DA, 2021, section 3.1).

    ``forward(x)`` or, inside a conditional coupling, ``forward(x, context)`` on the concatenated channels.

    Args:
        in_channels: channels of x and context together.
        hidden_channels: channels of the five hidden layers.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [in_channels] + [hidden_channels] * 5
        layers: list[nn.Module] = []
        for inputs in widths[:-1]:
            conv = nn.Conv2d(inputs, hidden_channels, 3, padding=1)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
        self.layers = nn.Sequential(*layers, ZeroConv2d(hidden_channels, out_channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x if context is None else torch.cat([x, context], 1))
